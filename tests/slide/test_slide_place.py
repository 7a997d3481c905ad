"""A picture's colours prove where it was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from napari_msamil.slide import Slide, open_slide

CASES = {
    "4 and 16": ((4096, 2560), ((4096, 2560), (1024, 640), (256, 160)), 0.5),
    "3.9998": ((19999, 600), ((19999, 600), (5000, 150)), 0.5),
    "4.0001": ((40001, 400), ((40001, 400), (10000, 100)), 0.5),
    "3.0": ((3000, 2100), ((3000, 2100), (1000, 700), (333, 233)), 0.5),
    "anisotropic mpp": ((4096, 3072), ((4096, 3072), (1024, 768)), (0.5, 0.25)),
    "one level": ((4500, 2500), ((4500, 2500),), 0.5),
    "a step of 16": ((8192, 1024), ((8192, 1024), (512, 64)), 0.25),
}


@pytest.fixture(scope="module", params=CASES)
def slide(request: pytest.FixtureRequest, make_slide: Callable[..., Path], tmp_path_factory) -> Iterator[Slide]:
    size, levels, mpp = CASES[request.param]
    path = make_slide(tmp_path_factory.mktemp("place") / "slide.tif", size, levels, mpp=mpp, compression=None)
    with open_slide(path) as opened:
        yield opened


def boxes(slide: Slide, width: float, height: float) -> list[tuple[float, float]]:
    """Top-left corners: the four edges and corners with overhang, level with them, and odd places inside."""
    xs = [-0.4 * width, 0, 0.31 * slide.width + 0.37, slide.width - width, slide.width - 0.6 * width]
    ys = [-0.4 * height, 0, 0.43 * slide.height + 0.73, slide.height - height, slide.height - 0.6 * height]
    return [(x, y) for x in xs for y in ys]


@pytest.mark.parametrize("mpp", [0.5, 1.0, 2.0, 8.0, 0.73, 3.1])
def test_every_picture_lies_within_half_a_pixel_at_every_edge(slide, true_colours, mpp: float) -> None:
    patch_px = 96
    width, height = patch_px * mpp / slide.mpp[0], patch_px * mpp / slide.mpp[1]
    for x, y in boxes(slide, width, height):
        pixels = slide.read(x, y, width, height, size=(patch_px, patch_px))
        truth = true_colours((slide.width, slide.height), (x, y, width, height), (patch_px, patch_px))
        whole = _away_from_the_border(slide, x, y, width, height, patch_px)
        assert whole.any()
        for channel, step in ((0, mpp / slide.mpp[0]), (1, mpp / slide.mpp[1])):
            off = np.abs(pixels[..., channel] - truth[..., channel])[whole]
            assert off.max() <= 0.5 * step + 1.0, f"{off.max()} grey levels of {step} per pixel at {x}, {y}"


def _away_from_the_border(
    slide: Slide, x: float, y: float, width: float, height: float, size: int
) -> NDArray[np.bool_]:
    """Pixels that are not cut by the slide's border: those blend with the background."""
    masks = []
    for start, length, limit in ((x, width, slide.width), (y, height, slide.height)):
        step = length / size
        centre = start + (np.arange(size) + 0.5) * step
        masks.append((np.abs(centre) > 1.5 * step) & (np.abs(centre - limit) > 1.5 * step))
    return masks[1][:, None] & masks[0][None, :]


def test_outside_the_slide_is_background_at_every_level(slide) -> None:
    for number, level in enumerate(slide.levels):
        pixels = slide.read_level(number, level.width - 5, level.height - 7, 20, 20)
        assert (pixels[7:] == 255).all()
        assert (pixels[:, 5:] == 255).all()
        np.testing.assert_array_equal(pixels[:7, :5], slide.read_level(number, level.width - 5, level.height - 7, 5, 7))
        pixels = slide.read_level(number, -12, -9, 20, 20)
        assert (pixels[:9] == 255).all()
        assert (pixels[:, :12] == 255).all()
        np.testing.assert_array_equal(pixels[9:, 12:], slide.read_level(number, 0, 0, 8, 11))
        assert (slide.read_level(number, level.width, 0, 4, 4) == 255).all()
        assert (slide.read_level(number, -100, -100, 50, 50) == 255).all()


def test_without_resampling_a_picture_is_a_slice_of_the_stored_level(slide) -> None:
    with tifffile.TiffFile(slide.path) as tiff:
        stored = [level.asarray() for level in tiff.series[0].levels]
    shapes = [(level.height, level.width) for level in slide.levels]
    for pixels in stored:
        level = slide.levels[shapes.index(pixels.shape[:2])]
        side = min(pixels.shape[0], 90)
        dx, dy = level.downsample
        for x, y in ((0, 0), (pixels.shape[1] - side, pixels.shape[0] - side), (17, 5)):
            x, y = min(x, pixels.shape[1] - side), min(y, pixels.shape[0] - side)
            picture = slide.read(x * dx, y * dy, side * dx, side * dy, size=(side, side))
            np.testing.assert_array_equal(picture, pixels[y : y + side, x : x + side])


@pytest.mark.data
def test_patches_of_a_real_slide_are_slices_of_its_level(test_data: Path) -> None:
    """Downsamples 16.0 and 15.992, where other readers blur or miss by a pixel."""
    path = test_data / "slides" / "tubularadenoma-flat_HE.tif"
    with open_slide(path, 0.5) as slide, tifffile.TiffFile(path) as tiff:
        for number, scale in ((1, 4), (2, 16)):
            pixels = tiff.series[0].levels[number].asarray()
            rng = np.random.default_rng(number)
            for x, y in rng.integers(0, (slide.width - 256 * scale, slide.height - 256 * scale), (20, 2)):
                picture = slide.read(x, y, 256 * scale, 256 * scale, size=(256, 256))
                dx, dy = slide.levels[number].downsample
                column, row = (int(np.floor((v + 128 * scale) / d - 128 + 0.5)) for v, d in ((x, dx), (y, dy)))
                np.testing.assert_array_equal(picture, pixels[row : row + 256, column : column + 256])


def test_a_large_picture_equals_the_small_ones_it_consists_of(slide, monkeypatch) -> None:
    """Large boxes are shrunk a band of rows at a time; the seams must not show."""
    from napari_msamil.slide import resample

    for size in ((120, 60), (97, 51)):
        whole = slide.read(3.5, 2.25, 360, 240, size=size)
        monkeypatch.setattr(resample, "BAND_PX", 5000)
        np.testing.assert_array_equal(slide.read(3.5, 2.25, 360, 240, size=size), whole)
        monkeypatch.undo()


def test_a_box_without_pixels_is_refused(slide) -> None:
    with pytest.raises(ValueError, match="positive"):
        slide.read(0, 0, 0, 10, size=(10, 10))
    with pytest.raises(ValueError, match="positive"):
        slide.read(0, 0, 10, 10, size=(10, 0))
    with pytest.raises(ValueError, match="at least 1 x 1"):
        slide.read_level(0, 0, 0, 0, 5)
