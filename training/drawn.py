"""What a step of a training sees of a slide.

Processes that read patches import this, and so nothing that is imported here may import a network's library.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from napari_msamil.patches.grid import PatchTable
from napari_msamil.patches.select import tissue_rows

Thumbnail = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""A slide's picture (H, W, 3) uint8 and its lesion (H, W) bool."""


@dataclass(frozen=True)
class Drawn:
    """Some patches of a slide.

    Attributes:
        name: Of the slide, for messages.
        table: Where the patches are, (n) rows.
        target: Index of the slide's class; or 0 and 1 for each class, (C,), where they do not exclude each other.
        chunks: Gives the pixels in pieces (m, P, P, 3), as for `Model.normalise`, in the order of the rows; the same
            each time it is called.
    """

    name: str
    table: PatchTable
    target: int | NDArray[np.int64]
    chunks: Callable[[], Iterator[Tensor]]


def sample_rows(
    table: PatchTable, rng: np.random.Generator, count: int, *, tissue: float, quota: bool = False
) -> NDArray[np.int64]:
    """Rows of a random part of a slide's tissue patches, in the order of the table.

    Args:
        table: All patches of the slide.
        rng: Draws.
        count: Rows wanted; all come back where there are fewer.
        tissue: Least share of tissue in a patch; where none has so much, those with most count.
        quota: Draw about the same number of each scale, instead of evenly from all scales together.
    """
    rows = tissue_rows(table, tissue)
    if not len(rows) and len(table):
        rows = np.flatnonzero(table.tissue >= table.tissue.max())
    if not quota or count >= len(rows):
        return np.sort(rng.choice(rows, min(count, len(rows)), replace=False))
    waiting = [rng.permutation(rows[table.scale[rows] == scale]) for scale in np.unique(table.scale[rows])]
    places = np.concatenate([np.arange(len(group)) for group in waiting])  # the scales take turns, as far as they last
    return np.sort(np.concatenate(waiting)[np.argsort(places, kind="stable")[:count]])
