"""Which patches of a table a prediction reads: Algorithm 1's lesion test, and what to do when nothing passes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import SlideError
from napari_msamil.patches.grid import PatchTable

OnEmpty = Literal["topk", "tissue", "error"]


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows to read and, where the lesion test alone did not choose them, why.

    Attributes:
        rows: (n,) int64, increasing.
        fallback: None when the rows passed the lesion test; else one sentence for the user.
    """

    rows: NDArray[np.int64]
    fallback: str | None


def lesion_rows(table: PatchTable, threshold: float | Sequence[float]) -> NDArray[np.int64]:
    """Rows whose lesion fraction is strictly above the threshold ("exceeds 0.7", MsaMIL-Net Sec. 3.1).

    Args:
        table: all patches of the slide.
        threshold: 0..1, for all scales or one per scale, finest first.
    """
    # Compared as float32: an area that is 0.7 in exact arithmetic then does not pass by rounding noise.
    limits = np.broadcast_to(np.asarray(threshold, np.float32), len(table.scales))
    return np.flatnonzero(table.lesion > limits[table.scale]).astype(np.int64)


def tissue_rows(table: PatchTable, threshold: float) -> NDArray[np.int64]:
    """Rows of all scales whose tissue fraction reaches the threshold; a patch without any tissue never does."""
    return np.flatnonzero((table.tissue >= np.float32(threshold)) & (table.tissue > 0)).astype(np.int64)


def select_rows(
    table: PatchTable,
    *,
    lesion_threshold: float | Sequence[float],
    tissue_threshold: float,
    on_empty: OnEmpty = "topk",
    k: int = 16,
) -> Selection:
    """Choose the patches of a slide: each scale tested on its own.

    A patch passes when it is a tissue patch with enough lesion. The paper asks for lesion alone; a segmenter that errs
    on empty glass would then have it classified.

    When no patch passes, `on_empty` decides: "topk" takes the k patches on tissue with the most lesion and, where there
    is no lesion at all, all tissue patches; "tissue" takes those at once; "error" raises.

    Args:
        table: all patches of the slide.
        lesion_threshold: a patch passes with a lesion fraction strictly above it, 0..1; one for all scales or one each.
        tissue_threshold: tissue fraction from which a patch counts as tissue, 0..1.
        on_empty: what to do when no patch passes.
        k: how many patches "topk" takes, at most.

    Returns:
        The rows and the reason for a fallback; no rows where the slide has no tissue.

    Raises:
        SlideError: if no patch passes and `on_empty` is "error".
    """
    tissue = tissue_rows(table, tissue_threshold)
    rows = np.intersect1d(lesion_rows(table, lesion_threshold), tissue, assume_unique=True)
    if len(rows):
        return Selection(rows, None)
    limits = [lesion_threshold] if isinstance(lesion_threshold, (int, float)) else lesion_threshold
    missed = f"no tissue patch had a lesion fraction above {' / '.join(f'{limit:.2f}' for limit in limits)}"
    if on_empty == "error":
        raise SlideError(
            f"N{missed[1:]}, and the model says to stop then: its on_empty would have to be topk or tissue."
        )
    if not len(tissue):
        largest = float(table.tissue.max(initial=0.0))
        found = f"the largest tissue fraction was {largest:.2f}" if largest > 0 else "no tissue was found"
        return Selection(tissue, f"no patch had a tissue fraction of {tissue_threshold:.2f} or more: {found}")
    candidates = tissue[table.lesion[tissue] > 0]
    if on_empty == "topk" and len(candidates):
        order = np.argsort(-table.lesion[candidates], kind="stable")  # ties: the earlier row, the same on every machine
        taken = np.sort(candidates[order[:k]])
        return Selection(taken, f"{missed}: took the {len(taken)} with the largest")
    if not len(candidates):
        missed = "no tissue patch had any lesion"
    took = f"all {len(tissue)} tissue patches" if len(tissue) > 1 else "the only tissue patch"
    return Selection(tissue, f"{missed}: took {took}")
