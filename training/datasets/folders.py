"""Slides sorted into one folder per class: the folder's name is the label.

`{folder}/{class}/**/{slide}`, where a file is a slide if its suffix is in `SLIDE_SUFFIXES`. A lesion file beside a
slide belongs to it: `{stem}.geojson`, `{stem}.xml`, or a mask `{stem}_mask.png`, `.tif`, `.tiff` or `.jpg`; a slide
without one has an unknown lesion. Of the files of a DICOM slide the first stands for all.

Such a tree names no patients. Unless a pattern says how to read them from the paths, each slide counts as a patient of
its own; with several slides per patient figures then come out too good, so give the pattern.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from napari_msamil.errors import MsamilError
from napari_msamil.slide.detect import SLIDE_SUFFIXES
from napari_msamil.slide.slide import open_slide

from ..cohort import CohortError, CohortSlide
from .files import refuse_faults, table_path, write_table

logger = logging.getLogger(__name__)
NAME = "slides in one folder per class"
_LESIONS = (".geojson", ".xml", "_mask.png", "_mask.tif", "_mask.tiff", "_mask.jpg")


def write(
    folder: str | Path,
    out: str | Path,
    *,
    patient: str | None = None,
    mpp: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the table of all slides under a folder.

    Args:
        folder: The folder with one folder per class.
        out: Folder for `cohort.csv`.
        patient: Regular expression searched in each slide's path below ``folder`` (with slashes); the patient is its
            first group, or the whole match where it has none. By default the patient is the file's stem.
        mpp: µm per pixel of all slides; None: what each file says itself.
        overwrite: Whether a table that is already there is replaced.

    Returns:
        The table.

    Raises:
        CohortError: There are fewer than two classes, or paths in which the pattern is not found.
        ResultExistsError: The table is already there.
    """
    folder, table = Path(folder), table_path(out, overwrite=overwrite)
    if patient is None:
        logger.warning(
            "each file counts as a patient of its own: where a patient has several slides, say by --patient how their "
            "paths name him, or figures come out too good"
        )
    try:
        pattern = re.compile(patient) if patient else None
    except re.error as error:
        raise CohortError(f"The pattern for patients, {patient!r}, is no regular expression ({error}).") from error
    slides, faults = [], []
    for path in _once(_slides(folder)):
        below = path.relative_to(folder)
        name = _patient(below, pattern)
        if not name:
            faults.append(f"no patient is found in {below.as_posix()!r} by {patient!r}")
        slides.append(CohortSlide(path, below.parts[0], name, mpp=mpp, lesion=_lesion(path)))
    refuse_faults(NAME, folder, faults)
    return write_table(NAME, folder, slides, table, overwrite=overwrite)


def _slides(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CohortError(f"There is no folder {folder}: check the path.")
    return sorted(
        path
        for path in folder.glob("*/**/*")
        if path.is_file() and path.suffix.lower() in SLIDE_SUFFIXES and not path.stem.endswith("_mask")
    )


def _once(paths: Iterable[Path]) -> Iterator[Path]:
    """All but further files of a DICOM slide in its folder; one that cannot be opened is left for the check to name."""
    seen = set()
    for path in paths:
        if path.suffix.lower() == ".dcm":
            try:
                with open_slide(path) as slide:
                    quickhash = slide.properties.get("quickhash", path)
            except MsamilError:
                quickhash = path
            if (path.parent, quickhash) in seen:
                continue
            seen.add((path.parent, quickhash))
        yield path


def _patient(below: Path, pattern: re.Pattern[str] | None) -> str:
    if pattern is None:
        return below.stem
    found = pattern.search(below.as_posix())
    if found is None:
        return ""
    return (found.group(1) if pattern.groups else found.group()) or ""


def _lesion(slide: Path) -> Path | None:
    return next((p for p in (slide.with_name(slide.stem + end) for end in _LESIONS) if p.is_file()), None)
