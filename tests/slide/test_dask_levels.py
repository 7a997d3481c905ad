"""Lazy levels for a viewer, and the cache under them."""

from __future__ import annotations

import threading

import dask
import numpy as np
import pytest

from napari_msamil.errors import ReadError, SlideError
from napari_msamil.slide import BlockCache, dask_levels, open_slide
from napari_msamil.slide.slide import Slide


@pytest.fixture
def slide(make_slide, tmp_path):
    with open_slide(make_slide(tmp_path / "slide.tif", (5000, 2100), (1, 2, 4), mpp=0.5)) as opened:
        yield opened


def test_lazy_levels_equal_the_slide(slide) -> None:
    levels = dask_levels(slide)
    assert [array.shape for array in levels] == [(2100, 5000, 3), (1050, 2500, 3), (525, 1250, 3)]
    for number, array in enumerate(levels):
        assert array.dtype == np.uint8
        assert array.chunks[0][0] == min(512, array.shape[0])
        np.testing.assert_array_equal(np.asarray(array), slide.read_level(number, 0, 0, array.shape[1], array.shape[0]))
    np.testing.assert_array_equal(
        np.asarray(levels[0][1000:1100, 2000:2200]), slide.read_level(0, 2000, 1000, 200, 100)
    )


def test_a_box_is_the_same_pixels_whichever_way_dask_or_numpy_asks_for_it(slide) -> None:
    array = dask_levels(slide)[0]
    whole = slide.read_level(0, 0, 0, 5000, 2100)
    for box in (np.s_[700:1800, 100:4000], np.s_[:, 4000:], np.s_[2090:], np.s_[-30:-10, -700:-1], np.s_[5:5, 0:9]):
        np.testing.assert_array_equal(np.asarray(array[box]), whole[box])
        np.testing.assert_array_equal(array[box].compute(), whole[box])
    np.testing.assert_array_equal(np.asarray(array[300:1700, 200:][600:900, 100:1500]), whole[900:1200, 300:1700])
    for box in (np.s_[::2, ::3], np.s_[..., 1], np.s_[40], np.s_[:, :, ::-1], np.s_[[3, 700, 2000]]):
        np.testing.assert_array_equal(np.asarray(array[box]), whole[box])
    assert np.asarray(array[:9], float).dtype == float
    assert float(array[:100].mean().compute()) == pytest.approx(whole[:100].mean())


def test_blocks_are_read_once_and_come_from_the_cache_after_that(slide, monkeypatch) -> None:
    reads, read = [], Slide.read_level
    monkeypatch.setattr(Slide, "read_level", lambda self, *box, **how: (reads.append(box), read(self, *box, **how))[1])
    cache = BlockCache(100 << 20)
    levels = dask_levels(slide, cache=cache)
    assert reads == [], "building the arrays reads nothing"
    view = levels[0][500:1000, 500:1000]
    first, again = np.asarray(view), np.asarray(view)
    np.testing.assert_array_equal(first, again)
    assert len(reads) == 4
    assert cache.nbytes == 4 * 512 * 512 * 3
    cache.drop(slide.uid)
    assert cache.nbytes == 0
    np.asarray(view)
    assert len(reads) == 8


def test_names_never_repeat_so_that_no_stale_pixels_can_show(slide) -> None:
    names = [array.name for _ in range(2) for array in dask_levels(slide)]
    assert len(set(names)) == 6
    assert all(slide.uid in name for name in names)


def test_graphs_of_huge_levels_are_quick_to_build_and_slice(monkeypatch, slide) -> None:
    """Not a stopwatch: one task per block of the view, none for the rest of the level."""
    array = dask_levels(slide)[0]
    (optimised,) = dask.optimize(array[100:1100, 100:1100])
    assert len(dict(optimised.__dask_graph__())) < 50


@pytest.mark.parametrize("error", [ReadError("slide.tif cannot be read"), SlideError("slide.tif: the disk is full")])
def test_an_unreadable_block_raises_or_is_marked_and_reported(slide, monkeypatch, error) -> None:
    def fail(self, *box, **how):
        raise error

    monkeypatch.setattr(Slide, "read_level", fail)
    with pytest.raises(type(error)):
        np.asarray(dask_levels(slide)[1])
    errors = []
    pixels = np.asarray(dask_levels(slide, on_error=errors.append)[1])
    assert (pixels == (255, 0, 255)).all()
    assert "slide.tif" in str(errors[0])


def test_the_first_picture_of_a_slide_without_small_levels_needs_one_pass(make_slide, tmp_path, monkeypatch) -> None:
    from napari_msamil.slide import tiles

    decoded, tile = [], tiles.TileGrid.tile
    monkeypatch.setattr(
        tiles.TileGrid, "tile", lambda self, source, index: (decoded.append(index), tile(self, source, index))[1]
    )
    with open_slide(make_slide(tmp_path / "one.tif", (6000, 5000), (1,))) as opened:
        for _ in range(2):
            np.asarray(dask_levels(opened)[-1])
    assert sorted(set(decoded)) == list(range(24 * 20))
    assert len(decoded) < 1.1 * 24 * 20


def block(value: int, size: int = 100) -> np.ndarray:
    return np.full(size, value, np.uint8)


def test_the_cache_keeps_the_last_used_within_its_bytes() -> None:
    cache = BlockCache(300)
    for number in range(3):
        cache.put(("a", number), block(number))
    assert cache.get(("a", 0)) is not None
    cache.put(("b", 0), block(9))
    assert cache.get(("a", 1)) is None, "the longest unused one went"
    assert (len(cache), cache.nbytes) == (3, 300)
    cache.put(("b", 1), block(9, 301))
    assert cache.get(("b", 1)) is None, "larger than the cache"
    cache.put(("a", 0), block(5, 50))
    assert (cache.get(("a", 0)) == 5).all()
    assert cache.nbytes == 250
    cache.drop("a")
    assert (len(cache), cache.nbytes) == (1, 100)
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_cached_blocks_cannot_be_changed_by_a_reader() -> None:
    cache = BlockCache(300)
    cache.put(("a",), block(1))
    found = cache.get(("a",))
    assert found is not None
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 2


def test_the_cache_counts_right_under_threads() -> None:
    cache = BlockCache(10_000)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(500):
            key = (int(rng.integers(3)), int(rng.integers(50)))
            found = cache.get(key)
            if found is None:
                cache.put(key, block(key[1], int(rng.integers(1, 400))))
            elif (found != key[1]).any():
                raise AssertionError("wrong block")
            if rng.random() < 0.01:
                cache.drop(0)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert cache.nbytes == sum(array.nbytes for array in cache._blocks.values()) <= 10_000
