"""Reads the blocks that the next pan or zoom will need before it needs them, so that drawing does not wait for them."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.errors import SlideError
from napari_msamil.plugin.background import READ_AHEAD, step_back

if TYPE_CHECKING:
    from collections.abc import Iterator

    import napari.layers

    from napari_msamil.slide.pyramid import ViewPyramid

logger = logging.getLogger(__name__)

Block = tuple[int, int, int]  # level, row, column


class Prefetcher:
    """Fills the block cache around what a slide layer shows, in one background thread that ends when it has caught up.

    It reads through the pyramid and never touches the layer's dask arrays: computing those in a thread while the window
    draws is what breaks.
    """

    def __init__(self, pyramid: ViewPyramid) -> None:
        self._pyramid = pyramid
        self._lock = threading.Lock()
        self._wanted: list[Block] = []
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._centre = np.zeros(2)

    def follow(self, event: Any) -> None:
        """Callback for `layer.events.set_data`: the layer shows other pixels."""
        self.look_around(event.source)

    def look_around(self, layer: napari.layers.Image) -> None:
        """Want the blocks around what the layer shows now; what was wanted before is forgotten."""
        if not layer.visible or layer.ndim != 2:
            return
        corners = np.asarray(layer.corner_pixels, float)
        level = int(layer.data_level)
        factor = layer.data[0].shape[0] / layer.data[level].shape[0]
        centre = corners.mean(axis=0) * factor  # level-0 px
        heading, self._centre = centre - self._centre, centre
        wanted = list(wanted_blocks(self._pyramid, level, corners, heading))
        with self._lock:
            self._wanted = wanted[::-1]
            if self._thread is None and wanted and not self._stopped:
                self._thread = threading.Thread(target=self._work, name="msamil-prefetch", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Read nothing more; returns at once."""
        with self._lock:
            self._stopped = True
            self._wanted = []

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all that is wanted has been read."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _work(self) -> None:
        try:
            step_back(READ_AHEAD)
            while (block := self._next()) is not None:
                try:
                    self._pyramid.block(*block)
                except SlideError:  # closed meanwhile, or damaged; the layer says so if it comes to be shown
                    continue
        except Exception:
            logger.exception("reading ahead stopped; the next pan starts it again")
            with self._lock:
                self._thread = None

    def _next(self) -> Block | None:
        with self._lock:
            if self._wanted:
                return self._wanted.pop()
            self._thread = None  # under the lock: whoever wants more from here on starts a new thread
            return None


def wanted_blocks(pyramid: ViewPyramid, level: int, corners: np.ndarray, heading: np.ndarray) -> Iterator[Block]:
    """Blocks worth having while a viewer shows a tile, most urgent first, without those that are in the cache.

    These are the ring around the tile, beginning on the side the view is moving to; then the middle of the tile one
    level finer, for zooming in; then the tile's place one level coarser, for zooming out.

    Args:
        pyramid: of the slide.
        level: shown now.
        corners: [[top, left], [bottom, right]] of the tile in pixels of that level.
        heading: (row, column) movement since the last tile, any length.
    """
    px = pyramid.block_px
    (top, left), (bottom, right) = np.floor(corners / px).astype(int)
    middle = np.array([(top + bottom) / 2, (left + right) / 2])
    ring = _grid(pyramid, level, (top - 1, left - 1), (bottom + 1, right + 1))
    ring.sort(key=lambda b: -float((np.array(b[1:]) - middle) @ heading))
    others: list[Block] = []
    size = np.array([pyramid.levels[level].height, pyramid.levels[level].width])
    half = (corners[1] - corners[0]) / 4
    centre = corners.mean(axis=0)
    for near, first, last in ((level - 1, centre - half, centre + half), (level + 1, corners[0], corners[1])):
        if 0 <= near < len(pyramid.levels):
            ratio = np.array([pyramid.levels[near].height, pyramid.levels[near].width]) / size
            a, b = np.floor(first * ratio / px).astype(int), np.floor(last * ratio / px).astype(int)
            others += _grid(pyramid, near, tuple(a), tuple(b))
    for block in (*ring, *others):
        if not pyramid.holds(*block):
            yield block


def _grid(pyramid: ViewPyramid, level: int, first: tuple[int, ...], last: tuple[int, ...]) -> list[Block]:
    rows, columns = pyramid.grid(level)
    return [
        (level, row, column)
        for row in range(max(0, first[0]), min(rows - 1, last[0]) + 1)
        for column in range(max(0, first[1]), min(columns - 1, last[1]) + 1)
    ]
