"""Flat PNG and JPEG images (and TIFFs in a few huge strips): decoded once into a memory-mapped pyramid.

Images up to `IN_MEMORY_PX` are simply decoded into memory. Larger ones go to a folder of plain arrays in the user's
cache (see store.py), decoded straight into the mapped file, so that memory use does not grow with the image, and the
next opening costs nothing. Decoding happens at the first read or in `prepare`, never in `open`.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import ReadError, SlideError
from napari_msamil.slide.backend import Colour, FileFacts, empty_picture
from napari_msamil.slide.colour import PixelFormat, orientation_warning
from napari_msamil.slide.jpeg import decode_jpeg
from napari_msamil.slide.resample import reduce_box
from napari_msamil.slide.store import PyramidStore, from_environment, new_array

MAX_PX = 10**10
"""Largest flat image taken, in pixels; the environment variable MSAMIL_FLAT_MAX_PX sets another ceiling."""

IN_MEMORY_PX = 16 << 20
COARSEST_PX = 2048
STEP = 4

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
LIBRARY = {"PNG": "imagecodecs", "JPEG": "simplejpeg"}
"""What decodes each kind. imagecodecs has libjpeg-turbo too, but drops what it warns of: a hole in the file, say."""

Fill = Callable[[NDArray[np.uint8]], None]
"""Writes level 0 into the (H, W, 3) uint8 array it is given."""


@dataclass(frozen=True, slots=True)
class FlatHeader:
    """What the first bytes of an image say: kind ("PNG" or "JPEG"), size in pixels, samples per pixel, bits."""

    kind: str
    width: int
    height: int
    samples: int
    bits: int
    orientation: int = 1


class FlatBackend:
    """A pyramid that is built at the first read (see `Backend`)."""

    def __init__(self, path: Path, uid: str, sizes: tuple[tuple[int, int], ...], fill: Fill) -> None:
        self._path = path
        self._uid = uid
        self._sizes = sizes
        self._fill = fill
        self._levels: list[NDArray[np.uint8]] | None = None
        self._lock = threading.Lock()

    def read(
        self, level: int, x: int, y: int, width: int, height: int, *, unreadable: Colour | None = None
    ) -> NDArray[np.uint8]:
        """Read a box inside a level; see `Backend.read`. The first read decodes the image."""
        return np.array(self._pyramid()[level][y : y + height, x : x + width])

    @property
    def prepared(self) -> bool:
        """Whether the image is decoded."""
        return self._levels is not None

    def prepare(self) -> None:
        """Decode the image now."""
        self._pyramid()

    def _pyramid(self) -> list[NDArray[np.uint8]]:
        if self._levels is None:
            with self._lock:
                if self._levels is None:
                    self._levels = self._build()
        return self._levels

    def _build(self) -> list[NDArray[np.uint8]]:
        width, height = self._sizes[0]
        if width * height > IN_MEMORY_PX:
            return PyramidStore().levels(self._path, self._uid, self._sizes, STEP, self._fill_or_fail)
        levels = [np.empty((height, width, 3), np.uint8)]
        self._fill_or_fail(levels[0])
        for _ in self._sizes[1:]:
            levels.append(reduce_box(levels[-1], STEP))
        return levels

    def _fill_or_fail(self, out: NDArray[np.uint8]) -> None:
        try:
            self._fill(out)
        except (SlideError, MemoryError):
            raise
        except Exception as error:  # codecs raise whatever they like
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # nothing is wrong with the image
                raise
            raise ReadError(
                f"{self._path.name} cannot be decoded ({error}); it is damaged or cut off: copy it again, or, where "
                "it looks right in another program, save it anew there."
            ) from error


def open_flat(path: Path, uid: str) -> tuple[FlatBackend, FileFacts]:
    """Open a PNG or JPEG image; its density tags are never taken for a pixel size.

    Raises:
        SlideError: no valid header, an unsupported kind, or larger than the ceiling.
        ReadError: a small image that cannot be decoded (a large one says so at its first read).
    """
    header = read_header(path)
    check_size(path, header.width, header.height)
    backend, sizes, downsamples = flat_pyramid(
        path, uid, (header.width, header.height), lambda out: decode(path, header, out)
    )
    if header.width * header.height <= IN_MEMORY_PX:
        backend.prepare()
    warnings: tuple[str, ...] = ()
    if header.orientation != 1:
        warnings = (orientation_warning(path, header.orientation),)
    properties = {"format": header.kind.lower()}
    library = LIBRARY[header.kind]
    reader = f"{library} {version(library)}"
    return backend, FileFacts(reader, sizes, downsamples, None, properties, warnings)


def flat_pyramid(
    path: Path, uid: str, size: tuple[int, int], fill: Fill
) -> tuple[FlatBackend, tuple[tuple[int, int], ...], tuple[tuple[float, float], ...]]:
    """Lay out a pyramid in steps of 4 down to 2048 px: the backend, level sizes and exact downsamples."""
    sizes = [size]
    while max(sizes[-1]) > COARSEST_PX:
        w, h = sizes[-1]
        sizes.append((-(-w // STEP), -(-h // STEP)))
    downsamples = tuple((float(STEP**i), float(STEP**i)) for i in range(len(sizes)))
    return FlatBackend(path, uid, tuple(sizes), fill), tuple(sizes), downsamples


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse what is empty or larger than the ceiling, before a byte of it is decoded."""
    if width < 1 or height < 1:
        raise SlideError(empty_picture(path, width, height))
    ceiling = int(from_environment("MSAMIL_FLAT_MAX_PX", MAX_PX))
    if width * height > ceiling:
        raise SlideError(
            f"{path.name} is {width} x {height} pixels large, more than the ceiling of {ceiling:.3g} pixels; "
            "convert it to a pyramidal TIFF or raise MSAMIL_FLAT_MAX_PX."
        )


