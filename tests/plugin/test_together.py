"""A slide and what lies on it stay together: moved, turned, classified again, and while another slide is looked at."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Layer
from numpy.typing import NDArray

from napari_msamil.inference import classify as classify_module
from napari_msamil.inference.classify import Progress
from napari_msamil.inference.prediction import REGION_RGB
from napari_msamil.plugin import compat, layers
from napari_msamil.plugin.outlines import TOP_COLOUR
from napari_msamil.plugin.slides import tag
from pressing import SECONDS, layer_names, run, shown

pytestmark = pytest.mark.gui

MOVED = np.array([[0.9, -0.3, 40.0], [0.3, 0.9, -70.0], [0.0, 0.0, 1.0]])  # shifted and turned


def off(slide: Any, overlay: Any) -> NDArray[np.float64]:
    """µm between the middle of a slide and that of an array laid over all of it."""
    places = [np.array(shape) / 2 - 0.5 for shape in (slide.data[0].shape[:2], overlay.data.shape)]
    return np.subtract(slide.data_to_world(places[0]), overlay.data_to_world(places[1]))


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Generator[threading.Event, None, None]:
    """Let a classification wait, once it has said how far it is, until the event is set."""
    real, gate = classify_module.classify_steps, threading.Event()

    def steps(request: Any) -> Generator[Progress, None, Any]:
        inner = real(request)
        yield next(inner)
        gate.wait(SECONDS / 1000)
        return (yield from inner)

    monkeypatch.setattr(classify_module, "classify_steps", steps)
    yield gate
    gate.set()


def test_what_lies_on_a_slide_goes_along_with_it_and_cannot_be_moved_away(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    slide = panel.open_slide(slide_file)
    run(panel, qtbot)
    lesion = viewer.layers["square | lesion"]
    assert off(slide, lesion) == pytest.approx(0, abs=1e-6)
    slide.affine = MOVED  # as napari's transform tool does
    panel.form.draw.native.click()
    region = viewer.layers["square | region"]
    region.add_rectangles([[[180, 300], [180, 550], [400, 550], [400, 300]]])
    for _ in range(2):
        assert off(slide, lesion) == pytest.approx(0, abs=1e-6)
        for layer in viewer.layers:
            assert np.allclose(layer.affine.affine_matrix, MOVED), layer.name
        run(panel, qtbot)
    table = panel.result_of(slide).table
    centres = table.coords + np.array([table.footprint(int(s)) for s in table.scale]) / 2
    assert ((centres > [200, 80]) & (centres < [650, 500])).all(), "the region reads the tissue it is drawn on"
    lesion.affine = np.eye(3)
    assert off(slide, lesion) == pytest.approx(0, abs=1e-6)


def test_a_moved_slide_stays_where_it_is_when_it_gets_its_pixel_size(panel: Any, viewer: Any, bare_file: Path) -> None:
    slide = panel.open_slide(bare_file)
    slide.affine = MOVED
    before = np.array(slide.data_to_world((500, 300)))
    panel.form.mpp.value = 0.5
    panel.form.calibrate()
    assert slide.data_to_world((500, 300)) == pytest.approx(0.5 * before)
    assert viewer.layers["bare"] == slide


def test_the_next_patch_is_in_the_middle_also_with_transposed_axes(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    slide = panel.open_slide(slide_file)
    run(panel, qtbot)
    prediction = panel.result_of(slide)
    box = layers.patch_box(prediction, int(prediction.top_patches(0, 1)[0]))
    place = np.array(slide.data_to_world(box.mean(axis=0)))
    assert abs(place[0] - place[1]) > 1, "else this test shows nothing"
    for order in ((0, 1), (1, 0)):
        viewer.dims.order = order
        panel.results.forget(slide)  # begin with the first patch again
        slide.metadata["msamil"]["result"] = prediction
        panel.result_view.next.native.click()
        assert compat.camera(viewer).center[-2:] == pytest.approx(place[list(order)])


def test_another_result_fills_the_layers_that_are_there(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    slide = panel.open_slide(slide_file)
    run(panel, qtbot)
    before = list(viewer.layers)
    whole = [np.asarray(a.data).copy() for a in before[1:5]]
    panel.form.draw.native.click()
    region = viewer.layers["square | region"]
    region.add_rectangles([[[180, 300], [180, 550], [400, 550], [400, 300]]])
    run(panel, qtbot)
    assert list(viewer.layers) == [*before, region]
    prediction = panel.result_of(slide)
    for layer, (data, keywords, _) in zip(before[1:], layers.from_prediction(prediction, slide), strict=True):
        assert layer.name == keywords["name"]
        assert np.array_equal(layer.data, data, equal_nan=True)
        assert layer.scale == pytest.approx(keywords["scale"])
        assert layer.translate == pytest.approx(keywords["translate"])
        assert tag(layer)["model"] == prediction.model_name
    assert any(not np.array_equal(a.data, old, equal_nan=True) for a, old in zip(before[1:5], whole, strict=True))
    top = viewer.layers["square | top patches"]
    assert len(top.features) == len(top.data) == sum(len(prediction.top_patches(i, 10)) for i in range(3))
    assert set(top.edge_color[top.features["scale"] == "10x"][:, 3]) == {1.0}
    assert not top.editable


def test_a_removed_heatmap_is_not_offered_and_comes_back_with_the_next_result(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    viewer.layers.remove(viewer.layers["square | attention 10x"])
    assert list(panel.result_view.scale.choices) == ["Off", "2.5x", "5x"]
    panel.result_view.next.native.click()
    assert panel.result_view.scale.value == "5x"
    assert panel.result_view.place.text().endswith("at 5x")
    for name in ("2.5x", "5x"):
        viewer.layers.remove(viewer.layers[f"square | attention {name}"])
    assert not panel.result_view.next.enabled
    run(panel, qtbot)
    assert list(panel.result_view.scale.choices) == ["Off", "2.5x", "5x", "10x"]
    assert panel.result_view.next.enabled


def test_a_region_that_is_chosen_gets_more_shapes_and_the_whole_slide_begins_anew(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    slide = panel.open_slide(slide_file)
    panel.form.draw.native.click()
    region = panel.form.region.value
    region.add_rectangles([[[180, 300], [180, 550], [300, 550], [300, 300]]])
    viewer.layers.selection.active = slide
    panel.form.draw.native.click()
    assert panel.form.region.value == region
    assert (viewer.layers.selection.active, region.mode) == (region, "add_polygon")
    region.add_rectangles([[[400, 300], [400, 550], [600, 550], [600, 300]]])
    run(panel, qtbot)
    assert len(panel.result_of(slide).region) == 2
    panel.form.region.value = None
    panel.form.draw.native.click()
    assert panel.form.region.value not in (None, region)


def test_who_looks_at_another_slide_is_not_taken_away_from_it_when_a_run_ends(
    panel: Any, viewer: Any, slide_file: Path, make_slide: Any, gated: threading.Event, qtbot: Any
) -> None:
    first = panel.open_slide(slide_file)
    panel.run_view.start.native.click()
    assert panel.run_view.status.text().startswith("Starting")
    qtbot.waitUntil(lambda: not panel.run_view.status.text().startswith("Starting"), timeout=SECONDS)
    stage = panel.run_view.status.text().split(" …")[0].split(" ·")[0]
    second = panel.open_slide(make_slide("other.tif", seed=1))
    assert panel.run_view.status.text().startswith(f"square: {stage}"), "at once, not with the next progress"
    qtbot.waitUntil(lambda: " · 0:0" in panel.run_view.status.text(), timeout=SECONDS)
    assert panel.run_view.progress.maximum() > 0, "a moving bar would take the run's processor time"
    panel.run_view.say("something else")
    qtbot.wait(1500)
    assert panel.run_view.status.text() == "something else", "what was said stays until there is news"
    camera = compat.camera(viewer)
    camera.center, camera.zoom = (0, 300, 400), 3.0
    gated.set()
    qtbot.waitUntil(lambda: not panel.running, timeout=SECONDS)
    assert panel.form.layer == second
    assert (camera.center, camera.zoom) == ((0, 300, 400), 3.0)
    assert panel.run_view.status.text() == "square is classified: choose it under 1 to see the result."
    assert [layer.name for layer in viewer.layers if layer.visible] == ["other"]
    assert panel.result_view.isHidden()
    panel.form.choose(first)
    assert not panel.result_view.isHidden()
    shown = {layer.name for layer in viewer.layers if layer.visible}
    assert shown == {"square", "square | attention 10x", "square | lesion", "square | top patches"}
    panel.form.choose(second)
    assert (camera.center, camera.zoom) == ((0, 300, 400), 3.0), "where it was left"


def test_after_a_slide_is_removed_the_chosen_one_is_selected_and_nothing_else(
    panel: Any, viewer: Any, slide_file: Path, make_slide: Any, qtbot: Any
) -> None:
    first = panel.open_slide(slide_file)
    run(panel, qtbot)
    second = panel.open_slide(make_slide("other.tif", seed=1))
    run(panel, qtbot)
    viewer.layers.remove(second)
    qtbot.waitUntil(lambda: len(viewer.layers) == 6, timeout=SECONDS)
    assert set(viewer.layers.selection) == {first}


def test_the_outline_keeps_its_colour_after_a_shape_that_was_given_up(
    panel: Any, viewer: Any, slide_file: Path
) -> None:
    panel.open_slide(slide_file)
    panel.form.draw.native.click()
    region = panel.form.region.value
    region.add_polygons([[[10, 10], [10, 50], [50, 50]], [[180, 300], [180, 550], [400, 550]]])
    region.selected_data = {0}
    region.remove_selected()
    colour = [*(value / 255 for value in REGION_RGB), 1.0]
    assert not np.allclose(colour, TOP_COLOUR, atol=0.2), "a region is no patch that mattered"
    region.add_polygons([[[600, 300], [600, 550], [700, 550]]])
    for zoom in (8, 0.1):
        compat.camera(viewer).zoom = zoom
        assert np.allclose(region.edge_color, colour)


def test_a_run_that_ends_leaves_who_draws_alone(
    panel: Any, viewer: Any, slide_file: Path, gated: threading.Event, qtbot: Any
) -> None:
    slide = panel.open_slide(slide_file)
    panel.form.draw.native.click()
    region = panel.form.region.value
    region.add_rectangles([[[180, 300], [180, 550], [400, 550], [400, 300]]])
    panel.run_view.start.native.click()
    assert (viewer.layers.selection.active, region.mode) == (slide, "pan_zoom"), "a drag moves the view again"
    viewer.layers.selection.active = region
    region.mode = "add_polygon"
    gated.set()
    qtbot.waitUntil(lambda: not panel.running, timeout=SECONDS)
    assert panel.result_of(slide) is not None
    assert (viewer.layers.selection.active, region.mode) == (region, "add_polygon")


def test_what_napari_s_buttons_make_belongs_to_the_slide_that_is_seen(
    panel: Any, viewer: Any, slide_file: Path, make_slide: Any, qtbot: Any
) -> None:
    panel.open_slide(make_slide("first.tif", mpp=None))
    second = panel.open_slide(make_slide("second.tif", mpp=None))
    panel.form.mpp.value = 0.25
    panel.form.calibrate()
    shapes = viewer.add_shapes(ndim=2, scale=viewer.layers.extent.step)  # as "New shapes layer" does
    points = viewer.add_points(ndim=2, scale=viewer.layers.extent.step)
    labels = viewer.add_labels(np.zeros((900, 1200), int), scale=viewer.layers.extent.step)
    labels.data[100:200, 100:200] = 1
    shapes.add_rectangles([[[180, 300], [180, 550], [400, 550], [400, 300]]])
    before = second.world_to_data(shapes.data_to_world((180, 300)))
    panel.form.region.value = shapes
    panel.form.mpp.value = 0.5
    panel.form.calibrate()
    assert second.world_to_data(shapes.data_to_world((180, 300))) == pytest.approx(before)
    third = panel.open_slide(slide_file)
    assert [layer.name for layer in viewer.layers if layer.visible] == [third.name]
    assert shapes not in panel.form.region.choices
    panel.form.choose(second)
    drawn = (shapes, points, labels)
    assert all(layer.visible for layer in drawn)
    assert np.array(labels.scale) == pytest.approx(second.scale)
    viewer.layers.remove(second)
    qtbot.wait(100)
    assert all(layer in viewer.layers and not layer.visible for layer in drawn), "the user's own work is kept"


def test_shapes_without_a_mark_stay_where_they_are_when_another_slide_gets_its_pixel_size(
    panel: Any, viewer: Any, make_slide: Any
) -> None:
    panel.open_slide(make_slide("first.tif", mpp=None))
    shapes = viewer.add_shapes([[[180, 300], [180, 550], [400, 550], [400, 300]]], shape_type="rectangle")
    panel.open_slide(make_slide("second.tif", mpp=None))
    panel.form.mpp.value = 0.5
    panel.form.calibrate()
    assert shapes.data_to_world((180, 300)) == pytest.approx((180, 300))


def test_a_duplicate_of_a_heatmap_keeps_the_result_that_it_is_of(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    heatmap = viewer.layers["square | attention 10x"]
    viewer.layers.selection.active = heatmap
    data, state, kind = heatmap.as_layer_data_tuple()  # as napari's "Duplicate layer" does
    kept = viewer.add_layer(Layer.create(np.array(data), {**state, "name": "kept"}, kind))
    old = np.array(data)
    panel.form.draw.native.click()
    panel.form.region.value.add_rectangles([[[180, 300], [180, 550], [400, 550], [400, 300]]])
    run(panel, qtbot)
    assert np.array_equal(kept.data, old, equal_nan=True)
    assert not np.array_equal(heatmap.data, old, equal_nan=True)
    assert (heatmap.name, kept.name) == ("square | attention 10x", "kept")


def test_an_empty_region_is_used_before_another_one_is_made(panel: Any, viewer: Any, slide_file: Path) -> None:
    panel.open_slide(slide_file)
    panel.form.draw.native.click()
    empty = panel.form.region.value
    panel.form.region.value = None
    panel.form.draw.native.click()
    assert panel.form.region.value == empty
    assert len(viewer.layers) == 2


def test_what_lies_on_a_slide_lies_below_the_slides_that_were_opened_later(
    panel: Any, viewer: Any, make_slide: Any, qtbot: Any
) -> None:
    """Who shows another slide by its eye icon must not see the first one's evidence on its tissue."""
    first = panel.open_slide(make_slide("first.tif"))
    second = panel.open_slide(make_slide("second.tif", seed=2))
    picture = viewer.add_image(np.zeros((9, 9)), name="picture")
    panel.form.choose(first)
    panel.form.draw.native.click()
    panel.form.region.value.add_rectangles([[[100, 100], [100, 600], [600, 600], [600, 100]]])
    run(panel, qtbot)
    viewer.add_points(np.array([[1, 2]]), ndim=2, name="not tied to a slide")

    def below_second() -> bool:
        return all(viewer.layers.index(a) < viewer.layers.index(second) for a in viewer.layers if "first" in a.name)

    qtbot.waitUntil(below_second, timeout=10_000)
    names = [layer.name.partition(" | ")[2] for layer in viewer.layers if layer.name.startswith("first | ")]
    assert names[0] == "region"
    assert names[-2:] == ["lesion", "top patches"]
    assert [layer.name for layer in viewer.layers][-3:] == ["second", "picture", "not tied to a slide"]
    assert picture.visible
    assert panel.form.layer == first


