"""The lesion of a slide, from whatever it was drawn in: QuPath, ASAP, napari or any program that saves a mask.

Every format becomes one thing: a mask stretched over the whole slide. Polygons are in level-0 px, as QuPath and ASAP
write them; mask pictures may be of any size with the slide's proportions.
"""

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import AnnotationError, RegionError
from napari_msamil.inference.geojson import Polygon, polygon_mask, read_polygons

from .mask_image import SUFFIXES as PICTURES
from .mask_image import read_mask

ANNOTATIONS = (".geojson", ".json", ".xml", *PICTURES)
"""Suffixes of the files that `read_lesion` reads."""

EXCLUDED = frozenset({"_2", "exclusion", "normal"})
"""ASAP groups and QuPath classes that are cut out of the lesion, in lower case.

CAMELYON16 draws metastases in "_0" and "_1" (or "Tumor") and what is none inside them in "_2" (or "Exclusion");
CAMELYON17 calls the two "metastases" and "normal". Every other group is lesion.
"""

_AREAS = frozenset({"polygon", "spline", "rectangle"})  # the kinds of ASAP annotation that enclose anything
_ELSEWHERE = "write none in the lesion column if the slide is known to have no lesion, nothing if that is unknown"


def read_lesion(path: str | Path, slide_size: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Read the lesion of a slide.

    - QuPath GeoJSON (.geojson, .json): every polygon is lesion, its holes are not; those of classes in `EXCLUDED` are
      cut out of all others.
    - ASAP (.xml): polygons, splines (through their points, straight) and rectangles; groups in `EXCLUDED` and groups
      within them are cut out of all others. Dots and measurements enclose nothing and are passed over.
    - Mask picture (.png, .tif, .tiff, .jpg), napari labels too: what is not zero; see `mask_image`.

    Args:
        path: The file.
        slide_size: (width, height) of the slide in level-0 px.
        shape: (h, w) of the mask wanted, stretched over the whole slide.

    Returns:
        (h, w) bool. A pixel is lesion where its middle lies in a polygon, or more than half of it is lesion in the
        mask picture; a lesion smaller than that vanishes.

    Raises:
        AnnotationError: The file is missing, damaged, of another kind, holds no area, or does not lie on this slide.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in ANNOTATIONS:
        raise AnnotationError(f"{path} is no lesion file that can be read: use {', '.join(ANNOTATIONS)}.")
    if not path.is_file():
        raise AnnotationError(f"There is no lesion file {path}: check the path.")
    if suffix in PICTURES:
        return read_mask(path, slide_size, shape)
    lesion, excluded = _asap_polygons(path) if suffix == ".xml" else _qupath_polygons(path)
    if not lesion:
        raise AnnotationError(f"{path} holds no polygon that is lesion: draw the lesion, or {_ELSEWHERE}.")
    mask = _filled(path, lesion, slide_size, shape)
    return mask & ~_filled(path, excluded, slide_size, shape) if excluded else mask


def lesion_classes(path: Path) -> set[str]:
    """Names of the classes whose polygons are lesion in a QuPath GeoJSON, "" for none; of other files nothing.

    Raises:
        AnnotationError: It cannot be read.
    """
    if path.suffix.lower() not in (".geojson", ".json"):
        return set()
    return {polygon.name for polygon in _qupath_polygons(path)[0]}


def _qupath_polygons(path: Path) -> tuple[tuple[Polygon, ...], tuple[Polygon, ...]]:
    """Areas of a GeoJSON file: lesion, and what is cut out of it."""
    try:
        polygons = read_polygons(path)
    except RegionError as error:
        raise AnnotationError(f"The lesion cannot be read: {error} Or {_ELSEWHERE}.") from error
    excluded = tuple(polygon for polygon in polygons if polygon.name.casefold() in EXCLUDED)
    return tuple(polygon for polygon in polygons if polygon.name.casefold() not in EXCLUDED), excluded


def _filled(
    path: Path, polygons: tuple[Polygon, ...], slide_size: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Polygons as a mask; one that lies on the slide but covers no pixel's middle is no fault."""
    on_slide = tuple(polygon for polygon in polygons if _touches(polygon, slide_size))
    if not on_slide:
        raise AnnotationError(
            f"No annotation of {path} lies on its slide of {slide_size[0]} x {slide_size[1]} px: give the annotations "
            "of this slide, in pixels of its full resolution."
        )
    return polygon_mask(on_slide, slide_size, shape)


def _touches(polygon: Polygon, slide_size: tuple[int, int]) -> bool:
    low, high = polygon.exterior.min(axis=0), polygon.exterior.max(axis=0)
    return bool((high > 0).all() and (low < np.array(slide_size)).all())


def _asap_polygons(path: Path) -> tuple[tuple[Polygon, ...], tuple[Polygon, ...]]:
    """Areas of an ASAP file: lesion, and what is cut out of it."""
    root = parse_xml(path)
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(f"{path} is XML but not from ASAP (it begins with <{root.tag}>). Export it from ASAP.")
    parents = {node.get("Name", ""): node.get("PartOfGroup", "") for node in root.iter("Group")}
    found: tuple[list[Polygon], list[Polygon]] = ([], [])
    for node in root.iter("Annotation"):
        if node.get("Type", "Polygon").lower() in _AREAS:
            polygon = Polygon(_outline(path, node))
            found[_is_excluded(node.get("PartOfGroup", ""), parents)].append(polygon)
    return tuple(found[0]), tuple(found[1])


def _is_excluded(group: str, parents: Mapping[str, str]) -> bool:
    """Whether a group or one that it is part of is cut out."""
    seen: set[str] = set()
    while group not in seen:
        if group.casefold() in EXCLUDED:
            return True
        seen.add(group)
        group = parents.get(group, "")
    return False


def _outline(path: Path, node: ElementTree.Element) -> NDArray[np.float64]:
    """Corners (n, 2) x, y in level-0 px, in the order that the file gives them."""
    name = node.get("Name", "without a name")
    try:
        corners = sorted(
            (float(c.get("Order", "0")), number, float(c.get("X", "")), float(c.get("Y", "")))
            for number, c in enumerate(node.iter("Coordinate"))
        )
    except ValueError as error:
        raise AnnotationError(
            f"Annotation {name!r} of {path} has a coordinate that is no number. Export it again from ASAP."
        ) from error
    points = np.array([corner[2:] for corner in corners], np.float64).reshape(-1, 2)
    if node.get("Type", "").lower() == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    if len(points) < 3 or not np.isfinite(points).all():
        raise AnnotationError(
            f"Annotation {name!r} of {path} has {len(points)} points, which enclose nothing: draw it again or drop it."
        )
    return points


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file in UTF-8; one with a document type or entities is refused unread: they can blow up a parser.

    Raises:
        AnnotationError: The file cannot be opened, is no XML, or declares a document type or entities.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise AnnotationError(f"{path} cannot be opened ({error.strerror}); check the path and your rights.") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path} is not text in UTF-8, so no annotation file; export it again.") from error
    return parse_xml_text(text, str(path))


def parse_xml_text(text: str, name: str) -> ElementTree.Element:
    """The same for text at hand; ``name`` is what messages call it."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise AnnotationError(f"{name} declares a document type or entities, which are not read: export it again.")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise AnnotationError(f"{name} is no whole XML file ({error}); copy or export it again.") from error
