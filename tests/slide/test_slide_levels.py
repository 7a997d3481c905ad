"""Levels: which are kept, which are added, and what they hold."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from napari_msamil.slide import levels as module
from napari_msamil.slide import open_slide
from napari_msamil.slide.levels import AddedLevel, LevelPlan, plan_levels
from napari_msamil.slide.resample import reduce_box


def stored(sizes) -> list[int | None]:
    return [plan.stored for plan in plan_levels(tuple(sizes))]


@pytest.mark.parametrize(
    ("sizes", "added"),
    [
        pytest.param([(19999, 600), (5000, 150), (1250, 37)], 0, id="3.9998"),
        pytest.param([(40001, 400), (10000, 100), (2500, 25), (625, 7)], 0, id="4.0001"),
        pytest.param([(16528, 16568), (4132, 4142), (1033, 1036)], 0, id="a real slide"),
        pytest.param([(2048, 100)], 0, id="small"),
        pytest.param([(2049, 100)], 1, id="just too large"),
        pytest.param([(16384, 16384), (1024, 1024)], 1, id="a step of 16"),
        pytest.param([(8192, 8192), (1024, 1024)], 1, id="a step of 8"),
        pytest.param([(10240, 10240), (2048, 2048)], 1, id="a step of 5"),
        pytest.param([(65536, 65536), (1024, 1024)], 2, id="a step of 64"),
        pytest.param([(100000, 80000)], 3, id="one level"),
    ],
)
def test_levels_are_added_only_where_a_step_exceeds_4_or_the_coarsest_2048(sizes, added: int) -> None:
    plans = plan_levels(tuple(sizes))
    assert sum(plan.stored is None for plan in plans) == added
    assert max(plans[-1].size) <= 2048
    assert [plan.size for plan in plans if plan.stored is not None] == sizes
    for finer, coarser in pairwise(plans):
        assert coarser.size[0] < finer.size[0]
        assert coarser.size[1] < finer.size[1]
        for axis in (0, 1):
            assert finer.size[axis] <= 4 * (coarser.size[axis] + 1)
            assert coarser.downsample[axis] > finer.downsample[axis]


def test_a_stored_level_that_does_not_belong_is_left_out() -> None:
    assert stored([(4000, 3000), (1000, 750), (500, 500)]) == [0, 1], "a square thumbnail"
    assert stored([(4000, 3000), (4000, 3000), (1000, 750)]) == [0, 2], "the same size twice"
    assert stored([(1000, 750), (2000, 1500)]) == [0], "larger than the one before"


def test_an_added_level_keeps_its_exact_downsample_where_sizes_do_not_divide() -> None:
    plans = plan_levels(((5001, 4001),))
    assert [plan.size for plan in plans] == [(5001, 4001), (1251, 1001)]
    assert plans[1].downsample == (4.0, 4.0), "not 5001 / 1251: that would drift by most of a pixel"


def test_added_levels_average_the_level_before(make_slide, tmp_path) -> None:
    path = make_slide(tmp_path / "slide.tif", (5003, 2051), (1,), compression=None)
    with open_slide(path) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(5003, 2051), (1251, 513)]
        whole = slide.read_level(0, 0, 0, 5003, 2051).astype(int)
        for x, y, width, height in ((0, 0, 100, 80), (600, 300, 651, 213), (1240, 500, 11, 13)):
            pixels = slide.read_level(1, x, y, width, height)
            for row, column in ((0, 0), (height // 2, width // 3), (height - 1, width - 1)):
                r, c = (y + row) * 4, (x + column) * 4
                mean = whole[r : r + 4, c : c + 4].mean(axis=(0, 1))
                assert np.abs(pixels[row, column] - mean).max() <= 0.5


def test_a_kept_block_is_computed_once_whatever_the_number_of_threads() -> None:
    plan = LevelPlan((1200, 700), (2.0, 2.0), None, 0, 2)
    level, calls, lock = AddedLevel(plan, (2400, 1400)), [], threading.Lock()

    def read(number, x, y, width, height):
        with lock:
            calls.append((x, y))
        return np.full((height, width, 3), (x // 1024) * 10 + y // 1024, np.uint8)

    results = []
    threads = [threading.Thread(target=lambda: results.append(level.read(read, 0, 0, 1200, 700))) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(results) == 8
    assert sorted(calls) == [(x, y) for x in (0, 1024, 2048) for y in (0, 1024)]
    assert all((result == results[0]).all() for result in results)
    assert results[0][600, 1100, 0] == 21


def test_a_large_added_level_is_computed_on_demand_and_not_kept(monkeypatch) -> None:
    monkeypatch.setattr(module, "KEPT_PX", 1000)
    level = AddedLevel(LevelPlan((100, 100), (4.0, 4.0), None, 0, 4), (400, 400))
    calls = []

    def read(number, x, y, width, height):
        calls.append((x, y, width, height))
        return np.zeros((height, width, 3), np.uint8)

    for _ in range(2):
        assert level.read(read, 10, 20, 5, 6).shape == (6, 5, 3)
    assert calls == [(40, 80, 20, 24)] * 2


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(9, 11, 2), (64, 64, 4), (50, 37, 3), (40, 300, 17), (1, 1, 4)]
)
def test_box_averages_are_exact_and_cut_boxes_average_what_is_there(height, width, factor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    small = reduce_box(pixels, factor)
    assert small.shape == (-(-height // factor), -(-width // factor), 3)
    for row in range(small.shape[0]):
        for column in range(small.shape[1]):
            box = pixels[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            exact = np.floor(box.reshape(-1, 3).astype(np.int64).mean(axis=0) + 0.5)
            np.testing.assert_array_equal(small[row, column], exact)


def test_box_averages_agree_with_pillow() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(pixels).reduce((2, 3)))
    assert np.abs(reduce_box(pixels, (2, 3)).astype(int) - theirs).max() <= 1
