"""Flat PNG and JPEG images."""

from __future__ import annotations

import errno
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_msamil.errors import ReadError, SlideError
from napari_msamil.slide import flat, open_slide, store
from napari_msamil.slide.store import PyramidStore, default_folder


@pytest.fixture
def picture() -> np.ndarray:
    y, x = np.mgrid[:2300, :2900]
    return np.stack((x % 256, y % 256, (x // 8 + y // 16) % 256), axis=-1).astype(np.uint8)


@pytest.fixture
def on_disk(monkeypatch, tmp_path) -> Path:
    """Every image counts as large; decoded ones go to a folder of their own."""
    monkeypatch.setattr(flat, "IN_MEMORY_PX", 100)
    monkeypatch.setenv("MSAMIL_CACHE_DIR", str(tmp_path / "cache"))
    return default_folder()


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("large", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_comes_back_as_pillow_decodes_it(tmp_path, picture, request, large: bool, suffix: str) -> None:
    if large:
        request.getfixturevalue("on_disk")
    path = save(tmp_path / f"a.{suffix}", picture)
    truth = np.asarray(Image.open(path))
    with open_slide(path) as slide:
        assert slide.backend.startswith("imagecodecs 20" if suffix == "png" else "simplejpeg ")
        assert [(level.width, level.height) for level in slide.levels] == [(2900, 2300), (725, 575)]
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 2900, 2300), truth)
        np.testing.assert_array_equal(slide.read(1000, 900, 200, 100, size=(200, 100)), truth[900:1000, 1000:1200])
        coarse = slide.read_level(1, 100, 50, 3, 2)
        means = truth[200:208, 400:412].reshape(2, 4, 3, 4, 3).astype(float).mean(axis=(1, 3))
        assert np.abs(coarse - means).max() <= 0.5


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
@pytest.mark.parametrize("large", [False, True], ids=["in memory", "on disk"])
def test_every_kind_of_png_becomes_rgb_on_white(tmp_path, picture, request, mode: str, large: bool) -> None:
    if large:
        request.getfixturevalue("on_disk")
    rgb = picture[:600, :300]
    alpha = np.broadcast_to(np.linspace(0, 255, 300).astype(np.uint8), (600, 300))
    if mode == "I;16":
        image = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
        truth = np.repeat(rgb[..., :1], 3, axis=2).astype(float)
    else:
        image = Image.fromarray(rgb).convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray(alpha))
        cover = alpha[..., None] / 255 if mode in ("RGBA", "LA") else 1.0
        truth = np.asarray(image.convert("RGB")) * cover + 255 * (1 - cover)
    image.save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        assert np.abs(slide.read_level(0, 0, 0, 300, 600) - truth).max() <= 0.5


@pytest.mark.parametrize("large", [False, True], ids=["in memory", "on disk"])
def test_transparent_colours_and_a_grey_jpeg_are_right(tmp_path, picture, request, large: bool) -> None:
    if large:
        request.getfixturevalue("on_disk")
    palette = Image.fromarray(picture[:200, :300]).convert("P")
    palette.save(tmp_path / "a.png", transparency=3)
    shown = palette.convert("RGB")
    truth = np.where((np.asarray(palette) == 3)[..., None], 255, np.asarray(shown))
    with open_slide(tmp_path / "a.png") as slide:
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 300, 200), truth)
    save(tmp_path / "b.png", picture[:200, :300], transparency=(7, 9, 0))
    truth = picture[:200, :300].copy()
    truth[9, 7] = 255
    with open_slide(tmp_path / "b.png") as slide:
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 300, 200), truth)
    save(tmp_path / "a.jpg", picture[:200, :300, 0], quality=95)
    with open_slide(tmp_path / "a.jpg") as slide:
        grey = np.asarray(Image.open(tmp_path / "a.jpg"))
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 300, 200), np.repeat(grey[..., None], 3, axis=2))


def test_a_large_image_is_decoded_once_and_found_again(tmp_path, picture, on_disk, monkeypatch) -> None:
    path = save(tmp_path / "a.png", picture)
    calls = []
    decode = flat.decode
    monkeypatch.setattr(flat, "decode", lambda *args: (calls.append(args[0].name), decode(*args)))
    with open_slide(path) as slide:
        assert calls == [], "opening decodes nothing"
        slide.read_level(0, 0, 0, 10, 10)
        slide.read_level(1, 0, 0, 10, 10)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level(0, 50, 60, 10, 10), picture[60:70, 50:60])
        assert [entry.name for entry in on_disk.iterdir()] == [slide.uid]
    assert calls == ["a.png"]


