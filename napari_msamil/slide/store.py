"""Decoded pyramids of flat images: plain .npy files in the user's cache, bounded in size, written atomically."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import SlideError
from napari_msamil.files import TEMPORARY
from napari_msamil.slide.resample import reduce_box

logger = logging.getLogger(__name__)

CACHE_GB = 50.0
"""Most that decoded images may take on disk; the environment variable MSAMIL_CACHE_GB sets another bound."""

STALE_SECONDS = 24 * 3600
STRIP_BYTES = 64 << 20


class PyramidStore:
    """The folder of decoded images. Environment variable MSAMIL_CACHE_DIR moves it.

    One image is one folder `<uid>/` with level0.npy, level1.npy ... and info.json, written under a temporary name and
    renamed when complete: a folder that exists is whole. The least recently opened ones go when the bound is reached.
    """

    def __init__(self, folder: Path | None = None, max_bytes: int | None = None) -> None:
        self.folder = folder if folder is not None else default_folder()
        gigabytes = from_environment("MSAMIL_CACHE_GB", CACHE_GB)
        self.max_bytes = int(gigabytes * 1e9) if max_bytes is None else max_bytes

    def levels(
        self,
        path: Path,
        uid: str,
        sizes: tuple[tuple[int, int], ...],
        step: int,
        fill: Callable[[NDArray[np.uint8]], None],
    ) -> list[NDArray[np.uint8]]:
        """Return the memory-mapped levels of an image, (H, W, 3) uint8 each, decoding it if that was not done before.

        Args:
            path: the image, for messages.
            uid: identity of the image's content (path, time and size).
            sizes: (width, height) of each level.
            step: downsample between levels.
            fill: decodes level 0 into the array it is given.
        """
        entry = self.folder / uid
        found = self._open(entry, sizes)
        if found is not None:
            return found
        needed = sum(width * height * 3 for width, height in sizes)
        work = _temporary(entry)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(path, needed)
            work.mkdir()
            self._write(work, sizes, step, fill)
            (work / "info.json").write_text(json.dumps({"source": uid, "sizes": sizes, "bytes": needed}))
            self._publish(work, entry)
        except OSError as error:
            raise SlideError(
                f"{path.name} is decoded into {self.folder}, which failed ({error.strerror or error}); "
                "free some space there or set MSAMIL_CACHE_DIR to another folder."
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        found = self._open(entry, sizes)
        if found is None:
            raise SlideError(f"{path.name} was decoded into {entry}, but the files there vanished; open it again.")
        return found

    def _write(
        self, work: Path, sizes: tuple[tuple[int, int], ...], step: int, fill: Callable[[NDArray[np.uint8]], None]
    ) -> None:
        previous: NDArray[np.uint8] | None = None
        for number, (width, height) in enumerate(sizes):
            level = new_array(work / f"level{number}.npy", (height, width, 3))
            if previous is None:
                fill(level)
            else:
                _reduce_by_strips(previous, level, step)
            level.flush()
            previous = level

    def _publish(self, work: Path, entry: Path) -> None:
        try:
            work.replace(entry)
        except OSError:
            if (entry / "info.json").is_file():  # another process was faster, with the same pixels
                return
            shutil.rmtree(entry, ignore_errors=True)  # what is left of one whose removal stopped half-way
            work.replace(entry)

    def _open(self, entry: Path, sizes: tuple[tuple[int, int], ...]) -> list[NDArray[np.uint8]] | None:
        info = entry / "info.json"
        if not info.is_file():
            return None
        levels: list[NDArray[np.uint8]] = []
        try:
            for number, (width, height) in enumerate(sizes):
                level = np.lib.format.open_memmap(entry / f"level{number}.npy", mode="r")
                if level.shape != (height, width, 3) or level.dtype != np.uint8:
                    raise ValueError(f"level {number} is {level.shape}")
                levels.append(level)
            with contextlib.suppress(OSError):  # another user's, which may be read
                os.utime(info)
        except (OSError, ValueError) as error:
            logger.warning("decoded image %s is unusable (%s) and is made anew", entry, error)
            _remove(entry)
            return None
        return levels

    def _make_room(self, path: Path, needed: int) -> None:
        """Remove the longest unused images until the new one fits into the bound and onto the disk."""
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        enough = self._free() + total >= needed * 1.05  # else removing all of them would not help
        while enough and entries and (total + needed > self.max_bytes or self._free() < needed * 1.05):
            _, size, entry = entries.pop(0)
            logger.info("removing decoded image %s (%.1f GB)", entry, size / 1e9)
            _remove(entry)
            total -= size
        if self._free() < needed * 1.05:
            raise SlideError(
                f"{path.name} needs {needed / 1e9:.1f} GB in {self.folder} to be decoded, {self._free() / 1e9:.1f} GB "
                "are free; make room or set MSAMIL_CACHE_DIR to a larger disk."
            )

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Return (last use, bytes, folder) of each whole image, oldest first; what is left of others is removed."""
        found = []
        for entry in self.folder.iterdir():
            info = entry / "info.json"
            try:
                if TEMPORARY in entry.name or not info.is_file():
                    if time.time() - entry.stat().st_mtime > STALE_SECONDS:
                        shutil.rmtree(entry, ignore_errors=True)
                else:
                    size = sum(file.stat().st_size for file in entry.glob("level*.npy"))
                    found.append((info.stat().st_mtime, size, entry))
            except FileNotFoundError:
                continue  # another process removed it meanwhile
        return sorted(found)


def cache_folder() -> Path:
    """Return the folder of what can be made again: MSAMIL_CACHE_DIR, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("MSAMIL_CACHE_DIR") or platformdirs.user_cache_dir("napari-msamil", appauthor=False))


def default_folder() -> Path:
    """Return the folder of decoded images."""
    return cache_folder() / "decoded-images"


def from_environment(name: str, default: float) -> float:
    """Return the number in an environment variable, or the default where it is not set."""
    text = os.environ.get(name, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise SlideError(
            f"The environment variable {name} is {text!r}: set it to a number, such as {default:g}."
        ) from None


def _temporary(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}{TEMPORARY}{os.getpid()}-{time.monotonic_ns()}")


def _remove(entry: Path) -> None:
    """Remove a decoded image so that it is whole or not there, at any moment."""
    aside = _temporary(entry)
    try:
        entry.replace(aside)
    except OSError:  # on Windows one in use stays
        return
    shutil.rmtree(aside, ignore_errors=True)


def _reduce_by_strips(fine: NDArray[np.uint8], coarse: NDArray[np.uint8], step: int) -> None:
    rows = max(1, STRIP_BYTES // (fine.shape[1] * 3 * step))
    for y in range(0, coarse.shape[0], rows):
        coarse[y : y + rows] = reduce_box(np.ascontiguousarray(fine[y * step : (y + rows) * step]), step)


def new_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic] = np.uint8) -> np.memmap[Any, Any]:
    """Make a .npy file and map it; its space is taken at once.

    Raises:
        OSError: the disk is full.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # a disk that fills up must fail here, not kill the process at a page fault
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
