"""What trained models say of labelled slides, before it is made into figures."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax

from napari_msamil.files import write_atomically

from .labels import Label, membership, write_label

Temperature = float | Sequence[float] | NDArray[np.float64]
"""One for all slides, or (n,): one per slide, where pooled folds have their own. Where classes do not exclude each
other, each has its own: (C,), or (n, C)."""


@dataclass(frozen=True)
class Predictions:
    """What a model, or one model per fold, says of slides that are labelled.

    Attributes:
        slides: Name or path of each of n slides, none twice.
        patients: Whom each is of.
        targets: (n,) int64, index of the true class; or (n, C) of 0 and 1, where classes do not exclude each other.
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
        count, each = len(self.slides), (len(self.slides), len(self.classes))
        shapes = (len(self.patients), self.targets.shape, self.logits.shape)
        if not count or shapes not in ((count, (count,), each), (count, each, each)) or len(self.classes) < 2:
            raise ValueError(
                f"Predictions of {count} slides and {len(self.classes)} classes have {shapes[0]} patients, targets of "
                f"shape {shapes[1]} and logits of shape {shapes[2]}: give one patient, one target (or one per "
                "class) and one logit per class for each slide, at least one slide and two classes."
            )
        if len(set(self.slides)) < count:
            twice = sorted({name for name in self.slides if self.slides.count(name) > 1})
            raise ValueError(f"Slides are predicted more than once ({', '.join(twice[:5])}): give each one once.")
        limit = len(self.classes) if self.exclusive else 2
        if self.targets.min() < 0 or self.targets.max() >= limit:
            raise ValueError(f"Targets are {np.unique(self.targets)}; numbers below {limit} are needed.")
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
    def exclusive(self) -> bool:
        """Whether each slide has exactly one class."""
        return self.targets.ndim == 1

    @property
    def has(self) -> NDArray[np.bool_]:
        """(n, C) whether each slide truly has each class."""
        return membership(self.targets, len(self.classes))

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(n,) index of the class with the largest logit, the first of equals; or (n, C), 1 for 50 % or more."""
        return np.asarray(self.logits.argmax(1) if self.exclusive else self.logits >= 0, np.int64)

    def probabilities(self, temperature: Temperature = 1.0) -> NDArray[np.float64]:
        """Softmax of logits / temperature, (n, C); the sigmoid where classes do not exclude each other."""
        scaled = self.scaled(temperature)
        return np.asarray(softmax(scaled, axis=1) if self.exclusive else expit(scaled))

    def surprise(self, temperature: Temperature = 1.0) -> NDArray[np.float64]:
        """Negative natural log of the truth's probability, finite however sure a wrong answer is.

        Returns:
            (n,); or (n, C), for each class by itself, where they do not exclude each other.
        """
        scaled = self.scaled(temperature)
        if not self.exclusive:
            return np.logaddexp(0, np.where(self.targets == 1, -scaled, scaled))
        return np.asarray(-log_softmax(scaled, axis=1)[np.arange(len(self.slides)), self.targets])

    def claims(self, temperature: Temperature = 1.0) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """What calibration is measured on: the probability of a claim about each slide, (n,), and whether it is true.

        Returns:
            By name: "predicted class"; or by class, that the slide has it, where they do not exclude each other.
        """
        found = self.probabilities(temperature)
        if self.exclusive:
            return {"predicted class": (found.max(1), self.predicted == self.targets)}
        return {name: (found[:, k], self.has[:, k]) for k, name in enumerate(self.classes)}

    def scaled(self, temperature: Temperature = 1.0) -> NDArray[np.float64]:
        """Logits / temperature, (n, C)."""
        factor = np.asarray(temperature, np.float64)
        if self.exclusive:
            factor = factor.reshape(-1, 1)  # (1 or n, 1)
        if not (np.isfinite(factor) & (factor > 0)).all():
            raise ValueError(f"Temperature is {temperature}; a finite number above 0 is needed.")
        return self.logits / factor

    def _labels(self, numbers: NDArray[np.int64]) -> list[Label]:
        """Targets or predictions in words."""
        if self.exclusive:
            return [self.classes[number] for number in numbers]
        return [tuple(name for name, one in zip(self.classes, row, strict=True) if one) for row in numbers]

    def write_csv(self, path: Path, *, fold: int | Sequence[int], temperature: Temperature = 1.0) -> None:
        """Write slide, patient, fold, label, predicted label, and per class its probability and logit; whole or not.

        Probabilities are those after the temperature, logits those before it. Labels of several classes are written as
        in the table of slides.

        Args:
            path: CSV file to write.
            fold: Whose model predicted, of all slides or of each.
            temperature: Of all slides or of each.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        heads = [f"{what} of {name}" for what in ("probability", "logit") for name in self.classes]
        writer.writerow(["slide", "patient", "fold", "label", "predicted", *heads])
        said = self._labels(self.targets), self._labels(self.predicted)
        folds = np.broadcast_to(fold, len(self.slides)).tolist()
        numbers = np.hstack([self.probabilities(temperature), self.logits])
        for *names, label, predicted, row in zip(self.slides, self.patients, folds, *said, numbers, strict=True):
            writer.writerow([*names, write_label(label), write_label(predicted), *(f"{value:.6g}" for value in row)])
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))
