"""Patches of slides in memory: the same tissue mask, table and selection as on a slide file."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_msamil.models.card import Card
from napari_msamil.patches.grid import PatchTable, Scale, build_table
from napari_msamil.patches.tissue import tissue_mask

from .datasets.compose import GLASS, KIND_STEP_PX, Cell, ComposedSlide, compose, turn_cell
from .datasets.ebhi_seg import FIELD_MPP, FIELD_PX, TISSUES, Case, load_cell

WHITE = 255


def thumbnail(slide: ComposedSlide, px: int) -> NDArray[np.uint8]:
    """The whole slide stretched to (px, px, 3) uint8."""
    return np.asarray(Image.fromarray(slide.rgb).resize((px, px), Image.Resampling.BILINEAR))


def table_of(slide: ComposedSlide, card: Card, *, lesion: NDArray[np.bool_] | None = None) -> PatchTable:
    """All patches of a slide at the card's scales. ``lesion`` stretches over the slide; by default the true one."""
    height, width = slide.rgb.shape[:2]
    return build_table(
        (width, height),
        (slide.mpp, slide.mpp),
        scales=tuple(Scale(mpp, card.patch_px) for mpp in card.scales_mpp),
        tissue=tissue_mask(thumbnail(slide, card.thumbnail_px)),
        lesion=slide.lesion if lesion is None else lesion,
    )


def cut_patches(slide: ComposedSlide, table: PatchTable, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Pixels (n, P, P, 3) uint8 of some rows, box-averaged to their scale; white beyond the slide.

    The slide's mpp must divide the scales', as it does where slides are composed for the purpose.
    """
    patches = [_cut(slide.rgb, table, int(row)) for row in rows]
    return np.stack(patches)


def _cut(rgb: NDArray[np.uint8], table: PatchTable, row: int) -> NDArray[np.uint8]:
    scale = int(table.scale[row])
    px = table.scales[scale].patch_px
    factor = round(table.scales[scale].mpp / table.slide_mpp[0])
    x, y = (int(v) for v in table.coords[row])
    part = rgb[y : y + px * factor, x : x + px * factor]
    if part.shape[:2] != (px * factor, px * factor):
        padded = np.full((px * factor, px * factor, 3), WHITE, np.uint8)
        padded[: part.shape[0], : part.shape[1]] = part
        part = padded
    return np.asarray(Image.fromarray(part).reduce(factor)) if factor > 1 else part


@dataclass(frozen=True)
class LabelledPatch:
    """One patch (P, P, 3) uint8 and the share (6,) float32 of each tissue class of EBHI-Seg in its tissue."""

    pixels: NDArray[np.uint8]
    shares: NDArray[np.float32]


_TISSUE_ODDS = (0.06, 0.18, 0.21, 0.14, 0.38, 0.03)  # in the order of TISSUES
_CELLS = {1.0: 2, 2.0: 2, 4.0: 5}  # columns and rows that surely cover a patch of 224 px
_LEAST_TISSUE = 0.3


def draw_patch(cases: Sequence[Case], rng: np.random.Generator, *, mpp: float, px: int = FIELD_PX) -> LabelledPatch:
    """A random patch at 1, 2 or 4 µm/px from one case, tissue on a third of it or more.

    Adenocarcinoma is drawn about as often as all benign and early lesions of its neighbourhood together, rare classes
    rarely. A coarse patch lies anywhere over the mosaic's seams and shows many fields; a fine one mostly shows one.
    """
    while True:
        tissue = int(rng.choice(len(TISSUES), p=_TISSUE_ODDS))
        holders = [case for case in cases if any(file.tissue == TISSUES[tissue] for file in case.fields)]
        if not holders:
            continue
        case = holders[rng.integers(len(holders))]
        if mpp == FIELD_MPP and rng.random() < 0.85:  # a whole field: no seams, and much cheaper to make
            file = rng.choice([f for f in case.fields if f.tissue == TISSUES[tissue]])  # type: ignore[arg-type]
            ratio = float(np.exp(rng.uniform(-0.2, 0.15)))
            shares = np.eye(len(TISSUES), dtype=np.float32)[tissue]
            return LabelledPatch(turn_cell(load_cell(file), rng, px, ratio), shares)
        cells: list[Cell] = [load_cell(f) for f in case.fields if f.tissue == TISSUES[tissue] or rng.random() < 0.3]
        slide = compose(
            cells,
            rng,
            grid=(_CELLS[mpp], _CELLS[mpp]),
            mpp=mpp,
            cell_mpp=FIELD_MPP * float(np.exp(rng.uniform(-0.2, 0.2))),
            fill=float(rng.uniform(0.7, 1.0)),
            use_all=False,
        )
        patch = crop(slide, rng, px)
        if patch is not None:
            return patch


def crop(slide: ComposedSlide, rng: np.random.Generator, px: int) -> LabelledPatch | None:
    """A patch cut from a slide at a random place, at the slide's own mpp; None if it holds too little tissue."""
    height, width = slide.rgb.shape[:2]
    x, y = int(rng.integers(max(width - px, 0) + 1)), int(rng.integers(max(height - px, 0) + 1))
    pixels = slide.rgb[y : y + px, x : x + px]
    if pixels.shape[:2] != (px, px):
        pixels = np.pad(pixels, ((0, px - pixels.shape[0]), (0, px - pixels.shape[1]), (0, 0)), constant_values=WHITE)
    first, last = slice(y // KIND_STEP_PX, (y + px) // KIND_STEP_PX), slice(x // KIND_STEP_PX, (x + px) // KIND_STEP_PX)
    kinds = slide.kinds[first, last]
    found = kinds[kinds != GLASS]
    if len(found) < _LEAST_TISSUE * (px / KIND_STEP_PX) ** 2:
        return None
    shares = np.bincount(found, minlength=len(TISSUES)) / len(found)
    return LabelledPatch(pixels, shares.astype(np.float32))
