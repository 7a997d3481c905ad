"""The panel, used as a person uses it: buttons pressed in a real napari window."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QApplication, QComboBox, QSlider

from napari_msamil.errors import ModelFileError, ReadError, UnreadablePatchesError
from napari_msamil.inference import classify as classify_module
from napari_msamil.inference.classify import Progress, classify
from napari_msamil.inference.prediction import RESEARCH_USE
from napari_msamil.plugin import compat
from napari_msamil.plugin.panel import MilPanel
from napari_msamil.plugin.worker import Run
from napari_msamil.slide.slide import Slide
from pressing import SECONDS, layer_names, run, texts

pytestmark = pytest.mark.gui


def test_a_click_classifies_and_shows_mask_and_one_map_per_scale(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    assert layer_names(viewer) == [
        "square", "square | attention 2.5x", "square | attention 5x", "square | attention 10x", "square | lesion",
        "square | top patches",
    ]  # fmt: skip
    assert not panel.result_view.isHidden()
    assert [str(unit) for unit in viewer.layers.extent.units] == ["micrometer", "micrometer"]
    said = texts(panel)
    assert RESEARCH_USE in said
    assert "Device: cpu" in said
    assert panel.result_of(viewer.layers["square"]).intended_use in panel.result_view.notice.text()
    assert "Looked at: the whole slide" in said
    assert said.count(f"Model: {panel.result_of(viewer.layers['square']).model_name}") == 1
    assert "benign" in said
    assert "malignant" in said
    assert panel.result_view.headline.text().split()[0] in ("benign", "malignant")


def test_the_panel_and_the_command_line_function_give_the_same_probabilities(
    panel: Any, slide_file: Path, model_file: Path, qtbot: Any
) -> None:
    layer = panel.open_slide(slide_file)
    run(panel, qtbot)
    shown = panel.result_of(layer)
    told = classify(slide_file, model_file, device="cpu")
    assert shown.classes == told.classes
    assert shown.probabilities == pytest.approx(told.probabilities, abs=1e-5)
    assert shown.attention == pytest.approx(told.attention, abs=1e-6)
    assert shown.model_sha256 == told.model_sha256


def test_cancel_frees_the_panel_at_once_and_leaves_no_layer(
    panel: Any, viewer: Any, slide_file: Path, slow: Any, qtbot: Any
) -> None:
    panel.open_slide(slide_file)
    panel.run_view.start.native.click()
    qtbot.waitUntil(slow["began"].is_set, timeout=SECONDS)
    qtbot.waitUntil(lambda: "per s" in panel.run_view.status.text(), timeout=SECONDS)
    assert "Reading patches" in panel.run_view.status.text()
    assert "1:39 left" in panel.run_view.status.text()
    assert not panel.run_view.start.enabled
    panel.run_view.cancel.native.click()
    assert not panel.running, "the panel is free at once"
    assert panel.run_view.status.text() == "Cancelled."
    assert panel.run_view.start.enabled
    qtbot.waitUntil(slow["closed"].is_set, timeout=SECONDS)
    qtbot.waitUntil(lambda: not Run.unfinished, timeout=SECONDS)
    assert panel.run_view.status.text() == "Cancelled."
    assert layer_names(viewer) == ["square"]
    assert panel.run_view.start.enabled


def test_cancel_does_not_wait_for_what_has_not_even_begun_to_answer(
    panel: Any, viewer: Any, slide_file: Path, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    opening, opened = threading.Event(), threading.Event()

    def steps(request: Any) -> Generator[Progress, None, None]:
        opening.set()
        assert opened.wait(SECONDS / 1000)
        yield Progress("open", 1, 1, None)
        raise AssertionError("a stopped run goes on")

    monkeypatch.setattr(classify_module, "classify_steps", steps)
    panel.open_slide(slide_file)
    panel.run_view.start.native.click()
    qtbot.waitUntil(opening.is_set, timeout=SECONDS)
    panel.run_view.cancel.native.click()
    assert panel.run_view.status.text() == "Cancelled."
    monkeypatch.undo()
    run(panel, qtbot)
    assert panel.result_of(viewer.layers["square"]) is not None, "the next run does not wait for the one before"
    opened.set()
    qtbot.waitUntil(lambda: not Run.unfinished, timeout=SECONDS)
    assert panel.result_of(viewer.layers["square"]) is not None


def test_an_error_is_said_in_one_sentence_and_the_next_run_works(
    panel: Any, slide_file: Path, tmp_path: Path, model_file: Path, qtbot: Any
) -> None:
    broken = tmp_path / "cut.safetensors"
    broken.write_bytes(model_file.read_bytes()[:1000])
    panel.open_slide(slide_file)
    panel.form.file.value = broken
    run(panel, qtbot)
    assert "cut.safetensors" in panel.run_view.status.text()
    assert "Traceback" not in panel.run_view.status.text()
    panel.form.file.value = model_file
    run(panel, qtbot)
    assert not panel.result_view.isHidden()


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), MemoryError(), ModelFileError("said plainly")])
def test_any_exception_of_the_run_ends_as_a_message(
    panel: Any, slide_file: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def steps(request: Any) -> Generator[Progress, None, None]:
        yield Progress("open", 0, 1)
        raise error

    monkeypatch.setattr(classify_module, "classify_steps", steps)
    panel.open_slide(slide_file)
    run(panel, qtbot)
    expected = str(error) if isinstance(error, ModelFileError) else type(error).__name__
    assert expected in panel.run_view.status.text()


def break_some_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make some patches of the finest scale unreadable."""
    plain = Slide.read

    def read(self: Slide, x: float, y: float, width: float, height: float, **given: Any) -> Any:
        if given["size"] == (64, 64) and 500 < x < 600 and width < 100:
            raise ReadError("broken tile")
        return plain(self, x, y, width, height, **given)

    monkeypatch.setattr(Slide, "read", read)


