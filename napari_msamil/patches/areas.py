"""Exact areas of a mask inside the cells of a regular grid, through integral images with fractional edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK_COLUMNS = 1024  # columns integrated at once: bounds the float64 copy of a large mask


@dataclass(frozen=True, eq=False)
class Pieces:
    """A picture that is constant on the cells of a rectangular, not necessarily even, grid.

    Attributes:
        values: (rows, columns) bool.
        x: (columns + 1,) float64, cell borders in level-0 px, increasing.
        y: (rows + 1,) float64, the same downwards.
    """

    values: NDArray[np.bool_]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def pieces(mask: NDArray[np.bool_], slide_size: tuple[int, int]) -> Pieces:
    """Lay a mask over the whole slide: stretched, one factor per axis.

    Args:
        mask: (H, W) bool, rows downwards; H and W need not be those of the slide.
        slide_size: (width, height) in level-0 px.

    Returns:
        The mask with its pixel borders in level-0 px.

    Raises:
        ValueError: if the mask is not two-dimensional or is empty.
    """
    array = np.asarray(mask)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"a mask must be a non-empty (height, width) array, not one of shape {array.shape}")
    height, width = array.shape
    x = np.arange(width + 1, dtype=np.float64) * slide_size[0] / width
    y = np.arange(height + 1, dtype=np.float64) * slide_size[1] / height
    return Pieces(array.astype(bool, copy=False), x, y)


def intersect(first: Pieces, second: Pieces) -> Pieces:
    """Where both are true, exactly: the result lies on the borders of both, so masks of any two sizes combine."""
    x = np.union1d(first.x, second.x)
    y = np.union1d(first.y, second.y)
    middle_x, middle_y = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
    values = _at(first, middle_x, middle_y) & _at(second, middle_x, middle_y)
    return Pieces(values, x, y)


def cell_areas(picture: Pieces, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of the true part of a picture inside each cell of a grid.

    The integral of a piecewise constant picture is piecewise linear along each axis, so reading the running sum between
    two pixel borders by linear interpolation is exact, not an approximation.

    Args:
        picture: what to measure; it is false outside its own borders.
        x: (columns + 1,) vertical cell borders in level-0 px, increasing.
        y: (rows + 1,) horizontal cell borders in level-0 px, increasing.

    Returns:
        (rows, columns) float64, in level-0 px².
    """
    columns = picture.values.shape[1]
    strips = np.empty((len(y) - 1, columns), dtype=np.float64)
    for start in range(0, columns, _BLOCK_COLUMNS):
        block = picture.values[:, start : start + _BLOCK_COLUMNS].astype(np.float64)
        strips[:, start : start + _BLOCK_COLUMNS] = _integrate(block, picture.y, y)  # (rows, some columns)
    return _integrate(np.ascontiguousarray(strips.T), picture.x, x).T  # (rows, columns)


def box_areas(picture: Pieces, starts: NDArray[np.floating], ends: NDArray[np.floating]) -> NDArray[np.float64]:
    """Area of the true part of a picture inside each of some boxes, which may lie anywhere and overlap.

    Only the part of the picture below a box is looked at, so small boxes cost little.

    Args:
        picture: what to measure; it is false outside its own borders.
        starts, ends: (n, 2) top left and bottom right corners, (x, y) in level-0 px.

    Returns:
        (n,) float64, in level-0 px².
    """
    (left, right), (top, bottom) = (
        _covered(borders, starts[:, axis], ends[:, axis]) for axis, borders in enumerate((picture.x, picture.y))
    )
    areas = np.empty(len(starts))
    for k, box in enumerate(np.stack([starts, ends], axis=1).astype(np.float64)):
        columns, rows = slice(left[k], right[k]), slice(top[k], bottom[k])
        x, y = picture.x[left[k] : right[k] + 1], picture.y[top[k] : bottom[k] + 1]
        areas[k] = cell_areas(Pieces(picture.values[rows, columns], x, y), *box.T)[0, 0]
    return areas


def overlap_length(borders: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """Length of each interval between neighbouring borders that lies in 0..length: (n + 1,) → (n,)."""
    return np.diff(np.clip(borders, 0, length))


def nearest(borders: NDArray[np.float64], cuts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The border of a picture nearest to each cut inside it; cuts beyond its end stay where they are."""
    middle = (borders[1:] + borders[:-1]) / 2
    return np.where(cuts > borders[-1], cuts, borders[np.searchsorted(middle, cuts, side="right")])


def _covered(
    borders: NDArray[np.float64], starts: NDArray[np.floating], ends: NDArray[np.floating]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First and one after the last cell that each interval touches; at least one cell."""
    first = np.clip(np.searchsorted(borders, starts, side="right") - 1, 0, len(borders) - 2)
    after = np.clip(np.searchsorted(borders, ends, side="left"), first + 1, len(borders) - 1)
    return first, after


def _at(picture: Pieces, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    columns = np.clip(np.searchsorted(picture.x, x, side="right") - 1, 0, len(picture.x) - 2)
    rows = np.clip(np.searchsorted(picture.y, y, side="right") - 1, 0, len(picture.y) - 2)
    return picture.values[np.ix_(rows, columns)]


def _integrate(
    values: NDArray[np.float64], borders: NDArray[np.float64], cuts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Integrate along axis 0 between neighbouring cuts: (n, m) on (n + 1,) borders → (len(cuts) - 1, m)."""
    running = np.zeros((len(values) + 1, values.shape[1]), dtype=np.float64)
    np.cumsum(values * np.diff(borders)[:, None], axis=0, out=running[1:])
    inside = np.clip(cuts, borders[0], borders[-1])
    index = np.clip(np.searchsorted(borders, inside, side="right") - 1, 0, len(values) - 1)
    at_cut = running[index] + (inside - borders[index])[:, None] * values[index]
    return np.diff(at_cut, axis=0)
