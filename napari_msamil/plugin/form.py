"""The questions of the panel: which slide, which model, where to look, on which device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari.layers
from magicgui.widgets import ComboBox, FileEdit, FloatSpinBox, PushButton
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QApplication, QGridLayout, QHBoxLayout, QLabel, QSizePolicy, QWidget

from napari_msamil.inference.classify import Request
from napari_msamil.plugin.inputs import take_point_and_comma
from napari_msamil.plugin.regions import closed, polygons, stop_drawing
from napari_msamil.plugin.slides import (
    PLACEHOLDER,
    TOP,
    calibrate,
    is_foreign,
    lies_over,
    mpp_of,
    slide_layers,
    slide_of,
    tag,
)
from napari_msamil.slide.mpp import MPP_LIMITS

if TYPE_CHECKING:
    import napari.viewer

DEMO, FILE = "demo", "file"
MODELS = (("Demo model (colon)", DEMO), ("Model file …", FILE))
DEVICES = (("Automatic", "auto"), ("CPU", "cpu"), ("GPU (CUDA)", "cuda"), ("Apple GPU (MPS)", "mps"))
WHOLE = "Whole slide"
ERROR_STYLE = "border-left: 3px solid #ff6b5e; padding-left: 6px;"
"""Of a label that says what went wrong; the words keep the colour of the theme, dark or light."""


class Form(QWidget):
    """Steps 1 to 3 of the panel.

    Signals:
        changed(): an answer changed, or the layers to choose from did.
        recalibrated(): the chosen slide got another pixel size.
        slide_picked(): a slide was picked by hand, perhaps the one that was chosen before.
        open_asked(), draw_asked(): the buttons.
    """

    changed = Signal()
    recalibrated = Signal()
    slide_picked = Signal()
    open_asked = Signal()
    draw_asked = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._slide_id = ""
        self._regions_chosen: dict[str, Any] = {}  # by slide, where another one was chosen since
        self.slide = ComboBox(choices=self._slides, nullable=False, tooltip="The slide to classify")
        self.open_button = PushButton(
            text="Open …", tooltip="Open a slide file; dropping it on this panel does the same"
        )
        self.mpp = FloatSpinBox(value=0.0, min=0.0, max=1e6, tooltip="Width of one pixel in µm")
        self.mpp.native.setDecimals(4)
        take_point_and_comma(self.mpp.native)
        self.mpp.native.setSpecialValueText("not known")
        self.model = ComboBox(choices=MODELS, value=DEMO, tooltip="Which network classifies")
        self.file = FileEdit(mode="r", filter="Models (*.safetensors)")
        self.region = ComboBox(
            choices=self._regions,
            nullable=True,  # else the choice None is not told to anyone
            tooltip="Where to look: the whole slide, or all closed shapes of a layer",
        )
        self.region.null_string = WHOLE
        self.draw = PushButton(
            text="Draw …",
            tooltip=f"Draw a region on the slide; draw one more where a region is chosen. {WHOLE} begins anew",
        )
        self.device = ComboBox(choices=DEVICES, value="auto", tooltip="Automatic uses a GPU where there is one")
        self.facts = QLabel()
        self.facts.setWordWrap(True)
        self._mpp_label = QLabel("µm per pixel")
        self._lay_out()
        self._connect()
        _offer(self.slide, self._seen())
        self.refresh()
        self._model_changed()

    def _lay_out(self) -> None:
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setColumnStretch(1, 1)
        for combo in (self.slide, self.model, self.region, self.device):
            # Long layer names must not push the dock wider than the screen allows.
            combo.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
            combo.native.setMinimumWidth(120)
        calibration = QHBoxLayout()
        calibration.addWidget(self._mpp_label)
        calibration.addWidget(self.mpp.native, 1)
        grid.addWidget(heading("1  Slide"), 0, 0)
        grid.addWidget(self.slide.native, 1, 0, 1, 2)  # its name may be long
        grid.addWidget(self.open_button.native, 1, 2)
        grid.addWidget(self.facts, 2, 0, 1, 3)
        grid.addLayout(calibration, 3, 0, 1, 3)
        grid.addWidget(heading("2  Model"), 4, 0)
        grid.addWidget(self.model.native, 4, 1, 1, 2)
        grid.addWidget(self.file.native, 5, 0, 1, 3)
        grid.addWidget(heading("3  Region"), 6, 0)
        grid.addWidget(self.region.native, 6, 1)
        grid.addWidget(self.draw.native, 6, 2)

    def _connect(self) -> None:
        self.slide.changed.connect(self._slide_changed)
        self.slide.native.activated.connect(lambda index: self.slide_picked.emit())
        self.mpp.changed.connect(self.changed.emit)
        self.mpp.native.editingFinished.connect(self.calibrate)
        self.model.changed.connect(self._model_changed)
        self.file.changed.connect(self.changed.emit)
        self.region.changed.connect(self._region_changed)
        self.device.changed.connect(self.changed.emit)
        self.open_button.changed.connect(self.open_asked.emit)
        self.draw.changed.connect(self.draw_asked.emit)

    def refresh(self) -> None:
        """Offer the layers that are there now; the answers stay where they still make sense."""
        _offer(self.slide, self.layer)
        self._slide_changed()

    def choose(self, layer: napari.layers.Image) -> None:
        """Select a slide layer."""
        _offer(self.slide, layer)
        self._slide_changed()

    def choose_model(self, model: str | Path) -> None:
        """Select the demo model, by the name "demo", or a model file."""
        if str(model) == DEMO:
            self.model.value = DEMO
        else:
            self.model.value, self.file.value = FILE, Path(model)

    @property
    def chosen_model(self) -> str | Path:
        """What is chosen as the model: "demo", or a file, which need not be there."""
        return DEMO if self.model.value == DEMO else Path(self.file.value)

    def _seen(self) -> napari.layers.Image | None:
        """The slide that is looked at: the active layer, where no other lies over it, or the topmost one seen."""
        seen = [layer for layer in slide_layers(self._viewer) if layer.visible]
        active = self._viewer.layers.selection.active
        if active in seen and not any(lies_over(self._viewer, other, active) for other in seen):
            return active
        return next(reversed(seen), None)

    @property
    def layer(self) -> napari.layers.Image | None:
        """The chosen slide's layer."""
        return self.slide.value

    def calibrate(self) -> None:
        """Put the entered pixel size on the chosen slide, where the file states none; the picture stays in place."""
        layer, value = self.layer, self.mpp.value
        if layer is None or not self._asks(layer):
            return
        mpp = _possible_mpp(value)
        if mpp and mpp_of(layer) != (mpp, mpp):
            calibrate(self._viewer, layer, mpp)
        elif value:
            return  # the size it has, or one that `missing` complains of
        self._show_size()

    def _show_size(self) -> None:
        """Show the pixel size, but not between press and release of a button, which would move away meanwhile."""
        if QApplication.mouseButtons() == Qt.MouseButton.NoButton:
            self._slide_changed()
            self.recalibrated.emit()
        else:
            QTimer.singleShot(50, self._show_size)

    @staticmethod
    def _asks(layer: napari.layers.Image) -> bool:
        return slide_of(layer).mpp is None

    def answers(self) -> tuple[Any, ...]:
        """All answers, to be compared with later ones."""
        asked = (self.slide, self.mpp, self.model, self.file, self.region, self.device)
        return tuple(question.value for question in asked)

    def missing(self) -> str:
        """What still has to be answered before a slide can be classified; empty when nothing."""
        if self.layer is None:
            if any(tag(layer).get("role") == PLACEHOLDER for layer in self._viewer.layers):
                return "The sample slide is being drawn, which takes some seconds."
            if any(is_foreign(layer, None) for layer in self._viewer.layers):
                return "No picture here was opened as a slide: press Open …, or drop its file on this panel."
            return "Open a slide to begin."
        if self.region.value is not None and not closed(self.region.value):
            return (
                "Draw the region: click its corners on the slide, double-click to close it. Where clicks do not draw, "
                f"press Draw … again. Or choose {WHOLE!r} under 3."
            )
        if self._asks(self.layer) and not _possible_mpp(self.mpp.value):
            low, high = MPP_LIMITS
            given = f"{self.mpp.value:g} µm per pixel is outside {low:g} to {high:g}." if self.mpp.value else ""
            reason = given or slide_of(self.layer).mpp_missing
            return f"{reason} Enter the µm per pixel (0.25 at 40x, 0.5 at 20x)."
        if self.model.value == FILE and not self.file.value.is_file():
            given = str(self.file.value)
            return "Choose a model file." if given in ("", ".") else f"{given} is no file: choose a model file."
        return ""

    def request(self) -> Request:
        """The answers as one request.

        Raises:
            RegionError: the chosen layer holds no closed shape.
            SlideError: the slide's file is no longer the one that is shown.
        """
        self.calibrate()
        layer = self.layer
        assert layer is not None
        slide_of(layer).check_unchanged()
        shapes = self.region.value
        return Request(
            slide=slide_of(layer).path,
            model=self.chosen_model,
            mpp=None if slide_of(layer).mpp_source == "metadata" else mpp_of(layer),
            device=self.device.value,
            region=None if shapes is None else polygons(shapes, layer),
        )

    def _slides(self, _: Any) -> list[tuple[str, Any]]:
        return [(layer.name, layer) for layer in reversed(slide_layers(self._viewer))]

    def _regions(self, _: Any) -> list[tuple[str, Any]]:
        """What can be looked at but the whole: this slide's regions, and shapes not known to lie on another slide."""
        drawn = (layer for layer in self._viewer.layers if isinstance(layer, napari.layers.Shapes))
        shapes = [layer for layer in drawn if tag(layer).get("role") != TOP]
        here = [layer for layer in shapes if tag(layer).get("slide", self._slide_id) == self._slide_id]
        slide = f"{self.layer.name} | " if self.layer is not None else ""  # cut off, it would be all that is seen
        names = [layer.name.removeprefix(slide) for layer in here]
        if len({*names}) < len(names):  # of two that are called the same, the box would offer one
            names = [layer.name for layer in here]
        names = [f"{name} (drawn)" if name == WHOLE else name for name in names]
        return list(zip(names, here, strict=True))

    def _offer_regions(self) -> None:
        """Offer the chosen slide's regions; one who comes back to a slide finds the region drawn on it chosen still."""
        left, self._slide_id = self._slide_id, "" if self.layer is None else tag(self.layer)["slide"]
        chosen = self.region.value
        if left != self._slide_id:
            self._regions_chosen[left] = chosen
            chosen = self._regions_chosen.pop(self._slide_id, None)
            if chosen is not None and "slide" not in tag(chosen):
                chosen = None
        _offer(self.region, chosen)

    def _slide_changed(self) -> None:
        layer = self.layer
        self._offer_regions()
        ask = layer is not None and self._asks(layer)
        self.mpp.native.setVisible(ask)
        self._mpp_label.setVisible(ask)
        self.draw.enabled = layer is not None
        if layer is None:
            self.facts.setText("Open a slide, or drop its file here.")
        else:
            mpp = mpp_of(layer)
            if ask:
                with self.mpp.changed.blocked():
                    self.mpp.value = mpp[0] if mpp else 0.0
            self.facts.setText(describe(layer))
        self.changed.emit()

    def _region_changed(self) -> None:
        if self.region.value is None:
            stop_drawing(self._viewer)
        self.changed.emit()

    def _model_changed(self) -> None:
        self.file.native.setVisible(self.model.value == FILE)
        self.changed.emit()


def _possible_mpp(value: float) -> float:
    """A number of µm per pixel; 0 where no slide can have it."""
    low, high = MPP_LIMITS
    return float(value) if low <= value <= high else 0.0


def _offer(box: ComboBox, chosen: Any) -> None:
    """Let a box offer what there is now, with one thing chosen if it is among it, whatever its name has become."""
    with box.changed.blocked():
        box.reset_choices()
        if box.choices:
            box.value = chosen if chosen in box.choices else box.choices[0]


def heading(text: str) -> QLabel:
    """A bold line above a step."""
    label = QLabel(text)
    font = label.font()
    font.setBold(True)
    label.setFont(font)
    return label


def describe(layer: napari.layers.Image) -> str:
    """Size and resolution of a slide in one line."""
    slide, mpp = slide_of(layer), mpp_of(layer)
    size = f"{slide.width:,} x {slide.height:,} px".replace(",", "\u2009")
    if mpp is None:
        return f"{size} · uncalibrated"
    given = slide.mpp is None or slide.mpp_source != "metadata"
    source = "entered by you" if given else f"about {10 / mpp[0]:.2g}x"
    return f"{size} · {mpp[0]:.4g} µm/px ({source})"
