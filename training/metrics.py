"""Figures of a classifier: AUC and its like with intervals; overlap of masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
)

from napari_msamil.errors import MsamilError

from .calibration import expected_calibration_error
from .predictions import Predictions, Temperature
from .resampling import Average, bootstrap


def summarise(
    p: Predictions, *, temperature: Temperature = 1.0, auc: Average = "macro", rounds: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Every figure of predictions of exclusive classes, in plain JSON values; None where a figure is not defined.

    Args:
        p: The predictions.
        temperature: Divides the logits; moves nll, ece and brier, and hardly anything else.
        auc: Average of the one-vs-rest AUCs where there are more than two classes; with two it is the plain AUC.
        rounds: Resamples of the intervals.
        seed: Of the resamples.

    Returns:
        slides, patients: counts. classes: labels. classes_left_out: labels without a slide, not part of any average.
        auc, accuracy, balanced_accuracy (mean recall), f1_weighted (by support); auc_average.
        intervals: for each of these four [low, high], 95 % percentile bootstrap over patients within classes, or None.
        bootstrap: rounds, seed, skipped (resamples that lack a class), single_patient_classes (labels whose one patient
        is in every resample).
        per_class: by label support, precision, recall, f1, auc (one against the rest).
        confusion: rows true, columns predicted, in the order of the classes.
        nll: mean negative natural log of the true class's probability. ece: expected calibration error of the top
        label, 15 bins of equal width. brier: mean over slides of the squared error summed over classes, 0 to 2 (with
        two classes twice the one-class form).

    References:
        ECE: Guo et al., ICML 2017, section 2, eq. 3. Brier: Brier, Monthly Weather Review 78 (1950), eq. 2.
    """
    probabilities, predicted = p.probabilities(temperature), p.predicted
    present = np.unique(p.targets)
    sampled = bootstrap(p.patients, p.targets, probabilities, predicted, average=auc, rounds=rounds, seed=seed)
    return {
        "slides": len(p.slides),
        "patients": len(set(p.patients)),
        "classes": list(p.classes),
        "classes_left_out": [label for index, label in enumerate(p.classes) if index not in present],
        "auc": overall_auc(p.targets, probabilities, auc),
        "auc_average": auc if len(p.classes) > 2 else None,
        "accuracy": float(accuracy_score(p.targets, predicted)),
        "balanced_accuracy": float(
            recall_score(p.targets, predicted, labels=present, average="macro", zero_division=0)
        ),
        "f1_weighted": float(f1_score(p.targets, predicted, labels=present, average="weighted", zero_division=0)),
        "intervals": {name: list(found) if found else None for name, found in sampled.intervals.items()},
        "bootstrap": {
            "rounds": rounds,
            "seed": seed,
            "skipped": sampled.skipped,
            "single_patient_classes": [p.classes[index] for index in sampled.fixed],
        },
        "per_class": _per_class(p, probabilities),
        "confusion": confusion_matrix(p.targets, predicted, labels=range(len(p.classes))).tolist(),
        "nll": float(p.surprise(temperature).mean()),
        "ece": expected_calibration_error(*p.claims(temperature)["predicted class"]),
        "brier": float(((probabilities - np.eye(len(p.classes))[p.targets]) ** 2).sum(1).mean()),
    }


