"""Where the pixel size comes from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_msamil.errors import SlideError
from napari_msamil.slide import open_slide
from napari_msamil.slide.mpp import resolve_mpp


def test_an_explicit_value_wins_over_metadata(make_slide, tmp_path) -> None:
    path = make_slide(tmp_path / "slide.tif", (300, 200), (1,), mpp=0.5)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx((0.5, 0.5), rel=1e-6)
        assert slide.mpp_source == "metadata"
    with open_slide(path, 0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.25), "explicit")
        assert slide.warnings == ("slide.tif states 0.5 µm per pixel; the 0.25 given by hand is used instead",)
        uid = slide.uid
    with open_slide(path, (1.0, 2.0)) as slide:
        assert (slide.mpp, slide.mpp_source, slide.uid) == ((1.0, 2.0), "explicit", uid)
    with open_slide(path, 0.501) as slide:
        assert slide.warnings == (), "the same, rounded"


def test_both_axes_are_read(make_slide, tmp_path) -> None:
    with open_slide(make_slide(tmp_path / "slide.tif", (300, 200), (1,), mpp=(0.5, 0.25))) as slide:
        assert slide.mpp == pytest.approx((0.5, 0.25), rel=1e-6)


def test_without_metadata_it_is_missing_never_guessed(make_slide, tmp_path) -> None:
    with open_slide(make_slide(tmp_path / "slide.tif", (300, 200), (1,))) as slide:
        assert (slide.mpp, slide.mpp_source, slide.warnings) == (None, "missing", ())


@pytest.mark.parametrize("found", [(352.8, 352.8), (0.04, 0.04), (0.5, 25.0), (0.0, 0.0), (math.inf, 0.5), (-1.0, 0.5)])
def test_absurd_metadata_counts_as_missing_and_says_so(found) -> None:
    mpp, source, warnings = resolve_mpp("a.svs", None, found)
    assert (mpp, source) == (None, "missing")
    assert len(warnings) == 1
    assert "a.svs" in warnings[0]
    assert "0.05 to 20" in warnings[0]


@pytest.mark.parametrize("found", [(0.05, 0.05), (20.0, 20.0), (0.499, 0.5), (1.14, 1.14)])
def test_metadata_inside_the_limits_is_taken(found) -> None:
    assert resolve_mpp("a.svs", None, found) == (found, "metadata", ())


def test_an_explicit_value_outside_the_limits_is_used_with_a_warning() -> None:
    mpp, source, warnings = resolve_mpp("a.svs", 30, None)
    assert (mpp, source) == ((30.0, 30.0), "explicit")
    assert "30" in warnings[0]


@pytest.mark.parametrize("value", [0, -0.5, math.nan, math.inf, "half", (0.5,), (0.5, 0.5, 0.5), (0.5, None)])
def test_an_explicit_value_that_is_no_pixel_size_is_refused(value) -> None:
    with pytest.raises(SlideError, match=r"a\.svs"):
        resolve_mpp("a.svs", value, (0.5, 0.5))


def test_one_axis_alone_counts_as_missing() -> None:
    assert resolve_mpp("a.svs", None, (0.5, None))[:2] == (None, "missing")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_density_tags_of_flat_images_are_never_trusted(tmp_path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, dpi=(50800, 50800))  # would be 0.5 µm per pixel
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (None, "missing")


@pytest.mark.parametrize(("unit", "factor"), [("µm", 1.0), ("nm", 1000.0), ("mm", 0.001)])
def test_an_ome_tiff_states_its_pixel_size_in_xml(tmp_path, unit: str, factor: float) -> None:
    path = tmp_path / "slide.ome.tif"
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": 0.25 * factor,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": 0.5 * factor,
        "PhysicalSizeYUnit": unit,
    }
    pixels = np.zeros((64, 64, 3), np.uint8)
    # a 72-dpi tag beside it, as converters leave it, must not win
    tifffile.imwrite(
        path, pixels, photometric="rgb", tile=(32, 32), metadata=metadata, resolution=(72, 72), resolutionunit="INCH"
    )
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx((0.25, 0.5))
        assert slide.mpp_source == "metadata"


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "mpp"),
    [
        ("CMU-1-Small-Region.svs", 0.499),
        ("crohn_HE4_20x.tif", 0.526),
        ("OS-1-detail.ome.tif", 0.2271),
        ("OS-2-ndpi.ome.tif", 0.2271),
        ("tcga-cr-7395-01a-01-ts1.svs", None),
        ("tubularadenoma-flat_HE.tif", None),
    ],
)
def test_real_slides_have_the_documented_mpp(test_data, name: str, mpp: float | None) -> None:
    with open_slide(test_data / "slides" / name) as slide:
        assert slide.mpp == (None if mpp is None else pytest.approx((mpp, mpp), rel=2e-3))
        assert not slide.warnings
