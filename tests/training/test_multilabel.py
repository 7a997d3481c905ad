"""Figures of classes that do not exclude each other agree with scikit-learn, and such classes can be learned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score

from napari_msamil.errors import MsamilError
from napari_msamil.models.bag import Bag
from napari_msamil.models.card import preset_card
from napari_msamil.models.model import build_model
from napari_msamil.training.calibration import fit_temperature
from napari_msamil.training.figures import calibration_figure, roc_figure
from napari_msamil.training.loop import Plan
from napari_msamil.training.metrics import validation_auc
from napari_msamil.training.mil import train_aggregator
from napari_msamil.training.multilabel import summarise_each
from napari_msamil.training.predictions import Predictions
from napari_msamil.training.resampling import patient_weights, weighted_average_precision

CLASSES = ("necrosis", "tumour", "vessel")


def predictions(count: int = 60, seed: int = 0, *, ties: bool = False) -> Predictions:
    """Two slides a patient; scores that are right more often than not."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((count, 3)) < (0.5, 0.3, 0.2)).astype(np.int64)
    logits = 2 * targets - 1 + rng.normal(0, 1.5, (count, 3))
    if ties:
        logits = np.round(logits)
    names = tuple(f"s{k}" for k in range(count))
    return Predictions(names, tuple(f"p{k // 2}" for k in range(count)), targets, logits, CLASSES)


def without(p: Predictions, column: int, value: int) -> Predictions:
    targets = p.targets.copy()
    targets[:, column] = value
    return Predictions(p.slides, p.patients, targets, p.logits, p.classes)


@pytest.mark.parametrize("ties", [False, True])
def test_figures_of_each_class_and_their_means_are_scikit_learns(ties: bool) -> None:
    p = predictions(ties=ties)
    found, found_probabilities = summarise_each(p, rounds=100), expit(p.logits)
    expected: dict[str, list[float]] = {"auc": [], "average_precision": [], "accuracy": [], "nll": [], "brier": []}
    for k, label in enumerate(CLASSES):
        truth, score = p.targets[:, k], found_probabilities[:, k]
        values = {
            "auc": roc_auc_score(truth, score),
            "average_precision": average_precision_score(truth, score),
            "accuracy": accuracy_score(truth, score >= 0.5),
            "nll": log_loss(truth, score),
            "brier": np.mean((score - truth) ** 2),
        }
        for name, value in values.items():
            assert found["per_class"][label][name] == pytest.approx(value, abs=1e-12), (label, name)
            expected[name].append(value)
        (rightly_not, wrongly), (missed, rightly) = found["per_class"][label]["confusion"]
        assert missed + rightly == found["per_class"][label]["support"] == truth.sum()
        assert (rightly_not + rightly) / 60 == pytest.approx(values["accuracy"])
        assert wrongly == ((score >= 0.5) & (truth == 0)).sum()
    for name, values_of in expected.items():
        assert found[name] == pytest.approx(np.mean(values_of), abs=1e-12), name
    assert validation_auc(p.targets, found_probabilities) == pytest.approx(found["auc"])
    weighted = summarise_each(p, auc="weighted", rounds=100)["auc"]
    assert weighted == pytest.approx(np.average(expected["auc"], weights=p.targets.sum(0)))


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_of_a_resample_is_scikit_learns_with_weights(ties: bool) -> None:
    p = predictions(ties=ties)
    _, member = np.unique(p.patients, return_inverse=True)
    weights = patient_weights(member, np.zeros(30, np.intp), rounds=20, seed=3)
    found = weighted_average_precision(p.has[:, 0], p.logits[:, 0], weights)
    expected = [average_precision_score(p.targets[:, 0], p.logits[:, 0], sample_weight=row) for row in weights]
    assert found == pytest.approx(expected, abs=1e-12)


def test_intervals_resample_patients_with_all_their_slides() -> None:
    p = predictions()
    found = summarise_each(p, rounds=400, seed=1)
    _, member = np.unique(p.patients, return_inverse=True)
    rng = np.random.default_rng(9)
    means = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(member == one) for one in rng.integers(30, size=30)])
        means.append(np.mean([roc_auc_score(p.targets[rows, k], p.logits[rows, k]) for k in range(3)]))
    assert found["intervals"]["auc"] == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.025)
    for name in ("auc", "average_precision", "accuracy"):
        low, high = found["intervals"][name]
        assert low < found[name] < high
        low, high = found["per_class"]["tumour"]["intervals"][name]
        assert low < found["per_class"]["tumour"][name] < high


@pytest.mark.parametrize("value", [0, 1])
def test_a_class_that_nobody_or_everybody_has_is_in_no_average_and_breaks_nothing(value: int, tmp_path: Path) -> None:
    p = without(predictions(), 1, value)
    found = summarise_each(p, rounds=100)
    assert found["classes_left_out"] == ["tumour"]
    assert found["per_class"]["tumour"]["auc"] is None
    assert found["per_class"]["tumour"]["intervals"] == {"auc": None, "average_precision": None, "accuracy": None}
    for name in ("auc", "accuracy"):
        others = [found["per_class"][label][name] for label in ("necrosis", "vessel")]
        assert found[name] == pytest.approx(np.mean(others))
    assert fit_temperature(p)[1] == 1.0  # type: ignore[index]
    roc_figure({0: p}, tmp_path / "roc.png")
    calibration_figure(p, fit_temperature(p), tmp_path / "calibration.png")


