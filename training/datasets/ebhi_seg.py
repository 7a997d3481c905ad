"""EBHI-Seg (Shi et al., Front Med 2023, doi 10.3389/fmed.2023.1114673; CC BY 4.0): labelled fields of colon histology.

A case's fields become one composed slide. Its label is whether any field of the case is an adenocarcinoma. Its lesion
is the glands of the neoplastic classes, closed over the thin strips of stroma between them, so that the lesion is a
region as a pathologist draws it and not a sieve: see `CLOSING_UM`.
"""

import csv
import logging
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_msamil.slide.write import write_slide

from ..cohort import CohortError, CohortSlide
from .compose import Cell, ComposedSlide, compose
from .files import refuse_faults, table_path, write_mask, write_table

logger = logging.getLogger(__name__)

NAME = "EBHI-Seg"
FOLDS = (0, 1, 2, 3)
ATTRIBUTION = (
    "EBHI-Seg: Shi L. et al., EBHI-Seg: A novel enteroscope biopsy histopathological hematoxylin and eosin image "
    "dataset for image segmentation tasks, Frontiers in Medicine 2023, doi 10.3389/fmed.2023.1114673, "
    "figshare 21540159, CC BY 4.0"
)
TISSUES = ("Normal", "Polyp", "Low-grade IN", "High-grade IN", "Adenocarcinoma", "Serrated adenoma")
NEOPLASTIC = frozenset({"Low-grade IN", "High-grade IN", "Adenocarcinoma", "Serrated adenoma"})
"""Classes whose glands are lesion. Normal and Polyp are not."""
ADENOCARCINOMA = TISSUES.index("Adenocarcinoma")
CLASSES = ("no adenocarcinoma", "adenocarcinoma")

FIELD_PX = 224
FIELD_MPP = 1.0
CLOSING_UM = 24
"""Strips of stroma narrower than twice this between neoplastic glands count as lesion."""


@dataclass(frozen=True)
class FieldFile:
    """One field on disk: its picture, its gland mask (None for the two that have none) and its class."""

    image: Path
    mask: Path | None
    tissue: str


@dataclass(frozen=True)
class Case:
    """All fields of one case: the unit that is labelled, split and evaluated. ``label`` indexes `CLASSES`."""

    name: str
    fold: int
    label: int
    fields: tuple[FieldFile, ...]


def read_cases(folder: str | Path, folds: Collection[int]) -> list[Case]:
    """The cases of the folds asked for, sorted by name; rows of other folds are not kept and their pictures not opened.

    Raises:
        ValueError: If a case lies in two folds, or its fields disagree on its label.
    """
    folder = Path(folder)
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "index.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["fold"]) in folds:
                rows.setdefault(row["case"], []).append(row)
    return [_case(folder, name, rows[name]) for name in sorted(rows)]


def _case(folder: Path, name: str, rows: Sequence[dict[str, str]]) -> Case:
    folds = {int(row["fold"]) for row in rows}
    labels = {int(row["case_has_adenocarcinoma"]) for row in rows}
    if len(folds) != 1 or len(labels) != 1:
        raise ValueError(f"Case {name} has folds {sorted(folds)} and labels {sorted(labels)}; each must be one value.")
    files = (
        FieldFile(folder / row["image"], folder / row["mask"] if row["mask"] else None, row["class"]) for row in rows
    )
    return Case(name, folds.pop(), labels.pop(), tuple(sorted(files, key=lambda file: file.image.name)))


