"""The sample slide of napari's File > Open Sample menu: made on this machine once, no download."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import napari
import numpy as np
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error

import napari_msamil
from napari_msamil.plugin.reader import read_slide
from napari_msamil.plugin.slides import KEY, PLACEHOLDER, tag
from napari_msamil.slide.sample import write_sample_slide
from napari_msamil.slide.store import cache_folder

if TYPE_CHECKING:
    from napari_msamil.plugin.slides import LayerData

logger = logging.getLogger(__name__)


def sample_path() -> Path:
    """The synthetic slide's file in the cache folder, be it there or not."""
    return cache_folder() / f"synthetic-slide-{napari_msamil.__version__}.tif"


def make_sample() -> list[LayerData]:
    """A small synthetic H&E-like slide with a lesion.

    The first time it is drawn in the background, which takes some seconds. napari wants a layer at once: an empty one,
    whose name says what is going on, keeps the place until the slide is there.
    """
    path = sample_path()
    if napari.current_viewer() is None and not path.exists():
        write_sample_slide(path)
    if path.exists() and not _drawing:
        return read_slide(path)
    if not _drawing:
        _drawing.append(path)
        worker = create_worker(_draw, path, _start_thread=False, _ignore_errors=True)
        worker.returned.connect(_show)
        worker.start()
    place = {"name": "drawing the sample …", "units": ("um", "um"), "metadata": {KEY: _WAITS}}
    return [(np.empty((0, 2)), place, "points")]


_drawing: list[Path] = []
_WAITS = {"role": PLACEHOLDER}


def _draw(path: Path) -> str:
    """Write the file; returns what went wrong, if anything did."""
    try:
        write_sample_slide(path)
    except Exception as error:  # whatever it is, the user waits for an answer
        logger.exception("the sample slide could not be drawn")
        return f"The synthetic slide could not be written to {path} ({type(error).__name__}: {error})."
    return ""


def _show(error: str) -> None:
    """Put the slide in the place of the empty layers; the window may be closed by now."""
    path, viewer = _drawing.pop(), napari.current_viewer()
    if viewer is not None:
        for layer in [a for a in viewer.layers if tag(a) == _WAITS]:
            viewer.layers.remove(layer)
    if error:
        show_error(error)
    elif viewer is not None:
        for data, keywords, _ in read_slide(path):
            viewer.add_image(data, **keywords)
