"""Figures are exact."""

import numpy as np
import pytest

from napari_msamil.training.metrics import Overlap, auc, bootstrap_auc


def test_auc_counts_pairs_and_halves_ties() -> None:
    positive = np.array([True, True, False, False, False])
    assert auc(positive, np.array([0.9, 0.4, 0.4, 0.2, 0.8])) == pytest.approx((3 + 1 + 0.5) / 6)


def test_auc_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="3 positives and 0 negatives"):
        auc(np.ones(3, bool), np.arange(3.0))


def test_bootstrap_interval_holds_the_estimate() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(60) < 20
    score = rng.normal(0, 1, 60) + positive
    low, high = bootstrap_auc(positive, score, rounds=300)
    assert low < auc(positive, score) < high
    assert 0.1 < high - low < 0.4


def test_overlap_adds_up_slides() -> None:
    overlap = Overlap()
    overlap.add(np.array([[True, True, False]]), np.array([[True, False, False]]))
    overlap.add(np.array([[False, False]]), np.array([[True, False]]))
    assert overlap.dice == pytest.approx(2 * 1 / (2 + 2))
    assert overlap.iou == pytest.approx(1 / 3)
