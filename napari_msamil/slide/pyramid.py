"""A slide as a list of lazy arrays for a viewer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import ReadError
from napari_msamil.slide.cache import BlockCache
from napari_msamil.slide.slide import Slide

__all__ = ["BlockCache", "dask_levels"]

logger = logging.getLogger(__name__)

DEFAULT_CACHE_BYTES = 256 << 20
UNREADABLE = (255, 0, 255)
"""Colour of a block that cannot be read, where the caller asked to be told instead of an exception."""

_numbers = itertools.count()


def dask_levels(
    slide: Slide,
    *,
    cache: BlockCache | None = None,
    block_px: int = 1024,
    on_error: Callable[[ReadError], None] | None = None,
) -> list[Any]:
    """Return one lazy dask array per level of the slide, finest first: (H, W, 3) uint8 RGB.

    Add them to napari with `cache=False`: blocks are kept in `cache` alone, which is bounded in bytes and can be
    emptied.
    The arrays keep the slide open.

    Args:
        slide: an open slide.
        cache: decoded blocks, to be shared between slides; by default a new one of 256 MB.
        block_px: side of a block in level pixels.
        on_error: called, from whichever thread reads, with the error of a block that cannot be read; the block then
            shows in magenta. Without it the error is raised where the block is computed.
    """
    import dask.array as da

    cache = BlockCache(DEFAULT_CACHE_BYTES) if cache is None else cache
    call = next(_numbers)  # names never repeat: dask keeps results by name, and a stale one shows stale pixels
    arrays = []
    for number, level in enumerate(slide.levels):
        chunks = da.core.normalize_chunks((block_px, block_px, 3), (level.height, level.width, 3))
        arrays.append(
            da.map_blocks(
                _read_block,
                slide=slide,
                level=number,
                cache=cache,
                block_px=block_px,
                on_error=on_error,
                chunks=chunks,
                dtype=np.uint8,
                meta=np.empty((0, 0, 0), np.uint8),
                name=f"msamil-{slide.uid}-{call}-{number}",
            )
        )
    return arrays


def _read_block(
    *,
    slide: Slide,
    level: int,
    cache: BlockCache,
    block_px: int,
    on_error: Callable[[ReadError], None] | None,
    block_info: Any = None,
) -> NDArray[np.uint8]:
    (y0, y1), (x0, x1), _ = block_info[None]["array-location"]
    key = (slide.uid, level, block_px, y0, x0)
    block = cache.get(key)
    if block is None:
        try:
            block = slide.read_level(level, x0, y0, x1 - x0, y1 - y0)
        except ReadError as error:
            if on_error is None:
                raise
            on_error(error)
            block = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
            block[:] = UNREADABLE
        cache.put(key, block)
    return block
