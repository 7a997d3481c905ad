"""Stage "patches" of the demo model: the extractor learns the tissue classes of EBHI-Seg before any slide label.

It is ours, not the paper's: MsaMIL-Net starts from ImageNet weights, which are not shipped here, and a network with
random weights gets no useful gradient from a few hundred slide labels.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax

from napari_msamil.models.model import Model

from .augment import apply_look, random_look
from .datasets.compose import ComposedSlide
from .datasets.ebhi_seg import ADENOCARCINOMA, TISSUES
from .demo_data import SlideData, drawn_slide
from .demo_patches import FieldBank, LabelledPatch, crop
from .feed import Ahead
from .loop import Plan, State, train
from .metrics import auc
from .pretrain import classifiers, two_guesses


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


@dataclass(frozen=True)
class _Draws:
    """The patches of every step, each following from seed and step alone."""

    bank: FieldBank
    drawn: int
    scales_mpp: Sequence[float]
    batch: int
    crop_px: int
    seed: int

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Pixels (batch, crop_px, crop_px, 3) float in 0..1 and the share of each class in their tissue."""
        rngs = [np.random.default_rng([self.seed, 21, number, k]) for k in range(self.batch)]
        # One size for the batch, then all to crop_px: glands come up to a fifth smaller or larger.
        px = round(self.crop_px * float(np.exp(rngs[0].uniform(-0.2, 0.2))))
        patches = [_random_patch(self.bank, self.drawn, rng, self.scales_mpp, px) for rng in rngs]
        pixels = np.stack([patch.pixels for patch in patches])
        generator = torch.Generator().manual_seed(number)
        seen = apply_look(pixels, [random_look(rng, strength=0.8) for rng in rngs], generator=generator)
        side = (self.crop_px, self.crop_px)
        sized = interpolate(seen.permute(0, 3, 1, 2), side, mode="bilinear").permute(0, 2, 3, 1)
        return sized, torch.from_numpy(np.stack([patch.shares for patch in patches]))


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
    head, shortcut = classifiers(model, len(TISSUES))

    def step(number: int) -> float:
        model.extractor.train()
        pixels, target = ahead(number)
        guesses = two_guesses(model, pixels, head, shortcut)
        target = target.to(model.device)
        losses = [-(target * log_softmax(guess, dim=1)).sum(1).mean() for guess in guesses]
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
    draws = _Draws(FieldBank(data.cases), data.drawn, card.scales_mpp, batch=batch, crop_px=crop_px, seed=plan.seed)
    with closing(Ahead(draws, lambda number: range(number, plan.steps))) as ahead:
        return train(plan, modules, step=step, score=score, folder=folder, resume=resume)
