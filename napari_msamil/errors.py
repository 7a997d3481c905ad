"""The errors a caller can act on; every message names the file, the cause and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

_LISTED = 100  # faults written out; the rest are counted


class MsamilError(Exception):
    """Base of all errors raised on purpose by napari-msamil; its message is meant for the user."""


class SlideError(MsamilError):
    """The file cannot be opened as a slide, or is a kind of slide that is not supported."""


class MissingMppError(SlideError):
    """The slide does not say how large its pixels are, and nobody else did: ask for the mpp."""


class ReadError(SlideError):
    """Pixels of an open slide cannot be read or decoded."""


class UnreadablePatchesError(ReadError):
    """More patches of a slide cannot be read than the caller accepts; ask again and accept more, or give up."""


class ModelFileError(MsamilError):
    """The file is not a model of ours, or it was cut or changed."""


class NotFiniteError(MsamilError):
    """The networks give no finite number: features or weights overflow."""


class ResultExistsError(MsamilError):
    """A result is already there and the caller did not ask to replace it."""


class RegionError(MsamilError):
    """The region file or polygon cannot be used on this slide."""


class AnnotationError(MsamilError):
    """A slide's lesion mask or annotation file cannot be read, or does not belong to that slide."""


def listed(faults: Sequence[str], remedy: str = "") -> str:
    """Faults and their common remedy as they follow the colon of a message: one fault in its line, several below it."""
    if len(faults) == 1:
        return f" {faults[0]}. {remedy}".rstrip()
    more = [f"and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
    return "".join(f"\n- {fault}" for fault in [*faults[:_LISTED], *more]) + (f"\n{remedy}" if remedy else "")
