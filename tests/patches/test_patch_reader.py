"""Streaming patches: every row once, in a thrifty order, with honest failures and a clean end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_msamil.errors import ReadError
from napari_msamil.patches.grid import PatchTable, Scale, build_table
from napari_msamil.patches.reader import read_order, read_patches
from napari_msamil.patches.tissue import tissue_mask
from napari_msamil.slide.slide import open_slide

P = 8
SHIFTS = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1)]


class FakeSlide:
    """A slide whose picture of a box is filled with numbers that tell which box it was."""

    def __init__(
        self, width: int, height: int, before_read: Callable[[float, float], None] = lambda x, y: None
    ) -> None:
        self.name, self.width, self.height = "fake.tif", width, height
        self.reads: list[tuple[float, float, float, float]] = []
        self.threads: set[int] = set()
        self._before_read = before_read

    def read(self, x: float, y: float, width: float, height: float, *, size: tuple[int, int]) -> NDArray[np.uint8]:
        self.threads.add(threading.get_ident())
        self._before_read(x, y)
        self.reads.append((x, y, width, height))
        return np.full((size[1], size[0], 3), [x % 251, y % 251, width % 251], dtype=np.uint8)


def table_of(width: int = 200, height: int = 150, steps: tuple[int, ...] = (1, 2, 4)) -> PatchTable:
    yes = np.ones((1, 1), dtype=bool)
    scales = tuple(Scale(0.5 * step, P) for step in steps)
    return build_table((width, height), (0.5, 0.5), scales=scales, tissue=yes, lesion=yes)


def all_rows(table: PatchTable) -> NDArray[np.int64]:
    return np.arange(len(table))


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("msamil-read")]


@pytest.mark.parametrize(("batch_size", "prefetch", "workers"), [(1, 1, 1), (7, 2, 1), (16, 1, 3), (10_000, 4, 2)])
def test_every_row_comes_once_with_its_own_pixels(batch_size: int, prefetch: int, workers: int) -> None:
    table = table_of()
    slide = FakeSlide(200, 150)
    rows = np.random.default_rng(0).permutation(len(table))[:333]
    seen: list[int] = []
    for batch in read_patches(slide, table, rows, batch_size=batch_size, prefetch=prefetch, workers=workers):  # type: ignore[arg-type]
        assert batch.failed == ()
        assert batch.pixels.shape == (len(batch.rows), P, P, 3)
        width = [table.footprint(int(scale))[0] for scale in table.scale[batch.rows]]
        expected = np.column_stack([table.coords[batch.rows], width]) % 251
        np.testing.assert_array_equal(batch.pixels[:, 3, 5], expected)
        seen += batch.rows.tolist()
    assert sorted(seen) == sorted(rows.tolist())
    assert seen == read_order(table, rows).tolist()
    assert threading.get_ident() not in slide.threads
    assert reading_threads() == []


@pytest.mark.parametrize("steps", [(1, 2, 4), (1, 4, 16), (1, 3, 9), (1, 2), (1,)])
def test_the_order_goes_tree_by_tree_parents_first(steps: tuple[int, ...]) -> None:
    table = table_of(500, 400, steps=steps)
    order = read_order(table, np.random.default_rng(1).permutation(len(table)))
    assert sorted(order.tolist()) == list(range(len(table)))
    place = np.empty(len(table), dtype=int)
    place[order] = np.arange(len(table))
    linked = table.parent >= 0
    assert np.all(place[table.parent[linked]] < place[linked])
    root = np.arange(len(table))
    while np.any(table.parent[root] >= 0):
        root = np.where(table.parent[root] >= 0, table.parent[root], root)
    changes = np.count_nonzero(np.diff(root[order]))
    assert changes == len(np.unique(root)) - 1  # each tree is left once


def test_neighbouring_trees_follow_one_another_along_the_z_curve() -> None:
    table = table_of(8 * P, 8 * P, steps=(1,))
    cells = table.grid[read_order(table, all_rows(table))]
    assert cells[:8].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [2, 0], [3, 0], [2, 1], [3, 1]]
    assert cells[16:20].tolist() == [[4, 0], [5, 0], [4, 1], [5, 1]]


def test_the_order_does_not_need_the_parents() -> None:
    table = table_of(500, 400)
    kept = np.random.default_rng(2).permutation(table.rows_at(0))[:200]
    alone = table.take(kept)
    assert kept[read_order(alone, all_rows(alone))].tolist() == read_order(table, kept).tolist()


def test_r12_a_read_error_marks_its_row_and_never_gives_pixels() -> None:
    def broken(x: float, y: float) -> None:
        if x == 64:
            raise ReadError(f"fake.tif: the tile at {x:g}, {y:g} is cut off")

    table = table_of()
    bad = set(np.flatnonzero(table.coords[:, 0] == 64).tolist())
    assert len(bad) > 5
    read: list[int] = []
    failed: dict[int, str] = {}
    for batch in read_patches(FakeSlide(200, 150, broken), table, all_rows(table), batch_size=4):  # type: ignore[arg-type]
        assert len(batch.rows) == len(batch.pixels)
        np.testing.assert_array_equal(batch.pixels[:, 0, 0, 0], table.coords[batch.rows, 0] % 251)
        read += batch.rows.tolist()
        failed.update(batch.failed)
    assert set(failed) == bad
    assert set(read) == set(range(len(table))) - bad
    row = min(bad)
    assert failed[row] == f"fake.tif: the tile at 64, {table.coords[row, 1]} is cut off"


def test_r12_a_cut_file_gives_the_patches_before_the_cut_and_a_reason_for_each_after_it(
    write_waves: Callable[..., tuple[Path, object]],
) -> None:
    path, _ = write_waves([(512, 512)], (24.0, 24.0), tile_px=64)
    whole = path.read_bytes()
    yes = np.ones((1, 1), dtype=bool)
    table = build_table((512, 512), (0.5, 0.5), scales=(Scale(0.5, 64), Scale(1.0, 64)), tissue=yes, lesion=yes)
    with open_slide(path, 0.5) as slide:
        right = np.concatenate([batch.pixels for batch in read_patches(slide, table, all_rows(table), batch_size=99)])
        order = read_order(table, all_rows(table))
    path.write_bytes(whole[: len(whole) - 3 * 8 * 64 * 64 * 3])  # without the last three rows of tiles
    failed: dict[int, str] = {}
    with open_slide(path, 0.5) as slide:
        for batch in read_patches(slide, table, all_rows(table), batch_size=7):
            failed.update(batch.failed)
            for row, pixels in zip(batch.rows.tolist(), batch.pixels, strict=True):
                np.testing.assert_array_equal(pixels, right[order.tolist().index(row)])
    bottom = table.coords[:, 1] + np.where(table.scale == 0, 64, 128)
    assert set(failed) == set(np.flatnonzero(bottom > 320).tolist())
    assert all("waves.svs cannot be read" in reason for reason in failed.values())


def test_another_error_in_the_reading_thread_reaches_the_consumer_and_ends_the_reading() -> None:
    def faulty(x: float, y: float) -> None:
        if x == 64:
            raise ZeroDivisionError("a fault of ours")

    slide = FakeSlide(200, 150, faulty)
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        list(read_patches(slide, table_of(), all_rows(table_of()), batch_size=4))  # type: ignore[arg-type]
    assert reading_threads() == []
    assert len(slide.reads) < len(table_of())


def test_closing_early_stops_within_a_patch_and_leaves_no_thread() -> None:
    slide = FakeSlide(2000, 1500, lambda x, y: time.sleep(0.002))
    table = table_of(2000, 1500)
    batches = read_patches(slide, table, all_rows(table), batch_size=500, workers=2)  # type: ignore[arg-type]
    next(batches)
    started = time.perf_counter()
    batches.close()
    assert time.perf_counter() - started < 0.5  # a batch takes a second
    assert reading_threads() == []
    count = len(slide.reads)
    time.sleep(0.05)
    assert len(slide.reads) == count


def test_a_failing_consumer_leaves_no_thread() -> None:
    slide, table = FakeSlide(200, 150), table_of()

    def consume() -> None:
        for _ in read_patches(slide, table, all_rows(table), batch_size=3):  # type: ignore[arg-type]
            raise KeyError("the network failed")

    with pytest.raises(KeyError):
        consume()
    deadline = time.perf_counter() + 5
    while reading_threads() and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert reading_threads() == []


def test_a_forgotten_generator_may_be_collected_in_a_reading_thread() -> None:
    table = table_of(2000, 1500)
    slide = FakeSlide(2000, 1500, lambda x, y: time.sleep(0.001))
    batches = [read_patches(slide, table, all_rows(table), batch_size=50)]  # type: ignore[arg-type]
    next(batches[0])
    thread = threading.Thread(target=lambda: batches.pop().close(), name="msamil-read_0")
    thread.start()
    thread.join(timeout=5)
    assert not thread.is_alive()
    deadline = time.perf_counter() + 5
    while reading_threads() and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert reading_threads() == []
    assert len(slide.reads) < len(table)


def test_r24_reading_ahead_is_bounded() -> None:
    slide, table = FakeSlide(2000, 1500), table_of(2000, 1500)
    batches = read_patches(slide, table, all_rows(table), batch_size=10, prefetch=3)  # type: ignore[arg-type]
    for count in range(1, 6):
        next(batches)
        time.sleep(0.1)
        assert len(slide.reads) == 10 * (count + 3)
    batches.close()


def test_no_rows_give_no_batches() -> None:
    assert list(read_patches(FakeSlide(200, 150), table_of(), all_rows(table_of())[:0], batch_size=4)) == []  # type: ignore[arg-type]


def test_a_table_of_another_slide_and_impossible_settings_are_refused_at_once() -> None:
    table = table_of()
    with pytest.raises(ValueError, match=r"table is of a slide of \(200, 150\) px, but fake\.tif has \(201, 150\)"):
        read_patches(FakeSlide(201, 150), table, all_rows(table), batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not 0, 2 and 1"):
        read_patches(FakeSlide(200, 150), table, all_rows(table), batch_size=0)  # type: ignore[arg-type]
    yes = np.ones((1, 1), dtype=bool)
    mixed = build_table((200, 150), (0.5, 0.5), scales=(Scale(0.5, 16), Scale(1, 8)), tissue=yes, lesion=yes)
    with pytest.raises(ValueError, match=r"\[8, 16\] px do not fit one batch"):
        read_patches(FakeSlide(200, 150), mixed, all_rows(mixed), batch_size=4)  # type: ignore[arg-type]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "mpp"),
    [("tubularadenoma-flat_HE.tif", 0.5), ("crohn_HE4_20x.tif", None), ("CMU-1-Small-Region.svs", None)],
)
def test_on_real_slides_four_children_shrunk_are_their_parent(test_data: Path, name: str, mpp: float | None) -> None:
    with open_slide(test_data / "slides" / name, mpp) as slide:
        assert slide.mpp is not None
        tissue = tissue_mask(slide.read(0, 0, slide.width, slide.height, size=(256, 256)))
        scales = (Scale(0.5, 128), Scale(1.0, 128), Scale(2.0, 128))
        table = build_table((slide.width, slide.height), slide.mpp, scales=scales, tissue=tissue, lesion=tissue)
        middle = table.rows_at(2)[table.tissue[table.rows_at(2)] > 0.9][:3]
        family = np.flatnonzero(np.isin(table.parent, middle) | np.isin(np.arange(len(table)), middle))
        family = np.union1d(family, np.flatnonzero(np.isin(table.parent, family)))
        pixels = {}
        for batch in read_patches(slide, table, family, batch_size=8):
            assert batch.failed == ()
            pixels.update(zip(batch.rows.tolist(), batch.pixels.astype(float), strict=True))
    parents = [row for row in pixels if table.scale[row] > 0]
    assert len(parents) == 5 * len(middle) > 0
    for row in parents:
        a, b, c, d = (pixels[child] for child in np.flatnonzero(table.parent == row))  # by x, then y
        mosaic = np.vstack([np.hstack([a, c]), np.hstack([b, d])])
        shrunk = mosaic.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        off = {shift: np.abs(np.roll(shrunk, shift, axis=(0, 1)) - pixels[row]).mean() for shift in SHIFTS}
        assert min(off, key=off.__getitem__) == (0, 0)  # levels are the scanner's own: similar, not equal
