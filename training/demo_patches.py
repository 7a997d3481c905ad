"""Patches of the demo model's slides, which lie in memory: tissue mask, table and selection as on a slide file."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_msamil.inference.candidates import candidate_table
from napari_msamil.models.card import Card
from napari_msamil.patches.grid import PatchTable
from napari_msamil.patches.tissue import tissue_mask

from .datasets.compose import GLASS, KIND_STEP_PX, ComposedSlide
from .datasets.ebhi_seg import TISSUES, Case, load_cell

WHITE = 255


def thumbnail(slide: ComposedSlide, px: int) -> NDArray[np.uint8]:
    """The whole slide stretched to (px, px, 3) uint8."""
    return np.asarray(Image.fromarray(slide.rgb).resize((px, px), Image.Resampling.BILINEAR))


def table_of(slide: ComposedSlide, card: Card, *, lesion: NDArray[np.bool_] | None = None) -> PatchTable:
    """All patches of a slide at the card's scales. ``lesion`` stretches over the slide; by default the true one."""
    height, width = slide.rgb.shape[:2]
    return candidate_table(
        (width, height),
        (slide.mpp, slide.mpp),
        card,
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


# How often each of TISSUES is drawn: adenocarcinoma about as often as its neighbours together, rare classes rarely.
_TISSUE_ODDS = np.array((0.06, 0.18, 0.21, 0.14, 0.38, 0.03))
_LEAST_TISSUE = 0.3


class FieldBank:
    """All fields of some cases in memory, whole and shrunken, and patches made of them in no time.

    A patch at f µm/px is a piece of a mosaic of fields shrunken f times, all of one case and one class, each flipped
    and turned by a multiple of 90 degrees.
    """

    def __init__(self, cases: Sequence[Case], *, factors: Sequence[int] = (1, 2, 4)) -> None:
        files = [(case.name, file) for case in cases for file in case.fields]
        whole = np.stack([load_cell(file).pixels for _, file in files])  # (n, 224, 224, 3)
        self._pixels = {f: whole if f == 1 else _shrink(whole, f) for f in factors}
        self._groups: dict[int, list[list[int]]] = {}  # tissue -> cases -> rows
        rows: dict[tuple[int, str], list[int]] = {}
        for row, (name, file) in enumerate(files):
            rows.setdefault((TISSUES.index(file.tissue), name), []).append(row)
        for (tissue, _), group in sorted(rows.items()):
            self._groups.setdefault(tissue, []).append(group)
        odds = np.array([_TISSUE_ODDS[k] * (k in self._groups) for k in range(len(TISSUES))])
        self._odds = odds / odds.sum()

    def patch(self, rng: np.random.Generator, factor: int, px: int) -> LabelledPatch:
        """A random patch of side ``px`` at ``factor`` µm/px."""
        tissue = int(rng.choice(len(TISSUES), p=self._odds))
        groups = self._groups[tissue]
        group = groups[rng.integers(len(groups))]
        fields = self._pixels[factor]
        side = fields.shape[1]
        if side >= px and rng.random() < 0.85:  # a piece of one field, no seams
            return LabelledPatch(_piece(_turn(fields[rng.choice(group)], rng), rng, px), _one_hot(tissue))
        across = -(-px // side) + 1
        mosaic = np.empty((across * side, across * side, 3), np.uint8)
        for y in range(across):
            for x in range(across):
                cell = _turn(fields[rng.choice(group)], rng)
                mosaic[y * side : (y + 1) * side, x * side : (x + 1) * side] = cell
        return LabelledPatch(_piece(mosaic, rng, px), _one_hot(tissue))


def _shrink(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Box averages of (n, H, W, 3)."""
    return np.stack([np.asarray(Image.fromarray(picture).reduce(factor)) for picture in pixels])


def _turn(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    turned = np.rot90(pixels, int(rng.integers(4)))
    return turned[:, ::-1] if rng.random() < 0.5 else turned


def _piece(pixels: NDArray[np.uint8], rng: np.random.Generator, px: int) -> NDArray[np.uint8]:
    y, x = (int(rng.integers(length - px + 1)) for length in pixels.shape[:2])
    return pixels[y : y + px, x : x + px]


def _one_hot(tissue: int) -> NDArray[np.float32]:
    shares = np.zeros(len(TISSUES), np.float32)
    shares[tissue] = 1
    return shares


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
