"""JPEG streams, decoded so that damage is an error: libjpeg fills it up, goes on and only warns."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

PADDING_BYTES = 64
"""Bytes too many before the end mark that are taken for padding; some writers leave a few."""

_HARMLESS = ("Unknown Adobe color transform", "Warning: unknown JFIF revision", "Corrupt JPEG data: bad ICC marker")
_PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_DAMAGE = ("corrupt", "premature end")


def decode_jpeg(data: Any, *, colours: str = "RGB", out: NDArray[Any] | None = None) -> NDArray[np.uint8]:
    """Decode a whole JPEG stream.

    Args:
        data: bytes, or what has them (a mapped file).
        colours: "RGB" or "GRAY".
        out: uint8 array of the picture's size to decode into; None makes one.

    Returns:
        (height, width, 3) uint8, or (height, width, 1) for "GRAY".

    Raises:
        ValueError: it is no such stream, or damaged or cut off; see `is_damage`.
    """
    import simplejpeg

    try:
        found: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace=colours, buffer=out, strict=True)
    except ValueError as error:  # strict: warnings are errors; libjpeg keeps the first
        if not _harmless(str(error)):
            raise
        found = simplejpeg.decode_jpeg(data, colorspace=colours, buffer=out, strict=False)
    return found


def is_damage(error: ValueError) -> bool:
    """Whether an error of `decode_jpeg` is about damage, and not about a kind of JPEG that it does not know."""
    return any(word in str(error).lower() for word in _DAMAGE)


def with_tables(tile: bytes, tables: bytes | None, *, ycbcr: bool) -> bytes:
    """A tile of a TIFF as a stream of its own: with the file's tables, and Adobe's mark that tells its colours.

    References:
        Adobe TIFF Technical Note 2 (1995) for the tables; ITU-T T.872 (2012), section 6.5.3 for the mark.
    """
    mark = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([ycbcr])
    return tile[:2] + mark + (tables[2:-2] if tables else b"") + tile[2:]


def _harmless(warning: str) -> bool:
    padding = _PADDING.match(warning)
    return warning.startswith(_HARMLESS) or (padding is not None and int(padding[1]) <= PADDING_BYTES)
