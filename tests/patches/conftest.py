"""Slides written for these tests: every pixel's colour says where it lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

AMPLITUDE = 100.0


@dataclass(frozen=True)
class Waves:
    """Colour as a function of place (x, y) in level-0 px.

    Red is a sine of x and green one of y: their phases tell a place to a small fraction of a pixel, but only within a
    wavelength. Blue is constant in each cell of one wavelength by one, at random, and tells which cell it is.

    Attributes:
        size: (width, height) of the slide in level-0 px.
        length: wavelength along x and y in level-0 px.
    """

    size: tuple[int, int]
    length: tuple[float, float]

    @property
    def cells(self) -> NDArray[np.uint8]:
        """(rows, columns) uint8: blue of each cell."""
        columns, rows = (int(np.ceil(size / length)) for size, length in zip(self.size, self.length, strict=True))
        return np.random.default_rng(0).integers(0, 200, (rows, columns), dtype=np.uint8)

    def picture(self, level_size: tuple[int, int]) -> NDArray[np.uint8]:
        """A level of the slide, (height, width, 3): its pixels cover it evenly and have the colour of their centres."""
        x, y = ((np.arange(n) + 0.5) * self.size[axis] / n for axis, n in enumerate(level_size))
        out = np.empty((level_size[1], level_size[0], 3), dtype=np.uint8)
        out[..., 0] = np.round(128 + AMPLITUDE * np.sin(2 * np.pi * x / self.length[0]))
        out[..., 1] = np.round(128 + AMPLITUDE * np.sin(2 * np.pi * y / self.length[1]))[:, None]
        rows, columns = (y // self.length[1]).astype(int), (x // self.length[0]).astype(int)
        out[..., 2] = self.cells[np.ix_(rows, columns)]
        return out


def write_pyramid(path: Path, levels: Sequence[NDArray[np.uint8]], *, tile_px: int = 256) -> Path:
    """An uncompressed Aperio TIFF: its readers take the levels as they are, whatever their ratios."""
    height, width = levels[0].shape[:2]
    tiled = {"tile": (tile_px, tile_px), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(levels[0], description=f"Aperio Image Library v1\n{width}x{height}|AppMag = 20", **tiled)
        file.write(levels[-1][:16, :16], photometric="rgb", metadata=None)  # the second page of an SVS is a thumbnail
        for level in levels[1:]:
            file.write(level, **tiled)
    return path


WriteWaves = Callable[..., tuple[Path, Waves]]


@pytest.fixture
def write_waves(tmp_path: Path) -> WriteWaves:
    """`write_waves(level sizes, wavelengths, tile_px=256) -> (path, Waves)`."""

    def write(sizes: Sequence[tuple[int, int]], length: tuple[float, float], tile_px: int = 256) -> tuple[Path, Waves]:
        waves = Waves(sizes[0], length)
        return write_pyramid(tmp_path / "waves.svs", [waves.picture(size) for size in sizes], tile_px=tile_px), waves

    return write
