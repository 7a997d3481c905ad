"""The sample slide of napari's File > Open Sample menu: made on this machine once, no download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

import napari_msamil
from napari_msamil.plugin.reader import read_slide
from napari_msamil.slide.sample import write_sample_slide

if TYPE_CHECKING:
    from napari_msamil.plugin.slides import LayerData


def sample_path() -> Path:
    """The synthetic slide's file in the user's cache folder; written at the first call."""
    folder = Path(platformdirs.user_cache_dir("napari-msamil"))
    path = folder / f"synthetic-slide-{napari_msamil.__version__}.tif"
    if not path.exists():
        write_sample_slide(path)
    return path


def make_sample() -> list[LayerData]:
    """A small synthetic H&E-like slide with a lesion."""
    return read_slide(sample_path())
