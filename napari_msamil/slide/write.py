"""A picture in memory to a slide file: a tiled pyramid TIFF that every slide viewer opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_msamil.files import write_atomically

TILE_PX = 256
SMALLEST_PX = 512


def write_slide(path: str | Path, rgb: NDArray[np.uint8], *, mpp: float, software: str) -> Path:
    """Write a picture as a tiled pyramid TIFF (JPEG, 256-px tiles, halved levels down to about 512 px).

    The file appears under its name only when it is complete.

    Args:
        path: The file; its folder is made.
        rgb: (H, W, 3) uint8 RGB.
        mpp: µm per pixel, stated in the file.
        software: What made the picture, stated in the file.

    Returns:
        The path written.
    """
    path = Path(path)

    def write(file: IO[bytes]) -> None:
        with tifffile.TiffWriter(file) as tiff:
            for number, level in enumerate(_pyramid(rgb)):
                pixels_per_cm = 10_000 / mpp / 2**number
                tiff.write(
                    level,
                    photometric="rgb",
                    tile=(TILE_PX, TILE_PX),
                    compression="jpeg",
                    compressionargs={"level": 88, "outcolorspace": "ycbcr"},
                    subfiletype=int(number > 0),
                    resolution=(pixels_per_cm, pixels_per_cm),
                    resolutionunit="CENTIMETER",
                    metadata=None,
                    software=software,
                )

    write_atomically(path, write)
    return path


def _pyramid(rgb: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The picture and its halvings, down to about 512 px."""
    yield rgb
    while min(rgb.shape[:2]) >= 2 * SMALLEST_PX:
        rgb = np.asarray(Image.fromarray(rgb).reduce(2))
        yield rgb
