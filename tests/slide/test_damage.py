"""A picture of a whole slide parts of which cannot be decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_msamil.errors import ReadError
from napari_msamil.slide import flat, open_slide
from napari_msamil.slide.damage import read_around_damage
from napari_msamil.slide.pyramid import UNREADABLE, ViewPyramid
from napari_msamil.slide.resample import reduce_box
from napari_msamil.slide.slide import Slide


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (1000, 1500, 3), dtype=np.uint8)


def without_tiles(path: Path, picture: np.ndarray, tiles: list[int]) -> Path:
    """A TIFF of one level with tiles of 256 x 256, some of them overwritten by zeros."""
    tifffile.imwrite(path, picture, tile=(256, 256), photometric="rgb", compression="deflate")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for tile in tiles:
            offset, count = tiff.pages[0].dataoffsets[tile], tiff.pages[0].databytecounts[tile]
            data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    return path


def test_what_can_be_read_is_in_its_place_and_what_cannot_is_background(tmp_path: Path, picture: np.ndarray) -> None:
    with open_slide(without_tiles(tmp_path / "a.tif", picture, [])) as whole:
        truth = whole.read(0, 0, 1500, 1000, size=(300, 200))
        found, unread = read_around_damage(whole, (300, 200))
        np.testing.assert_array_equal(found, truth)
        assert not unread.any()
    with open_slide(without_tiles(tmp_path / "b.tif", picture, [8])) as slide:  # x 512 to 768, y 256 to 512
        found, unread = read_around_damage(slide, (300, 200))
    assert unread[52:102, 103:153].all()
    assert unread.sum() <= (50 + 2 * 11) ** 2, "no more than the parts that touch it"
    assert (found[unread] == 255).all()
    assert np.abs(found[~unread].astype(int) - truth[~unread]).max() <= 1


def test_an_added_level_does_not_spread_the_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Added levels are computed in blocks of hundreds of pixels, none of which can be made where one tile is bad."""
    large = np.random.default_rng(0).integers(0, 200, (1800, 2600, 3), dtype=np.uint8)
    reads = []
    plain = Slide.read
    monkeypatch.setattr(Slide, "read", lambda *args, **options: reads.append(1) or plain(*args, **options))
    with open_slide(without_tiles(tmp_path / "a.tif", large, [24])) as slide:  # x 512 to 768, y 512 to 768
        assert not slide.levels[1].stored
        _, unread = read_around_damage(slide, (260, 180))
    assert unread[52:76, 52:76].all()
    assert unread.sum() <= (26 + 2 * 10) ** 2
    assert len(reads) < 100


def test_where_nothing_can_be_read_that_is_an_error(tmp_path: Path, picture: np.ndarray) -> None:
    path = without_tiles(tmp_path / "a.tif", picture, list(range(24)))
    with open_slide(path) as slide, pytest.raises(ReadError, match=r"a\.tif cannot be read at level 0"):
        read_around_damage(slide, (300, 200))


def test_where_a_coarse_level_is_damaged_finer_ones_are_read(tmp_path: Path) -> None:
    smooth = np.linspace(0, 199, 4096 * 3, dtype=np.uint8).reshape(1, 4096, 3).repeat(4096, axis=0)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for step in (1, 4, 16):
            file.write(
                smooth[::step, ::step],
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                subfiletype=int(step > 1),
            )
    with open_slide(path) as slide:
        truth = slide.read(0, 0, 4096, 4096, size=(256, 256)).astype(int)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for page, tiles in ((2, [0]), (1, [5])):  # all of the coarsest level, and a tile of the next
            for tile in tiles:
                offset, count = tiff.pages[page].dataoffsets[tile], tiff.pages[page].databytecounts[tile]
                data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    with open_slide(path) as slide:
        assert all(level.stored for level in slide.levels)
        found, unread = read_around_damage(slide, (256, 256))
    assert not unread.any()
    assert np.abs(found - truth).max() <= 3


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in Linux's /proc")
def test_no_file_stays_open_for_each_part_that_cannot_be_read(
    tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    plain = Slide.read

    def read(*args: object, **options: object) -> np.ndarray:
        nonlocal most
        most = max(most, sum(fd.resolve() == path for fd in Path("/proc/self/fd").iterdir()))
        return plain(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Slide, "read", read)
    path = without_tiles(tmp_path / "a.tif", picture, list(range(23)))
    with open_slide(path) as slide:
        _, unread = read_around_damage(slide, (300, 200))
        assert unread.mean() > 0.9
    assert 1 <= most <= 4


def test_a_flat_image_is_tried_once(tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "IN_MEMORY_PX", 100)
    monkeypatch.setenv("MSAMIL_CACHE_DIR", str(tmp_path / "cache"))
    Image.fromarray(picture).save(tmp_path / "a.png")
    tries = []
    with open_slide(tmp_path / "a.png") as slide:
        monkeypatch.setattr(flat, "decode", lambda *_: tries.append(1) or 1 / 0)
        with pytest.raises(ReadError, match=r"a\.png cannot be decoded"):
            read_around_damage(slide, (300, 200))
    assert len(tries) == 1


def test_a_viewer_paints_the_tiles_that_cannot_be_read_and_no_others(tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 200, (1800, 2600, 3), dtype=np.uint8)
    bad = np.zeros((1800, 2600), bool)
    bad[512:768, 512:768] = True  # tile 24 of 11 a row, in a block of the viewer with three others
    errors: list[Exception] = []
    with open_slide(without_tiles(tmp_path / "a.tif", large, [24])) as slide:
        pyramid = ViewPyramid(slide)
        finest, added = (np.asarray(array) for array in pyramid.arrays(on_error=errors.append))
        np.testing.assert_array_equal(finest[~bad], large[~bad])
        assert (finest[bad] == UNREADABLE).all()
        assert (added[bad[::2, ::2]] == UNREADABLE).all()
        assert np.abs(added.astype(int) - reduce_box(large, 2))[~bad[::2, ::2]].max() <= 1
        said = len(errors)
        assert said > 0
        np.testing.assert_array_equal(pyramid.box(0, 0, 0, 1800, 2600, on_error=errors.append), finest)
        assert len(errors) == said, "what was painted is kept"
        with pytest.raises(ReadError):
            slide.read_level(1, 300, 300, 20, 20)
        with pytest.raises(ReadError):
            pyramid.box(0, 500, 500, 20, 20)
