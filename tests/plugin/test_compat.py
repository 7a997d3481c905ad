"""What the plugin mends in the libraries below it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from vispy import gloo

from napari_msamil.plugin import compat
from napari_msamil.plugin.watch import watch


@pytest.mark.gui
def test_a_shader_program_that_was_deleted_is_not_taken_for_the_one_in_use(make_napari_viewer: Any, qtbot: Any) -> None:
    """Else the next program gets its handle, is never bound, and drawing ends the process."""
    viewer = make_napari_viewer(show=True)
    watch(viewer)
    canvas = viewer.window._qt_viewer.canvas._scene_canvas
    qtbot.wait(100)
    canvas.set_current()
    program = gloo.Program(
        "attribute vec2 place; void main() { gl_Position = vec4(place, 0.0, 1.0); }",
        "void main() { gl_FragColor = vec4(1.0); }",
        count=3,
    )
    program["place"] = np.zeros((3, 2), np.float32)
    program.draw("triangles")
    in_use = canvas.context.shared.parser.env
    deleted = in_use["current_program"]
    assert deleted > 0
    program.delete()
    canvas.context.flush_commands()
    assert in_use["current_program"] != deleted


def test_layers_that_are_removed_together_hold_the_window_once() -> None:
    """napari collects garbage, a third of a second in a real session, at the end of each removal or batch of them."""
    viewer = ViewerModel()
    kept, *others = (viewer.add_points([[0, 0]]) for _ in range(4))
    if not hasattr(viewer.layers, "batched_update"):
        pytest.skip("napari before 0.9 does not collect garbage here")
    batches: list[Any] = []
    viewer.layers.events.end_batch.connect(batches.append)
    compat.remove(viewer, others)
    assert (list(viewer.layers), len(batches)) == ([kept], 1)
    compat.remove(viewer, [])
    assert len(batches) == 1, "nothing to remove must cost nothing"
