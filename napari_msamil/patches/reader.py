"""Pixels for the rows of a patch table, streamed in an order that decodes each tile of the file once for all scales."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Event, current_thread
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import ReadError
from napari_msamil.patches.grid import PatchTable, footprint_ratios

if TYPE_CHECKING:
    from napari_msamil.slide.slide import Slide

_THREAD_NAME = "msamil-read"


@dataclass(frozen=True, eq=False)
class PatchBatch:
    """Some patches, ready for a network.

    Attributes:
        rows: (n,) int64, rows of the table; n is smaller than the batch size for the last batch and where reads failed.
        pixels: (n, P, P, 3) uint8 RGB, in the order of `rows`.
        failed: (row, reason) of each patch that could not be read; it has no pixels.
    """

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    failed: tuple[tuple[int, str], ...]


def read_patches(
    slide: Slide,
    table: PatchTable,
    rows: NDArray[np.integer],
    *,
    batch_size: int,
    prefetch: int = 2,
    workers: int = 1,
    level0: bool = False,
) -> Generator[PatchBatch, None, None]:
    """Stream the pixels of some patches, each resampled once to the true mpp of its scale.

    Batches are read ahead in the background and come in `read_order`. Closing the generator stops the reading within
    one patch and waits for it. A patch over the edge of the slide is padded with the slide's background.

    Args:
        slide: the open slide that the table was built for.
        table: where the patches are.
        rows: (n,) rows to read, any order.
        batch_size: patches per batch.
        prefetch: batches read ahead of the one in use; with the batch size it bounds the memory.
        workers: threads that read, a batch each. One keeps up with a CPU; a GPU wants more.
        level0: read every scale from level 0; see `Slide.read`.

    Yields:
        All rows, each once: in `rows` of a batch or, if the file cannot be decoded there, in `failed`.

    Raises:
        ValueError: if the table is of another slide, or the patches are not all of one size in pixels.
    """
    if table.slide_size != (slide.width, slide.height):
        raise ValueError(
            f"the table is of a slide of {table.slide_size} px, but {slide.name} has {(slide.width, slide.height)} px: "
            "build a table for this slide"
        )
    if batch_size < 1 or prefetch < 1 or workers < 1:
        raise ValueError(f"batch_size, prefetch and workers start at 1, not {batch_size}, {prefetch} and {workers}")
    sizes = {table.scales[scale].patch_px for scale in np.unique(table.scale[rows])}
    if len(sizes) > 1:
        raise ValueError(f"patches of {sorted(sizes)} px do not fit one batch: read the scales one by one")
    ordered = read_order(table, rows)
    batches = (ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size))
    read = partial(slide.read, level0=True) if level0 else slide.read
    return _stream(read, table, batches, ahead=prefetch, workers=workers)


def read_order(table: PatchTable, rows: NDArray[np.integer]) -> NDArray[np.int64]:
    """Rows in the order that decodes least: tree by tree, a patch before its children, neighbours along a Z-curve.

    A coarsest patch and its descendants cover the same tiles, so one tree's tiles fit a small cache; the Z-curve keeps
    the tiles that straddle two trees in it too. The order follows from the grid alone, whatever rows are missing.
    """
    ratios = footprint_ratios(table.scales)
    scale, grid = table.scale[rows], table.grid[rows].astype(np.uint64)
    keys: list[NDArray[np.int64]] = []
    for at in reversed(range(len(table.scales))):  # the coarsest decides first
        key = np.full(len(rows), -1, dtype=np.int64)  # coarser than this scale: ahead of its own descendants
        for own in range(at + 1):
            mine = scale == own
            key[mine] = _morton(grid[mine] // np.uint64(np.prod(ratios[own:at], dtype=np.int64)))
        keys.append(key)
    return np.asarray(rows, dtype=np.int64)[np.lexsort(keys[::-1])]  # lexsort: the last key counts most


def _stream(
    read: Callable[..., NDArray[np.uint8]],
    table: PatchTable,
    batches: Generator[NDArray[np.int64], None, None],
    *,
    ahead: int,
    workers: int,
) -> Generator[PatchBatch, None, None]:
    stop = Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix=_THREAD_NAME)
    pending: deque[Future[PatchBatch]] = deque()

    def submit(count: int) -> None:
        pending.extend(pool.submit(_read_batch, read, table, rows, stop) for rows in islice(batches, count))

    try:
        submit(max(ahead, workers))
        while pending:
            batch = pending.popleft().result()  # an error of the thread that is not a ReadError surfaces here
            submit(1)
            yield batch
    finally:
        stop.set()
        # Garbage collection may close a forgotten generator in a reading thread, which cannot wait for itself.
        pool.shutdown(wait=not current_thread().name.startswith(_THREAD_NAME), cancel_futures=True)


def _read_batch(
    read: Callable[..., NDArray[np.uint8]], table: PatchTable, rows: NDArray[np.int64], stop: Event
) -> PatchBatch:
    size = table.scales[table.scale[rows[0]]].patch_px
    pixels = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    done: list[int] = []
    failed: list[tuple[int, str]] = []
    for row in rows.tolist():
        if stop.is_set():
            break
        x, y = table.coords[row].tolist()
        width, height = table.footprint(int(table.scale[row]))
        try:
            pixels[len(done)] = read(x, y, width, height, size=(size, size))
        except ReadError as error:
            failed.append((row, str(error)))
        else:
            done.append(row)
    return PatchBatch(np.array(done, dtype=np.int64), pixels[: len(done)], tuple(failed))


def _morton(grid: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Place of each (column, row) along the Z-curve: the bits of both, interleaved; (n, 2) below 2^31 → (n,)."""
    spread = grid.copy()
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        spread = (spread | (spread << np.uint64(shift))) & np.uint64(mask)
    place: NDArray[np.int64] = (spread[:, 0] | (spread[:, 1] << np.uint64(1))).astype(np.int64)
    return place
