"""napari's reader: it takes slides, declines everything else at once, and makes the layer the panel makes."""

from __future__ import annotations

import importlib
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.layers import Layer
from PIL import Image

from napari_msamil.errors import SlideError
from napari_msamil.plugin import compat, slides
from napari_msamil.plugin.reader import get_reader, read_picture, read_slide


def pictures(folder: Path) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 64, 64))
    tifffile.imwrite(folder / "plain.tif", pixels[0].astype(np.uint8))
    tifffile.imwrite(folder / "stack.tif", pixels.astype(np.uint16))
    return {
        "plain grey TIFF": folder / "plain.tif",
        "stack": str(folder / "stack.tif"),
        "list": [str(folder / "plain.tif"), str(folder / "plain.tif")],
    }


def no_slides(folder: Path) -> dict[str, Any]:
    Image.new("RGB", (200, 100)).save(folder / "small.png")
    return {
        "small PNG": str(folder / "small.png"),
        "missing file": str(folder / "missing.tif"),
        "folder": str(folder),
        "list with a PNG": [str(folder / "small.png")],
    }


def test_a_picture_with_a_slides_ending_opens_as_napari_opens_it_within_a_tenth_of_a_second_more(
    tmp_path: Path, slide_file: Path, viewer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """napari proposes our reader first where it asks which one to take: to decline would be an error there."""
    get_reader(str(slide_file))  # the first call imports readers
    for name, path in pictures(tmp_path).items():
        start = time.perf_counter()
        assert get_reader(path) is read_picture, name
        assert time.perf_counter() - start < 0.1, name
        [ours] = viewer.open(path, plugin="napari-msamil", stack=isinstance(path, list))
        [theirs] = viewer.open(path, plugin="napari", stack=isinstance(path, list))
        assert (ours.data.dtype, ours.ndim) == (theirs.data.dtype, theirs.ndim), name
        assert np.array_equal(np.asarray(ours.data), np.asarray(theirs.data)), name
        assert not slides.tag(ours)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("text", "reason"), [("not a slide", "is no TIFF file"), ("", "is empty")])
