"""The table of slides that training works on: one CSV, read and checked as a whole, split by patient."""

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from napari_msamil.errors import MsamilError, ResultExistsError
from napari_msamil.files import write_atomically
from napari_msamil.slide.slide import Slide, open_slide

from .annotations import ANNOTATIONS, read_lesion

REQUIRED = ("slide", "label", "patient")
OPTIONAL = ("split", "fold", "mpp", "lesion", "site")
SPLITS = ("training", "validation", "test")
NO_LESION = "none"
"""In the lesion column: the slide is known to have no lesion. An empty cell says that nobody has marked it."""

_LISTED = 20  # faults written out; the rest are counted
_CHECKED_PX = 512  # longest side of the masks that are read to see whether they can be


class CohortError(MsamilError):
    """The table of slides has faults; the message lists them."""


@dataclass(frozen=True)
class CohortSlide:
    """One row of the table.

    Attributes:
        path: The slide file.
        label: Its class.
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
    label: str
    patient: str
    split: str = ""
    fold: int | None = None
    mpp: float | None = None
    lesion: Path | None = None
    site: str = ""
    lesion_free: bool = False


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

    def targets(self) -> NDArray[np.int64]:
        """Index of each slide's class, (n,)."""
        return np.array([self.classes.index(slide.label) for slide in self.slides], np.int64)


@dataclass(frozen=True)
class Parts:
    """Rows of a cohort for one training: (n,) int64 each, no patient in two of them."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def read_cohort(path: str | Path, *, files: bool = True) -> Cohort:
    """Read a table of slides; its paths may be relative to the table's folder.

    Args:
        path: CSV file with a header. Columns `slide`, `label`, `patient`; at will `split` or `fold`, `mpp`, `lesion`
            (mask image, QuPath GeoJSON, ASAP XML; "none" for a slide known to have no lesion; empty where that is not
            known) and `site`. Others are refused: a misspelt name would be missed.
        files: Whether slides and lesions must be there; False where the slides are only names.

    Raises:
        CohortError: Lists every fault of the table that shows without opening a slide.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path} cannot be read as a table of slides ({error}): give a CSV file in UTF-8.") from error
    faults = list(_header_faults(header)) or ([] if rows else ["it has no slides"])
    slides: list[CohortSlide] = []
    if not faults:
        for number, row in enumerate(rows, start=2):  # as an editor counts, the header being line 1
            found = _slide_of(row, path.parent, files=files)
            if isinstance(found, CohortSlide):
                slides.append(found)
            else:
                faults += [f"line {number}: {fault}" for fault in found]
        faults += _table_faults(slides)
    if faults:
        raise CohortError(_message(path, faults))
    return Cohort(path, tuple(slides), tuple(sorted({slide.label for slide in slides})))


