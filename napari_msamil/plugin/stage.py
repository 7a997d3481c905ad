"""One slide at a time: what lies on the chosen slide is shown, what lies on the others waits."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QMainWindow

from napari_msamil.plugin import compat
from napari_msamil.plugin.regions import stop_drawing
from napari_msamil.plugin.saved import loose
from napari_msamil.plugin.slides import KEY, SEEN, SLIDE, lies_over, mpp_of, slide_layers, tag

if TYPE_CHECKING:
    from collections.abc import Iterator

    import napari.layers
    import napari.viewer
    from qtpy.QtWidgets import QWidget


class Stage(QObject):
    """Shows one slide of a viewer, with its result and its regions, and hides those of all others.

    It acts when another slide is chosen, so that one may still look at two slides beside or through each other, and
    when the canvas changes its size, which napari leaves to the user: who sees all of the slide goes on seeing all of
    it. A slide that comes back is shown as it was left, and where. Layers not tied to a slide are left alone.

    Args:
        viewer: whose layers are shown and hidden.
        chosen: the slide to begin with; the camera stays where it is.
        parent: the panel.
    """

    def __init__(self, viewer: napari.viewer.Viewer, chosen: napari.layers.Image | None, parent: QWidget) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._slide_id = ""
        self._chosen: napari.layers.Image | None = None
        self._fitting = False
        self.acting = False  # what is shown and hidden meanwhile is not the user's doing
        self._whole: tuple[float, ...] | None = None  # the view by which all of it was shown last
        self._views: dict[str, tuple[float, ...]] = {}  # by slide that was left: where, if the user had moved the view
        self._watched: QWidget | None = None
        compat.grid(viewer).events.enabled.connect(self._on_grid)
        self._show(chosen)
        if chosen is not None:
            now = self._view()
            self._fit()
            if not np.allclose(now, self._view()):
                self._go_to(now)

    def turn_to(self, chosen: napari.layers.Image | None) -> bool:
        """Show a slide where it was left, at first all of it; says whether it was another one than before."""
        left, view = self._slide_id, self._view()
        turned = self._show(chosen)
        self._share_unit(chosen)
        if turned:
            if self._whole is None or not np.allclose(view, self._whole):
                self._views[left] = view
            self._whole = None
        if turned and chosen is not None:
            self._viewer.layers.selection.active = chosen  # else a tool might go on drawing on a layer that is hidden
            if (seen := self._views.pop(self._slide_id, None)) is None:
                self._fit()
            else:
                self._go_to(seen)
        return turned

    def meant_by(self, touched: napari.layers.Layer) -> napari.layers.Image | None:
        """The slide that the user goes to by the eye of a layer, perhaps the chosen one; None where none is seen.

        Of two slides that lie over each other it is the one whose eye was clicked last: who wants to see both makes the
        upper one transparent first, or moves one of them aside. Where no slide is seen it is that of evidence which is
        shown.

        Args:
            touched: the slide or the evidence whose eye was clicked.
        """
        viewer, chosen, slides = self._viewer, self._chosen, slide_layers(self._viewer)
        seen = [slide for slide in slides if slide.visible]
        if not seen:
            of = tag(touched).get("slide") if touched.visible else None
            return next((slide for slide in slides if tag(slide)["slide"] == of), None)
        if chosen not in seen:
            return touched if touched in seen else seen[-1]
        if touched in seen and (lies_over(viewer, touched, chosen) or lies_over(viewer, chosen, touched)):
            return touched
        return chosen

    def show_alone(self) -> None:
        """Show the chosen slide and hide the others, with what lies on them."""
        with self._acting():
            self._hide([a for a in self._viewer.layers if tag(a).get("slide", self._slide_id) != self._slide_id])
            if self._chosen is not None:
                self._chosen.visible = True
        selection = self._viewer.layers.selection
        if selection.active is not None and tag(selection.active).get("slide", self._slide_id) != self._slide_id:
            selection.active = self._chosen  # what is hidden is none to work on

    def _on_grid(self, event: Any) -> None:
        """Let no slide that was seen beside the chosen one lie over it now."""
        viewer, chosen = self._viewer, self._chosen
        if chosen is not None and any(lies_over(viewer, other, chosen) for other in slide_layers(viewer)):
            self.show_alone()

    def hide_waiting(self) -> None:
        """Hide what was laid on slides that are hidden themselves; it is shown with its slide."""
        hidden = [a for a in slide_layers(self._viewer) if a is not self._chosen and not a.visible]
        waiting = {tag(slide)["slide"] for slide in hidden}
        with self._acting():
            self._hide([layer for layer in self._viewer.layers if tag(layer).get("slide") in waiting])

    @contextmanager
    def _acting(self) -> Iterator[None]:
        self.acting = True
        try:
            yield
        finally:
            self.acting = False

    def watch_canvas_of(self, panel: QWidget) -> None:
        """Follow the size of the canvas in whose window a panel is docked."""
        window = panel.parentWidget()
        while window is not None and not isinstance(window, QMainWindow):
            window = window.parentWidget()
        if window is not None and self._watched is None:
            self._watched = window.centralWidget()
            self._watched.installEventFilter(self)
            self._viewer.events.reset_view.connect(self._on_reset)
            QTimer.singleShot(0, self._fit_again)  # room was made for the panel before it was shown

    def leave(self) -> None:
        """Let go of the viewer."""
        compat.grid(self._viewer).events.enabled.disconnect(self._on_grid)
        if self._watched is not None:
            self._watched.removeEventFilter(self)
            self._viewer.events.reset_view.disconnect(self._on_reset)
        self._watched = self._chosen = None

    def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: N802
        """Notice another size; the canvas has it a moment later."""
        if event.type() == QEvent.Type.Resize:
            QTimer.singleShot(0, self._fit_again)
        return False

    def _fit_again(self) -> None:
        """Show all of the slide on a canvas of another size, unless the user has moved the view."""
        if self._whole is not None and np.allclose(self._view(), self._whole):
            self._fit()

    def _on_reset(self, event: Any) -> None:
        """Show the chosen slide where all was asked for: napari counts what is hidden, too."""
        if self._fitting:
            return
        self._whole = None
        if [layer for layer in slide_layers(self._viewer) if layer.visible] == [self._chosen]:
            self._fit()

    def _fit(self) -> None:
        if self._chosen is None or self._chosen not in self._viewer.layers:
            return
        self._fitting = True
        try:
            compat.fit(self._viewer, self._chosen)
        finally:
            self._fitting = False
        self._whole = self._view()

    def _go_to(self, view: tuple[float, ...]) -> None:
        self._whole = None
        px = self._px()
        camera = compat.camera(self._viewer)
        camera.center, camera.zoom = tuple(px * c for c in view[:-1]), view[-1] / px

    def _view(self) -> tuple[float, ...]:
        """Centre and zoom in pixels of the chosen slide, whose size may come to be known later."""
        px = self._px()
        camera = compat.camera(self._viewer)
        return (*(c / px for c in camera.center), camera.zoom * px)

    def _px(self) -> float:
        return 1.0 if self._chosen is None else float(self._chosen.scale[-1])

    def _share_unit(self, chosen: napari.layers.Image | None) -> None:
        """Give what lies on the other slides the chosen one's unit: where units differ napari shows a bar without one.

        Pixels that are called µm while nobody sees them are called pixels again when their slide is chosen.
        """
        if chosen is None:
            return
        unit = "pixel" if mpp_of(chosen) is None else "um"
        for layer in [*(a for a in self._viewer.layers if "slide" in tag(a)), *loose(self._viewer.layers)]:
            layer.units = (unit,) * layer.ndim

    def _show(self, chosen: napari.layers.Image | None) -> bool:
        self._chosen = chosen
        left, self._slide_id = self._slide_id, "" if chosen is None else tag(chosen)["slide"]
        if left == self._slide_id:
            return False
        stop_drawing(self._viewer)
        with self._acting():
            for layer in [a for a in self._viewer.layers if "slide" in tag(a)]:
                mark = tag(layer)
                if mark["slide"] == self._slide_id:
                    layer.metadata[KEY] = {**mark, SEEN: False}
                    layer.visible = mark["role"] == SLIDE or layer.visible or mark.get(SEEN, False)
                elif mark["slide"] == left:
                    layer.metadata[KEY] = {**mark, SEEN: layer.visible or mark.get(SEEN, False)}
                    layer.visible = False
                else:
                    self._hide([layer])
        return True

    @staticmethod
    def _hide(layers: list[napari.layers.Layer]) -> None:
        for layer in [a for a in layers if a.visible]:
            layer.metadata[KEY] = {**tag(layer), SEEN: True}
            layer.visible = False
