"""Which reader a file gets, and whether a file is a slide at all."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path

from napari_msamil.errors import SlideError
from napari_msamil.slide.backend import Backend, FileFacts
from napari_msamil.slide.flat import JPEG_MAGIC, PNG_MAGIC, check_size, flat_pyramid, open_flat
from napari_msamil.slide.openslide import open_openslide
from napari_msamil.slide.tiff import OtherReaderError, TiffBackend, open_tiff

logger = logging.getLogger(__name__)

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OPENSLIDE_SUFFIXES = {
    ".mrxs": "a MIRAX slide",
    ".vms": "a Hamamatsu VMS slide",
    ".vmu": "a Hamamatsu VMU slide",
}
TIFF_SUFFIXES = {".tif", ".tiff", ".svs", ".ndpi", ".scn", ".bif", ".svslide", ".btf", ".qptiff"}
SCANNER_SUFFIXES = {*OPENSLIDE_SUFFIXES, ".svs", ".ndpi", ".scn", ".bif", ".svslide", ".qptiff"}
"""Endings that only slides have; .tif, .dcm and the like may be anything."""
SLIDE_SUFFIXES = (*sorted(TIFF_SUFFIXES | set(OPENSLIDE_SUFFIXES)), ".dcm", ".jpeg", ".jpg", ".png")
"""Endings of whatever can be opened; a .dcm, .jpg or .png beside them may still be no slide."""

FORMATS = "SVS, NDPI, SCN, BIF, tiled TIFF, OME-TIFF, PNG and JPEG, and with OpenSlide MIRAX and DICOM"

SEGMENT_BYTES = 32 << 20
"""A tile or strip that decodes to more than this makes random access pointless."""

STRIPS_PX = 16 << 20
"""An image in strips larger than this is decoded once, like a PNG, instead of whole rows for each patch."""

DICOM_SLIDE = b"1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class of a whole-slide microscopy image; it stands in the first elements of the file, before the data."""

GENERIC_PX = 100_000_000
"""A one-level TIFF without a scanner's mark counts as a slide from this size on."""


def open_file(path: Path, uid: str) -> tuple[Backend, FileFacts]:
    """Open a file with the reader it needs.

    Args:
        path: the file.
        uid: identity of its content, for decoded copies of flat images.

    Raises:
        SlideError: no reader takes it; the message names the file, the cause and what to do.
    """
    head = _head(path)
    suffix = path.suffix.lower()
    if suffix in OPENSLIDE_SUFFIXES:  # a .mrxs file looks like a JPEG
        return open_openslide(path, why=f"is {OPENSLIDE_SUFFIXES[suffix]}")
    if head[:4] in TIFF_MAGICS:
        return _open_tiff(path, uid)
    if head.startswith(PNG_MAGIC) or head.startswith(JPEG_MAGIC):
        return open_flat(path, uid)
    if head[128:132] == b"DICM":
        return open_openslide(path, why="is a DICOM file")
    if suffix in TIFF_SUFFIXES:
        raise SlideError(
            f"{path.name} is no TIFF file, though its name ends in {suffix}; it is damaged, copy it again."
        )
    raise SlideError(f"{path.name} is of a kind that cannot be read; slides are {FORMATS}.")


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise SlideError(f"{path} is a folder, not a slide; give the file itself.")
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        cause = error.strerror or error
        raise SlideError(f"{path} cannot be opened ({cause}); check the path and your rights.") from error
    if not head:
        raise SlideError(f"{path.name} is empty; copy it again.")
    return head


def _open_tiff(path: Path, uid: str) -> tuple[Backend, FileFacts]:
    try:
        backend, facts = open_tiff(path)
    except OtherReaderError as refusal:
        if importlib.util.find_spec("openslide") is None:
            raise
        try:
            return open_openslide(path, why="cannot be read by tiffslide")
        except SlideError as second:
            logger.debug("%s", second)
            raise refusal from None  # the first reader knows more about the cause
    if not _decode_once(backend):
        return backend, facts
    width, height = facts.sizes[0]
    check_size(path, width, height)
    flat, sizes, downsamples = flat_pyramid(path, uid, (width, height), backend.read_all)
    facts = replace(facts, sizes=sizes, downsamples=downsamples)
    return flat, facts


def _decode_once(backend: TiffBackend) -> bool:
    parts = backend.levels[0]
    grid = parts[0][2]
    if len(parts) > 1:
        return False
    if grid.tile_width * grid.tile_height * 3 > SEGMENT_BYTES:
        return True
    strips = grid.tile_width == grid.width and not grid.tiled
    return strips and grid.width * grid.height > STRIPS_PX


def is_slide_file(path: str | Path) -> bool:
    """Say within milliseconds whether a viewer should take a file for a slide; silent, never raises.

    Files of slide scanners count; other TIFFs only if they are tiled RGB and either a pyramid or above 100 megapixels;
    DICOM only if it is whole-slide microscopy, not a CT. MIRAX, Hamamatsu VMS and DICOM need OpenSlide.
    PNG and JPEG never do, although `open_slide` takes them: most of them are no slides.
    """
    try:
        path = Path(path)
        if path.suffix.lower() in OPENSLIDE_SUFFIXES:
            return path.is_file() and importlib.util.find_spec("openslide") is not None
        head = _head(path)
        if head[:4] in TIFF_MAGICS:
            return _is_slide_tiff(path)
        return head[128:132] == b"DICM" and _is_slide_dicom(path)
    except Exception as error:  # asked about any file a user drops; whatever is wrong with it, it is no slide
        logger.debug("%s is not taken for a slide: %s", path, error)
        return False


def _is_slide_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        kind = file.read(2048)
    return DICOM_SLIDE in kind and importlib.util.find_spec("openslide") is not None


def _is_slide_tiff(path: Path) -> bool:
    import tifffile

    from napari_msamil.slide.tiff import quiet

    with quiet(path.name), tifffile.TiffFile(path) as tiff:
        if any((tiff.is_svs, tiff.is_ndpi, tiff.is_scn, tiff.is_bif, tiff.is_philips, tiff.is_qpi)):
            return 0 not in tiff.series[0].shape
        series = tiff.series[0]
        page = series.keyframe
        colour = series.axes == "YXS" and page.samplesperpixel in (3, 4) and page.dtype == "uint8"
        if not (colour and page.is_tiled):
            return False
        return len(series.levels) > 1 or page.imagewidth * page.imagelength > GENERIC_PX
