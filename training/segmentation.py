"""Stage "segment": UNet++ learns the lesion mask on thumbnails of composed and drawn slides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from napari_msamil.models.model import Model
from napari_msamil.slide.sample import sample_arrays

from .augment import apply_look, random_look
from .datasets.compose import Cell, ComposedSlide, compose
from .datasets.ebhi_seg import FIELD_MPP, FIELD_PX, TISSUES, Case, load_cell
from .datasets.synthetic import TRAINING_SEEDS, synthetic_slide
from .loop import Plan, State, train

THUMBNAIL_MPP = (1.4, 11.0)
"""µm per pixel of the thumbnails learned from: slides of 1.4 to 11 mm fill 1024 px."""
DRAWN = 24
"""Drawn slides kept in memory; every other one has a lesion."""


@dataclass(frozen=True)
class SegmentData:
    """What thumbnails are made from. ``px`` is their side: small ones cost less, and the net is
    convolutional, so it reads larger ones alike."""

    cases: Sequence[Case]
    px: int = 384
    drawn: int = DRAWN


@lru_cache(maxsize=64)
def drawn_slide(number: int) -> ComposedSlide:
    """Training slide ``number`` of the sample generator: even numbers with a lesion, odd ones without."""
    return synthetic_slide(TRAINING_SEEDS[number], lesion=number % 2 == 0)


@lru_cache(maxsize=1)
def _plain_cells() -> tuple[Cell, ...]:
    """Fields without glands or with drawn ones: stroma, fat and vessels, which EBHI-Seg's fields hardly show."""
    rng = np.random.default_rng(5)
    cells = []
    for seed in TRAINING_SEEDS[500:503]:
        rgb, _ = sample_arrays(seed, False, 2048)
        for _ in range(16):
            x, y = rng.integers(600, 2048 - 600 - FIELD_PX, 2)
            pixels = rgb[y : y + FIELD_PX, x : x + FIELD_PX]
            cells.append(Cell(pixels, np.zeros(pixels.shape[:2], bool), TISSUES.index("Normal")))
    return tuple(cells)


