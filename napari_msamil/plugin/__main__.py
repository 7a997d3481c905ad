"""Opens napari with one slide and the panel: what `msamil view` and `msamil demo` start."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import napari
from napari.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Open the window and stay until it is closed.

    Args:
        arguments: of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m napari_msamil.plugin", description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--mpp", type=float, help="µm per pixel of the full resolution")
    parser.add_argument("--model", default="demo", help='"demo" or a model file')
    parser.add_argument("--run", action="store_true", help="classify at once")
    given = parser.parse_args(arguments)
    open_window(given.slide, mpp=given.mpp, model=given.model, run=given.run)
    napari.run()


def open_window(slide: Path, *, mpp: float | None, model: str, run: bool) -> napari.Viewer:
    """A viewer with the panel, the slide chosen in it and, if asked, its classification under way."""
    unsized = get_settings().application.window_size is None  # napari remembers none, and makes a small one
    viewer = napari.Viewer(title="napari-msamil", ndisplay=2)
    _, panel = viewer.window.add_plugin_dock_widget("napari-msamil", "Multi-scale MIL")
    if unsized:
        window = panel.window()
        window.setGeometry(window.screen().availableGeometry())  # where no window manager knows "maximised"
        window.showMaximized()
    panel.form.choose_model(model)
    panel.open_slide(slide, mpp, then=panel.classify if run else None)
    return viewer


if __name__ == "__main__":
    main()