def write_cohort(slides: Sequence[CohortSlide], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a table that `read_cohort` reads; it appears under its name only when it is complete.

    Slides and lesion files under the table's folder are written relative to it, so that the folder can be moved. Only
    columns that a slide makes use of are written.

    Returns:
        The path written.

    Raises:
        ResultExistsError: The table is already there, and ``overwrite`` is not set.
        CohortError: A slide has both a lesion file and none, or the table cannot be written.
    """
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    rows = [_row_of(slide, path.parent) for slide in slides]
    header = [name for name in REQUIRED + OPTIONAL if name in REQUIRED or any(row[name] for row in rows)]
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
        raise ResultExistsError(f"{path} is already there: choose another folder, or ask to overwrite it.")


def check_cohort(cohort: Cohort, *, folds: int = 5, files: bool = True) -> list[str]:
    """Every fault that keeps a cohort from being trained on.

    Opens each slide, reads each lesion file as far as a small mask needs it, and counts patients by class and part.

    Args:
        cohort: What `read_cohort` gave.
        folds: Number of folds where the table has neither splits nor folds.
        files: Whether to open them; False leaves it at counting.

    Returns:
        One sentence per fault; none means that training can begin.
    """
    faults: list[str] = []
    for slide in cohort.slides if files else ():
        try:
            with open_slide(slide.path, slide.mpp) as opened:
                if opened.mpp is None:
                    faults.append(f"{slide.path.name} does not say its µm per pixel: fill in its mpp")
                if slide.lesion is not None:
                    read_lesion(slide.lesion, (opened.width, opened.height), _small_shape(opened))
        except MsamilError as error:
            faults.append(str(error))
    if len(cohort.classes) < 2:
        faults.append(f"all slides are {cohort.classes[0]!r}: a classifier needs at least two classes")
    elif not (_has_splits(cohort) or _has_folds(cohort)):
        patients = {label: {s.patient for s in cohort.slides if s.label == label} for label in cohort.classes}
        faults += [
            f"class {label!r} has {len(found)} patient{'s' if len(found) > 1 else ''} for {folds} folds: use fewer "
            "folds, or leave the class out"
            for label, found in patients.items()
            if len(found) < folds
        ]
    elif _has_splits(cohort):
        for split in ("training", "test"):
            missing = set(cohort.classes) - {s.label for s in cohort.slides if s.split == split}
            faults += [f"the {split} part has no slide of class {label!r}" for label in sorted(missing)]
    return faults


def split_cohort(cohort: Cohort, *, folds: int = 5, validation: float = 0.2, seed: int = 0) -> list[Parts]:
    """Training, validation and test rows, once per fold; all slides of a patient are in one part.

    Where the table has splits they are one fold as they stand; where it has folds, each is the test part once; else
    folds are drawn, with about the same share of each class in all. Validation rows, where the table names none, are
    drawn from the training part in the same way.

    Args:
        cohort: The slides.
        folds: Number of folds to draw where the table has none.
        validation: About which share of the rows that are not tested are held out for choosing.
        seed: Of the drawing.

    Raises:
        CohortError: A class has too few patients to be in all parts.
    """
    rows = np.arange(len(cohort.slides))
    if _has_splits(cohort):
        by_split = {name: np.array([s.split == name for s in cohort.slides]) for name in SPLITS}
        training, held = rows[by_split["training"]], rows[by_split["validation"]]
        if not len(held):
            training, held = _held_out(cohort, training, validation, seed)
        return [Parts(training, held, rows[by_split["test"]])]
    if _has_folds(cohort):
        numbers = np.array([s.fold for s in cohort.slides])
        tests = [rows[numbers == fold] for fold in np.unique(numbers)]
    else:
        tests = _draw(cohort, rows, folds, seed)
    return [Parts(*_held_out(cohort, np.setdiff1d(rows, test), validation, seed), test) for test in tests]


def _small_shape(slide: Slide) -> tuple[int, int]:
    """(h, w) of a small mask of a slide, in its proportions."""
    step = max(slide.width, slide.height, _CHECKED_PX) / _CHECKED_PX
    return max(round(slide.height / step), 1), max(round(slide.width / step), 1)


def _has_splits(cohort: Cohort) -> bool:
    return bool(cohort.slides[0].split)


def _has_folds(cohort: Cohort) -> bool:
    return cohort.slides[0].fold is not None


def _draw(cohort: Cohort, rows: NDArray[np.int64], folds: int, seed: int) -> list[NDArray[np.int64]]:
    """Rows cut into folds: patients whole, classes spread evenly."""
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    patients = [cohort.slides[row].patient for row in rows]
    return [rows[test] for _, test in splitter.split(rows, cohort.targets()[rows], patients)]


def _held_out(
    cohort: Cohort, rows: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows less about a share of them, and that share; more where a class has few patients, so that it is in both."""
    patients = {(cohort.slides[row].label, cohort.slides[row].patient) for row in rows}
    rarest, fewest = min(Counter(label for label, _ in patients).items(), key=lambda item: item[1])
    if fewest < 2:
        raise CohortError(
            f"{cohort.source}: where a fold is tested, class {rarest!r} has one patient left, who cannot be both "
            "learned from and validated on: use more patients, or leave the class out."
        )
    held = _draw(cohort, rows, max(2, min(round(1 / share), fewest)), seed)[0]
    return np.setdiff1d(rows, held), held


def _header_faults(header: Sequence[str]) -> Iterator[str]:
    missing = [name for name in REQUIRED if name not in header]
    unknown = [name for name in header if name not in REQUIRED + OPTIONAL]
    if missing:
        yield f"it lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
    if unknown:
        yield f"it has unknown columns {', '.join(map(repr, unknown))}; known are {', '.join(REQUIRED + OPTIONAL)}"
    if "split" in header and "fold" in header:
        yield "it has both split and fold; keep one"


def _slide_of(row: Mapping[str, str | None], folder: Path, *, files: bool) -> CohortSlide | list[str]:
    """A row as a slide, or what is wrong with it."""
    cells = {name: (row.get(name) or "").strip() for name in REQUIRED + OPTIONAL}
    faults = [f"{name} is empty" for name in REQUIRED if not cells[name]]
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
    return CohortSlide(
        path, cells["label"], cells["patient"], cells["split"], fold, mpp, lesion, cells["site"], lesion_free
    )


def _row_of(slide: CohortSlide, folder: Path) -> dict[str, str]:
    """A slide as the cells of its row."""
    if slide.lesion is not None and slide.lesion_free:
        raise CohortError(f"{slide.path.name} has the lesion file {slide.lesion} and is said to have no lesion.")
    lesion = NO_LESION if slide.lesion_free else ""
    return {
        "slide": _written_path(slide.path, folder),
        "label": slide.label,
        "patient": slide.patient,
        "split": slide.split,
        "fold": "" if slide.fold is None else str(slide.fold),
        "mpp": "" if slide.mpp is None else repr(float(slide.mpp)),
        "lesion": lesion if slide.lesion is None else _written_path(slide.lesion, folder),
        "site": slide.site,
    }


def _written_path(path: Path, folder: Path) -> str:
    """Relative with slashes where it lies under the table's folder, else absolute."""
    path, folder = path.absolute(), folder.absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _table_faults(slides: Sequence[CohortSlide]) -> Iterator[str]:
    """What is wrong between rows."""
    for path, count in Counter(slide.path.resolve() for slide in slides).items():
        if count > 1:
            yield f"{path.name} stands there {count} times"
    for name in ("split", "fold"):
        values = {getattr(slide, name) for slide in slides}
        if len(values) > 1 and values & {"", None}:
            yield f"{name} is filled in for some slides only: fill it in for all, or for none"
    parts: dict[str, set[str]] = defaultdict(set)
    for slide in slides:
        parts[slide.patient].add(slide.split or ("" if slide.fold is None else f"fold {slide.fold}"))
    for patient, found in sorted(parts.items()):
        if len(found) > 1:
            yield f"patient {patient} is in {' and '.join(sorted(found))}: a patient belongs to one part"


def _message(path: Path, faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return f"{path} cannot be used as a table of slides: " + "; ".join(faults[:_LISTED]) + more + "."
