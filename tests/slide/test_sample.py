"""The drawn slide: repeatable, honest about its lesion, and a proper pyramid with its mpp."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import tiffslide

from napari_msamil.errors import SlideError
from napari_msamil.slide.sample import sample_arrays, write_sample_slide


@pytest.fixture(scope="module")
def with_lesion() -> tuple[np.ndarray, np.ndarray]:
    return sample_arrays(3, True, 1024)


def test_same_seed_same_picture(with_lesion: tuple[np.ndarray, np.ndarray]) -> None:
    again = sample_arrays(3, True, 1024)
    assert np.array_equal(with_lesion[0], again[0])
    assert np.array_equal(with_lesion[1], again[1])
    assert not np.array_equal(with_lesion[0], sample_arrays(4, True, 1024)[0])


def test_lesion_is_darker_than_the_other_tissue(with_lesion: tuple[np.ndarray, np.ndarray]) -> None:
    rgb, lesion = with_lesion
    tissue = rgb.min(axis=2) < 215
    assert 0.01 < lesion.mean() < 0.4
    assert rgb[lesion].mean() < rgb[tissue & ~lesion].mean() - 40


def test_without_lesion_the_mask_is_empty() -> None:
    rgb, lesion = sample_arrays(3, False, 1024)
    assert not lesion.any()
    assert 0.3 < (rgb.min(axis=2) < 215).mean() < 0.8


def test_corners_are_glass(with_lesion: tuple[np.ndarray, np.ndarray]) -> None:
    rgb, _ = with_lesion
    for corner in (rgb[:40, :40], rgb[:40, -40:], rgb[-40:, :40], rgb[-40:, -40:]):
        assert corner.mean() > 235


def test_file_is_a_halved_pyramid_with_one_um_per_pixel(
    tmp_path: Path, with_lesion: tuple[np.ndarray, np.ndarray]
) -> None:
    path = write_sample_slide(tmp_path / "new" / "sample.tif", seed=3, size_px=1024)
    with tiffslide.TiffSlide(path) as slide:
        assert slide.level_dimensions == ((1024, 1024), (512, 512))
        assert slide.properties["tiffslide.mpp-x"] == pytest.approx(1.0)
        assert slide.properties["tiffslide.mpp-y"] == pytest.approx(1.0)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        assert page.tile == (256, 256)
        assert page.compression.name == "JPEG"
        written = page.asarray()
    difference = np.abs(written.astype(int) - with_lesion[0])
    assert difference.mean() < 4  # JPEG
    assert [file.name for file in path.parent.iterdir()] == ["sample.tif"]


def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    first, second = (write_sample_slide(tmp_path / name, size_px=512) for name in ("a.tif", "b.tif"))
    assert first.read_bytes() == second.read_bytes()


def test_a_tiny_slide_is_refused() -> None:
    with pytest.raises(SlideError, match="sample slide of 100 px"):
        sample_arrays(size_px=100)
