"""A result as layers: each lies on the tissue it is about, says what it shows, and carries µm."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.utils.notifications import notification_manager

from napari_msamil.inference.classify import classify
from napari_msamil.inference.geojson import Polygon
from napari_msamil.inference.heatmap import write_heatmap
from napari_msamil.inference.prediction import RESEARCH_USE, Prediction
from napari_msamil.patches.grid import build_table
from napari_msamil.plugin import compat, layers, regions, saved, slides
from napari_msamil.plugin.watch import watch


@pytest.fixture(scope="module")
def prediction(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Prediction:
    from napari_msamil.slide.sample import write_sample_slide

    path = write_sample_slide(tmp_path_factory.mktemp("slide") / "sample.tif", size_px=1024)
    return classify(path, model_file)


@pytest.fixture
def viewer() -> Any:
    return ViewerModel()


@pytest.fixture
def slide_layer(viewer: Any, prediction: Prediction) -> Image:
    data, keywords, _ = slides.layer_data(prediction.slide_path)
    layer = viewer.add_image(data, **keywords)
    watch(viewer)
    return layer


def edges(layer: Any) -> np.ndarray:
    """Outer borders of a layer in µm, [[top, left], [bottom, right]]."""
    return np.asarray(layer.extent.world) + np.array([[-0.5], [0.5]]) * np.asarray(layer.scale)


def test_the_lesion_mask_covers_the_slide_exactly(viewer: Any, slide_layer: Image, prediction: Prediction) -> None:
    mask = layers.show(viewer, slide_layer, prediction)[-2]
    assert isinstance(mask, Labels)
    assert np.allclose(edges(mask), edges(slide_layer), atol=1e-6)
    assert mask.data.dtype == np.uint8


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_every_heatmap_cell_lies_on_its_patch(
    viewer: Any, slide_layer: Image, prediction: Prediction, scale: int
) -> None:
    layers.show(viewer, slide_layer, prediction)
    name = prediction.table.scales[scale].name
    [heatmap] = [
        a for a in slides.result_layers(viewer, slides.tag(slide_layer)["slide"]) if slides.tag(a).get("scale") == name
    ]
    shown = prediction.heatmap(scale).array
    table = prediction.table
    width, height = table.footprint(scale)
    for row in table.rows_at(scale):
        centre_px = (table.grid[row] + 0.5) * (width, height)  # level-0 px, (x, y), from the corner
        world = slide_layer.data_to_world(centre_px[::-1] - 0.5)
        cell = tuple(np.round(heatmap.world_to_data(world)).astype(int))
        assert np.allclose(heatmap.world_to_data(world), cell, atol=1e-6)
        assert heatmap.data[cell] == shown[cell]
        assert np.isfinite(shown[cell])


def test_heatmaps_look_the_same_for_every_slide(viewer: Any, slide_layer: Image, prediction: Prediction) -> None:
    *maps, _, _ = layers.show(viewer, slide_layer, prediction)
    for layer in maps:
        assert layer.data.dtype == np.float32
        assert tuple(layer.contrast_limits) == (0.0, 1.0)
        assert layer.interpolation2d == layer.interpolation3d == "nearest", "linear eats what lies beside NaN"
        assert layer.opacity == pytest.approx(0.5)
        assert layer.colormap.name == layers.COLORMAP
        assert slides.tag(layer)["role"] == "heatmap"
    assert [slides.tag(layer)["scale"] for layer in maps] == ["2.5x", "5x", "10x"]
    assert [layer.visible for layer in maps] == [False, False, True]


def test_patches_never_looked_at_are_transparent(viewer: Any, slide_layer: Image, prediction: Prediction) -> None:
    *_, finest, _, _ = layers.show(viewer, slide_layer, prediction)
    assert np.isnan(finest.data).any(), "the sample has glass between its tissue"
    assert finest.colormap.map(np.array([np.nan]))[0, 3] == 0


def test_the_patches_with_most_attention_are_outlined_where_they_are(
    viewer: Any, slide_layer: Image, prediction: Prediction
) -> None:
    top = layers.show(viewer, slide_layer, prediction)[-1]
    table = prediction.table
    rows = np.concatenate([prediction.top_patches(scale, 10) for scale in range(3)])
    assert len(top.data) == len(rows) <= 30
    assert top.features["attention"].to_list() == pytest.approx(prediction.attention[rows].tolist())
    assert top.features["scale"].to_list() == [table.scales[int(i)].name for i in table.scale[rows]]
    assert top.features["rank"].to_list()[:3] == [1, 2, 3]
    for row, box in zip(rows, top.data, strict=True):
        size = np.array(table.footprint(int(table.scale[row])))
        level0 = np.array([slide_layer.world_to_data(top.data_to_world(corner))[::-1] for corner in box]) + 0.5
        assert level0.min(axis=0) == pytest.approx(table.grid[row] * size)
        assert level0.max(axis=0) == pytest.approx((table.grid[row] + 1) * size)
    assert not top.editable


def test_overlapping_patches_are_outlined_where_they_were_read(prediction: Prediction) -> None:
    everywhere = np.ones((8, 8), bool)
    old = prediction.table
    table = build_table(
        old.slide_size, old.slide_mpp, scales=old.scales, tissue=everywhere, lesion=everywhere, overlap=0.5
    )
    overlapping = replace(prediction, table=table)
    for row in range(0, len(table), 7):
        box = layers.patch_box(overlapping, row)[:, ::-1] + 0.5
        assert box.min(axis=0) == pytest.approx(table.coords[row], abs=0.5)
        assert np.ptp(box, axis=0) == pytest.approx(table.footprint(int(table.scale[row])))


def test_only_the_outlines_of_the_shown_scale_can_be_seen(
    viewer: Any, slide_layer: Image, prediction: Prediction
) -> None:
    top = layers.show(viewer, slide_layer, prediction)[-1]

    def seen() -> set[str]:
        return set(top.features["scale"][top.edge_color[:, 3] > 0])

    assert seen() == {"10x"}
    assert (top.face_color[:, 3] == 0).all()
    layers.show_scale(viewer, slides.tag(slide_layer)["slide"], "2.5x")
    assert seen() == {"2.5x"}
    layers.show_scale(viewer, slides.tag(slide_layer)["slide"], None)
    assert seen() == set()


def test_all_layers_stay_in_micrometres(viewer: Any, slide_layer: Image, prediction: Prediction) -> None:
    layers.show(viewer, slide_layer, prediction)
    regions.add_region_layer(viewer, slide_layer)
    assert [str(unit) for unit in viewer.layers.extent.units] == ["micrometer", "micrometer"]
    assert {layer.axis_labels for layer in viewer.layers} == {("y", "x")}


def test_a_second_result_replaces_the_first(viewer: Any, slide_layer: Image, prediction: Prediction) -> None:
    first = layers.show(viewer, slide_layer, prediction)
    other = replace(prediction, model_name="other", lesion_mask=~prediction.lesion_mask)
    second = layers.show(viewer, slide_layer, other)
    assert len(viewer.layers) == 6
    assert second == first, "filled anew"
    assert {slides.tag(a)["model"] for a in viewer.layers[1:]} == {"other"}
    assert np.array_equal(viewer.layers["sample | lesion"].data, other.lesion_mask)


def test_the_camera_stays_where_it_is(viewer: Any, slide_layer: Image, prediction: Prediction) -> None:
    camera = compat.camera(viewer)
    camera.center, camera.zoom = (0, 123.0, 456.0), 3.0
    layers.show(viewer, slide_layer, prediction)
    assert camera.center[-2:] == (123.0, 456.0)
    assert camera.zoom == 3.0


def test_the_canvas_says_what_is_shown_and_that_it_is_for_research(
    viewer: Any, slide_layer: Image, prediction: Prediction
) -> None:
    layers.show(viewer, slide_layer, prediction)
    text = compat.overlay(viewer, "text")
    uid = slides.tag(slide_layer)["slide"]
    assert text.visible
    assert RESEARCH_USE in text.text
    assert "10x: attention rank" in text.text
    layers.show_scale(viewer, uid, "2.5x")
    assert "2.5x: attention rank" in text.text
    layers.set_values(viewer, uid, prediction, "relative")
    assert "an average patch has 1" in text.text
    layers.remove_result(viewer, uid)
    layers.mark_view(viewer)
    assert not text.visible


def test_the_canvas_names_the_slide_where_there_are_several(
    viewer: Any, slide_layer: Image, prediction: Prediction, slide_file: Path
) -> None:
    layers.show(viewer, slide_layer, prediction)
    assert compat.overlay(viewer, "text").text.startswith("10x: ")
    viewer.add_image(slides.layer_data(slide_file)[0], **slides.layer_data(slide_file)[1])
    layers.mark_view(viewer)
    assert compat.overlay(viewer, "text").text.startswith(f"{slide_layer.name}\n10x: ")


def test_the_canvas_text_follows_the_eye_icons_and_removal(
    viewer: Any, slide_layer: Image, prediction: Prediction
) -> None:
    coarsest, middle, finest, mask, _ = layers.show(viewer, slide_layer, prediction)
    text = compat.overlay(viewer, "text")
    finest.visible = False
    assert "attention" not in text.text
    assert RESEARCH_USE in text.text, "the lesion outline is still shown"
    mask.visible = False
    assert not text.visible
    middle.visible = True
    assert text.visible
    assert "5x: attention rank" in text.text
    viewer.layers.remove(middle)
    assert not text.visible
    mask.visible = True
    for layer in (coarsest, finest, mask):
        viewer.layers.remove(layer)
    assert not text.visible


def without(prediction: Prediction, scale: int) -> Prediction:
    """The same result, had no patch of one scale been chosen."""
    kept = np.flatnonzero(prediction.table.scale != scale)
    return replace(prediction, table=prediction.table.take(kept), attention=prediction.attention[kept], fallback=None)


def test_the_canvas_says_why_a_heatmap_is_empty(viewer: Any, slide_layer: Image, prediction: Prediction) -> None:
    layers.show(viewer, slide_layer, without(prediction, 2))
    text = compat.overlay(viewer, "text")
    assert "10x: attention rank" in text.text
    layers.show_scale(viewer, slides.tag(slide_layer)["slide"], "2.5x")
    assert text.text.splitlines() == ["2.5x: no patch passed the lesion test", RESEARCH_USE]


def test_the_reason_for_an_empty_heatmap_is_the_true_one(prediction: Prediction) -> None:
    assert layers.why_empty(prediction, 2) == ""
    empty = without(prediction, 2)
    assert layers.why_empty(empty, 1) == ""
    square = (Polygon(np.array([[0.0, 0.0], [9.0, 0.0], [9.0, 9.0]])),)
    assert layers.why_empty(replace(empty, region=square), 2) == "2.5x: no patch of the region passed the lesion test"
    other = replace(empty, fallback="took the 16 with the largest")
    assert layers.why_empty(other, 2) == "2.5x: no patch was among those taken"
    broken = replace(prediction, attention=np.where(prediction.table.scale == 1, np.nan, prediction.attention))
    assert layers.why_empty(broken, 1) == "5x: no patch could be read"


def test_relative_values_have_a_fixed_scale_of_their_own(
    viewer: Any, slide_layer: Image, prediction: Prediction
) -> None:
    *_, finest, _, _ = layers.show(viewer, slide_layer, prediction)
    layers.set_values(viewer, slides.tag(slide_layer)["slide"], prediction, "relative")
    assert tuple(finest.contrast_limits) == prediction.heatmap(0, values="relative").limits
    assert np.array_equal(finest.data, prediction.heatmap(0, values="relative").array, equal_nan=True)


def test_calibrating_moves_every_layer_of_the_slide_and_the_camera_along(viewer: Any, bare_file: Path) -> None:
    data, keywords, _ = slides.layer_data(bare_file)
    layer = viewer.add_image(data, **keywords)
    region = regions.add_region_layer(viewer, layer)
    camera = compat.camera(viewer)
    camera.center, camera.zoom = (0, 400.0, 600.0), 2.0
    slides.calibrate(viewer, layer, 0.25)
    for one in (layer, region):
        assert one.scale == pytest.approx([0.25, 0.25])
        assert [str(unit) for unit in one.units] == ["micrometer", "micrometer"]
    assert camera.center[-2:] == pytest.approx((100.0, 150.0))
    assert camera.zoom == pytest.approx(8.0)
    assert slides.mpp_of(layer) == (0.25, 0.25)


def test_a_pixel_size_is_that_of_the_slide_and_what_was_made_of_it_and_of_no_other_picture(
    viewer: Any, bare_file: Path
) -> None:
    data, keywords, _ = slides.layer_data(bare_file)
    other = viewer.add_image(np.zeros((500, 400, 3), np.uint8), rgb=True)
    layer = viewer.add_image(data, **keywords)
    made_of_it = viewer.add_image(np.zeros((225, 300)), scale=(4, 4), translate=(1.5, 1.5))
    slides.calibrate(viewer, layer, 0.25)
    assert (tuple(other.scale), [str(unit) for unit in other.units]) == ((1, 1), ["pixel", "pixel"])
    for one, scale in ((layer, 0.25), (made_of_it, 1.0)):
        assert one.scale == pytest.approx([scale, scale])
        assert [str(unit) for unit in one.units] == ["micrometer", "micrometer"]


@pytest.mark.parametrize("mpps", [(0.25,), (0.5, 0.25)])
def test_a_shape_drawn_with_naparis_own_button_marks_the_same_tissue_after_calibration(
    viewer: Any, bare_file: Path, mpps: tuple[float, ...]
) -> None:
    data, keywords, _ = slides.layer_data(bare_file)
    layer = viewer.add_image(data, **keywords)
    early = viewer.add_shapes([[[100, 200], [100, 300], [180, 300]]], shape_type="polygon")
    early.translate = (7, 9)
    [before] = regions.polygons(early, layer)
    assert before.exterior[0] == pytest.approx([209.5, 107.5])
    drawn = [early]
    for mpp in mpps:
        slides.calibrate(viewer, layer, mpp)
        assert [str(unit) for unit in viewer.layers.extent.units] == ["micrometer", "micrometer"]
        for shapes in drawn:
            [after] = regions.polygons(shapes, layer)
            assert after.exterior == pytest.approx(before.exterior)
        # what is drawn from here on is in µm without a mark, and must follow when the pixel size is corrected
        points = np.array([layer.data_to_world(xy[::-1] - 0.5) for xy in before.exterior])
        drawn.append(viewer.add_shapes([points], shape_type="polygon", units=("um", "um")))


def test_what_went_along_with_a_pixel_size_goes_along_when_it_is_corrected(
    viewer: Any, bare_file: Path, slide_file: Path
) -> None:
    data, keywords, _ = slides.layer_data(bare_file)
    layer = viewer.add_image(data, **keywords)
    shape = (layer.data[0].shape[0], layer.data[0].shape[1])
    mask = viewer.add_labels(np.ones(shape, np.uint8))
    made_of_it = viewer.add_image(np.zeros(shape))
    square = viewer.add_shapes([[[100, 200], [100, 300], [180, 300]]], shape_type="polygon")
    before = viewer.add_points([[500, 400]], units=("um", "um"), scale=(0.5, 0.5))
    slides.calibrate(viewer, layer, 0.5)
    assert tuple(before.scale) == (0.5, 0.5), "what states its own µm keeps them"
    other, other_words, _ = slides.layer_data(slide_file)
    viewer.add_image(other, **other_words)
    slides.calibrate(viewer, layer, 0.25)
    for one in (mask, made_of_it, square):
        assert one.scale == pytest.approx([0.25, 0.25])
    assert tuple(before.scale) == (0.5, 0.5)


def test_calibrating_one_slide_leaves_what_lies_on_another(viewer: Any, bare_file: Path, slide_file: Path) -> None:
    (bare, bare_words, _), (data, keywords, _) = slides.layer_data(bare_file), slides.layer_data(slide_file)
    other = viewer.add_image(data, **keywords)
    region = regions.add_region_layer(viewer, other)
    marked = viewer.add_points([[10, 20]], units=("um", "um"))
    slides.calibrate(viewer, viewer.add_image(bare, **bare_words), 0.25)
    for layer in (other, region, marked):
        assert layer.scale == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("scale", [0, 1, 2])
@pytest.mark.parametrize("known", [False, True])
def test_a_saved_heatmap_lies_where_it_lay(
    viewer: Any, slide_layer: Image, prediction: Prediction, tmp_path: Path, scale: int, known: bool
) -> None:
    heatmap = prediction.heatmap(scale, values="attention")
    path = tmp_path / "slide" / "attention.tif"
    path.parent.mkdir()
    about = {"slide": prediction.slide_path.name, "slide_px": prediction.slide_size} if known else {}
    write_heatmap(heatmap, prediction.mpp, path, **about)
    described = saved.from_file(path, viewer)
    assert described is not None
    assert described[1]["metadata"][slides.KEY].get("slide") == (slides.tag(slide_layer)["slide"] if known else None)
    opened = viewer.add_layer(Layer.create(*described))
    shown = next(a for a in layers.show(viewer, slide_layer, prediction) if slides.tag(a).get("scale") == heatmap.name)
    assert np.array_equal(opened.data, heatmap.array, equal_nan=True)
    assert opened.extent.world == pytest.approx(np.asarray(shown.extent.world), abs=1e-3)
    assert [str(u) for u in opened.units] == ["micrometer"] * 2
    assert opened.contrast_limits == pytest.approx(heatmap.limits)


def test_the_canvas_text_speaks_of_each_result_that_is_seen(
    viewer: Any, slide_layer: Image, prediction: Prediction, tmp_path: Path
) -> None:
    """A saved one of another slide keeps its own name and warning, and takes neither from what lies beside it."""
    layers.show(viewer, slide_layer, prediction)
    about = {"slide": "other.svs", "slide_px": (10, 20), "looked_at": "region", "weak": "only 3 patches"}
    path = tmp_path / "attention_10x.tif"
    write_heatmap(prediction.heatmap(0, values="attention"), prediction.mpp, path, **about)
    described = saved.from_file(path, viewer)
    assert described is not None
    saved.mark_when_added(viewer, described)
    opened = viewer.add_layer(Layer.create(*described))
    assert "is of other.svs, which is not open as a slide" in notification_manager.records[-1].message
    assert not opened.visible
    opened.visible = True
    name = prediction.table.scales[0].name
    of_other = ["other.svs, saved result", f"{name}: saved attention (a patch's share of that of the whole region)",
                "Weak evidence: only 3 patches"]  # fmt: skip
    own = [slide_layer.name, f"{name}: attention rank in this slide (0 lowest, 1 highest)"]
    own += [f"Weak evidence: {prediction.weak}"] * bool(prediction.weak)
    text = compat.overlay(viewer, "text")
    assert text.text.rstrip().split("\n") == [*own, *of_other, RESEARCH_USE]
    layers.show_scale(viewer, slides.tag(slide_layer)["slide"], None)
    assert text.text.rstrip().split("\n") == [own[0], *own[2:], *of_other, RESEARCH_USE], "its mask is still seen"
    slides.result_layers(viewer, slides.tag(slide_layer)["slide"], slides.LESION)[0].visible = False
    assert text.text.rstrip().split("\n") == [*of_other, RESEARCH_USE]


def test_without_the_panel_too_a_saved_heatmap_is_seen_on_its_own_slide_only(
    viewer: Any, bare_file: Path, prediction: Prediction, tmp_path: Path, qtbot: Any
) -> None:
    def opened(path: Path) -> Any:
        data, keywords, _ = slides.layer_data(path)
        return viewer.add_image(data, **keywords)

    watch(viewer)
    about = {"slide": prediction.slide_path.name, "slide_px": prediction.slide_size}
    path = tmp_path / "attention_10x.tif"
    write_heatmap(prediction.heatmap(0, values="attention"), prediction.mpp, path, **about)
    described = saved.from_file(path, viewer)
    assert described is not None
    heatmap = viewer.add_layer(Layer.create(*described))
    slide = opened(prediction.slide_path)
    qtbot.waitUntil(lambda: list(viewer.layers) == [slide, heatmap])
    assert heatmap.visible
    viewer.layers.remove(slide)
    other = opened(bare_file)
    qtbot.waitUntil(lambda: not heatmap.visible)
    again = opened(prediction.slide_path)
    qtbot.waitUntil(lambda: list(viewer.layers) == [other, again, heatmap])
    assert heatmap.visible


def test_removing_a_slide_gives_its_memory_and_its_file_back(viewer: Any, slide_layer: Image, qapp: Any) -> None:
    slide = slides.slide_of(slide_layer)
    slides.CACHE.clear()
    np.asarray(slide_layer.data[0][:50, :50])
    assert slides.CACHE.nbytes > 0
    viewer.layers.remove(slide_layer)
    qapp.processEvents()
    assert slides.CACHE.nbytes == 0
    with pytest.raises(Exception, match="closed"):
        slide.read_level(0, 0, 0, 5, 5)


def test_drawn_shapes_become_polygons_in_level_0_pixels(viewer: Any, slide_layer: Image) -> None:
    shapes = regions.add_region_layer(viewer, slide_layer)
    # napari counts from the centre of the first pixel: its outer corner is (-0.5, -0.5).
    shapes.add_rectangles([[[-0.5, 9.5], [-0.5, 109.5], [49.5, 109.5], [49.5, 9.5]]])
    [polygon] = regions.polygons(shapes, slide_layer)
    assert polygon.exterior.min(axis=0) == pytest.approx([10, 0])
    assert polygon.exterior.max(axis=0) == pytest.approx([110, 50])


def test_all_shapes_count_whichever_is_selected(viewer: Any, slide_layer: Image) -> None:
    shapes = regions.add_region_layer(viewer, slide_layer)
    shapes.add_rectangles([[[0, 0], [0, 10], [10, 10], [10, 0]], [[50, 50], [50, 90], [90, 90], [90, 50]]])
    for selected in (set(), {1}, {0, 1}):  # napari selects the shape that was drawn last
        shapes.selected_data = selected
        assert [p.exterior.min() for p in regions.polygons(shapes, slide_layer)] == pytest.approx([0.5, 50.5])


def test_an_ellipse_is_followed_not_boxed(viewer: Any, slide_layer: Image) -> None:
    shapes = regions.add_region_layer(viewer, slide_layer)
    shapes.add_ellipses([[[0, 0], [0, 200], [100, 200], [100, 0]]])
    [polygon] = regions.polygons(shapes, slide_layer)
    x, y = polygon.exterior.T - 0.5
    assert ((x - 100) / 100) ** 2 + ((y - 50) / 50) ** 2 == pytest.approx(np.ones(len(x)))


def test_lines_enclose_nothing_and_are_refused_by_name(viewer: Any, slide_layer: Image) -> None:
    shapes = regions.add_region_layer(viewer, slide_layer)
    shapes.add_lines([[[0, 0], [10, 10]]])
    with pytest.raises(Exception, match="no closed shape"):
        regions.polygons(shapes, slide_layer)


def duplicate(viewer: Any, layer: Any) -> Any:
    """What napari's "Duplicate Layer" does."""
    from napari.layers import Layer

    data, state, kind = layer.as_layer_data_tuple()
    viewer.layers.insert(viewer.layers.index(layer) + 1, Layer.create(deepcopy(data), state, kind))
    return viewer.layers[viewer.layers.index(layer) + 1]


