"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]

if "QT_API" in os.environ:  # pytest-qt has a variable of its own, and would load another Qt where two are installed
    os.environ.setdefault("PYTEST_QT_API", os.environ["QT_API"])


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the real slides and the bad inputs; the test is skipped, visibly, where it does not exist."""
    folder = Path(os.environ.get("MSAMIL_TEST_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set MSAMIL_TEST_DATA")
    return folder


PERIOD_PX = 510
"""Red and green are triangle waves of this period along x and y: one grey level per level-0 pixel."""


def _wave_integral(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integral of the triangle wave 0..255..0, shifted by half a pixel so that level-0 pixels have whole values."""
    periods, rest = np.divmod(t - 0.5, PERIOD_PX)
    rising, falling = rest**2 / 2, 255.0**2 - (PERIOD_PX - rest) ** 2 / 2
    return periods * 255.0**2 + np.where(rest <= 255, rising, falling)


def place_colours(
    slide_size: tuple[int, int], box: tuple[float, float, float, float], size: tuple[int, int]
) -> NDArray[np.float64]:
    """True colours of a box (x, y, width, height in level-0 px) of a `make_slide` slide, as a picture of `size` (w, h).

    Each pixel is the exact mean over its footprint, outside the slide white. Red tells x and green y to a fraction of a
    pixel, blue (a slow ramp over the whole slide) in which period.
    """
    (red, x_ramp, x_cover), (green, y_ramp, y_cover) = (
        _along_axis(box[axis], box[axis + 2], size[axis], slide_size[axis]) for axis in (0, 1)
    )
    cover = (y_cover[:, None] * x_cover[None, :])[..., None]  # (h, w, 1)
    colours = np.empty((size[1], size[0], 3))
    colours[..., 0] = red[None, :]
    colours[..., 1] = green[:, None]
    colours[..., 2] = x_ramp[None, :] + y_ramp[:, None]
    return colours * cover + 255.0 * (1 - cover)


def _along_axis(start: float, length: float, count: int, limit: int) -> tuple[NDArray[np.float64], ...]:
    """Wave, ramp (half of the blue) and covered fraction of `count` pixels along one axis of a slide of `limit` px."""
    edges = start + np.arange(count + 1) * length / count
    inside = np.clip(edges, 0, limit)
    covered = np.diff(inside)
    wave = np.diff(_wave_integral(inside)) / np.where(covered > 0, covered, 1.0)
    return wave, 127.5 * (inside[1:] + inside[:-1]) / 2 / limit, covered / np.diff(edges)


def write_place_slide(
    path: Path,
    size: tuple[int, int],
    downsamples: Sequence[float | tuple[int, int]] = (1, 4, 16),
    *,
    tile: int = 256,
    mpp: float | tuple[float, float] | None = None,
    compression: str | None = "deflate",
) -> Path:
    """Write a tiled pyramidal TIFF whose colour tells the place, without loss.

    Args:
        path: file to write.
        size: (width, height) of level 0 in px.
        downsamples: one per level; a number (level size rounded) or the level's (width, height) itself.
        tile: side of a file tile, a multiple of 16.
        mpp: µm per px, one number or (x, y), written as resolution tags; None: none written.
        compression: as tifffile names it, lossless.
    """
    tags: dict[str, object] = {"photometric": "rgb", "tile": (tile, tile), "compression": compression, "metadata": None}
    tags |= {"compressionargs": {"level": 1}} if compression == "deflate" else {}
    if mpp is not None:
        x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
        tags |= {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=size[0] * size[1] > 10**9) as tiff:
        for number, step in enumerate(downsamples):
            shape = step if isinstance(step, tuple) else (round(size[0] / step), round(size[1] / step))
            (red, x_ramp, _), (green, y_ramp, _) = (_along_axis(0, size[i], shape[i], size[i]) for i in (0, 1))
            pixels = np.empty((shape[1], shape[0], 3), np.uint8)
            pixels[..., 0] = np.rint(red)[None, :]
            pixels[..., 1] = np.rint(green)[:, None]
            pixels[..., 2] = np.rint(x_ramp.astype(np.float32)[None, :] + y_ramp.astype(np.float32)[:, None])
            tiff.write(pixels, subfiletype=int(number > 0), **tags)
    return path


@pytest.fixture(scope="session")
def make_slide() -> Callable[..., Path]:
    """The function `write_place_slide(path, size, downsamples, tile=, mpp=, compression=)`."""
    return write_place_slide


@pytest.fixture(scope="session")
def true_colours() -> Callable[..., NDArray[np.float64]]:
    """The function `place_colours(slide_size, box, size)`: what a perfect reader returns for a `make_slide` slide."""
    return place_colours


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep decoded images out of the user's own cache."""
    monkeypatch.setenv("MSAMIL_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
