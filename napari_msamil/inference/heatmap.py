"""Patches and their values as an image with a place: one value per patch cell, NaN where nothing was looked at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import tifffile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_msamil.patches.grid import PatchTable

Values = Literal["rank", "relative", "attention"]
VALUES: tuple[str, ...] = get_args(Values)


@dataclass(frozen=True)
class Heatmap:
    """One scale's values on the grid of its patches.

    Attributes:
        array: (rows, columns) float32; NaN where no patch was looked at, which is not zero.
        downsample: level-0 px per cell, (x, y).
        origin: level-0 px of the top-left corner of cell (0, 0), (x, y).
        name: the scale as pathologists say it, such as "20x".
        mpp: µm/px of the scale.
        values: "rank" (share of the bag's patches with less attention, 0..1, all scales together), "relative"
            (attention times number of patches: 1 is an average patch) or "attention" (sums to 1 over the bag).
    """

    array: NDArray[np.float32]
    downsample: tuple[float, float]
    origin: tuple[float, float]
    name: str
    mpp: float
    values: Values

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the colour scale; see `limits_of`."""
        return limits_of(self.array, self.values)


def limits_of(array: NDArray[np.float32], values: Values) -> tuple[float, float]:
    """Fixed ends of the colour scale, the same for every slide and scale (except for raw attention)."""
    if values == "rank":
        return 0.0, 1.0
    if values == "relative":
        return 0.0, 4.0
    return 0.0, float(np.nanmax(array, initial=0.0)) or 1.0


def express(attention: NDArray[np.float32], values: Values) -> NDArray[np.float32]:
    """Attention (N,) over a bag, NaN for unread patches, in the asked unit (N,); see `Heatmap.values`.

    Equal attention gets equal rank (the middle of the tied places), so a uniform bag is flat in every unit.
    """
    out = np.full(attention.shape, np.nan, np.float32)
    seen = np.isfinite(attention)
    a = attention[seen].astype(np.float64)
    if values == "attention":
        out[seen] = a
    elif values == "relative":
        out[seen] = a * a.size
    elif values == "rank":
        ordered = np.sort(a)
        below, upto = np.searchsorted(ordered, a, "left"), np.searchsorted(ordered, a, "right")
        out[seen] = (below + upto) / (2 * max(1, a.size))
    else:
        raise ValueError(f"values={values!r}: choose one of {', '.join(VALUES)}")
    return out


def rasterize(table: PatchTable, numbers: NDArray[np.float32], scale: int, *, values: Values) -> Heatmap:
    """Put one number per patch on the grid of one scale.

    Args:
        table: patches of one slide, any scales.
        numbers: (N,) one per row of the table.
        scale: index into `table.scales`.
        values: what the numbers are.

    Returns:
        The smallest Heatmap that holds every patch of the scale; (1, 1) of NaN where the scale has none. Where patches
        overlap, a cell is one step of the grid and holds the mean of the patches over it.
    """
    rows = np.flatnonzero(table.scale == scale)
    width, height = table.pitch(scale)
    if rows.size == 0:
        cells, first = np.full((1, 1), np.nan, np.float32), np.zeros(2, np.int64)
    else:
        grid = table.grid[rows].astype(np.int64)
        first = grid.min(axis=0)
        columns, lines = grid.max(axis=0) - first + table.steps
        total, count = np.zeros((lines, columns)), np.zeros((lines, columns), np.int64)
        known = np.isfinite(numbers[rows])
        for right in range(table.steps):
            for down in range(table.steps):
                cell = grid[:, 1] - first[1] + down, grid[:, 0] - first[0] + right
                np.add.at(total, cell, np.where(known, numbers[rows], 0))
                np.add.at(count, cell, known)
        cells = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0).astype(np.float32)
    origin = (float(first[0] * width), float(first[1] * height))
    spec = table.scales[scale]
    return Heatmap(cells, (width, height), origin, spec.name, spec.mpp, values)


# matplotlib's "viridis" (CC0) at nine even places: as in the window, perceptual, and unlike the stains.
_RAMP = np.array(
    [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
     [170, 220, 50], [253, 231, 37]],
    np.float64,
)  # fmt: skip


def colour(array: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Values (H, W) to RGBA (H, W, 4) uint8 on the colour ramp; NaN is transparent."""
    low, high = limits
    t = np.clip((np.nan_to_num(array, nan=low) - low) / (high - low), 0, 1) * (len(_RAMP) - 1)
    places = np.arange(len(_RAMP))
    rgb = np.stack([np.interp(t, places, _RAMP[:, c]) for c in range(3)], axis=-1)
    alpha = np.where(np.isfinite(array), 255, 0)
    return np.dstack([rgb, alpha]).round().astype(np.uint8)


def write_heatmap(heatmap: Heatmap, mpp: tuple[float, float], path: Path, **about: Any) -> None:
    """Write a heatmap as float32 TIFF, a pixel per patch cell, with its µm per pixel and its place on the slide.

    Args:
        heatmap: NaN is "not looked at".
        mpp: µm per level-0 px of its slide, (x, y).
        path: the file.
        about: what else its description tells, as JSON types.
    """
    cell_um = [d * m for d, m in zip(heatmap.downsample, mpp, strict=True)]
    place = {
        "origin_level0_px": heatmap.origin,
        "downsample": heatmap.downsample,
        "mpp": cell_um,
        "scale": heatmap.name,
        "values": heatmap.values,
        **about,
    }
    tifffile.imwrite(
        path,
        np.ascontiguousarray(heatmap.array),
        photometric="minisblack",
        resolution=(1e4 / cell_um[0], 1e4 / cell_um[1]),
        resolutionunit="CENTIMETER",
        description=json.dumps(place),
        metadata=None,
    )


def read_heatmap(path: str | Path) -> tuple[NDArray[np.float32], dict[str, Any]] | None:
    """A heatmap that `write_heatmap` wrote; None, within milliseconds, for any other file and for a damaged one.

    Returns:
        (rows, columns) float32, NaN where nothing was looked at, and its place: "origin_level0_px" of its top-left
        corner, "downsample" (level-0 px per cell) and "mpp" (µm per cell), each (x, y); "scale", "values" and what it
        was written with besides.
    """
    try:
        with Path(path).open("rb") as file:
            if b'"origin_level0_px"' not in file.read(4096):
                return None
        with tifffile.TiffFile(path) as tif:
            place = json.loads(tif.pages.first.description)
            array = tif.pages.first.asarray()
        pairs = np.array([place[name] for name in ("origin_level0_px", "downsample", "mpp")], float)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, tifffile.TiffFileError):
        return None
    fits = pairs.shape == (3, 2) and np.isfinite(pairs).all() and (pairs[1:] > 0).all()
    return (array, place) if fits and array.ndim == 2 else None