def test_removing_a_copy_leaves_the_original_readable_and_its_result_in_place(
    viewer: Any, slide_layer: Image, prediction: Prediction, qapp: Any
) -> None:
    shown = layers.show(viewer, slide_layer, prediction)
    copy = duplicate(viewer, slide_layer)
    assert slides.tag(copy)["slide"] != slides.tag(slide_layer)["slide"]
    assert slides.result_layers(viewer, slides.tag(copy)["slide"]) == []
    viewer.layers.remove(copy)
    qapp.processEvents()
    slides.CACHE.clear()
    assert np.array_equal(
        np.asarray(slide_layer.data[0][:50, :60]), slides.slide_of(slide_layer).read_level(0, 0, 0, 60, 50)
    )
    assert slides.result_layers(viewer, slides.tag(slide_layer)["slide"]) == shown
    viewer.layers.remove(slide_layer)
    qapp.processEvents()
    assert slides.CACHE.nbytes == 0


def test_a_file_opened_twice_is_calibrated_and_closed_once_at_a_time(viewer: Any, bare_file: Path, qapp: Any) -> None:
    watch(viewer)
    first, second = (
        viewer.add_image(data, **keywords) for data, keywords, _ in map(slides.layer_data, [bare_file] * 2)
    )
    slides.calibrate(viewer, second, 0.5)
    assert first.scale == pytest.approx([1.0, 1.0])
    assert slides.mpp_of(first) is None
    viewer.layers.remove(second)
    qapp.processEvents()
    assert slides.slide_of(first).read_level(0, 0, 0, 5, 5).shape == (5, 5, 3)
    with pytest.raises(Exception, match="closed"):
        slides.slide_of(second).read_level(0, 0, 0, 5, 5)
