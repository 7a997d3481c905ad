"""Stage "end-to-end": extractor and aggregator learn together from slide labels, after a warm-up on labelled patches.

The warm-up is ours, not the paper's: MsaMIL-Net starts from ImageNet weights, which are not shipped here, and a network
with random weights gets no useful gradient from a few hundred slide labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, log_softmax

from napari_msamil.models.bag import Bag
from napari_msamil.models.model import Model
from napari_msamil.patches.grid import PatchTable
from napari_msamil.patches.select import tissue_rows

from .augment import apply_look, random_look
from .datasets.compose import ComposedSlide, compose
from .datasets.ebhi_seg import ADENOCARCINOMA, FIELD_MPP, TISSUES, Case, compose_case, load_cell
from .loop import Ahead, Plan, State, train
from .metrics import auc
from .patches import FieldBank, LabelledPatch, crop, cut_patches, table_of
from .segmentation import drawn_slide, match_colours
from .two_pass import freeze_batch_norm, two_pass_backward


@dataclass(frozen=True)
class SlideData:
    """Training slides: cases, how many drawn slides, and how large composed slides are (cells a side)."""

    cases: Sequence[Case]
    drawn: int
    cells_a_side: tuple[int, int] = (6, 9)


# ---- warm-up: patches


def _random_patch(
    bank: FieldBank, drawn: int, rng: np.random.Generator, scales: Sequence[float], px: int
) -> LabelledPatch:
    factor = round(float(rng.choice(scales, p=_scale_odds(len(scales)))))
    if drawn and rng.random() < 0.08:
        patch = crop(_drawn_at(int(rng.integers(drawn)), factor), rng, px)
        if patch is not None:
            return patch
    return bank.patch(rng, factor, px)


@lru_cache(maxsize=256)
def _drawn_at(number: int, factor: int) -> ComposedSlide:
    """A drawn training slide, shrunken."""
    slide = drawn_slide(number)
    rgb = np.asarray(Image.fromarray(slide.rgb).reduce(factor))
    return replace(slide, rgb=rgb, kinds=slide.kinds[::factor, ::factor])


def _scale_odds(scales: int) -> NDArray[np.float64]:
    odds = 0.6 ** np.arange(scales)
    result: NDArray[np.float64] = odds / odds.sum()
    return result


def train_on_patches(
    model: Model,
    data: SlideData,
    validation: SlideData,
    *,
    plan: Plan,
    folder: Path,
    batch: int = 48,
    crop_px: int = 128,
    scored: int = 240,
    resume: bool = False,
) -> State:
    """Warm-up: the extractor tells the six tissue classes of EBHI-Seg apart on patches of all scales.

    It sees pieces of ``crop_px`` at the patches' own scale: several times as many for the same work.

    A patch's target is the share of each class in its tissue. The best weights by validation AUC of
    adenocarcinoma against all other classes stay in the model; the classifiers are thrown away: one on the
    extractor's features, and one on the mean of the encoder's map, without which the encoder learns little until the
    Transformer above it has settled.
    """
    card = model.card
    torch.manual_seed(plan.seed)
    head = nn.Linear(card.extractor.out_dim, len(TISSUES)).to(model.device)
    shortcut = nn.Linear(int(model.extractor.encoder.num_features), len(TISSUES)).to(model.device)
    maps: list[Tensor] = []

    bank = FieldBank(data.cases)

    def draw(number: int) -> tuple[Tensor, Tensor]:
        rngs = [np.random.default_rng([plan.seed, 21, number, k]) for k in range(batch)]
        # One size for the batch, then all to crop_px: glands come up to a fifth smaller or larger.
        px = round(crop_px * float(np.exp(rngs[0].uniform(-0.2, 0.2))))
        patches = [_random_patch(bank, data.drawn, rng, card.scales_mpp, px) for rng in rngs]
        pixels = np.stack([patch.pixels for patch in patches])
        generator = torch.Generator().manual_seed(number)
        seen = apply_look(pixels, [random_look(rng, strength=0.8) for rng in rngs], generator=generator)
        sized = interpolate(seen.permute(0, 3, 1, 2), (crop_px, crop_px), mode="bilinear").permute(0, 2, 3, 1)
        return sized, torch.from_numpy(np.stack([patch.shares for patch in patches]))

    ahead = Ahead(draw)

    def step(number: int) -> float:
        model.extractor.train()
        pixels, target = ahead(number)
        hook = model.extractor.project_in.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        logits = head(model.extractor(model.normalise(pixels)))
        hook.remove()
        early = shortcut(maps.pop().mean(1))
        target = target.to(logits.device)
        losses = [-(target * log_softmax(guess, dim=1)).sum(1).mean() for guess in (logits, early)]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        return float(losses[0].detach())

    fixed: list[LabelledPatch] = []

    def score() -> float:
        if not fixed:
            held = FieldBank(validation.cases)
            rngs = (np.random.default_rng([plan.seed, 22, k]) for k in range(scored))
            fixed.extend(_random_patch(held, 0, rng, card.scales_mpp, card.patch_px) for rng in rngs)
        model.extractor.eval()
        with torch.inference_mode():
            chunks = torch.split(torch.from_numpy(np.stack([patch.pixels for patch in fixed])), 40)
            logits = torch.cat([head(model.embed(chunk)) for chunk in chunks])
        positive = np.stack([patch.shares for patch in fixed])[:, ADENOCARCINOMA] > 0.5
        return auc(positive, logits.softmax(1)[:, ADENOCARCINOMA].cpu().numpy())

    modules = {"extractor": model.extractor, "head": head, "shortcut": shortcut}
    return train(plan, modules, step=step, score=score, folder=folder, resume=resume)


# ---- end to end: slides


def make_bag(features: Tensor, table: PatchTable) -> Bag:
    """A bag of all rows of a table."""
    return Bag(
        features=features,
        coords=torch.from_numpy(table.coords),
        scale=torch.from_numpy(table.scale.astype(np.int64)),
        slide_size=table.slide_size,
    )


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


def sample_rows(table: PatchTable, rng: np.random.Generator, count: int, *, tissue: float) -> NDArray[np.int64]:
    """``count`` rows drawn evenly from all tissue patches of all scales, or all where there are fewer."""
    rows = tissue_rows(table, tissue)
    if not len(rows):
        rows = np.flatnonzero(table.tissue >= table.tissue.max())
    return np.sort(rng.choice(rows, min(count, len(rows)), replace=False))


def train_end_to_end(
    model: Model,
    data: SlideData,
    validation: Sequence[Case],
    *,
    plan: Plan,
    folder: Path,
    patches: int = 24,
    slides: int = 2,
    chunk: int = 12,
    extractor_rate: float = 0.3,
    resume: bool = False,
) -> State:
    """Stage 1 of MsaMIL-Net: each step draws patches of some slides and updates extractor and aggregator together.

    Memory holds one chunk of patches with its graph, however many there are (see two_pass.py); batch norm is frozen.
    The best weights by validation AUC over slides stay in the model.

    Args:
        model: Its extractor and aggregator are trained.
        data: Training slides; the classes take turns.
        validation: Other cases; one slide of each is composed once, always the same.
        plan: The schedule.
        folder: For checkpoint and log.
        patches: Patches a slide.
        slides: Slides whose gradients are added up before a step.
        chunk: Patches at a time.
        extractor_rate: Learning rate of the extractor as a factor of the aggregator's.
        resume: Continue from the checkpoint.
    """
    card = model.card

    def step(number: int) -> float:
        model.extractor.train()
        freeze_batch_norm(model.extractor)
        model.aggregator.train()
        total = 0.0
        for k in range(slides):
            rng = np.random.default_rng([plan.seed, 31, number, k])
            label = (number * slides + k) % 2
            slide = training_slide(data, rng, label=label)
            table = table_of(slide, card)
            table = table.take(sample_rows(table, rng, patches, tissue=card.thresholds.tissue_fraction))
            generator = torch.Generator().manual_seed(number * slides + k)
            pixels = apply_look(cut_patches(slide, table, np.arange(len(table))), random_look(rng), generator=generator)
            total += float(_backward(model, pixels, table, label, weight=1 / slides, chunk=chunk))
        return total

    held: list[tuple[Tensor, PatchTable, int]] = []

    def score() -> float:
        if not held:
            held.extend(_validation_bag(model, case, plan.seed, k, patches) for k, case in enumerate(validation))
        model.eval()
        guesses = []
        for pixels, table, _ in held:
            with torch.inference_mode():
                output = model.aggregate(make_bag(model.embed(pixels), table), attention=False)
            guesses.append(float(output.logits.softmax(-1)[1]))
        return auc(np.array([label == 1 for *_, label in held]), np.array(guesses))

    return train(
        plan,
        {"extractor": model.extractor, "aggregator": model.aggregator},
        step=step,
        score=score,
        folder=folder,
        resume=resume,
        rates={"extractor": extractor_rate},
    )


def _backward(model: Model, pixels: Tensor, table: PatchTable, label: int, *, weight: float, chunk: int) -> Tensor:
    target = torch.tensor([label], device=model.device)

    def head(features: Tensor) -> Tensor:
        output = model.aggregate(make_bag(features, table), attention=False)
        return weight * cross_entropy(output.logits[None], target, label_smoothing=0.05)

    chunks = [model.normalise(part) for part in torch.split(pixels, chunk)]
    return two_pass_backward(model.extractor, chunks, head)


def _validation_bag(model: Model, case: Case, seed: int, number: int, patches: int) -> tuple[Tensor, PatchTable, int]:
    rng = np.random.default_rng([seed, 32, number])
    slide = compose_case(case, rng, cells_a_side=(5, 7))
    table = table_of(slide, model.card)
    table = table.take(sample_rows(table, rng, patches, tissue=model.card.thresholds.tissue_fraction))
    return torch.from_numpy(cut_patches(slide, table, np.arange(len(table)))), table, case.label
