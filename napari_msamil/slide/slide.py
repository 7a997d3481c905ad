"""An open slide: pixels on demand, where they are in µm, and how sure that is."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import ReadError, SlideError
from napari_msamil.slide.backend import WHITE, Backend, Colour, FileFacts
from napari_msamil.slide.detect import is_slide_file, open_file
from napari_msamil.slide.flat import FlatBackend
from napari_msamil.slide.levels import AddedLevel, LevelPlan, plan_levels
from napari_msamil.slide.mpp import Mpp, resolve_mpp
from napari_msamil.slide.resample import plan_read, run_plan

__all__ = ["Level", "Slide", "is_slide_file", "open_slide"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a slide's pyramid.

    Attributes:
        width, height: pixels.
        downsample: (x, y) level-0 pixels per pixel of this level; floats, hardly ever whole numbers.
        stored: whether the file holds it; else it is computed when it is asked for.
    """

    width: int
    height: int
    downsample: tuple[float, float]
    stored: bool = True


class Slide:
    """A whole-slide image; get one from `open_slide`.

    Reads are safe from any number of threads. A slide can be pickled: the copy opens the file again. Each process has
    its own file handle, also after a fork. Used as a context manager it closes itself; a closed slide raises ReadError.

    Attributes:
        path, name: the file and its name.
        uid: identity of the content: hash of path, modification time and size.
        width, height: level-0 pixels.
        levels: finest first, strictly shrinking: the file's own, and added ones where a step exceeds 4 or the coarsest
            side 2048 px.
        mpp: (x, y) µm per level-0 pixel, or None.
        mpp_source: "explicit", "metadata" or "missing".
        mpp_missing: why there is no mpp, one sentence; empty where there is one.
        backend: reader and version, as in "tiffslide 3.0.1".
        background: RGB outside the slide, under transparency and where the file stores nothing.
        properties: vendor, objective power and the like; nothing that could name a patient.
        warnings: what a careful user should know, one sentence each.
        damage: what part of the file is missing, one of the warnings; empty where nothing shows without decoding it.
    """

    def __init__(self, path: Path, uid: str, explicit: float | Mpp | None, opened: tuple[Backend, FileFacts]) -> None:
        backend, facts = opened
        self.path = path
        self.name = path.name
        self.uid = uid
        self.mpp, self.mpp_source, warnings = resolve_mpp(path.name, explicit, facts.mpp)
        self.mpp_missing = "" if self.mpp else "".join(warnings) or f"{self.name} does not say its µm per pixel."
        self.backend = facts.backend
        self.background = WHITE
        self.properties: Mapping[str, str] = MappingProxyType(dict(facts.properties))
        self.damage = facts.damage
        self.warnings = tuple(filter(None, (facts.damage, *facts.warnings, *warnings)))
        self._plans = plan_levels(facts.sizes, facts.downsamples)
        self.levels = tuple(Level(*plan.size, plan.downsample, plan.stored is not None) for plan in self._plans)
        self.width, self.height = self.levels[0].width, self.levels[0].height
        self._closed = False
        self._locks: dict[int, threading.Lock] = {}
        self._handles: dict[int, _Handle] = {os.getpid(): _Handle(backend, self._plans)}

    def read_level(
        self, level: int, x: int, y: int, width: int, height: int, *, unreadable: Colour | None = None
    ) -> NDArray[np.uint8]:
        """Read a box of one level as it is stored.

        Args:
            level: index into `levels`.
            x, y: top-left corner in pixels of that level; may lie outside.
            width, height: of the box, in pixels of that level.
            unreadable: colour of the file's tiles that cannot be decoded, where an exception is not wanted.

        Returns:
            (height, width, 3) uint8 RGB; background outside the slide.

        Raises:
            ReadError: the pixels cannot be decoded, also after opening the file again once; given a colour only where
                the file has no tiles.
        """
        size = self.levels[level]
        if width < 1 or height < 1:
            raise ValueError(f"a box of {width} x {height} pixels cannot be read; give at least 1 x 1")
        x0, y0, x1, y1 = max(0, x), max(0, y), min(size.width, x + width), min(size.height, y + height)
        if (x0, y0, x1, y1) == (x, y, x + width, y + height):
            return self._read_inside(level, x, y, width, height, unreadable)
        out = np.empty((height, width, 3), np.uint8)
        out[:] = self.background
        if x0 < x1 and y0 < y1:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._read_inside(level, x0, y0, x1 - x0, y1 - y0, unreadable)
        return out

    def read(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        size: tuple[int, int],
        level0: bool = False,
        stored: bool = False,
    ) -> NDArray[np.uint8]:
        """Read a box of the slide as a picture of a wanted size, resampled at most once.

        The coarsest level that is fine enough is sliced where its pixels are the wanted ones (to within half a pixel of
        drift over the box), averaged in whole blocks where they are a whole number of times finer, and resampled with a
        triangle filter otherwise. A slice is centred on the box to within half a pixel of the level.

        Args:
            x, y: top-left corner in level-0 pixels, fractions allowed.
            width, height: of the box in level-0 pixels, fractions allowed.
            size: (width, height) of the picture in pixels.
            level0: start from level 0 whatever the size, which costs more and differs by the scanner's own shrinking.
            stored: start from what the file holds, never from an added level: computed in large blocks, these cannot be
                read far around a damaged place.

        Returns:
            (size[1], size[0], 3) uint8 RGB; outside the slide it is padded with the background, never stretched.

        Raises:
            ReadError: the pixels cannot be decoded, also after opening the file again once.
        """
        if not (width > 0 and height > 0 and size[0] > 0 and size[1] > 0):
            raise ValueError(f"a box of {width} x {height} pixels cannot be read as {size}; all four must be positive")
        levels = self.levels[:1] if level0 else self.levels
        flags = [level.stored for level in levels]
        plan = plan_read(levels, flags, (x, y, width, height), size, stored_only=stored)
        level = self.levels[plan.level]
        return run_plan(plan, self.read_level, (level.width, level.height))

    @property
    def decodes_first(self) -> bool:
        """Whether the next read first decodes the whole image, which takes seconds; `prepare` gets that over with."""
        backend = self._handle().backend
        return isinstance(backend, FlatBackend) and not backend.prepared

    def prepare(self) -> None:
        """Do now what would slow down the first view: decode a flat image, compute the coarsest level."""
        last = self.levels[-1]
        self.read_level(len(self.levels) - 1, 0, 0, last.width, last.height)

    def check_unchanged(self) -> None:
        """Make sure that the file is still the one that was opened, by its size and the time of its last change.

        Raises:
            SlideError: it was replaced, written to or removed since.
        """
        if _uid(self.path) != self.uid:
            raise SlideError(
                f"{self.name} was changed since it was opened, and what is shown may be another picture: remove its "
                "layer and open it again."
            )

    def close(self) -> None:
        """Let the file go; reads under way in other threads finish first."""
        self._closed = True
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_slide, (self.path, self.mpp if self.mpp_source == "explicit" else None)

    def __repr__(self) -> str:
        mpp = "unknown mpp" if self.mpp is None else f"{self.mpp[0]:g} x {self.mpp[1]:g} µm/px ({self.mpp_source})"
        return f"<Slide {self.name}: {self.width} x {self.height} px, {len(self.levels)} levels, {mpp}, {self.backend}>"

    def _read_inside(
        self, level: int, x: int, y: int, width: int, height: int, unreadable: Colour | None = None
    ) -> NDArray[np.uint8]:
        added = self._handle().added.get(level)
        if added is None:
            return self._read_stored(level, x, y, width, height, unreadable)
        finer = partial(self._read_inside, unreadable=unreadable)
        return added.read(finer, x, y, width, height, keep=unreadable is None)

    def _read_stored(
        self, level: int, x: int, y: int, width: int, height: int, unreadable: Colour | None
    ) -> NDArray[np.uint8]:
        """Read from the file; after an error open it again once: some readers stay broken after their first one."""
        stored = self._plans[level].stored
        assert stored is not None
        handle = self._handle()
        try:
            return handle.backend.read(stored, x, y, width, height, unreadable=unreadable)
        except (SlideError, MemoryError):
            raise
        except Exception as first:  # codecs raise whatever they like
            logger.info("%s: reading again after %s", self.name, first)
            try:
                return self._reopen(handle).backend.read(stored, x, y, width, height, unreadable=unreadable)
            except MemoryError:
                raise
            except SlideError as error:  # what is wrong was seen when it was opened again
                raise ReadError(str(error)) from error
            except Exception as error:
                cause = (str(error) or type(error).__name__).splitlines()[0]
                raise ReadError(
                    f"{self.name} cannot be read at level {level}, x {x}, y {y}, {width} x {height} pixels ({cause}); "
                    "the file is damaged there or not reachable: copy it again."
                ) from error

    def _handle(self) -> _Handle:
        pid = os.getpid()
        handle = self._handles.get(pid)
        if handle is not None:
            return handle
        with self._locks.setdefault(pid, threading.Lock()):  # a lock of the parent could be held for ever after a fork
            handle = self._handles.get(pid)
            if handle is None:
                if self._closed:
                    raise ReadError(f"{self.name} was closed; open it again with open_slide.")
                handle = self._handles[pid] = self._fresh_handle()
            return handle

    def _reopen(self, broken: _Handle) -> _Handle:
        pid = os.getpid()
        with self._locks.setdefault(pid, threading.Lock()):
            current = self._handles.get(pid)
            if current is not None and current is not broken:
                return current
            handle = self._fresh_handle()
            handle.added = broken.added
            if not self._closed:
                self._handles[pid] = handle
            return handle

    def _fresh_handle(self) -> _Handle:
        backend, facts = open_file(self.path, _uid(self.path))
        if facts.sizes[0] != (self.width, self.height):
            raise ReadError(f"{self.name} was changed while it was open; open it again.")
        return _Handle(backend, self._plans)


