"""The patch table: one linked grid for all scales, from one decision on tissue and lesion.

All scales share the origin (0, 0). A patch has a grid index (i, j) = (column, row) at its scale; its parent one scale
coarser is (i // k, j // k), k being the whole-number ratio of the two footprints: links come from the index, never from
pixels. Trees are complete: a coarsest cell that touches tissue is kept with all its descendants, so that one table
serves every method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from napari_msamil.errors import SlideError
from napari_msamil.patches.areas import Pieces, cell_areas, intersect, nearest, overlap_length, pieces

MAX_ENLARGEMENT = 1.10
"""A slide may be coarser than the finest scale by this factor; beyond it, pixels would be invented."""

_TOUCH = 1e-9  # fraction of a footprint below which "touches tissue" is rounding noise
_NEARLY = 1e-6  # relative tolerance of a footprint ratio that should be whole


@dataclass(frozen=True, slots=True)
class Scale:
    """One magnification a model looks at.

    Attributes:
        mpp: µm per pixel of the patches.
        patch_px: side of a patch, in pixels of that mpp.
    """

    mpp: float
    patch_px: int

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that no patch can have."""
        if not (np.isfinite(self.mpp) and self.mpp > 0 and self.patch_px > 0):
            raise ValueError(f"a scale needs a positive mpp and patch size, not {self.mpp} µm/px, {self.patch_px} px")

    @property
    def name(self) -> str:
        """The magnification in the words of a microscope: 0.5 µm/px is "20x"."""
        return f"{10 / self.mpp:g}x"


@dataclass(frozen=True, eq=False)
class PatchTable:
    """One row per patch of one slide, at all scales.

    Attributes:
        slide_size: (width, height) in level-0 px.
        slide_mpp: (x, y) µm per level-0 px.
        scales: finest first.
        steps: steps of the grid per side of a patch; 1 where patches do not overlap.
        scale: (N,) int16, index into `scales`.
        coords: (N, 2) int64, top-left corner (x, y) in level-0 px; a patch may overhang the right and bottom edge.
        grid: (N, 2) int32, (column, row) index at the patch's own scale.
        parent: (N,) int64, row of the patch one scale coarser that contains this one; -1 where it is not in the table.
        tissue: (N,) float32, tissue area / footprint area, 0..1 (within the region, where one was given).
        lesion: (N,) float32, lesion area / footprint area, the same way.
        valid: (N,) float32, area inside the slide / footprint area.
    """

    slide_size: tuple[int, int]
    slide_mpp: tuple[float, float]
    scales: tuple[Scale, ...]
    steps: int
    scale: NDArray[np.int16]
    coords: NDArray[np.int64]
    grid: NDArray[np.int32]
    parent: NDArray[np.int64]
    tissue: NDArray[np.float32]
    lesion: NDArray[np.float32]
    valid: NDArray[np.float32]

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.scale)

    def footprint(self, scale: int) -> tuple[float, float]:
        """Width and height in level-0 px of the patches of one scale; not rounded."""
        side_um = self.scales[scale].patch_px * self.scales[scale].mpp
        return side_um / self.slide_mpp[0], side_um / self.slide_mpp[1]

    def pitch(self, scale: int) -> tuple[float, float]:
        """Distance (x, y) in level-0 px between neighbouring patches of a scale: the footprint unless they overlap."""
        width, height = self.footprint(scale)
        return width / self.steps, height / self.steps

    def rows_at(self, scale: int) -> NDArray[np.int64]:
        """Rows of one scale, in table order."""
        return np.flatnonzero(self.scale == scale).astype(np.int64)

    def take(self, rows: NDArray[np.integer]) -> PatchTable:
        """The table of some rows, in the order given; the parent of a row is -1 where it was not taken."""
        place = np.full(len(self) + 1, -1, dtype=np.int64)  # the last entry answers for parent -1
        place[rows] = np.arange(len(rows))
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        columns["parent"] = place[columns["parent"]]
        return PatchTable(self.slide_size, self.slide_mpp, self.scales, self.steps, **columns)


_COLUMNS = tuple(field.name for field in fields(PatchTable))[4:]


