"""Logits of classes that exclude each other, and of classes that do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from napari_msamil.models.logits import loss, probabilities

LOGITS = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)


def test_exclusive_probabilities_are_a_softmax_and_others_sigmoids_that_know_nothing_of_each_other() -> None:
    assert torch.equal(probabilities(LOGITS, exclusive=True), LOGITS.softmax(-1))
    found = probabilities(LOGITS, exclusive=False)
    assert found.tolist() == pytest.approx([1 / (1 + math.exp(-x)) for x in (2.0, -1.0, 0.5)])
    assert float(found.sum()) > 1.5
    changed = LOGITS.clone()
    changed[0] = -9.0
    assert torch.equal(probabilities(changed, exclusive=False)[1:], found[1:])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_exclusive_classes_is_torchs_cross_entropy_bit_for_bit(smoothing: float) -> None:
    expected = cross_entropy(LOGITS[None], torch.tensor([2]), label_smoothing=smoothing)
    assert torch.equal(loss(LOGITS, torch.tensor(2), exclusive=True, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_other_classes_is_the_mean_of_one_binary_loss_each(smoothing: float) -> None:
    target = torch.tensor([1, 0, 1])
    wanted = [y * (1 - smoothing) + smoothing / 2 for y in (1, 0, 1)]
    p = probabilities(LOGITS, exclusive=False).tolist()
    each = [-(y * math.log(q) + (1 - y) * math.log(1 - q)) for y, q in zip(wanted, p, strict=True)]
    found = loss(LOGITS, target, exclusive=False, label_smoothing=smoothing)
    assert float(found) == pytest.approx(sum(each) / 3, rel=1e-12)


def test_smoothing_of_one_class_is_that_of_two_exclusive_ones() -> None:
    one = loss(torch.tensor([0.7]), torch.tensor([1]), exclusive=False, label_smoothing=0.2)
    two = loss(torch.tensor([0.0, 0.7]), torch.tensor(1), exclusive=True, label_smoothing=0.2)
    assert float(one) == pytest.approx(float(two), rel=1e-6)


def test_the_loss_of_a_sure_and_wrong_answer_is_finite() -> None:
    assert float(loss(torch.tensor([500.0, -500.0]), torch.tensor([0, 1]), exclusive=False)) == pytest.approx(500)
