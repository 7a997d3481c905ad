"""Shapes drawn on a slide as the polygons that a classification understands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.errors import RegionError
from napari_msamil.inference.geojson import Polygon
from napari_msamil.inference.prediction import REGION_RGB
from napari_msamil.plugin.compat import finish_drawing
from napari_msamil.plugin.outlines import screen_px
from napari_msamil.plugin.slides import KEY, REGION, tag

if TYPE_CHECKING:
    import napari.layers
    import napari.viewer
    from numpy.typing import NDArray

_OPEN = ("line", "path")
_CIRCLE = np.linspace(0, 2 * np.pi, 64, endpoint=False)


def add_region_layer(viewer: napari.viewer.Viewer, slide_layer: napari.layers.Image) -> napari.layers.Shapes:
    """Add an empty layer to draw a region on, in the slide's units."""
    return viewer.add_shapes(
        name=f"{slide_layer.name} | region",
        ndim=2,
        scale=slide_layer.scale,
        translate=slide_layer.translate,
        units=slide_layer.units,
        axis_labels=slide_layer.axis_labels,
        edge_color=[[*(value / 255 for value in REGION_RGB), 1.0]],
        face_color=[0.0, 0.0, 0.0, 0.0],  # the tissue keeps its colours
        edge_width=2 * screen_px(viewer, slide_layer),
        metadata={KEY: {"role": REGION, "slide": tag(slide_layer)["slide"]}},
    )


def empty_region(viewer: napari.viewer.Viewer, slide_layer: napari.layers.Image) -> napari.layers.Shapes | None:
    """A layer to draw a slide's regions on that is still empty, if there is one."""
    mine = {"role": REGION, "slide": tag(slide_layer)["slide"]}.items()
    return next((a for a in viewer.layers if mine <= tag(a).items() and not len(a.data)), None)


def draw_on(viewer: napari.viewer.Viewer, layer: napari.layers.Shapes) -> None:
    """Let the next clicks on the picture be corners of a polygon of a layer."""
    layer.visible = True
    viewer.layers.selection.active = layer
    layer.mode = "add_polygon"


def stop_drawing(viewer: napari.viewer.Viewer) -> None:
    """Let the next click on a slide be no corner of a region any more; what was clicked so far is the shape."""
    for layer in viewer.layers:
        if tag(layer).get("role") == REGION and str(layer.mode).startswith("add_"):
            finish_drawing(layer)
            layer.mode = "pan_zoom"


def closed(shapes: napari.layers.Shapes) -> bool:
    """Whether a layer holds a shape that encloses an area; lines, paths and what was given up half-drawn do not."""
    return any(
        _outline(corners, kind) is not None for corners, kind in zip(shapes.data, shapes.shape_type, strict=True)
    )


def polygons(shapes: napari.layers.Shapes, slide_layer: napari.layers.Image) -> tuple[Polygon, ...]:
    """All closed shapes of a layer, whichever are selected: napari selects the one that was drawn last.

    Returns:
        One polygon per closed shape, level-0 px (x, y), counted from the slide's top-left corner.

    Raises:
        RegionError: nothing closed is drawn; lines and paths enclose no area.
    """
    rings = [_outline(corners, kind) for corners, kind in zip(shapes.data, shapes.shape_type, strict=True)]
    found = tuple(Polygon(_level0(ring, shapes, slide_layer)) for ring in rings if ring is not None)
    if not found:
        raise RegionError(f"The layer {shapes.name!r} holds no closed shape: draw a polygon or a rectangle on it.")
    return found


def _outline(corners: NDArray[np.float64], kind: str) -> NDArray[np.float64] | None:
    if kind in _OPEN or np.linalg.matrix_rank(corners - corners[0]) < 2:
        return None
    if kind == "ellipse":  # napari keeps the four corners of its box
        centre = corners.mean(axis=0)
        u, v = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
        ring: NDArray[np.float64] = centre + np.cos(_CIRCLE)[:, None] * u + np.sin(_CIRCLE)[:, None] * v
        return ring
    return np.asarray(corners)


def _level0(
    ring: NDArray[np.float64], shapes: napari.layers.Shapes, slide_layer: napari.layers.Image
) -> NDArray[np.float64]:
    points = [slide_layer.world_to_data(shapes.data_to_world(point)[-2:]) for point in ring]
    # napari counts from the centre of the first pixel, regions from its corner.
    return np.asarray(points)[:, ::-1] + 0.5
