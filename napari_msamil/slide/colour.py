"""Stored samples of any usual kind to uint8 RGB, by the same rules for every reader.

* More or fewer than 8 bits: the full range of the stored type is scaled to 0..255 and rounded (65535 becomes 255), so
  the same stored value always gives the same grey, whatever else is in the picture.
* Alpha is composited on the slide's background; dropping it would show what was meant to be invisible, often black.
* Orientation tags (TIFF and EXIF) are ignored: pixels stay where the file stores them, so that coordinates agree with
  OpenSlide, QuPath and annotation files made with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_msamil.slide.backend import WHITE

COLOUR_MODELS = ("rgb", "grey", "grey-inverted", "palette", "ycbcr")
ALPHAS = ("none", "straight", "premultiplied")


@dataclass(frozen=True, slots=True, eq=False)
class PixelFormat:
    """How stored samples become colours.

    Attributes:
        model: one of `COLOUR_MODELS`.
        bits: significant bits per sample, 1 to 16.
        alpha: one of `ALPHAS`; the alpha sample is the first one after the colour samples.
        palette: (n, 3) uint8 RGB for model "palette".
    """

    model: str = "rgb"
    bits: int = 8
    alpha: str = "none"
    palette: NDArray[np.uint8] | None = None

    def to_rgb(self, samples: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Convert (H, W, S) unsigned samples to (H, W, 3) uint8 RGB; where nothing is to do the input comes back."""
        if self.palette is not None:
            index = np.minimum(samples[..., 0].astype(np.intp), len(self.palette) - 1)
            return np.asarray(self.palette[index])  # (H, W, 3)
        eight = to_eight_bits(samples, self.bits)
        colours = 1 if self.model.startswith("grey") else 3
        rgb = eight[..., :colours]
        if self.model == "grey-inverted":
            rgb = np.bitwise_not(rgb)
        if self.model == "ycbcr":
            rgb = _ycbcr_to_rgb(rgb)
        if self.alpha != "none" and eight.shape[-1] > colours:
            rgb = _on_background(rgb, eight[..., colours : colours + 1], premultiplied=self.alpha == "premultiplied")
        if rgb.shape[-1] == 1:
            rgb = np.repeat(rgb, 3, axis=-1)  # (H, W, 1) -> (H, W, 3)
        return rgb


def to_eight_bits(samples: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """Scale unsigned samples of `bits` significant bits to 0..255, rounded; 8-bit input comes back as it is."""
    if bits == 8 and samples.dtype == np.uint8:
        return np.asarray(samples).view(np.uint8)
    top = (1 << bits) - 1
    wide = samples.astype(np.uint32)
    return ((wide * 255 + top // 2) // top).astype(np.uint8)


def orientation_warning(path: Path, orientation: int) -> str:
    """Say that a file's orientation tag was seen and not followed."""
    return f"{path.name} has orientation tag {orientation}; it is ignored, pixels are shown as stored."


def _on_background(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], *, premultiplied: bool) -> NDArray[np.uint8]:
    cover = alpha.astype(np.float32) / 255.0  # (H, W, 1)
    back = np.asarray(WHITE[: rgb.shape[-1]], np.float32)
    front = rgb.astype(np.float32) if premultiplied else rgb * cover
    return _rounded(front + back * (1.0 - cover))


def _ycbcr_to_rgb(ycbcr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Full-range ITU-R BT.601, as JPEG (JFIF 1.02) and OpenSlide use it."""
    y, cb, cr = (ycbcr[..., i].astype(np.float32) for i in range(3))
    red = y + 1.402 * (cr - 128.0)
    green = y - 0.344136 * (cb - 128.0) - 0.714136 * (cr - 128.0)
    blue = y + 1.772 * (cb - 128.0)
    return _rounded(np.stack((red, green, blue), axis=-1))


def _rounded(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded
