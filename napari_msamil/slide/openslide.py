"""OpenSlide as the optional second reader: MIRAX, DICOM and what tiffslide cannot read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import SlideError
from napari_msamil.slide.backend import Colour, FileFacts
from napari_msamil.slide.colour import PixelFormat

INSTALL = 'pip install "napari-msamil[openslide]"'


class OpenSlideBackend:
    """A slide opened by OpenSlide (see `Backend`)."""

    def __init__(self, slide: Any) -> None:
        self._slide = slide  # closes itself when the last reference goes
        self._pixels = PixelFormat("rgb", 8, "straight")

    def read(
        self, level: int, x: int, y: int, width: int, height: int, *, unreadable: Colour | None = None
    ) -> NDArray[np.uint8]:
        """Read a box inside a level; see `Backend.read`.

        Where a downsample is no whole number OpenSlide itself shifts the picture by a part of a pixel.
        """
        downsample = self._slide.level_downsamples[level]
        region = self._slide.read_region((round(x * downsample), round(y * downsample)), level, (width, height))
        rgba = np.asarray(region)  # (h, w, 4)
        if (rgba[..., 3] == 255).all():
            return np.ascontiguousarray(rgba[..., :3])
        return self._pixels.to_rgb(rgba)


def open_openslide(path: Path, *, why: str) -> tuple[OpenSlideBackend, FileFacts]:
    """Open a slide with OpenSlide.

    Args:
        path: the file.
        why: what the file is, for the message where OpenSlide is not installed, as in "is a MIRAX slide".

    Raises:
        SlideError: OpenSlide is not installed, or cannot read the file either.
    """
    try:
        import openslide
    except ImportError as error:
        raise SlideError(f"{path.name} {why}; reading it needs OpenSlide: {INSTALL}") from error
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise SlideError(f"{path.name} {why}, but OpenSlide cannot read it ({error}); copy it again.") from error
    found = slide.properties
    bounds = {f"bounds_{key}": found.get(f"openslide.bounds-{key}") for key in ("x", "y", "width", "height")}
    properties = {
        "vendor": found.get("openslide.vendor"),
        "objective_power": found.get("openslide.objective-power"),
        "format": found.get("openslide.vendor"),
        "quickhash": found.get("openslide.quickhash-1"),  # the same for each file of a slide in several
        "icc_profile": "present" if "openslide.icc-size" in found else None,
        **bounds,
    }
    mpp = (_number(found.get("openslide.mpp-x")), _number(found.get("openslide.mpp-y")))
    facts = FileFacts(
        backend=f"openslide {openslide.__library_version__}",
        sizes=tuple((int(width), int(height)) for width, height in slide.level_dimensions),
        mpp=None if mpp == (None, None) else mpp,
        properties={key: str(value) for key, value in properties.items() if value is not None},
    )
    return OpenSlideBackend(slide), facts


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