def over_folds(summaries: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Mean and sample standard deviation over folds of the metrics with intervals; folds without one are left out.

    Returns:
        By metric [mean, standard deviation]: None for the deviation of one fold, and for both of none.
    """
    found: dict[str, list[float | None]] = {}
    for name in summaries[0]["intervals"]:
        values = [summary[name] for summary in summaries if summary[name] is not None]
        mean = float(np.mean(values)) if values else None
        found[name] = [mean, float(np.std(values, ddof=1)) if len(values) > 1 else None]
    return found


def overall_auc(
    targets: NDArray[np.int64], probabilities: NDArray[np.float64], average: Average = "macro"
) -> float | None:
    """Average over the classes of the AUC of one against the rest; of two exclusive classes, the AUC of the second.

    Args:
        targets: (n,) indices of classes; or (n, C) of 0 and 1, where they do not exclude each other.
        probabilities: (n, C).
        average: Plain, or weighted by the slides of each class.

    Returns:
        None where no class has slides with it and without; such classes are left out.
    """
    if targets.ndim == 2:
        judged = np.flatnonzero(targets.any(0) & ~targets.all(0))
        each = [one_auc(targets[:, k] == 1, probabilities[:, k]) for k in judged]
        weights = targets[:, judged].sum(0) if average == "weighted" else None
        return float(np.average(np.array(each, np.float64), weights=weights)) if each else None
    if probabilities.shape[1] == 2:
        return one_auc(targets == 1, probabilities[:, 1])
    labels, support = np.unique(targets, return_counts=True)
    if len(labels) < 2:
        return None
    each = [one_auc(targets == label, probabilities[:, label]) for label in labels]
    return float(np.average(np.array(each, np.float64), weights=support if average == "weighted" else None))


def validation_auc(targets: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """`overall_auc` for choosing weights.

    Raises:
        MsamilError: The slides are all of one class; or all have the same classes.
    """
    found = overall_auc(targets, probabilities)
    if found is None:
        raise MsamilError(
            "All validation slides have the same label: weights cannot be chosen by them. Hold more slides out "
            "(validation), or name the parts in the table."
        )
    return found


def one_auc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """AUC of one class; None where all slides have it, or none."""
    return None if positive.all() or not positive.any() else float(roc_auc_score(positive, score))


def _per_class(p: Predictions, probabilities: NDArray[np.float64]) -> dict[str, dict[str, float | int | None]]:
    columns = precision_recall_fscore_support(
        p.targets, p.predicted, labels=range(len(p.classes)), zero_division=np.nan
    )
    table: dict[str, dict[str, float | int | None]] = {}
    for index, label in enumerate(p.classes):
        precision, recall, f1, support = (column[index] for column in columns)
        table[label] = {
            "support": int(support),
            "precision": None if np.isnan(precision) else float(precision),
            "recall": None if np.isnan(recall) else float(recall),
            "f1": None if np.isnan(f1) else float(f1),
            "auc": one_auc(p.targets == index, probabilities[:, index]),
        }
    return table


def auc(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        positive: (n,) bool.
        score: (n,), higher means more positive.

    Raises:
        ValueError: If only one class is there.
    """
    ups, downs = score[positive], score[~positive]
    if not len(ups) or not len(downs):
        raise ValueError(f"AUC needs both classes; there are {len(ups)} positives and {len(downs)} negatives.")
    above = (ups[:, None] > downs[None, :]).mean()
    equal = (ups[:, None] == downs[None, :]).mean()
    return float(above + equal / 2)


def bootstrap_auc(
    positive: NDArray[np.bool_], score: NDArray[np.floating], *, rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the AUC, resampling cases within each class."""
    rng = np.random.default_rng(seed)
    ups, downs = np.flatnonzero(positive), np.flatnonzero(~positive)
    values = []
    for _ in range(rounds):
        rows = np.concatenate([rng.choice(ups, len(ups)), rng.choice(downs, len(downs))])
        values.append(auc(positive[rows], score[rows]))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


@dataclass
class Overlap:
    """Pixels of predicted and true lesion, added up over slides."""

    both: int = 0
    predicted: int = 0
    true: int = 0

    def add(self, predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> None:
        """Count one slide; both masks of one shape."""
        self.both += int((predicted & true).sum())
        self.predicted += int(predicted.sum())
        self.true += int(true.sum())

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|); 1 if both are empty."""
        total = self.predicted + self.true
        return 2 * self.both / total if total else 1.0

    @property
    def iou(self) -> float:
        """|A and B| / |A or B|; 1 if both are empty."""
        either = self.predicted + self.true - self.both
        return self.both / either if either else 1.0
