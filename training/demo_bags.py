"""Bags of the demo model's composed slides, and what its networks say of one: Algorithm 1 on a slide in memory."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_msamil.inference.candidates import choose_patches
from napari_msamil.inference.features import make_bag
from napari_msamil.models.bag import Bag, load_bag, load_provenance, save_bag
from napari_msamil.models.model import Model
from napari_msamil.patches.grid import PatchTable

from .augment import Look, apply_look
from .datasets.compose import ComposedSlide
from .demo_patches import cut_patches, table_of, thumbnail


@dataclass(frozen=True)
class Extracted:
    """What the networks say of one slide before the aggregator: predicted lesion (px, px) bool, patches, features."""

    lesion: NDArray[np.bool_]
    table: PatchTable
    features: Tensor
    fallback: str | None


def extract(
    model: Model, slide: ComposedSlide, *, look: Look | None = None, seed: int = 0, batch: int = 16
) -> Extracted:
    """Algorithm 1 up to the bag: thumbnail, lesion mask, patches with enough lesion or their fallback, features.

    Args:
        model: In evaluation mode.
        slide: A slide in memory.
        look: Changes the colours of thumbnail and patches alike.
        seed: Of the look's noise.
        batch: Patches at a time.
    """
    card = model.card
    generator = torch.Generator().manual_seed(seed)

    def seen(pixels: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(pixels.copy()) if look is None else apply_look(pixels, look, generator=generator)

    with torch.inference_mode():
        probability = model.segment(seen(thumbnail(slide, card.thumbnail_px)[None]))[0].cpu().numpy()
        lesion: NDArray[np.bool_] = probability > card.thresholds.lesion_probability
        table = table_of(slide, card, lesion=lesion)
        selection = choose_patches(table, card)
        table = table.take(selection.rows)
        parts = np.array_split(np.arange(len(table)), max(-(-len(table) // batch), 1))
        features = torch.cat([model.embed(seen(cut_patches(slide, table, rows))) for rows in parts]).cpu()
    return Extracted(lesion, table, features.clone(), selection.fallback)


def bag_of(
    model: Model, slide: ComposedSlide, file: Path, *, digest: str, look: Look | None = None, seed: int = 0
) -> Bag:
    """The slide's bag: from ``file`` if the same model (by its `digest`), pixels and look made it, else made anew."""
    appearance = [] if look is None else [look.stain.tolist(), look.light, look.blur, look.noise, seed]
    pixels = hashlib.sha256(slide.rgb.tobytes()).hexdigest()
    made_of = {"model": digest, "pixels": pixels, "mpp": slide.mpp, "look": appearance}
    if not (file.exists() and load_provenance(file) == made_of):
        file.parent.mkdir(parents=True, exist_ok=True)
        found = extract(model, slide, look=look, seed=seed)
        save_bag(make_bag(found.features, found.table), file, provenance=made_of)
    return load_bag(file)
