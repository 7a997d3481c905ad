"""napari's reader for slides: quick to decline, and the same layer as the panel's Open button makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import napari

from napari_msamil.plugin.slides import layer_data, watch
from napari_msamil.slide.slide import is_slide_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_msamil.plugin.slides import LayerData


def get_reader(path: str | Path | list[str]) -> Callable[[str | Path], list[LayerData]] | None:
    """Offer to read a path if it is a slide; None, within milliseconds, for anything else and for lists of paths."""
    if not isinstance(path, (str, Path)) or not is_slide_file(path):
        return None
    return read_slide


def read_slide(path: str | Path) -> list[LayerData]:
    """Read one slide as one multiscale layer.

    Raises:
        SlideError: the file looked like a slide but cannot be read; napari shows the reason.
    """
    viewer = napari.current_viewer()
    if viewer is not None:
        watch(viewer)
    return [layer_data(path)]
