"""TIFF slides: tiffslide finds levels and metadata, the tiles below it are decoded directly (see tiles.py)."""

from __future__ import annotations

import logging
import threading
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import SlideError
from napari_msamil.slide.backend import WHITE, Colour, FileFacts, empty_picture
from napari_msamil.slide.cache import BlockCache
from napari_msamil.slide.colour import PixelFormat, orientation_warning
from napari_msamil.slide.jpeg import decode_jpeg, is_damage, with_tables
from napari_msamil.slide.openslide import INSTALL
from napari_msamil.slide.tiff_metadata import public_properties, stated_mpp
from napari_msamil.slide.tiles import ByteSource, Plane, TileGrid

logger = logging.getLogger(__name__)

JPEG = (6, 7)
JPEG_2000 = (33003, 33004, 33005, 34712)
APERIO_YCBCR = 33003
_GREY, _RGB, _YCBCR = 1, 2, 6  # the tag PhotometricInterpretation

TILE_CACHE_BYTES = 64 << 20
"""Decoded tiles kept per open slide: the 81 tiles under 512-px patches at three scales of one place take 16 MB."""

Part = tuple[int, int, TileGrid]
"""x, y in level pixels of a grid's top-left corner, and the grid; slides scanned in several pieces have several."""


class OtherReaderError(SlideError):
    """This reader cannot open the file, another one might."""


