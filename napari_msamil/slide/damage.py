"""A picture of a whole slide in whose file parts cannot be decoded."""

from __future__ import annotations

from itertools import pairwise
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
    reason = ""

    def fill(left: int, top: int, right: int, bottom: int) -> None:
        if not read(left, top, right, bottom):
            width, height = right - left, bottom - top
            if max(width, height) <= max(1, SMALLEST * max(size)) or slide.decodes_first:
                unread[top:bottom, left:right] = True
                return
            across, down = (left, left + (width + 1) // 2, right), (top, top + (height + 1) // 2, bottom)
            for part_left, part_right in pairwise(across):
                for part_top, part_bottom in pairwise(down):
                    if part_left < part_right and part_top < part_bottom:
                        fill(part_left, part_top, part_right, part_bottom)

    def read(left: int, top: int, right: int, bottom: int) -> bool:
        nonlocal reason
        place = left * scale[0], top * scale[1], (right - left) * scale[0], (bottom - top) * scale[1]
        try:
            pixels = slide.read(*place, size=(right - left, bottom - top), stored=bool(reason))
        except ReadError as error:  # not kept: its traceback would hold a handle of the file open
            reason = reason or str(error)
            return False
        picture[top:bottom, left:right] = pixels
        return True

    fill(0, 0, size[0], size[1])
    if unread.all():
        raise ReadError(reason)
    return picture, unread
