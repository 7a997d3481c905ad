"""The slides of a cohort as training sees them: thumbnails kept in a folder, patches read on the fly."""

import hashlib
import json
import logging
import os
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_msamil.errors import MissingMppError, MsamilError, ReadError, listed
from napari_msamil.files import write_atomically
from napari_msamil.inference.candidates import candidate_table, on_square, read_thumbnail
from napari_msamil.models.card import Card
from napari_msamil.patches.areas import box_areas
from napari_msamil.patches.areas import pieces as lay_out
from napari_msamil.patches.grid import PatchTable
from napari_msamil.patches.reader import PatchBatch, read_patches
from napari_msamil.patches.select import tissue_rows
from napari_msamil.patches.tissue import tissue_mask
from napari_msamil.slide.slide import Slide, open_slide

from .annotations import read_lesion
from .cohort import CohortError, CohortSlide
from .distributed import gather, mine, rank
from .log import progress

Value = TypeVar("Value")
_OPEN_SLIDES, _TABLES = 8, 256  # kept at a time in each process; a slide keeps decoded tiles
_READ_BATCH = 16  # patches at a time, by each thread that only looks whether they can be read
_KEEPING = threading.Lock()  # the thread that reads ahead and the one that learns ask at once
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is kept of a slide.

    Attributes:
        thumbnail: (h, w, 3) uint8, as `read_thumbnail` gives it.
        lesion: (h, w) bool that stretches over the slide, or None where it is not known.
        size: (width, height) in level-0 px.
        mpp: µm per level-0 px, (x, y).
        background: Colour of empty glass.
    """

    thumbnail: NDArray[np.uint8]
    lesion: NDArray[np.bool_] | None
    size: tuple[int, int]
    mpp: tuple[float, float]
    background: tuple[int, int, int]


class SlideStore:
    """Slides by their row in the table; open files and tables are kept while they are in use. It can be pickled."""

    def __init__(self, slides: Sequence[CohortSlide], card: Card, folder: Path) -> None:
        """Keep thumbnails in ``folder``; see `prepare`."""
        self.slides = tuple(slides)
        self.card = card
        self.folder = folder
        self._open: OrderedDict[int, Slide] = OrderedDict()
        self._tables: OrderedDict[int, PatchTable] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, which belong to one process."""
        return {**self.__dict__, "_open": OrderedDict(), "_tables": OrderedDict()}

    def prepare(self, rows: Iterable[int], *, skip_bad: bool = False) -> list[int]:
        """Read thumbnails and lesions that are not there yet; several processes share the work.

        Args:
            rows: Of the table.
            skip_bad: Read every patch that a stage may come to, and leave out slides that cannot be read, with a
                warning for each. That is done once: a run that is gone on with leaves out the slides that it left out.

        Returns:
            The rows that can be used.

        Raises:
            CohortError: Names every slide that cannot be used, or that is not the file it was when the run began.
        """
        rows = list(rows)
        self.refuse_changed(rows)
        share = progress(mine(rows), "looking at slides", "slides", tell=rank() == 0)
        faults = gather([self._fault(row, read_all=skip_bad) for row in share])
        found = list(filter(None, faults))
        if found and not skip_bad:
            raise CohortError(
                f"{len(found)} slide{'s' if len(found) > 1 else ''} cannot be used:"
                + listed(found, "Repair or remove them, or set machine.skip_bad_slides=true.")
            )
        return [row for row, fault in zip(rows, faults, strict=True) if not fault]

    def _fault(self, row: int, *, read_all: bool) -> str:
        """Why a slide cannot be used, or nothing; with ``read_all`` it is kept beside the thumbnail."""
        kept = self._file(row).with_suffix(".txt")
        if read_all and kept.exists():
            return kept.read_text(encoding="utf-8")
        fault = ""
        try:
            if not self._file(row).exists():
                self._prepare(row)
            if read_all:
                self._read_all(row)
        except MsamilError as error:
            name = self.slides[row].path.name
            fault = (str(error) if name in str(error) else f"{name}: {error}").removesuffix(".")
        if read_all:
            write_atomically(kept, lambda file: file.write(fault.encode()))
            if fault:
                _log.warning("left out: %s", fault)
        return fault

    def refuse_changed(self, rows: Sequence[int]) -> None:
        """Raise CohortError if slides are not the files that this run looked at, as far as it did."""
        changed = list(filter(None, gather([self.changed(row) for row in mine(list(rows))])))
        if changed:
            raise CohortError(
                f"{', '.join(changed)}: slide or lesion file changed since this run looked at it. Give another --out, "
                "or put the old files back."
            )

    def changed(self, row: int) -> str:
        """The name of a slide that is not what was kept of it, or nothing."""
        left_out = self._file(row).with_suffix(".txt")
        if not self._file(row).exists() or (left_out.exists() and left_out.stat().st_size):
            return ""
        with self._stored(row) as kept:
            known = kept.get("made_from")  # runs of earlier versions do not say
        return "" if known is None or str(known) == self._made_from(row) else self.slides[row].path.name

    @contextmanager
    def _stored(self, row: int) -> Iterator[Any]:
        """What lies on disk of a slide; arrays by name, to be taken out inside."""
        file = self._file(row)
        try:
            with file.open("rb") as opened, np.load(opened) as kept:  # np.load leaves a damaged one open
                yield kept
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise CohortError(
                f"{file} is damaged: delete it and give the same command again, which makes it anew."
            ) from error

    def _made_from(self, row: int) -> str:
        one = self.slides[row]
        return json.dumps([identity(file) for file in (one.path, one.lesion) if file is not None and file.exists()])

    def _look_for_tissue(self, size: tuple[int, int], mpp: tuple[float, float], thumbnail: NDArray[np.uint8]) -> None:
        """Raise MsamilError where no patch is one of tissue: a bag could not be made of the slide after training."""
        table, least = self._tissue_table(size, mpp, thumbnail), self.card.thresholds.tissue_fraction
        if not len(tissue_rows(table, least)):
            most = f"its patches hold at most {table.tissue.max():.2f}" if len(table) else "it shows none"
            raise MsamilError(
                f"no patch holds {least:.2f} or more of tissue ({most}): there is nothing to learn from it."
            )

    def _read_all(self, row: int) -> None:
        """Read each patch that touches tissue, at all scales, and forget it; whatever a stage draws is among them."""
        table = self.table(row)
        for _ in self._batches(row, table, batch_size=_READ_BATCH, workers=min(4, os.cpu_count() or 1)):
            pass

    def prepared(self, row: int) -> Prepared:
        """What `prepare` kept of a slide."""
        with self._stored(row) as kept:
            return Prepared(
                kept["thumbnail"],
                kept.get("lesion"),
                (int(kept["size"][0]), int(kept["size"][1])),
                (float(kept["mpp"][0]), float(kept["mpp"][1])),
                (int(kept["background"][0]), int(kept["background"][1]), int(kept["background"][2])),
            )

    def square(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Thumbnail and lesion of a slide whose lesion is known, on the square that the segmenter sees."""
        kept, px = self.prepared(row), self.card.thumbnail_px
        assert kept.lesion is not None
        lesion = np.zeros((px, px), bool)
        lesion[: kept.lesion.shape[0], : kept.lesion.shape[1]] = kept.lesion
        return on_square(kept.thumbnail, px, kept.background), lesion

    def table(self, row: int) -> PatchTable:
        """All patches of a slide that touch tissue, at the card's scales; their lesion fractions are 0."""

        def make() -> PatchTable:
            kept = self.prepared(row)
            return self._tissue_table(kept.size, kept.mpp, kept.thumbnail)

        return _kept(self._tables, row, make, _TABLES)

    def _tissue_table(
        self, size: tuple[int, int], mpp: tuple[float, float], thumbnail: NDArray[np.uint8]
    ) -> PatchTable:
        tissue = tissue_mask(thumbnail)
        return candidate_table(size, mpp, self.card, tissue=tissue, lesion=np.zeros_like(tissue))

    def lesion_shares(self, row: int, starts: NDArray[np.floating], ends: NDArray[np.floating]) -> NDArray[np.float32]:
        """Share of lesion in boxes on a slide whose lesion is known.

        Args:
            row: Of the table.
            starts, ends: (n, 2) top left and bottom right corners, (x, y) in level-0 px.

        Returns:
            (n,) float32, 0..1; what sticks out of the slide is no lesion.
        """
        with self._stored(row) as kept:  # not `prepared`: the thumbnail beside it takes longer to unpack
            mask, (width, height) = kept["lesion"], kept["size"].tolist()
        lesion = lay_out(mask, (width, height))
        areas = box_areas(lesion, starts, ends)
        shares: NDArray[np.float32] = (areas / np.prod(ends - starts, axis=1)).astype(np.float32)
        return shares

    def open(self, row: int) -> Slide:
        """An open slide, for this process alone."""
        slide = self.slides[row]
        return _kept(self._open, row, lambda: open_slide(slide.path, slide.mpp), _OPEN_SLIDES)

    def pixels(self, row: int, table: PatchTable) -> NDArray[np.uint8]:
        """Pixels (n, P, P, 3) uint8 of all rows of a table of a slide.

        Raises:
            ReadError: A patch cannot be read; the message names slide and place.
        """
        px = self.card.patch_px
        pixels = np.empty((len(table), px, px, 3), np.uint8)
        for batch in self._batches(row, table, batch_size=len(table)):
            pixels[batch.rows] = batch.pixels
        return pixels

    def _batches(self, row: int, table: PatchTable, *, batch_size: int, workers: int = 1) -> Iterator[PatchBatch]:
        """All patches of a table of a slide; raises ReadError, naming slide and place, where one cannot be read."""
        slide, rows, level0 = self.open(row), np.arange(len(table)), self.card.read == "level0"
        with closing(
            read_patches(slide, table, rows, batch_size=batch_size, workers=workers, level0=level0)
        ) as batches:
            for batch in batches:
                if batch.failed:
                    at, reason = batch.failed[0]
                    x, y = table.coords[at].tolist()
                    raise ReadError(f"{slide.name}: the patch at x={x}, y={y} cannot be read ({reason}).")
                yield batch

    def _file(self, row: int) -> Path:
        return self.folder / f"{row:05d}.npz"

    def _prepare(self, row: int) -> None:
        one = self.slides[row]
        with open_slide(one.path, one.mpp) as slide:
            if slide.mpp is None:
                raise MissingMppError("it does not say its µm per pixel: fill in its mpp in the table.")
            size = slide.width, slide.height
            thumbnail = read_thumbnail(slide, self.card)
            self._look_for_tissue(size, slide.mpp, thumbnail)
            content = {"thumbnail": thumbnail, "size": size, "mpp": slide.mpp, "background": slide.background}
        if one.lesion_free:
            content["lesion"] = np.zeros(thumbnail.shape[:2], bool)
        elif one.lesion is not None:
            content["lesion"] = read_lesion(one.lesion, size, thumbnail.shape[:2])
        content["made_from"] = self._made_from(row)
        write_atomically(self._file(row), lambda file: np.savez_compressed(file, **content))  # type: ignore[arg-type]


def identity(path: Path) -> list[Any]:
    """What tells a file from another, without reading all of it: name, size, and its first and last megabyte."""
    size = path.stat().st_size
    total = hashlib.sha256()
    with path.open("rb") as file:
        total.update(file.read(1 << 20))
        file.seek(max(0, size - (1 << 20)))
        total.update(file.read(1 << 20))
    return [path.name, size, total.hexdigest()]


def _kept(store: OrderedDict[int, Value], key: int, make: Callable[[], Value], limit: int) -> Value:
    """The value of a key, made if it is not there; the longest unused one beyond the limit goes."""
    with _KEEPING:
        value = store.get(key)
    if value is None:
        value = make()
    with _KEEPING:
        store[key] = value
        store.move_to_end(key)
        if len(store) > limit:
            store.popitem(last=False)
    return value


def turned(pixels: NDArray[Any], turn: int) -> NDArray[Any]:
    """Pictures (n, P, P, ...) under one of the eight flips and quarter turns of a square; 0 leaves them as they are."""
    quarter = np.rot90(pixels, turn % 4, axes=(1, 2))
    return quarter[:, :, ::-1] if turn >= 4 else quarter


def tensor_of(pixels: NDArray[Any]) -> Tensor:
    """A tensor of its own from an array that may be a view."""
    return torch.from_numpy(np.ascontiguousarray(pixels))


def pieces(length: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``length``."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