class TiffBackend:
    """An open TIFF slide (see `Backend`)."""

    def __init__(self, path: Path, levels: tuple[tuple[Part, ...], ...]) -> None:
        self.levels = levels
        self._source = ByteSource(path)
        self._cache = BlockCache(TILE_CACHE_BYTES)

    def read(
        self, level: int, x: int, y: int, width: int, height: int, *, unreadable: Colour | None = None
    ) -> NDArray[np.uint8]:
        """Read a box inside a level; see `Backend.read`."""
        out = np.empty((height, width, 3), np.uint8)
        parts = self.levels[level]
        if len(parts) > 1 or parts[0][:2] != (0, 0):
            out[:] = WHITE  # glass between the scanned pieces
        for number, (left, top, grid) in enumerate(parts):
            x0, y0 = max(x, left), max(y, top)
            x1, y1 = min(x + width, left + grid.width), min(y + height, top + grid.height)
            if x0 < x1 and y0 < y1:
                target = out[y0 - y : y1 - y, x0 - x : x1 - x]
                grid.read_into(target, x0 - left, y0 - top, self._source, self._cache, (level, number), unreadable)
        return out

    def read_all(self, out: NDArray[np.uint8]) -> None:
        """Decode level 0 into `out` (H, W, 3), each tile or strip once."""
        rows = max(1, self.levels[0][0][2].tile_height)
        rows *= max(1, 512 // rows)
        for y in range(0, out.shape[0], rows):
            strip = out[y : y + rows]
            strip[:] = self.read(0, 0, y, out.shape[1], strip.shape[0])


def open_tiff(path: Path) -> tuple[TiffBackend, FileFacts]:
    """Open a TIFF slide.

    Raises:
        OtherReaderError: damaged structure, or a compression that this reader does not know.
        SlideError: pixels of a kind that cannot become an RGB picture.
    """
    import tiffslide

    with quiet(path.name):
        try:
            slide = tiffslide.TiffSlide(path)
        except Exception as error:  # whatever a parser meets in a damaged file
            raise OtherReaderError(f"{path.name} is a damaged TIFF file ({_short(error)}); copy it again.") from error
        with slide:
            try:
                return _describe(path, slide, f"tiffslide {tiffslide.__version__}")
            except SlideError:
                raise
            except Exception as error:
                raise OtherReaderError(
                    f"{path.name} has a TIFF structure that cannot be read as a slide ({_short(error)}); "
                    "copy it again, or export it as a pyramidal OME-TIFF."
                ) from error


def _describe(path: Path, slide: Any, reader: str) -> tuple[TiffBackend, FileFacts]:
    tiff = slide.ts_tifffile
    if 0 in tiff.series[0].shape:
        page = tiff.series[0].keyframe
        raise SlideError(empty_picture(path, page.imagewidth, page.imagelength))
    properties = _properties(path, slide)
    composition = properties.get("tiffslide.series-composition")
    levels: list[tuple[Part, ...]]
    if composition:
        sizes, levels = _composed_levels(path, tiff, composition)
    else:
        series = tiff.series[properties.get("tiffslide.series-index", 0)]
        grids = [_grid(path, level) for level in series.levels]
        levels = [((0, 0, grid),) for grid in grids]
        sizes = [(grid.width, grid.height) for grid in grids]
    first = tiff.pages[0] if composition else series.keyframe
    facts = FileFacts(
        backend=reader,
        sizes=tuple(sizes),
        mpp=stated_mpp(tiff, properties, first),
        properties=public_properties(tiff, properties, first),
        warnings=(*_orientation_warning(path, first), *_other_pictures(path, tiff, first)),
        damage=_cut_off(path, levels),
    )
    backend = TiffBackend(path, tuple(levels))
    if first.compression in JPEG_2000:
        _try_first_tile(path, backend)
    return backend, facts


def _other_pictures(path: Path, tiff: Any, shown: Any) -> tuple[str, ...]:
    """That an OME-TIFF holds another picture that may be the slide: a second scan, or the scan behind a macro."""
    if not tiff.is_ome:
        return ()
    sizes = [(one.keyframe.imagewidth, one.keyframe.imagelength) for one in tiff.series if one.keyframe is not shown]
    large = [(w, h) for w, h in sizes if 2 * w * h >= shown.imagewidth * shown.imagelength]
    if not large:
        return ()
    found = f"{len(large)} more picture{'s' if len(large) > 1 else ''} ({large[0][0]} x {large[0][1]} px)"
    return (f"{path.name} holds {found}; only the first is used: export another one to a file of its own.",)


def _cut_off(path: Path, levels: list[tuple[Part, ...]]) -> str:
    """What is missing at the end of a file, or nothing; places of the tiles alone tell."""
    size = path.stat().st_size
    planes = [plane for parts in levels for _, _, grid in parts for plane in grid.planes]
    ends = np.concatenate([np.asarray(plane.offsets) + np.asarray(plane.counts) for plane in planes])
    gone = int((ends > size).sum())
    what = f"{gone} of its {len(ends)} tiles lie beyond its end at byte {size}"
    return f"{path.name} is cut off: {what}; copy it again." if gone else ""


def _properties(path: Path, slide: Any) -> Mapping[str, Any]:
    try:
        if not (slide.ts_tifffile.is_bif or slide.ts_tifffile.is_ndpi):
            return dict(slide.properties)
        with warnings.catch_warnings():  # tiffslide warns about all files of these two makers
            warnings.simplefilter("ignore")
            return dict(slide.properties)
    except NotImplementedError as error:  # samples stored apart, for one: tiffslide stops, the tiles can still be read
        logger.info("%s: tiffslide gives no metadata (%s)", path.name, error)
        return {}


def _try_first_tile(path: Path, opened: TiffBackend) -> None:
    """Fail at once where this decoder does not know the file's kind of JPEG 2000 (subsampled colours, for one)."""
    try:
        opened.read(0, 0, 0, 1, 1)
    except Exception as error:
        raise OtherReaderError(
            f"{path.name} has JPEG 2000 tiles that cannot be decoded ({_short(error)}); copy it again, or install "
            f"OpenSlide: {INSTALL}"
        ) from error


def _composed_levels(
    path: Path, tiff: Any, composition: Mapping[str, Any]
) -> tuple[list[tuple[int, int]], list[tuple[Part, ...]]]:
    """Levels of a slide scanned in several pieces (Leica SCN); positions as tiffslide found them."""
    sizes = [(int(shape[1]), int(shape[0])) for shape in composition["level_shapes"]]
    levels = []
    for number in range(len(sizes)):
        parts = []
        for series_index, offsets in composition["located_series"].items():
            grid = _grid(path, tiff.series[series_index].levels[number])
            parts.append((int(offsets[number][1]), int(offsets[number][0]), grid))
        levels.append(tuple(parts))
    return sizes, levels


def _grid(path: Path, level: Any) -> TileGrid:
    """Collect all that reading one level needs, so that the TIFF structure can be closed."""
    page = level.keyframe
    if level.ndim not in (2, 3) or "Z" in level.axes or "T" in level.axes:
        raise SlideError(f"{path.name} holds a stack with axes {level.axes}, not one picture; export one plane of it.")
    if len(level) != 1 and not (len(level) == 3 and "C" in level.axes):
        raise SlideError(f"{path.name} holds {len(level)} pages of axes {level.axes} in one picture; export it as RGB.")
    tiles_apart = page.planarconfig == 2 and page.samplesperpixel > 1
    width, height = page.imagewidth, page.imagelength
    tile_width, tile_height = page.tilewidth, page.tilelength
    if not page.is_tiled:
        tile_width, tile_height = width, min(page.rowsperstrip, height)
    count = -(-width // tile_width) * -(-height // tile_height)
    planes = []
    for item in level.pages:
        options = {"jpegtables": item.jpegtables, "jpegheader": page.jpegheader}
        for sample in range(page.samplesperpixel if tiles_apart else 1):
            part = slice(sample * count, (sample + 1) * count)
            offsets, counts = array("q", item.dataoffsets[part]), array("q", item.databytecounts[part])
            if len(offsets) < count or len(counts) < count:
                raise SlideError(f"{path.name} lists {len(offsets)} of {count} tiles; it is damaged, copy it again.")
            planes.append(Plane(offsets, counts, sample * count, options))
    _check_codec(path, page)
    jpeg = page.compression in JPEG and not page.jpegheader
    decode = _decode_jpeg2000 if page.compression in JPEG_2000 else page.decode
    if jpeg and not tiles_apart and (page.samplesperpixel, page.photometric) in ((3, _RGB), (3, _YCBCR), (1, _GREY)):
        decode = _JpegDecoder(page.samplesperpixel, page.photometric == _YCBCR, page.decode)
    return TileGrid(
        width,
        height,
        tile_width,
        tile_height,
        tuple(planes),
        decode,
        _pixel_format(path, page, len(planes)),
        jpeg,
        page.is_tiled,
    )


class _JpegDecoder:
    """Decodes a JPEG tile in the form of tifffile's decoders, which drop what libjpeg warns of: damage."""

    def __init__(self, samples: int, ycbcr: bool, other: Callable[..., Any]) -> None:
        self._colours = "RGB" if samples == 3 else "GRAY"
        self._ycbcr = ycbcr
        self._other = other  # for kinds of JPEG that ours does not know

    def __call__(self, data: bytes, index: int, *, jpegtables: bytes | None = None, **more: Any) -> Any:
        try:
            stream = with_tables(data, jpegtables, ycbcr=self._ycbcr)
            return (decode_jpeg(stream, colours=self._colours)[np.newaxis],)
        except ValueError as error:
            if is_damage(error):
                raise
            return self._other(data, index, jpegtables=jpegtables, **more)


def _decode_jpeg2000(data: bytes, index: int, **_: Any) -> tuple[NDArray[Any]]:
    """Decode a tile in the form of tifffile's decoders, which refuse subsampling tags beside JPEG 2000."""
    import imagecodecs

    samples = np.asarray(imagecodecs.jpeg2k_decode(data))
    return (samples.reshape(1, *samples.shape[:2], -1),)


def _check_codec(path: Path, page: Any) -> None:
    from tifffile import TIFF

    if page.compression == 1:
        return
    try:
        TIFF.DECOMPRESSORS[page.compression]
    except KeyError as error:
        method = getattr(page.compression, "name", page.compression)
        raise OtherReaderError(
            f"{path.name} is compressed by unknown method {method}; export it as a TIFF compressed with JPEG."
        ) from error


def _pixel_format(path: Path, page: Any, planes: int) -> PixelFormat:
    """Say how a page's samples become RGB, or refuse."""
    dtype = page.dtype
    if dtype is None or dtype.kind not in "ub" or dtype.itemsize > 2:
        raise SlideError(f"{path.name} stores {dtype} pixels; slides have 8 or 16 bits; convert it to 8-bit RGB.")
    samples = max(page.samplesperpixel, planes)
    photometric = getattr(page.photometric, "name", str(page.photometric))
    converts = page.compression in (*JPEG, *JPEG_2000, 34892, 33007)  # decoders that undo subsampling themselves
    if (photometric == "YCBCR" and converts) or (photometric == "MINISBLACK" and samples in (3, 4)):
        photometric = "RGB"  # the JPEG decoder converts; three grey planes are red, green and blue
    if page.compression == APERIO_YCBCR:
        photometric = "YCBCR"  # the codestream does not say so, and the tag may say otherwise
    models = {"RGB": "rgb", "MINISBLACK": "grey", "MINISWHITE": "grey-inverted", "PALETTE": "palette", "YCBCR": "ycbcr"}
    model = models.get(photometric)
    if model is None or (model in ("rgb", "ycbcr") and samples < 3) or (page.is_subsampled and not converts):
        raise SlideError(f"{path.name} stores {samples} samples of {photometric} colour; convert it to 8-bit RGB.")
    palette = None
    if model == "palette":
        palette = np.ascontiguousarray((page.colormap.T >> 8).astype(np.uint8))  # (3, n) uint16 -> (n, 3)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8
    return PixelFormat(model, bits, _alpha(page, samples - (1 if model.startswith("grey") else 3)), palette)


def _alpha(page: Any, extra: int) -> str:
    if extra < 1:
        return "none"
    kinds = tuple(page.extrasamples)
    if not kinds:
        return "straight" if extra == 1 else "none"
    return {0: "none", 1: "premultiplied", 2: "straight"}.get(int(kinds[0]), "none")


def _orientation_warning(path: Path, page: Any) -> tuple[str, ...]:
    orientation = page.tags.valueof(274, default=1)
    if int(orientation) == 1:
        return ()
    return (orientation_warning(path, int(orientation)),)


def _short(error: Exception) -> str:
    if isinstance(error, (LookupError, AttributeError, TypeError)):
        return "parts of it are missing or contradict one another"  # what the parser says is about its own code
    text = str(error).splitlines()[0][:160] if str(error) else ""
    return text or type(error).__name__


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Turn what other libraries say about a file into our log, so that a user sees one sentence or none."""
    here = threading.get_ident()

    def to_our_log(record: logging.LogRecord) -> bool:
        if record.thread != here:
            return True
        logger.debug("%s: %s", name, record.getMessage())
        return False

    theirs = logging.getLogger("tifffile")
    theirs.addFilter(to_our_log)
    try:
        yield
    finally:
        theirs.removeFilter(to_our_log)