def read_header(path: Path) -> FlatHeader:
    """Read size and kind of pixels from the first bytes of a PNG or JPEG file."""
    with path.open("rb") as file:
        magic = file.read(8)
        if magic == PNG_MAGIC:
            return _png_header(path, file)
        if magic[:3] == JPEG_MAGIC:
            file.seek(2)
            return _jpeg_header(path, file)
    raise SlideError(f"{path.name} is neither a PNG nor a JPEG image.")


def _png_header(path: Path, file: Any) -> FlatHeader:
    chunk = file.read(25)
    if len(chunk) < 25 or chunk[4:8] != b"IHDR":
        raise SlideError(f"{path.name} is a PNG image cut off in its header; copy it again.")
    width, height, bits, colour = struct.unpack(">IIBB", chunk[8:18])
    samples = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour)  # a palette is decoded to RGB
    if samples is None:
        raise SlideError(f"{path.name} is a PNG image of unknown colour type {colour}; copy it again.")
    while len(start := file.read(8)) == 8 and start[4:] != b"IDAT":
        if start[4:] == b"tRNS":  # one colour, or some of a palette, is transparent: decoded as an alpha sample
            samples = {1: 2, 3: 4}.get(samples, samples)
        file.seek(int.from_bytes(start[:4], "big") + 4, os.SEEK_CUR)
    return FlatHeader("PNG", width, height, samples, bits)


def _jpeg_header(path: Path, file: Any) -> FlatHeader:
    orientation = 1
    while True:
        marker = file.read(4)
        if len(marker) < 4 or marker[0] != 0xFF:
            raise SlideError(f"{path.name} is a JPEG image cut off or damaged in its header; copy it again.")
        if marker[1] == 0xFF:  # fill byte
            file.seek(-3, os.SEEK_CUR)
            continue
        kind, (length,) = marker[1], struct.unpack(">H", marker[2:])
        body = file.read(max(length - 2, 0))
        if kind == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(body[6:])
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            if len(body) < 6:
                raise SlideError(f"{path.name} is a JPEG image cut off in its header; copy it again.")
            bits, height, width, samples = struct.unpack(">BHHB", body[:6])
            if bits != 8:
                raise SlideError(f"{path.name} is a JPEG image with {bits} bits per sample; convert it to 8 bits.")
            if samples not in (1, 3):
                raise SlideError(f"{path.name} is a JPEG image with {samples} samples (CMYK); convert it to RGB.")
            return FlatHeader("JPEG", width, height, samples, bits, orientation)


