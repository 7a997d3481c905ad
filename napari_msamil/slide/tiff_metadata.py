"""What a TIFF slide says about itself: pixel size and a few facts about the scan."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from typing import Any

_OME_UNITS_UM = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


def stated_mpp(tiff: Any, properties: Mapping[str, Any], page: Any) -> tuple[float | None, float | None] | None:
    """Pixel size as the file states it: OME or Ventana XML where there is one, else what tiffslide found."""
    if tiff.is_ome:
        found = _ome_mpp(tiff.ome_metadata or "")
        if found is not None:
            return found
    if tiff.is_bif:
        scan = re.search(r'ScanRes\s*=\s*"([0-9.eE+-]+)"', str(page.tags.valueof(700, default="") or page.description))
        if scan:
            return float(scan[1]), float(scan[1])
    if properties:
        x, y = (_number(properties.get(f"tiffslide.mpp-{axis}")) for axis in "xy")
        return (x, y) if (x, y) != (None, None) else None
    return _tag_mpp(page)


def _ome_mpp(xml: str) -> tuple[float, float] | None:
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    if pixels is None:
        return None
    values = []
    for axis in "XY":
        size = re.search(rf'\bPhysicalSize{axis}\s*=\s*"([^"]+)"', pixels[0])
        unit = re.search(rf'\bPhysicalSize{axis}Unit\s*=\s*"([^"]+)"', pixels[0])
        factor = _OME_UNITS_UM.get(html.unescape(unit[1]) if unit else "µm")
        number = _number(size[1]) if size else None
        if factor is None or number is None:
            return None
        values.append(number * factor)
    return values[0], values[1]


def _tag_mpp(page: Any) -> tuple[float, float] | None:
    unit_um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", default=1)))
    values = [page.tags.valueof(f"{axis}Resolution", default=(0, 1)) for axis in "XY"]
    if unit_um is None or any(top <= 0 or bottom <= 0 for top, bottom in values):
        return None
    (x_top, x_bottom), (y_top, y_bottom) = values
    return unit_um * x_bottom / x_top, unit_um * y_bottom / y_top


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def public_properties(tiff: Any, properties: Mapping[str, Any], page: Any) -> dict[str, str]:
    """Facts about the scan; descriptions, dates, file names and identifiers stay out: they can name a patient."""
    found = {
        "vendor": properties.get("tiffslide.vendor"),
        "objective_power": properties.get("tiffslide.objective-power"),
        "format": "ome-tiff" if tiff.is_ome else "tiff",
        "compression": getattr(page.compression, "name", str(page.compression)).lower(),
        "tile": f"{page.tilewidth}x{page.tilelength}" if page.is_tiled else "strips",
        "icc_profile": "present" if 34675 in page.tags else None,
    }
    return {key: str(value) for key, value in found.items() if value is not None}
