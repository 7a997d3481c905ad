"""napari's reader for slides: quick to decline, and the same layer as the panel's Open button makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import napari

from napari_msamil.plugin import compat
from napari_msamil.plugin.saved import from_file, mark_when_added
from napari_msamil.plugin.slides import layer_data, watch
from napari_msamil.slide.detect import SCANNER_SUFFIXES
from napari_msamil.slide.slide import is_slide_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_msamil.plugin.slides import LayerData


def get_reader(path: str | Path | list[str]) -> Callable[[str | Path], list[LayerData]] | None:
    """Offer to read a path if it is a slide or a saved heatmap; None, within milliseconds, for anything else and for
    lists of paths.

    A file that is named like a slide and is none, or a damaged one, is taken too: reading it raises the reason, and
    napari shows that. Of a reader that declines it says no more than "refused the file".
    """
    if not isinstance(path, (str, Path)):
        return None
    if (saved := from_file(path, napari.current_viewer())) is not None:
        return lambda _: read_saved(saved)
    named = Path(path).suffix.lower() in SCANNER_SUFFIXES
    return read_slide if named or is_slide_file(path) else None


def read_slide(path: str | Path) -> list[LayerData]:
    """Read one slide as one multiscale layer.

    Raises:
        SlideError: the file looked or was named like a slide but cannot be read; napari shows the reason.
    """
    described = layer_data(path)
    viewer = napari.current_viewer()
    if viewer is not None:
        watch(viewer)
        compat.overlay(viewer, "scale_bar").visible = True
    return [described]


def read_saved(described: LayerData) -> list[LayerData]:
    """A saved heatmap as one layer."""
    viewer = napari.current_viewer()
    if viewer is not None:
        mark_when_added(viewer, described)
    return [described]
