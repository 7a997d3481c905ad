"""Lesion masks kept as pictures: read by blocks and averaged to the size wanted, however large the file is.

Lesion is whatever is not zero: any label of a napari labels image, any colour of a painted mask. Where the file is JPEG
inside, whose zeros are not exact, it is what is brighter than half. Transparent pixels are no lesion. In a TIFF it is
the stored numbers that count, also where zero is to be shown white: ImageJ and tifffile store bilevel masks so.
"""

import logging
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import AnnotationError, MsamilError
from napari_msamil.slide.colour import orientation_warning
from napari_msamil.slide.flat import check_size, decode_as_stored, read_header, stored_dtype, stored_shape
from napari_msamil.slide.tiff import quiet

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
PROPORTION_TOLERANCE = 0.02
"""By how much the ratio of a mask's sides may differ from the slide's."""

_log = logging.getLogger(__name__)
Judge = Callable[[NDArray[Any]], NDArray[np.bool_]]
"""Says which pixels are lesion: (H, W, S) samples of one kind in, (H, W) bool out; S counts no alpha sample."""

_LIKE_TISSUE = 0.1  # share of pixels with a colour of their own, neither dark nor bright, from which a mask is doubted
_SAMPLED = 4096  # pixels of a block that are looked at for it
_IN_MEMORY_BYTES = 256 << 20  # a larger picture is decoded into a temporary file
_STRIP_PX = 4 << 20
_LOSSY_TIFF = (6, 7, 33003, 33004, 33005, 34712, 34892)  # JPEG and JPEG 2000


@dataclass(frozen=True)
class _Block:
    """A piece of the mask: where it begins, in mask px, and its lesion (h, w) bool."""

    left: int
    top: int
    lesion: NDArray[np.bool_]
    like_tissue: bool = False


