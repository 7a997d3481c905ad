"""Reading ahead: the right blocks, in the right order, in a thread that ends, and never in the way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_msamil.plugin import slides
from napari_msamil.plugin.prefetch import Prefetcher, wanted_blocks
from napari_msamil.plugin.watch import watch
from napari_msamil.slide.pyramid import BlockCache, ViewPyramid
from napari_msamil.slide.slide import open_slide


@pytest.fixture
def pyramid(make_slide: Any) -> ViewPyramid:
    """1200 x 900 px in blocks of 100 px, with a level of half the size."""
    return ViewPyramid(open_slide(make_slide("blocks.tif")), cache=BlockCache(1 << 28), block_px=100)


def test_the_ring_around_the_tile_comes_first_and_on_the_side_that_the_view_moves_to(pyramid: ViewPyramid) -> None:
    corners = np.array([[300.0, 300.0], [499.0, 599.0]])  # blocks (3..4, 3..5), all of them read for the tile
    for row in (3, 4):
        for column in (3, 4, 5):
            pyramid.block(0, row, column)
    wanted = list(wanted_blocks(pyramid, 0, corners, np.array([0.0, 1.0])))
    ring = [block for block in wanted if block[0] == 0]
    assert wanted[: len(ring)] == ring
    assert {b[1:] for b in ring} == {(r, c) for r in range(2, 6) for c in range(2, 7)} - {
        (r, c) for r in (3, 4) for c in (3, 4, 5)
    }
    assert [b[2] for b in ring[:4]] == [6, 6, 6, 6]
    assert ring[-1][2] == 2


def test_the_next_levels_lie_under_the_tile(pyramid: ViewPyramid) -> None:
    finer = [b for b in wanted_blocks(pyramid, 1, np.array([[0.0, 0.0], [399.0, 399.0]]), np.zeros(2)) if b[0] == 0]
    assert {b[1:] for b in finer} == {(r, c) for r in range(1, 6) for c in range(1, 6)}  # its middle half, at level 0
    coarser = [b for b in wanted_blocks(pyramid, 0, np.array([[0.0, 0.0], [399.0, 399.0]]), np.zeros(2)) if b[0] == 1]
    assert {b[1:] for b in coarser} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_nothing_outside_the_slide_and_nothing_twice_is_wanted(pyramid: ViewPyramid) -> None:
    rows, columns = pyramid.grid(0)
    everything = np.array([[0.0, 0.0], [899.0, 1199.0]])
    wanted = list(wanted_blocks(pyramid, 0, everything, np.zeros(2)))
    assert len(set(wanted)) == len(wanted)
    assert all(0 <= r < rows and 0 <= c < columns for level, r, c in wanted if level == 0)


def test_an_opened_slide_is_read_ahead_and_the_thread_ends(slide_file: Path) -> None:
    slides.CACHE.clear()
    viewer = ViewerModel()
    watch(viewer)
    data, keywords, _ = slides.layer_data(slide_file)
    layer = viewer.add_image(data, **keywords)
    prefetcher: Prefetcher = slides.tag(layer)["prefetcher"]
    prefetcher.wait(10)
    pyramid: ViewPyramid = slides.tag(layer)["pyramid"]
    assert pyramid.holds(1, 0, 0), "what is shown"
    assert pyramid.holds(0, 0, 0), "the middle of it, one level finer"
    assert not [t for t in threading.enumerate() if t.name == "msamil-prefetch"]
    viewer.layers.clear()


def test_a_removed_slide_is_read_no_further(slide_file: Path) -> None:
    viewer = ViewerModel()
    watch(viewer)
    data, keywords, _ = slides.layer_data(slide_file)
    layer = viewer.add_image(data, **keywords)
    prefetcher: Prefetcher = slides.tag(layer)["prefetcher"]
    viewer.layers.remove(layer)
    prefetcher.wait(10)
    slides.CACHE.drop(slides.slide_of(layer).uid)
    prefetcher.look_around(layer)
    prefetcher.wait(10)
    assert not slides.tag(layer)["pyramid"].holds(0, 0, 0)


def test_an_unreadable_place_is_left_for_the_viewer_to_report(
    pyramid: ViewPyramid, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyramid.slide.close()
    prefetcher = Prefetcher(pyramid)

    class Layer:
        visible, ndim, data_level = True, 2, 0
        corner_pixels = np.array([[0, 0], [199, 199]])
        data = (np.empty((900, 1200, 3)), np.empty((450, 600, 3)))

    failed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    prefetcher.look_around(Layer())  # type: ignore[arg-type]
    prefetcher.wait(10)
    assert not failed


def test_after_any_failure_the_next_pan_reads_ahead_again(
    pyramid: ViewPyramid, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prefetcher = Prefetcher(pyramid)

    class Layer:
        visible, ndim, data_level = True, 2, 0
        corner_pixels = np.array([[0, 0], [199, 199]])
        data = (np.empty((900, 1200, 3)), np.empty((450, 600, 3)))

    def fail(*block: int) -> None:
        raise MemoryError("no room for a block")

    with monkeypatch.context() as patch:
        patch.setattr(pyramid, "block", fail)
        prefetcher.look_around(Layer())  # type: ignore[arg-type]
        prefetcher.wait(10)
    assert "no room for a block" in caplog.text
    assert not pyramid.holds(0, 2, 2)
    prefetcher.look_around(Layer())  # type: ignore[arg-type]
    prefetcher.wait(10)
    assert pyramid.holds(0, 2, 2)
