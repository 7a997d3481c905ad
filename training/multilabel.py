"""Figures where classes do not exclude each other: each class by itself, and averages over classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix

from .calibration import expected_calibration_error
from .metrics import one_auc, overall_auc
from .predictions import Predictions, Temperature
from .resampling import Average, interval, patient_weights, weighted_auc, weighted_average_precision

METRICS = ("auc", "average_precision", "accuracy")


def summarise_each(
    p: Predictions, *, temperature: Temperature = 1.0, auc: Average = "macro", rounds: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Every figure of predictions of classes that do not exclude each other; `metrics.summarise` for the others.

    Args:
        p: The predictions.
        temperature: Divides the logits; moves nll, ece and brier, and where slides have their own, what follows from
            their order too.
        auc: Average of the classes' AUCs: plain, or weighted by the slides that have each.
        rounds: Resamples of the intervals.
        seed: Of the resamples.

    Returns:
        slides, patients: counts. classes: labels. classes_left_out: those that all slides have, or none; they are not
        part of any average.
        auc, average_precision, accuracy (a class is found at 50 % or more): means over classes; auc_average.
        intervals: for each of these three [low, high], 95 % percentile bootstrap over patients, or None.
        bootstrap: rounds, seed, skipped (resamples in which all slides have a class, or none), single_patient_classes
        (labels that one patient alone has, or lacks, who is then in every resample that counts).
        per_class: by label support (slides that have it), auc, average_precision, accuracy and their intervals;
        confusion, rows truly without and with it, columns not found and found; nll, ece, brier of the probability that
        it is there (15 bins of equal width; brier 0 to 1).
        nll, ece, brier: means over classes.
    """
    judged = np.flatnonzero(p.has.any(0) & ~p.has.all(0))
    scores = p.scaled(temperature)
    drawn = _resample(p, scores, judged, average=auc, rounds=rounds, seed=seed)
    per_class = _each_class(p, temperature)
    place = {int(index): row for row, index in enumerate(judged)} if drawn.each else {}
    for index, label in enumerate(p.classes):
        per_class[label]["intervals"] = {
            name: interval(drawn.each[name][place[index]]) if index in place else None for name in METRICS
        }
    means = {
        name: float(np.mean([per_class[p.classes[index]][name] for index in judged])) if len(judged) else None
        for name in ("average_precision", "accuracy", "nll", "ece", "brier")
    }
    return {
        "slides": len(p.slides),
        "patients": len(set(p.patients)),
        "classes": list(p.classes),
        "classes_left_out": [label for index, label in enumerate(p.classes) if index not in judged],
        "auc": overall_auc(p.targets, scores, auc),
        "auc_average": auc,
        "intervals": {name: interval(drawn.means[name]) if drawn.means else None for name in METRICS},
        "bootstrap": {
            "rounds": rounds,
            "seed": seed,
            "skipped": drawn.skipped,
            "single_patient_classes": [p.classes[k] for k in judged if _hangs_on_one_patient(p, p.has[:, k])],
        },
        "per_class": per_class,
        **means,
    }


@dataclass(frozen=True)
class _Resamples:
    """Metrics of resampled patients.

    Attributes:
        each: By metric (K, R), of each of the K judged classes.
        means: By metric (R,), over these classes.
        skipped: Resamples in which all slides have one of them, or none has; they count nowhere.
    """

    each: dict[str, NDArray[np.float64]]
    means: dict[str, NDArray[np.float64]]
    skipped: int


def _resample(
    p: Predictions, scores: NDArray[np.float64], judged: NDArray[np.intp], *, average: Average, rounds: int, seed: int
) -> _Resamples:
    """Patients are drawn from all: a patient may be of several classes, so that there is no class to draw within."""
    names, member = np.unique(np.asarray(p.patients), return_inverse=True)
    weights = patient_weights(member, np.zeros(len(names), np.intp), rounds=rounds, seed=seed)  # (R, n)
    has = p.has[:, judged]  # (n, K)
    support, total = weights @ has, weights.sum(1, keepdims=True)  # (R, K), (R, 1)
    whole = ((support > 0) & (support < total)).all(1)
    if not len(judged) or len(names) < 2 or not whole.any():
        return _Resamples({}, {}, int((~whole).sum()))
    weights, support = weights[whole], support[whole]
    scores, right = scores[:, judged], p.predicted[:, judged] == has
    columns = range(len(judged))
    each = {
        "auc": np.stack([weighted_auc(has[:, k], scores[:, k], weights) for k in columns]),
        "average_precision": np.stack([weighted_average_precision(has[:, k], scores[:, k], weights) for k in columns]),
        "accuracy": (weights @ right / weights.sum(1, keepdims=True)).T,
    }
    means = {name: values.mean(0) for name, values in each.items()}
    if average == "weighted":
        means["auc"] = (each["auc"] * support.T).sum(0) / support.sum(1)
    return _Resamples(each, means, int((~whole).sum()))


def _each_class(p: Predictions, temperature: Temperature) -> dict[str, dict[str, Any]]:
    """The figures of each class but for intervals."""
    found, scores, surprise = p.predicted == 1, p.scaled(temperature), p.surprise(temperature)
    table: dict[str, dict[str, Any]] = {}
    for index, (label, (probability, has)) in enumerate(p.claims(temperature).items()):
        score = scores[:, index]
        table[label] = {
            "support": int(has.sum()),
            "auc": one_auc(has, score),
            "average_precision": float(average_precision_score(has, score)) if has.any() else None,
            "accuracy": float((found[:, index] == has).mean()),
            "confusion": confusion_matrix(has, found[:, index], labels=(False, True)).tolist(),
            "nll": float(surprise[:, index].mean()),
            "ece": expected_calibration_error(probability, has),
            "brier": float(((probability - has) ** 2).mean()),
        }
    return table


def _hangs_on_one_patient(p: Predictions, has: NDArray[np.bool_]) -> bool:
    """Whether one patient alone has a class, or is without it."""
    return any(len({name for name, one in zip(p.patients, has, strict=True) if one == side}) == 1 for side in (0, 1))
