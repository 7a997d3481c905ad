"""A slide as a list of lazy arrays for a viewer."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import SlideError
from napari_msamil.slide.backend import Colour
from napari_msamil.slide.cache import BlockCache
from napari_msamil.slide.resample import reduce_box
from napari_msamil.slide.slide import Slide

__all__ = ["BlockCache", "ViewLevel", "ViewPyramid", "dask_levels"]

DEFAULT_CACHE_BYTES = 256 << 20
MAX_VIEW_STEP = 3
"""A viewer draws the level just finer than the screen: with steps of 4 it loads up to 16 times the pixels of the screen
and shows every fourth of them each way; with a level between, a quarter of that."""

UNREADABLE = (255, 0, 255)
"""Colour of what cannot be read, where the caller asked to be told instead of an exception."""

BLOCK_PX = 512
"""Side of a block. A viewer loads whole blocks, and reading ahead reads a ring of them: with 1024 px both come to more
pixels, and the slowest pans take longer (tests/benchmarks/bench_view.py)."""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class ViewLevel:
    """One level as a viewer sees it.

    Attributes:
        width, height: pixels.
        source: level of the slide that it is read from.
        factor: pixels of that level per pixel of this one, 1 or 2.
    """

    width: int
    height: int
    source: int
    factor: int


class ViewPyramid:
    """A slide in blocks, at its own levels and one more wherever these are more than 3 apart; safe for many threads.

    Attributes:
        slide: the open slide.
        levels: finest first.
        block_px: side of a block, in pixels of its level.
    """

    def __init__(self, slide: Slide, *, cache: BlockCache | None = None, block_px: int = BLOCK_PX) -> None:
        self.slide = slide
        self.block_px = block_px
        self.levels = tuple(_view_levels(slide))
        self._cache = BlockCache(DEFAULT_CACHE_BYTES) if cache is None else cache

    def grid(self, level: int) -> tuple[int, int]:
        """Number of (rows, columns) of blocks of a level."""
        one = self.levels[level]
        return -(-one.height // self.block_px), -(-one.width // self.block_px)

    def block(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """One block, (h, w, 3) uint8 RGB, read-only: from the cache, or read and put there.

        Raises:
            ReadError: its pixels cannot be decoded.
            SlideError: a flat image cannot be decoded to the cache folder.
        """
        key = (self.slide.uid, level, self.block_px, row, column)
        block = self._cache.get(key)
        if block is None:
            block = self._read(self.levels[level], row * self.block_px, column * self.block_px)
            self._cache.put(key, block)
        return block

    def holds(self, level: int, row: int, column: int) -> bool:
        """Whether a block is in the cache; a block asked for counts as used."""
        return self._cache.get((self.slide.uid, level, self.block_px, row, column)) is not None

    def box(
        self,
        level: int,
        y: int,
        x: int,
        height: int,
        width: int,
        *,
        on_error: Callable[[SlideError], None] | None = None,
    ) -> NDArray[np.uint8]:
        """A box of a level, (height, width, 3) uint8 RGB, put together from its blocks; several are read at a time.

        Args:
            level: index in `levels`.
            y, x: top-left corner in pixels of that level; the box lies inside the level.
            height, width: in pixels.
            on_error: called with the error of a block that cannot be read, whose tiles that cannot be decoded are then
                magenta; without it the error is raised.
        """
        out = np.empty((height, width, 3), np.uint8)
        px = self.block_px
        blocks = [(r, c) for r in range(y // px, -(-(y + height) // px)) for c in range(x // px, -(-(x + width) // px))]

        def put(block: tuple[int, int]) -> None:
            top, left = block[0] * px - y, block[1] * px - x  # of the block, in the box
            target = out[max(0, top) : top + px, max(0, left) : left + px]
            pixels = self.block(level, *block) if on_error is None else self._shown(level, *block, on_error)
            target[:] = pixels[max(0, -top) :, max(0, -left) :][: len(target), : target.shape[1]]

        missing = sum(not self.holds(level, *block) for block in blocks)
        if missing < 2:
            for block in blocks:
                put(block)
        else:
            with ThreadPoolExecutor(min(missing, os.cpu_count() or 1), "msamil-read") as pool:
                list(pool.map(put, blocks))
        return out

    def arrays(self, *, on_error: Callable[[SlideError], None] | None = None) -> list[Any]:
        """One lazy dask array (H, W, 3) uint8 RGB per level, finest first; see `dask_levels`."""
        from napari_msamil.slide.level_array import LevelArray  # dask takes a while to import

        call = next(_numbers)  # names never repeat: dask keeps results by name, and a stale one shows stale pixels
        return [
            LevelArray.of(self, number, f"msamil-{self.slide.uid}-{call}-{number}", on_error)
            for number in range(len(self.levels))
        ]

    def _shown(self, level: int, row: int, column: int, on_error: Callable[[SlideError], None]) -> NDArray[np.uint8]:
        """One block, magenta where it cannot be read; kept as long as part of it can."""
        key = (self.slide.uid, level, self.block_px, row, column, "damaged")
        if (kept := self._cache.get(key)) is not None:
            return kept
        try:
            return self.block(level, row, column)
        except SlideError as error:  # also a full disk, where a flat image is decoded at its first read
            on_error(error)
        one, y, x = self.levels[level], row * self.block_px, column * self.block_px
        try:
            block = self._read(one, y, x, UNREADABLE)
        except SlideError:
            block = np.empty((min(self.block_px, one.height - y), min(self.block_px, one.width - x), 3), np.uint8)
            block[:] = UNREADABLE
        if (block != UNREADABLE).any():
            self._cache.put(key, block)
        return block

    def _read(self, level: ViewLevel, y: int, x: int, unreadable: Colour | None = None) -> NDArray[np.uint8]:
        read = partial(self.slide.read_level, level.source, unreadable=unreadable)
        width, height = min(self.block_px, level.width - x), min(self.block_px, level.height - y)
        if level.factor == 1:
            return read(x, y, width, height)
        source, f = self.slide.levels[level.source], level.factor
        right, bottom = min(source.width, (x + width) * f), min(source.height, (y + height) * f)
        return reduce_box(read(x * f, y * f, right - x * f, bottom - y * f), f)


def dask_levels(
    slide: Slide,
    *,
    cache: BlockCache | None = None,
    block_px: int = BLOCK_PX,
    on_error: Callable[[SlideError], None] | None = None,
) -> list[Any]:
    """Return lazy dask arrays for a viewer, finest first: (H, W, 3) uint8 RGB.

    They are the levels of the slide, and one of half the size wherever two of these are more than 3 apart. Add them to
    napari with `cache=False`: blocks are kept in `cache` alone, which is bounded in bytes and can be emptied. The
    arrays keep the slide open.

    Args:
        slide: an open slide.
        cache: decoded blocks, to be shared between slides; by default a new one of 256 MB.
        block_px: side of a block in level pixels.
        on_error: called, from whichever thread reads, with the error of a block that cannot be read; what cannot be
            decoded of it then shows in magenta. Without it the error is raised where the block is computed.
    """
    return ViewPyramid(slide, cache=cache, block_px=block_px).arrays(on_error=on_error)


def _view_levels(slide: Slide) -> list[ViewLevel]:
    levels: list[ViewLevel] = []
    for number, level in enumerate(slide.levels):
        levels.append(ViewLevel(level.width, level.height, number, 1))
        if number + 1 < len(slide.levels) and level.width > MAX_VIEW_STEP * slide.levels[number + 1].width:
            levels.append(ViewLevel(-(-level.width // 2), -(-level.height // 2), number, 2))
    return levels
