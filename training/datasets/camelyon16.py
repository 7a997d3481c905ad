"""CAMELYON16 (Litjens et al., GigaScience 2018; CC0): lymph nodes with and without metastasis of breast cancer.

Layout as published: `training/normal/normal_NNN.tif`, `training/tumor/tumor_NNN.tif`, `testing/images/test_NNN.tif` and
`testing/reference.csv` (name, Normal or Tumor, ...; with or without a header), or all slides flat in `images/` as on
AWS. Annotations are ASAP XML, unpacked to `annotations/`, `training/lesion_annotations/` or
`testing/lesion_annotations/`; some slides are annotated only in part, says the README of the data.

The data name no patients, and say that each slide is of another one: each slide counts as a patient of its own.
`test_049` is left out: it is a copy of `test_114`, and was withdrawn.
"""

import csv
from pathlib import Path

from ..cohort import CohortError, CohortSlide
from .files import refuse_faults, table_path, write_table

NAME = "CAMELYON16"
CLASSES = ("normal", "tumor")
ANNOTATION_FOLDERS = (
    "annotations", "training/lesion_annotations", "testing/lesion_annotations",
    "training/Lesion_annotations", "testing/Lesion_annotations",
)  # fmt: skip
DUPLICATE = "test_049"
_REFERENCES = ("testing/reference.csv", "reference.csv", "evaluation/reference.csv")


def write(folder: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write the table; its split is the challenge's: training and test.

    Normal slides are known to have no lesion. The pixel size is read from the slides.

    Args:
        folder: The dataset as unpacked.
        out: Folder for `cohort.csv`.
        overwrite: Whether a table that is already there is replaced.

    Returns:
        The table.

    Raises:
        CohortError: Names all that is missing: slides, annotations of tumour slides, rows of the reference.
        ResultExistsError: The table is already there.
    """
    folder, table = Path(folder), table_path(out, overwrite=overwrite)
    labelled = [(path, "normal", "training") for path in _slides(folder, "training/normal", "normal_")]
    labelled += [(path, "tumor", "training") for path in _slides(folder, "training/tumor", "tumor_")]
    faults = [
        f"there are no training slides of class {label!r}"
        for label in CLASSES
        if label not in {found for _, found, _ in labelled}
    ]
    tests = {path.stem: path for path in _slides(folder, "testing/images", "test_") if path.stem != DUPLICATE}
    reference = next((folder / name for name in _REFERENCES if (folder / name).is_file()), None)
    if reference is None:
        faults.append(f"there is no {_REFERENCES[0]}")
    else:
        labels = _read_reference(reference)
        faults += [f"{name}.tif is not in {reference.name}" for name in sorted(set(tests) - set(labels))]
        faults += [f"there is no {name}.tif" for name in sorted(set(labels) - set(tests))]
        labelled += [(tests[name], labels[name], "test") for name in sorted(set(tests) & set(labels))]
    slides = []
    for path, label, split in labelled:
        lesion = _annotation(folder, path.stem) if label == "tumor" else None
        if label == "tumor" and lesion is None:
            faults.append(f"there is no annotation {path.stem}.xml in {ANNOTATION_FOLDERS[0]}")
        slides.append(CohortSlide(path, label, path.stem, split, lesion=lesion, lesion_free=label == "normal"))
    refuse_faults(NAME, folder, faults)
    return write_table(NAME, folder, slides, table, overwrite=overwrite)


def _slides(folder: Path, place: str, prefix: str) -> list[Path]:
    """Slides of one kind in the published place or, as on AWS, flat in images/."""
    return sorted((folder / place).glob(f"{prefix}*.tif")) or sorted((folder / "images").glob(f"{prefix}*.tif"))


def _annotation(folder: Path, name: str) -> Path | None:
    paths = (folder / place / f"{name}.xml" for place in ANNOTATION_FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def _read_reference(path: Path) -> dict[str, str]:
    """Label of each test slide by its name."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path} cannot be read as a table ({error}): give the file as published.") from error
    labels = {
        row[0].removesuffix(".tif"): row[1].lower() for row in rows if len(row) > 1 and row[0].startswith("test_")
    }
    labels.pop(DUPLICATE, None)
    faults = [f"{name} is {label!r}, not Normal or Tumor" for name, label in labels.items() if label not in CLASSES]
    if faults or not labels:
        raise CohortError(f"{path} names no test slides: give the file as published. {'; '.join(faults)}".strip())
    return labels
