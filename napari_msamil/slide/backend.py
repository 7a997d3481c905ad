"""What every reader of a file format offers, and what it says about a file when it opens it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
WHITE = (255, 255, 255)
"""Background of every slide: what glass without tissue looks like. Transparent pixels and missing tiles get it too."""


class Backend(Protocol):
    """An open file. Reads are safe from several threads; the file closes when the last reference goes."""

    def read(
        self, level: int, x: int, y: int, width: int, height: int, *, unreadable: Colour | None = None
    ) -> NDArray[np.uint8]:
        """Read a box that lies inside the file's level, in its own pixels.

        Args:
            level, x, y, width, height: the box.
            unreadable: what tiles that cannot be decoded are filled with; None: an exception is raised, as it always is
                by a reader that knows no tiles.

        Returns:
            (height, width, 3) uint8 RGB, writable and owned by the caller.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file says about itself.

    Attributes:
        backend: reader and its version, as in "tiffslide 3.0.1".
        sizes: (width, height) in pixels of each level stored in the file, finest first.
        downsamples: (x, y) level-0 pixels per level pixel where the reader knows them exactly; None: from the sizes.
        mpp: (x, y) µm per pixel as stated by the file, unchecked; None where it states none.
        properties: vendor, objective power and the like; nothing that could name a patient.
        warnings: what a careful user should know about this file.
        damage: what part of the file is missing, one sentence; empty where nothing shows without decoding it.
    """

    backend: str
    sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[tuple[float, float], ...] | None = None
    mpp: tuple[float | None, float | None] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    damage: str = ""


def empty_picture(path: Path, width: int, height: int) -> str:
    """The message for a file whose picture has no pixels."""
    return f"{path.name} holds an empty picture ({width} x {height} pixels); it is damaged, copy or export it again."