def like_tissue(samples: NDArray[Any]) -> bool:
    """Whether many pixels of a colour picture, (H, W, S) uint8, have colours of their own as photographs have."""
    if samples.shape[-1] < 3 or samples.dtype != np.uint8:
        return False
    pixels = samples[..., :3].reshape(-1, 3)
    pixels = pixels[:: max(1, len(pixels) // _SAMPLED)]
    brightest = pixels.max(axis=1)
    between = pixels[(brightest > 48) & (brightest < 224)]
    return len(np.unique(between, axis=0)) > _LIKE_TISSUE * max(len(pixels), _SAMPLED)


def not_zero(samples: NDArray[Any]) -> NDArray[np.bool_]:
    """Any label, any colour."""
    return np.asarray((samples != 0).any(axis=-1), np.bool_)


def brighter_than_half(samples: NDArray[Any]) -> NDArray[np.bool_]:
    """The same for 8-bit pictures whose zeros are not exact."""
    return np.asarray((samples > 127).any(axis=-1), np.bool_)


def read_mask(
    path: Path, slide_size: tuple[int, int] | None, shape: tuple[int, int], *, judge: Judge | None = None
) -> NDArray[np.bool_]:
    """Read a mask picture: a pixel of the result is lesion where more than half of its area is.

    A PNG or JPEG is decoded once, a large one into a temporary file; of a TIFF the coarsest level is read that still
    is as fine as the result, tile by tile.

    Args:
        path: PNG, JPEG or TIFF of any size; TIFFs may be tiled and pyramids.
        slide_size: (width, height) of the slide in level-0 px, whose proportions the mask must have; None: any.
        shape: (h, w) of the result, stretched over the whole slide.
        judge: Which pixels are lesion; by default those that are not zero.

    Raises:
        AnnotationError: It is no picture of these kinds, is damaged or cut off, or has other proportions.
    """
    try:
        tiff = path.suffix.lower() in (".tif", ".tiff")
        with _tiff_blocks(path, shape, judge) if tiff else _flat_blocks(path, judge) as (size, blocks):
            if slide_size is not None:
                _check_proportions(path, size, slide_size)
            return _area_sampled(path, size, blocks, shape)
    except AnnotationError:
        raise
    except MsamilError as error:
        raise AnnotationError(f"The lesion mask {path} cannot be read: {error}") from error
    except OSError as error:
        raise AnnotationError(
            f"The lesion mask {path} cannot be opened ({error.strerror or error}); check the path and your rights."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # codecs raise whatever they like
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise AnnotationError(
            f"The lesion mask {path} cannot be decoded ({cause}); it is damaged or cut off, copy it again."
        ) from error


def _check_proportions(path: Path, size: tuple[int, int], slide_size: tuple[int, int]) -> None:
    ratio = (size[0] * slide_size[1]) / (size[1] * slide_size[0])
    if max(ratio, 1 / ratio) > 1 + PROPORTION_TOLERANCE:
        raise AnnotationError(
            f"The lesion mask {path} is {size[0]} x {size[1]} px, its slide {slide_size[0]} x {slide_size[1]} px: "
            "their proportions differ by more than 2 %. Give the mask of this slide, covering all of it."
        )


def _area_sampled(
    path: Path, size: tuple[int, int], blocks: Iterator[_Block], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Blocks of a mask of ``size`` (width, height) as (h, w) bool: lesion where it covers more than half of a pixel."""
    edges_x, edges_y = (np.linspace(0, size[axis], shape[1 - axis] + 1, dtype=np.float64) for axis in (0, 1))
    covered = np.zeros(shape)  # mask px of lesion in each pixel, with fractions at the borders
    doubted = False
    for block in blocks:
        if block.like_tissue and not doubted:
            doubted = True
            _log.warning("%s looks like a picture of tissue, not like a mask: all that is not black is lesion", path)
        if not block.lesion.any():
            continue
        columns, along_x = _sums(block.lesion, edges_x - block.left, axis=1)
        rows, along_y = _sums(along_x, edges_y - block.top, axis=0)
        covered[rows, columns] += along_y
    mask: NDArray[np.bool_] = covered > 0.5 * edges_x[1] * edges_y[1]
    return mask


def _sums(values: NDArray[Any], edges: NDArray[np.float64], *, axis: int) -> tuple[slice, NDArray[np.float64]]:
    """Sums along an axis between neighbouring edges that have a part of it, and which intervals these are."""
    length = values.shape[axis]
    first = max(int(np.searchsorted(edges, 0, "right")) - 1, 0)
    last = min(int(np.searchsorted(edges, length, "left")), len(edges) - 1)
    within = np.clip(edges[first : last + 1], 0, length)
    whole = np.minimum(within.astype(np.int64), length - 1)
    running = np.cumsum(values, axis=axis, dtype=np.float64)
    here = values.take(whole, axis=axis).astype(np.float64)
    before = running.take(whole, axis=axis) - here
    fraction = (within - whole)[:, None] if axis == 0 else within - whole
    return slice(first, last), np.diff(before + fraction * here, axis=axis)


@contextmanager
def _flat_blocks(path: Path, judge: Judge | None) -> Iterator[tuple[tuple[int, int], Iterator[_Block]]]:
    """Size and blocks of a PNG or JPEG."""
    header = read_header(path)
    check_size(path, header.width, header.height)
    if header.orientation != 1:
        _log.warning(orientation_warning(path, header.orientation))  # as of slides: both agree where both carry the tag
    lossy = header.kind == "JPEG"
    shape, dtype = stored_shape(header), np.dtype(stored_dtype(header))
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        tempfile.TemporaryFile() as store,
    ):
        size = int(np.prod(shape)) * dtype.itemsize
        large = size > _IN_MEMORY_BYTES
        if large:
            _take_space(store.fileno(), size, path)
        out = np.memmap(store, dtype, "w+", shape=shape) if large else np.empty(shape, dtype)

        def blocks() -> Iterator[_Block]:
            decode_as_stored(data, header, out)
            yield from _strips(out, judge or (brighter_than_half if lossy else not_zero))

        yield (header.width, header.height), blocks()


def _take_space(file: int, size: int, path: Path) -> None:
    """Take the space of a temporary file at once: a mapped file on a full disk would kill the process instead."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            raise AnnotationError(
                f"The lesion mask {path} takes {size / 1e9:.1f} GB decoded, in {tempfile.gettempdir()}, which cannot "
                f"hold them ({error.strerror}): free some space, or name another folder in TMPDIR."
            ) from error


def _strips(array: NDArray[Any], judge: Judge) -> Iterator[_Block]:
    """Full-width strips of a picture in memory or mapped, (H, W) or (H, W, S); the 2nd or 4th sample is alpha."""
    rows = max(1, _STRIP_PX // array.shape[1])
    for top in range(0, array.shape[0], rows):
        samples = np.asarray(array[top : top + rows])
        samples = samples[..., None] if samples.ndim == 2 else samples  # (h, W, S)
        visible = samples[..., -1] > 0 if samples.shape[-1] in (2, 4) else True
        colours = samples[..., :-1] if samples.shape[-1] in (2, 4) else samples
        yield _Block(0, top, judge(colours) & visible, like_tissue(colours))


@contextmanager
def _tiff_blocks(
    path: Path, shape: tuple[int, int], judge: Judge | None
) -> Iterator[tuple[tuple[int, int], Iterator[_Block]]]:
    """Size and blocks of the TIFF level that serves best."""
    import tifffile

    with quiet(path.name), tifffile.TiffFile(path) as tiff:
        page = tiff.series[0].keyframe
        for level in tiff.series[0].levels:
            candidate = level.keyframe
            if candidate.imagewidth >= shape[1] and candidate.imagelength >= shape[0]:
                page = candidate
        _check_page(path, tiff, page)
        yield (page.imagewidth, page.imagelength), _page_blocks(page, judge)


def _check_page(path: Path, tiff: Any, page: Any) -> None:
    """Refuse what is no single picture, and what ends before its last tile."""
    if len(tiff.series[0].pages) > 1 or (page.planarconfig == 2 and page.samplesperpixel > 1):
        raise AnnotationError(
            f"The lesion mask {path} holds a stack of axes {tiff.series[0].axes}, not one picture; export one plane."
        )
    ends = (offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    if max(ends, default=0) > path.stat().st_size:
        raise AnnotationError(f"The lesion mask {path} is cut off: it ends before its last tile; copy it again.")


def _page_blocks(page: Any, judge: Judge | None) -> Iterator[_Block]:
    judge = judge or (brighter_than_half if page.compression in _LOSSY_TIFF else not_zero)
    if page.is_memmappable:  # one strip as large as the picture, as napari saves labels
        stored = page.asarray(out="memmap")
        rows = max(1, _STRIP_PX // page.imagewidth)
        for first in range(0, page.imagelength, rows):
            samples = np.asarray(stored[first : first + rows]).reshape(-1, page.imagewidth, page.samplesperpixel)
            yield _Block(0, first, _judged(samples, page, judge), like_tissue(samples))
        return
    for data, index, _ in page.segments(maxworkers=1):
        if data is not None:  # nothing is stored where nothing was drawn
            samples = data[0]  # (1, h, w, S) -> (h, w, S)
            inside = samples[: page.imagelength - index[2], : page.imagewidth - index[3]]
            yield _Block(index[3], index[2], _judged(inside, page, judge), like_tissue(inside))


def _judged(samples: NDArray[Any], page: Any, judge: Judge) -> NDArray[np.bool_]:
    extra = len(page.extrasamples)
    if not extra:
        return judge(samples)
    lesion: NDArray[np.bool_] = judge(samples[..., :-extra]) & (samples[..., -extra] > 0)
    return lesion
