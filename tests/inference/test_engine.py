"""The engine: devices say why, and batches shrink instead of failing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from napari_msamil.errors import MsamilError
from napari_msamil.inference.engine import BatchRunner, Device, choose_device, default_batch, in_parallel


def test_auto_says_why_no_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    device = choose_device("auto")
    assert (device.name, device.precision) == ("cpu", "fp32")
    assert "no GPU is used" in device.reason


def test_a_gpu_asked_for_by_name_is_never_replaced_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MsamilError, match="'cuda' cannot be used"):
        choose_device("cuda")


def test_an_unknown_device_is_refused_with_the_choices() -> None:
    with pytest.raises(MsamilError, match="auto, cpu, cuda, mps"):
        choose_device("tpu")


@pytest.mark.parametrize(
    ("allowed", "native", "expected"), [("bf16", True, "bf16"), ("bf16", False, "fp32"), ("fp32", True, "fp32")]
)
def test_a_cpu_computes_in_bf16_only_where_both_card_and_processor_allow_it(
    monkeypatch: pytest.MonkeyPatch, allowed: str, native: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert choose_device("cpu", cpu_precision=allowed).precision == expected


def test_parallel_results_come_in_order_and_each_worker_gets_its_share_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:

        def work(item: int) -> tuple[int, int]:
            time.sleep(0.02 * (item % 3 == 0))
            return item, torch.get_num_threads()

        assert list(in_parallel(work, range(9), 2)) == [(item, 2) for item in range(9)]
        assert torch.get_num_threads() == 4
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 4, "a thread started later has all threads again"
    finally:
        torch.set_num_threads(before)


def test_parallel_work_takes_items_as_they_are_needed_and_stops_when_closed() -> None:
    taken: list[int] = []
    done: list[int] = []

    def items() -> Generator[int, None, None]:
        for item in range(100):
            taken.append(item)
            yield item

    results = in_parallel(done.append, items(), 2)
    next(results)
    results.close()
    count = len(done)
    assert len(taken) == 2
    time.sleep(0.05)
    assert len(done) == count <= 2


def test_an_error_in_parallel_work_is_raised_where_its_result_would_come() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("the third")
        return item

    results = in_parallel(work, range(10), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(results)


def test_a_batch_that_does_not_fit_is_halved_and_the_result_is_the_same() -> None:
    sizes: list[int] = []

    def double(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows * 2

    runner = BatchRunner(double, 16)
    rows = torch.arange(16.0)[:, None]
    assert torch.equal(runner(rows), rows * 2)
    assert sizes[:4] == [16, 8, 4, 2]
    assert runner.batch_size == 2
    runner(rows)
    assert max(sizes[-8:]) == 2


@pytest.mark.parametrize("text", ["MPS backend out of memory (MPS allocated: 1 GB)", "not enough memory: you tried"])
def test_other_backends_words_for_missing_memory_are_understood(text: str) -> None:
    def only_small(rows: torch.Tensor) -> torch.Tensor:
        if len(rows) > 1:
            raise RuntimeError(text)
        return rows

    assert len(BatchRunner(only_small, 4)(torch.ones(4, 1))) == 4


def test_memory_that_ends_with_one_patch_says_what_to_do() -> None:
    def fail(rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    with pytest.raises(MsamilError, match="single patch"):
        BatchRunner(fail, 4)(torch.ones(4, 1))


def test_other_errors_of_the_network_are_not_taken_for_missing_memory() -> None:
    def fail(rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        BatchRunner(fail, 4)(torch.ones(4, 1))


def test_larger_patches_get_smaller_batches() -> None:
    cpu = Device("cpu", "", "fp32")
    assert default_batch(cpu, 224) > default_batch(cpu, 512) >= 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_the_allocator_keeps_large_blocks_so_that_they_are_not_paged_in_again() -> None:
    script = """
import resource, sys, threading
import torch
from napari_msamil.inference.engine import tune_allocator
if sys.argv[1] == "tuned":
    assert tune_allocator()
def work():
    for _ in range(20):
        torch.ones(16_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work); thread.start(); thread.join()
"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True).stdout)
        for how in ("tuned", "default")
    }
    assert faults["tuned"] < faults["default"] / 10
