"""The dock widget "Multi-scale MIL": open a slide, classify it, see why."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import napari.layers
from napari.utils.notifications import show_info
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import QScrollArea, QVBoxLayout, QWidget

from napari_msamil.errors import MsamilError
from napari_msamil.plugin import compat
from napari_msamil.plugin.background import FOR_RESULTS, FOR_SLIDES, import_ahead
from napari_msamil.plugin.captions import mark_view
from napari_msamil.plugin.form import Form
from napari_msamil.plugin.inputs import leave_the_wheel_to
from napari_msamil.plugin.layers import remove_orphans, see_alone
from napari_msamil.plugin.opening import Opener
from napari_msamil.plugin.outlines import fit_outlines
from napari_msamil.plugin.regions import add_region_layer, draw_on, empty_region, stop_drawing
from napari_msamil.plugin.result_view import ResultView
from napari_msamil.plugin.results import Results
from napari_msamil.plugin.run_view import RunView
from napari_msamil.plugin.slides import MAPS, SAVED, SLIDE, is_evidence, tag
from napari_msamil.plugin.stage import Stage
from napari_msamil.plugin.watch import watch
from napari_msamil.plugin.worker import Run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import napari.viewer

    from napari_msamil.inference.classify import Progress
    from napari_msamil.inference.prediction import Prediction

logger = logging.getLogger(__name__)


class MilPanel(QScrollArea):
    """Classify a slide and look at its probabilities, lesion outline and attention.

    It puts the steps below each other (`form`, `run_view`, `result_view`), starts and ends classifications, and follows
    the viewer's layers. `opener` opens slides; `results` keeps and shows what was found. The viewer shows the slide
    that is chosen in the form.

    Args:
        viewer: the viewer to work in; only its public names are used.
    """

    def __init__(self, viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._run: Run | None = None
        self._run_layer: Any = None
        self._progress: Progress | None = None  # of the run
        self._closed = False
        self._asked = ""
        self._outlined_at = compat.camera(viewer).zoom
        self.form = Form(viewer)
        self._failed_with: tuple[Any, ...] | None = None  # the answers that the last thing said is about
        self.run_view = RunView(self.form.device.native)
        self.result_view = ResultView()
        self.opener = Opener(viewer, self)
        self.results = Results(viewer, self.form, self.result_view)
        self._stage = Stage(viewer, self.form.layer, self)
        self._lay_out()
        self._connect()
        self._update()
        import_ahead(FOR_SLIDES)

    def _lay_out(self) -> None:
        self.setWidgetResizable(True)
        self.setFrameShape(QScrollArea.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAcceptDrops(True)
        inner = QWidget()
        column = QVBoxLayout(inner)
        for step in (self.form, self.run_view, self.result_view):
            column.addWidget(step)
        column.addStretch(1)
        self.setWidget(inner)
        self._make_room()
        leave_the_wheel_to(inner)

    def _make_room(self) -> None:
        """Be as wide as the steps need in the font that napari is set to: nobody misses what is cut off."""
        beside = self.verticalScrollBar().sizeHint().width() + 4
        self.setMinimumWidth(max(320, self.widget().minimumSizeHint().width() + beside))

    def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: N802
        """Notice that the steps need another width; Qt asks for all that happens to the widget that is scrolled."""
        if watched is self.widget() and event.type() == QEvent.Type.LayoutRequest:
            self._make_room()
        return bool(super().eventFilter(watched, event))

    def _connect(self) -> None:
        self.form.changed.connect(self._update)
        self.form.slide_picked.connect(self._stage.show_alone)
        self.form.open_asked.connect(self.opener.ask)
        self.form.draw_asked.connect(self._draw_region)
        self.form.recalibrated.connect(lambda: mark_view(self._viewer))
        self.opener.refused.connect(self._on_refused)
        self.opener.preparing_changed.connect(self._update)
        self.run_view.start_asked.connect(self.classify)
        self.run_view.cancel_asked.connect(self.cancel)
        self.run_view.leave_out_asked.connect(self._classify_the_readable)
        self.results.said.connect(self.run_view.say)
        self.results.alone_asked.connect(self._stage.show_alone)
        watch(self._viewer)
        compat.camera(self._viewer).events.zoom.connect(self._on_zoom)
        events = self._viewer.layers.events
        events.inserted.connect(self._on_inserted, position="last")  # after `watch` has told a copy from its original
        events.removed.connect(self._on_removed)
        events.reordered.connect(self._on_layers)
        for layer in self._viewer.layers:
            self._listen(layer)

    # --- slide and region ------------------------------------------------------------------------------------------

    def open_slide(
        self, path: str | Path, mpp: float | None = None, *, then: Callable[[], None] | None = None
    ) -> napari.layers.Image | None:
        """Open a slide file as a layer and choose it; a file that cannot be read gives a message and None.

        A large PNG, JPEG or TIFF without tiles is decoded in the background first: it gives None too, and its layer
        comes later.

        Args:
            path: the slide file.
            mpp: µm per level-0 pixel, where it is known better than the file says.
            then: called when the layer is there and chosen, never if it cannot be opened.
        """
        return self.opener.open(path, mpp, then=then)

    def _on_refused(self, reason: str) -> None:
        if not self.running:  # its line is the run's until it ends
            self._failed_with = None
            self.run_view.say(reason, error=True)

    def dragEnterEvent(self, event: Any) -> None:  # noqa: N802
        """Accept files."""
        if event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:  # noqa: N802
        """Open every dropped file."""
        event.acceptProposedAction()
        for url in event.mimeData().urls():
            self.open_slide(url.toLocalFile())

    def _draw_region(self) -> None:
        """Begin a region, or go on with the chosen one: all of its shapes count."""
        self._viewer.dims.ndisplay = 2  # napari draws no shapes in 3D
        if self.form.region.value is not None:
            draw_on(self._viewer, self.form.region.value)
        elif self.form.layer is not None:
            empty = empty_region(self._viewer, self.form.layer)
            shapes = add_region_layer(self._viewer, self.form.layer) if empty is None else empty
            draw_on(self._viewer, shapes)
            self.form.region.value = shapes  # what to do now is said below: see `Form.missing`

    # --- running ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a classification is under way."""
        return self._run is not None

    def result_of(self, layer: napari.layers.Image) -> Prediction | None:
        """The latest result of a slide layer, if there is one."""
        return self.results.of(layer)

    def classify(self, *, leave_out_unreadable: bool = False) -> None:
        """Start to classify the chosen slide; returns at once.

        Args:
            leave_out_unreadable: go on without the patches that cannot be read, however many they are; else one of them
                fails the run.
        """
        if self.running or self.form.missing():
            return
        stop_drawing(self._viewer)
        self._viewer.layers.selection.active = self.form.layer  # a drag moves the view from here on
        try:
            request = self.form.request()
        except MsamilError as error:
            self._complain(str(error))
            return
        if leave_out_unreadable:
            request = replace(request, max_read_errors=1.0)
        self._run_layer = self.form.layer
        run = self._run = Run(request)
        run.progressed.connect(self._on_progress)
        run.succeeded.connect(self._on_success)
        run.failed.connect(self._fail)
        run.unreadable.connect(self._on_unreadable)
        self._failed_with = self._progress = None
        self.run_view.begin()
        self._update()
        run.start()
        import_ahead(FOR_RESULTS)

    def _classify_the_readable(self) -> None:
        self.classify(leave_out_unreadable=True)

    def cancel(self) -> None:
        """Stop the run and keep nothing of it; its thread ends in the background, within a batch."""
        if self._run is not None:
            self._run.stop()
            self._end_run()
            self.run_view.say("Cancelled.")

    def _on_progress(self, progress: Progress | None) -> None:
        if self._run_layer is not None:
            self._progress = progress
            elsewhere = self.form.layer != self._run_layer  # as when another slide was opened since
            self.run_view.show_progress(progress, of=self._run_layer.name if elsewhere else "")

    def _on_success(self, prediction: Prediction) -> None:
        layer, model = self._run_layer, self._run.request.model  # type: ignore[union-attr]
        self._end_run()
        said = "" if self.form.layer == layer else f"{layer.name} is classified: choose it under 1 to see the result."
        try:
            self.results.add(layer, prediction, model)
        except Exception as error:  # whatever else is in the viewer, an hour's work is not lost
            logger.exception("the result could not be laid on %s", layer.name)
            said = f"The result could not be drawn on the slide ({type(error).__name__}: {error}). It can be saved."
        self._stage.hide_waiting()
        self.run_view.say(said)  # who looks at another slide is not taken away from it
        self._update()

    def _on_unreadable(self, message: str) -> None:
        self._fail(message, leave_out=True)

    def _fail(self, message: str, *, leave_out: bool = False) -> None:
        layer = self._run_layer
        self._end_run()
        self.form.choose(layer)  # message and button are about the chosen slide
        self._complain(message, leave_out=leave_out)

    def _complain(self, message: str, *, leave_out: bool = False) -> None:
        self._failed_with = self.form.answers()
        self.run_view.say(message, error=True, leave_out=leave_out)

    def _end_run(self) -> None:
        self._run = None
        self._run_layer = None
        self._update()

    # --- keeping up with the viewer ----------------------------------------------------------------------------------

    def _update(self) -> None:
        """Show the chosen slide, enable what can be done now, and say why the rest cannot."""
        turned = self._stage.turn_to(self.form.layer)
        missing = self.form.missing()
        self.form.setEnabled(not self.running)
        self.form.device.enabled = not self.running
        self.run_view.enable(running=self.running, missing=missing)
        preparing = self.opener.preparing
        asked = f"Preparing {', '.join(preparing)} …" if preparing else missing
        if not self.running:
            # What was said since stays until there is something new to ask or it is about other answers.
            news = bool(asked) and asked != self._asked
            mended = self._failed_with not in (None, self.form.answers())
            if turned or news or mended or self.run_view.status.text() == self._asked:
                self._failed_with = None
                self.run_view.say(asked)
            self._asked = asked
        elif turned:
            self._on_progress(self._progress)  # names the slide, or no longer
        self.results.refresh()

    def _listen(self, layer: Any) -> None:
        layer.events.name.connect(self._on_layers)
        layer.events.visible.connect(self._on_visible)
        if isinstance(layer, napari.layers.Shapes):
            layer.events.data.connect(self._on_drawn)
        elif tag(layer).get("role") in MAPS:
            self.results.listen(layer)

    def _ignore(self, layer: Any) -> None:
        layer.events.name.disconnect(self._on_layers)
        layer.events.visible.disconnect(self._on_visible)
        layer.events.data.disconnect(self._on_drawn)

    def _on_zoom(self, event: Any) -> None:
        """Redraw outlines once the view is a third nearer or farther: each step of the wheel would be felt."""
        zoom = compat.camera(self._viewer).zoom
        if not 0.75 < zoom / self._outlined_at < 1.33:
            self._outlined_at = zoom
            fit_outlines(self._viewer)

    def _on_drawn(self, event: Any) -> None:
        self._update()

    def _on_visible(self, event: Any) -> None:
        layer = event.source
        self.results.follow_eye(layer)
        if tag(layer).get("role") in (SLIDE, SAVED):
            mark_view(self._viewer)
        if (tag(layer).get("role") == SLIDE or is_evidence(layer)) and not self._stage.acting:
            QTimer.singleShot(0, lambda: self._follow_eyes(layer))  # not at once: several may be shown and hidden

    def _follow_eyes(self, touched: Any) -> None:
        """Go to the slide that the user goes to by the eye icons."""
        meant = None if self._closed else self._stage.meant_by(touched)
        if meant is None or meant is self.form.layer:
            return
        if touched.visible and tag(touched)["role"] in MAPS:
            see_alone(self._viewer.layers, touched)  # what waits of its slide would come beside it
        self.form.choose(meant)

    def _on_inserted(self, event: Any) -> None:
        self._listen(event.value)
        if tag(event.value).get("role") == SLIDE:
            self.form.choose(event.value)
        self._on_layers()

    def _on_removed(self, event: Any) -> None:
        layer = event.value
        self._ignore(layer)
        stopped = layer == self._run_layer and self._run is not None
        if stopped:
            self._run.stop()  # type: ignore[union-attr]
            self._end_run()
        if tag(layer).get("role") == SLIDE:
            self.results.forget(layer)
            # Not at once: whoever removes several layers counts on the rest of the list.
            QTimer.singleShot(0, self._remove_orphans)
        self._on_layers()
        if stopped:
            self.run_view.say(f"Stopped: {layer.name} was removed.")

    def _remove_orphans(self) -> None:
        if not self._closed:
            remove_orphans(self._viewer)
            if self.form.layer is not None:  # napari selects whatever comes next, which the next Delete would remove
                self._viewer.layers.selection.active = self.form.layer

    def _on_layers(self, event: Any = None) -> None:
        self.form.refresh()
        mark_view(self._viewer)

    def shut_down(self) -> None:
        """Stop what runs and let go of the viewer; the panel is of no use afterwards."""
        if self._closed:
            return
        self._closed = True
        self.opener.shut_down()
        self.results.shut_down()
        self._stage.leave()
        if self._run is not None:
            self._run.stop()
        compat.camera(self._viewer).events.zoom.disconnect(self._on_zoom)
        events = self._viewer.layers.events
        events.inserted.disconnect(self._on_inserted)
        events.removed.disconnect(self._on_removed)
        events.reordered.disconnect(self._on_layers)
        for layer in self._viewer.layers:
            self._ignore(layer)

    def event(self, event: Any) -> bool:
        """Notice when napari takes the panel out of its dock, which is how a dock is closed for good."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            if self._run_layer is not None:
                show_info(f"The classification of {self._run_layer.name} was stopped: its panel was closed.")
            self.shut_down()
        return bool(super().event(event))

    def showEvent(self, event: Any) -> None:  # noqa: N802
        """Follow the canvas beside which the panel is now."""
        self._stage.watch_canvas_of(self)
        super().showEvent(event)

    def closeEvent(self, event: Any) -> None:  # noqa: N802
        """Shut down."""
        self.shut_down()
        super().closeEvent(event)
