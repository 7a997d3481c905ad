"""Figures of a classifier: predictions, temperature, AUC and its like with intervals, calibration, overlap of masks."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
)

from napari_msamil.errors import MsamilError
from napari_msamil.files import write_atomically

from .resampling import METRICS, Average, bootstrap

BINS = 15
_LIMIT = 3.0  # of the log-temperature: between 1/20 and 20
_log = logging.getLogger(__name__)
Temperature = float | NDArray[np.float64]
"""One for all slides, or (n,): one per slide, where pooled folds have their own."""


@dataclass(frozen=True)
class Predictions:
    """What a model, or one model per fold, says of slides that are labelled.

    Attributes:
        slides: Name of each of n slides, none twice.
        patients: Whom each is of.
        targets: (n,) int64, index of the true class.
        logits: (n, C) float64.
        classes: C labels, in the order of the logits.
    """

    slides: tuple[str, ...]
    patients: tuple[str, ...]
    targets: NDArray[np.int64]
    logits: NDArray[np.float64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: If there is no slide or a slide twice, lengths differ, a target is no class, or a logit is not
                finite.
        """
        count = len(self.slides)
        shapes = (len(self.patients), self.targets.shape, self.logits.shape)
        if not count or shapes != (count, (count,), (count, len(self.classes))) or len(self.classes) < 2:
            raise ValueError(
                f"Predictions of {count} slides and {len(self.classes)} classes have {shapes[0]} patients, targets of "
                f"shape {shapes[1]} and logits of shape {shapes[2]}: give one patient, one target and one logit per "
                "class for each slide, at least one slide and two classes."
            )
        if len(set(self.slides)) < count:
            twice = sorted({name for name in self.slides if self.slides.count(name) > 1})
            raise ValueError(f"Slides are predicted more than once ({', '.join(twice[:5])}): give each one once.")
        if self.targets.min() < 0 or self.targets.max() >= len(self.classes):
            raise ValueError(f"Targets are {np.unique(self.targets)}; indices below {len(self.classes)} are needed.")
        if not np.isfinite(self.logits).all():
            wrong = self.slides[int(np.argmin(np.isfinite(self.logits).all(1)))]
            raise ValueError(f"Logits of slide {wrong} are not finite: look for what went wrong when it was predicted.")

    @classmethod
    def pooled(cls, parts: Sequence["Predictions"]) -> Self:
        """The slides of several folds one after another.

        Raises:
            ValueError: If there is no part, classes differ, or a slide is in two parts.
        """
        if len({part.classes for part in parts}) != 1:
            raise ValueError(f"Predictions are of {[part.classes for part in parts]}: pool those of the same classes.")
        return cls(
            tuple(name for part in parts for name in part.slides),
            tuple(name for part in parts for name in part.patients),
            np.concatenate([part.targets for part in parts]),
            np.concatenate([part.logits for part in parts]),
            parts[0].classes,
        )

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(n,) index of the class with the largest logit, the first of equals."""
        return np.asarray(self.logits.argmax(1), np.int64)

    def probabilities(self, temperature: Temperature = 1.0) -> NDArray[np.float64]:
        """Softmax of logits / temperature, (n, C)."""
        return np.asarray(softmax(_scaled(self.logits, temperature), axis=1))

    def write_csv(self, path: Path, *, temperature: Temperature = 1.0) -> None:
        """Write slide, patient, label, predicted label and one column of probability per class; whole or not at all."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["slide", "patient", "label", "predicted", *(f"probability of {c}" for c in self.classes)])
        rows = zip(
            self.slides, self.patients, self.targets, self.predicted, self.probabilities(temperature), strict=True
        )
        for slide, patient, target, predicted, row in rows:
            cells = [f"{value:.6g}" for value in row]
            writer.writerow([slide, patient, self.classes[target], self.classes[predicted], *cells])
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def fit_temperature(validation: Predictions) -> float:
    """The temperature that makes a model's probabilities most likely on validation slides.

    The negative log-likelihood, summed over slides, is minimised over log T between 1/20 and 20. As few slides say
    little, (log T)^2 / 2 is added: the weight of about one slide, which draws T to 1. Without it a validation part in
    which every slide is right would drive T to 0, however few the slides are.

    Returns:
        T; 1.0 if fewer than two classes are there.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2 (temperature scaling).
    """
    present = np.unique(validation.targets)
    if len(present) < 2:
        _log.warning("All validation slides are %s: the temperature stays 1.", validation.classes[present[0]])
        return 1.0

    def cost(log_t: float) -> float:
        return float(_surprise(validation, np.exp(log_t)).sum() + log_t**2 / 2)

    grid = np.linspace(-_LIMIT, _LIMIT, 61)  # first, as the cost may have two minima
    near = grid[int(np.argmin([cost(point) for point in grid]))]
    bounds = max(near - 0.1, -_LIMIT), min(near + 0.1, _LIMIT)
    found = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def summarise(
    p: Predictions, *, temperature: Temperature = 1.0, auc: Average = "macro", rounds: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Every figure of a set of predictions, in plain JSON values; None where a figure is not defined.

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
        "nll": float(_surprise(p, temperature).mean()),
        "ece": expected_calibration_error(probabilities.max(1), predicted == p.targets),
        "brier": float(((probabilities - np.eye(len(p.classes))[p.targets]) ** 2).sum(1).mean()),
    }


