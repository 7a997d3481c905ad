"""The window that the command line opens: the panel docked, the slide chosen and, if asked, the run under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import napari
import pytest

from napari_msamil.plugin import __main__ as window
from napari_msamil.plugin.panel import MilPanel

pytestmark = pytest.mark.gui


@pytest.fixture
def opened(make_napari_viewer: Any, monkeypatch: pytest.MonkeyPatch, npe2pm: Any) -> Any:
    """Opens the window as the program does, with this installation's plugin, and finds the panel in it."""
    from npe2 import PluginManifest

    npe2pm.register(PluginManifest.from_distribution("napari-msamil"))
    viewer = make_napari_viewer()
    monkeypatch.setattr(napari, "Viewer", lambda **keywords: viewer)
    panels: list[MilPanel] = []

    def open_window(slide: Path, **keywords: Any) -> tuple[Any, MilPanel]:
        assert window.open_window(slide, **keywords) is viewer
        [dock] = viewer.window.dock_widgets.values()
        panels.append(dock)
        return viewer, dock

    yield open_window
    for panel in panels:
        panel.shut_down()


def test_the_window_shows_the_slide_and_the_panel_with_both_chosen(
    opened: Any, slide_file: Path, model_file: Path
) -> None:
    viewer, panel = opened(slide_file, mpp=None, model=str(model_file), run=False)
    assert isinstance(panel, MilPanel)
    assert panel.form.layer == viewer.layers["square"]
    assert panel.form.file.value == model_file
    assert panel.run_view.start.enabled
    assert not panel.running


def test_the_run_starts_at_once_where_that_is_asked(opened: Any, bare_file: Path, model_file: Path, qtbot: Any) -> None:
    viewer, panel = opened(bare_file, mpp=1.0, model=str(model_file), run=True)
    assert panel.running
    qtbot.waitUntil(lambda: not panel.running, timeout=120_000)
    result = panel.result_of(viewer.layers["bare"])
    assert result is not None, panel.run_view.status.text()
    assert result.mpp == (1.0, 1.0)


def test_the_arguments_of_the_program_reach_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(window, "open_window", lambda slide, **keywords: given.append((slide, keywords)))
    monkeypatch.setattr(napari, "run", lambda: given.append("stays open"))
    window.main(["a.svs", "--mpp", "0.5", "--run"])
    assert given == [(Path("a.svs"), {"mpp": 0.5, "model": "demo", "run": True}), "stays open"]
