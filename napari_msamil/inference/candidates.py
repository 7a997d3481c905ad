"""From a slide to the patches that are looked at, as a model's card says: thumbnail, patch table, selection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.errors import RegionError
from napari_msamil.inference.geojson import Polygon, polygon_mask
from napari_msamil.patches.grid import PatchTable, Scale, build_table
from napari_msamil.patches.select import Selection, select_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_msamil.models.card import Card
    from napari_msamil.slide.slide import Slide

REGION_PX = 2048  # longest side of the mask that a drawn region is filled into


def thumbnail_size(slide: Slide, card: Card) -> tuple[int, int]:
    """(width, height) in pixels of the whole slide as the segmenter sees it, without what `on_square` adds."""
    px, longest = card.thumbnail_px, max(slide.width, slide.height)
    if card.resize == "letterbox":
        return max(1, round(px * slide.width / longest)), max(1, round(px * slide.height / longest))
    return px, px


def read_thumbnail(slide: Slide, card: Card) -> NDArray[np.uint8]:
    """The whole slide as a picture of `thumbnail_size`: (h, w, 3) uint8 RGB."""
    return slide.read(0, 0, slide.width, slide.height, size=thumbnail_size(slide, card))


def on_square(thumbnail: NDArray[np.uint8], px: int, background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A thumbnail in the top-left corner of a square (px, px, 3) of background; as it is where it fills the square."""
    height, width = thumbnail.shape[:2]
    if (height, width) == (px, px):
        return thumbnail
    square = np.full((px, px, 3), background, np.uint8)
    square[:height, :width] = thumbnail
    return square


def region_mask(region: tuple[Polygon, ...] | None, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Polygons in level-0 px as a mask (h, w) that stretches over a slide of `size` (width, height); None stays None.

    Raises:
        RegionError: no polygon touches the slide.
    """
    if region is None:
        return None
    shrink = min(1.0, REGION_PX / max(size))
    mask = polygon_mask(region, size, (max(1, round(size[1] * shrink)), max(1, round(size[0] * shrink))))
    if not mask.any():
        raise RegionError(
            f"No region lies on the slide of {size[0]} x {size[1]} px, or only ones too thin to be seen. Draw one on "
            "the tissue; in a file, its corners are counted in these pixels from the top left, x before y."
        )
    return mask


def candidate_table(
    size: tuple[int, int],
    mpp: tuple[float, float],
    card: Card,
    *,
    tissue: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
    region: NDArray[np.bool_] | None = None,
) -> PatchTable:
    """All patches of a slide that touch tissue (and the region), at the scales of a model.

    Args:
        size: (width, height) of the slide in level-0 px.
        mpp: (x, y) µm per level-0 px.
        card: of the model.
        tissue, lesion: (h, w) masks that stretch over the whole slide.
        region: another, from `region_mask`; None is the whole slide.
    """
    return build_table(
        size,
        mpp,
        scales=tuple(Scale(scale_mpp, card.patch_px) for scale_mpp in card.scales_mpp),
        tissue=tissue,
        lesion=lesion,
        region=region,
        overlap=card.overlap,
        whole_pixels=card.grid == "mask_round",
    )


def choose_patches(table: PatchTable, card: Card) -> Selection:
    """The patches that a model reads, by its card; that of a model without a segmenter is no fallback."""
    selection = select_rows(
        table,
        lesion_threshold=card.thresholds.lesion_fraction,
        tissue_threshold=card.thresholds.tissue_fraction,
        on_empty=card.on_empty.policy,
        k=card.on_empty.k,
    )
    by_design = not card.finds_lesion and selection.rows.size > 0
    return Selection(selection.rows, None) if by_design else selection