def build_table(
    slide_size: tuple[int, int],
    slide_mpp: tuple[float, float],
    *,
    scales: Sequence[Scale],
    tissue: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
    region: NDArray[np.bool_] | None = None,
    overlap: float = 0.0,
    whole_pixels: bool = False,
) -> PatchTable:
    """Lay one grid over a slide and keep whole trees: each coarsest cell that touches tissue, with all its descendants.

    Fractions are exact areas of the real-valued footprint; only `coords` are rounded, once. Rows: the coarsest scale
    first, by x, then y; each finer scale in the order of its parents, children by x, then y.

    Args:
        slide_size: (width, height) in level-0 px.
        slide_mpp: (x, y) µm per level-0 px.
        scales: finest first; each footprint a whole multiple of the one before.
        tissue: (H, W) bool, stretched over the whole slide.
        lesion: (H, W) bool, the same way; its shape may differ.
        region: (H, W) bool, the same way: outside it nothing counts as tissue or lesion. None: look everywhere.
        overlap: part of a patch's side that its neighbour covers too; 0, or as `steps_per_patch` allows. A patch's
            parent is still one that contains it whole.
        whole_pixels: round each footprint to whole mask pixels before its fractions are taken, as methods do that work
            on the mask; `coords` are not touched.

    Returns:
        The table; it has no rows where there is no tissue.

    Raises:
        SlideError: if the slide is more than 10 % coarser than the finest scale.
        ValueError: if scales, sizes or a mask make no sense.
    """
    scales = tuple(scales)
    cells = _cells(scales)
    steps = steps_per_patch(overlap)
    _check_slide(slide_size, slide_mpp, scales[0])
    masks = [pieces(mask, slide_size) for mask in (tissue, lesion)]
    if region is not None:
        masks = [intersect(mask, pieces(region, slide_size)) for mask in masks]
    layers: list[PatchTable] = []  # coarsest first
    seen = 0  # rows of all layers but the last
    for scale in reversed(range(len(scales))):
        x, y = _borders(slide_size, slide_mpp, scales[0], cells, scale, steps)
        fractions = _fractions(masks, x, y, slide_size, steps, whole_pixels)
        if not layers:
            grid = np.argwhere(fractions["tissue"] > _TOUCH)  # fractions are [column, row]: by x, then y
            parent = np.full(len(grid), -1, dtype=np.int64)
        else:
            above = layers[-1].grid.astype(np.int64)
            k = cells[scale + 1] // cells[scale]
            child = np.stack(np.divmod(np.arange(k * k), k), axis=1)  # (k², 2), by x, then y
            grid = (above[:, None, :] * k + child).reshape(-1, 2)  # (parents · k², 2)
            parent = np.repeat(np.arange(seen, seen + len(above), dtype=np.int64), k * k)
            seen += len(above)
        i, j = grid.T
        layers.append(
            PatchTable(
                slide_size,
                slide_mpp,
                scales,
                steps,
                scale=np.full(len(grid), scale, dtype=np.int16),
                coords=np.floor(np.stack([x[i], y[j]], axis=1) + 0.5).astype(np.int64),
                grid=grid.astype(np.int32),
                parent=parent,
                **{name: values[i, j].astype(np.float32) for name, values in fractions.items()},
            )
        )
    columns = {name: np.concatenate([getattr(layer, name) for layer in layers]) for name in _COLUMNS}
    return PatchTable(slide_size, slide_mpp, scales, steps, **columns)


def steps_per_patch(overlap: float) -> int:
    """How many steps of the grid one patch is wide: 1, 2, 3, 4 for an overlap of 0, 1/2, 2/3, 3/4.

    Raises:
        ValueError: if the step would not divide the patch.
    """
    steps = round(1 / (1 - overlap)) if 0 <= overlap < 1 else 0
    if steps < 1 or abs(overlap - (1 - 1 / steps)) > 1e-3:
        raise ValueError(f"an overlap of {overlap:g} does not divide a patch into steps: use 0, 0.5, 0.667 or 0.75")
    return steps


