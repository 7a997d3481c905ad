"""Looking at a slide in a real napari window: time to the first picture, and how long a pan holds up the event loop.

All on one canvas of about 1000 x 850 px in one run, the three kinds of layer in turns:

- ours: the layer that the plugin's reader makes;
- floor: a small image in memory, which needs no reading at all: what drawing itself costs;
- plain: the usual way, `dask.array.from_zarr` of tifffile's levels.

A pan moves the view by 60 screen px, as a drag does, at zooms from full resolution to the whole slide; its block is the
time from setting the camera until the event loop is free again. Needs a display:

    QT_API=pyqt5 xvfb-run -a -s "-screen 0 1600x1100x24" python tests/benchmarks/bench_view.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
SLIDE = Path(os.environ.get("MSAMIL_TEST_DATA", ROOT / "../shared/data")) / "slides" / "tubularadenoma-flat_HE.tif"
CANVAS = (850, 1000)  # height, width
ZOOMS = (1.0, 0.6, 0.35, 0.27, 0.15, 0.08)  # screen px per level-0 px
START_PX = (6000.0, 10500.0)  # level-0 (row, column), in tissue
STEP_PX = 60.0
FIELD_PX = 900.0


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Seconds to the first picture and milliseconds per pan, idle and while a classification runs."""
    cold = _child("first", quick=quick)["seconds"]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        _write_model(model)
        facts = _child("pan", "--model", str(model), quick=quick)
    idle, busy = facts["idle"], facts["busy"]
    median = {kind: float(np.median(idle[kind])) for kind in idle}
    late = {kind: float(np.percentile(idle[kind], 95)) for kind in idle}
    late_busy = {kind: float(np.percentile(busy[kind], 95)) for kind in busy}
    height, width = facts["canvas"]
    return [
        _row("first picture", facts["first"], "s", target=1.0),
        _row("first picture, imports included", cold, "s"),
        {
            **_row(f"pan {width}x{height}, median", median["ours"], "ms"),
            "baseline": f"floor {median['floor']:.1f}, plain {median['plain']:.1f} ms",
            "ratio": median["ours"] / median["floor"],
            "target": "<= 1.3x floor",
            "met": median["ours"] <= 1.3 * median["floor"],
        },
        {
            **_row("pan, p95", late["ours"], "ms", target=60.0),
            "baseline": f"floor {late['floor']:.1f}, plain {late['plain']:.1f} ms",
            "ratio": late["ours"] / late["floor"],
        },
        {
            **_row("pan during classification, p95", late_busy["ours"], "ms", target=100.0),
            "baseline": f"floor {late_busy['floor']:.1f}, plain {late_busy['plain']:.1f} ms",
            "ratio": late_busy["ours"] / late_busy["floor"],
        },
        {
            **_row("pan during classification, median", float(np.median(busy["ours"])), "ms"),
            "baseline": f"floor {np.median(busy['floor']):.1f}, plain {np.median(busy['plain']):.1f} ms",
        },
        _row("next field (90 % of the canvas), p95", float(np.percentile(facts["fields"], 95)), "ms", target=250.0),
        _row("slide cache after panning", facts["cache_mb"], "MB"),
    ]


def _row(name: str, value: float, unit: str, *, target: float | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "value": value, "unit": unit}
    if target is not None:
        row |= {"target": f"< {target:g} {unit}", "met": value < target}
    return row


def _write_model(path: Path) -> None:
    from napari_msamil.models.card import OnEmpty, Thresholds, preset_card
    from napari_msamil.models.model import build_model, save_model

    card = preset_card(
        "demo", classes=["a", "b"], thresholds=Thresholds(lesion_fraction=1.0), on_empty=OnEmpty(policy="tissue")
    )
    save_model(build_model(card, seed=0), path)


def _child(task: str, *options: str, quick: bool) -> dict[str, Any]:
    """Measure in a fresh process: imports count once, and the process's memory is its own."""
    command = [sys.executable, __file__, "--task", task, *options] + ["--quick"] * quick
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}; is there a display?\n{done.stderr[-2000:]}"
        )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


