"""The panel, used as a person uses it: buttons pressed in a real napari window."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QLocale, QMimeData, QPoint, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent, QWheelEvent
from qtpy.QtWidgets import QApplication, QComboBox, QLabel, QMessageBox, QSlider

from napari_msamil.errors import ModelFileError, ReadError, UnreadablePatchesError
from napari_msamil.inference import classify as classify_module
from napari_msamil.inference.classify import Progress, classify
from napari_msamil.inference.prediction import RESEARCH_USE
from napari_msamil.plugin import compat, outlines, slides
from napari_msamil.plugin.panel import MilPanel
from napari_msamil.plugin.worker import Run
from napari_msamil.slide import flat
from napari_msamil.slide.slide import Slide

pytestmark = pytest.mark.gui

SECONDS = 120_000  # milliseconds; far more than a run takes, so that only a hang fails


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Generator[dict[str, threading.Event], None, None]:
    """Replace the classification by one that goes on until it is closed; tells when it began and when it was closed."""
    state = {"began": threading.Event(), "closed": threading.Event()}

    def steps(request: Any) -> Generator[Progress, None, None]:
        try:
            for done in range(10**6):
                yield Progress("patches", done, 10**6, 99.0)
                state["began"].set()
                state["closed"].wait(0.01)
        finally:
            state["closed"].set()

    monkeypatch.setattr(classify_module, "classify_steps", steps)
    yield state
    state["closed"].set()


def run(panel: Any, qtbot: Any) -> None:
    panel.run_view.start.native.click()
    qtbot.waitUntil(lambda: not panel.running, timeout=SECONDS)


def texts(panel: Any) -> str:
    return "\n".join(label.text() for label in panel.findChildren(QLabel) if not label.isHidden())


def layer_names(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers]


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


def test_two_slides_keep_their_results_apart(panel: Any, viewer: Any, make_slide: Any, qtbot: Any) -> None:
    first = panel.open_slide(make_slide("first.tif", seed=1))
    run(panel, qtbot)
    second = panel.open_slide(make_slide("second.tif", seed=2))
    assert panel.form.layer == second
    assert panel.result_view.isHidden(), "the second slide has no result yet"
    run(panel, qtbot)
    assert len(viewer.layers) == 12
    panel.form.choose(first)
    assert not panel.result_view.isHidden()
    viewer.layers.remove(second)
    assert panel.form.layer == first
    assert panel.result_of(first) is not None


def test_the_same_file_opened_twice_keeps_two_results(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    first = panel.open_slide(slide_file)
    run(panel, qtbot)
    second = panel.open_slide(slide_file)
    assert panel.result_view.isHidden(), "the second layer has no result yet"
    run(panel, qtbot)
    assert panel.result_of(first) is not panel.result_of(second)
    viewer.layers.remove(second)
    assert panel.form.layer == first
    assert not panel.result_view.isHidden()


def shown(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers if layer.visible]


@pytest.fixture
def pair(panel: Any, viewer: Any, make_slide: Any, qtbot: Any) -> tuple[Any, Any]:
    """Two slides of different size: "first" has a result whose 5x map is shown, "second", opened later, has none."""
    first = panel.open_slide(make_slide("first.tif", seed=1))
    run(panel, qtbot)
    panel.result_view.scale.value = "5x"
    return first, panel.open_slide(make_slide("second.tif", seed=2, size=(900, 600)))


def test_the_chosen_slide_is_shown_as_it_was_left_and_the_others_are_hidden(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    first, second = pair
    mine = viewer.add_points([[10, 20]], units=("um", "um"), name="mine")
    assert shown(viewer) == ["second", "mine"]
    assert not compat.overlay(viewer, "text").visible
    assert compat.camera(viewer).center[-2:] == pytest.approx((299.5, 449.5), abs=1)
    panel.form.slide.value = first
    assert shown(viewer) == ["first", "first | attention 5x", "first | lesion", "first | top patches", "mine"]
    assert panel.result_view.scale.value == "5x"
    assert "5x: attention rank" in compat.overlay(viewer, "text").text
    assert compat.camera(viewer).center[-2:] == pytest.approx((449.5, 599.5), abs=1)
    panel.form.slide.value = second
    run(panel, qtbot)
    assert "10x: attention rank" in compat.overlay(viewer, "text").text
    assert [name for name in shown(viewer) if name.startswith("first")] == []
    mine.visible = False
    panel.form.slide.value = first
    assert not mine.visible
    assert [name for name in shown(viewer) if name.startswith("second")] == []


def test_a_hidden_slide_can_be_looked_at_by_its_eye_icon_and_a_new_run_keeps_the_camera(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    first, _ = pair
    camera = compat.camera(viewer)
    camera.center, camera.zoom = (0, 100, 200), 3.0
    first.visible = True
    viewer.layers["first | attention 10x"].visible = True
    viewer.layers["first | attention 2.5x"].visible = True
    assert "10x: attention rank" in compat.overlay(viewer, "text").text, "the map on top"
    run(panel, qtbot)
    assert first.visible
    assert camera.center[-2:] == (100, 200)
    assert camera.zoom == 3.0


def test_the_panel_follows_who_goes_to_another_slide_by_the_eye_icons(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    panel.form.choose(one)
    qtbot.wait(20)
    two.visible = True
    qtbot.wait(20)
    assert panel.form.layer == one, "both are seen"
    one.visible = False
    qtbot.waitUntil(lambda: panel.form.layer == two, timeout=SECONDS)
    assert two.visible


def test_a_slide_comes_with_what_is_shown_of_it_by_the_eye_icons(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    viewer.layers["first | attention 10x"].visible = True
    qtbot.waitUntil(lambda: panel.form.layer == one, timeout=SECONDS)
    assert (one.visible, two.visible) == (True, False), "evidence lies on no other slide's tissue"
    one.visible = False
    viewer.layers["first | lesion"].visible = False
    viewer.layers["first | lesion"].visible = True
    qtbot.wait(20)
    assert not one.visible, "who hides the slide may look at the evidence alone"


def test_evidence_is_hidden_with_its_slide_while_another_picture_is_seen_and_comes_back_with_it(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    heatmap = viewer.layers["first | attention 10x"]
    one.visible = heatmap.visible = True
    qtbot.wait(20)
    assert panel.form.layer == two, "both are seen"
    assert heatmap.visible
    one.visible = False
    qtbot.waitUntil(lambda: not heatmap.visible, timeout=SECONDS)
    one.visible = True
    qtbot.waitUntil(lambda: heatmap.visible, timeout=SECONDS)
    panel.shut_down()
    two.visible = False
    one.visible = False
    qtbot.wait(20)
    assert heatmap.visible, "there is nothing that it could be taken to be of"
    picture = viewer.add_image(np.zeros((30, 40), np.uint8), name="of napari", units=("um", "um"))
    qtbot.waitUntil(lambda: not heatmap.visible, timeout=SECONDS)
    heatmap.visible = True
    qtbot.waitUntil(lambda: one.visible, timeout=SECONDS)
    assert picture.visible
    viewer.layers.remove(one)
    qtbot.waitUntil(lambda: not heatmap.visible, timeout=SECONDS)


def test_a_choice_in_the_panel_outlasts_heatmaps_that_are_linked(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    run(panel, qtbot)
    viewer.layers.link_layers([viewer.layers[f"{name} | attention 10x"] for name in ("first", "second")], ("visible",))
    for chosen in (one, two, one):
        panel.form.slide.value = chosen
        qtbot.wait(30)
        assert panel.form.layer == chosen
        assert [slide.visible for slide in (one, two)] == [chosen == one, chosen == two]


def test_a_slide_that_is_not_to_scale_is_named_beside_one_that_is(
    panel: Any, viewer: Any, slide_file: Path, bare_file: Path, qtbot: Any
) -> None:
    said = "bare: pixel size not known, not to scale"
    bare = panel.open_slide(bare_file)
    panel.open_slide(slide_file)
    text = compat.overlay(viewer, "text")
    assert said not in text.text
    bare.visible = True
    qtbot.waitUntil(lambda: said in text.text and text.visible, timeout=SECONDS)
    panel.form.choose(bare)
    assert said not in text.text


def test_a_panel_opened_late_takes_the_slide_that_is_looked_at(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    first, second = pair
    panel.form.choose(first)
    panel.shut_down()
    again = MilPanel(viewer)
    assert again.form.layer == first, "the only one that is visible, though the other lies above it"
    assert (first.visible, second.visible) == (True, False)
    again.shut_down()
    second.visible = True
    viewer.layers.selection.active = first
    third = MilPanel(viewer)
    assert third.form.layer == first, "both are visible, and this one is selected"
    third.shut_down()


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


def test_a_failure_is_said_beside_the_slide_it_is_about(
    panel: Any, pair: tuple[Any, Any], slow: Any, qtbot: Any
) -> None:
    first, second = pair
    panel.run_view.start.native.click()
    assert slow["began"].wait(10)
    first.visible, second.visible = True, False
    qtbot.waitUntil(lambda: panel.form.layer == first, timeout=SECONDS)
    panel._run.failed.emit("too coarse")
    assert panel.form.layer == second
    assert panel.run_view.status.text() == "too coarse"


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


def test_a_slide_that_napari_opens_is_chosen_and_shown(
    panel: Any, viewer: Any, slide_file: Path, make_slide: Any
) -> None:
    panel.open_slide(slide_file)
    data, keywords, _ = slides.layer_data(make_slide("dropped.tif"))
    dropped = viewer.add_image(data, **keywords)
    assert panel.form.layer == dropped
    assert shown(viewer) == ["dropped"]


def test_opening_the_panel_leaves_the_camera_where_it_is(viewer: Any, slide_file: Path, make_slide: Any) -> None:
    from napari_msamil.plugin.panel import MilPanel

    for path in (slide_file, make_slide("upper.tif")):
        data, keywords, _ = slides.layer_data(path)
        viewer.add_image(data, **keywords)
    camera = compat.camera(viewer)
    camera.center, camera.zoom = (0, 100, 200), 3.0
    panel = MilPanel(viewer)
    assert shown(viewer) == ["upper"]
    assert camera.center[-2:] == (100, 200)
    panel.shut_down()
    panel.deleteLater()


def test_removing_a_slide_removes_its_result_and_its_regions(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    first, second = pair
    panel.form.slide.value = first
    panel.form.draw.native.click()
    viewer.add_points([[10, 20]], units=("um", "um"), name="mine")
    viewer.layers.remove(first)
    qtbot.waitUntil(lambda: layer_names(viewer) == ["second", "mine"])
    assert panel.form.layer == second
    assert shown(viewer) == ["second", "mine"]
    assert not compat.overlay(viewer, "text").visible


def test_everything_can_be_removed_at_once(panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any) -> None:
    viewer.layers.select_all()
    viewer.layers.remove_selected()
    qtbot.wait(20)
    assert len(viewer.layers) == 0
    assert "Open a slide" in panel.run_view.status.text()


def test_a_slide_is_offered_its_own_regions_and_unmarked_shapes(
    panel: Any, viewer: Any, slide_file: Path, make_slide: Any
) -> None:
    first = panel.open_slide(slide_file)
    panel.form.draw.native.click()
    own = viewer.layers["square | region"]
    mine = viewer.add_shapes([[[0, 0], [0, 9], [9, 9]]], shape_type="polygon", units=("um", "um"), name="mine")
    panel.open_slide(make_slide("second.tif"))
    assert panel.form.region.value is None
    assert list(panel.form.region.choices) == [None, mine]
    panel.form.region.value = mine
    panel.form.slide.value = first
    assert panel.form.region.value == own, "as it was left"
    assert set(panel.form.region.choices) == {None, own, mine}
    own.name = "tumour"
    assert panel.form.region.native.currentText() == "tumour"
    own.name = "square | mine"
    assert panel.form.region.value == own
    offered = [panel.form.region.native.itemText(i) for i in range(panel.form.region.native.count())]
    assert offered == ["Whole slide", "mine", "square | mine"], "both, though the slide's name would be cut off"
    panel.form.region.value = mine
    viewer.layers.remove("second")
    assert panel.form.region.value == mine, "the slide is the same"
    panel.open_slide(make_slide("third.tif"))
    assert panel.form.region.value is None


def test_renaming_the_chosen_slide_chooses_no_other(panel: Any, viewer: Any, slide_file: Path, make_slide: Any) -> None:
    panel.open_slide(slide_file)
    second = panel.open_slide(make_slide("second.tif"))
    second.name = "case 7"
    assert panel.form.layer == second
    assert shown(viewer) == ["case 7"]


def test_a_corrected_pixel_size_takes_the_old_result_away(panel: Any, viewer: Any, bare_file: Path, qtbot: Any) -> None:
    layer = panel.open_slide(bare_file)
    panel.form.mpp.value = 1.0
    run(panel, qtbot)
    panel.form.mpp.native.editingFinished.emit()
    assert panel.result_of(layer) is not None, "the same number changes nothing"
    panel.form.mpp.value = 0
    panel.form.mpp.native.editingFinished.emit()
    assert panel.form.mpp.value == 1.0, "what the picture has stays in sight"
    assert panel.result_of(layer) is not None
    panel.form.mpp.value = 0.9
    panel.form.mpp.native.editingFinished.emit()
    assert panel.result_of(layer) is None
    assert panel.result_view.isHidden()
    assert layer_names(viewer) == ["bare"]
    assert "old pixel size (1 µm)" in panel.run_view.status.text()
    assert "classify again" in panel.run_view.status.text()
    run(panel, qtbot)
    assert panel.result_of(layer).mpp == (0.9, 0.9)


def test_a_slide_without_pixel_size_asks_for_it_and_becomes_calibrated(
    panel: Any, viewer: Any, bare_file: Path, qtbot: Any
) -> None:
    layer = panel.open_slide(bare_file)
    assert not panel.run_view.start.enabled
    assert "µm per pixel" in panel.run_view.status.text()
    assert not panel.form.mpp.native.isHidden()
    panel.form.mpp.value = 25
    panel.form.mpp.native.editingFinished.emit()
    assert not panel.run_view.start.enabled
    assert panel.run_view.status.text().startswith("25 µm per pixel is outside 0.05 to 20.")
    panel.form.mpp.value = 1.0
    assert panel.run_view.start.enabled
    run(panel, qtbot)
    assert layer.scale == pytest.approx([1.0, 1.0])
    assert [str(unit) for unit in viewer.layers.extent.units] == ["micrometer", "micrometer"]
    assert panel.result_of(layer).mpp == (1.0, 1.0)
    assert panel.result_of(layer).mpp_source == "explicit"


@pytest.mark.parametrize("language", [QLocale.Language.English, QLocale.Language.German])
@pytest.mark.parametrize("typed", ["0.25", "0,25"])
def test_the_pixel_size_is_typed_with_a_point_or_a_comma(
    make_napari_viewer: Any, bare_file: Path, qtbot: Any, language: Any, typed: str
) -> None:
    before = QLocale()
    QLocale.setDefault(QLocale(language))
    try:
        panel = MilPanel(make_napari_viewer())
        layer = panel.open_slide(bare_file)
        field = panel.form.mpp.native
        field.selectAll()
        qtbot.keyClicks(field, typed)
        qtbot.keyClick(field, Qt.Key.Key_Return)
        assert slides.mpp_of(layer) == (0.25, 0.25)
        assert field.text() == "0.2500"
        field.selectAll()
        QApplication.clipboard().setText(typed.replace("2", "7"))
        field.lineEdit().paste()  # as the field's context menu does
        assert panel.form.mpp.value == 0.75
        qtbot.keyClick(field, Qt.Key.Key_Return)
        assert slides.mpp_of(layer) == (0.75, 0.75)
        qtbot.keyClick(field, Qt.Key.Key_Up)
        assert panel.form.mpp.value == 0.75
        panel.shut_down()
    finally:
        QLocale.setDefault(before)


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


def test_a_slide_with_pixel_size_does_not_ask(panel: Any, slide_file: Path) -> None:
    panel.open_slide(slide_file)
    assert panel.form.mpp.native.isHidden()
    assert panel.run_view.start.enabled


def test_the_scale_buttons_show_one_map_at_a_time(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    seen = []
    for _ in range(4):
        visible = [
            slides.tag(a)["scale"] for a in viewer.layers if slides.tag(a).get("role") == "heatmap" and a.visible
        ]
        seen.append(visible)
        panel.result_view.back.native.click()
    assert seen == [["10x"], ["5x"], ["2.5x"], []]


def test_the_scale_box_follows_the_eye_icon_and_removal(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    viewer.layers["square | attention 10x"].visible = False
    assert panel.result_view.scale.value == "Off"
    viewer.layers["square | attention 2.5x"].visible = True
    assert panel.result_view.scale.value == "2.5x"
    viewer.layers.remove("square | attention 2.5x")
    assert panel.result_view.scale.value == "Off"


def test_the_next_button_walks_through_the_patches_with_most_attention(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    layer = panel.open_slide(slide_file)
    run(panel, qtbot)
    prediction, camera = panel.result_of(layer), compat.camera(viewer)
    assert [choice for choice in panel.form.region.choices if choice is not None] == [], "outlines are no regions"
    for name, scale in (("10x", 0), ("2.5x", 2)):
        panel.result_view.scale.value = name
        best = prediction.top_patches(scale, 10)
        size = np.array(prediction.table.footprint(scale))
        for place in [*range(len(best)), 0]:
            panel.result_view.next.native.click()
            centre = (prediction.table.grid[best[place]] + 0.5) * size - 0.5
            assert camera.center[-2:] == pytest.approx(centre[::-1] * layer.scale)
            assert camera.zoom == pytest.approx(1 / prediction.table.scales[scale].mpp)
            assert panel.result_view.place.text() == f"{place + 1} of {len(best)} at {name}"


def test_a_result_says_when_another_model_is_chosen(panel: Any, slide_file: Path, qtbot: Any) -> None:
    panel.open_slide(slide_file)
    model = panel.form.chosen_model
    run(panel, qtbot)
    panel.form.choose_model("demo")
    said = f"This result is of the model {panel.result_of(panel.form.layer).model_name}, not of the one chosen now"
    assert said in texts(panel)
    panel.form.choose_model(model)
    assert "not of the one chosen now" not in texts(panel)
    panel.form.choose_model(model.with_name("gone.safetensors"))
    assert "not of the one chosen now" not in texts(panel), "there is nothing to classify it with"


def test_another_run_is_shown_as_the_one_before(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.result_view.scale.value = "5x"
    panel.result_view.opacity.value = 0.9
    run(panel, qtbot)
    assert (panel.result_view.scale.value, panel.result_view.opacity.value) == ("5x", 0.9)
    panel.result_view.scale.value = "Off"
    viewer.layers["square | top patches"].visible = False
    run(panel, qtbot)
    assert panel.result_view.scale.value == "Off"
    assert not viewer.layers["square | top patches"].visible


def test_the_visited_patch_stands_out_and_off_shows_the_finest_map_first(
    panel: Any, viewer: Any, slide_file: Path, make_slide: Any, qtbot: Any
) -> None:
    layer = panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.result_view.scale.value = "Off"
    top = viewer.layers["square | top patches"]
    for place in (0, 1):
        panel.result_view.next.native.click()
        assert panel.result_view.scale.value == "10x"
        white = np.flatnonzero((top.edge_color == outlines.VISITED_COLOUR).all(axis=1))
        assert white.tolist() == [place]
        assert np.argmax(np.array(top.edge_width)[top.features["scale"] == "10x"]) == place
    panel.open_slide(make_slide("second.tif"))
    panel.form.slide.value = layer
    assert panel.result_view.place.text().startswith("2 of")
    assert (top.edge_color[1] == outlines.VISITED_COLOUR).all()
    panel.result_view.scale.value = "5x"
    assert top.edge_color[1, 3] == 0, "it is of another scale"
    assert panel.result_view.place.text() == ""
    top.visible = False
    panel.result_view.next.native.click()
    assert top.visible, "which patch is meant must be seen"
    [white] = np.flatnonzero((top.edge_color == outlines.VISITED_COLOUR).all(axis=1))
    assert (top.features["scale"][white], top.features["rank"][white]) == ("5x", 1)


def test_outlines_are_never_thinner_than_a_pixel_of_the_screen(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    layer = panel.open_slide(slide_file)
    panel.form.draw.native.click()
    region = viewer.layers[-1]
    region.add_rectangles([[[180, 300], [180, 550], [400, 550], [400, 300]]])
    run(panel, qtbot)
    top = viewer.layers["square | top patches"]
    camera = compat.camera(viewer)
    for zoom in (camera.zoom, camera.zoom / 50, camera.zoom * 20):
        camera.zoom = zoom
        pixel = 1 / (zoom * layer.scale[-1])
        assert min(top.edge_width) >= 1.1 * pixel
        assert 1.4 * pixel < max(region.edge_width) < 3 * pixel


def test_a_regions_outline_is_drawn_as_thin_close_up_as_from_far(
    make_napari_viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    panel = MilPanel(viewer)
    layer = panel.open_slide(slide_file)
    panel.form.draw.native.click()
    viewer.layers[-1].add_rectangles([[[180, 300], [180, 550], [400, 550], [400, 300]]])
    camera = compat.camera(viewer)
    for zoom in (camera.zoom, camera.zoom * 8):
        camera.zoom = zoom
        camera.center = (0, *layer.data_to_world((180, 425)))  # on the upper side
        qtbot.wait(100)
        red, green, blue, _ = viewer.screenshot(canvas_only=True, flash=False).astype(int).transpose(2, 0, 1)
        middle = red.shape[1] // 2
        around = slice(red.shape[0] // 4, 3 * red.shape[0] // 4)
        yellow = (np.minimum(red, green) - blue > 60)[around, middle]
        assert 1 <= yellow.sum() <= 8, "two sides of two pixels, at most"
    panel.shut_down()


def test_values_and_opacity_change_all_maps(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.result_view.values.value = "relative"
    panel.result_view.opacity.value = 0.25
    maps = [a for a in viewer.layers if slides.tag(a).get("role") == "heatmap"]
    assert {tuple(a.contrast_limits) for a in maps} == {(0.0, 4.0)}
    assert [a.opacity for a in maps] == pytest.approx([0.25] * 3)


def test_weak_evidence_stands_right_below_the_class(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    layer = panel.open_slide(slide_file)
    run(panel, qtbot)
    prediction = panel.result_of(layer)
    assert prediction.weak is None
    assert panel.result_view.weak.isHidden()
    panel.results.add(
        layer, replace(prediction, fallback="took the 16 with the largest share of lesion"), panel.form.chosen_model
    )
    panel.results.refresh()
    assert not panel.result_view.weak.isHidden()
    assert panel.result_view.weak.text() == "⚠ Weak evidence: no patch with enough lesion"
    top, below = panel.result_view.headline.geometry(), panel.result_view.weak.geometry()
    assert top.bottom() < below.top() < panel.result_view.notice.geometry().top()
    panel.results.add(layer, replace(prediction, fallback="took all", lesion_mask=0 * prediction.lesion_mask), "demo")
    panel.results.refresh()
    assert panel.result_view.weak.text() == "⚠ Weak evidence: no lesion found"
    assert "Weak evidence: no lesion found" in compat.overlay(viewer, "text").text


def test_the_colours_are_explained_as_they_are(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    def bar() -> tuple[str, list[int], list[int], str]:
        picture = panel.result_view.colours.pixmap().toImage()
        ends = [picture.pixelColor(x, 0).getRgb()[:3] for x in (0, picture.width() - 1)]
        return panel.result_view.low.text(), *map(list, ends), panel.result_view.high.text()

    panel.open_slide(slide_file)
    run(panel, qtbot)
    assert bar() == ("0", [68, 1, 84], [253, 231, 37], "1"), "viridis"
    panel.result_view.values.value = "relative"
    assert bar()[3] == "4"
    viewer.layers["square | attention 10x"].colormap = "gray"
    assert bar() == ("0", [0, 0, 0], [255, 255, 255], "4")


def test_the_result_is_saved_as_the_command_line_saves_it(
    panel: Any, slide_file: Path, tmp_path: Path, qtbot: Any
) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.results.save(tmp_path / "out")
    qtbot.waitUntil(lambda: "Saved to" in panel.result_view.answer.text(), timeout=SECONDS)
    saved = json.loads((tmp_path / "out" / "square" / "prediction.json").read_text())
    assert saved["predicted"] in panel.result_view.headline.text()


def test_what_became_of_saving_is_not_said_under_the_result_of_another_slide(
    panel: Any, pair: tuple[Any, Any], make_slide: Any, tmp_path: Path, qtbot: Any
) -> None:
    first, second = pair
    run(panel, qtbot)
    panel.form.choose(first)
    panel.results.save(tmp_path / "out")
    panel.form.choose(second)
    qtbot.waitUntil(lambda: "Saved to" in panel.run_view.status.text(), timeout=SECONDS)
    assert "first" in panel.run_view.status.text()
    assert panel.result_view.answer.text() == ""
    assert panel.result_view.save.enabled
    panel.form.choose(first)
    panel.results.save(tmp_path / "again")
    panel.open_slide(make_slide("third.tif"))
    assert panel.result_view.isHidden(), "it has no result"
    qtbot.waitUntil(lambda: "again" in panel.run_view.status.text(), timeout=SECONDS)


def test_a_result_saved_before_is_replaced_only_if_the_user_says_so(
    panel: Any, slide_file: Path, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = tmp_path / "out" / "square"
    earlier.mkdir(parents=True)
    answers = [QMessageBox.StandardButton.No, QMessageBox.StandardButton.Yes, QMessageBox.StandardButton.No]
    asked: list[str] = []

    def answer(parent: Any, title: str, question: str, *buttons: Any) -> Any:
        asked.append(question)
        return answers[len(asked) - 1]

    monkeypatch.setattr(QMessageBox, "question", answer)
    panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.results.save(tmp_path / "out")
    qtbot.waitUntil(lambda: "no result of ours" in panel.result_view.answer.text(), timeout=SECONDS)
    assert asked == [], "what is no result is never replaced"
    (earlier / "prediction.json").write_text("{}")
    panel.results.save(tmp_path / "out")
    assert len(asked) == 1
    assert "square" in asked[0]
    assert f"of another slide file than {slide_file}" in asked[0], "two patients' slides may have one name"
    assert panel.result_view.save.enabled
    assert (earlier / "prediction.json").read_text() == "{}"
    panel.results.save(tmp_path / "out")
    qtbot.waitUntil(lambda: "Saved to" in panel.result_view.answer.text(), timeout=SECONDS)
    assert "predicted" in json.loads((earlier / "prediction.json").read_text())
    panel.results.save(tmp_path / "out")
    assert "another slide file" not in asked[2]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug")])
def test_whatever_stops_a_save_ends_as_a_message(
    panel: Any, slide_file: Path, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, error: Any
) -> None:
    from napari_msamil.inference import result

    def fail(*given: Any, **words: Any) -> None:
        raise error

    monkeypatch.setattr(result, "write_result", fail)
    panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.results.save(tmp_path / "out")
    qtbot.waitUntil(lambda: "could not be saved" in panel.result_view.answer.text(), timeout=SECONDS)
    assert str(error) in panel.result_view.answer.text()
    assert "Traceback" in caplog.text
    assert panel.result_view.save.enabled


def test_a_drawn_region_limits_the_patches(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    layer = panel.open_slide(slide_file)
    panel.form.draw.native.click()
    shapes = viewer.layers[-1]
    assert panel.form.region.value == shapes
    assert panel.run_view.status.text().startswith("Draw the region: click its corners on the slide, double-click")
    assert panel.form.region.native.currentText() == "region", "the slide's name before it would be all one sees"
    assert not panel.run_view.start.enabled
    viewer.layers.selection.active = layer
    shapes.visible = False
    viewer.dims.ndisplay = 3
    count = len(viewer.layers)
    panel.form.draw.native.click()
    assert len(viewer.layers) == count, "a region that was begun is gone on with"
    assert viewer.layers.selection.active == shapes
    assert (shapes.visible, shapes.mode, viewer.dims.ndisplay) == (True, "add_polygon", 2)
    shapes.add_paths([[[180, 300], [180, 550]]])
    assert not panel.run_view.start.enabled, "a path encloses nothing"
    shapes.add_polygons([[[180, 300], [180, 550], [180, 550]]])
    assert not panel.run_view.start.enabled, "nor does what was given up after two clicks"
    shapes.add_rectangles([[[180, 300], [180, 550], [400, 550], [400, 300]]])
    assert panel.run_view.status.text() == ""
    run(panel, qtbot)
    table = panel.result_of(layer).table
    centres = table.coords + np.array([table.footprint(int(s)) for s in table.scale]) / 2
    assert ((centres > [200, 80]) & (centres < [650, 500])).all()
    assert "Looked at: the drawn region" in texts(panel)
    assert "region was changed" not in texts(panel)
    shapes.add_rectangles([[[500, 300], [500, 550], [600, 550], [600, 300]]])
    assert "The region was changed since this result was made: classify again" in texts(panel)
    run(panel, qtbot)
    assert len(panel.result_of(layer).region) == 2, "both, though napari has the last one selected"
    assert "Looked at: the drawn regions, 2 shapes" in texts(panel)
    assert "rank in this region" in compat.overlay(viewer, "text").text


def test_who_thinks_better_of_a_region_chooses_the_whole_slide(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    layer = panel.open_slide(slide_file)
    panel.form.draw.native.click()
    box = panel.form.region.native
    box.setFocus()
    qtbot.keyClick(box, Qt.Key.Key_Up)
    assert box.currentText() == "Whole slide"
    assert viewer.layers[-1].mode == "pan_zoom", "the next click on the slide is no corner"
    assert panel.run_view.start.enabled
    assert panel.run_view.status.text() == ""
    run(panel, qtbot)
    assert panel.result_of(layer).region is None
    box.setCurrentText("region")
    assert "not of the region that is chosen" not in texts(panel), "nothing is drawn yet"
    viewer.layers["square | region"].add_rectangles([[[180, 300], [180, 550], [400, 550], [400, 300]]])
    assert "This result is of the whole slide, not of the region that is chosen now: classify again" in texts(panel)
    run(panel, qtbot)
    assert "classify again" not in texts(panel)
    box.setCurrentText("Whole slide")
    assert "This result is of a region, not of the whole slide, which is chosen now: classify again" in texts(panel)


def test_a_scale_without_patches_says_so_as_long_as_it_is_shown(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    layer = panel.open_slide(slide_file)
    panel.form.draw.native.click()
    viewer.layers[-1].add_rectangles([[[252, 380], [252, 516], [388, 516], [388, 380]]])  # one patch of 5x
    run(panel, qtbot)
    assert (panel.result_of(layer).table.scale != 2).all()
    assert panel.result_view.empty.isHidden()
    panel.result_view.scale.value = "2.5x"
    assert panel.result_view.empty.text() == "2.5x: no patch of the region passed the lesion test"
    assert panel.result_view.empty.text() in compat.overlay(viewer, "text").text
    assert not panel.result_view.empty.isHidden()
    assert not panel.result_view.next.enabled
    panel.result_view.forward.native.click()
    assert panel.result_view.scale.value == "5x"
    assert panel.result_view.empty.isHidden()
    assert panel.result_view.next.enabled
    viewer.layers["square | attention 5x"].visible = False
    viewer.layers["square | attention 2.5x"].visible = True
    assert not panel.result_view.empty.isHidden(), "it follows the eye icons too"


def test_a_dropped_file_opens_as_from_the_button(panel: Any, viewer: Any, slide_file: Path) -> None:
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(slide_file))])
    copy, left, none = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    point = QPointF(5, 5)
    panel.dropEvent(QDropEvent(point, copy, mime, left, none))
    assert layer_names(viewer) == ["square"]
    assert panel.form.layer == viewer.layers[0]


@pytest.fixture
def large_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PNG that counts as large here, and whose decoded copy goes to a folder of the test."""
    from PIL import Image

    monkeypatch.setattr(flat, "IN_MEMORY_PX", 1000)
    monkeypatch.setenv("MSAMIL_CACHE_DIR", str(tmp_path / "cache"))
    Image.new("RGB", (300, 200), (200, 120, 180)).save(tmp_path / "large.png")
    return tmp_path / "large.png"


