"""The dock widget "Multi-scale MIL": open a slide, classify it, see why."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari.layers
from magicgui.widgets import PushButton
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QEvent, QSettings, Qt
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QProgressBar, QScrollArea, QVBoxLayout, QWidget

from napari_msamil.errors import MsamilError
from napari_msamil.plugin import compat, layers
from napari_msamil.plugin.background import import_ahead
from napari_msamil.plugin.form import Form, heading
from napari_msamil.plugin.regions import add_region_layer
from napari_msamil.plugin.result_view import OFF, ResultView
from napari_msamil.plugin.slides import HEATMAP, SLIDE, layer_data, slide_in, tag, watch
from napari_msamil.plugin.worker import Pace, Run

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari.viewer

    from napari_msamil.inference.classify import Progress
    from napari_msamil.inference.prediction import Prediction
    from napari_msamil.plugin.slides import LayerData
    from napari_msamil.slide.slide import Slide

logger = logging.getLogger(__name__)

FILTER = "Slides (*.svs *.ndpi *.scn *.bif *.tif *.tiff *.qptiff *.mrxs *.dcm *.png *.jpg *.jpeg);;All files (*)"


class MilPanel(QScrollArea):
    """Classify a slide and look at its probabilities, lesion outline and attention.

    Args:
        viewer: the viewer to work in; only its public names are used.
    """

    def __init__(self, viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._run: Run | None = None
        self._run_layer: Any = None
        self._pace = Pace()
        self._results: dict[str, Prediction] = {}
        self._closed = False
        self._asked = ""
        self._preparing: list[str] = []
        self._visited: tuple[tuple[str, int], int] = ("", 0), 0  # slide and scale of the last patch shown, its place
        self.form = Form(viewer)
        self.result = ResultView()
        self.run_button = PushButton(text="Classify")
        self.cancel_button = PushButton(text="Cancel")
        self.progress = QProgressBar()
        self.status = QLabel()
        self._lay_out()
        self._connect()
        self._update()
        import_ahead()

    def _lay_out(self) -> None:
        self.setWidgetResizable(True)
        self.setFrameShape(QScrollArea.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMinimumWidth(300)
        self.setAcceptDrops(True)
        inner = QWidget()
        column = QVBoxLayout(inner)
        column.addWidget(self.form)
        column.addWidget(heading("4  Run"))
        device = QHBoxLayout()
        device.addWidget(QLabel("Device"))
        device.addWidget(self.form.device.native, 1)
        column.addLayout(device)
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button.native, 2)
        buttons.addWidget(self.cancel_button.native, 1)
        column.addLayout(buttons)
        self.progress.setTextVisible(False)
        self.progress.setMaximumHeight(12)
        self.status.setWordWrap(True)
        column.addWidget(self.progress)
        column.addWidget(self.status)
        column.addWidget(self.result)
        column.addStretch(1)
        self.setWidget(inner)

    def _connect(self) -> None:
        self.form.changed.connect(self._update)
        self.form.open_asked.connect(self._ask_for_slide)
        self.form.draw_asked.connect(self._draw_region)
        self.run_button.changed.connect(self.classify)
        self.cancel_button.changed.connect(self.cancel)
        self.result.scale_chosen.connect(self._show_scale)
        self.result.values_chosen.connect(self._show_values)
        self.result.opacity_chosen.connect(self._show_opacity)
        self.result.next_asked.connect(self._show_next)
        self.result.save_asked.connect(self._ask_where_to_save)
        watch(self._viewer)
        events = self._viewer.layers.events
        events.inserted.connect(self._on_inserted, position="last")  # after `watch` has told a copy from its original
        events.removed.connect(self._on_removed)
        events.reordered.connect(self._on_layers)
        for layer in self._viewer.layers:
            self._listen(layer)

    # --- opening ---------------------------------------------------------------------------------------------------

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
        try:
            described = layer_data(path, mpp)
        except MsamilError as error:
            show_error(str(error))
            return None
        slide = slide_in(described)
        if not slide.decodes_first:
            return self._add_slide(described, then)
        self._preparing.append(slide.name)
        worker = create_worker(_prepare, slide, _start_thread=False, _ignore_errors=True)
        worker.returned.connect(lambda error: self._on_prepared(described, error, then))
        self._update()
        worker.start()
        return None

    def _on_prepared(self, described: LayerData, error: str, then: Callable[[], None] | None) -> None:
        slide = slide_in(described)
        if self._closed:
            slide.close()
            return
        self._preparing.remove(slide.name)
        if error:
            slide.close()
            self._update()
            show_error(error)
        else:
            self._add_slide(described, then)

    def _add_slide(self, described: LayerData, then: Callable[[], None] | None) -> napari.layers.Image:
        data, keywords, _ = described
        layer = self._viewer.add_image(data, **keywords)
        compat.overlay(self._viewer, "scale_bar").visible = True
        compat.fit(self._viewer, layer)
        self.form.choose(layer)
        self._update()
        if then is not None:
            then()
        return layer

    def _ask_for_slide(self) -> None:
        settings = QSettings("napari-msamil", "napari-msamil")
        path, _ = QFileDialog.getOpenFileName(self, "Open a slide", str(settings.value("slides", "")), FILTER)
        if path:
            settings.setValue("slides", str(Path(path).parent))
            self.open_slide(path)

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
        if self.form.layer is not None:
            shapes = add_region_layer(self._viewer, self.form.layer)
            self.form.region.value = shapes
            show_info("Click the corners of the region on the slide; a double click closes it.")

    # --- running ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a classification is under way."""
        return self._run is not None

    def classify(self) -> None:
        """Start to classify the chosen slide; returns at once."""
        if self.running or self.form.missing():
            return
        try:
            request = self.form.request()
        except MsamilError as error:
            self._say(str(error), error=True)
            return
        self._pace = Pace()
        self._run_layer = self.form.layer
        run = self._run = Run(request)
        run.progressed.connect(self._on_progress)
        run.succeeded.connect(self._on_success)
        run.failed.connect(self._on_failure)
        run.cancelled.connect(self._on_cancelled)
        self._say("Starting …")
        self.progress.setRange(0, 0)
        self._update()
        run.start()

    def cancel(self) -> None:
        """Stop the run at its next step; nothing of it is kept."""
        if self._run is not None:
            self._run.cancel()
            self._say("Stopping …")
            self.cancel_button.enabled = False

    def _on_progress(self, progress: Progress) -> None:
        known = progress.total > 1
        self.progress.setRange(0, progress.total if known else 0)
        self.progress.setValue(progress.done if known else 0)
        self._say(self._pace.text(progress))

    def _on_success(self, prediction: Prediction) -> None:
        layer = self._run_layer
        self._end_run()
        self._results[tag(layer)["slide"]] = prediction
        self._visited = ("", 0), 0
        self.result.place.setText("")
        layers.show(self._viewer, layer, prediction, values=self.result.values.value)
        self._say("")
        self.form.choose(layer)
        self._update()

    def _on_failure(self, message: str) -> None:
        self._end_run()
        self._say(message, error=True)

    def _on_cancelled(self) -> None:
        self._end_run()
        self._say("Cancelled.")

    def _end_run(self) -> None:
        self._run = None
        self._run_layer = None
        self._update()

    def _say(self, text: str, *, error: bool = False) -> None:
        self.status.setText(text)
        self.status.setStyleSheet("color: #ff6b5e;" if error else "")
        self.status.setVisible(bool(text))

    # --- looking ---------------------------------------------------------------------------------------------------

    def result_of(self, layer: napari.layers.Image) -> Prediction | None:
        """The latest result of a slide layer, if there is one."""
        return self._results.get(tag(layer)["slide"])

    def _slide_id(self) -> str:
        return "" if self.form.layer is None else str(tag(self.form.layer)["slide"])

    def _maps(self) -> list[Any]:
        return layers.result_layers(self._viewer, self._slide_id(), HEATMAP)

    def _shown_scale(self) -> str:
        visible = [str(tag(layer)["scale"]) for layer in self._maps() if layer.visible]
        return visible[-1] if visible else OFF

    def _show_scale(self, name: str) -> None:
        layers.show_scale(self._viewer, self._slide_id(), None if name == OFF else name)

    def _show_next(self) -> None:
        """Centre the next patch of the shown scale, most attention first, at its own magnification."""
        layer, prediction = self.form.layer, self._results[self._slide_id()]
        names = [scale.name for scale in prediction.table.scales]
        shown = self._shown_scale()
        scale = names.index(shown) if shown in names else 0
        best = prediction.top_patches(scale, layers.TOP_COUNT)
        if layer is None or not len(best):
            self.result.place.setText("No patch at this scale")
            return
        before, place = self._visited
        place = (place + 1) % len(best) if before == (self._slide_id(), scale) else 0
        self._visited = (self._slide_id(), scale), place
        view = compat.camera(self._viewer)
        view.center = tuple(layer.data_to_world(layers.patch_box(prediction, int(best[place])).mean(axis=0)))
        view.zoom = 1 / prediction.table.scales[scale].mpp  # one pixel of the screen is one of the patch
        rank = f"{place + 1} of {len(best)} at {names[scale]}"
        self.result.place.setText(rank)

    def _show_values(self, values: Any) -> None:
        layers.set_values(self._viewer, self._slide_id(), self._results[self._slide_id()], values)

    def _show_opacity(self, opacity: float) -> None:
        for layer in self._maps():
            layer.opacity = opacity

    def _ask_where_to_save(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for the results")
        if folder:
            self.save(folder)

    def save(self, folder: str | Path) -> None:
        """Write the chosen slide's result below a folder, in the background; an earlier one there is never replaced."""
        worker = create_worker(
            _write, self._results[self._slide_id()], folder, _start_thread=False, _ignore_errors=True
        )
        worker.returned.connect(self._on_saved)
        self.result.save.enabled = False
        self._say("Saving …")
        worker.start()

    def _on_saved(self, outcome: tuple[bool, str]) -> None:
        if not self._closed:
            good, text = outcome
            self.result.save.enabled = True
            self._say(text, error=not good)

    # --- keeping up with the viewer ----------------------------------------------------------------------------------

    def _update(self) -> None:
        """Enable what can be done now, and say why the rest cannot."""
        missing = self.form.missing()
        self.form.setEnabled(not self.running)
        self.form.device.enabled = not self.running
        self.run_button.enabled = not self.running and not missing
        self.run_button.tooltip = missing
        self.cancel_button.enabled = self.running
        self.progress.setVisible(self.running)
        asked = f"Preparing {', '.join(self._preparing)} …" if self._preparing else missing
        if asked and not self.running:
            self._say(asked)
        elif self.status.text() == self._asked and not asked:
            self._say("")
        self._asked = asked
        self._show_result()

    def _show_result(self) -> None:
        prediction = self._results.get(self._slide_id())
        self.result.setVisible(prediction is not None)
        if prediction is None:
            return
        maps = self._maps()
        values = next((tag(layer)["values"] for layer in maps), "rank")
        opacity = next((layer.opacity for layer in maps), 0.5)
        self.result.show_prediction(prediction, scale=self._shown_scale(), values=values, opacity=opacity)

    def _listen(self, layer: Any) -> None:
        layer.events.name.connect(self._on_layers)
        layer.events.visible.connect(self._on_visible)

    def _ignore(self, layer: Any) -> None:
        layer.events.name.disconnect(self._on_layers)
        layer.events.visible.disconnect(self._on_visible)

    def _on_visible(self, event: Any) -> None:
        if event.source in self._maps():
            self.result.set_scale(self._shown_scale())

    def _on_inserted(self, event: Any) -> None:
        self._listen(event.value)
        self._on_layers()

    def _on_removed(self, event: Any) -> None:
        layer = event.value
        self._ignore(layer)
        stopped = layer == self._run_layer and self._run is not None
        if stopped:
            self._run.abandon()  # type: ignore[union-attr]
            self._end_run()
        if tag(layer).get("role") == SLIDE:
            self._results.pop(tag(layer)["slide"], None)
        self._on_layers()
        if stopped:
            self._say("Stopped: the slide was removed.")

    def _on_layers(self, event: Any = None) -> None:
        self.form.refresh()
        self._update()

    def shut_down(self) -> None:
        """Stop what runs and let go of the viewer; the panel is of no use afterwards."""
        if self._closed:
            return
        self._closed = True
        if self._run is not None:
            self._run.abandon()
        events = self._viewer.layers.events
        events.inserted.disconnect(self._on_inserted)
        events.removed.disconnect(self._on_removed)
        events.reordered.disconnect(self._on_layers)
        for layer in self._viewer.layers:
            self._ignore(layer)

    def event(self, event: Any) -> bool:
        """Notice when napari takes the panel out of its dock, which is how a dock is closed for good."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.shut_down()
        return bool(super().event(event))

    def closeEvent(self, event: Any) -> None:  # noqa: N802
        """Shut down."""
        self.shut_down()
        super().closeEvent(event)


def _prepare(slide: Slide) -> str:
    """Decode a flat image; returns what went wrong, if anything did."""
    try:
        slide.prepare()
    except MsamilError as error:
        return str(error)
    except Exception as error:
        logger.exception("%s could not be prepared", slide.name)
        return f"{slide.name} cannot be opened ({type(error).__name__}: {error})."
    return ""


def _write(prediction: Prediction, folder: str | Path) -> tuple[bool, str]:
    from napari_msamil.inference.result import write_result

    try:
        return True, f"Saved to {write_result(prediction, folder)}"
    except MsamilError as error:
        return False, str(error)
    except Exception as error:  # whatever it is, the user waits for an answer
        logger.exception("the result could not be saved to %s", folder)
        return False, f"The result could not be saved to {folder} ({type(error).__name__}: {error})."
