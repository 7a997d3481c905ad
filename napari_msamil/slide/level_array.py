"""The dask array of one level, with a short way to pixels for whoever draws it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import SlideError

if TYPE_CHECKING:
    from napari_msamil.slide.pyramid import ViewPyramid


class LevelArray(da.Array):  # type: ignore[misc]  # dask is untyped
    """A level (H, W, 3) uint8 RGB, or a box of it: a dask array in all respects.

    A box becomes pixels without a task graph, straight from the blocks of the pyramid: a viewer waits for it at every
    pan into new pixels, and to build and run a graph takes longer than to copy what is in memory.
    """

    __slots__ = ("_corner", "_level", "_on_error", "_pyramid")

    @classmethod
    def of(cls, pyramid: ViewPyramid, level: int, name: str, on_error: Callable[[SlideError], None] | None) -> Any:
        """The whole level `level` of a pyramid; see `pyramid.dask_levels` for `on_error`."""
        one = pyramid.levels[level]
        graph = da.map_blocks(
            _block,
            pyramid=pyramid,
            level=level,
            on_error=on_error,
            chunks=da.core.normalize_chunks((pyramid.block_px, pyramid.block_px, 3), (one.height, one.width, 3)),
            dtype=np.uint8,
            meta=np.empty((0, 0, 0), np.uint8),
            name=name,
        )
        return cls._made(graph, pyramid, level, on_error, (0, 0))

    @classmethod
    def _made(
        cls,
        graph: Any,
        pyramid: ViewPyramid,
        level: int,
        on_error: Callable[[SlideError], None] | None,
        corner: tuple[int, int],
    ) -> Any:
        array = cls(graph.dask, graph.name, graph.chunks, dtype=graph.dtype, meta=graph._meta)
        array._pyramid, array._level, array._on_error, array._corner = pyramid, level, on_error, corner
        return array

    def __getitem__(self, index: Any) -> Any:
        """A box of whole pixels stays a LevelArray; anything else is dask's."""
        part = super().__getitem__(index)
        index = index if isinstance(index, tuple) else (index,)
        plain = all(isinstance(one, slice) and one.step in (None, 1) for one in index)
        if not plain or part.shape[2] != 3:
            return part
        starts = [one.indices(length)[0] for one, length in zip(index, self.shape, strict=False)]
        y, x = (*starts, 0, 0)[:2]  # a dimension that is not named is taken whole
        corner = self._corner[0] + y, self._corner[1] + x
        return self._made(part, self._pyramid, self._level, self._on_error, corner)

    def __array__(self, dtype: Any = None, copy: Any = None, **options: Any) -> NDArray[Any]:
        """The pixels, new and writable."""
        height, width = self.shape[:2]
        pixels: NDArray[Any] = self._pyramid.box(self._level, *self._corner, height, width, on_error=self._on_error)
        return pixels if dtype is None else pixels.astype(dtype, copy=False)


def _block(
    *, pyramid: ViewPyramid, level: int, on_error: Callable[[SlideError], None] | None, block_info: Any = None
) -> NDArray[np.uint8]:
    (y0, y1), (x0, x1), _ = block_info[None]["array-location"]
    return pyramid.box(level, y0, x0, y1 - y0, x1 - x0, on_error=on_error)
