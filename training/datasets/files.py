"""What all adapters do alike: name what is missing, all of it at once, and write masks and the table."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_msamil.errors import listed
from napari_msamil.files import write_atomically

from ..cohort import TABLE, CohortError, CohortSlide, refuse_existing, write_cohort


def table_path(out: str | Path, *, overwrite: bool) -> Path:
    """Where the table of an adapter goes; raises ResultExistsError before any work is done if it may not."""
    path = Path(out) / TABLE
    refuse_existing(path, overwrite=overwrite)
    return path


def refuse_faults(dataset: str, folder: Path, faults: Sequence[str]) -> None:
    """Raise CohortError naming all faults of a dataset's folder, if there are any; ``dataset`` is its name."""
    if faults:
        remedy = "See that it is complete and laid out as expected."
        raise CohortError(f"{folder} cannot be used as {dataset}:{listed(faults, remedy)}")


def write_table(dataset: str, folder: Path, slides: Sequence[CohortSlide], path: Path, *, overwrite: bool) -> Path:
    """Write the table of a dataset; with fewer than two classes nothing can be learnt, and it is refused."""
    classes = {name for slide in slides for name in slide.classes}
    if len(classes) < 2:
        found = f"only slides of class {classes.pop()!r}" if classes else "no slides"
        refuse_faults(dataset, folder, [f"it holds {found}"])
    return write_cohort(slides, path, overwrite=overwrite)


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file that has at least these columns; cells are stripped.

    Raises:
        CohortError: It cannot be read as CSV, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = [{name: (row.get(name) or "").strip() for name in header} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path} cannot be read as a table ({error}): give the CSV file as published.") from error
    require_columns(path, header, columns)
    return rows


def require_columns(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    """Raise CohortError where a table lacks a column."""
    missing = [name for name in columns if name not in header]
    if missing:
        raise CohortError(f"{path} lacks the columns {', '.join(missing)}: give the table as published.")


def write_mask(path: Path, lesion: NDArray[np.bool_]) -> Path:
    """Write a lesion mask (h, w) bool as PNG, 255 where lesion; the file appears only when it is complete."""
    picture = Image.fromarray(lesion.astype(np.uint8) * 255)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))
    return path
