"""Bags on disk: used again only where nothing that made them has changed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from napari_msamil.models.model import Model, build_model
from napari_msamil.training import demo_bags
from napari_msamil.training.augment import random_look
from napari_msamil.training.datasets.synthetic import synthetic_slide
from napari_msamil.training.demo_bags import bag_of
from napari_msamil.training.demo_recipe import demo_card
from napari_msamil.training.features import digest


@pytest.fixture(scope="module")
def model() -> Model:
    card = demo_card().model_copy(update={"patch_px": 64, "thumbnail_px": 64})
    return build_model(card, seed=0)


def test_a_bag_is_made_anew_when_model_pixels_or_look_change_and_only_then(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    extract = demo_bags.extract
    monkeypatch.setattr(demo_bags, "extract", lambda *given, **named: (made.append(1), extract(*given, **named))[1])
    file, slide = tmp_path / "bag.pt", synthetic_slide(0, lesion=True, size_px=512)
    look = random_look(np.random.default_rng(0))
    first = bag_of(model, slide, file, digest=digest(model), look=look)
    again = bag_of(model, slide, file, digest=digest(model), look=look)
    assert len(made) == 1
    assert torch.equal(first.features, again.features)
    bag_of(model, slide, file, digest=digest(model), look=random_look(np.random.default_rng(1)))
    bag_of(model, synthetic_slide(1, lesion=True, size_px=512), file, digest=digest(model))
    assert len(made) == 3
    other = build_model(model.card.model_copy(update={"overlap": 0.5}), seed=0)
    bag_of(other, synthetic_slide(1, lesion=True, size_px=512), file, digest=digest(other))
    assert len(made) == 4
