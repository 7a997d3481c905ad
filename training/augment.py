"""Random changes of colour and sharpness that a slide may show and that change no diagnosis."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

DENSITY = (0.25, 1.15)
"""Range of the factor on optical density. Fields photographed through a microscope, as EBHI-Seg's, are two to three
times denser than what slide scanners make of the same stains, so most of the range lies below 1."""


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
    stain *= np.exp(strength * rng.uniform(*np.log(DENSITY))) * np.exp(strength * rng.normal(0, 0.10, (3, 1)))
    return Look(
        stain.astype(np.float32),
        light=1 + strength * float(rng.uniform(-0.08, 0.04)),
        blur=strength * float(rng.uniform(0, 1)) * float(rng.random() < 0.4),
        noise=strength * float(rng.uniform(0, 0.03)) * float(rng.random() < 0.5),
    )


def apply_looks(pixels: NDArray[np.uint8], looks: Sequence[Look], *, generator: torch.Generator) -> Tensor:
    """Pixels (B, H, W, 3) uint8, each picture under its own look: float32 in 0..1, same layout."""
    x = torch.from_numpy(pixels.astype(np.float32)) / 255
    stains = torch.from_numpy(np.stack([look.stain for look in looks]))
    light, blur, noise = (
        torch.tensor([getattr(look, name) for look in looks], dtype=torch.float32).view(-1, 1, 1, 1)
        for name in ("light", "blur", "noise")
    )
    density = -torch.log(x.clamp(min=1 / 255)).flatten(1, 2)  # (B, H * W, 3)
    x = light * torch.exp(-(density @ stains.transpose(1, 2)).clamp(min=0)).view(x.shape)
    soft = blur.flatten() > 0
    if soft.any():
        some = x[soft].permute(0, 3, 1, 2)
        smooth = avg_pool2d(some, 3, stride=1, padding=1, count_include_pad=False)
        x[soft] = (some + blur[soft] * (smooth - some)).permute(0, 2, 3, 1)
    x = x + noise * torch.randn(x.shape, generator=generator)
    return x.clamp(0, 1)


def apply_look(pixels: NDArray[np.uint8], look: Look, *, generator: torch.Generator) -> Tensor:
    """Pixels (B, H, W, 3) uint8 as they would look: float32 in 0..1, same layout."""
    x = torch.from_numpy(pixels.astype(np.float32)) / 255
    density = -torch.log(x.clamp(min=1 / 255))
    density = (density @ torch.from_numpy(look.stain).T).clamp(min=0)
    x = look.light * torch.exp(-density)
    if look.blur:
        channels_first = x.permute(0, 3, 1, 2)
        smooth = avg_pool2d(channels_first, 3, stride=1, padding=1, count_include_pad=False)
        x = torch.lerp(channels_first, smooth, look.blur).permute(0, 2, 3, 1)
    if look.noise:
        x = x + look.noise * torch.randn(x.shape, generator=generator)
    return x.clamp(0, 1)