def test_a_file_that_is_no_picture_is_refused_with_a_reason(
    tmp_path: Path, viewer: Any, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    def fail(path: Any) -> Any:  # as napari's does, but that it leaves files open, which pytest takes for ours
        raise OSError("Could not find a backend")

    monkeypatch.setattr("napari_msamil.plugin.reader.napari_get_reader", lambda path: fail)
    (tmp_path / "text.tif").write_text(text)
    with pytest.raises(SlideError, match=rf"text\.tif {reason}.*copy it again"):
        viewer.open(str(tmp_path / "text.tif"), plugin="napari-msamil")


@pytest.mark.data
def test_a_picture_without_pixels_is_refused_with_the_reason(viewer: Any, test_data: Path) -> None:
    with pytest.raises(SlideError, match=r"large_image_zero_gi\.tif holds an empty picture"):
        viewer.open(str(test_data / "bad-inputs" / "large_image_zero_gi.tif"), plugin="napari-msamil")
    assert len(viewer.layers) == 0


def test_what_is_no_slide_is_declined_silently_and_within_a_tenth_of_a_second(
    tmp_path: Path, slide_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    get_reader(str(slide_file))  # the first call imports readers
    for name, path in no_slides(tmp_path).items():
        start = time.perf_counter()
        assert get_reader(path) is None, name
        assert time.perf_counter() - start < 0.1, name
    assert capfd.readouterr() == ("", "")


def test_napari_tells_why_a_file_named_like_a_slide_cannot_be_opened(tmp_path: Path, viewer: Any) -> None:
    bad = tmp_path / "text.svs"
    bad.write_text("not a slide")
    get_reader(bad)
    start = time.perf_counter()
    assert get_reader(str(bad)) is read_slide
    assert time.perf_counter() - start < 0.1
    with pytest.raises(SlideError, match=r"text\.svs is no TIFF file.*copy it again"):
        viewer.open(str(bad), plugin="napari-msamil")
    assert len(viewer.layers) == 0


def test_without_openslide_napari_tells_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    slide = tmp_path / "a.mrxs"
    slide.write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    reader = get_reader(str(slide))
    assert reader is not None
    with pytest.raises(SlideError, match=r"a\.mrxs is a MIRAX slide; reading it needs OpenSlide: pip install"):
        reader(str(slide))


def dicom(sop_class: bytes) -> bytes:
    """A DICOM file's preamble and first element, with one SOP class."""
    uid = sop_class + b"\0" * (len(sop_class) % 2)
    return bytes(128) + b"DICM" + b"\x02\0\x02\0UI" + len(uid).to_bytes(2, "little") + uid + bytes(200)


@pytest.mark.parametrize("installed", [True, False])
def test_a_dicom_slide_is_taken_where_openslide_is_installed_and_a_ct_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    from importlib.machinery import ModuleSpec

    from napari_msamil.slide import detect

    found = ModuleSpec("openslide", None) if installed else None
    monkeypatch.setattr(detect.importlib.util, "find_spec", lambda name: found)
    (tmp_path / "slide.dcm").write_bytes(dicom(b"1.2.840.10008.5.1.4.1.1.77.1.6"))
    (tmp_path / "ct.dcm").write_bytes(dicom(b"1.2.840.10008.5.1.4.1.1.2"))
    assert (get_reader(str(tmp_path / "slide.dcm")) is read_slide) == installed
    assert get_reader(str(tmp_path / "ct.dcm")) is read_picture


def test_a_slide_becomes_one_multiscale_layer_in_micrometres(slide_file: Path) -> None:
    reader = get_reader(str(slide_file))
    assert reader is not None
    [(levels, keywords, kind)] = reader(str(slide_file))
    assert kind == "image"
    assert [level.shape for level in levels] == [(900, 1200, 3), (450, 600, 3)]
    assert keywords["cache"] is False
    layer = Layer.create(levels, keywords, kind)
    assert layer.multiscale
    assert layer.rgb
    assert [str(unit) for unit in layer.units] == ["micrometer", "micrometer"]
    assert layer.axis_labels == ("y", "x")
    assert layer.scale == pytest.approx([1.0, 1.0])
    assert slides.tag(layer)["role"] == "slide"


def test_anisotropic_pixels_keep_rows_and_columns_apart(slide_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = slides.open_slide
    monkeypatch.setattr(slides, "open_slide", lambda path, mpp: opened(path, (0.5, 0.25)))
    assert slides.layer_data(slide_file)[1]["scale"] == (0.25, 0.5)


def test_a_slide_without_pixel_size_is_shown_in_pixels(bare_file: Path) -> None:
    [(_, keywords, _)] = read_slide(bare_file)
    assert keywords["scale"] == (1.0, 1.0)
    assert keywords["units"] == ("pixel", "pixel")


def test_layer_pixels_are_the_files(slide_file: Path) -> None:
    [(levels, _, _)] = read_slide(slide_file)
    assert np.array_equal(np.asarray(levels[0][100:700, 200:1100]), tifffile.imread(slide_file)[100:700, 200:1100])


def test_the_sample_is_made_once_and_opens_as_a_slide(
    slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_msamil.plugin import sample

    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.parent.mkdir()
        shutil.copy(slide_file, path)

    monkeypatch.setenv("MSAMIL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sample, "write_sample_slide", make)
    for _ in range(2):
        [(levels, keywords, _)] = sample.make_sample()
    assert len(made) == 1
    assert levels[0].shape == (900, 1200, 3)
    assert keywords["metadata"]["msamil"]["role"] == "slide"


@pytest.mark.gui
def test_the_sample_is_drawn_in_the_background_the_first_time(
    viewer: Any, slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    from napari_msamil.plugin import sample

    drawn_by: list[threading.Thread] = []

    def make(path: Path) -> None:
        drawn_by.append(threading.current_thread())
        path.parent.mkdir()
        shutil.copy(slide_file, path)

    monkeypatch.setenv("MSAMIL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sample, "write_sample_slide", make)
    for _ in range(2):  # who believes that nothing happens asks again
        viewer.open_sample("napari-msamil", "synthetic-slide")
    assert "drawing" in viewer.layers[0].name
    qtbot.waitUntil(lambda: slide_file.exists() and not sample._drawing, timeout=30_000)
    assert len(drawn_by) == 1
    assert drawn_by != [threading.main_thread()]
    assert len(viewer.layers) == 1
    assert viewer.layers[0].metadata["msamil"]["role"] == "slide"
    qtbot.waitUntil(lambda: compat.overlay(viewer, "scale_bar").visible)


@pytest.mark.gui
def test_a_sample_that_cannot_be_drawn_says_why(
    viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    from napari_msamil.plugin import sample

    told: list[str] = []

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("MSAMIL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sample, "write_sample_slide", fail)
    monkeypatch.setattr(sample, "show_error", told.append)
    sample.make_sample()
    qtbot.waitUntil(lambda: bool(told), timeout=30_000)
    assert "No space left on device" in told[0]
    assert not viewer.layers


def test_the_manifest_offers_reader_panel_and_sample() -> None:
    from npe2 import PluginManifest

    manifest = PluginManifest.from_distribution("napari-msamil")
    found = manifest.contributions
    assert found.readers and found.widgets and found.sample_data  # noqa: PT018
    assert {"*.dcm", "*.mrxs", "*.vms", "*.vmu"} <= set(found.readers[0].filename_patterns)
    for command in found.commands or []:
        module, _, name = str(command.python_name).partition(":")
        assert callable(getattr(importlib.import_module(module), name)), command.id