def footprint_ratios(scales: Sequence[Scale]) -> tuple[int, ...]:
    """Ratio k of each footprint to the next finer one: (len(scales) - 1,) whole numbers, finest first.

    Raises:
        ValueError: if there is no scale, they are not finest first, or a ratio is not whole.
    """
    if not scales:
        raise ValueError("a patch table needs at least one scale, none was given")
    ratios = []
    for fine, coarse in pairwise(scales):
        if not fine.mpp < coarse.mpp:
            raise ValueError(f"scales go from fine to coarse, but {fine.mpp:g} µm/px comes before {coarse.mpp:g} µm/px")
        ratio = coarse.mpp * coarse.patch_px / (fine.mpp * fine.patch_px)
        if round(ratio) < 1 or abs(ratio - round(ratio)) > _NEARLY * ratio:
            raise ValueError(
                f"a {coarse.patch_px}-px patch at {coarse.mpp:g} µm/px is {ratio:.4g} times as wide as a "
                f"{fine.patch_px}-px patch at {fine.mpp:g} µm/px; linked scales need a whole number: "
                "choose mpp values like 0.5, 1, 2"
            )
        ratios.append(round(ratio))
    return tuple(ratios)


def _cells(scales: Sequence[Scale]) -> list[int]:
    """How many finest cells lie along one side of a cell of each scale, e.g. [1, 2, 4]."""
    return [1, *np.cumprod(footprint_ratios(scales), dtype=np.int64).tolist()]


def _check_slide(slide_size: tuple[int, int], slide_mpp: tuple[float, float], finest: Scale) -> None:
    if min(slide_size) < 1 or not all(np.isfinite(mpp) and mpp > 0 for mpp in slide_mpp):
        raise ValueError(f"a slide needs a positive size and mpp, not {slide_size} px at {slide_mpp} µm/px")
    refuse_coarse(slide_mpp, finest.mpp)


def refuse_coarse(slide_mpp: tuple[float, float], finest_mpp: float) -> None:
    """Raise SlideError where a slide's pixels are wider than those of the finest patches, but for a little."""
    coarsest_mpp = max(slide_mpp)
    if coarsest_mpp > MAX_ENLARGEMENT * finest_mpp:
        raise SlideError(
            f"The slide's finest pixels are {coarsest_mpp:.4g} µm wide, but the model looks at {finest_mpp:g} µm/px: "
            f"its patches would be enlarged {coarsest_mpp / finest_mpp:.2f} times, more than the {MAX_ENLARGEMENT:.2f} "
            f"allowed. Use a scan of {MAX_ENLARGEMENT * finest_mpp:.4g} µm/px or finer, a model for coarser slides, or "
            "correct the mpp if it is wrong."
        )


def _borders(
    slide_size: tuple[int, int], slide_mpp: tuple[float, float], finest: Scale, cells: list[int], scale: int, steps: int
) -> list[NDArray[np.float64]]:
    """Vertical and horizontal step borders of one scale in level-0 px, to the end of the last coarsest patch."""
    borders = []
    for size, mpp in zip(slide_size, slide_mpp, strict=True):
        step = finest.patch_px * finest.mpp / mpp / steps
        # Enough coarsest patches for every scale's last patch to reach the end. A last one that would hold less than a
        # millionth of itself is a rounding error of the mpp, not slide.
        needed = max((size / (step * k) - steps + 1) * k / cells[-1] for k in cells)
        coarsest = max(1, int(np.ceil(needed - 1e-6)))
        count = coarsest * (cells[-1] // cells[scale]) + steps - 1
        index = np.arange(count + 1, dtype=np.float64) * cells[scale]
        borders.append(index * step)  # from the finest step: a parent and its first child get the very same corner
    return borders


def _fractions(
    masks: list[Pieces],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    slide_size: tuple[int, int],
    steps: int,
    whole_pixels: bool,
) -> dict[str, NDArray[np.float64]]:
    """Tissue, lesion and valid fraction of each patch, (columns, rows) each; x and y are the borders of the steps."""

    def share(part: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.outer(np.diff(x), np.diff(y))
        part, whole = (sliding_window_view(each, (steps, steps)).sum((2, 3)) for each in (part, whole))
        fraction: NDArray[np.float64] = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        return fraction.clip(0, 1)

    def covered(mask: Pieces) -> NDArray[np.float64]:
        at_x, at_y = (nearest(mask.x, x), nearest(mask.y, y)) if whole_pixels else (x, y)
        return share(cell_areas(mask, at_x, at_y).T, at_x, at_y)

    inside = np.outer(overlap_length(x, slide_size[0]), overlap_length(y, slide_size[1]))
    tissue, lesion = map(covered, masks)
    return {"tissue": tissue, "lesion": lesion, "valid": share(inside, x, y)}