def test_a_large_flat_image_is_decoded_in_the_background_before_its_layer_comes(
    panel: Any, viewer: Any, large_png: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, decode, where = threading.Event(), flat.decode, []

    def decode_later(*given: Any) -> None:
        where.append(threading.current_thread())
        go.wait(60)
        decode(*given)

    monkeypatch.setattr(flat, "decode", decode_later)
    opened = []
    assert panel.open_slide(large_png, 0.5, then=lambda: opened.append(panel.form.layer)) is None
    assert len(viewer.layers) == 0
    assert panel.run_view.status.text() == "Preparing large.png …"
    go.set()
    qtbot.waitUntil(lambda: len(opened) == 1, timeout=SECONDS)
    assert where[0] is not threading.main_thread()
    assert len(where) == 1
    assert opened[0] == viewer.layers["large"]
    assert np.asarray(viewer.layers["large"].data[0][:2, :2]).tolist() == [[[200, 120, 180]] * 2] * 2
    assert "Preparing" not in panel.run_view.status.text()


def test_an_image_that_cannot_be_decoded_is_refused_and_adds_nothing(
    panel: Any, viewer: Any, large_png: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_msamil.plugin import opening as module

    said: list[str] = []
    monkeypatch.setattr(module, "show_error", said.append)
    large_png.write_bytes(large_png.read_bytes()[:-60])
    assert panel.open_slide(large_png, 0.5) is None
    qtbot.waitUntil(lambda: bool(said), timeout=SECONDS)
    assert "large.png" in said[0]
    assert len(viewer.layers) == 0
    assert panel.run_view.status.text() == said[0]


def test_a_file_that_is_no_slide_is_refused_with_its_name(
    panel: Any, viewer: Any, tmp_path: Path, slide_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_msamil.plugin import opening as module

    said: list[str] = []
    monkeypatch.setattr(module, "show_error", said.append)
    (tmp_path / "notes.svs").write_text("no slide")
    assert panel.open_slide(tmp_path / "notes.svs") is None
    assert "notes.svs" in said[0]
    assert len(viewer.layers) == 0
    panel.form.device.value = "auto"
    panel.form.model.value = "demo"
    assert panel.run_view.status.text() == said[0], "it stays until there is something new to say"
    panel.open_slide(slide_file)
    assert panel.run_view.status.text() == ""


def test_without_a_slide_nothing_can_be_run(panel: Any) -> None:
    assert not panel.run_view.start.enabled
    assert "Open a slide" in panel.run_view.status.text()


def test_the_panel_finds_slides_opened_before_it(viewer: Any, slide_file: Path) -> None:
    from napari_msamil.plugin.panel import MilPanel

    data, keywords, _ = slides.layer_data(slide_file)
    layer = viewer.add_image(data, **keywords)
    panel = MilPanel(viewer)
    assert panel.form.layer == layer
    panel.shut_down()
    panel.deleteLater()


def test_opening_shows_the_whole_slide_and_then_a_scale_bar(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    panel.open_slide(slide_file)
    assert not compat.overlay(viewer, "scale_bar").visible, "its letters take as long as the picture"
    assert compat.camera(viewer).center[-2:] == pytest.approx((449.5, 599.5), abs=1)
    qtbot.waitUntil(lambda: compat.overlay(viewer, "scale_bar").visible)


def test_a_panel_that_is_closed_and_opened_again_shows_the_result_that_lies_on_the_slide(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    layer = panel.open_slide(slide_file)
    run(panel, qtbot)
    before = panel.result_view.headline.text(), panel.result_of(layer)
    viewer.window.remove_dock_widget(panel)
    again = MilPanel(viewer)
    viewer.window.add_dock_widget(again, name="Multi-scale MIL", area="right")
    assert (again.result_view.headline.text(), again.result_of(layer)) == before
    assert not again.result_view.isHidden()
    again.result_view.scale.value = "5x"
    assert viewer.layers["square | attention 5x"].visible
    viewer.layers["square | attention 5x"].colormap = "gray"
    assert again.result_view.colours.pixmap().toImage().pixelColor(0, 0).getRgb()[:3] == (0, 0, 0)
    again.shut_down()


def test_slides_with_and_without_pixel_size_keep_the_scale_bar_of_the_chosen_one_right(
    panel: Any, viewer: Any, slide_file: Path, bare_file: Path, qtbot: Any
) -> None:
    def units() -> list[str]:
        shown = viewer.layers.extent.units
        assert shown is not None, "they differ: napari would show a bar without a unit"
        return [str(unit) for unit in shown]

    calibrated = panel.open_slide(slide_file)
    run(panel, qtbot)
    warnings = len(notification_manager.records)
    bare = panel.open_slide(bare_file)
    assert units() == ["pixel", "pixel"]
    panel.form.choose(calibrated)
    assert units() == ["micrometer", "micrometer"]
    panel.form.choose(bare)
    assert units() == ["pixel", "pixel"]
    panel.form.mpp.value = 0.5
    panel.form.calibrate()
    assert units() == ["micrometer", "micrometer"]
    assert tuple(bare.scale) == (0.5, 0.5)
    assert tuple(calibrated.scale) == (1.0, 1.0)
    assert len(notification_manager.records) == warnings, "napari has nothing to complain of"


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
