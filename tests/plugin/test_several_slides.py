"""Several slides in one window: each keeps its result, and only the evidence of what is seen is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers._layer_actions import _duplicate_layer
from napari.utils._test_utils import read_only_mouse_event
from napari.utils.interactions import mouse_move_callbacks, mouse_press_callbacks, mouse_release_callbacks
from napari.utils.notifications import notification_manager

from napari_msamil.inference.prediction import RESEARCH_USE
from napari_msamil.plugin import compat
from napari_msamil.plugin.panel import MilPanel
from pressing import SECONDS, layer_names, run, shown

pytestmark = pytest.mark.gui


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
    first, second = pair
    camera = compat.camera(viewer)
    camera.center, camera.zoom = (0, 100, 200), 3.0
    second.opacity = 0.5
    first.visible = True
    viewer.layers["first | attention 10x"].visible = True
    viewer.layers["first | attention 2.5x"].visible = True
    assert "10x: attention rank" in compat.overlay(viewer, "text").text, "the map on top"
    run(panel, qtbot)
    assert (first.visible, panel.form.layer) == (True, second)
    assert camera.center[-2:] == (100, 200)
    assert camera.zoom == 3.0


def test_the_panel_follows_who_goes_to_another_slide_by_the_eye_icons(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    for shown_one, other in ((one, two), (two, one)):
        shown_one.visible = True
        qtbot.waitUntil(lambda slide=shown_one: panel.form.layer == slide, timeout=SECONDS)
        assert not other.visible, "of two that lie over each other one is seen"
    two.translate = (0, 1300)
    one.visible = True
    qtbot.wait(50)
    assert (panel.form.layer, two.visible) == (two, True), "side by side both are seen"
    two.visible = False
    qtbot.waitUntil(lambda: panel.form.layer == one, timeout=SECONDS)
    assert one.visible


@pytest.mark.parametrize("how", ["transparent", "blended", "turned, beside", "grid"])
def test_a_slide_that_is_seen_through_or_beside_another_is_not_left(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any, how: str
) -> None:
    one, two = pair
    panel.form.choose(one)
    if how == "transparent":
        two.opacity = 0.5
    elif how == "blended":
        two.blending = "minimum"
    elif how == "turned, beside":
        for slide in (one, two):
            slide.rotate = 30
        two.translate = -(1 + 900 / 2 + 600 / 2) * np.array([np.cos(np.pi / 6), np.sin(np.pi / 6)])
    else:
        compat.grid(viewer).enabled = True
    two.visible = True
    qtbot.wait(50)
    assert (panel.form.layer, one.visible) == (one, True)
    two.opacity = 1
    panel.result_view.scale.value = "10x"
    qtbot.wait(50)
    assert (panel.form.layer, one.visible) == (one, True), "only the eyes of slides lead from one to another"


@pytest.mark.parametrize("how", ["the grid is left", "it is picked again"])
def test_a_slide_that_another_came_to_lie_over_is_shown_alone(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any, how: str
) -> None:
    one, two = pair
    run(panel, qtbot)
    panel.form.choose(one)
    before = shown(viewer)
    grid = compat.grid(viewer)
    grid.enabled = True
    two.visible = True
    qtbot.waitUntil(lambda: viewer.layers["second | lesion"].visible, timeout=SECONDS)
    if how == "it is picked again":
        two.opacity = 0.5
    grid.enabled = False
    if how == "it is picked again":
        assert two.visible
        panel.form.slide.native.activated.emit(panel.form.slide.native.currentIndex())
    assert shown(viewer) == before
    assert panel.form.layer == one


def show_only(viewer: Any, layer: Any) -> dict[Any, bool]:
    """What napari does where an eye is clicked with Alt; gives what it restores where that is done again."""
    before = {other: other.visible for other in viewer.layers}
    for other in viewer.layers:
        other.visible = other == layer
    return before


def test_show_only_this_takes_nothing_away_from_a_slide_that_comes_back(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    run(panel, qtbot)
    viewer.layers["second | lesion"].visible = False
    of_second = shown(viewer)
    panel.form.choose(one)
    panel.form.draw.native.click()
    viewer.layers.selection.active = one
    of_first = shown(viewer)
    assert "first | region" in of_first
    before = show_only(viewer, two)
    qtbot.waitUntil(lambda: panel.form.layer == two, timeout=SECONDS)
    assert shown(viewer) == of_second
    for layer, visible in before.items():
        layer.visible = visible
    qtbot.waitUntil(lambda: panel.form.layer == one, timeout=SECONDS)
    for slide, expected in ((one, of_first), (two, of_second), (one, of_first)):
        panel.form.choose(slide)
        qtbot.wait(50)
        assert shown(viewer) == expected
    show_only(viewer, two)
    qtbot.wait(50)
    panel.form.choose(one)
    assert shown(viewer) == of_first
    one.visible = False
    qtbot.wait(50)
    viewer.layers["first | attention 5x"].visible = False
    qtbot.wait(50)
    one.visible = True
    qtbot.wait(50)
    assert not viewer.layers["first | attention 5x"].visible, "it was hidden for itself"


@pytest.mark.parametrize("name", ["2.5x", "10x"])
def test_a_heatmap_that_is_shown_alone_is_the_only_one_when_its_slide_comes_back(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any, name: str
) -> None:
    one, _ = pair
    panel.form.choose(one)
    show_only(viewer, viewer.layers[f"first | attention {name}"])
    qtbot.wait(50)
    lesion = viewer.layers["first | lesion"]
    lesion.visible = True
    qtbot.wait(50)
    lesion.visible = False
    qtbot.wait(50)
    one.visible = True
    qtbot.wait(50)
    assert shown(viewer) == ["first", f"first | attention {name}", "first | top patches"], "the lesion was hidden since"


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


def test_evidence_of_another_slide_brings_it_along_where_no_slide_is_seen(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    run(panel, qtbot)
    for layer in viewer.layers:
        layer.visible = layer.name == "first | attention 10x"
    qtbot.waitUntil(lambda: panel.form.layer == one, timeout=SECONDS)
    qtbot.wait(50)
    assert shown(viewer) == ["first", "first | attention 10x", "first | lesion", "first | top patches"]
    panel.form.choose(two)
    assert shown(viewer) == ["second", "second | attention 10x", "second | lesion", "second | top patches"]


def test_evidence_is_hidden_with_its_slide_while_another_picture_is_seen_and_comes_back_with_it(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    two.opacity = 0.5
    heatmap = viewer.layers["first | attention 10x"]
    one.visible = heatmap.visible = True
    qtbot.waitUntil(lambda: viewer.layers["first | lesion"].visible, timeout=SECONDS)  # as the slide was left
    qtbot.wait(200)
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


def test_a_copy_of_evidence_is_seen_on_its_own_slide_only_and_named(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    panel.form.choose(one)
    text = compat.overlay(viewer, "text")
    copies = []
    for name in ("first | attention 5x", "first | lesion"):
        viewer.layers.selection = {viewer.layers[name]}
        before = list(viewer.layers)
        _duplicate_layer(viewer.layers)
        copies += [layer for layer in viewer.layers if layer not in before]
    heatmap, lesion = copies
    assert lesion.contour == viewer.layers["first | lesion"].contour > 0
    assert "copy of lesion" in text.text
    viewer.layers["first | lesion"].metadata["msamil"]["weak"] = "of the live one"
    lesion.metadata["msamil"]["weak"] = "of the copy"
    heatmap.visible = True
    lines = text.text.rstrip().split("\n")
    assert {"Weak evidence: of the live one", "Weak evidence: of the copy"} < set(lines), "each speaks for itself"
    lesion.visible = False
    panel.result_view.scale.value = "Off"
    assert not heatmap.visible
    heatmap.visible = True
    assert panel.result_view.scale.value == "copy of 5x"
    assert "5x: copy of attention rank" in text.text
    run(panel, qtbot)
    assert not heatmap.visible, "the new result is seen in its place"
    assert viewer.layers["first | attention 10x"].visible
    panel.form.choose(two)
    heatmap.visible = True
    qtbot.waitUntil(lambda: panel.form.layer == one, timeout=SECONDS)
    assert (one.visible, two.visible) == (True, False)
    panel.shut_down()
    lesion.visible = True
    qtbot.wait(200)
    two.visible, one.visible = True, False
    qtbot.waitUntil(lambda: not (heatmap.visible or lesion.visible), timeout=SECONDS)
    assert "copy of" not in text.text
    for layer in viewer.layers:
        layer.visible = layer in (one, lesion)
    qtbot.wait(200)
    assert RESEARCH_USE in text.text


def test_the_panel_is_of_a_slide_that_is_seen(
    panel: Any, viewer: Any, pair: tuple[Any, Any], make_slide: Any, qtbot: Any
) -> None:
    one, two = pair
    third = panel.open_slide(make_slide("third.tif"))
    two.opacity = third.opacity = 0.5
    one.visible = two.visible = True
    qtbot.wait(50)
    assert panel.form.layer == third
    third.visible = False
    qtbot.waitUntil(lambda: panel.form.layer == two, timeout=SECONDS)


def test_a_slide_that_was_left_by_the_eye_of_anothers_evidence_comes_back_whole(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    run(panel, qtbot)
    before = shown(viewer)
    viewer.layers["first | attention 10x"].visible = True
    qtbot.waitUntil(lambda: panel.form.layer == one, timeout=SECONDS)
    qtbot.wait(50)
    maps = [name for name in shown(viewer) if "attention" in name]
    assert maps == ["first | attention 10x"], "what was clicked is seen alone, though 5x waited"
    panel.form.choose(two)
    qtbot.wait(50)
    assert shown(viewer) == before


def test_a_region_that_is_half_drawn_when_its_slide_is_left_ends_at_the_corners_that_were_clicked(
    panel: Any, viewer: Any, pair: tuple[Any, Any]
) -> None:
    one, two = pair
    panel.form.draw.native.click()
    region = panel.form.region.value

    def mouse(call: Any, kind: str, place: tuple[float, float]) -> None:
        call(region, read_only_mouse_event(
            type=kind, is_dragging=False, position=place, view_direction=None, dims_displayed=(0, 1),
            pos=np.array(place), modifiers=[],
        ))  # fmt: skip

    clicked = [(10, 10), (10, 200), (200, 200)]
    for place in clicked:
        mouse(mouse_move_callbacks, "mouse_move", place)
        mouse(mouse_press_callbacks, "mouse_press", place)
        mouse(mouse_release_callbacks, "mouse_release", place)
    mouse(mouse_move_callbacks, "mouse_move", (300, 20))
    assert len(region.data[0]) == 4, "napari draws as far as the mouse"
    panel.form.choose(one)
    panel.form.choose(two)
    np.testing.assert_allclose([region.data_to_world(corner) for corner in region.data[0]], clicked)
    assert region.mode == "pan_zoom"


def test_the_next_patch_is_seen_whatever_slide_lay_over_it(
    panel: Any, viewer: Any, pair: tuple[Any, Any], qtbot: Any
) -> None:
    one, two = pair
    panel.form.choose(one)
    two.opacity = 0.5
    two.visible = True
    qtbot.wait(50)
    assert panel.form.layer == one
    viewer.layers.selection.active = two
    panel.result_view.next.native.click()
    assert [slide.visible for slide in pair] == [True, False]
    assert viewer.layers.selection.active == one, "a hidden layer is none to work on"


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
    assert third.form.layer == second, "it lies over the one that is selected"
    third.shut_down()
    first.visible, second.opacity = True, 0.5
    fourth = MilPanel(viewer)
    assert fourth.form.layer == first, "both are seen, and this one is selected"
    fourth.shut_down()


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