def test_where_no_class_can_be_judged_figures_are_missing_and_weights_are_not_chosen() -> None:
    p = predictions()
    p = Predictions(p.slides, p.patients, np.ones_like(p.targets), p.logits, p.classes)
    found = summarise_each(p, rounds=100)
    assert (found["auc"], found["accuracy"], found["intervals"]["auc"]) == (None, None, None)
    with pytest.raises(MsamilError, match="same label: weights cannot be chosen"):
        validation_auc(p.targets, p.logits)


def test_resamples_without_a_rare_class_are_counted_and_a_lone_patient_is_named() -> None:
    p = predictions()
    targets = p.targets.copy()
    targets[:, 2] = [name == "p0" for name in p.patients]
    found = summarise_each(Predictions(p.slides, p.patients, targets, p.logits, p.classes), rounds=300)
    assert 0.25 * 300 < found["bootstrap"]["skipped"] < 0.5 * 300, "about 1/e of the resamples lack a patient"
    assert found["bootstrap"]["single_patient_classes"] == ["vessel"]


def test_each_class_has_a_temperature_of_its_own_that_undoes_what_was_done_to_it() -> None:
    rng = np.random.default_rng(4)
    true = rng.uniform(0.05, 0.95, (4000, 3))
    targets = (rng.random(true.shape) < true).astype(np.int64)
    names = tuple(map(str, range(4000)))
    p = Predictions(names, names, targets, logit(true) * (3.0, 1.0, 0.5), CLASSES)
    temperature = fit_temperature(p)
    assert temperature == pytest.approx((3.0, 1.0, 0.5), rel=0.1)
    before, after = summarise_each(p, rounds=100), summarise_each(p, temperature=temperature, rounds=100)
    assert before["per_class"]["necrosis"]["ece"] > 0.05 > after["per_class"]["necrosis"]["ece"]
    assert after["per_class"]["vessel"]["brier"] < before["per_class"]["vessel"]["brier"]
    assert (after["auc"], after["accuracy"]) == (before["auc"], before["accuracy"])
    each = np.tile(temperature, (4000, 1))
    assert np.array_equal(p.probabilities(each), p.probabilities(temperature)), "one per slide and class, as pooled"


def test_where_slides_have_temperatures_of_their_own_figures_follow_the_order_of_the_probabilities() -> None:
    p = predictions()
    each = np.random.default_rng(1).uniform(0.2, 5, (60, 3))  # as of pooled folds
    found, probabilities = summarise_each(p, temperature=each, rounds=100), p.probabilities(each)
    for k, label in enumerate(CLASSES):
        truth, score = p.targets[:, k], probabilities[:, k]
        of = found["per_class"][label]
        assert of["auc"] == pytest.approx(roc_auc_score(truth, score)) != roc_auc_score(truth, p.logits[:, k])
        assert of["average_precision"] == pytest.approx(average_precision_score(truth, score))
        assert of["intervals"]["auc"][0] <= of["auc"] <= of["intervals"]["auc"][1]
    assert found["auc"] == pytest.approx(roc_auc_score(p.targets, probabilities))


def test_predictions_are_written_in_the_words_of_the_table(tmp_path: Path) -> None:
    targets = np.array([[1, 1, 0], [0, 0, 0]])
    p = Predictions(("a", "b"), ("p", "q"), targets, np.array([[3.0, -3.0, -3.0], [0.0, 1.0, -9.0]]), CLASSES)
    p.write_csv(tmp_path / "p.csv", fold=[3, 0])
    assert [line.split(",")[:5] for line in (tmp_path / "p.csv").read_text().splitlines()[1:]] == [
        ["a", "p", "3", "necrosis;tumour", "necrosis"],
        ["b", "q", "0", "none", "necrosis;tumour"],
    ]
    with pytest.raises(ValueError, match="numbers below 2"):
        Predictions(("a", "b"), ("p", "q"), targets * 2, p.logits, CLASSES)


def drawn_bags(count: int, rng: np.random.Generator) -> tuple[list[Bag], NDArray[np.int64]]:
    """Bags in which two classes, each there or not, leave marks of their own on some of the instances."""
    targets = (rng.random((count, 2)) < 0.5).astype(np.int64)
    targets[:4] = [[0, 0], [0, 1], [1, 0], [1, 1]]
    bags = []
    for target in targets:
        features = rng.normal(0, 0.5, (12, 32)).astype(np.float32)
        features[:4, 0] += 4.0 * target[0]
        features[6:10, 1] += 4.0 * target[1]
        coords = torch.arange(24).view(12, 2) * 64
        bags.append(Bag(torch.from_numpy(features), coords, torch.zeros(12, dtype=torch.long), (2000, 2000)))
    return bags, targets


def test_two_independent_classes_are_learned_together_both_none_and_either(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (bags, targets), (held, held_targets) = drawn_bags(32, rng), drawn_bags(24, rng)
    model = build_model(preset_card("tiny", classes=("a", "b"), exclusive=False), seed=0)
    plan = Plan("mil", 80, 3e-3, warmup=5, score_every=20, seed=0)
    settings: dict[str, Any] = {"plan": plan, "folder": tmp_path, "batch": 4, "label_smoothing": 0.05}
    state = train_aggregator(model, bags, targets, held, held_targets, **settings)
    assert state.best_score > 0.95
    with torch.inference_mode():
        found = torch.stack([model.aggregate(bag).logits for bag in held]).numpy() >= 0
    right = (found == held_targets).all(1)
    assert right.mean() > 0.85, "all four answers, which a softmax cannot give"
    assert {tuple(row) for row in found[right].tolist()} == {(a, b) for a in (False, True) for b in (False, True)}
