"""Random changes of colour and sharpness that a slide may show and that change no diagnosis."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d


@dataclass(frozen=True)
class Look:
    """How one slide is stained and scanned; drawn once per slide, so that linked scales look alike.

    Attributes:
        stain: (3, 3) float32 map of optical densities; rows are the new red, green and blue.
        light: Factor of the transmitted light.
        blur: Weight 0..1 of a 3x3 box blur.
        noise: Standard deviation of added noise, in 0..1 of the range.
    """

    stain: NDArray[np.float32]
    light: float
    blur: float
    noise: float


def random_look(rng: np.random.Generator, *, strength: float = 1.0) -> Look:
    """A random look; ``strength`` 0 leaves pixels as they are, up to rounding."""
    stain = np.eye(3) + strength * rng.normal(0, 0.09, (3, 3))
    stain *= np.exp(strength * rng.normal(0, 0.22)) * np.exp(strength * rng.normal(0, 0.10, (3, 1)))
    return Look(
        stain.astype(np.float32),
        light=1 + strength * float(rng.uniform(-0.08, 0.04)),
        blur=strength * float(rng.uniform(0, 1)) * float(rng.random() < 0.4),
        noise=strength * float(rng.uniform(0, 0.03)) * float(rng.random() < 0.5),
    )


def apply_look(pixels: NDArray[np.uint8], look: Look | Sequence[Look], *, generator: torch.Generator) -> Tensor:
    """Pixels (B, H, W, 3) uint8, all under one look or each under its own: float32 in 0..1, same layout."""
    looks = [look] * len(pixels) if isinstance(look, Look) else look
    seen = torch.empty(pixels.shape)
    for picture, one, out in zip(pixels, looks, seen, strict=True):  # one by one: what is made on the way stays small
        out.copy_(_under(torch.from_numpy(np.array(picture, order="C")), one, generator))
    return seen


def _under(picture: Tensor, look: Look, generator: torch.Generator) -> Tensor:
    """One picture (H, W, 3) uint8 under a look."""
    density = picture.float().div_(255).clamp_(min=1 / 255).log_().neg_().view(-1, 3)
    light = (density @ torch.from_numpy(look.stain.T.copy())).clamp_(min=0).neg_().exp_().mul_(look.light)
    x = light.view(picture.shape)
    if look.blur > 0:
        sharp = x.permute(2, 0, 1)[None]  # (1, 3, H, W)
        x = torch.lerp(sharp, avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False), look.blur)
        x = x[0].permute(1, 2, 0)
    if look.noise > 0:
        x = x + look.noise * torch.randn(x.shape, generator=generator)
    return x.clamp(0, 1)
