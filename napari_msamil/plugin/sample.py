"""The sample slide of napari's File > Open Sample menu: made on this machine once, no download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import napari
import platformdirs
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info

import napari_msamil
from napari_msamil.plugin.reader import read_slide
from napari_msamil.slide.sample import write_sample_slide

if TYPE_CHECKING:
    from napari_msamil.plugin.slides import LayerData


def sample_path() -> Path:
    """The synthetic slide's file in the user's cache folder, be it there or not."""
    folder = Path(platformdirs.user_cache_dir("napari-msamil"))
    return folder / f"synthetic-slide-{napari_msamil.__version__}.tif"


def make_sample() -> list[LayerData]:
    """A small synthetic H&E-like slide with a lesion.

    The first time it is drawn in the background, which takes some seconds: napari is given nothing yet, and its window
    the slide once it is there.
    """
    path = sample_path()
    if napari.current_viewer() is None and not path.exists():
        write_sample_slide(path)
    if path.exists():
        return read_slide(path)
    show_info("Drawing the synthetic slide, this once: some seconds …")
    worker = create_worker(_draw, path, _start_thread=False, _ignore_errors=True)
    worker.returned.connect(lambda error: _show(path, error))
    worker.start()
    return []


def _draw(path: Path) -> str:
    """Write the file; returns what went wrong, if anything did."""
    try:
        write_sample_slide(path)
    except Exception as error:  # whatever it is, the user waits for an answer
        return f"The synthetic slide could not be written to {path} ({type(error).__name__}: {error})."
    return ""


def _show(path: Path, error: str) -> None:
    viewer = napari.current_viewer()
    if error:
        show_error(error)
    elif viewer is not None:  # the window may be closed by now
        for data, keywords, _ in read_slide(path):
            viewer.add_image(data, **keywords)
