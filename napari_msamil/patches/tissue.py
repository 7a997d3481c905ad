"""Tissue mask of a thumbnail: Otsu's threshold on saturation (methods 3.8, no. 36), guarded where it is known to fail.

Otsu always splits: blank glass into noise and noise, a field full of tissue into pale and dark. So its threshold is
kept between the saturation glass may have and the saturation tissue surely has. Pictures without colour are split by
darkness instead. Broad black areas and pen ink are neither glass nor tissue: they are left out of the threshold and of
the mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

MIN_SATURATION = 0.05
"""Glass stays below, with JPEG noise; glass and tissue differ by more."""
MAX_SATURATION = 0.12
"""Stained tissue, however pale, is mostly above."""
_MIN_DARKNESS = 0.10  # the same limits for pictures without colour: 1 - brightest channel
_MAX_DARKNESS = 0.25
_COLOURLESS = 0.02  # saturation that 99 % of a grey picture stays below
_BLACK = 40  # brightest channel of padding and of black ink, 0..255
_BROAD = 10  # px: black areas of less than twice this width are nuclei and pigment
_PEN = 60  # by how many grey levels ink differs from any stain


def tissue_mask(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a slide's thumbnail shows tissue.

    Args:
        rgb: (H, W, 3) uint8; meant for about 1000 px a side, works at any size.

    Returns:
        (H, W) bool; all false on blank glass, all true on a field full of tissue.

    Raises:
        ValueError: if the picture is not (H, W, 3) uint8.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"a thumbnail must be (height, width, 3) uint8, not {rgb.shape} {rgb.dtype}")
    smooth = np.asarray(Image.fromarray(rgb).filter(ImageFilter.BoxBlur(1)))  # JPEG noise and single pixels
    brightest = smooth.max(axis=2)
    spread = brightest - smooth.min(axis=2)
    usable = ~_left_out(smooth, brightest)
    if not usable.any():
        return np.zeros(usable.shape, dtype=np.bool_)
    value = spread / np.maximum(brightest, 1)
    low, high = MIN_SATURATION, MAX_SATURATION
    if is_grey(smooth[usable]):
        value, low, high = 1 - brightest / 255.0, _MIN_DARKNESS, _MAX_DARKNESS
    return _tidy((value > _guarded_otsu(value[usable], low, high)) & usable)


def is_grey(rgb: NDArray[np.uint8]) -> bool:
    """Whether pixels, (..., 3) uint8, have no colour to speak of, which stained tissue has, however pale it is."""
    brightest = rgb.max(axis=-1)
    saturation = (brightest - rgb.min(axis=-1)) / np.maximum(brightest, 1)
    return bool(np.quantile(saturation, 0.99) < _COLOURLESS)


def otsu(values: NDArray[np.floating]) -> float:
    """Otsu's threshold of values in 0..1: the cut, of 256, with the largest variance between the two classes.

    References:
        N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979), Eq. 18.
    """
    counts, borders = np.histogram(values, bins=256, range=(0.0, 1.0))
    weight = counts / max(1, counts.sum())
    middle = (borders[1:] + borders[:-1]) / 2
    below = np.cumsum(weight)  # ω(k)
    mean = np.cumsum(weight * middle)  # μ(k)
    divisor = below * (1 - below)
    between = np.divide((mean[-1] * below - mean) ** 2, divisor, out=np.zeros(256), where=divisor > 0)
    best = np.flatnonzero(between >= between.max() - 1e-12)  # empty bins between two classes tie: take their middle
    return float(borders[1 + round(float(best.mean()))])


def _guarded_otsu(values: NDArray[np.floating], low: float, high: float) -> float:
    """Otsu's threshold where there are two kinds of pixels, else `high`: all glass or all tissue, whichever it is."""
    threshold = otsu(values)
    above = values > threshold
    if not above.any() or above.all() or values[above].mean() - values[~above].mean() < low:
        return high
    return min(max(threshold, low), high)


def _left_out(rgb: NDArray[np.uint8], brightest: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Broad black areas (padding, borders, marker) and coloured ink; a dark nucleus is too small to be either."""
    red, green, blue = (rgb[..., channel].astype(np.int16) for channel in range(3))
    # No stain in histology is as green, or as purely blue, as a marker.
    is_green = (green - red > _PEN) & (green - blue > _PEN // 3)
    is_blue = (blue - red > 2 * _PEN) & (green > red) & (red < 90)
    black = _shrink(brightest < _BLACK, _BROAD)
    return _grow(black, _BROAD) | is_green | is_blue


def _grow(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """True where any pixel within a square of ±radius is true."""
    width = 2 * radius + 1
    for axis in (0, 1):
        lines = np.moveaxis(mask, axis, 0)
        sums = np.cumsum(np.pad(lines, ((radius + 1, radius), (0, 0))), axis=0, dtype=np.int32)
        mask = np.moveaxis(sums[width:] > sums[:-width], 0, axis)
    return mask


def _shrink(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """True where all pixels within a square of ±radius are true; beyond the edge counts as true."""
    return ~_grow(~mask, radius)


def _tidy(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Close the gaps between cells, then drop specks of dust."""
    closed = _shrink(_grow(mask, 2), 2)
    return _grow(_shrink(closed, 2), 2)
