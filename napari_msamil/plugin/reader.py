"""napari's reader for slides: quick to decline, and the same layer as the panel's Open button makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import napari
import numpy as np
from napari_builtins.io import napari_get_reader

from napari_msamil.plugin.saved import from_file, mark_when_added
from napari_msamil.plugin.slides import layer_data
from napari_msamil.plugin.watch import show_scale_bar, watch
from napari_msamil.slide.detect import SCANNER_SUFFIXES
from napari_msamil.slide.slide import is_slide_file, open_slide

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_msamil.plugin.slides import LayerData

PICTURE_SUFFIXES = {".tif", ".tiff", ".btf", ".dcm"}
"""Endings in our manifest that any picture may have."""


def get_reader(path: str | Path | list[str]) -> Callable[[str | Path], list[LayerData]] | None:
    """Offer to read a slide or a saved heatmap; decides within milliseconds.

    A file that is named like a slide and is none, or a damaged one, is taken too: reading it raises the reason, and
    napari shows that. Any other picture of a name that our manifest claims goes on to napari's own reader, lists of
    them too: where napari asks which reader to take it proposes ours first, and of one that declines it says no more
    than "refused the file". All else is declined (None).
    """
    paths = [path] if isinstance(path, (str, Path)) else path
    if len(paths) == 1 and (saved := from_file(paths[0], napari.current_viewer())) is not None:
        return lambda _: read_saved(saved)
    if not isinstance(path, list) and (Path(path).suffix.lower() in SCANNER_SUFFIXES or is_slide_file(path)):
        return read_slide
    pictures = all(Path(one).suffix.lower() in PICTURE_SUFFIXES and Path(one).is_file() for one in paths)
    return read_picture if pictures else None


def read_slide(path: str | Path) -> list[LayerData]:
    """Read one slide as one multiscale layer.

    Raises:
        SlideError: the file looked or was named like a slide but cannot be read; napari shows the reason.
    """
    described = layer_data(path)
    viewer = napari.current_viewer()
    if viewer is not None:
        watch(viewer)
        show_scale_bar(viewer)
    return [described]


def read_picture(path: str | Path | list[str]) -> list[LayerData]:
    """Read what is no slide as napari itself does.

    Raises:
        SlideError: napari cannot; the message says why the file is no slide either, and what to do.
    """
    paths = [str(path)] if isinstance(path, (str, Path)) else path
    try:
        layers: list[LayerData] = napari_get_reader(paths)(paths)
        if any(0 in np.shape(data[0] if isinstance(data, list) else data) for data, *_ in layers):
            raise ValueError("a picture without pixels")
    except Exception:
        for one in paths:
            open_slide(one).close()
        raise
    return layers


def read_saved(described: LayerData) -> list[LayerData]:
    """A saved heatmap as one layer."""
    viewer = napari.current_viewer()
    if viewer is not None:
        watch(viewer)
        mark_when_added(viewer, described)
    return [described]
