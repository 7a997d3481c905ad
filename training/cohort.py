"""The table of slides that training works on: one CSV, read as a whole; `cohort_check` looks into the slides."""

import csv
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import MsamilError, ResultExistsError, listed
from napari_msamil.files import write_atomically

from .annotations import ANNOTATIONS
from .labels import SEPARATOR, Label, read_label, write_label

REQUIRED = ("slide", "label", "patient")
SEVERAL = "labels"
"""Stands for `label` where a slide may have several classes, or none of them."""
OPTIONAL = ("split", "fold", "mpp", "lesion", "site")
TABLE = "cohort.csv"
"""Name of the table in a folder that holds a cohort."""
SPLITS = ("training", "validation", "test")
NO_LESION = "none"
"""In the lesion column: the slide is known to have no lesion. An empty cell says that nobody has marked it."""


class CohortError(MsamilError):
    """The table of slides has faults; the message lists them."""


@dataclass(frozen=True)
class CohortSlide:
    """One row of the table.

    Attributes:
        path: The slide file.
        label: Its class; or, where classes do not exclude each other, a tuple of those it has, in alphabetical order.
        patient: Whom it is of; all slides of a patient stay in one part.
        split: "training", "validation", "test", or "" where folds are used.
        fold: Number of the fold it is tested in, or None.
        mpp: µm per level-0 px where the table says so, else None: the file's own.
        lesion: Mask or annotation file, or None: see `lesion_free` for what that means.
        site: Where it was scanned, or "".
        lesion_free: With no lesion file: True, the slide is known to have no lesion, and its lesion mask is empty;
            False, nobody has marked its lesion, and it has no lesion mask.
    """

    path: Path
    label: Label
    patient: str
    split: str = ""
    fold: int | None = None
    mpp: float | None = None
    lesion: Path | None = None
    site: str = ""
    lesion_free: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """The names in its label: one, or any number."""
        return (self.label,) if isinstance(self.label, str) else self.label


@dataclass(frozen=True)
class Cohort:
    """Slides and the classes they belong to.

    Attributes:
        source: The table.
        slides: In the order of the table.
        classes: Labels in alphabetical order: the order of the logits.
    """

    source: Path
    slides: tuple[CohortSlide, ...]
    classes: tuple[str, ...]

    @property
    def exclusive(self) -> bool:
        """Whether each slide has exactly one class."""
        return isinstance(self.slides[0].label, str)

    @property
    def has_splits(self) -> bool:
        """Whether the table says which slides are for training and which for testing."""
        return bool(self.slides[0].split)

    @property
    def has_folds(self) -> bool:
        """Whether the table says in which fold each slide is tested."""
        return self.slides[0].fold is not None

    @property
    def no_lesion_known(self) -> bool:
        """Whether the table tells of no slide where its lesion is, or that it has none."""
        return not any(slide.lesion or slide.lesion_free for slide in self.slides)

    @property
    def name(self) -> str:
        """What it is called: the table's name, or that of its folder where the table has the usual one."""
        return self.source.resolve().parent.name if self.source.name == TABLE else self.source.stem

    def rows_with_lesion(self, rows: Sequence[int]) -> list[int]:
        """Those of some rows whose lesion is known, be it none."""
        return [row for row in rows if self.slides[row].lesion is not None or self.slides[row].lesion_free]

    def has_lesion(self, rows: Sequence[int]) -> bool:
        """Whether a lesion is marked on some of the rows; a slide that is known to have none is no such."""
        return any(self.slides[row].lesion is not None for row in rows)

    def targets(self) -> NDArray[np.int64]:
        """Index of each slide's class, (n,); where classes do not exclude each other, 0 and 1 for each, (n, C)."""
        if self.exclusive:
            return np.array([self.classes.index(slide.classes[0]) for slide in self.slides], np.int64)
        return np.array([[name in slide.classes for name in self.classes] for slide in self.slides], np.int64)

    def patients_by_outcome(self, rows: Sequence[int]) -> dict[str, set[str]]:
        """Whom the slides of each class are of, among some rows; and those without it, where more than one may be.

        The keys are the beginning of a sentence that says how many they have. What no slide is without is left out.
        """
        slides = [self.slides[row] for row in rows]
        found = {f"class {name!r} has": {s.patient for s in slides if name in s.classes} for name in self.classes}
        for name in () if self.exclusive else self.classes:
            if without := {s.patient for s in slides if name not in s.classes}:
                found[f"slides without class {name!r} have"] = without
        return found


