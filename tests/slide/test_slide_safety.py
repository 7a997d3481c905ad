"""Threads, processes, read errors, closing, and memory."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from napari_msamil.errors import ReadError, SlideError
from napari_msamil.slide import open_slide, slide, tiff, tiles

SIZE = (3001, 2003)


@pytest.fixture(scope="module")
def path(make_slide, tmp_path_factory) -> Path:
    return make_slide(tmp_path_factory.mktemp("safety") / "slide.tif", SIZE, (1, 4), mpp=0.5)


def boxes(count: int) -> list[tuple[float, float, float, float, tuple[int, int]]]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        size = tuple(int(v) for v in rng.integers(20, 200, 2))
        scale = float(rng.choice([1, 2, 2.7, 4, 8]))
        x, y = rng.uniform(-100, SIZE[0]), rng.uniform(-100, SIZE[1])
        found.append((float(x), float(y), size[0] * scale, size[1] * scale, size))
    return found


def read_all(opened, wanted) -> list[np.ndarray]:
    return [opened.read(x, y, width, height, size=size) for x, y, width, height, size in wanted]


@pytest.mark.parametrize("cache_bytes", [64 << 20, 1 << 20, 0])
def test_eight_threads_read_what_one_reads(path, monkeypatch, cache_bytes: int) -> None:
    monkeypatch.setattr(tiff, "TILE_CACHE_BYTES", cache_bytes)
    wanted = boxes(60)
    with open_slide(path) as opened:
        truth = read_all(opened, wanted)
    with open_slide(path) as opened, ThreadPoolExecutor(8) as pool:
        orders = [np.random.default_rng(i).permutation(len(wanted)) for i in range(8)]
        results = pool.map(lambda order: (order, read_all(opened, [wanted[i] for i in order])), orders)
        for order, pictures in results:
            for i, picture in zip(order, pictures, strict=True):
                np.testing.assert_array_equal(picture, truth[i])


def test_the_portable_way_to_read_files_is_as_safe(path, monkeypatch) -> None:
    """Windows has no pread."""
    wanted = boxes(30)
    with open_slide(path) as opened:
        truth = read_all(opened, wanted)
    monkeypatch.delattr(os, "pread", raising=False)
    monkeypatch.setattr(tiff, "TILE_CACHE_BYTES", 0)
    with open_slide(path) as opened, ThreadPoolExecutor(8) as pool:
        for pictures in pool.map(lambda _: read_all(opened, wanted), range(8)):
            for picture, expected in zip(pictures, truth, strict=True):
                np.testing.assert_array_equal(picture, expected)


def _child_sum(opened) -> tuple[int, object, str]:
    return int(opened.read(10, 20, 300, 200, size=(150, 100)).astype(int).sum()), opened.mpp, opened.uid


def test_a_slide_pickles_into_a_spawned_process(path) -> None:
    with open_slide(path, (0.25, 0.3)) as opened:
        copy = pickle.loads(pickle.dumps(opened))
        assert (copy.mpp, copy.mpp_source, copy.uid) == ((0.25, 0.3), "explicit", opened.uid)
        copy.close()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_child_sum, (opened,)) == _child_sum(opened)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_opens_the_file_again_even_if_locks_were_held(path) -> None:
    with open_slide(path) as opened:
        expected = _child_sum(opened)[0] % 251
        for lock in (opened._locks.setdefault(os.getpid(), threading.Lock()),):
            lock.acquire()  # another thread of the parent is just opening the file
        child = os.fork()
        if child == 0:  # no pytest in here: leave without its cleanup
            try:
                parents = opened._handles[os.getppid()]
                ok = _child_sum(opened)[0] % 251 == expected and opened._handles[os.getpid()] is not parents
            except BaseException:
                ok = False
            os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_read_error_opens_the_file_again_once_and_the_retry_counts(path, monkeypatch) -> None:
    read, opens, failures = tiff.TiffBackend.read, [], [OSError("the network dropped")]
    open_file = slide.open_file

    def flaky(self, *box, **how):
        if failures:
            raise failures.pop()
        return read(self, *box, **how)

    monkeypatch.setattr(tiff.TiffBackend, "read", flaky)
    monkeypatch.setattr(slide, "open_file", lambda *args: (opens.append(1), open_file(*args))[1])
    with open_slide(path) as opened:
        assert opened.read_level(0, 0, 0, 50, 50).std() > 0
        assert len(opens) == 2
        failures.extend([OSError("once"), OSError("twice")])
        with pytest.raises(ReadError, match=r"slide\.tif cannot be read at level 0, x 7, y 8, 50 x 60 pixels \(once\)"):
            opened.read_level(0, 7, 8, 50, 60)
        assert opened.read_level(0, 0, 0, 50, 50).std() > 0, "the slide stays usable"


def test_a_file_that_vanishes_or_changes_gives_a_read_error(path, tmp_path, monkeypatch, make_slide) -> None:
    monkeypatch.setattr(tiff, "TILE_CACHE_BYTES", 0)
    copy = tmp_path / "copy.tif"
    copy.write_bytes(path.read_bytes())
    with open_slide(copy) as opened:
        monkeypatch.setattr(tiles.ByteSource, "read", lambda self, *args: (_ for _ in ()).throw(OSError("stale")))
        copy.unlink()
        with pytest.raises(ReadError, match="does not exist"):
            opened.read_level(0, 0, 0, 50, 50)
        make_slide(copy, (500, 400), (1,))
        with pytest.raises(ReadError, match="changed while it was open"):
            opened.read_level(0, 0, 0, 50, 50)


def test_a_file_that_was_replaced_is_not_taken_for_the_one_that_was_opened(tmp_path, make_slide) -> None:
    path = make_slide(tmp_path / "case.tif", (500, 400), (1,))
    with open_slide(path) as slide:
        slide.check_unchanged()
        os.utime(path, ns=(1, 1))
        with pytest.raises(SlideError, match=r"case\.tif was changed since it was opened.*open it again"):
            slide.check_unchanged()
        path.unlink()
        with pytest.raises(SlideError, match="does not exist"):
            slide.check_unchanged()


def test_a_closed_slide_says_so_and_closing_twice_is_fine(path) -> None:
    opened = open_slide(path)
    opened.close()
    opened.close()
    with pytest.raises(ReadError, match=r"slide\.tif was closed"):
        opened.read_level(0, 0, 0, 10, 10)


def test_closing_while_others_read_never_gives_wrong_pixels(path, monkeypatch) -> None:
    monkeypatch.setattr(tiff, "TILE_CACHE_BYTES", 0)
    with open_slide(path) as opened:
        truth = opened.read_level(0, 100, 100, 600, 600)
    for _ in range(5):
        opened = open_slide(path)
        wrong: list[str] = []

        def work(opened=opened, wrong=wrong) -> None:
            try:
                for _ in range(50):
                    if not (opened.read_level(0, 100, 100, 600, 600) == truth).all():
                        wrong.append("pixels")
            except ReadError as error:
                if "was closed" not in str(error):
                    wrong.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(4)]
        [thread.start() for thread in threads]
        opened.close()
        [thread.join() for thread in threads]
        assert not wrong


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts file handles through /proc")
def test_no_file_handle_stays_open(path) -> None:
    def handles() -> int:
        return sum(entry.readlink() == path for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())

    gc.disable()  # references alone must close it
    try:
        opened = open_slide(path)
        opened.read_level(0, 0, 0, 10, 10)
        opened.read(0, 0, *SIZE, size=(100, 100))
        assert handles() == 1
        opened.close()
        assert handles() == 0
        opened = open_slide(path)
        opened.read_level(1, 0, 0, 10, 10)
        del opened
        assert handles() == 0
    finally:
        gc.enable()


def test_decoded_tiles_stay_within_their_bound(path, monkeypatch) -> None:
    monkeypatch.setattr(tiff, "TILE_CACHE_BYTES", 3 << 20)
    with open_slide(path) as opened:
        cache = opened._handle().backend._cache
        for x in range(0, SIZE[0], 256):
            opened.read_level(0, x, 0, 256, SIZE[1])
            assert cache.nbytes <= 3 << 20
        assert len(cache) == 16


def test_memory_does_not_grow_with_the_number_of_slides(path) -> None:
    def visit() -> None:
        with open_slide(path) as opened:
            opened.read(0, 0, *SIZE, size=(300, 200))

    visit()
    tracemalloc.start()
    try:
        visit()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(30):
            visit()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 200_000
    finally:
        tracemalloc.stop()


def test_a_thumbnail_of_a_one_level_slide_takes_bounded_memory(make_slide, tmp_path) -> None:
    big = make_slide(tmp_path / "big.tif", (10000, 8000), (1,), tile=1024, compression=None)
    with open_slide(big) as opened:
        tracemalloc.start()
        try:
            opened.read(0, 0, 10000, 8000, size=(1000, 800))
            assert tracemalloc.get_traced_memory()[1] < 200e6, "the slide itself would be 240 MB"
        finally:
            tracemalloc.stop()


@pytest.mark.data
def test_other_libraries_stay_silent(test_data, caplog, capfd) -> None:
    with caplog.at_level(logging.INFO):
        for name in ("large_image_test_orient0.tif", "large_image_small_la.tiff"):
            open_slide(test_data / "bad-inputs" / name).close()
    assert not [record for record in caplog.records if record.name.startswith("tifffile")]
    assert capfd.readouterr() == ("", "")


def test_reading_a_slide_loads_neither_torch_nor_qt_nor_napari(path) -> None:
    code = (
        "import sys; from napari_msamil.slide import open_slide, dask_levels; "
        f"dask_levels(open_slide({str(path)!r}))[1].compute(); "
        "print([name for name in ('torch', 'napari', 'qtpy', 'magicgui', 'openslide') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
