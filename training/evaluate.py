"""Figures: exact AUC, bootstrap intervals, overlap of masks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def macro_auc(targets: NDArray[np.int64], probabilities: NDArray[np.floating]) -> float:
    """Mean over the classes of the AUC of one against the rest; of two classes, the AUC of the second.

    Args:
        targets: (n,) indices of classes.
        probabilities: (n, C).

    Raises:
        ValueError: If only one class is there. A class without slides is left out.
    """
    classes = [1] if probabilities.shape[1] == 2 else np.unique(targets)
    return float(np.mean([auc(targets == k, probabilities[:, k]) for k in classes]))


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
