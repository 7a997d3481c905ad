"""Slides come into the panel: from its button, by dropping, with and without pixel size."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QLocale, QMimeData, QPoint, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QApplication

from napari_msamil.plugin import compat, slides
from napari_msamil.plugin.panel import MilPanel
from napari_msamil.slide import flat
from pressing import SECONDS, layer_names, run, shown, texts

pytestmark = pytest.mark.gui


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


def test_a_corrected_pixel_size_keeps_the_old_result_and_says_what_it_was_made_with(
    panel: Any, viewer: Any, bare_file: Path, tmp_path: Path, qtbot: Any
) -> None:
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
    text = compat.overlay(viewer, "text")
    old, made = panel.result_of(layer), "made with 1 µm per pixel, not with the 0.9 of now"
    assert f"this result was {made}: classify again" in texts(panel).replace("This", "this")
    assert made in text.text
    assert tuple(viewer.layers["bare | attention 10x"].scale) == pytest.approx((64 * 0.9, 64 * 0.9))
    panel.result_view.next.native.click()
    assert compat.camera(viewer).zoom == pytest.approx(1 / 0.9), "one pixel of the patch is one of the screen"
    panel.results.save(tmp_path / "out")
    qtbot.waitUntil(lambda: "Saved to" in texts(panel), timeout=SECONDS)
    panel.form.mpp.value = 1.0
    panel.form.mpp.native.editingFinished.emit()
    assert panel.result_of(layer) is old
    assert made not in texts(panel) + text.text, "the number it was made with is back"
    panel.form.mpp.value = 0.9
    run(panel, qtbot)
    assert panel.result_of(layer).mpp == (0.9, 0.9)
    assert made not in texts(panel) + text.text


def test_a_click_on_classify_counts_though_the_pixel_size_was_typed_just_before(
    make_napari_viewer: Any, bare_file: Path, model_file: Path, qtbot: Any
) -> None:
    """The field is left between press and release, and what it then says must not move the button away."""
    viewer = make_napari_viewer(show=True)
    panel = MilPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Multi-scale MIL", area="right")
    panel.form.choose_model(model_file)
    panel.open_slide(bare_file)
    panel.form.facts.setMaximumWidth(150)  # a line that gets longer takes one line more
    window, start, field = panel.window(), panel.run_view.start.native, panel.form.mpp.native.lineEdit()
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow, timeout=SECONDS)
    field.setFocus()
    field.selectAll()
    qtbot.keyClicks(field, "0.25")
    qtbot.wait(200)
    place = start.mapTo(window, start.rect().center())
    qtbot.mousePress(window.windowHandle(), Qt.MouseButton.LeftButton, pos=place)
    qtbot.wait(200)
    assert not field.hasFocus()
    assert start.mapTo(window, start.rect().center()) == place
    qtbot.mouseRelease(window.windowHandle(), Qt.MouseButton.LeftButton, pos=place)
    assert panel.running
    qtbot.waitUntil(lambda: "0.25 µm/px" in panel.form.facts.text(), timeout=SECONDS)
    qtbot.waitUntil(lambda: start.mapTo(window, start.rect().center()) != place, timeout=SECONDS)
    panel.shut_down()


def test_a_pixel_size_that_was_typed_is_the_slides_whatever_is_pressed_next(
    panel: Any, viewer: Any, bare_file: Path, make_slide: Any, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    """What is pressed may change the layers, or the chosen slide, before the typed number is taken over."""
    layer = panel.open_slide(bare_file)
    held = [Qt.MouseButton.LeftButton]
    monkeypatch.setattr(QApplication, "mouseButtons", lambda: held[0])

    def type_and_press(number: float, press: Callable[[], Any]) -> None:
        held[0] = Qt.MouseButton.LeftButton
        panel.form.mpp.value = number
        panel.form.mpp.native.editingFinished.emit()
        press()
        held[0] = Qt.MouseButton.NoButton
        qtbot.waitUntil(lambda: slides.mpp_of(layer) == (number, number), timeout=SECONDS)

    type_and_press(0.5, panel.form.draw.native.click)
    assert panel.form.mpp.value == 0.5
    assert "0.5 µm/px" in panel.form.facts.text()
    type_and_press(0.4, lambda: viewer.layers.remove(viewer.layers[-1]))
    other = make_slide("other.tif", mpp=None)
    type_and_press(0.3, lambda: panel.open_slide(other))
    assert slides.mpp_of(panel.form.layer) is None, "it was not typed for this slide"
    assert panel.form.mpp.value == 0


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


@pytest.mark.parametrize("place", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("clicks", [("mouseClick",), ("mouseDClick", "mouseRelease")], ids=["one", "two"])
def test_the_pixel_size_is_typed_where_the_field_was_clicked(
    panel: Any, bare_file: Path, qtbot: Any, place: float, clicks: tuple[str, ...]
) -> None:
    layer = panel.open_slide(bare_file)
    field = panel.form.mpp.native
    line = field.lineEdit()
    there = QPoint(int(place * line.width()), line.height() // 2)
    for click in clicks:
        getattr(qtbot, click)(line, Qt.MouseButton.LeftButton, pos=there)
    qtbot.wait(20)
    assert line.selectedText() == field.text() == "not known"
    line.deselect()
    qtbot.keyClicks(field, "0.5")
    qtbot.keyClick(field, Qt.Key.Key_Return)
    assert slides.mpp_of(layer) == (0.5, 0.5)


def test_a_slide_with_pixel_size_does_not_ask(panel: Any, slide_file: Path) -> None:
    panel.open_slide(slide_file)
    assert panel.form.mpp.native.isHidden()
    assert panel.run_view.start.enabled


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