def test_a_changed_image_is_decoded_anew(tmp_path, picture, on_disk) -> None:
    path = save(tmp_path / "a.png", picture)
    with open_slide(path) as slide:
        first = slide.uid
        slide.prepare()
    save(path, 255 - picture)
    os.utime(path, (1, 1))
    with open_slide(path) as slide:
        assert slide.uid != first
        np.testing.assert_array_equal(slide.read_level(0, 50, 60, 10, 10), 255 - picture[60:70, 50:60])


def test_the_cache_forgets_the_longest_unused_images_first(tmp_path, picture, on_disk, monkeypatch) -> None:
    monkeypatch.setenv("MSAMIL_CACHE_GB", "0.05")  # two images of 21 MB
    uids = []
    for name in "abc":
        path = save(tmp_path / f"{name}.png", picture)
        with open_slide(path) as slide:
            slide.prepare()
            uids.append(slide.uid)
        time.sleep(0.02)  # file times are coarse
        if name == "b":  # a is used again
            with open_slide(tmp_path / "a.png") as slide:
                slide.prepare()
            time.sleep(0.02)
    assert {entry.name for entry in on_disk.iterdir()} == {uids[0], uids[2]}


def test_a_decode_that_stops_halfway_leaves_nothing_that_looks_finished(tmp_path, picture, on_disk) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with open_slide(tmp_path / "cut.png") as slide:
        for _ in range(2):
            with pytest.raises(ReadError, match=r"cut\.png cannot be decoded .* copy it again"):
                slide.read_level(0, 0, 0, 10, 10)
    assert list(on_disk.iterdir()) == []


def test_a_damaged_cache_entry_is_made_anew(tmp_path, picture, on_disk) -> None:
    path = save(tmp_path / "a.png", picture)
    with open_slide(path) as slide:
        slide.prepare()
        entry = on_disk / slide.uid
    (entry / "level1.npy").write_bytes(b"not an array")
    with open_slide(path) as slide:
        assert slide.read_level(1, 0, 0, 10, 10).std() > 0


def test_old_leftovers_of_killed_processes_are_removed(tmp_path, picture, on_disk) -> None:
    leftover = on_disk / "abc.tmp-1-2"
    leftover.mkdir(parents=True)
    os.utime(leftover, (1, 1))
    with open_slide(save(tmp_path / "a.png", picture)) as slide:
        slide.prepare()
    assert not leftover.exists()


def test_a_full_or_forbidden_disk_gives_one_sentence_with_the_remedy(tmp_path, picture, on_disk, monkeypatch) -> None:
    path = save(tmp_path / "a.png", picture)
    with monkeypatch.context() as patch, open_slide(path) as slide:
        patch.setattr(PyramidStore, "_free", lambda self: 1000)
        with pytest.raises(SlideError, match=r"a\.png needs 0\.0 GB.*set MSAMIL_CACHE_DIR"):
            slide.prepare()
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("MSAMIL_CACHE_DIR", str(blocked))
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"a\.png is decoded into .*set MSAMIL_CACHE_DIR"):
        slide.prepare()


def test_no_image_is_forgotten_for_one_that_will_not_fit_anyway(tmp_path, picture, on_disk, monkeypatch) -> None:
    with open_slide(save(tmp_path / "a.png", picture)) as slide:
        slide.prepare()
    monkeypatch.setattr(PyramidStore, "_free", lambda self: 1000)
    with open_slide(save(tmp_path / "b.png", picture.repeat(2, axis=0))) as slide, pytest.raises(SlideError):
        slide.prepare()
    assert len(list(on_disk.iterdir())) == 1


def test_a_disk_too_small_for_an_image_as_stored_is_one_sentence_too(tmp_path, picture, on_disk, monkeypatch) -> None:
    """Space for the grey image as it is stored, before it becomes RGB, is taken beside the decoded one."""
    path = save(tmp_path / "a.png", picture[..., 0])
    places = []

    def full(place: Path, *rest: object) -> np.ndarray:
        places.append(place)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(flat, "new_array", full)
    with (
        open_slide(path) as slide,
        pytest.raises(SlideError, match=r"a\.png is decoded into .*No space left.*free some"),
    ):
        slide.read_level(0, 0, 0, 10, 10)
    assert on_disk in places[0].parents
    assert list(on_disk.iterdir()) == []


def test_an_image_whose_removal_stopped_half_way_is_made_anew(tmp_path, picture, on_disk) -> None:
    path = save(tmp_path / "a.png", picture)
    with open_slide(path) as slide:
        truth = slide.read_level(0, 0, 0, 50, 50)
    [entry] = on_disk.iterdir()
    (entry / "info.json").unlink()
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 50, 50), truth)
    assert (entry / "info.json").is_file()