def match_colours(cells: Sequence[Cell], reference: Sequence[Cell]) -> list[Cell]:
    """Cells recoloured so that each channel has the reference's mean and spread: colour then tells nothing."""

    def statistics(group: Sequence[Cell]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sample = np.stack([cell.pixels[::8, ::8] for cell in group]).reshape(-1, 3).astype(float)
        return sample.mean(0), sample.std(0) + 1

    (mean, spread), (new_mean, new_spread) = statistics(cells), statistics(reference)
    levels = np.arange(256)[:, None]
    table = ((levels - mean) / spread * new_spread + new_mean).clip(0, 255).astype(np.uint8)
    channels = range(3)
    return [replace(c, pixels=np.stack([table[c.pixels[..., k], k] for k in channels], axis=-1)) for c in cells]


def draw_thumbnail(data: SegmentData, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A random thumbnail (px, px, 3) uint8 and its lesion (px, px) bool.

    A quarter are drawn slides. The others are composed of one to three cases, and at times of plain stroma and fat,
    region by region, at a random µm per pixel and a random aspect ratio, as stretching a slide to a square makes it.
    More than half lie on a larger glass.
    """
    share = float(rng.uniform(0.25, 0.9)) if rng.random() < 0.6 else 1.0
    picture, mask = (_from_drawn if rng.random() < 0.25 else _composed)(data, rng, round(share * data.px))
    return (picture, mask) if share == 1 else _on_glass(picture, mask, data.px, rng)


def _on_glass(
    picture: NDArray[np.uint8], mask: NDArray[np.bool_], px: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The picture somewhere on a larger glass, as most of a slide is empty."""
    corner = picture[0, 0].astype(float)
    colour = corner if corner.min() > 200 else np.full(3, 242.0)
    side = len(picture)
    x, y = (int(v) for v in rng.integers(0, px - side + 1, 2))
    whole = (colour + rng.normal(0, 1.5, (px, px, 1))).clip(0, 255).astype(np.uint8)
    lesion = np.zeros((px, px), bool)
    whole[y : y + side, x : x + side] = picture
    lesion[y : y + side, x : x + side] = mask
    return whole, lesion


def _composed(data: SegmentData, rng: np.random.Generator, px: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    mpp = float(np.exp(rng.uniform(*np.log(THUMBNAIL_MPP))))
    chosen = [data.cases[i] for i in rng.choice(len(data.cases), min(int(rng.integers(1, 4)), len(data.cases)), False)]
    specimens: list[Sequence[Cell]] = [[load_cell(file) for file in case.fields] for case in chosen]
    if rng.random() < 0.4:
        specimens.append(_plain_cells())
    if rng.random() < 0.7:
        specimens[1:] = [match_colours(cells, specimens[0]) for cells in specimens[1:]]
    aspect = float(np.exp(rng.uniform(-0.35, 0.35)))
    cells_across = px * mpp / (FIELD_PX * FIELD_MPP)
    grid = max(round(cells_across * aspect - 0.5), 2), max(round(cells_across / aspect - 0.5), 2)
    slide = compose(
        [cell for cells in specimens for cell in cells],
        rng,
        grid=grid,
        mpp=mpp,
        cell_mpp=FIELD_MPP * float(np.exp(rng.uniform(-0.25, 0.25))),
        fill=float(rng.uniform(0.3, 0.95)),
        groups=[number for number, cells in enumerate(specimens) for _ in cells],
        use_all=False,
    )
    return _square(slide.rgb, slide.lesion, px)


def _from_drawn(data: SegmentData, rng: np.random.Generator, px: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    slide = drawn_slide(int(rng.integers(data.drawn)))
    size = len(slide.rgb)
    side = int(rng.uniform(0.4, 1.0) * size)
    x, y = (int(v) for v in rng.integers(0, size - side + 1, 2))
    turned = np.rot90(slide.rgb[y : y + side, x : x + side], k := int(rng.integers(4)))
    return _square(turned, np.rot90(slide.lesion[y : y + side, x : x + side], k), px)


def _square(rgb: NDArray[np.uint8], lesion: NDArray[np.bool_], px: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Picture and mask stretched to a square, as a slide's thumbnail is."""
    picture = Image.fromarray(rgb).resize((px, px), Image.Resampling.BILINEAR)
    mask = Image.fromarray(lesion.astype(np.uint8) * 255).resize((px, px), Image.Resampling.BILINEAR)
    return np.asarray(picture), np.asarray(mask) > 127


def lesion_loss(logits: Tensor, lesion: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice loss, the latter over the whole batch so that empty masks have a gradient.

    Args:
        logits: (B, H, W).
        lesion: (B, H, W) in 0..1.
    """
    probability = logits.sigmoid()
    dice = (2 * (probability * lesion).sum() + 1) / (probability.sum() + lesion.sum() + 1)
    return binary_cross_entropy_with_logits(logits, lesion) + 1 - dice


def train_segmenter(
    model: Model,
    data: SegmentData,
    validation: SegmentData,
    *,
    plan: Plan,
    folder: Path,
    batch: int = 4,
    thumbnails: int = 40,
    resume: bool = False,
) -> State:
    """Train the segmenter; the weights with the best validation IoU stay in the model.

    Args:
        model: Its segmenter is trained.
        data: Training cases.
        validation: Other cases; ``thumbnails`` of them are drawn once, always the same.
        plan: The schedule.
        folder: For checkpoint and log.
        batch: Thumbnails a step.
        thumbnails: Validation thumbnails.
        resume: Continue from the checkpoint.
    """

    def step(number: int) -> float:
        model.segmenter.train()
        pictures, masks = [], []
        large = number % 3 == 0  # one of twice the side costs as much as four, and shows glass far from any tissue
        for k in range(max(batch // 4, 1) if large else batch):
            rng = np.random.default_rng([plan.seed, 11, number, k])
            picture, mask = draw_thumbnail(replace(data, px=2 * data.px) if large else data, rng)
            generator = torch.Generator().manual_seed(number * batch + k)
            pictures.append(apply_look(picture[None], random_look(rng), generator=generator))
            masks.append(torch.from_numpy(mask))
        x = model.normalise(torch.cat(pictures))
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = model.segmenter(x).float()
        loss = lesion_loss(logits, torch.stack(masks).float().to(logits.device))
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    drawn: list[tuple[NDArray[np.uint8], NDArray[np.bool_]]] = []

    def score() -> float:
        if not drawn:
            drawn.extend(
                draw_thumbnail(validation, np.random.default_rng([plan.seed, 12, k])) for k in range(thumbnails)
            )
        return intersection_over_union(model, drawn)

    return train(plan, {"segmenter": model.segmenter}, step=step, score=score, folder=folder, resume=resume)


def intersection_over_union(
    model: Model, thumbnails: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]], *, batch: int = 4
) -> float:
    """IoU of the predicted lesion over all pixels of all thumbnails together."""
    model.segmenter.eval()
    both = either = 0
    for start in range(0, len(thumbnails), batch):
        pictures, masks = zip(*thumbnails[start : start + batch], strict=True)
        with torch.inference_mode():
            found = model.segment(torch.from_numpy(np.stack(pictures))).cpu().numpy()
        predicted, true = found > model.card.thresholds.lesion_probability, np.stack(masks)
        both += int((predicted & true).sum())
        either += int((predicted | true).sum())
    return both / max(either, 1)
