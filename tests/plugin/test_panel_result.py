"""What is done with a result in the panel: looked at, explained, saved, limited to a region."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QMessageBox

from napari_msamil.plugin import compat, outlines, slides
from napari_msamil.plugin.panel import MilPanel
from pressing import SECONDS, run, texts

pytestmark = pytest.mark.gui


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
    assert panel.result_view.place.text() == "outlined in yellow"
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
    lesion = viewer.layers["square | lesion"]
    assert lesion.contour == 1, "close up a pixel of the mask is wide enough"
    camera.zoom = camera.zoom / 1000
    assert lesion.contour == 2
    lesion.contour = 0  # as the user prefers
    camera.zoom = camera.zoom * 1000
    assert lesion.contour == 0


def test_a_regions_outline_is_drawn_as_thin_close_up_as_from_far(
    make_napari_viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    panel = MilPanel(viewer)
    layer = panel.open_slide(slide_file)
    panel.form.draw.native.click()
    viewer.layers[-1].add_rectangles([[[180, 300], [180, 550], [400, 550], [400, 300]]])
    camera = compat.camera(viewer)

    def picture(*, seen: bool) -> Any:
        viewer.layers[-1].visible = seen
        return viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)

    for zoom in (camera.zoom, camera.zoom * 8):
        camera.zoom = zoom
        camera.center = (0, *layer.data_to_world((180, 425)))  # on the upper side
        qtbot.wait(100)
        with_it, without = (picture(seen=seen) for seen in (True, False))
        height, width = with_it.shape[:2]
        changed = np.abs(with_it - without).max(axis=2) > 60
        drawn = changed[height // 4 : 3 * height // 4, width // 2]
        assert 1 <= drawn.sum() <= 8, "two sides of two pixels, at most"
    panel.shut_down()


def test_values_and_opacity_change_all_maps(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    maps = [a for a in viewer.layers if slides.tag(a).get("role") == "heatmap"]
    for values, limits in (("relative", (0.0, 4.0)), ("rank", (0.0, 1.0)), ("relative", (0.0, 4.0))):
        panel.result_view.values.value = values
        assert panel.result_view.values.value == values, "the box says what was picked"
        assert {tuple(a.contrast_limits) for a in maps} == {limits}
    panel.result_view.opacity.value = 0.25
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
    viewer.layers["square | attention 10x"].contrast_limits = (0, 2)
    assert bar()[3] == "2"
    assert "(colours 0 to 2)" in compat.overlay(viewer, "text").text


def test_the_result_is_saved_as_the_command_line_saves_it(
    panel: Any, slide_file: Path, tmp_path: Path, qtbot: Any
) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.results.save(tmp_path / "out")
    qtbot.waitUntil(lambda: "Saved to" in panel.result_view.answer.text(), timeout=SECONDS)
    saved = json.loads((tmp_path / "out" / "square" / "prediction.json").read_text())
    assert saved["predicted"] in panel.result_view.headline.text()


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
