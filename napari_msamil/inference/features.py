"""What the networks say of a slide before the aggregator: its masks, and the features of its patches."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_msamil.errors import ReadError, UnreadablePatchesError
from napari_msamil.inference.candidates import on_square, read_thumbnail, thumbnail_size
from napari_msamil.inference.engine import (
    BatchRunner,
    Device,
    autocast,
    default_batch,
    in_parallel,
    parallel_batches,
)
from napari_msamil.inference.geojson import polygon_mask
from napari_msamil.models.bag import Bag
from napari_msamil.patches.reader import PatchBatch, read_patches
from napari_msamil.patches.tissue import tissue_mask
from napari_msamil.slide.damage import read_around_damage

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from napari_msamil.inference.geojson import Polygon
    from napari_msamil.models.card import Card
    from napari_msamil.models.model import Model
    from napari_msamil.patches.grid import PatchTable
    from napari_msamil.slide.slide import Slide


def find_masks(
    thumbnail: NDArray[np.uint8], background: tuple[int, int, int], model: Model, device: Device
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tissue and lesion (h, w) on a slide's thumbnail (h, w, 3); both stretch over the whole slide."""
    card = model.card
    tissue = tissue_mask(thumbnail)
    if not card.finds_lesion:
        return tissue, np.zeros_like(tissue)
    square = on_square(thumbnail, card.thumbnail_px, background)
    segment = BatchRunner(lambda pixels: model.segment(pixels.to(device.name)), 1)
    with torch.inference_mode(), autocast(device):
        probability = segment(torch.from_numpy(square[None]))[0].float().cpu().numpy()
    lesion = probability > card.thresholds.lesion_probability
    return tissue, lesion[: tissue.shape[0], : tissue.shape[1]]


def read_damaged_thumbnail(
    slide: Slide, card: Card, max_unread: float, region: tuple[Polygon, ...] | None = None
) -> tuple[NDArray[np.uint8], float]:
    """`read_thumbnail` of a slide parts of which may be unreadable: they are background.

    Args:
        slide: Open.
        card: Of the model.
        max_unread: Share of the slide, 0..1, that may be unreadable.
        region: Only there is it looked at; the share is of this region then.

    Returns:
        (h, w, 3) uint8 RGB, and the share that was not read, 0..1.

    Raises:
        UnreadablePatchesError: More cannot be read than is accepted.
        ReadError: Nothing can be read.
    """
    try:
        return read_thumbnail(slide, card), 0.0
    except ReadError as error:
        if slide.decodes_first:
            raise
        if not max_unread:
            raise UnreadablePatchesError(str(error)) from error
        reason = error
    thumbnail, unread = read_around_damage(slide, thumbnail_size(slide, card))
    inside = None if region is None else polygon_mask(region, (slide.width, slide.height), unread.shape)
    share = float(unread.mean() if inside is None or not inside.any() else unread[inside].mean())
    if share > max_unread:
        raise UnreadablePatchesError(
            f"{slide.name}: {100 * share:.1f} % of {'it' if region is None else 'the region'} cannot be read, more "
            f"than the accepted {100 * max_unread:g} %. {reason}"
        ) from reason
    return thumbnail, share


def extract_features(
    slide: Slide,
    model: Model,
    table: PatchTable,
    *,
    device: Device,
    batch_size: int | None = None,
    max_read_errors: float = 0.0,
) -> Generator[int, None, tuple[torch.Tensor, dict[int, str]]]:
    """Features of every patch of a table; closing the generator stops within a batch.

    Args:
        slide: Open, the one that the table is of.
        model: In evaluation mode, on the device.
        table: Where the patches are.
        device: Where to compute.
        batch_size: Patches per batch; None picks one for the device.
        max_read_errors: Share of patches, 0..1, that may be unreadable.

    Yields:
        Number of patches done, after every batch.

    Returns:
        Features (N, D) float32 on the CPU, and the reason of each row that could not be read (its features are 0).

    Raises:
        UnreadablePatchesError: More patches cannot be read than are accepted.
    """
    runner = BatchRunner(
        lambda pixels: model.embed(pixels.to(device.name)).float().cpu(),
        batch_size or default_batch(device, model.card.patch_px),
    )

    def embed(batch: PatchBatch) -> tuple[PatchBatch, torch.Tensor | None]:
        if not len(batch.rows):
            return batch, None
        with torch.inference_mode(), autocast(device):
            return batch, runner(torch.from_numpy(batch.pixels))

    features: torch.Tensor | None = None
    errors: dict[int, str] = {}
    done = 0
    with (
        closing(
            read_patches(
                slide,
                table,
                np.arange(len(table)),
                batch_size=runner.batch_size,
                workers=1 if device.name == "cpu" else 4,  # a GPU outruns one reading thread
                level0=model.card.read == "level0",
            )
        ) as batches,
        closing(in_parallel(embed, batches, parallel_batches(device))) as results,
    ):
        for batch, rows in results:
            errors.update(batch.failed)
            if rows is not None:
                if features is None:
                    features = torch.zeros(len(table), rows.shape[1])
                features[torch.from_numpy(batch.rows)] = rows
            done += len(batch.rows) + len(batch.failed)
            yield done
    if len(errors) > max_read_errors * len(table) or features is None:
        row, reason = next(iter(errors.items()))
        raise UnreadablePatchesError(
            f"{slide.name}: {len(errors)} of {len(table)} patches could not be read, the first at "
            f"x={table.coords[row, 0]}, y={table.coords[row, 1]} ({reason}). The file may be damaged: copy it again "
            "from its source."
        )
    return features, errors


def make_bag(features: torch.Tensor, table: PatchTable) -> Bag:
    """The bag of some patches: features (N, D), and where they lie."""
    return Bag(
        features=features,
        coords=torch.from_numpy(table.coords),
        scale=torch.from_numpy(table.scale.astype(np.int64)),
        slide_size=table.slide_size,
        footprint=torch.tensor([table.footprint(i) for i in range(len(table.scales))], dtype=torch.float64),
        parent=torch.from_numpy(table.parent),
    )
