"""The result folder of one slide: written beside its place and moved there whole, so that it is complete or absent."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.errors import MsamilError, ResultExistsError
from napari_msamil.files import TEMPORARY
from napari_msamil.inference.geojson import mask_feature_collection, multipolygon
from napari_msamil.inference.heatmap import write_heatmap
from napari_msamil.inference.overview import draw_overview
from napari_msamil.inference.prediction import LESION_RGB, RESEARCH_USE

if TYPE_CHECKING:
    from napari_msamil.inference.classify import Request
    from napari_msamil.inference.prediction import Prediction

SUMMARY = "prediction.json"
_OURS = {SUMMARY, "patches.csv", "lesion.geojson", "overview.png"}


def result_folder(slide_path: Path, out_dir: Path) -> Path:
    """Where the result of a slide goes: a folder named like the slide without its ending."""
    return out_dir / slide_path.stem


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a result can be written, over nothing but one of ours, if asked to; call it before long work.

    Raises:
        ResultExistsError: a result is there and `overwrite` is False, or the folder holds something else: a slide's own
            pixel folder may have the same name.
        MsamilError: nothing can be written there.
    """
    try:
        _try_to_write(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if not folder.exists():
        return
    if not (folder / SUMMARY).is_file():
        raise ResultExistsError(f"{folder} is there already and is no result of ours: choose another folder.")
    if not overwrite:
        raise ResultExistsError(f"{folder} is there already: choose another folder, or say that it may be replaced.")


def same_slide(folder: Path, prediction: Prediction) -> bool:
    """Whether the result in a folder is of the same slide file as a prediction, by its name and sizes."""
    facts = ("name", "file_bytes", "width_px", "height_px")
    try:
        earlier = _read_summary(folder)["slide"]
        found = [earlier[fact] for fact in facts]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return found == [prediction.summary()["slide"][fact] for fact in facts]


def is_done(folder: Path, request: Request) -> bool:
    """Whether the result in a folder is what a request, whose model is loaded, would make again.

    Slide file (name and bytes), model, region and pixel size are the same; how many read errors it accepts may differ.
    """
    try:
        earlier = _read_summary(folder)
        slide = earlier["slide"]
        found = slide["name"], slide["file_bytes"], earlier["model"]["sha256"], earlier["region"]
        mpp, source = (slide["mpp_x"], slide["mpp_y"]), slide["mpp_source"]
        size = request.slide.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False
    region = None if request.region is None else multipolygon(request.region)
    given = request.mpp if isinstance(request.mpp, tuple) else (request.mpp, request.mpp)
    same_mpp = source == "metadata" if request.mpp is None else (mpp, source) == (given, "explicit")
    return same_mpp and found == (request.slide.name, size, getattr(request.model, "sha256", None), region)


def _read_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return summary


def write_result(prediction: Prediction, out_dir: str | Path, *, overwrite: bool = False) -> Path:
    """Write prediction.json, patches.csv, lesion.geojson, one heatmap TIFF per scale and overview.png.

    Args:
        prediction: what to write; its slide is opened again for the picture.
        out_dir: parent folder, made where it is missing.
        overwrite: replace an earlier result of the same name; what else is in its folder stays there.

    Returns:
        The folder `out_dir/<slide stem>`.

    Raises:
        ResultExistsError, MsamilError: see `check_free`.
    """
    folder = result_folder(prediction.slide_path, Path(out_dir))
    check_free(folder, overwrite=overwrite)
    folder = folder.resolve()  # a link stays one
    temporary = _aside(folder)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_files(prediction, temporary)
        _replace_folder(temporary, folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _cannot_write(folder: Path, error: OSError) -> MsamilError:
    return MsamilError(f"Cannot write the result to {folder}: {error.strerror or error}.")


def _aside(folder: Path) -> Path:
    """A hidden folder of this thread beside a result's, of a short name: the slide's may be as long as names can be."""
    return folder.with_name(f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}")


def _try_to_write(folder: Path) -> None:
    """Make a folder in the nearest one that is there, and remove it; raises OSError where that fails."""
    nearest = next(parent for parent in folder.absolute().parents if parent.exists())
    trial = _aside(nearest / folder.name)
    trial.mkdir()
    trial.rmdir()
    with contextlib.suppress(FileNotFoundError):
        folder.lstat()  # raises another error where the name is too long


def _replace_folder(new: Path, folder: Path) -> None:
    """Move a finished folder into place; an older one steps aside first and is deleted last, but for what is not ours.

    The user may have put notes or a QuPath project beside a result.
    """
    if not folder.exists():
        new.rename(folder)
        return
    old = _aside(folder).with_suffix(".old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    try:
        ours = _OURS | {file.name for file in folder.iterdir()} | {_heatmap_name(scale) for scale in _scales(old)}
        for entry in [entry for entry in old.iterdir() if entry.name not in ours]:
            entry.rename(folder / entry.name)
    except OSError as error:
        raise MsamilError(
            f"The result was written to {folder}, but what else was there could not be put back "
            f"({error.strerror or error}): it lies in {old}."
        ) from error
    shutil.rmtree(old)


def _scales(folder: Path) -> list[str]:
    """Names of the scales of a result."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return [str(scale["name"]) for scale in summary["scales"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _heatmap_name(scale: str) -> str:
    return f"attention_{scale}.tif"


def _write_files(prediction: Prediction, folder: Path) -> None:
    _write_patches(prediction, folder / "patches.csv")
    outline = mask_feature_collection(
        prediction.lesion_mask, prediction.slide_size, label=prediction.lesion_label, rgb=LESION_RGB
    )
    (folder / "lesion.geojson").write_text(json.dumps(outline), encoding="utf-8")
    about = {
        "slide": prediction.slide_path.name,
        "slide_px": prediction.slide_size,
        "patches": int(np.isfinite(prediction.attention).sum()),
        "slide_bytes": prediction.slide_bytes,
        "looked_at": prediction.looked_at,
        "weak": prediction.weak,
        "notice": RESEARCH_USE,
    }
    for index in range(len(prediction.table.scales)):
        heatmap = prediction.heatmap(index, values="attention")
        write_heatmap(heatmap, prediction.mpp, folder / _heatmap_name(heatmap.name), **about)
    draw_overview(prediction).save(folder / "overview.png")
    text = json.dumps(prediction.summary(), indent=2, ensure_ascii=False)
    # a file name may hold bytes that are no UTF-8: written with a backslash, they are JSON all the same
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _write_patches(prediction: Prediction, path: Path) -> None:
    table = prediction.table
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["scale", "x", "y", "width", "height", "tissue_fraction", "lesion_fraction", "attention", "status"]
        )
        for row in range(len(table)):
            index = int(table.scale[row])
            width, height = table.footprint(index)
            failed = row in prediction.read_errors
            writer.writerow([
                table.scales[index].name, *table.coords[row].tolist(), f"{width:.3f}", f"{height:.3f}",
                f"{table.tissue[row]:.4f}", f"{table.lesion[row]:.4f}",
                "" if failed else f"{prediction.attention[row]:.6g}", "read_error" if failed else "ok",
            ])  # fmt: skip