def split_cases(cases: Sequence[Case], *, share: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Training and validation cases, ``share`` of each label in the latter. No case is in both."""
    rng = np.random.default_rng(seed)
    held: set[str] = set()
    for label in sorted({case.label for case in cases}):
        names = sorted(case.name for case in cases if case.label == label)
        held.update(rng.permutation(names)[: round(share * len(names))].tolist())
    return [c for c in cases if c.name not in held], [c for c in cases if c.name in held]


@lru_cache(maxsize=2048)
def load_cell(file: FieldFile) -> Cell:
    """A field's pixels with its lesion: its closed gland mask if it is neoplastic, else nothing. Kept in memory.

    A neoplastic field without a mask (there are two) is lesion wherever it is not blank.
    """
    pixels = np.asarray(Image.open(file.image).convert("RGB").resize((FIELD_PX, FIELD_PX)))
    if file.tissue not in NEOPLASTIC:
        lesion = np.zeros(pixels.shape[:2], bool)
    elif file.mask is None:
        lesion = pixels.min(axis=2) < 200
    else:
        glands = Image.open(file.mask).convert("L").resize((FIELD_PX, FIELD_PX), Image.Resampling.NEAREST)
        lesion = close_mask(np.asarray(glands) > 127, round(CLOSING_UM / FIELD_MPP))
    return Cell(pixels, lesion, TISSUES.index(file.tissue))


def close_mask(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Morphological closing by a square of side 2 radius + 1; the border is mirrored, so that it closes too."""
    padded = np.pad(mask, 2 * radius, mode="reflect")
    closed = ~_dilate(~_dilate(padded, radius), radius)
    return closed[2 * radius : -2 * radius, 2 * radius : -2 * radius]


def _dilate(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """True within ``radius`` px of a true pixel, row- and column-wise; wraps round at the border."""
    side = 2 * radius + 1
    for axis in (0, 1):
        width = 1  # every step at most doubles how far a pixel spreads
        while width < side:
            shift = min(width, side - width)
            mask = mask | np.roll(mask, shift, axis=axis)
            width += shift
        mask = np.roll(mask, -radius, axis=axis)
    return mask


def compose_case(
    case: Case, rng: np.random.Generator, *, cells_a_side: tuple[int, int] = (6, 12), mpp: float = FIELD_MPP
) -> ComposedSlide:
    """A slide composed of one case's fields; every field appears, most of them several times.

    Args:
        case: The case.
        rng: Layout, turns, glass and scale come from here.
        cells_a_side: Least and most columns and rows.
        mpp: µm per pixel of the slide.
    """
    low, high = cells_a_side
    grid = int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1))
    cells = [load_cell(file) for file in case.fields]
    # Microscopes and growth differ: glands come up to a fifth smaller or larger.
    cell_mpp = FIELD_MPP * float(np.exp(rng.uniform(np.log(0.83), np.log(1.2))))
    return compose(cells, rng, grid=grid, mpp=mpp, cell_mpp=cell_mpp, fill=float(rng.uniform(0.55, 0.85)))


def write(
    folder: str | Path,
    out: str | Path,
    *,
    folds: Collection[int] = FOLDS,
    seed: int = 0,
    cells_a_side: tuple[int, int] = (6, 12),
    overwrite: bool = False,
) -> Path:
    """Write one composed slide per case with its lesion mask, and their table; its folds are those of `index.csv`.

    A case's slide depends on its fields, its name and ``seed`` alone, not on which other folds are written. The patient
    is the case; whether two cases are of one patient is not known. A case without neoplastic gland has no lesion.

    Args:
        folder: EBHI-Seg with its `index.csv`, `images/` and `masks/`.
        out: Folder for `cohort.csv`, `slides/` and `lesions/`.
        folds: Folds that are used at all; pictures of other folds are never opened.
        seed: Of the composition.
        cells_a_side: Least and most columns and rows of fields.
        overwrite: Whether a table that is already there is replaced.

    Returns:
        The table.

    Raises:
        CohortError: Names all that is missing.
        ResultExistsError: The table is already there.
    """
    folder, out, table = Path(folder), Path(out), table_path(out, overwrite=overwrite)
    cases = _whole_cases(folder, folds)
    slides = []
    for number, case in enumerate(cases, start=1):
        rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
        slide = compose_case(case, rng, cells_a_side=cells_a_side)
        load_cell.cache_clear()  # no case is composed twice here
        path = write_slide(out / "slides" / f"{case.name}.tif", slide.rgb, mpp=slide.mpp, software=ATTRIBUTION)
        drawn = bool(slide.lesion.any())
        lesion = write_mask(out / "lesions" / f"{case.name}.png", slide.lesion) if drawn else None
        label = CLASSES[case.label]
        slides.append(CohortSlide(path, label, case.name, fold=case.fold, lesion=lesion, lesion_free=not drawn))
        logger.info("%d of %d slides written: %s", number, len(cases), path.name)
    return write_table(NAME, folder, slides, table, overwrite=overwrite)


def _whole_cases(folder: Path, folds: Collection[int]) -> list[Case]:
    """The cases of some folds, if all of their files are there."""
    if not (folder / "index.csv").is_file():
        refuse_faults(NAME, folder, ["there is no index.csv"])
    try:
        cases = read_cases(folder, folds)
    except (KeyError, ValueError, csv.Error) as error:
        raise CohortError(f"{folder / 'index.csv'} is not the index of EBHI-Seg ({error}): copy it again.") from error
    files = [path for case in cases for field in case.fields for path in (field.image, field.mask) if path]
    faults = [f"there is no {path.relative_to(folder).as_posix()}" for path in files if not path.is_file()]
    refuse_faults(NAME, folder, faults)
    if not cases:
        raise CohortError(
            f"No case of {folder} is in the folds {', '.join(map(str, folds))}: leave --fold out for all."
        )
    return cases