def test_what_lies_on_a_slide_follows_it_in_the_list(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, _ = pair
    panel.form.choose(one)
    order = [name for name in layer_names(viewer) if name.startswith("first")]
    before = shown(viewer)
    viewer.layers.move(viewer.layers.index(one), len(viewer.layers))
    qtbot.waitUntil(lambda: layer_names(viewer) == ["second", *order], timeout=SECONDS)
    viewer.layers.move(viewer.layers.index("first | lesion"), 0)
    qtbot.waitUntil(lambda: layer_names(viewer)[:2] == ["second", "first"], timeout=SECONDS)
    viewer.layers.move(0, len(viewer.layers))
    qtbot.wait(50)
    assert layer_names(viewer)[-1] == "second"
    assert shown(viewer)[:2] == before[:2] == ["first", "first | attention 5x"]


def test_a_slide_whose_file_was_replaced_is_not_classified(
    panel: Any, viewer: Any, make_slide: Any, slide_file: Path
) -> None:
    path = make_slide("case.tif")
    panel.open_slide(path)
    path.write_bytes(slide_file.read_bytes() + b"0")
    panel.run_view.start.native.click()
    assert not panel.running
    assert "case.tif was changed since it was opened" in panel.run_view.status.text()
    assert "open it again" in panel.run_view.status.text()


def test_opacity_is_the_same_in_the_panel_and_in_naparis_controls(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    maps = [layer for layer in viewer.layers if "attention" in layer.name]
    maps[0].opacity = 0.25
    assert panel.result_view.opacity.value == pytest.approx(0.25)
    panel.result_view.opacity.value = 0.75
    assert [layer.opacity for layer in maps] == [pytest.approx(0.75)] * len(maps)


def test_each_heatmap_that_is_seen_is_named_on_the_canvas(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    maps = [layer for layer in viewer.layers if "attention" in layer.name]
    for layer in maps:
        layer.visible = True
    lines = compat.overlay(viewer, "text").text.split("\n")
    scales = [layer.name.rpartition(" ")[2] for layer in reversed(maps)]
    assert [line.partition(":")[0] for line in lines[: len(maps)]] == scales


def test_saving_begins_in_the_folder_used_last(
    panel: Any, slide_file: Path, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def choose(parent: Any, title: str, folder: str) -> str:
        begun.append(folder)
        return str(tmp_path / "results") if len(begun) == 1 else ""

    monkeypatch.setattr("napari_msamil.plugin.results.QFileDialog.getExistingDirectory", choose)
    panel.open_slide(slide_file)
    run(panel, qtbot)
    panel.result_view.save.native.click()
    qtbot.waitUntil(lambda: panel.result_view.answer.text().startswith("Saved to"), timeout=SECONDS)
    panel.result_view.save.native.click()
    assert begun == ["", str(tmp_path / "results")]
