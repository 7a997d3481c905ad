"""Slides: pixels on demand from whole-slide files; knows neither torch nor Qt."""

from napari_msamil.slide.cache import BlockCache
from napari_msamil.slide.pyramid import dask_levels
from napari_msamil.slide.slide import Level, Slide, is_slide_file, open_slide

__all__ = ["BlockCache", "Level", "Slide", "dask_levels", "is_slide_file", "open_slide"]
