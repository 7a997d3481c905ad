"""The panel's answer: what it says where a slide may have several classes, and what the colours are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractSlider

from napari_msamil.inference.classify import classify
from napari_msamil.inference.prediction import NOT_EXCLUSIVE

pytestmark = pytest.mark.gui


def test_every_class_that_is_found_has_a_line_and_none_is_said(qtbot: Any, slide_file: Path, model_file: Path) -> None:
    from napari_msamil.plugin.result_view import ResultView

    view = ResultView()
    qtbot.addWidget(view)
    one = classify(slide_file, model_file, device="cpu")
    how: dict[str, Any] = {"maps": [], "scale": "Off"}
    view.show_prediction(one, **how)
    assert view.headline.text() == one.headline.replace(" (", "  ").rstrip(")").replace(" %", "\u00a0%")
    assert NOT_EXCLUSIVE not in view.facts.text()
    several = replace(one, exclusive=False, probabilities=np.array([0.71, 0.93]))
    view.show_prediction(several, **how)
    assert view.headline.text() == "malignant  93.0\u00a0%\nbenign  71.0\u00a0%"
    assert NOT_EXCLUSIVE in view.facts.text()
    view.show_prediction(replace(several, probabilities=np.array([0.2, 0.1])), **how)
    assert view.headline.text() == "none of the classes (highest: benign 20.0 %)"


def test_the_colours_of_the_heatmaps_are_seen_from_low_to_high(qtbot: Any) -> None:
    from napari_msamil.plugin.result_view import ResultView

    view = ResultView()
    qtbot.addWidget(view)
    view.resize(300, 600)
    view.show()
    ramp = np.linspace(0, 255, 256).round().astype(np.uint8)
    view.set_colours(np.stack([ramp, 0 * ramp, 255 - ramp], axis=1), (0.0, 1.0))
    qtbot.wait(50)
    drawn = view.colours.grab().toImage()
    left, right = (drawn.pixelColor(x, drawn.height() // 2) for x in (1, drawn.width() - 2))
    assert left.blue() > 200 > 50 > left.red()
    assert right.red() > 200 > 50 > right.blue()


def test_patches_are_counted_that_were_read_and_names_of_files_stay_as_they_are(
    qtbot: Any, slide_file: Path, model_file: Path
) -> None:
    from napari_msamil.plugin.result_view import ResultView

    view = ResultView()
    qtbot.addWidget(view)
    whole = classify(slide_file, model_file, device="cpu")
    lost = np.where(np.arange(len(whole.table)) == int(np.flatnonzero(whole.table.scale == 0)[0]), np.nan, 1.0)
    name = whole.slide_path.name
    partly = replace(whole, attention=(whole.attention * lost).astype(np.float32), notes=(f"{name} says", "one more"))
    view.show_prediction(partly, maps=[], scale="Off")
    finest, count = whole.table.scales[0].name, int((whole.table.scale == 0).sum())
    assert f"Patches: {finest} {count - 1} " in view.facts.text()
    assert view.warning.text().split("\n")[-2:] == [f"⚠ {name} says", "⚠ One more"]


def test_the_opacity_goes_by_hundredths(qtbot: Any) -> None:
    from napari_msamil.plugin.result_view import ResultView

    view = ResultView()
    qtbot.addWidget(view)
    told: list[float] = []
    view.opacity_chosen.connect(told.append)
    view.show()
    slider = view.opacity.native.findChild(QAbstractSlider) or view.opacity.native
    slider.setFocus()
    qtbot.keyClick(slider, Qt.Key.Key_Right)
    assert told == [pytest.approx(0.51)]
