"""Calibration: whether a probability of 80 % is right in 80 of 100 cases, and the temperature that makes it so."""

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from .predictions import Predictions

BINS = 15
_LIMIT = 3.0  # of the log-temperature: between 1/20 and 20
_log = logging.getLogger(__name__)


def fit_temperature(validation: Predictions) -> float | tuple[float, ...]:
    """The temperature that makes a model's probabilities most likely on validation slides.

    The negative log-likelihood, summed over slides, is minimised over log T between 1/20 and 20. As few slides say
    little, (log T)^2 / 2 is added: the weight of about one slide, which draws T to 1. Without it a validation part in
    which every slide is right would drive T to 0, however few the slides are.

    Returns:
        T; 1.0 if fewer than two classes are there. Where classes do not exclude each other, one T for each, 1.0 for a
        class that all slides have, or none.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2 (temperature scaling).
    """
    if not validation.exclusive:
        return tuple(_fit_class(validation, index) for index in range(len(validation.classes)))
    present = np.unique(validation.targets)
    if len(present) < 2:
        _log.warning("All validation slides are %s: the temperature stays 1.", validation.classes[present[0]])
        return 1.0
    return _most_likely(validation.surprise)


def _fit_class(validation: Predictions, index: int) -> float:
    has = validation.has[:, index]
    if has.all() or not has.any():
        all_or_no = "All" if has.all() else "No"
        _log.warning("%s validation slides have %s: its temperature stays 1.", all_or_no, validation.classes[index])
        return 1.0
    return _most_likely(lambda temperature: validation.surprise(temperature)[:, index])


def _most_likely(surprise: Callable[[float], NDArray[np.float64]]) -> float:
    """The temperature at which the surprise of all slides together is least."""

    def cost(log_t: float) -> float:
        return float(surprise(np.exp(log_t)).sum() + log_t**2 / 2)

    grid = np.linspace(-_LIMIT, _LIMIT, 61)  # first, as the cost may have two minima
    near = grid[int(np.argmin([cost(point) for point in grid]))]
    bounds = max(near - 0.1, -_LIMIT), min(near + 0.1, _LIMIT)
    found = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Slides, mean confidence and accuracy of each bin that has slides, (K,) each; bins are (low, high] of equal width.

    Args:
        confidence: (n,) probability of a claim: that the predicted class is the true one, or that a class is there.
        right: (n,) whether it is true.
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
