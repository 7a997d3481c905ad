"""Reading one level of a TIFF file: find the tiles a box touches, decode each at most once, copy.

This sits below zarr on purpose: per tile it costs one `pread`, one call of tifffile's decoder and one copy, from any
number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_msamil.slide.backend import WHITE, Colour
from napari_msamil.slide.cache import BlockCache
from napari_msamil.slide.colour import PixelFormat

JPEG_END = b"\xff\xd9"


class ByteSource:
    """A file read at absolute offsets by several threads; it closes when the last reference to it goes."""

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._size = os.fstat(self._fd).st_size
        self._seek_lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes; EOFError where the file ends before."""
        if offset < 0 or count < 0 or offset + count > self._size:
            raise EOFError(f"the file ends at byte {self._size}, {offset + count} are needed")
        data = self._read_once(offset, count)
        while len(data) < count:
            more = self._read_once(offset + len(data), count - len(data))
            if not more:
                raise EOFError(f"the file ends at byte {offset + len(data)}, {offset + count} are needed")
            data += more
        return data

    def _read_once(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._fd, count, offset)
        with self._seek_lock:  # Windows has no pread
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.read(self._fd, count)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class Plane:
    """Where the tiles of one plane of samples lie in the file; most files have one plane with all samples in it.

    Attributes:
        offsets, counts: bytes from the start of the file and number of bytes of each tile, row by row; 0: tile missing.
        first_index: index of the plane's first tile for the decoder.
        options: jpegtables and jpegheader for the decoder.
    """

    offsets: Sequence[int]
    counts: Sequence[int]
    first_index: int
    options: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class TileGrid:
    """One level: its tiles (strips are tiles as wide as the level) and how to decode them.

    Attributes:
        width, height: level pixels.
        tile_width, tile_height: pixels of a full tile.
        planes: one, or one per sample where samples are stored apart.
        decode: tifffile's decoder: (bytes, tile index, jpegtables=, jpegheader=) -> (samples (1, h, w, S), ...).
        pixels: how samples become RGB.
        jpeg: tiles are whole JPEG streams, each with its own end mark.
        tiled: False for strips.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    planes: tuple[Plane, ...]
    decode: Callable[..., Any]
    pixels: PixelFormat
    jpeg: bool
    tiled: bool

    @property
    def columns(self) -> int:
        """Tiles per row."""
        return -(-self.width // self.tile_width)

    def tile(self, source: ByteSource, index: int) -> NDArray[np.uint8] | None:
        """Decode one tile: (h, w, 3) uint8 RGB, or None where the file stores nothing there."""
        parts = []
        for plane in self.planes:
            offset, count = plane.offsets[index], plane.counts[index]
            if count == 0 or offset == 0:
                return None
            data = source.read(offset, count)
            if self.jpeg and data.rfind(JPEG_END) < 0:
                raise ValueError("a JPEG tile ends too early")  # libjpeg would fill the rest with grey and say nothing
            samples = self.decode(data, plane.first_index + index, **plane.options)[0]
            parts.append(samples[0])  # (1, h, w, S) -> (h, w, S)
        return self.pixels.to_rgb(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1))

    def read_into(
        self,
        out: NDArray[np.uint8],
        x: int,
        y: int,
        source: ByteSource,
        cache: BlockCache,
        cache_key: tuple[int, ...],
        unreadable: Colour | None,
    ) -> None:
        """Fill `out` (h, w, 3) with the box whose top-left corner is (x, y); it lies inside the level."""
        bottom, right = y + out.shape[0], x + out.shape[1]
        tw, th = self.tile_width, self.tile_height
        for row in range(y // th, -(-bottom // th)):
            top, end = max(y, row * th), min(bottom, (row + 1) * th)
            for column in range(x // tw, -(-right // tw)):
                left, stop = max(x, column * tw), min(right, (column + 1) * tw)
                target = out[top - y : end - y, left - x : stop - x]
                try:
                    tile = self._cached_tile(row * self.columns + column, source, cache, cache_key)
                except MemoryError:
                    raise
                except Exception:  # codecs raise whatever they like
                    if unreadable is None:
                        raise
                    target[:] = unreadable
                    continue
                if tile is None:
                    target[:] = WHITE
                else:
                    target[:] = tile[top - row * th : end - row * th, left - column * tw : stop - column * tw]

    def _cached_tile(
        self, index: int, source: ByteSource, cache: BlockCache, cache_key: tuple[int, ...]
    ) -> NDArray[np.uint8] | None:
        key = (*cache_key, index)
        tile = cache.get(key)
        if tile is None:
            tile = self.tile(source, index)
            if tile is not None:
                cache.put(key, tile)
        return tile
