"""A picture of a whole slide in whose file parts cannot be decoded."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import ReadError
from napari_msamil.slide.resample import reduce_box

if TYPE_CHECKING:
    from napari_msamil.slide.slide import Slide

SMALLEST = 1 / 32
"""Side of the smallest part that is tried by itself, as a share of the picture's longest."""


def read_around_damage(slide: Slide, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The whole slide as a picture of a wanted size, with the background where the file cannot be decoded.

    It is read at once; where that fails in quarters from the file's own levels, and the quarters that fail in quarters
    again. The smallest ones that fail are made of finer levels, which may be whole there. A flat image, which is
    decoded whole or not at all, is tried once.

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
    times_finer = [int(min(scale) / max(level.downsample)) for level in slide.levels if level.stored]
    finer_levels = [] if slide.decodes_first else sorted(filter(None, times_finer))[1:]  # the first is read anyway

    def fill(left: int, top: int, right: int, bottom: int) -> None:
        if not read(left, top, right, bottom):
            width, height = right - left, bottom - top
            if max(width, height) <= max(1, SMALLEST * max(size)) or slide.decodes_first:
                unread[top:bottom, left:right] = not any(
                    read(left, top, right, bottom, finer) for finer in finer_levels
                )
                return
            across, down = (left, left + (width + 1) // 2, right), (top, top + (height + 1) // 2, bottom)
            for part_left, part_right in pairwise(across):
                for part_top, part_bottom in pairwise(down):
                    if part_left < part_right and part_top < part_bottom:
                        fill(part_left, part_top, part_right, part_bottom)

    def read(left: int, top: int, right: int, bottom: int, finer: int = 1) -> bool:
        """Read a part, from a level so many times finer than its pixels, and average."""
        nonlocal reason
        place = left * scale[0], top * scale[1], (right - left) * scale[0], (bottom - top) * scale[1]
        try:
            fine = slide.read(*place, size=(finer * (right - left), finer * (bottom - top)), stored=bool(reason))
        except ReadError as error:  # not kept: its traceback would hold a handle of the file open
            reason = reason or str(error)
            return False
        picture[top:bottom, left:right] = reduce_box(fine, finer)
        return True

    fill(0, 0, size[0], size[1])
    if unread.all():
        raise ReadError(reason)
    return picture, unread
