"""A slide in a viewer that holds other pictures too, and under napari's commands that make something else of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Image, Labels, Shapes
from napari.layers._layer_actions import _convert, _merge_stack, _split_rgb
from numpy.typing import NDArray
from qtpy.QtWidgets import QLabel

from napari_msamil.plugin import compat, layers, slides
from napari_msamil.plugin.slides import tag
from pressing import SECONDS, run

pytestmark = pytest.mark.gui


def add_stack(viewer: Any) -> Any:
    """Five planes of noise, as a stack of fluorescence that is looked at beside the stained slide."""
    return viewer.add_image(np.random.default_rng(0).integers(0, 255, (5, 80, 60), dtype=np.uint8), name="stack")


def view_of(viewer: Any) -> NDArray[np.float64]:
    camera = compat.camera(viewer)
    return np.array([*camera.center[-2:], camera.zoom])


@pytest.mark.filterwarnings("ignore:Inconsistent units")
def test_a_slide_beside_a_stack_is_seen_whole_and_classified(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    add_stack(viewer)
    slide = panel.open_slide(slide_file)
    low, high = slide.extent.world
    *centre, zoom = view_of(viewer)
    assert centre == pytest.approx((low + high) / 2, abs=1)
    height, width = viewer.canvas.size
    assert zoom == pytest.approx(0.95 * min(height / 900, width / 1200), rel=0.02)
    run(panel, qtbot)
    assert len(slides.result_layers(viewer, tag(slide)["slide"])) == 5
    assert not panel.result_view.isHidden()
    prediction = panel.result_of(slide)
    panel.result_view.next.native.click()
    scale = [s.name for s in prediction.table.scales].index(panel.result_view.scale.value)
    box = layers.patch_box(prediction, int(prediction.top_patches(scale, 1)[0]))
    assert view_of(viewer)[:2] == pytest.approx(slide.data_to_world(box.mean(axis=0)))


def test_a_slide_fits_the_canvas_in_the_same_way_beside_a_stack(panel: Any, viewer: Any, slide_file: Path) -> None:
    slide = panel.open_slide(slide_file)
    for order in ((0, 1), (1, 0)):
        viewer.dims.order = order
        compat.fit(viewer, slide)
        alone = view_of(viewer)
        stack = add_stack(viewer)
        viewer.dims.order = (0, *(axis + 1 for axis in order))
        compat.fit(viewer, slide)
        assert view_of(viewer) == pytest.approx(alone, rel=2e-3)
        viewer.layers.remove(stack)


@pytest.mark.filterwarnings("ignore:Inconsistent units")
def test_what_is_drawn_across_a_stack_is_not_tied_to_the_slide_but_can_be_its_region(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    add_stack(viewer)
    slide = panel.open_slide(slide_file)
    shapes = viewer.add_shapes(ndim=3)  # as napari's button "New shapes layer" does here
    points = viewer.add_points(ndim=3)
    assert not tag(shapes)
    assert not tag(points)
    slide.affine = np.array([[1.0, 0.0, 30.0], [0.0, 1.0, 20.0], [0.0, 0.0, 1.0]])
    corners = np.add([[180, 300], [180, 550], [400, 550], [400, 300]], (30, 20))
    shapes.add_polygons([np.column_stack((np.full(4, 2), corners))])
    panel.form.region.value = shapes
    run(panel, qtbot)
    [ring] = panel.result_of(slide).region
    assert ring.exterior == pytest.approx(np.array([[300, 180], [550, 180], [550, 400], [300, 400]]) + 0.5)


def test_the_channels_of_a_split_slide_keep_its_pixels_and_are_no_slides(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    slide_layer = panel.open_slide(slide_file)
    slide = slides.slide_of(slide_layer)
    pixels = np.asarray(slide_layer.data[0][300:310, 400:420])
    run(panel, qtbot)
    viewer.layers.selection.active = slide_layer
    _split_rgb(viewer.layers)
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=SECONDS)  # what lay on the slide goes with it
    slides.CACHE.clear()
    for channel, layer in enumerate(viewer.layers):
        assert (np.asarray(layer.data[0][300:310, 400:420]) == pixels[..., channel]).all()
        assert layer.visible
    assert panel.form.layer is None
    assert panel.result_view.isHidden()
    for layer in list(viewer.layers):
        viewer.layers.remove(layer)
    qtbot.wait(50)
    assert slides.CACHE.nbytes == 0
    with pytest.raises(Exception, match="closed"):
        slide.read_level(0, 0, 0, 5, 5)


def test_what_is_made_of_a_part_of_a_result_is_left_alone_by_the_next_one(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any
) -> None:
    slide = panel.open_slide(slide_file)
    run(panel, qtbot)
    lesion = viewer.layers["square | lesion"]
    viewer.layers.selection = {lesion}
    _convert(viewer.layers, "image")
    [picture] = [a for a in viewer.layers if a.name == "square | lesion"]
    viewer.layers.selection = set(slides.result_layers(viewer, tag(slide)["slide"], slides.HEATMAP))
    for heatmap in viewer.layers.selection:
        heatmap.data = np.zeros((8, 8))  # napari stacks what is of one size
    _merge_stack(viewer.layers)
    [stack] = [a for a in viewer.layers if a.ndim == 3]
    assert slides.result_layers(viewer, tag(slide)["slide"], slides.HEATMAP) == []
    slide.affine = np.array([[1.0, 0.0, 30.0], [0.0, 1.0, 20.0], [0.0, 0.0, 1.0]])
    assert np.allclose(picture.affine.affine_matrix, slide.affine.affine_matrix), "it still lies on the slide"
    run(panel, qtbot)
    new = slides.result_layers(viewer, tag(slide)["slide"])
    assert [type(a) for a in new] == [Image, Image, Image, Labels, Shapes]
    assert isinstance(picture, Image)
    assert picture not in new
    assert picture in viewer.layers
    assert stack in viewer.layers


def test_a_result_that_cannot_be_drawn_is_kept_and_said(
    panel: Any, viewer: Any, slide_file: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise IndexError("no such axis")

    slide = panel.open_slide(slide_file)
    monkeypatch.setattr(layers, "show", fail)
    run(panel, qtbot)
    assert "could not be drawn on the slide (IndexError: no such axis)" in panel.run_view.status.text()
    assert panel.run_view.start.enabled
    assert not panel.result_view.isHidden()
    panel.results.save(tmp_path)
    qtbot.waitUntil(lambda: any("Saved to" in a.text() for a in panel.findChildren(QLabel)), timeout=SECONDS)
    assert (tmp_path / "square" / "prediction.json").is_file()
    monkeypatch.undo()
    run(panel, qtbot)
    assert panel.run_view.status.text() == ""
    assert len(slides.result_layers(viewer, tag(slide)["slide"])) == 5


def test_the_legend_follows_a_heatmaps_gamma(panel: Any, viewer: Any, slide_file: Path, qtbot: Any) -> None:
    panel.open_slide(slide_file)
    run(panel, qtbot)
    heatmap = next(a for a in viewer.layers if tag(a).get("role") == slides.HEATMAP and a.visible)
    seen: list[NDArray[np.uint8]] = []
    shown = panel.result_view.set_colours
    panel.result_view.set_colours = lambda colours, limits: (seen.append(colours), shown(colours, limits))
    heatmap.gamma = 0.5
    middle = heatmap.colormap.map(np.array([(128 / 255) ** 0.5]))[0, :3]
    assert seen[-1][128] == pytest.approx(255 * middle, abs=1)