class _Window:
    """A napari window with a canvas of a stated size."""

    def __init__(self) -> None:
        import napari
        from qtpy.QtWidgets import QApplication

        from napari_msamil.plugin import compat

        self.viewer = napari.Viewer(show=True, show_welcome_screen=False)
        self.app = QApplication.instance()
        self.camera = compat.camera(self.viewer)
        self.spin(0.3)
        for _ in range(3):
            height, width = self.canvas
            frame = self.viewer.window._qt_window  # a benchmark may: the plugin itself never does
            frame.resize(frame.width() + CANVAS[1] - width, frame.height() + CANVAS[0] - height)
            self.spin(0.3)

    @property
    def canvas(self) -> tuple[int, int]:
        height, width = self.viewer.canvas.size
        return int(height), int(width)

    def spin(self, seconds: float) -> None:
        """Let the event loop run."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.app.processEvents()
            time.sleep(0.003)

    def go(self, centre: tuple[float, float]) -> float:
        """Move the view; milliseconds until the event loop is free again."""
        start = time.perf_counter()
        self.camera.center = (0.0, *centre)
        self.app.processEvents()
        return (time.perf_counter() - start) * 1e3

    def pans(self, kind: str, zoom: float, count: int, seed: int) -> list[float]:
        """Blocks of `count` pans along a gently curving path."""
        centre = np.array([1024.0, 1024.0] if kind == "floor" else START_PX)
        self.camera.zoom = 1.0 if kind == "floor" else zoom
        self.go(tuple(centre))
        self.spin(0.3)
        blocks = []
        for i in range(count):
            angle = 2.3 * seed + 0.5 * np.sin(i / 6)
            step = STEP_PX / self.camera.zoom * np.array([np.sin(angle), np.cos(angle)])
            # the small image is panned to and fro, so that it always fills the canvas
            centre = centre + (step * (1 - 2 * (i % 2)) if kind == "floor" else step)
            blocks.append(self.go(tuple(centre)))
            time.sleep(0.01)  # a hand is no faster than this
        return blocks

    def fields(self, count: int) -> list[float]:
        """Blocks of jumps to the next field at half the full resolution, half a second apart."""
        self.camera.zoom = 0.5
        centre = np.array(START_PX)
        self.go(tuple(centre))
        self.spin(0.5)
        blocks = []
        for i in range(count):
            centre = centre + FIELD_PX / 0.5 * np.array([(0, 1), (1, 0), (0, -1), (-1, 0)][i // 3 % 4])
            blocks.append(self.go(tuple(centre)))
            self.spin(0.5)
        return blocks


def _add(viewer: Any, kind: str) -> None:
    if kind == "floor":
        pixels = np.random.default_rng(0).integers(0, 255, (2048, 2048, 3), dtype=np.uint8)
        viewer.add_image(pixels, rgb=True)
    elif kind == "plain":
        import dask.array as da
        import tifffile
        import zarr

        file = tifffile.TiffFile(SLIDE)
        stores = [file.aszarr(series=0, level=i) for i in range(len(file.series[0].levels))]
        viewer.add_image([da.from_zarr(zarr.open_array(s, mode="r")) for s in stores], rgb=True, multiscale=True)
    else:
        from napari_msamil.plugin import slides
        from napari_msamil.plugin.watch import watch

        watch(viewer)
        slides.CACHE.clear()
        data, keywords, _ = slides.layer_data(SLIDE)
        viewer.add_image(data, **keywords)


def _measure(window: _Window, rounds: int, count: int) -> dict[str, list[float]]:
    """Blocks by kind of layer, all kinds in turns."""
    blocks: dict[str, list[float]] = {"floor": [], "ours": [], "plain": []}
    for seed in range(rounds):
        for kind in blocks:
            window.viewer.layers.clear()
            _add(window.viewer, kind)
            window.spin(0.3)
            for place, zoom in enumerate(ZOOMS):
                blocks[kind] += window.pans(kind, zoom, count, seed * len(ZOOMS) + place)
    return blocks


def _first_picture(window: _Window, path: Path) -> float:
    """Seconds from "open this file" until its picture is on the canvas."""
    start = time.perf_counter()
    from napari_msamil.plugin.reader import get_reader

    reader = get_reader(path)
    assert reader is not None, f"{path} is not taken for a slide"
    [(data, keywords, _)] = reader(path)
    window.viewer.add_image(data, **keywords)
    window.viewer.fit_to_view()
    window.app.processEvents()
    return time.perf_counter() - start


def _pan_task(model: Path, quick: bool) -> dict[str, Any]:
    from napari_msamil.plugin import slides
    from napari_msamil.plugin.panel import MilPanel

    window = _Window()
    panel = MilPanel(window.viewer)
    window.viewer.window.add_dock_widget(panel, name="Multi-scale MIL", area="right", tabify=False)
    panel.setVisible(False)
    panel.parent().setVisible(False)  # the canvas keeps its size
    window.spin(1.5)
    rounds, count = (1, 8) if quick else (2, 20)
    facts: dict[str, Any] = {"canvas": window.canvas, "first": _first_picture(window, SLIDE)}
    facts["idle"] = _measure(window, rounds, count)
    window.viewer.layers.clear()
    _add(window.viewer, "ours")
    facts["fields"] = window.fields(6 if quick else 16)
    facts["cache_mb"] = slides.CACHE.nbytes / 1e6
    facts["busy"] = _while_classifying(window, model, rounds, count)
    window.viewer.layers.clear()
    window.viewer.close()
    return facts


def _while_classifying(window: _Window, model: Path, rounds: int, count: int) -> dict[str, list[float]]:
    from napari_msamil.inference.classify import Request
    from napari_msamil.plugin.worker import Run

    state = {"patches": False, "over": False}
    runs: list[Run] = []

    def start() -> None:
        runs.append(Run(Request(SLIDE, model, mpp=0.5, device="cpu")))
        runs[-1].progressed.connect(lambda progress: state.update(patches=progress.stage == "patches"))
        runs[-1].succeeded.connect(start)  # the work goes on for as long as the pans do
        runs[-1].failed.connect(lambda message: state.update(over=True))
        runs[-1].start()

    start()
    while not (state["patches"] or state["over"]):
        window.spin(0.1)
    blocks = _measure(window, rounds, count)
    assert not state["over"], "the classification ended with an error"
    runs[-1].stop()
    while Run.unfinished:
        window.spin(0.1)
    return blocks


def main() -> None:
    """Print the table, or, as a child, measure one thing and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--task", choices=["first", "pan"], help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task == "first":
        window = _Window()
        print("\n" + json.dumps({"seconds": _first_picture(window, SLIDE)}))
        window.viewer.close()
    elif arguments.task == "pan":
        print("\n" + json.dumps(_pan_task(arguments.model, arguments.quick)))
    else:
        sys.path.insert(0, str(Path(__file__).parent))
        from run import table

        print(table(run(quick=arguments.quick)))


if __name__ == "__main__":
    main()