def test_a_bound_that_is_no_number_is_named_and_not_the_image(tmp_path, picture, on_disk, monkeypatch) -> None:
    path = save(tmp_path / "a.png", picture)
    monkeypatch.setenv("MSAMIL_CACHE_GB", "50GB")
    with (
        open_slide(path) as slide,
        pytest.raises(SlideError, match=r"MSAMIL_CACHE_GB is '50GB': .* number, such as 50"),
    ):
        slide.read_level(0, 0, 0, 10, 10)


@pytest.mark.parametrize("keep", [0.001, 0.2, 0.7, 0.98])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_truncated_images_are_refused_not_filled_with_grey(tmp_path, picture, kind: str, keep: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(buffer, kind)
    data = buffer.getvalue()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(SlideError, match=r"cut\."):
        open_slide(path)


@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 4}], ids=str
)
@pytest.mark.parametrize("large", [False, True], ids=["in memory", "on disk"])
def test_a_hole_of_zeros_in_a_jpeg_is_noticed(tmp_path, picture, request, large: bool, options: dict, capfd) -> None:
    """What an interrupted copy leaves: both ends are there, a part in the middle was never written."""
    path = save(tmp_path / "a.jpg", picture[:1200, :1200], quality=90, **options)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = bytes(4096)
    path.write_bytes(data)
    if large:
        request.getfixturevalue("on_disk")
    with pytest.raises(ReadError, match=r"a\.jpg cannot be decoded \(.*\); it is damaged"), open_slide(path) as slide:
        slide.read_level(0, 0, 0, 10, 10)
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_of_12_bits_is_refused_with_a_remedy(tmp_path) -> None:
    import imagecodecs

    pixels = np.random.default_rng(0).integers(0, 4096, (64, 64, 3), dtype=np.uint16)
    (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg8_encode(pixels, bitspersample=12))
    with pytest.raises(SlideError, match=r"a\.jpg .* 12 bits per sample; convert it to 8 bits"):
        open_slide(tmp_path / "a.jpg")


def test_one_wrong_bit_in_a_png_is_noticed(tmp_path, capfd) -> None:
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReadError, match=r"a\.png cannot be decoded \(wrong checksum"):
        open_slide(path)
    assert capfd.readouterr() == ("", "")


def test_the_ceiling_is_ours_not_pillows_and_says_so(tmp_path, monkeypatch) -> None:
    import imagecodecs

    data = bytearray(imagecodecs.png_encode(np.zeros((4, 4, 3), np.uint8)))
    data[16:24] = (200_000).to_bytes(4, "big") + (100_000).to_bytes(4, "big")
    path = tmp_path / "bomb.png"
    path.write_bytes(data)
    with pytest.raises(SlideError, match=r"bomb\.png is 200000 x 100000 pixels large, more than the ceiling of 1e\+10"):
        open_slide(path)
    monkeypatch.setenv("MSAMIL_FLAT_MAX_PX", "1e4")
    with pytest.raises(SlideError, match="more than the ceiling"):
        open_slide(save(tmp_path / "b.png", np.zeros((101, 100, 3), np.uint8)))
    assert Image.MAX_IMAGE_PIXELS < 10**8, "the global of Pillow stays as it is"


def test_more_pixels_than_pillow_allows_are_no_obstacle(tmp_path, picture, on_disk, monkeypatch) -> None:
    path = save(tmp_path / "large.png", picture)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level(0, 2000, 2299, 500, 1), picture[2299:, 2000:2500])


def test_cmyk_jpeg_is_refused_with_a_remedy(tmp_path) -> None:
    Image.new("CMYK", (30, 20)).save(tmp_path / "a.jpg")
    with pytest.raises(SlideError, match=r"a\.jpg.*CMYK.*convert it to RGB"):
        open_slide(tmp_path / "a.jpg")


def test_two_processes_may_decode_the_same_image(tmp_path, picture, on_disk) -> None:
    path = save(tmp_path / "a.png", picture)
    sizes = ((2900, 2300), (725, 575))
    pyramid = PyramidStore()

    def fill(out: np.ndarray) -> None:  # another process finishes while this one is at work
        if not (on_disk / "uid").exists():
            PyramidStore().levels(path, "uid", sizes, 4, lambda other: other.__setitem__(slice(None), picture))
        out[:] = picture

    levels = pyramid.levels(path, "uid", sizes, 4, fill)
    np.testing.assert_array_equal(levels[0][:50], picture[:50])
    assert [entry.name for entry in on_disk.iterdir()] == ["uid"]
    assert store.CACHE_GB > 1
