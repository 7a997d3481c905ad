"""BCNB (Xu et al., Front Oncol 2021): core-needle biopsies of early breast cancer, labelled by the axillary nodes.

Layout as published (bupt-ai-cz.github.io/BCNB, github.com/bupt-ai-cz/BALNMP): `WSIs/{id}.jpg`, beside each `{id}.json`
with the annotated tumour, and `patient-clinical-data.xlsx` with the columns "Patient ID" and "ALN status" (N0,
N+(1-2), N+(>2)). There is one slide per patient, and its name is the patient's number. Only a part of each tumour is
annotated: what lies outside is not proven free of it.

The slides were scanned with an Iscan Coreo and "viewed at 200x", which is a 20x objective; the files state no pixel
size. 20x is taken as 0.5 µm per pixel; give ``mpp`` if you know it better. Non-commercial use only, says its licence.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_msamil.files import write_atomically
from napari_msamil.inference.geojson import Polygon, multipolygon

from ..cohort import CohortError, CohortSlide
from .files import read_rows, refuse_faults, require_columns, table_path, write_table
from .xlsx import read_sheet

NAME = "BCNB"
MPP = 0.5
CLASSES = ("N0", "N+(1-2)", "N+(>2)")
"""Metastases in axillary lymph nodes: none, in one or two, in more."""

TABLES = ("patient-clinical-data.xlsx", "patient-clinical-data.csv")
_ID, _STATUS = "Patient ID", "ALN status"


def write(folder: str | Path, out: str | Path, *, mpp: float = MPP, overwrite: bool = False) -> Path:
    """Write the table of all slides, and their annotations as GeoJSON.

    Args:
        folder: The dataset as unpacked.
        out: Folder for `cohort.csv` and `lesions/`.
        mpp: µm per pixel of all slides.
        overwrite: Whether a table that is already there is replaced.

    Returns:
        The table. A slide without annotated tumour has an unknown lesion: all of them show cancer.

    Raises:
        CohortError: Names all that is missing or cannot be understood.
        ResultExistsError: The table is already there.
    """
    folder, table = Path(folder), table_path(out, overwrite=overwrite)
    labels, faults = _read_labels(folder)
    polygons: dict[str, tuple[Polygon, ...]] = {}
    for name in labels:
        if not _slide(folder, name).is_file():
            faults.append(f"there is no WSIs/{name}.jpg")
        try:
            polygons[name] = _annotation(_slide(folder, name).with_suffix(".json"))
        except ValueError as error:
            faults.append(f"WSIs/{name}.json is no annotation of BCNB ({error})")
    refuse_faults(NAME, folder, faults)
    slides = []
    for name, label in labels.items():
        lesion = _write_lesion(Path(out) / "lesions" / f"{name}.geojson", polygons[name])
        slides.append(CohortSlide(_slide(folder, name), label, name, mpp=mpp, lesion=lesion))
    return write_table(NAME, folder, slides, table, overwrite=overwrite)


def _slide(folder: Path, name: str) -> Path:
    return folder / "WSIs" / f"{name}.jpg"


def _read_labels(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Class of each patient from the clinical table, and what is wrong with it."""
    clinical = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if clinical is None:
        return {}, [f"there is no {' or '.join(TABLES)}"]
    labels: dict[str, str] = {}
    faults = []
    for row in _rows(clinical):
        name, status = row[_ID].removesuffix(".0"), _status(row[_STATUS])
        if name in labels:
            faults.append(f"patient {name} stands in {clinical.name} twice")
        if status not in CLASSES:
            faults.append(f"ALN status of patient {name} is {row[_STATUS]!r}, not one of {', '.join(CLASSES)}")
        labels[name] = status
    strangers = sorted(p.name for p in (folder / "WSIs").glob("*.jpg") if p.stem not in labels)
    return labels, faults + [f"WSIs/{name} is not in {clinical.name}" for name in strangers]


def _rows(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".csv":
        return read_rows(path, (_ID, _STATUS))
    header, *cells = read_sheet(path) or [[]]
    require_columns(path, header, (_ID, _STATUS))
    rows = [dict(zip(header, line, strict=False)) for line in cells]
    return [{_ID: row.get(_ID, ""), _STATUS: row.get(_STATUS, "")} for row in rows if row.get(_ID)]


def _status(text: str) -> str:
    """A status as in `CLASSES`: without spaces, with the ASCII sign."""
    return "".join(text.split()).replace("＞", ">").replace("~", "-")


def _annotation(path: Path) -> tuple[Polygon, ...]:
    """Areas marked "positive", less those marked "negative"; none if there is no file.

    Raises:
        ValueError: It is not {"positive": [{"vertices": [[x, y], ...]}, ...], "negative": [...]}.
    """
    if not path.is_file():
        return ()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        holes = tuple(_ring(item) for item in document.get("negative", ()))
        return tuple(Polygon(_ring(item), holes) for item in document["positive"])
    except (OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _ring(item: Any) -> NDArray[np.float64]:
    ring = np.asarray(item["vertices"], np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError("an area needs three points x, y or more")
    return ring


def _write_lesion(path: Path, polygons: tuple[Polygon, ...]) -> Path | None:
    """Write areas as GeoJSON, which QuPath opens, too; None where there are none."""
    if not polygons:
        return None
    feature = {"type": "Feature", "geometry": multipolygon(polygons), "properties": {"objectType": "annotation"}}
    text = json.dumps({"type": "FeatureCollection", "features": [feature]})
    try:
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise CohortError(f"{path} cannot be written ({error.strerror}); choose another folder.") from error
    return path
