"""The results of the slides in a viewer, and what the buttons of the result view do with the chosen slide's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QFileDialog, QMessageBox

from napari_msamil.errors import MsamilError
from napari_msamil.plugin import compat, layers
from napari_msamil.plugin.captions import WHICH, made_with
from napari_msamil.plugin.outlines import mark_patch
from napari_msamil.plugin.regions import closed, polygons
from napari_msamil.plugin.result_view import OFF
from napari_msamil.plugin.slides import HEATMAP, HEATMAP_COPY, KEY, SAVED, TOP, mpp_of, result_layers, tag

if TYPE_CHECKING:
    import napari.layers
    import napari.viewer
    from qtpy.QtWidgets import QWidget

    from napari_msamil.inference.heatmap import Values
    from napari_msamil.inference.prediction import Prediction
    from napari_msamil.plugin.form import Form
    from napari_msamil.plugin.result_view import ResultView

logger = logging.getLogger(__name__)


class Results(QObject):
    """Shows the latest result of each slide: as layers, and in the result view while its slide is chosen.

    A result is kept with its slide's layer, so that a panel that is closed and opened again finds it.

    Args:
        viewer: gets the layers.
        form: says which slide is chosen.
        view: shows the chosen slide's result, and is its parent.

    Signals:
        said(str, bool): a message for the user, and whether it is an error.
        alone_asked(): the chosen slide is to be seen, whatever other lies over it.
    """

    alone_asked = Signal()
    said = Signal(str, bool)

    def __init__(self, viewer: napari.viewer.Viewer, form: Form, view: ResultView) -> None:
        super().__init__(view)
        self._viewer = viewer
        self._form = form
        self._view = view
        self._closed = False
        self._folder = ""  # where the last result was saved
        self._visited: dict[str, tuple[int, int]] = {}  # by slide: scale of the last patch shown, its place
        shown = (tag(layer)["values"] for layer in viewer.layers if tag(layer).get("role") == HEATMAP)
        self._values: Values = next(shown, "rank")  # what the user chose last, for the next result
        view.scale_chosen.connect(self._show_scale)
        view.values_chosen.connect(self._show_values)
        view.opacity_chosen.connect(self._show_opacity)
        view.next_asked.connect(self._show_next)
        view.save_asked.connect(self._ask_where_to_save)

    def of(self, layer: napari.layers.Image) -> Prediction | None:
        """The latest result of a slide layer, if there is one."""
        found: Prediction | None = tag(layer).get("result")
        return found

    def add(self, layer: napari.layers.Image, prediction: Prediction, model: object) -> None:
        """Keep a slide's result in place of an earlier one, and lay it on the slide.

        Args:
            layer: the slide.
            prediction: the result.
            model: what was chosen as the model when it was made.
        """
        self.forget(layer)
        layer.metadata[KEY] = {**tag(layer), "result": prediction, "model": model}
        layers.show(self._viewer, layer, prediction, values=self._values)

    def listen(self, heatmap: napari.layers.Layer) -> None:
        """Notice when the user gives a heatmap, of a result or saved, other colours or another opacity."""
        for look in ("colormap", "gamma", "contrast_limits", "opacity"):
            heatmap.events[look].connect(self._explain_look)

    def forget(self, layer: napari.layers.Layer) -> None:
        """Drop the result of a slide layer; its layers are not touched."""
        layer.metadata[KEY] = {**tag(layer), "result": None}
        self._visited.pop(tag(layer)["slide"], None)

    def refresh(self) -> None:
        """Show the chosen slide's result in the view, or hide the view where there is none."""
        prediction = None if self._form.layer is None else self.of(self._form.layer)
        self._view.setVisible(prediction is not None)
        if prediction is None:
            return
        self._view.show_prediction(
            prediction,
            maps=[tag(layer)["scale"] for layer in self._maps()],
            scale=self._shown_scale(),
            outdated=self._outdated(prediction),
        )
        self._explain_look()
        self._say_place()

    def _outdated(self, prediction: Prediction) -> str:
        """Whether pixel size, model or region are others now than those that the result was made with."""
        shapes, layer, model = self._form.region.value, self._form.layer, self._form.chosen_model
        if layer is None:
            return ""
        if made := made_with(prediction.mpp, mpp_of(layer)):
            return f"this result was {made}: classify again"
        if model != tag(layer)["model"] and (isinstance(model, str) or model.is_file()):
            return f"this result is of the model {prediction.model_name}, not of the one chosen now: classify again"
        if prediction.region is None and shapes is None:
            return ""
        if shapes is None:
            return "this result is of a region, not of the whole slide, which is chosen now: classify again"
        if prediction.region is None:
            chosen = "this result is of the whole slide, not of the region that is chosen now: classify again"
            return chosen if closed(shapes) else ""
        now = polygons(shapes, layer) if closed(shapes) else ()
        rings = [(one.exterior, other.exterior) for one, other in zip(now, prediction.region, strict=False)]
        same = len(now) == len(prediction.region) and all(
            new.shape == old.shape and np.allclose(new, old, rtol=0, atol=0.01) for new, old in rings
        )
        return "" if same else "the region was changed since this result was made: classify again"

    def follow_eye(self, layer: napari.layers.Layer) -> None:
        """Name the scale that is shown now that a layer was shown or hidden."""
        ours = layer in [*self._maps(), *self._other_maps(), *self._top()]
        if ours and self._view.shows(self.of(self._form.layer)):  # else `refresh` is still to come
            self._view.set_scale(self._shown_scale())
            self._explain_look()
            self._say_place()

    def save(self, folder: str | Path) -> None:
        """Write the chosen slide's result below a folder, in the background; asks before it replaces an earlier one."""
        from napari_msamil.inference.result import SUMMARY, result_folder

        prediction = self._chosen()
        earlier = result_folder(prediction.slide_path, Path(folder))
        replace = (earlier / SUMMARY).is_file()
        if replace and not may_replace(earlier, prediction, self._view):
            self._view.say("Not saved: the earlier result stays.")
            return
        worker = create_worker(_write, prediction, folder, replace, _start_thread=False, _ignore_errors=True)
        worker.returned.connect(self._on_saved)
        self._view.save.enabled = False
        self._view.say("Saving …")
        worker.start()

    def shut_down(self) -> None:
        """Say nothing more."""
        self._closed = True

    def _on_saved(self, outcome: tuple[Prediction, bool, str]) -> None:
        if not self._closed:
            prediction, good, text = outcome
            self._view.save.enabled = True
            if self._form.layer is not None and self.of(self._form.layer) is prediction:
                self._view.say(text, error=not good)
            else:  # the user went on to another slide, whose result this is not about
                self.said.emit(text, not good)

    def _ask_where_to_save(self) -> None:
        folder = QFileDialog.getExistingDirectory(self._view, "Folder for the results", self._folder)
        if folder:
            self._folder = folder
            self.save(folder)

    def _chosen(self) -> Prediction:
        """The chosen slide's result; only asked for while it is shown."""
        found = self.of(self._form.layer)
        assert found is not None
        return found

    def _slide_id(self) -> str:
        return "" if self._form.layer is None else str(tag(self._form.layer)["slide"])

    def _maps(self) -> list[Any]:
        return result_layers(self._viewer, self._slide_id(), HEATMAP)

    def _other_maps(self) -> list[Any]:
        return result_layers(self._viewer, self._slide_id(), SAVED, HEATMAP_COPY)

    def _top(self) -> list[Any]:
        return result_layers(self._viewer, self._slide_id(), TOP)

    def _shown_scale(self) -> str:
        """Scale of the heatmap that is seen, as the view names it; "Off" where none is."""
        seen = [tag(layer) for layer in [*self._other_maps(), *self._maps()] if layer.visible]
        names = [f"{WHICH[mark['role']]}{mark['scale']}" for mark in seen]
        return names[-1] if names else OFF

    def _explain_look(self, event: Any = None) -> None:
        """Show how the heatmap that is seen looks, a saved one too, and what its colours stand for."""
        for layer in sorted([*self._other_maps(), *self._maps()], key=lambda a: bool(a.visible))[-1:]:
            colours = layer.colormap.map(np.linspace(0, 1, 256) ** layer.gamma)[:, :3]
            self._view.set_values(tag(layer)["values"], fixed=tag(layer)["role"] != HEATMAP)
            self._view.set_colours((255 * colours).round().astype(np.uint8), tuple(layer.contrast_limits))
            self._view.set_opacity(layer.opacity)

    def _show_scale(self, name: str) -> None:
        layers.show_scale(self._viewer, self._slide_id(), None if name == OFF else name)

    def _show_values(self, values: Any) -> None:
        self._values = values
        layers.set_values(self._viewer, self._slide_id(), self._chosen(), values)

    def _show_opacity(self, opacity: float) -> None:
        for layer in [*self._maps(), *self._other_maps()]:
            layer.opacity = opacity

    def _show_next(self) -> None:
        """Centre the next patch of the shown scale, most attention first, at its own magnification."""
        layer, prediction = self._form.layer, self._chosen()
        names = [scale.name for scale in prediction.table.scales]
        if self._shown_scale() not in names:
            self._show_scale(self._view.finest)
        scale = names.index(self._shown_scale())
        best = prediction.top_patches(scale, layers.TOP_COUNT)
        if layer is None or not len(best):
            self._view.place.setText("No patch at this scale")
            return
        before, place = self._visited.get(self._slide_id(), (scale, -1))
        place = (place + 1) % len(best) if before == scale else 0
        self._visited[self._slide_id()] = scale, place
        mark_patch(self._viewer, self._slide_id(), names[scale], place + 1)
        self.alone_asked.emit()
        for outlined in self._top():
            outlined.visible = True  # which patch is meant must be seen
        centre = layer.data_to_world(layers.patch_box(prediction, int(best[place])).mean(axis=0))
        pixel = prediction.table.footprint(scale)[0] / prediction.table.scales[scale].patch_px  # of the patch, level-0
        compat.look_at(self._viewer, centre, zoom=1 / (pixel * layer.scale[-1]))  # is one of the screen
        self._say_place()

    def _say_place(self) -> None:
        """Say which of the patches with most attention was visited last, where its scale is shown, or how all look."""
        live = self._shown_scale() in [tag(layer)["scale"] for layer in self._maps()]
        outlined = live and self._view.next.enabled and any(layer.visible for layer in self._top())
        text = "outlined in yellow" if outlined else ""
        if self._slide_id() in self._visited:
            prediction = self._chosen()
            scale, place = self._visited[self._slide_id()]
            name = prediction.table.scales[scale].name
            count = len(prediction.top_patches(scale, layers.TOP_COUNT))
            text = f"{place + 1} of {count} at {name}" if name == self._shown_scale() else text
        self._view.place.setText(text)


def may_replace(folder: Path, prediction: Prediction, parent: QWidget) -> bool:
    """Ask the user whether a result that was saved earlier may be replaced, of another slide of this name perhaps."""
    from napari_msamil.inference.result import same_slide

    other = "" if same_slide(folder, prediction) else f" It is of another slide file than {prediction.slide_path}."
    question = f"A result of {folder.name} is in this folder already.{other}\n\nReplace it?"
    yes, no = QMessageBox.StandardButton.Yes, QMessageBox.StandardButton.No
    return bool(QMessageBox.question(parent, "Save result", question, yes | no, no) == yes)


def _write(prediction: Prediction, folder: str | Path, overwrite: bool) -> tuple[Prediction, bool, str]:
    from napari_msamil.inference.result import write_result

    try:
        return prediction, True, f"Saved to {write_result(prediction, folder, overwrite=overwrite)}"
    except MsamilError as error:
        return prediction, False, str(error)
    except Exception as error:  # whatever it is, the user waits for an answer
        logger.exception("the result could not be saved to %s", folder)
        return prediction, False, f"The result could not be saved to {folder} ({type(error).__name__}: {error})."