def test_unreadable_patches_fail_the_run_and_a_button_goes_on_without_them(
    panel: Any, slide_file: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_some_patches(monkeypatch)
    layer = panel.open_slide(slide_file)
    assert not panel.run_view.offers_leave_out
    run(panel, qtbot)
    said = panel.run_view.status.text()
    assert "patches could not be read" in said
    assert "copy it again" in said
    assert "command line" not in said
    assert said.count("--") == 0, "the panel has no flags"
    assert panel.run_view.offers_leave_out
    assert panel.result_of(layer) is None
    panel.run_view.leave_out.native.click()
    assert not panel.run_view.offers_leave_out
    qtbot.waitUntil(lambda: not panel.running, timeout=SECONDS)
    result = panel.result_of(layer)
    assert len(result.read_errors) > 0
    assert f"⚠ {len(result.read_errors)} of {len(result.table)} patches could not be read and were left out" in texts(
        panel
    )
    run(panel, qtbot)
    assert panel.run_view.offers_leave_out, "the next run is strict again"


def test_the_button_is_gone_when_another_slide_is_chosen(
    panel: Any, slide_file: Path, make_slide: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_some_patches(monkeypatch)
    panel.open_slide(slide_file)
    run(panel, qtbot)
    assert panel.run_view.offers_leave_out
    panel.open_slide(make_slide("other.tif"))
    assert not panel.run_view.offers_leave_out
    assert panel.run_view.status.text() == ""


def test_a_slide_without_any_readable_patch_fails_for_good(
    panel: Any, slide_file: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(request: Any) -> Generator[Progress, None, None]:
        yield Progress("patches", 0, 9)
        raise UnreadablePatchesError("square.tif: 9 of 9 patches could not be read.")

    monkeypatch.setattr(classify_module, "classify_steps", steps)
    panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.run_view.leave_out.native.click()
    qtbot.waitUntil(lambda: not panel.running, timeout=SECONDS)
    assert panel.run_view.status.text() == "square.tif: 9 of 9 patches could not be read."
    assert not panel.run_view.offers_leave_out


def test_a_slide_that_cannot_be_read_at_all_offers_nothing_to_leave_out(
    panel: Any, slide_file: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(request: Any) -> Generator[Progress, None, None]:
        yield Progress("lesion mask", 0, 1)
        raise ReadError("square.tif was changed while it was open; open it again.")

    monkeypatch.setattr(classify_module, "classify_steps", steps)
    panel.open_slide(slide_file)
    run(panel, qtbot)
    assert "was changed" in panel.run_view.status.text()
    assert not panel.run_view.offers_leave_out


def test_larger_letters_cut_nothing_off_and_leave_the_answer_the_largest(make_napari_viewer: Any, qtbot: Any) -> None:
    viewer = make_napari_viewer(show=True)  # of a hidden window Qt asks for no other layout
    panel = MilPanel(viewer)
    viewer.window.add_dock_widget(panel, area="right")
    texts, headline = panel.result_view.facts, panel.result_view.headline

    def fits() -> bool:
        room = panel.minimumWidth() - panel.verticalScrollBar().sizeHint().width()
        larger = headline.font().pointSize() > texts.font().pointSize()
        return bool(larger and room >= panel.widget().minimumSizeHint().width())

    for points, wide in ((18, True), (8, False)):
        panel.window().setStyleSheet(f"QLabel, QPushButton, QComboBox {{ font-size: {points}pt; }}")
        qtbot.waitUntil(lambda at=points: texts.font().pointSize() == at, timeout=10_000)
        qtbot.waitUntil(fits, timeout=10_000)
        qtbot.waitUntil(lambda at=wide: (panel.minimumWidth() > 320) == at, timeout=10_000)
    panel.shut_down()


def test_closing_the_dock_stops_the_run_and_says_so(
    panel: Any, viewer: Any, slide_file: Path, slow: Any, qtbot: Any, monkeypatch: Any
) -> None:
    told: list[str] = []
    monkeypatch.setattr("napari_msamil.plugin.panel.show_info", told.append)
    panel.open_slide(slide_file)
    panel.run_view.start.native.click()
    qtbot.waitUntil(slow["began"].is_set, timeout=SECONDS)
    viewer.window.remove_dock_widget(panel)
    assert told == ["The classification of square was stopped: its panel was closed."]
    qtbot.waitUntil(slow["closed"].is_set, timeout=SECONDS)
    viewer.layers[0].name = "renamed after the panel has gone"
    viewer.layers.clear()


def test_closing_the_window_stops_the_run(panel: Any, viewer: Any, slide_file: Path, slow: Any, qtbot: Any) -> None:
    panel.open_slide(slide_file)
    panel.run_view.start.native.click()
    qtbot.waitUntil(slow["began"].is_set, timeout=SECONDS)
    viewer.close()
    qtbot.waitUntil(slow["closed"].is_set, timeout=SECONDS)


def test_a_slide_opened_during_a_run_does_not_pass_for_the_one_that_is_classified(
    panel: Any, slide_file: Path, make_slide: Any, slow: Any, qtbot: Any
) -> None:
    panel.open_slide(slide_file)
    panel.run_view.start.native.click()
    qtbot.waitUntil(lambda: panel.run_view.status.text().startswith("Reading"), timeout=SECONDS)
    panel.open_slide(make_slide("second.tif"))
    qtbot.waitUntil(lambda: panel.run_view.status.text().startswith("square: "), timeout=SECONDS)
    panel.cancel()


def test_removing_the_slide_during_its_run_stops_it(
    panel: Any, viewer: Any, slide_file: Path, slow: Any, qtbot: Any
) -> None:
    layer = panel.open_slide(slide_file)
    panel.run_view.start.native.click()
    qtbot.waitUntil(slow["began"].is_set, timeout=SECONDS)
    viewer.layers.remove(layer)
    assert not panel.running
    assert "removed" in panel.run_view.status.text()
    qtbot.waitUntil(slow["closed"].is_set, timeout=SECONDS)
    qtbot.wait(50)
    assert len(viewer.layers) == 0


def test_a_renamed_slide_is_still_the_slide(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    layer = panel.open_slide(slide_file)
    layer.name = "case 7"
    assert panel.form.slide.native.currentText() == "case 7"
    run(panel, qtbot)
    viewer.layers[-1].name = "my map"
    layer.name = "case 8"
    assert layer_names(viewer)[-2:] == ["case 8 | lesion", "my map"], "what the user named is not named again"
    run(panel, qtbot)
    assert len(viewer.layers) == 6
    assert layer_names(viewer)[-1] == "case 8 | top patches"


def test_the_keys_stay_at_the_buttons_while_a_run_begins_and_ends(
    make_napari_viewer: Any, slide_file: Path, model_file: Path, slow: Any, qtbot: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    panel = MilPanel(viewer)
    viewer.window.add_dock_widget(panel)
    panel.form.choose_model(model_file)
    panel.open_slide(slide_file)
    start, cancel = panel.run_view.start.native, panel.run_view.cancel.native
    start.setFocus()
    start.click()
    assert panel.window().focusWidget() is cancel
    cancel.click()
    assert panel.window().focusWidget() is start
    panel.shut_down()


def test_a_complaint_is_gone_with_the_answer_it_was_about(
    panel: Any, viewer: Any, slide_file: Path, tmp_path: Path, qtbot: Any
) -> None:
    broken = tmp_path / "cut.safetensors"
    broken.write_bytes(b"no model")
    panel.open_slide(slide_file)
    good = panel.form.file.value
    panel.form.file.value = broken
    run(panel, qtbot)
    assert "cut.safetensors" in panel.run_view.status.text()
    viewer.layers.selection.active = None
    assert "cut.safetensors" in panel.run_view.status.text(), "it is still so"
    panel.form.file.value = good
    assert panel.run_view.status.text() == ""


def test_the_wheel_scrolls_the_panel_and_changes_no_answer(
    panel: Any, bare_file: Path, slide_file: Path, qtbot: Any
) -> None:
    panel.open_slide(bare_file)
    panel.open_slide(slide_file)
    run(panel, qtbot)
    form, view = panel.form, panel.result_view
    opacity = view.opacity.native.findChild(QSlider)
    fields = [*(box.native for box in (form.slide, form.mpp, form.model, form.device, form.region)), opacity]
    fields += [view.scale.native, view.values.native]

    def answers() -> list[Any]:
        return [field.currentIndex() if isinstance(field, QComboBox) else field.value() for field in fields]

    given = answers()
    for field in fields:
        for turn in (-120, 120):
            place = QPointF(field.rect().center())
            turned = QWheelEvent(
                place,
                QPointF(field.mapToGlobal(place.toPoint())),
                QPoint(),
                QPoint(0, turn),
                Qt.MouseButton.NoButton,
                Qt.KeyboardModifier.NoModifier,
                Qt.ScrollPhase.NoScrollPhase,
                False,
            )
            QApplication.sendEvent(field, turned)
            assert answers() == given
            assert not turned.isAccepted(), "an event of the mouse goes on to the panel then, one of a program does not"


def test_without_a_slide_nothing_can_be_run(panel: Any) -> None:
    assert not panel.run_view.start.enabled
    assert "Open a slide" in panel.run_view.status.text()


def test_the_panel_is_narrow_enough_for_a_small_screen(panel: Any, slide_file: Path, qtbot: Any) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    assert panel.minimumSizeHint().width() <= 320
    assert panel.widget().minimumSizeHint().width() <= 320


def test_the_view_pans_while_a_classification_reads_the_same_slide(
    make_napari_viewer: Any, make_slide: Any, model_file: Path, qtbot: Any
) -> None:
    from napari_msamil.plugin.panel import MilPanel

    viewer = make_napari_viewer(show=True)
    panel = MilPanel(viewer)
    viewer.window.add_dock_widget(panel)
    panel.form.choose_model(model_file)
    panel.form.device.value = "cpu"
    panel.open_slide(make_slide("large.tif", size=(2000, 1600)))
    panel.run_view.start.native.click()
    camera = compat.camera(viewer)
    turns = 0
    while panel.running or turns < 40:
        camera.zoom = (2.0, 0.7, 0.3)[turns // 5 % 3]
        camera.center = (0, 800 + 600 * np.sin(turns), 1000 + 800 * np.cos(turns))
        qtbot.wait(5)
        turns += 1
    assert not panel.result_view.isHidden(), panel.run_view.status.text()
    assert len(viewer.layers) == 6
    panel.shut_down()
