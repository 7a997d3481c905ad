"""Levels added to a file's own, so that every pyramid shrinks in steps of at most 4 and ends small.

A viewer draws the level just finer than the screen and reads the coarsest one whole: a step of 16 makes it load 16
times the pixels each way, and a coarsest level of 8000 px costs hundreds of megabytes at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_msamil.slide.resample import BAND_PX, reduce_box

MAX_STEP = 4
COARSEST_PX = 2048
KEPT_PX = 32 << 20
"""Added levels up to this size are kept in memory once computed (96 MB); larger ones are computed when read."""

BLOCK_PX = 512

Size = tuple[int, int]
Pair = tuple[float, float]
ReadLevel = Callable[[int, int, int, int, int], NDArray[np.uint8]]
"""(level, x, y, width, height) -> (height, width, 3) uint8 RGB."""


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """One level of the finished pyramid: its place in the file, or the level and factor it is averaged from."""

    size: Size
    downsample: Pair
    stored: int | None
    source: int = -1
    factor: int = 1


def plan_levels(sizes: tuple[Size, ...], downsamples: tuple[Pair, ...] | None = None) -> tuple[LevelPlan, ...]:
    """Lay out the pyramid over a file's level sizes (width, height), finest first.

    Stored levels that do not shrink or that have another shape than level 0 (a thumbnail in the wrong place) are left
    out. Levels are added, by averaging 2x2 or 4x4 pixels, where a step exceeds 4 by more than rounding a size to whole
    pixels explains, and at the end until the longer side is at most 2048 px.
    """
    width, height = sizes[0]
    plans = [LevelPlan(sizes[0], (1.0, 1.0), 0)]
    for index, size in enumerate(sizes[1:], start=1):
        if not (_shrinks(plans[-1].size, size) and _same_shape(sizes[0], size)):
            continue
        exact = downsamples[index] if downsamples is not None else (width / size[0], height / size[1])
        while _too_coarse(plans[-1].size, size):
            plans.append(_shrunk(plans, 4 if _too_coarse(plans[-1].size, (size[0] * 2, size[1] * 2)) else 2))
        plans.append(LevelPlan(size, exact, index))
    while max(plans[-1].size) > COARSEST_PX:
        plans.append(_shrunk(plans, 4 if max(plans[-1].size) > 2 * COARSEST_PX else 2))
    return tuple(plans)


def _shrunk(plans: list[LevelPlan], factor: int) -> LevelPlan:
    source = plans[-1]
    size = (-(-source.size[0] // factor), -(-source.size[1] // factor))
    # the exact factor, not the ratio of sizes: the last pixel may average fewer source pixels
    downsample = (source.downsample[0] * factor, source.downsample[1] * factor)
    return LevelPlan(size, downsample, None, len(plans) - 1, factor)


def _shrinks(finer: Size, coarser: Size) -> bool:
    smaller = coarser[0] <= finer[0] and coarser[1] <= finer[1] and coarser != finer
    return smaller and min(coarser) >= 1


def _same_shape(first: Size, size: Size) -> bool:
    """True where both axes shrink by the same ratio, give or take two pixels and 2 %."""
    x, y = first[0] / size[0], first[1] / size[1]
    return abs(x / y - 1) <= 0.02 + 2 / min(size)


def _too_coarse(finer: Size, coarser: Size) -> bool:
    return finer[0] > MAX_STEP * (coarser[0] + 1) or finer[1] > MAX_STEP * (coarser[1] + 1)


class AddedLevel:
    """Pixels of one added level, averaged from the next finer one; a block kept in memory is computed at most once."""

    def __init__(self, plan: LevelPlan, source_size: Size) -> None:
        self._plan = plan
        self._source_size = source_size
        width, height = plan.size
        self._kept: NDArray[np.uint8] | None = None
        if width * height <= KEPT_PX:
            self._kept = np.empty((height, width, 3), np.uint8)
            blocks = (-(-height // BLOCK_PX), -(-width // BLOCK_PX))
            self._done = np.zeros(blocks, bool)
            self._locks = [[threading.Lock() for _ in range(blocks[1])] for _ in range(blocks[0])]

    def read(
        self, read_level: ReadLevel, x: int, y: int, width: int, height: int, *, keep: bool = True
    ) -> NDArray[np.uint8]:
        """Read a box inside the level: (height, width, 3) uint8 RGB.

        Args:
            read_level: reads a box inside any finer level. It is handed in, not kept: a slide owns its levels, and a
                reference back would keep its file open.
            x, y, width, height: the box in pixels of this level.
            keep: keep what is computed, and use what was.
        """
        if self._kept is None or not keep:
            return self._average(read_level, x, y, width, height)
        for row in range(y // BLOCK_PX, -(-(y + height) // BLOCK_PX)):
            for column in range(x // BLOCK_PX, -(-(x + width) // BLOCK_PX)):
                if not self._done[row, column]:
                    self._fill(self._kept, read_level, row, column)
        return self._kept[y : y + height, x : x + width].copy()

    def _fill(self, kept: NDArray[np.uint8], read_level: ReadLevel, row: int, column: int) -> None:
        with self._locks[row][column]:
            if not self._done[row, column]:
                x, y = column * BLOCK_PX, row * BLOCK_PX
                width, height = min(BLOCK_PX, self._plan.size[0] - x), min(BLOCK_PX, self._plan.size[1] - y)
                kept[y : y + height, x : x + width] = self._average(read_level, x, y, width, height)
                self._done[row, column] = True

    def _average(self, read_level: ReadLevel, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        factor = self._plan.factor
        right = min(self._source_size[0], (x + width) * factor)
        bottom = min(self._source_size[1], (y + height) * factor)
        rows = max(1, BAND_PX // (width * factor * factor))
        out = np.empty((height, width, 3), np.uint8)
        for first in range(0, height, rows):
            top = (y + first) * factor
            end = min(bottom, top + rows * factor)
            source = read_level(self._plan.source, x * factor, top, right - x * factor, end - top)
            out[first : first + rows] = reduce_box(source, factor)
        return out