def _exif_orientation(exif: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    (start,) = struct.unpack(order + "I", exif[4:8])
    entries = exif[start + 2 :]
    for i in range(0, len(entries) - 11, 12):
        tag, _, _, value = struct.unpack(order + "HHIH", entries[i : i + 10])
        if tag == 0x0112:
            return int(value) if 1 <= value <= 8 else 1
        if tag > 0x0112:
            break
    return 1


def decode(path: Path, header: FlatHeader, out: NDArray[np.uint8]) -> None:
    """Decode a whole image into `out` (H, W, 3) uint8, straight from the mapped file; raises where it is damaged."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if header.samples == 3 and header.bits <= 8:
            decode_as_stored(data, header, out)
        else:
            _decode_other(data, header, out)


def stored_shape(header: FlatHeader) -> tuple[int, ...]:
    """Shape of an image as it is stored: (H, W), or (H, W, S) for S > 1 samples."""
    return (header.height, header.width, header.samples)[: 2 if header.samples == 1 else 3]


def stored_dtype(header: FlatHeader) -> type[np.uint8 | np.uint16]:
    """Type of an image as it is stored; fewer than eight bits are spread to eight."""
    return np.uint16 if header.bits == 16 else np.uint8


def decode_as_stored(data: mmap.mmap, header: FlatHeader, out: NDArray[np.uint8 | np.uint16]) -> None:
    """Decode into an array of `stored_shape` and `stored_dtype`; raises where the file is damaged or cut off."""
    if header.kind == "JPEG":
        decode_jpeg(data, colours="GRAY" if header.samples == 1 else "RGB", out=out)
    else:
        import imagecodecs

        _check_png(data)
        imagecodecs.png_decode(data, out=out)


def _check_png(data: mmap.mmap) -> None:
    """Compare the checksums of all chunks that matter; the decoder would only print a warning."""
    start = len(PNG_MAGIC)
    with memoryview(data) as view:
        while start + 12 <= len(view):
            kind = bytes(view[start + 4 : start + 8])
            end = start + 8 + int.from_bytes(view[start : start + 4], "big")
            if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
                with view[start + 4 : end] as content:
                    if zlib.crc32(content) != int.from_bytes(view[end : end + 4], "big"):
                        raise ValueError(f"wrong checksum at byte {start}")
            start = end + 4


def _decode_other(data: mmap.mmap, header: FlatHeader, out: NDArray[np.uint8]) -> None:
    """Decode grey, alpha and 16-bit images: as stored first (where large in a file beside `out`'s), then by strips."""
    if header.width * header.height <= IN_MEMORY_PX:
        stored = np.empty(stored_shape(header), stored_dtype(header))
        decode_as_stored(data, header, stored)
        _convert(stored, out)
        return
    assert isinstance(out, np.memmap)  # so large an image is decoded into a file
    with tempfile.TemporaryDirectory(dir=Path(str(out.filename)).parent) as folder:
        stored = new_array(Path(folder, "stored.npy"), stored_shape(header), stored_dtype(header))
        decode_as_stored(data, header, stored)
        for y in range(0, header.height, 512):
            _convert(stored[y : y + 512], out[y : y + 512])
        del stored


def _convert(stored: NDArray[Any], out: NDArray[np.uint8]) -> None:
    samples = stored if stored.ndim == 3 else stored[..., np.newaxis]
    bits = 16 if samples.dtype == np.uint16 else 8
    model = "grey" if samples.shape[-1] < 3 else "rgb"
    alpha = "straight" if samples.shape[-1] in (2, 4) else "none"
    out[:] = PixelFormat(model, bits, alpha).to_rgb(samples)
