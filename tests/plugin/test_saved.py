"""Saved heatmaps, opened as files: on their own slide's tissue or not seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.layers._layer_actions import _duplicate_layer
from napari.utils.notifications import notification_manager

from napari_msamil.inference.heatmap import read_heatmap
from napari_msamil.inference.prediction import RESEARCH_USE
from napari_msamil.plugin import compat
from pressing import SECONDS, run, shown

pytestmark = pytest.mark.gui


def save_result(panel: Any, slide_file: Path, out: Path, qtbot: Any) -> Path:
    """Classify a slide, save the result and remove all of it; gives the file of its finest heatmap."""
    panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.results.save(out)
    qtbot.waitUntil(lambda: panel.result_view.save.enabled, timeout=SECONDS)
    panel.form.layer.visible = False
    return out / slide_file.stem / "attention_10x.tif"


def test_a_saved_heatmap_is_opened_beside_its_slide(
    panel: Any, viewer: Any, slide_file: Path, make_slide: Any, qtbot: Any, tmp_path: Path
) -> None:
    slide = panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.results.save(tmp_path / "out")
    saved = tmp_path / "out" / "square" / "attention_10x.tif"
    qtbot.waitUntil(saved.is_file, timeout=SECONDS)
    qtbot.waitUntil(lambda: panel.result_view.save.enabled, timeout=SECONDS)
    panel.open_slide(saved)
    assert viewer.layers[-1].name == "square | saved attention 10x"
    assert panel.form.layer == slide
    assert np.allclose(viewer.layers[-1].extent.world, viewer.layers["square | attention 10x"].extent.world)
    while len(viewer.layers) > 2:
        viewer.layers.remove(viewer.layers[1])
    text = compat.overlay(viewer, "text")
    for seen in (True, False, True):
        viewer.layers[-1].visible = seen
        assert (RESEARCH_USE in text.text and "10x: saved attention" in text.text and text.visible) == seen
    other = panel.open_slide(make_slide("other.tif"))
    assert not viewer.layers[1].visible, "it goes with its slide"
    assert RESEARCH_USE not in text.text
    panel.form.choose(slide)
    assert viewer.layers[1].visible
    viewer.layers.remove(other)
    viewer.layers.remove(viewer.layers[1])
    assert RESEARCH_USE not in text.text
    [opened] = viewer.open(saved, plugin="napari-msamil")  # without the panel's help
    assert opened.name == "square | saved attention 10x"
    assert RESEARCH_USE in text.text
    opened.affine = np.array([[0, 1, 5], [-1, 0, 6], [0, 0, 1]])
    assert np.array_equal(opened.affine.affine_matrix, slide.affine.affine_matrix), "it cannot be moved off its slide"


def test_a_saved_heatmap_has_the_colours_of_the_result_it_was_saved_from_and_is_seen_alone(
    panel: Any, viewer: Any, slide_file: Path, tmp_path: Path, qtbot: Any
) -> None:
    slide = panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.results.save(tmp_path)
    qtbot.waitUntil(lambda: panel.result_view.save.enabled, timeout=SECONDS)
    panel.result_view.values.value = "relative"
    live = viewer.layers["square | attention 10x"]
    for name in ("attention_5x.tif", "attention_10x.tif"):
        viewer.open(tmp_path / "square" / name, plugin="napari-msamil")
    coarse, saved = viewer.layers[-2:]
    np.testing.assert_allclose(saved.data, live.data, rtol=1e-5)
    assert tuple(saved.contrast_limits) == tuple(live.contrast_limits) == (0, 4)
    assert saved.colormap.name == live.colormap.name
    assert [layer.visible for layer in (coarse, saved, live)] == [False, True, False]
    text = compat.overlay(viewer, "text").text
    assert "10x: saved attention, an average patch has 1 (colours 0 to 4)" in text
    assert "5x" not in text
    panel.result_view.opacity.value = 0.8
    assert saved.opacity == live.opacity == pytest.approx(0.8)
    panel.result_view.scale.value = "10x"
    assert [layer.visible for layer in (coarse, saved, live)] == [False, False, True]
    panel.result_view.values.value = "rank"
    assert panel.result_view.high.text() == "1"
    saved.visible, live.visible = True, False
    assert panel.result_view.high.text() == "4", "the colours of what is seen are explained"
    assert panel.result_view.values.value == "relative"
    assert not panel.result_view.values.enabled, "a saved heatmap shows what its file holds"
    assert panel.result_view.scale.value == "saved 10x"
    saved.opacity, saved.colormap = 0.3, "gray"
    assert panel.result_view.opacity.value == pytest.approx(0.3)
    ends = panel.result_view.colours.pixmap().toImage()
    assert ends.pixelColor(255, 0).getRgb()[:3] == (255, 255, 255)
    panel.result_view.scale.value = "10x"
    assert panel.result_view.high.text() == "1"
    assert panel.result_view.values.value == "rank"
    assert panel.result_view.values.enabled
    assert panel.result_view.opacity.value == pytest.approx(0.8)
    assert list(panel.result_view.scale.choices) == ["Off", "2.5x", "5x", "10x"]
    saved.visible = True
    panel.result_view.scale.value = "Off"
    assert not saved.visible
    run(panel, qtbot)
    assert panel.form.layer == slide
    assert [layer.visible for layer in (coarse, saved, live)] == [False, False, False], "none was asked for"
    saved.visible = True
    run(panel, qtbot)
    assert [layer.visible for layer in (coarse, saved, live)] == [False, False, True], "the new result is seen"


def test_one_heatmap_of_a_slide_comes_back_with_it_however_many_came_meanwhile(
    panel: Any, viewer: Any, slide_file: Path, make_slide: Any, tmp_path: Path, qtbot: Any
) -> None:
    slide = panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.results.save(tmp_path)
    qtbot.waitUntil(lambda: panel.result_view.save.enabled, timeout=SECONDS)

    def open_saved(*names: str) -> None:
        for name in names:
            viewer.open(tmp_path / "square" / f"attention_{name}.tif", plugin="napari-msamil")

    def maps_seen() -> list[str]:
        return [name for name in shown(viewer) if "attention" in name]

    other = panel.open_slide(make_slide("other.tif"))
    open_saved("5x", "10x")
    panel.form.choose(slide)
    qtbot.wait(50)
    assert maps_seen() == ["square | saved attention 10x"]
    panel.run_view.start.native.click()
    panel.form.choose(other)
    qtbot.waitUntil(lambda: not panel.running, timeout=SECONDS)
    panel.form.choose(slide)
    qtbot.wait(50)
    assert len(maps_seen()) == 1
    viewer.layers.clear()
    open_saved("2.5x", "5x", "10x")
    panel.open_slide(slide_file)
    qtbot.wait(50)
    assert len(maps_seen()) == 1


def test_a_saved_heatmap_of_a_hidden_slide_comes_back_with_it_without_the_panel_too(
    panel: Any, viewer: Any, slide_file: Path, tmp_path: Path, qtbot: Any
) -> None:
    file = save_result(panel, slide_file, tmp_path, qtbot)
    slide = panel.form.layer
    panel.shut_down()
    [saved] = viewer.open(file, plugin="napari-msamil")
    assert not saved.visible
    slide.visible = True
    qtbot.waitUntil(lambda: saved.visible, timeout=SECONDS)
    saved.visible = False
    qtbot.wait(50)
    assert not saved.visible, "the user hid it"


def test_a_heatmap_saved_before_its_file_told_the_number_of_patches_shows_shares(
    viewer: Any, panel: Any, slide_file: Path, tmp_path: Path, qtbot: Any
) -> None:
    file = save_result(panel, slide_file, tmp_path, qtbot)
    array, where = read_heatmap(file)
    assert where.pop("patches") == np.isfinite(panel.result_of(panel.form.layer).attention).sum()
    tifffile.imwrite(file, array, description=json.dumps(where), metadata=None)
    panel.form.layer.visible = True
    [saved] = viewer.open(file, plugin="napari-msamil")
    np.testing.assert_array_equal(saved.data, array)
    assert tuple(saved.contrast_limits) == (0, pytest.approx(float(np.nanmax(array))))
    assert "10x: saved attention (a patch's share" in compat.overlay(viewer, "text").text


def test_a_saved_heatmap_lies_on_no_slide_but_its_own_whichever_comes_first(
    panel: Any, viewer: Any, slide_file: Path, bare_file: Path, make_slide: Any, qtbot: Any, tmp_path: Path
) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.results.save(tmp_path / "out")
    qtbot.waitUntil(lambda: panel.result_view.save.enabled, timeout=SECONDS)
    place = viewer.layers["square | attention 10x"].extent.world
    viewer.layers.remove(panel.form.layer)
    qtbot.waitUntil(lambda: len(viewer.layers) == 0, timeout=SECONDS)
    [heatmap] = viewer.open(tmp_path / "out" / "square" / "attention_10x.tif", plugin="napari-msamil")
    assert heatmap.visible, "there is no slide that it could be taken to be of"
    hidden = "attention 10x is of square.tif, which is not open as a slide"
    text = compat.overlay(viewer, "text")
    said = len(notification_manager.records)
    bare = panel.open_slide(bare_file)
    qtbot.waitUntil(lambda: not heatmap.visible, timeout=SECONDS)
    assert RESEARCH_USE not in text.text
    assert [hidden in record.message for record in notification_manager.records[said:]] == [True]
    assert [str(unit) for unit in viewer.layers.extent.units] == ["pixel", "pixel"], "the scale bar is the slide's"
    slide = panel.open_slide(slide_file)
    qtbot.waitUntil(lambda: list(viewer.layers) == [bare, slide, heatmap], timeout=SECONDS)
    assert heatmap.visible
    assert heatmap.extent.world == pytest.approx(place)
    assert RESEARCH_USE in text.text
    panel.form.choose(bare)
    assert not heatmap.visible, "it is hidden with its slide"
    [second] = viewer.open(tmp_path / "out" / "square" / "attention_5x.tif", plugin="napari-msamil")
    assert not second.visible, "its slide is not seen"
    assert "is of square.tif, which is hidden: it is hidden too" in notification_manager.records[-1].message
    panel.form.choose(slide)
    assert second.visible
    assert "5x: saved attention" in text.text
    viewer.layers.selection.active = second
    before = list(viewer.layers)
    _duplicate_layer(viewer.layers)
    [copy] = [layer for layer in viewer.layers if layer not in before]
    for layer in (heatmap, second, copy):
        layer.visible = False
    assert RESEARCH_USE not in text.text
    panel.form.choose(bare)
    said += 1
    viewer.layers.remove(slide)
    qtbot.waitUntil(lambda: list(viewer.layers) == [bare], timeout=SECONDS)
    [again] = viewer.open(tmp_path / "out" / "square" / "attention_10x.tif", plugin="napari-msamil")
    assert [hidden in record.message for record in notification_manager.records[said + 1 :]] == [True]
    assert not again.visible


def test_a_saved_heatmap_lies_on_no_picture_that_is_no_slide(
    panel: Any, viewer: Any, slide_file: Path, tmp_path: Path, qtbot: Any
) -> None:
    file = save_result(panel, slide_file, tmp_path / "out", qtbot)
    viewer.layers.clear()
    said = 'attention 10x is of square.tif, which is not open as a slide ("Open …" in the panel opens it so): it is hid'
    pixels = tifffile.imread(slide_file, series=0, level=0)
    picture = viewer.add_image(pixels, rgb=True, name="as napari reads it")
    [heatmap] = viewer.open(file, plugin="napari-msamil")
    assert not heatmap.visible, "the picture is in pixels"
    assert said in notification_manager.records[-1].message
    viewer.layers.remove(picture)
    heatmap.visible = True
    before = len(notification_manager.records)
    viewer.add_image(pixels, rgb=True, name="opened later")
    qtbot.waitUntil(lambda: not heatmap.visible, timeout=SECONDS)
    assert sum(said in record.message for record in notification_manager.records[before:]) == 1
    slide = panel.open_slide(slide_file)
    assert heatmap.visible
    assert np.ptp(heatmap.extent.world, axis=0)[1] <= np.ptp(slide.extent.world, axis=0)[1] + 128


def test_a_saved_heatmap_is_not_of_another_file_of_the_same_name_and_size(
    panel: Any, viewer: Any, slide_file: Path, make_slide: Any, tmp_path: Path, qtbot: Any
) -> None:
    file = save_result(panel, slide_file, tmp_path / "out", qtbot)
    viewer.layers.clear()
    (tmp_path / "elsewhere").mkdir()
    twin = make_slide("elsewhere/square.tif", seed=5)
    with twin.open("ab") as more:
        more.write(b"of another length")
    panel.open_slide(twin)
    [heatmap] = viewer.open(file, plugin="napari-msamil")
    assert not heatmap.visible
    panel.open_slide(slide_file)
    assert heatmap.visible


def test_a_saved_heatmap_says_when_its_slide_has_another_pixel_size_now(
    panel: Any, viewer: Any, bare_file: Path, tmp_path: Path, qtbot: Any
) -> None:
    panel.open_slide(bare_file)
    panel.form.mpp.value = 1.0
    run(panel, qtbot)
    panel.results.save(tmp_path)
    qtbot.waitUntil(lambda: panel.result_view.save.enabled, timeout=SECONDS)
    viewer.open(tmp_path / "bare" / "attention_10x.tif", plugin="napari-msamil")
    text = compat.overlay(viewer, "text")
    assert "made with" not in text.text
    panel.form.mpp.value = 0.5
    panel.form.calibrate()
    assert "made with 1 µm per pixel, not with the 0.5 of now" in text.text