def over_folds(summaries: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Mean and sample standard deviation of the four metrics over folds; folds without the metric are left out.

    Returns:
        By metric [mean, standard deviation]: None for the deviation of one fold, and for both of none.
    """
    found: dict[str, list[float | None]] = {}
    for name in METRICS:
        values = [summary[name] for summary in summaries if summary[name] is not None]
        mean = float(np.mean(values)) if values else None
        found[name] = [mean, float(np.std(values, ddof=1)) if len(values) > 1 else None]
    return found


def reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Slides, mean confidence and accuracy of each bin that has slides, (K,) each; bins are (low, high] of equal width.

    Args:
        confidence: (n,) probability of the predicted class.
        right: (n,) whether it is the true one.
        bins: Between 0 and 1.
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = counts > 0
    sums = np.bincount(place, confidence, bins)[filled], np.bincount(place, right, bins)[filled]
    return counts[filled], sums[0] / counts[filled], sums[1] / counts[filled]


def expected_calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS) -> float:
    """Mean over slides of |accuracy - confidence| of their bin; arguments as of `reliability`."""
    counts, mean, accuracy = reliability(confidence, right, bins)
    return float((counts * np.abs(accuracy - mean)).sum() / counts.sum())


def _scaled(logits: NDArray[np.float64], temperature: Temperature) -> NDArray[np.float64]:
    factor = np.asarray(temperature, np.float64).reshape(-1, 1)  # (1 or n, 1)
    if not (np.isfinite(factor) & (factor > 0)).all():
        raise ValueError(f"Temperature is {temperature}; a finite number above 0 is needed.")
    return logits / factor


def _surprise(p: Predictions, temperature: Temperature) -> NDArray[np.float64]:
    """Negative natural log of the true class's probability, (n,); finite however sure a wrong answer is."""
    logs = log_softmax(_scaled(p.logits, temperature), axis=1)
    return np.asarray(-logs[np.arange(len(p.slides)), p.targets])


def overall_auc(
    targets: NDArray[np.int64], probabilities: NDArray[np.float64], average: Average = "macro"
) -> float | None:
    """Average over the classes of the AUC of one against the rest; of two classes, the AUC of the second.

    Args:
        targets: (n,) indices of classes.
        probabilities: (n, C).
        average: Plain, or weighted by the slides of each class.

    Returns:
        None where fewer than two classes have slides; a class without slides is left out.
    """
    if probabilities.shape[1] == 2:
        return _one_auc(targets == 1, probabilities[:, 1])
    labels, support = np.unique(targets, return_counts=True)
    if len(labels) < 2:
        return None
    each = [_one_auc(targets == label, probabilities[:, label]) for label in labels]
    return float(np.average(np.array(each, np.float64), weights=support if average == "weighted" else None))


def validation_auc(targets: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """`overall_auc` for choosing weights.

    Raises:
        MsamilError: The slides are all of one class.
    """
    found = overall_auc(targets, probabilities)
    if found is None:
        raise MsamilError(
            "All validation slides are of one class: weights cannot be chosen by them. Hold more slides out "
            "(validation), or name the parts in the table."
        )
    return found


def _one_auc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
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
            "auc": _one_auc(p.targets == index, probabilities[:, index]),
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
