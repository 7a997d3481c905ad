"""Explained multi-scale classification of whole-slide images, in napari and on the command line.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_msamil.inference.classify import classify
    from napari_msamil.inference.geojson import Polygon
    from napari_msamil.models.model import load_model
    from napari_msamil.slide.slide import open_slide

__version__ = "0.1.0"
__all__ = ["Polygon", "__version__", "classify", "load_model", "open_slide"]

_HOMES = {
    "Polygon": "napari_msamil.inference.geojson",
    "classify": "napari_msamil.inference.classify",
    "load_model": "napari_msamil.models.model",
    "open_slide": "napari_msamil.slide.slide",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
