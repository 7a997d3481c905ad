"""Bootstrap by patient: a resample is a weight per slide, and a metric is computed for all resamples at once.

scikit-learn takes a few milliseconds a metric and resample, minutes for all summaries of five folds; this takes
milliseconds for a thousand resamples. With a weight of one per slide the values are scikit-learn's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Average = Literal["macro", "weighted"]
METRICS = ("auc", "accuracy", "balanced_accuracy", "f1_weighted")


@dataclass(frozen=True)
class Bootstrap:
    """What resampling found.

    Attributes:
        intervals: 2.5 % and 97.5 % percentile of each of `METRICS`; None where no resample has the metric, or where no
            class has two patients, so that all resamples are the same.
        skipped: Resamples without any slide of some class; they count nowhere.
        fixed: Indices of classes with one patient, who is in every resample: intervals are too narrow on their part.
    """

    intervals: dict[str, tuple[float, float] | None]
    skipped: int
    fixed: tuple[int, ...]


def bootstrap(
    patients: Sequence[str],
    targets: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    predicted: NDArray[np.int64],
    *,
    average: Average = "macro",
    rounds: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """95 % percentile intervals over resampled patients.

    Args:
        patients: Of each of n slides.
        targets: (n,) class indices.
        probabilities: (n, C).
        predicted: (n,) class indices.
        average: Of the AUC over more than two classes.
        rounds: Resamples.
        seed: Of the drawing.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3 (percentile interval).
    """
    member, strata = patient_classes(patients, targets)
    fixed = tuple(int(label) for label in np.unique(strata) if (strata == label).sum() == 1)
    weights = patient_weights(member, strata, rounds=rounds, seed=seed)  # (R, n)
    confusion = weighted_confusion(targets, predicted, weights, probabilities.shape[1])  # (R, C, C)
    present = np.unique(targets)
    whole = (confusion.sum(2)[:, present] > 0).all(1)  # (R,)
    found = rates(confusion[whole])
    if len(present) > 1:
        found["auc"] = average_auc(targets, probabilities, weights[whole], average)
    varies = len(fixed) < len(np.unique(strata)) and bool(whole.any())
    intervals = {name: interval(found[name]) if varies and name in found else None for name in METRICS}
    return Bootstrap(intervals, int((~whole).sum()), fixed)


def patient_classes(patients: Sequence[str], targets: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Each slide's patient as a number, (n,), and each patient's class, (P,): the most frequent one of the slides."""
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    counts = np.zeros((len(names), int(targets.max()) + 1), np.int64)
    np.add.at(counts, (member, targets), 1)
    return member, counts.argmax(1)


def patient_weights(
    member: NDArray[np.intp], strata: NDArray[np.intp], *, rounds: int, seed: int = 0
) -> NDArray[np.int64]:
    """How often each slide is in each resample, (R, n): as often as its patient, who is drawn within the own class.

    Args:
        member: (n,) each slide's patient as a number.
        strata: (P,) each patient's class.
        rounds: Resamples R.
        seed: Of the drawing.
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros((rounds, len(strata)), np.int64)  # (R, P)
    for label in np.unique(strata):
        rows = np.flatnonzero(strata == label)
        drawn[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=rounds)
    return drawn[:, member]  # (R, n)


def weighted_confusion(
    targets: NDArray[np.int64], predicted: NDArray[np.int64], weights: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Confusion matrix of each resample, (R, C, C), rows true."""
    cell = np.zeros((len(targets), classes * classes), np.int64)
    cell[np.arange(len(targets)), targets * classes + predicted] = 1
    return (weights @ cell).reshape(-1, classes, classes)


def rates(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Accuracy, balanced accuracy (mean recall of the classes that are there) and support-weighted F1, (R,) each."""
    support, guessed = confusion.sum(2), confusion.sum(1)  # (R, C)
    right = np.diagonal(confusion, axis1=1, axis2=2)  # (R, C)
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + guessed, 1)
    total = support.sum(1)
    return {
        "accuracy": right.sum(1) / total,
        "balanced_accuracy": recall.sum(1) / (support > 0).sum(1),
        "f1_weighted": (f1 * support).sum(1) / total,
    }


def weighted_auc(
    positive: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AUC of each resample, (R,): chance that a positive scores above a negative, ties counting half.

    Args:
        positive: (n,).
        score: (n,), higher means more positive.
        weights: (R, n), with a positive and a negative in each row.
    """
    order = np.argsort(score, kind="stable")
    _, starts = np.unique(score[order], return_index=True)
    weights, positive = weights[:, order], positive[order]
    ups = np.add.reduceat(weights * positive, starts, axis=1)  # (R, distinct scores)
    downs = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = downs.cumsum(1) - downs / 2
    area: NDArray[np.float64] = (ups * below).sum(1) / (ups.sum(1) * downs.sum(1))
    return area


def weighted_average_precision(
    positive: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Average precision of each resample, (R,): precision at each score, weighted by the recall that it adds.

    Args:
        positive: (n,).
        score: (n,), higher means more positive.
        weights: (R, n), with a positive in each row.
    """
    order = np.argsort(-score, kind="stable")
    _, starts = np.unique(-score[order], return_index=True)
    weights, positive = weights[:, order], positive[order]
    ups = np.add.reduceat(weights * positive, starts, axis=1)  # (R, distinct scores)
    shown = np.add.reduceat(weights, starts, axis=1).cumsum(1)
    precision = ups.cumsum(1) / np.maximum(shown, 1)
    return np.asarray((ups * precision).sum(1) / ups.sum(1))


def average_auc(
    targets: NDArray[np.int64], probabilities: NDArray[np.float64], weights: NDArray[np.int64], average: Average
) -> NDArray[np.float64]:
    """AUC of each resample, (R,): of the second class where there are two, else one against the rest, averaged.

    Args:
        targets: (n,), of two classes at least; those that are not there are left out.
        probabilities: (n, C).
        weights: (R, n), with a slide of each class in each row.
        average: "macro": each class counts alike; "weighted": by its slides.
    """
    if probabilities.shape[1] == 2:
        return weighted_auc(targets == 1, probabilities[:, 1], weights)
    present = np.unique(targets)
    each = np.stack([weighted_auc(targets == label, probabilities[:, label], weights) for label in present])  # (K, R)
    if average == "macro":
        return np.asarray(each.mean(0))
    support = np.stack([weights[:, targets == label].sum(1) for label in present])  # (K, R)
    return np.asarray((each * support).sum(0) / support.sum(0))


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """2.5 % and 97.5 % percentile."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