def read_cohort(path: str | Path, *, files: bool = True) -> Cohort:
    """Read a table of slides; its paths may be relative to the table's folder.

    Args:
        path: CSV file with a header, or a folder with a cohort.csv. Columns `slide`, `label`, `patient`; at will
            `split` or `fold`, `mpp`, `lesion` (mask image, QuPath GeoJSON, ASAP XML; "none" for a slide known to have
            no lesion; empty where that is not known) and `site`, which is kept and not used. `labels` in the place of
            `label` says that classes do not exclude each other: its cells hold names with ";" between them, or "none".
            Others are refused: a misspelt name would be missed.
        files: Whether slides and lesions must be there; False where the slides are only names.

    Raises:
        CohortError: Lists every fault of the table that shows without opening a slide.
    """
    path = Path(path)
    if path.is_dir():
        path = path / TABLE
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or ())
            rows = list(reader)
    except OSError as error:
        raise CohortError(f"The table of slides {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path} cannot be read as a table of slides ({error}): give a CSV file in UTF-8.") from error
    faults = list(_header_faults(header)) or ([] if rows else ["it has no slides"])
    slides: list[CohortSlide] = []
    if not faults:
        for number, row in enumerate(rows, start=2):  # as an editor counts, the header being line 1
            if not any(row.values()):
                continue  # a spreadsheet leaves such lines behind
            found = _slide_of(row, path.parent, files=files)
            if isinstance(found, CohortSlide):
                slides.append(found)
            else:
                faults += [f"line {number}: {fault}" for fault in found]
        faults += _table_faults(slides)
    if faults:
        raise CohortError(f"{path} cannot be used as a table of slides:{listed(faults)}")
    return Cohort(path, tuple(slides), tuple(sorted({name for slide in slides for name in slide.classes})))


