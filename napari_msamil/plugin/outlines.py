"""Outlines on a slide: of the patches with most attention, those of the shown scale, and of drawn regions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.plugin.compat import camera
from napari_msamil.plugin.slides import HEATMAP, KEY, LESION, REGION, TOP, result_layers, tag

if TYPE_CHECKING:
    import napari.viewer
    from numpy.typing import NDArray

TOP_COLOUR = (1.0, 0.85, 0.1, 1.0)
VISITED_COLOUR = (1.0, 1.0, 1.0, 1.0)
CONTOURS = (1, 2)
"""Width of a lesion's outline in pixels of its mask: close up, and from where one of them would hardly be seen."""


def top_colours(names: list[str], shown: str | None, visited: int | None) -> NDArray[np.float64] | list[float]:
    """Edge colours that hide the outlines of every other scale and tell the visited patch from the others."""
    if not names:
        return list(TOP_COLOUR)
    colours = [VISITED_COLOUR if i == visited else TOP_COLOUR for i in range(len(names))]
    return np.array([[*colour[:3], float(name == shown)] for colour, name in zip(colours, names, strict=True)])


def top_widths(boxes: list[NDArray[np.float64]], visited: int | None, screen_px: float) -> list[float]:
    """A small part of a patch's side, but never so thin on the screen that only some of the lines are drawn."""
    sides = (float(np.ptp(box[:, 0])) for box in boxes)
    return [max(side / 32, 2.5 * screen_px) if i == visited else max(side / 80, 1.5 * screen_px)
            for i, side in enumerate(sides)]  # fmt: skip


def outline_top(viewer: napari.viewer.Viewer) -> None:
    """Let each slide's outlines be those of the scale whose heatmap is shown, or none."""
    for layer in (a for a in viewer.layers if tag(a).get("role") == TOP):
        maps = result_layers(viewer, tag(layer)["slide"], HEATMAP)
        shown = next((tag(a)["scale"] for a in reversed(maps) if a.visible), None)
        if tag(layer)["shown"] != shown:
            _outline(viewer, layer, shown, tag(layer)["visited"])


def fit_outlines(viewer: napari.viewer.Viewer) -> None:
    """Let the lines of lesions, outlined patches and drawn regions be seen whole at the present zoom, and no wider."""
    for layer in viewer.layers:
        if tag(layer).get("role") == TOP:
            _outline(viewer, layer, tag(layer)["shown"], tag(layer)["visited"])
        elif tag(layer).get("role") == LESION and layer.contour in CONTOURS:  # else the user chose it
            layer.contour = CONTOURS[screen_px(viewer, layer) > 1 / 3]
        elif tag(layer).get("role") == REGION:
            layer.current_edge_width = 2 * screen_px(viewer, layer)  # of the next one
            if len(layer.data):
                layer.edge_width = 2 * screen_px(viewer, layer)
                layer.events.edge_color()  # a width says nothing to the canvas; a colour does


def screen_px(viewer: napari.viewer.Viewer, layer: Any) -> float:
    """Width of a pixel of the screen, in those of a layer."""
    return 1 / (float(camera(viewer).zoom) * float(layer.scale[-1]))


def mark_patch(viewer: napari.viewer.Viewer, slide_id: str, name: str, rank: int) -> None:
    """Let the outline of one of a slide's patches with most attention stand out: of scale `name`, first is rank 1."""
    for layer in result_layers(viewer, slide_id, TOP):
        found = np.flatnonzero((layer.features["scale"] == name) & (layer.features["rank"] == rank))
        _outline(viewer, layer, tag(layer)["shown"], int(found[0]) if len(found) else None)


def _outline(viewer: napari.viewer.Viewer, layer: Any, shown: str | None, visited: int | None) -> None:
    layer.metadata[KEY] = {**tag(layer), "shown": shown, "visited": visited}
    if len(layer.data):
        layer.edge_width = top_widths(
            layer.data, visited, screen_px(viewer, layer)
        )  # says nothing to the canvas; the colours do
        layer.edge_color = top_colours(list(layer.features["scale"]), shown, visited)