class _Handle:
    """What belongs to one process: the open file and the added levels computed so far."""

    def __init__(self, backend: Backend, plans: tuple[LevelPlan, ...]) -> None:
        self.backend = backend
        self.added = {
            index: AddedLevel(plan, plans[plan.source].size) for index, plan in enumerate(plans) if plan.stored is None
        }


def open_slide(path: str | Path, mpp: float | tuple[float, float] | None = None) -> Slide:
    """Open a whole-slide image; takes milliseconds, whatever its size.

    tiffslide reads SVS, NDPI, SCN, BIF, generic and OME TIFF; flat PNG and JPEG images are decoded once, at the first
    read; OpenSlide, where it is installed, reads MIRAX, DICOM and what tiffslide cannot.

    Args:
        path: the file.
        mpp: µm per level-0 pixel, one number or (x, y). Without it the file's metadata count, if they lie within 0.05
            and 20; otherwise the slide has no mpp. It is never guessed, and never taken from PNG or JPEG density tags.

    Raises:
        SlideError: the file is missing, damaged or no slide; the message says which and what to do.
        ReadError: a small flat image cannot be decoded.
    """
    path = Path(path).absolute()
    uid = _uid(path)
    return Slide(path, uid, mpp, open_file(path, uid))


def _uid(path: Path) -> str:
    """Identity of a file as it is now."""
    try:
        facts = path.stat()
        identity = f"{path.resolve()}|{facts.st_mtime_ns}|{facts.st_size}"
    except FileNotFoundError as error:
        raise SlideError(f"{path} does not exist; check the path.") from error
    except (OSError, ValueError) as error:
        raise SlideError(f"{path} cannot be opened ({error}); check the path and your rights.") from error
    return hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
