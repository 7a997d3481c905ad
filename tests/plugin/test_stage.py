"""All of the slide is seen, whatever becomes of the canvas, until the user moves the view: in a window on a screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_msamil.plugin import compat
from napari_msamil.plugin.panel import MilPanel

pytestmark = pytest.mark.gui


def share_of_canvas(viewer: Any) -> float:
    """Width of the picture on the screen over that of the canvas; the slide is wide, and touches left and right."""
    low, high = viewer.layers["wide"].extent.world
    return float(compat.camera(viewer).zoom * (high - low)[-1] / viewer.window._qt_viewer.canvas.native.width())


def wait_for_all_of_it(viewer: Any, qtbot: Any) -> None:
    qtbot.wait(300)  # until docks have taken their room
    qtbot.waitUntil(lambda: 0.85 < share_of_canvas(viewer) <= 1, timeout=10_000)


def resize(viewer: Any, width: int, qtbot: Any) -> None:
    canvas = viewer.window._qt_viewer.canvas.native
    before = canvas.width()
    viewer.window.resize(width, 650)
    qtbot.waitUntil(lambda: canvas.width() != before, timeout=10_000)
    qtbot.wait(100)  # for what would be done a moment later


@pytest.fixture
def wide(make_slide: Callable[..., Path]) -> Path:
    return make_slide("wide.tif", size=(2400, 600))


@pytest.fixture
def docked(make_napari_viewer: Any) -> Iterator[tuple[Any, MilPanel]]:
    """A window on the screen and the panel in its dock."""
    viewer = make_napari_viewer(show=True)
    panel = MilPanel(viewer)
    viewer.window.add_dock_widget(panel, area="right")
    yield viewer, panel
    panel.shut_down()


def test_the_first_slide_and_a_canvas_of_another_size_show_all_of_it(
    docked: tuple[Any, MilPanel], wide: Path, qtbot: Any
) -> None:
    viewer, panel = docked
    panel.open_slide(wide)  # before the window has made room for the panel
    wait_for_all_of_it(viewer, qtbot)
    for width in (1300, 1000):
        resize(viewer, width, qtbot)
        wait_for_all_of_it(viewer, qtbot)
    panel.shut_down()
    zoom = compat.camera(viewer).zoom
    resize(viewer, 1300, qtbot)
    assert compat.camera(viewer).zoom == zoom


def test_a_view_that_the_user_moved_stays_until_all_is_asked_for(
    docked: tuple[Any, MilPanel], wide: Path, qtbot: Any
) -> None:
    viewer, panel = docked
    panel.open_slide(wide)
    wait_for_all_of_it(viewer, qtbot)
    camera = compat.camera(viewer)
    camera.zoom *= 3
    moved = (*camera.center, camera.zoom)
    resize(viewer, 1300, qtbot)
    assert np.allclose((*camera.center, camera.zoom), moved)
    viewer.reset_view()
    resize(viewer, 1000, qtbot)
    wait_for_all_of_it(viewer, qtbot)


def test_all_of_a_slide_is_seen_still_when_its_pixel_size_was_entered(
    docked: tuple[Any, MilPanel], make_slide: Callable[..., Path], qtbot: Any
) -> None:
    viewer, panel = docked
    slide = panel.open_slide(make_slide("wide.tif", size=(2400, 600), mpp=None))
    wait_for_all_of_it(viewer, qtbot)
    panel.form.mpp.value = 0.25
    panel.form.mpp.native.editingFinished.emit()
    assert tuple(slide.scale) == (0.25, 0.25)
    wait_for_all_of_it(viewer, qtbot)
    resize(viewer, 1000, qtbot)
    wait_for_all_of_it(viewer, qtbot)


def test_home_shows_the_chosen_slide_and_not_what_is_hidden(
    docked: tuple[Any, MilPanel], wide: Path, make_slide: Callable[..., Path], qtbot: Any
) -> None:
    viewer, panel = docked
    panel.open_slide(make_slide("large.tif", mpp=20.0))
    panel.open_slide(wide)
    wait_for_all_of_it(viewer, qtbot)
    viewer.reset_view()
    wait_for_all_of_it(viewer, qtbot)
    viewer.layers["large"].visible = True
    viewer.reset_view()
    assert share_of_canvas(viewer) < 0.5, "who looks at both sees both"


@pytest.mark.filterwarnings("ignore:Inconsistent units")
def test_a_stack_beside_the_slide_leaves_all_of_the_slide_in_sight(
    docked: tuple[Any, MilPanel], wide: Path, qtbot: Any
) -> None:
    viewer, panel = docked
    panel.open_slide(wide)
    wait_for_all_of_it(viewer, qtbot)
    viewer.add_image(np.zeros((5, 80, 60), np.uint8))
    viewer.reset_view()
    wait_for_all_of_it(viewer, qtbot)
    resize(viewer, 1000, qtbot)
    wait_for_all_of_it(viewer, qtbot)


@pytest.mark.parametrize("moved", [False, True])
def test_a_panel_that_comes_later_hides_nothing_and_moves_nothing(
    make_napari_viewer: Any, wide: Path, qtbot: Any, moved: bool
) -> None:
    viewer = make_napari_viewer(show=True)
    first = MilPanel(viewer)
    first.open_slide(wide)
    first.shut_down()
    viewer.reset_view()
    camera = compat.camera(viewer)
    if moved:
        camera.zoom *= 3
    before = (*camera.center, camera.zoom)
    panel = MilPanel(viewer)
    viewer.window.add_dock_widget(panel, area="right")
    if moved:
        qtbot.wait(300)
        assert np.allclose((*camera.center, camera.zoom), before)
        viewer.reset_view()
        resize(viewer, 900, qtbot)
    wait_for_all_of_it(viewer, qtbot)
    panel.shut_down()
