"""A picture of a whole slide in whose file parts cannot be decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import ReadError

if TYPE_CHECKING:
    from napari_msamil.slide.slide import Slide

SMALLEST = 1 / 32
"""Side of the smallest part that is tried by itself, as a share of the picture's longest."""


def read_around_damage(slide: Slide, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The whole slide as a picture of a wanted size, with the background where the file cannot be decoded.

    It is read at once; where that fails in quarters from the file's own levels, and the quarters that fail in quarters
    again. A flat image, which is decoded whole or not at all, is tried once.

    Args:
        slide: the open slide.
        size: (width, height) of the picture in pixels.

    Returns:
        (height, width, 3) uint8 RGB, and which of its pixels could not be read, (height, width) bool.

    Raises:
        ReadError: nothing can be read.
    """
    picture = np.empty((size[1], size[0], 3), np.uint8)
    picture[:] = slide.background
    unread = np.zeros((size[1], size[0]), np.bool_)
    scale = slide.width / size[0], slide.height / size[1]
    reasons: list[ReadError] = []

    def fill(left: int, top: int, right: int, bottom: int) -> None:
        place = slice(top, bottom), slice(left, right)
        width, height = right - left, bottom - top
        try:
            picture[place] = slide.read(
                left * scale[0],
                top * scale[1],
                width * scale[0],
                height * scale[1],
                size=(width, height),
                stored=bool(reasons),
            )
        except ReadError as error:
            reasons.append(error)
            if max(width, height) <= max(1, SMALLEST * max(size)) or slide.decodes_first:
                unread[place] = True
                return
            across, down = (left, left + (width + 1) // 2, right), (top, top + (height + 1) // 2, bottom)
            for row in (0, 1):
                for column in (0, 1):
                    if across[column] < across[column + 1] and down[row] < down[row + 1]:
                        fill(across[column], down[row], across[column + 1], down[row + 1])

    fill(0, 0, size[0], size[1])
    if unread.all():
        raise reasons[0]
    return picture, unread
