"""Small slides, a small random model and a panel in a real viewer, for the tests of the plugin."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_msamil.inference import classify as classify_module
from napari_msamil.inference.classify import Progress
from napari_msamil.models.card import OnEmpty, Thresholds, preset_card
from napari_msamil.models.model import build_model, save_model
from pressing import run


def write_slide(path: Path, *, mpp: float | None = 1.0, size: tuple[int, int] = (1200, 900), seed: int = 0) -> Path:
    """White glass with a square of pink and violet tissue, as a tiled two-level TIFF with or without pixel size."""
    width, height = size
    picture = np.full((height, width, 3), 245, np.uint8)
    tissue = np.random.default_rng(seed).normal((190, 110, 170), 25, (height // 2, width // 2, 3)).clip(0, 255)
    picture[height // 5 : height // 5 + height // 2, width // 4 : width // 4 + width // 2] = tissue.astype(np.uint8)
    place: dict[str, Any] = (
        {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    )
    keywords: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate"}
    with tifffile.TiffWriter(path) as file:
        file.write(picture, subifds=0, **keywords, **place)
        file.write(picture[::2, ::2], subfiletype=1, **keywords)
    return path


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset with random weights; it takes all tissue for lesion."""
    card = preset_card(
        "tiny",
        classes=["benign", "malignant"],
        thumbnail_px=128,
        thresholds=Thresholds(lesion_probability=0.0, lesion_fraction=0.5),  # all tissue, whatever the weights say
        on_empty=OnEmpty(policy="tissue"),
    )
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(build_model(card, seed=3), path)
    return path


@pytest.fixture
def make_slide(tmp_path: Path) -> Callable[..., Path]:
    """Writes more slides: make_slide("name.tif", seed=1)."""
    return lambda name, **keywords: write_slide(tmp_path / name, **keywords)


@pytest.fixture
def slide_file(tmp_path: Path) -> Path:
    """1200 x 900 px at 1 µm/px."""
    return write_slide(tmp_path / "square.tif")


@pytest.fixture
def bare_file(tmp_path: Path) -> Path:
    """The same without pixel size."""
    return write_slide(tmp_path / "bare.tif", mpp=None)


@pytest.fixture(autouse=True)
def full_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run classifications at full priority: on a machine that is busy testing, the polite one would take for ever."""
    from napari_msamil.plugin import worker

    monkeypatch.setattr(worker, "step_back", lambda steps: None)


@pytest.fixture(scope="session", autouse=True)
def what_is_imported_is_never_garbage() -> None:
    """napari collects garbage whenever a layer is removed; what torch, Qt and napari hold need not be searched."""
    import napari_msamil.plugin.panel  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture
def viewer(make_napari_viewer_proxy: Callable[..., Any]) -> Any:
    """A napari window that raises when a private name is used."""
    return make_napari_viewer_proxy()


@pytest.fixture
def panel(viewer: Any, model_file: Path, qtbot: Any) -> Generator[Any, None, None]:
    """The panel in the window's dock, set to the small model on the CPU."""
    from napari_msamil.plugin.panel import MilPanel

    panel = MilPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Multi-scale MIL", area="right")
    panel.form.model.value = "file"
    panel.form.file.value = model_file
    panel.form.device.value = "cpu"
    yield panel
    panel.shut_down()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Generator[dict[str, threading.Event], None, None]:
    """Replace the classification by one that goes on until it is closed; tells when it began and when it was closed."""
    state = {"began": threading.Event(), "closed": threading.Event()}

    def steps(request: Any) -> Generator[Progress, None, None]:
        try:
            for done in range(10**6):
                yield Progress("patches", done, 10**6, 99.0)
                state["began"].set()
                state["closed"].wait(0.01)
        finally:
            state["closed"].set()

    monkeypatch.setattr(classify_module, "classify_steps", steps)
    yield state
    state["closed"].set()


@pytest.fixture
def pair(panel: Any, viewer: Any, make_slide: Any, qtbot: Any) -> tuple[Any, Any]:
    """Two slides of different size: "first" has a result whose 5x map is shown, "second", opened later, has none."""
    first = panel.open_slide(make_slide("first.tif", seed=1))
    run(panel, qtbot)
    panel.result_view.scale.value = "5x"
    return first, panel.open_slide(make_slide("second.tif", seed=2, size=(900, 600)))
