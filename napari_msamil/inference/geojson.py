"""Regions in, lesion outlines out: GeoJSON in level-0 pixels, as QuPath reads and writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from napari_msamil.errors import RegionError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Polygon:
    """An area of a slide.

    Attributes:
        exterior: (n, 2) float64 level-0 px, (x, y), n >= 3.
        holes: rings like the exterior that are cut out.
        name: of the class that it was given, or "".
    """

    exterior: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...] = ()
    name: str = ""


def read_polygons(path: Path) -> tuple[Polygon, ...]:
    """Read every Polygon and MultiPolygon of a GeoJSON file.

    A FeatureCollection, a list of features, one feature and bare geometries are all understood.

    Raises:
        RegionError: no such file, not GeoJSON, or no area in it (points and lines enclose none).
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RegionError(f"Cannot read the region file {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise RegionError(f"{path} is not GeoJSON ({error}). Export the regions as GeoJSON, as QuPath does.") from error
    try:
        polygons = tuple(_polygons(document))
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RegionError(
            f"{path} is JSON but not GeoJSON with polygons as QuPath writes it. Export the regions again."
        ) from error
    if not polygons:
        raise RegionError(f"{path} holds no polygon: draw at least one closed region and export it again.")
    return polygons


def _polygons(node: Any) -> list[Polygon]:
    if isinstance(node, list):
        return [p for item in node for p in _polygons(item)]
    kind = node["type"]
    if kind == "FeatureCollection":
        return _polygons(node["features"])
    if kind == "Feature":
        polygons = _polygons(node["geometry"]) if node["geometry"] is not None else []
        return [replace(polygon, name=_class_name(node)) for polygon in polygons]
    if kind == "GeometryCollection":
        return _polygons(node["geometries"])
    if kind == "Polygon":
        return [_polygon(node["coordinates"])]
    if kind == "MultiPolygon":
        return [_polygon(rings) for rings in node["coordinates"]]
    return []


def _class_name(feature: dict[str, Any]) -> str:
    """What QuPath classified an annotation as."""
    found: Any = feature
    for key in ("properties", "classification", "name"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else ""


def _polygon(rings: Any) -> Polygon:
    arrays = [np.asarray(ring, np.float64)[:, :2] for ring in rings]
    if not arrays or any(len(a) < 3 or not np.isfinite(a).all() for a in arrays):
        raise ValueError("a ring needs at least three finite points")
    return Polygon(arrays[0], tuple(arrays[1:]))


def multipolygon(polygons: tuple[Polygon, ...]) -> dict[str, Any]:
    """Polygons as one GeoJSON geometry, to a hundredth of a level-0 px; `read_polygons` reads it back.

    A ring ends with its first point again, as RFC 7946 (3.1.6) asks.
    """
    rings = [[_closed(ring).round(2).tolist() for ring in (polygon.exterior, *polygon.holes)] for polygon in polygons]
    return {"type": "MultiPolygon", "coordinates": rings}


def _closed(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    return ring if np.array_equal(ring[0], ring[-1]) else np.vstack((ring, ring[:1]))


def polygon_mask(
    polygons: tuple[Polygon, ...], slide_size: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Fill polygons into a mask (h, w) bool of the given shape, stretched over the whole slide.

    A pixel is in it where its middle is; what lies off the slide, or is thinner than a pixel, may leave it empty.
    """
    # Drawn three times finer, of which the middle pixels are kept: Pillow fills the outline too, a pixel too much.
    height, width = shape
    factor = np.array([3 * width / slide_size[0], 3 * height / slide_size[1]])
    mask = np.zeros(shape, bool)
    for polygon in polygons:
        corners = polygon.exterior * factor / 3  # in mask px; only the box around them is drawn
        left, top = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int)
        right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, (width, height)).astype(int)
        if left >= right or top >= bottom:
            continue
        fine = Image.new("1", (3 * int(right - left), 3 * int(bottom - top)))
        draw = ImageDraw.Draw(fine)
        for ring, fill in [(polygon.exterior, 1), *((hole, 0) for hole in polygon.holes)]:
            draw.polygon([(float(x), float(y)) for x, y in ring * factor - 0.5 - (3 * left, 3 * top)], fill=fill)
        mask[top:bottom, left:right] |= np.asarray(fine)[1::3, 1::3]
    return mask


def _corners(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a closed ring along pixel borders the points where it turns, each once."""
    moved = (np.diff(ring, axis=0) != 0).any(axis=1)
    ring = ring[:-1][moved]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns: NDArray[np.bool_] = ((before != 0) != (after != 0)).any(axis=1)
    return np.asarray(ring[turns])


def _loops(ring: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """A ring that touches itself at corners, as simple ones: readers of GeoJSON refuse or mend others."""
    loops: list[NDArray[np.float64]] = []
    path: list[tuple[float, ...]] = []
    place: dict[tuple[float, ...], int] = {}
    for point in map(tuple, ring.tolist()):
        if point in place:
            start = place[point]
            loops.append(np.array(path[start:]))
            for left in path[start + 1 :]:
                del place[left]
            del path[start + 1 :]
        else:
            place[point] = len(path)
            path.append(point)
    return [*loops, np.array(path)]


def mask_feature_collection(
    mask: NDArray[np.uint8], slide_size: tuple[int, int], *, label: str, rgb: tuple[int, int, int]
) -> dict[str, Any]:
    """Outline a mask (h, w) of 0 and 1, stretched over the slide, as annotations that QuPath opens.

    Outlines run along the borders of mask pixels, with holes, in level-0 px (x, y): their area is the mask's.
    """
    from contourpy import FillType, contour_generator

    height, width = mask.shape
    factor = np.array([slide_size[0] / width, slide_size[1] / height])
    # Each pixel is given by its borders, so that the way from one to the next has no length: no corner is cut.
    z = np.pad(mask.astype(np.float64), 1).repeat(2, axis=0).repeat(2, axis=1)
    x, y = (np.arange(-1, length + 2).repeat(2)[1:-1] for length in (width, height))
    filled: Any = contour_generator(x, y, z, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    features = []
    for points, offsets in zip(*filled, strict=True):
        loops = [loop for a, b in pairwise(offsets) for loop in _loops(_corners(points[a:b]))]
        loops.sort(key=lambda loop: -float(np.ptp(loop, axis=0).prod()))  # the outline comes first, then its holes
        rings = [np.round(_closed(loop) * factor, 2).tolist() for loop in loops]
        features.append({
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {"objectType": "annotation", "classification": {"name": label, "color": list(rgb)}},
        })  # fmt: skip
    return {"type": "FeatureCollection", "features": features}
