"""The names that differ between napari below 0.9 and from 0.9 on; nothing else in the plugin asks for a version."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import napari.viewer


def camera(viewer: napari.viewer.Viewer) -> Any:
    """The viewer's camera."""
    scene = getattr(viewer, "scene", None)
    return viewer.camera if scene is None else scene.camera


def overlay(viewer: napari.viewer.Viewer, name: str) -> Any:
    """A canvas overlay by its name from 0.9 on: "scale_bar" or "text"."""
    canvas = getattr(viewer, "canvas", None)
    if canvas is not None:
        return getattr(canvas.overlays, name)
    return viewer.text_overlay if name == "text" else getattr(viewer, name)


def fit(viewer: napari.viewer.Viewer, layer: Any) -> None:
    """Show the whole of one layer; napari 0.7.0 can only fit to everything."""
    canvas = getattr(viewer, "canvas", None)
    stacked = layer.ndim < viewer.dims.ndim  # another layer is: napari raises an IndexError
    if stacked and canvas is not None and viewer.dims.ndisplay == 2:
        low, high = layer.extent.world
        zoom = 0.95 * float(np.min(np.array(canvas.size) / _on_screen(viewer, high - low)))
        look_at(viewer, (low + high) / 2, zoom)
        return
    try:
        viewer.fit_to_view(layers=[layer])
    except (IndexError, TypeError):
        viewer.fit_to_view()


def look_at(viewer: napari.viewer.Viewer, place: Sequence[float], zoom: float) -> None:
    """Centre a place, given in world coordinates along the last axes, whichever axes lie along the screen."""
    view = camera(viewer)
    view.center = _on_screen(viewer, place)
    view.zoom = zoom


def _on_screen(viewer: napari.viewer.Viewer, along: Sequence[float]) -> tuple[float, ...]:
    """Of what is given along the last axes, that along the displayed ones, in their order."""
    first = viewer.dims.ndim - len(along)
    return tuple(along[axis - first] for axis in viewer.dims.displayed if axis >= first)


def grid(viewer: napari.viewer.Viewer) -> Any:
    """napari's grid, which shows layers beside each other while it is enabled."""
    canvas = getattr(viewer, "canvas", None)
    return (viewer if canvas is None else canvas).grid


def remove(viewer: napari.viewer.Viewer, layers: Collection[Any]) -> None:
    """Remove several layers; napari from 0.9 on collects garbage once for them instead of once for each."""
    together = getattr(viewer.layers, "batched_update", contextlib.nullcontext)
    with together() if layers else contextlib.nullcontext():
        for layer in layers:
            viewer.layers.remove(layer)


def finish_drawing(layer: Any) -> None:
    """End a half-drawn shape at the corners that were clicked: another mode, or hiding, keeps the mouse's place too."""
    layer._finish_drawing()  # what napari's own Escape does; it has no public name


def forget_deleted_programs() -> None:
    """Mend vispy: a shader program that is deleted is no longer taken for the one in use.

    vispy remembers the handle of the program in use and does not bind it again. OpenGL gives the handle of a deleted
    program to the next one that is made, which vispy then never binds: the next drawing reads freed memory and the
    process ends (seen with vispy 0.17 after a slide with its result was removed and another one opened).
    """
    from vispy.gloo.glir import GlirProgram

    delete = GlirProgram.delete
    if getattr(delete, "forgets", False):
        return

    def delete_and_forget(self: Any) -> None:
        if self._parser.env.get("current_program") == self._handle:
            self.deactivate()
        delete(self)

    delete_and_forget.forgets = True  # type: ignore[attr-defined]
    GlirProgram.delete = delete_and_forget
