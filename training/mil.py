"""Stage "mil": features of all lesion patches once, then the aggregator alone on whole bags (MsaMIL-Net's stage 2)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from napari_msamil.inference.candidates import choose_patches
from napari_msamil.models.bag import Bag, load_bag, load_provenance, save_bag
from napari_msamil.models.model import Model
from napari_msamil.patches.grid import PatchTable

from .augment import Look, apply_look
from .datasets.compose import ComposedSlide
from .end_to_end import make_bag
from .loop import Plan, State, train
from .metrics import auc
from .patches import cut_patches, table_of, thumbnail


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


def digest(model: Model) -> str:
    """Hash of all that features depend on in a model: its card, and the weights of segmenter and extractor."""
    total = hashlib.sha256(model.card.to_json().encode())
    for module in (model.segmenter, model.extractor):
        for name, value in sorted(module.state_dict().items()):
            total.update(name.encode())
            total.update(value.cpu().numpy().tobytes())
    return total.hexdigest()


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


def train_aggregator(
    model: Model,
    bags: Sequence[tuple[Bag, int]],
    validation: Sequence[tuple[Bag, int]],
    *,
    plan: Plan,
    folder: Path,
    batch: int = 8,
    resume: bool = False,
) -> State:
    """Train the aggregator further on whole bags; the extractor is not touched.

    The classes take turns within a step, and a random part of each bag (half or more) is shown. The best weights by
    validation AUC stay in the model.
    """
    by_label = [[bag for bag, label in bags if label == k] for k in range(len(model.card.classes))]

    def step(number: int) -> float:
        model.aggregator.train()
        rng = np.random.default_rng([plan.seed, 51, number])
        losses = []
        for k in range(batch):
            label = k % len(by_label)
            bag = by_label[label][rng.integers(len(by_label[label]))]
            logits = model.aggregate(part_of(bag, rng), attention=False).logits
            losses.append(
                cross_entropy(logits[None], torch.tensor([label], device=logits.device), label_smoothing=0.05)
            )
        loss = torch.stack(losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def score() -> float:
        model.aggregator.eval()
        with torch.inference_mode():
            logits = torch.stack([model.aggregate(bag, attention=False).logits for bag, _ in validation])
        positive = np.array([label == 1 for _, label in validation])
        return auc(positive, logits.softmax(1)[:, 1].cpu().numpy())

    return train(plan, {"aggregator": model.aggregator}, step=step, score=score, folder=folder, resume=resume)


def part_of(bag: Bag, rng: np.random.Generator) -> Bag:
    """A random half to all of a bag's rows."""
    count = max(1, round(rng.uniform(0.5, 1.0) * len(bag)))
    return bag.take(torch.from_numpy(np.sort(rng.choice(len(bag), count, replace=False))))
