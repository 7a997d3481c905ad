"""What is said of a slide: one class, or every class that is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_msamil.inference.classify import classify
from napari_msamil.inference.overview import _foot, draw_overview
from napari_msamil.inference.prediction import NOT_EXCLUSIVE, Prediction
from napari_msamil.inference.result import write_result
from napari_msamil.models.model import load_model, save_model


@pytest.fixture(scope="module")
def exclusive(slide_file: Path, model_file: Path) -> Prediction:
    return classify(slide_file, model_file)


def judged(prediction: Prediction, *probabilities: float) -> Prediction:
    return replace(
        prediction, classes=("benign", "necrosis", "tumour"), exclusive=False, probabilities=np.array(probabilities)
    )


def test_of_exclusive_classes_one_is_named(exclusive: Prediction) -> None:
    told = replace(exclusive, probabilities=np.array([0.3, 0.7]))
    assert (told.predicted, told.headline, told.how_to_read) == ("malignant", "malignant (70.0 %)", "")
    assert replace(told, probabilities=np.array([0.5, 0.5])).predicted == "benign", "the first of equals"


def test_of_other_classes_all_that_are_found_are_named_the_most_probable_first(exclusive: Prediction) -> None:
    told = judged(exclusive, 0.02, 0.71, 0.93)
    assert told.predicted == ("tumour", "necrosis")
    assert told.headline == "tumour 93.0 %, necrosis 71.0 %"
    assert judged(exclusive, 0.5, 0.49, 0.1).predicted == ("benign",), "50 % is found"


def test_none_is_an_answer_and_says_which_was_nearest(exclusive: Prediction) -> None:
    told = judged(exclusive, 0.02, 0.31, 0.2)
    assert told.predicted == ()
    assert told.headline == "none of the classes (highest: necrosis 31.0 %)"
    assert told.summary()["predicted"] == ()


def test_a_model_whose_classes_do_not_exclude_each_other_gives_sigmoids_and_the_same_attention(
    exclusive: Prediction, slide_file: Path, model_file: Path, tmp_path: Path
) -> None:
    model = load_model(model_file)
    with torch.no_grad():
        model.aggregator.head.bias += 3.0  # type: ignore[union-attr, operator]
    model.card = model.card.model_copy(update={"exclusive": False})
    save_model(model, tmp_path / "several.safetensors")
    told = classify(slide_file, tmp_path / "several.safetensors")
    logits = np.log(told.probabilities / (1 - told.probabilities))
    log_p = np.log(exclusive.probabilities)
    assert logits[1] - logits[0] == pytest.approx(log_p[1] - log_p[0], abs=1e-5)
    assert told.probabilities.sum() > 1.5
    assert np.array_equal(told.attention, exclusive.attention)
    facts = json.loads((write_result(told, tmp_path / "out") / "prediction.json").read_text())
    assert facts["model"]["exclusive"] is False
    assert set(facts["predicted"]) == {"benign", "malignant"}


def test_the_overview_tells_how_to_read_them_and_long_answers_stay_on_the_page(exclusive: Prediction) -> None:
    told = judged(exclusive, 0.9, 0.8, 0.7)
    assert NOT_EXCLUSIVE in " ".join(_foot(told, 5000))
    assert NOT_EXCLUSIVE not in " ".join(_foot(exclusive, 5000))
    long = replace(told, classes=tuple(f"{name} " * 40 for name in told.classes))
    page = np.asarray(draw_overview(long))
    assert (page[:60, -8:] == 255).all(), "nothing runs over the right edge"
