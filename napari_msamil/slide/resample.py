"""The one rule by which a box of the slide becomes a picture of a wanted size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

LEVEL_TOLERANCE = 1e-3
"""A level counts as fine enough when its pixels are at most this much larger than the wanted ones (3.9998 for 4)."""

DRIFT_PX = 0.5
"""Level pixels by which a box may differ from a whole multiple of the wanted size and still be sliced."""

ADDED_LEVEL_RATIO = 4.0
"""The file's own levels are read up to this much too fine; beyond it the added levels save the work."""

BAND_PX = 16 << 20
"""Source pixels held at once while a large box is shrunk."""

REDUCE_BYTES = 1 << 19
"""Source bytes averaged at once."""


class HasDownsample(Protocol):
    """A level, as far as this module cares."""

    @property
    def downsample(self) -> tuple[float, float]:
        """(x, y) level-0 pixels per level pixel."""
        ...


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """How to make a picture of `size` pixels from one level.

    Attributes:
        level: index of the level.
        start: (x, y) of the box's top-left corner in level pixels; whole numbers unless `factor` is None.
        ratio: (x, y) level pixels per wanted pixel.
        factor: (x, y) whole number of level pixels averaged per wanted pixel, (1, 1) for a plain slice; None: resample.
        size: (width, height) of the picture.
    """

    level: int
    start: tuple[float, float]
    ratio: tuple[float, float]
    factor: tuple[int, int] | None
    size: tuple[int, int]


def choose_level(
    levels: Sequence[HasDownsample], stored: Sequence[bool], target: tuple[float, float], *, stored_only: bool = False
) -> int:
    """Return the coarsest level that is fine enough for `target` (x, y) level-0 pixels per wanted pixel.

    Levels stored in the file come first: a slice of level 0 lies closer to the place asked for than one of an added
    level. Only where the file's best level is more than `ADDED_LEVEL_RATIO` times too fine may added ones be taken, and
    with `stored_only` not even there.
    """

    def coarsest(candidates: list[int]) -> int:
        best = 0
        for index in candidates:
            if all(levels[index].downsample[axis] <= target[axis] * (1 + LEVEL_TOLERANCE) for axis in (0, 1)):
                best = index
        return best

    own = coarsest([index for index in range(len(levels)) if stored[index]])
    too_fine = min(target[axis] / levels[own].downsample[axis] for axis in (0, 1))
    if stored_only or too_fine <= ADDED_LEVEL_RATIO * (1 + LEVEL_TOLERANCE):
        return own
    return coarsest(list(range(len(levels))))


def plan_read(
    levels: Sequence[HasDownsample],
    stored: Sequence[bool],
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    *,
    stored_only: bool = False,
) -> ReadPlan:
    """Plan a read of `box` (x, y, width, height in level-0 pixels, fractions allowed) as a picture of `size` pixels.

    The box is sliced where it is the wanted size, and averaged in whole blocks where it is a whole multiple of it, to
    within `DRIFT_PX` over the whole box; the slice is then centred on the box to within half a level pixel. Everything
    else is resampled once, at the exact place.
    """
    x, y, width, height = box
    target = (width / size[0], height / size[1])
    index = choose_level(levels, stored, target, stored_only=stored_only)
    downsample = levels[index].downsample
    ratio = (target[0] / downsample[0], target[1] / downsample[1])
    factor = (max(1, round(ratio[0])), max(1, round(ratio[1])))
    if any(abs(ratio[axis] - factor[axis]) * size[axis] > DRIFT_PX for axis in (0, 1)):
        return ReadPlan(index, (x / downsample[0], y / downsample[1]), ratio, None, size)
    centre = ((x + width / 2) / downsample[0], (y + height / 2) / downsample[1])
    start = tuple(_nearest(centre[axis] - factor[axis] * size[axis] / 2) for axis in (0, 1))
    return ReadPlan(index, (start[0], start[1]), ratio, factor, size)


