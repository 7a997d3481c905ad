"""What the demo model learns from: pictures composed of EBHI-Seg's fields, or drawn by the sample generator."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from napari_msamil.models.card import Card
from napari_msamil.slide.sample import sample_arrays

from .augment import apply_look, random_look
from .datasets.compose import Cell, ComposedSlide, compose
from .datasets.ebhi_seg import FIELD_MPP, FIELD_PX, TISSUES, Case, compose_case, load_cell
from .datasets.synthetic import TRAINING_SEEDS, synthetic_slide
from .demo_patches import cut_patches, table_of
from .drawn import Drawn, sample_rows

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
    return np.array(picture), np.asarray(mask) > 127  # a copy, since torch takes arrays that can be written to


@dataclass(frozen=True)
class SlideData:
    """Training slides: cases, how many drawn slides, and how large composed slides are (cells a side)."""

    cases: Sequence[Case]
    drawn: int
    cells_a_side: tuple[int, int] = (6, 9)


def training_slide(data: SlideData, rng: np.random.Generator, *, label: int) -> ComposedSlide:
    """A slide of the class asked for: a drawn one, one of a case, or a case's beside another's that is benign.

    Beside an adenocarcinoma the label stays what it is, and the aggregator must find it; so it must beside a benign
    case for "no adenocarcinoma". The second case is recoloured like the first, so that colour does not give it away.
    """
    if data.drawn and rng.random() < 0.12:
        return drawn_slide(2 * int(rng.integers(data.drawn // 2)) + 1 - label)
    mine = [case for case in data.cases if case.label == label]
    benign = [case for case in data.cases if case.label == 0]
    case = mine[rng.integers(len(mine))]
    if rng.random() < 0.5:
        return compose_case(case, rng, cells_a_side=data.cells_a_side)
    first = [load_cell(file) for file in case.fields]
    second = [load_cell(file) for file in benign[rng.integers(len(benign))].fields]
    low, high = data.cells_a_side
    return compose(
        first + match_colours(second, first),
        rng,
        grid=(int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1))),
        cell_mpp=FIELD_MPP * float(np.exp(rng.uniform(-0.18, 0.18))),
        fill=float(rng.uniform(0.55, 0.85)),
    )


def thumbnails_of_step(data: SegmentData, seed: int, step: int, *, batch: int) -> list[tuple[Tensor, Tensor]]:
    """The pictures (px, px, 3) float and lesions (px, px) bool that a step of the segmenter learns from."""
    large = step % 3 == 0  # one of twice the side costs as much as four, and shows glass far from any tissue
    drawn = []
    for k in range(max(batch // 4, 1) if large else batch):
        rng = np.random.default_rng([seed, 11, step, k])
        picture, mask = draw_thumbnail(replace(data, px=2 * data.px) if large else data, rng)
        generator = torch.Generator().manual_seed(step * batch + k)
        drawn.append((apply_look(picture[None], random_look(rng), generator=generator)[0], torch.from_numpy(mask)))
    return drawn


def draw_slide(
    data: SlideData, card: Card, seed: int, step: int, slot: int, *, slots: int, patches: int, chunk: int
) -> Drawn:
    """Patches of slide ``slot`` of a step, end to end; the classes take turns."""
    rng = np.random.default_rng([seed, 31, step, slot])
    label = (step * slots + slot) % 2
    slide = training_slide(data, rng, label=label)
    table = table_of(slide, card)
    table = table.take(sample_rows(table, rng, patches, tissue=card.thresholds.tissue_fraction))
    generator = torch.Generator().manual_seed(step * slots + slot)
    pixels = apply_look(cut_patches(slide, table, np.arange(len(table))), random_look(rng), generator=generator)
    return Drawn(f"composed slide {slot} of step {step}", table, label, lambda: iter(torch.split(pixels, chunk)))


def held_slide(case: Case, card: Card, seed: int, number: int, *, patches: int) -> Drawn:
    """Patches of one composed slide of a case that is not trained on, always the same."""
    rng = np.random.default_rng([seed, 32, number])
    slide = compose_case(case, rng, cells_a_side=(5, 7))
    table = table_of(slide, card)
    table = table.take(sample_rows(table, rng, patches, tissue=card.thresholds.tissue_fraction))
    pixels = torch.from_numpy(cut_patches(slide, table, np.arange(len(table))))
    return Drawn(case.name, table, case.label, lambda: iter((pixels,)))
