"""Where encoders start from."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from napari_msamil.errors import MsamilError
from napari_msamil.inference.engine import choose_device
from napari_msamil.models.model import build_model
from napari_msamil.training import stages
from napari_msamil.training.cohort import Cohort, CohortSlide
from napari_msamil.training.config import read_config
from napari_msamil.training.folds import Parts
from napari_msamil.training.networks import start_from_imagenet, start_from_segmenter
from napari_msamil.training.run import Run


@pytest.mark.parametrize("preset", ["tiny", "demo"])
def test_the_extractor_starts_with_all_of_the_segmenters_encoder(preset: str) -> None:
    model = build_model(read_config(preset).card(("a", "b")), seed=0)
    source = model.segmenter.net.encoder.state_dict()
    for value in source.values():
        if value.is_floating_point():
            value.add_(0.25)  # so that no weight agrees by chance
    start_from_segmenter(model)
    found = model.extractor.encoder.state_dict()
    shared = [key for key in found if f"model.{key}" in source]
    assert len(shared) > 0.9 * len(source)
    assert all(torch.equal(found[key], source[f"model.{key}"]) for key in shared)


def test_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*given: object, **named: object) -> None:
        raise OSError("no route to host")

    model = build_model(read_config("tiny").card(("a", "b")), seed=0)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(MsamilError, match=r"cannot be had .*no route to host.*start from random weights"):
        start_from_imagenet((model.extractor.encoder, "test_efficientnet"))


def test_an_encoder_of_another_kind_is_refused() -> None:
    model = build_model(read_config("tiny").card(("a", "b")), seed=0)
    model.segmenter.net.encoder = torch.nn.Linear(2, 2)
    with pytest.raises(MsamilError, match="Only 0% of the weights"):
        start_from_segmenter(model)


@pytest.mark.parametrize(
    ("settings", "loaded"),
    [
        ([], 0),
        (["weights=imagenet"], 1),
        (["end_to_end.start=imagenet"], 1),
        (["weights=imagenet", "end_to_end.start=imagenet"], 2),
    ],
)
def test_imagenet_is_loaded_where_the_settings_say_so(
    settings: list[str], loaded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr(stages, "start_from_imagenet", given.append)
    config = read_config("tiny", settings)
    slides = tuple(CohortSlide(tmp_path / f"{label}.tif", label, label) for label in "ab")
    cohort = Cohort(tmp_path / "cohort.csv", slides, ("a", "b"))
    run = Run(tmp_path, config, cohort, config.card(cohort.classes), choose_device("cpu"), "")
    none = np.zeros(0, np.int64)
    stages.Fold(run, 0, Parts(none, none, none))
    assert len(given) == loaded