def write_cohort(slides: Sequence[CohortSlide], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a table that `read_cohort` reads; it appears under its name only when it is complete.

    Slides and lesion files under the table's folder are written relative to it, so that the folder can be moved. Only
    columns that a slide makes use of are written.

    Returns:
        The path written.

    Raises:
        ResultExistsError: The table is already there, and ``overwrite`` is not set.
        CohortError: A slide has both a lesion file and none, slides have labels of both kinds, a class has a name that
            would not be read back, or the table cannot be written.
    """
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    rows = [_row_of(slide, path.parent) for slide in slides]
    header = [name for name in (*REQUIRED, *OPTIONAL) if name in REQUIRED or any(row[name] for row in rows)]
    kinds = {isinstance(slide.label, str) for slide in slides}
    if len(kinds) > 1:
        raise CohortError(f"{path} was not written: some slides have one class and others a tuple of classes.")
    if kinds == {False}:
        header[header.index("label")] = SEVERAL
    text = io.StringIO()
    writer = csv.DictWriter(text, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))
    except OSError as error:
        raise CohortError(f"{path} cannot be written ({error.strerror}); choose another folder.") from error
    return path


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise ResultExistsError where a table would be replaced that nobody asked to replace."""
    if path.exists() and not overwrite:
        raise ResultExistsError(f"{path} is already there: choose another folder, or overwrite it (--overwrite).")


def _header_faults(header: Sequence[str]) -> Iterator[str]:
    known = (*REQUIRED, SEVERAL, *OPTIONAL)
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            yield f"its columns are separated by {name}: save it with commas"
            return
    missing = [name for name in REQUIRED if name not in header and not (name == "label" and SEVERAL in header)]
    unknown = [name for name in header if name not in known]
    if missing:
        yield f"it lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
    if unknown:
        yield f"it has unknown columns {', '.join(map(repr, unknown))}; known are {', '.join(known)}"
    if "split" in header and "fold" in header:
        yield "it has both split and fold; keep one"
    if "label" in header and SEVERAL in header:
        yield f"it has both label and {SEVERAL}; keep one"


def _slide_of(row: Mapping[str, str | None], folder: Path, *, files: bool) -> CohortSlide | list[str]:
    """A row as a slide, or what is wrong with it."""
    column = SEVERAL if SEVERAL in row else "label"
    cells = {name: (row.get(name) or "").strip() for name in (*REQUIRED, SEVERAL, *OPTIONAL)}
    faults = [f"{name} is empty" for name in ("slide", "patient") if not cells[name]]
    label: Label = ""
    try:
        label = read_label(cells[column], several=column == SEVERAL)
    except ValueError as error:
        faults.append(f"{column} {error}")
    if None in row:
        faults.append("it has more cells than the header")
    path = folder / cells["slide"]
    lesion_free = cells["lesion"].casefold() == NO_LESION
    lesion = folder / cells["lesion"] if cells["lesion"] and not lesion_free else None
    if cells["slide"] and files and not path.exists():
        faults.append(f"there is no slide {path}")
    if lesion is not None and files and not lesion.exists():
        faults.append(f"there is no lesion file {lesion}")
    elif lesion is not None and lesion.suffix.lower() not in ANNOTATIONS:
        faults.append(f"{lesion.name} is no lesion file that can be read: use {', '.join(ANNOTATIONS)}")
    if cells["split"] and cells["split"] not in SPLITS:
        faults.append(f"split is {cells['split']!r}: use {', '.join(SPLITS)}")
    if cells["fold"] and not cells["fold"].isdigit():
        faults.append(f"fold is {cells['fold']!r}: use a whole number from 0")
    mpp = _number(cells["mpp"])
    if cells["mpp"] and (mpp is None or not 0.05 <= mpp <= 20):
        faults.append(f"mpp is {cells['mpp']!r}: use µm per pixel between 0.05 and 20, or leave it empty")
    if faults:
        return faults
    fold = int(cells["fold"]) if cells["fold"] else None
    return CohortSlide(path, label, cells["patient"], cells["split"], fold, mpp, lesion, cells["site"], lesion_free)


def _row_of(slide: CohortSlide, folder: Path) -> dict[str, str]:
    """A slide as the cells of its row."""
    if slide.lesion is not None and slide.lesion_free:
        raise CohortError(f"{slide.path.name} has the lesion file {slide.lesion} and is said to have no lesion.")
    if any(SEPARATOR in name for name in slide.classes):
        raise CohortError(
            f"{slide.path.name} has the label {slide.label!r}: the name of a class may not hold {SEPARATOR}."
        )
    lesion = NO_LESION if slide.lesion_free else ""
    return {
        "slide": written_path(slide.path, folder),
        "label": write_label(slide.label),
        SEVERAL: write_label(slide.label),
        "patient": slide.patient,
        "split": slide.split,
        "fold": "" if slide.fold is None else str(slide.fold),
        "mpp": "" if slide.mpp is None else repr(float(slide.mpp)),
        "lesion": lesion if slide.lesion is None else written_path(slide.lesion, folder),
        "site": slide.site,
    }


def written_path(path: Path, folder: Path) -> str:
    """A path as tables of a folder hold it: relative with slashes where it lies under the folder, else absolute."""
    path, folder = path.absolute(), folder.absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _alike(names: set[str]) -> list[list[str]]:
    """Names that are the same but for capitals."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        found[name.casefold()].append(name)
    return [spelt for spelt in found.values() if len(spelt) > 1]


def _table_faults(slides: Sequence[CohortSlide]) -> Iterator[str]:
    """What is wrong between rows."""
    for path, count in Counter(slide.path.resolve() for slide in slides).items():
        if count > 1:
            yield f"{path.name} stands there {count} times"
    for name in ("split", "fold"):
        values = {getattr(slide, name) for slide in slides}
        if len(values) > 1 and values & {"", None}:
            yield f"{name} is filled in for some slides only: fill it in for all, or for none"
    names = {name for slide in slides for name in slide.classes}
    for spelt in _alike(names):
        yield f"classes {' and '.join(map(repr, spelt))} differ by capitals only: write them alike"
    for spelt in _alike({slide.patient for slide in slides}):
        yield f"patients {' and '.join(map(repr, spelt))} differ by capitals only: write them alike, or apart"
    if slides and not names:
        yield "no slide has a class: there is nothing to learn"
    if slides and not isinstance(slides[0].label, str):
        for name in sorted(names):
            if len(inner := {part.strip() for part in re.split(r"[,|/+&]", name)}) > 1 and inner <= names:
                yield f"labels holds {name!r}, which names classes that stand there too: write {SEPARATOR} between them"
    parts: dict[str, set[str]] = defaultdict(set)
    for slide in slides:
        parts[slide.patient].add(slide.split or ("" if slide.fold is None else f"fold {slide.fold}"))
    for patient, found in sorted(parts.items()):
        if len(found) > 1:
            yield f"patient {patient} is in {' and '.join(sorted(found))}: a patient belongs to one part"