def run_plan(
    plan: ReadPlan, read_level: Callable[[int, int, int, int, int], NDArray[np.uint8]], level_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Carry out a plan, a band of rows at a time where the source is large.

    Args:
        plan: from `plan_read`.
        read_level: (level, x, y, width, height) -> (height, width, 3) uint8, background outside the level.
        level_size: (width, height) of the planned level.

    Returns:
        (size[1], size[0], 3) uint8 RGB.
    """
    width, height = plan.size
    if plan.factor == (1, 1):
        return read_level(plan.level, int(plan.start[0]), int(plan.start[1]), width, height)
    row_px = max(1.0, width * plan.ratio[0] * plan.ratio[1])
    rows = max(1, int(BAND_PX / row_px))
    if rows >= height:
        return _band(plan, read_level, level_size, 0, height)
    starts = range(0, height, rows)
    return np.concatenate([_band(plan, read_level, level_size, y, min(height, y + rows)) for y in starts])


def _band(
    plan: ReadPlan,
    read_level: Callable[[int, int, int, int, int], NDArray[np.uint8]],
    level_size: tuple[int, int],
    first: int,
    last: int,
) -> NDArray[np.uint8]:
    """Rows `first` to `last` of the wanted picture."""
    width, rows = plan.size[0], last - first
    if plan.factor is not None:
        fx, fy = plan.factor
        x, y = int(plan.start[0]), int(plan.start[1]) + first * fy
        return reduce_box(read_level(plan.level, x, y, width * fx, rows * fy), plan.factor)
    left, top = plan.start[0], plan.start[1] + first * plan.ratio[1]
    right, bottom = left + width * plan.ratio[0], top + rows * plan.ratio[1]
    x0, x1 = _with_margin(left, right, plan.ratio[0], level_size[0])
    y0, y1 = _with_margin(top, bottom, plan.ratio[1], level_size[1])
    source = read_level(plan.level, x0, y0, x1 - x0, y1 - y0)
    return resize(source, (width, rows), (left - x0, top - y0, right - x0, bottom - y0))


def _with_margin(low: float, high: float, ratio: float, limit: int) -> tuple[int, int]:
    """Whole pixels around a span plus what the filter looks at beyond it; beyond the slide only what the span needs."""
    margin = math.ceil(max(1.0, ratio))
    first, last = math.floor(low), math.ceil(high)
    return min(first, max(0, first - margin)), max(last, min(limit, last + margin))


def reduce_box(pixels: NDArray[np.uint8], factor: int | tuple[int, int]) -> NDArray[np.uint8]:
    """Shrink (H, W, 3) uint8 by averaging boxes of factor, or (x, y) factors, pixels; halves are rounded up.

    Boxes cut by the right or bottom edge average the pixels that are there.
    """
    fx, fy = factor if isinstance(factor, tuple) else (factor, factor)
    height, width = pixels.shape[:2]
    out = np.empty((-(-height // fy), -(-width // fx), 3), np.uint8)
    rows, columns = height // fy, width // fx
    band = max(1, REDUCE_BYTES // (width * 3 * fy))  # small temporaries stay in the processor's cache
    for row in range(0, rows, band):
        end = min(rows, row + band)
        _average(pixels[row * fy : end * fy, : columns * fx], fx, fy, out[row:end, :columns])
        if columns < out.shape[1]:
            _average(pixels[row * fy : end * fy, columns * fx :], width - columns * fx, fy, out[row:end, columns:])
    if rows < out.shape[0]:
        out[rows:] = reduce_box(pixels[rows * fy :], (fx, height - rows * fy))
    return out


def _average(pixels: NDArray[np.uint8], fx: int, fy: int, out: NDArray[np.uint8]) -> None:
    """Average whole boxes: (h * fy, w * fx, 3) into (h, w, 3). Plain strided sums: the usual reshape is far slower."""
    height, width = out.shape[:2]
    if height == 0 or width == 0:
        return
    count = fx * fy
    wide: Any = np.uint16 if 255 * count + count // 2 < 1 << 16 else np.uint32
    lines = [pixels[i::fy] for i in range(fy)]
    column_sums: NDArray[Any] = lines[0].astype(wide)  # (h, w * fx, 3)
    for line in lines[1:]:
        column_sums += line
    flat = column_sums.reshape(height, width * fx * 3)
    for channel in range(3):
        total = flat[:, channel :: 3 * fx] + wide(count // 2)  # (h, w)
        for i in range(1, fx):
            total += flat[:, channel + 3 * i :: 3 * fx]
        if count & (count - 1):
            total //= wide(count)
        else:
            total >>= wide(count.bit_length() - 1)
        out[..., channel] = total


def resize(
    pixels: NDArray[np.uint8], size: tuple[int, int], box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    """Resample `box` (left, top, right, bottom; fractions allowed) of (H, W, 3) uint8 to `size` (width, height).

    A triangle filter as wide as the wanted pixels, hence without aliasing when shrinking and linear when enlarging.
    """
    from PIL import Image

    height, width = pixels.shape[:2]  # rounding errors of a float box must not lead outside
    inside = (max(0.0, box[0]), max(0.0, box[1]), min(box[2], float(width)), min(box[3], float(height)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, inside))


def _nearest(value: float) -> int:
    """Round halves up, so that neighbouring boxes are all rounded the same way."""
    return math.floor(value + 0.5)
