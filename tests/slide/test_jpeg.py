"""JPEG tiles: the pixels of libjpeg, and an error where it only warns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_msamil.errors import ReadError
from napari_msamil.slide import open_slide

KINDS = {
    "YCbCr, subsampled": {"photometric": "rgb", "compressionargs": {"level": 85}},
    "YCbCr, whole": {"photometric": "rgb", "compressionargs": {"level": 85, "subsampling": "444"}},
    "RGB": {"photometric": "rgb", "compressionargs": {"level": 85, "outcolorspace": "rgb"}},
    "grey": {"photometric": "minisblack", "compressionargs": {"level": 85}},
}


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """600 x 500 px in JPEG tiles of 256 px."""
    options = KINDS[request.param]
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    pixels = pixels[..., 0] if request.param == "grey" else pixels
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), compression="jpeg", **options)
    return tmp_path / "a.tif"


def changed(path: Path, change: object) -> Path:
    """The slide with the bytes of its second tile changed, written to the end of the file."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[1], page.databytecounts[1]
        tile = change(bytes(data[offset : offset + count]))  # type: ignore[operator]
        for tag, value in (("TileOffsets", len(data)), ("TileByteCounts", len(tile))):
            place = page.tags[tag]
            size = place.valueoffset and {3: 2, 4: 4, 16: 8}[place.dtype]
            data[place.valueoffset + size : place.valueoffset + 2 * size] = value.to_bytes(size, "little")
    path.write_bytes(data + tile)
    return path


def test_pixels_are_those_of_tifffile(path: Path) -> None:
    truth = tifffile.imread(path)
    truth = truth if truth.ndim == 3 else truth[..., None].repeat(3, axis=2)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 600, 500), truth)


def test_a_hole_within_a_tile_is_a_read_error(path: Path) -> None:
    def hole(tile: bytes) -> bytes:
        middle = len(tile) // 2
        return tile[: middle - 150] + bytes(300) + tile[middle + 150 :]

    with open_slide(changed(path, hole)) as slide:
        slide.read_level(0, 0, 0, 256, 256)
        with pytest.raises(ReadError, match=r"a\.tif cannot be read at level 0, x 300.*Corrupt JPEG data"):
            slide.read_level(0, 300, 0, 10, 10)


def test_padding_before_the_end_mark_is_no_damage(path: Path) -> None:
    with open_slide(path) as slide:
        truth = slide.read_level(0, 0, 0, 600, 500)
    with open_slide(changed(path, lambda tile: tile[:-2] + bytes(5) + tile[-2:])) as slide:
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 600, 500), truth)
