"""The answer of a classification: class, probability bars, the facts behind them, and how the maps are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import ComboBox, FloatSlider, PushButton
from qtpy.QtCore import QEvent, Qt, QTimer, Signal
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QProgressBar, QVBoxLayout, QWidget

from napari_msamil.inference.prediction import RESEARCH_USE, percent
from napari_msamil.plugin.form import ERROR_STYLE, heading
from napari_msamil.plugin.layers import why_empty

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from napari_msamil.inference.prediction import Prediction

OFF = "Off"
AMBER, FAINT, BLUE = "#f0a83a", "#858a93", "#5b8fd9"  # seen in dark and light themes


class ResultView(QWidget):
    """Step 5 of the panel; hidden while the chosen slide has no result.

    Signals:
        scale_chosen(str): name of the heatmap to show, or "Off".
        values_chosen(str): "rank" or "relative".
        opacity_chosen(float): 0..1.
        next_asked(): go to the next patch that mattered.
        save_asked().
    """

    scale_chosen = Signal(str)
    values_chosen = Signal(str)
    opacity_chosen = Signal(float)
    next_asked = Signal()
    save_asked = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.headline = QLabel()
        self.headline.setWordWrap(True)
        self.weak = QLabel()
        self.weak.setWordWrap(True)
        self.weak.setStyleSheet(
            f"background: {AMBER}; color: black; font-weight: bold; padding: 3px 6px; border-radius: 3px;"
        )
        self.notice = QLabel()
        self.notice.setWordWrap(True)
        self.warning = QLabel()
        self.warning.setWordWrap(True)
        self.facts = QLabel()
        self.facts.setWordWrap(True)
        self.facts.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.bars = QGridLayout()
        self.bars.setColumnStretch(0, 1)
        self.bars.setVerticalSpacing(2)
        self.scale = ComboBox(choices=[OFF], tooltip="Which scale's attention lies over the slide")
        self.back = PushButton(text="◀", tooltip="Next coarser scale")
        self.forward = PushButton(text="▶", tooltip="Next finer scale")
        self.empty = QLabel()
        self.empty.setWordWrap(True)
        self._why_empty: dict[str, str] = {}
        self._maps: list[str] = []  # scales whose heatmaps are there, coarsest first
        self._shown: Prediction | None = None
        self.values = ComboBox(
            choices=[("Rank", "rank"), ("Relative to average", "relative")],
            tooltip="Rank: share of all patches with less attention. Relative: 1 is an average patch.",
        )
        self.low, self.colours, self.high = QLabel(), QLabel(), QLabel()
        self.colours.setScaledContents(True)
        self.colours.setFixedHeight(10)
        self.colours.setMinimumWidth(40)
        self.opacity = FloatSlider(
            value=0.5, min=0.0, max=1.0, step=0.01, tooltip="How much the heatmap covers the tissue"
        )
        self.next = PushButton(
            text="Next patch", tooltip="Go to the patch with most attention at this scale, then to the next, ten in all"
        )
        self.place = QLabel()
        self.answer = QLabel()
        self.answer.setWordWrap(True)
        self.answer.hide()
        self.save = PushButton(text="Save …", tooltip="Write tables, outlines, heatmaps and an overview")
        self._lay_out()
        self.scale.changed.connect(self.scale_chosen.emit)
        self.values.changed.connect(self.values_chosen.emit)
        self.opacity.changed.connect(self.opacity_chosen.emit)
        self.next.changed.connect(self.next_asked.emit)
        self.save.changed.connect(self.save_asked.emit)
        self.back.changed.connect(lambda: self.step(-1))
        self.forward.changed.connect(lambda: self.step(1))

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        top = QHBoxLayout()
        top.addWidget(heading("5  Result"), 1)
        top.addWidget(self.save.native)
        column.addLayout(top)
        column.addWidget(self.answer)  # beside the button, which is in sight when it is pressed
        column.addWidget(self.headline)
        column.addWidget(self.weak)
        column.addWidget(self.notice)
        column.addLayout(self.bars)
        column.addWidget(self.warning)
        maps = QGridLayout()
        maps.setColumnStretch(1, 1)
        stepper = QHBoxLayout()
        for widget in (self.back.native, self.scale.native, self.forward.native):
            stepper.addWidget(widget, int(widget is self.scale.native))
        self.back.native.setMaximumWidth(36)
        self.forward.native.setMaximumWidth(36)
        maps.addWidget(QLabel("Attention"), 0, 0)
        maps.addLayout(stepper, 0, 1)
        maps.addWidget(self.empty, 1, 0, 1, 2)
        maps.addWidget(self.next.native, 2, 0)
        maps.addWidget(self.place, 2, 1)
        maps.addWidget(QLabel("Shown as"), 3, 0)
        maps.addWidget(self.values.native, 3, 1)
        bar = QHBoxLayout()
        bar.addWidget(self.low)
        bar.addWidget(self.colours, 1)
        bar.addWidget(self.high)
        maps.addLayout(bar, 4, 1)
        maps.addWidget(QLabel("Opacity"), 5, 0)
        maps.addWidget(self.opacity.native, 5, 1)
        column.addLayout(maps)
        column.addWidget(self.facts)

    def changeEvent(self, event: Any) -> None:  # noqa: N802
        """Let the answer stay larger than the rest where napari is set to another size of letters."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.StyleChange:
            QTimer.singleShot(0, self._style_texts)  # the letters have their new size then

    def _style_texts(self) -> None:
        points = self.facts.font().pointSizeF()
        colour = f" color: {FAINT};" if self._shown is not None and self._shown.weak else ""
        # as styles, since napari's own overrules a font
        self.headline.setStyleSheet(f"font-size: {round(1.3 * points)}pt; font-weight: bold;{colour}")
        self.notice.setStyleSheet(f"font-size: {round(0.9 * points)}pt;")

    def say(self, text: str, error: bool = False) -> None:
        """What became of saving; nothing is said of another result."""
        self.answer.setText(text)
        self.answer.setStyleSheet(ERROR_STYLE if error else "")
        self.answer.setVisible(bool(text))

    def step(self, by: int) -> None:
        """Show the next finer (+1) or coarser (-1) scale; past the last one comes "Off"."""
        choices = list(self.scale.choices)
        self.scale.value = choices[(choices.index(self.scale.value) + by) % len(choices)]

    @property
    def finest(self) -> str:
        """The finest scale whose heatmap is there."""
        return self._maps[-1]

    def shows(self, prediction: Prediction | None) -> bool:
        """Whether a result is the one that is filled in."""
        return prediction is not None and prediction is self._shown

    def set_scale(self, name: str) -> None:
        """Name the heatmap that is shown, or "Off", and why it is empty if it is; nothing is asked of anyone.

        A saved one, or a copy, is a choice only while it is shown.
        """
        names = [OFF, *self._maps]
        with self.scale.changed.blocked():
            self.scale.choices = names if name in names else [*names, name]
            self.scale.value = name
        why = self._why_empty.get(name, "")
        self.empty.setText(why)
        self.empty.setVisible(bool(why))
        self.next.enabled = not why and bool(self._maps)

    def set_opacity(self, opacity: float) -> None:
        """Say how opaque the heatmaps are; nothing is asked of anyone."""
        with self.opacity.changed.blocked():
            self.opacity.value = opacity

    def set_values(self, values: str, *, fixed: bool) -> None:
        """Name what the heatmap that is seen shows, and whether that is `fixed`; nothing is asked of anyone."""
        self.values.enabled = not fixed
        with self.values.changed.blocked():
            if values in self.values.choices:  # an old saved heatmap shows neither
                self.values.value = values

    def set_colours(self, colours: NDArray[np.uint8], limits: tuple[float, float]) -> None:
        """Explain the heatmaps' colours: (n, 3) RGB from the lower to the upper limit of what they show."""
        rgb = np.repeat(colours[None], 10, axis=0)  # one row of pixels is nothing to Qt 6, however it is stretched
        height, width, depth = rgb.shape
        picture = QImage(rgb.data, width, height, width * depth, QImage.Format.Format_RGB888)
        self.colours.setPixmap(QPixmap.fromImage(picture))
        low, high = limits
        self.low.setText(f"{low:.2g}")
        self.high.setText(f"{high:.2g}")

    def show_prediction(
        self,
        prediction: Prediction,
        *,
        maps: Collection[str],
        scale: str,
        outdated: str = "",
    ) -> None:
        """Fill in a result.

        Args:
            prediction: the result.
            maps: scales whose heatmaps are there; the user may have removed some.
            scale: the heatmap that is shown, or "Off".
            outdated: what has changed since it was made, if anything has.
        """
        if prediction is not self._shown:
            self._shown = prediction
            self._fill(prediction)
        self._maps = [s.name for s in reversed(prediction.table.scales) if s.name in maps]  # as one zooms in
        self.set_scale(scale)
        said = [text for text in (outdated, prediction.fallback, *prediction.notes) if text]
        name = prediction.slide_path.name  # stays as it is written
        sentences = [text if text.startswith(name) else text[:1].upper() + text[1:] for text in said]
        self.warning.setText("\n".join(f"⚠ {text}" for text in sentences))
        self.warning.setVisible(bool(said))

    def _fill(self, prediction: Prediction) -> None:
        """What stays as long as it is this result."""
        self.say("")
        lines = [f"{name}  {percent(probability)}".replace(" %", "\u00a0%") for name, probability in prediction.found]
        self.headline.setText("\n".join(lines) or prediction.headline)
        self._style_texts()
        self.weak.setText(f"⚠ Weak evidence: {prediction.weak}")
        self.weak.setVisible(bool(prediction.weak))
        use = prediction.intended_use
        self.notice.setText(f"Model: {prediction.model_name}\n{use}{'' if RESEARCH_USE in use else f' {RESEARCH_USE}'}")
        self._fill_bars(prediction)
        self._why_empty = {s.name: why_empty(prediction, i) for i, s in enumerate(prediction.table.scales)}
        self.facts.setText(facts(prediction))

    def _fill_bars(self, prediction: Prediction) -> None:
        while (item := self.bars.takeAt(0)) is not None:
            item.widget().hide()  # deletion waits for the event loop, and would show the old names until then
            item.widget().deleteLater()
        order = sorted(range(len(prediction.classes)), key=lambda i: -prediction.probabilities[i])
        for place, index in enumerate(order):
            probability = float(prediction.probabilities[index])
            name = QLabel(prediction.classes[index])
            name.setWordWrap(True)
            number = QLabel(percent(probability))
            number.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            bar = QProgressBar()
            bar.setRange(0, 1000)
            bar.setValue(round(1000 * probability))
            bar.setTextVisible(False)
            bar.setFixedHeight(8)
            bar.setStyleSheet(f"QProgressBar::chunk {{ background: {FAINT if prediction.weak else BLUE}; }}")
            self.bars.addWidget(name, 2 * place, 0)
            self.bars.addWidget(number, 2 * place, 1)
            self.bars.addWidget(bar, 2 * place + 1, 0, 1, 2)


def _where(prediction: Prediction) -> str:
    """What was looked at, in words."""
    if prediction.region is None:
        return "the whole slide"
    count = len(prediction.region)
    return "the drawn region" if count == 1 else f"the drawn regions, {count} shapes"


def facts(prediction: Prediction) -> str:
    """How to read the probabilities, where was looked, patches per scale, areas, device and time, one per line."""
    scales = prediction.table.scales
    counts = " · ".join(f"{s.name} {count}" for s, count in zip(scales, prediction.patches_read, strict=True))
    cyan = ", in cyan" if prediction.finds_lesion else ""
    return "\n".join([
        *([prediction.how_to_read] if prediction.how_to_read else []),
        f"Looked at: {_where(prediction)}",
        f"Patches: {counts}",
        f"{prediction.lesion_label.capitalize()}{cyan}: {prediction.lesion_area}",
        f"Tissue: {prediction.tissue_area_mm2:.3g} mm²",
        f"Device: {prediction.device}, {prediction.precision} ({prediction.device_reason})",
        f"Time: {prediction.seconds['total']:.1f} s",
    ])  # fmt: skip
