"""Where and how networks run: device, precision, memory allocator, and batches that shrink when memory ends."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from napari_msamil.errors import MsamilError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

DEVICES = ("auto", "cpu", "cuda", "mps")

# Names and numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_INT_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model runs, and why.

    Attributes:
        name: torch device, such as "cpu", "cuda:0" or "mps".
        reason: one sentence for the user: what was found, or why no GPU is used.
        precision: "fp32", "bf16" or "fp16": autocast on a GPU, weights of that type on a CPU.
    """

    name: str
    reason: str
    precision: str


def tune_allocator() -> bool:
    """Keep freed memory in the process, so that large activations are not paged in anew for every batch.

    With glibc's defaults each activation above 32 MiB is mapped and unmapped by the kernel; on a CPU these page
    faults cost more time than the arithmetic. One arena for all threads, no memory maps and no trimming remove them;
    call this before worker threads start, since a thread keeps the arena it began with. The price: the process keeps
    its peak memory until it ends.

    Returns:
        True where it took effect (Linux with glibc), False elsewhere, where nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    return all(
        mallopt(option, value) == 1
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _INT_MAX))
    )


def choose_device(name: str = "auto", *, cpu_precision: str = "fp32") -> Device:
    """Pick the device to run on.

    Args:
        name: "auto" (a GPU where there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
        cpu_precision: "bf16" if the model was shown to give the same results in it; a CPU that has no such arithmetic
            uses fp32 all the same.

    Raises:
        MsamilError: the device asked for by name is not there, or the name is none.
    """
    import torch

    if name != "auto" and name.split(":")[0] not in DEVICES:
        raise MsamilError(f"Unknown device {name!r}: choose one of {', '.join(DEVICES)}.")
    cuda, why_no_cuda = _cuda_state()
    if name.startswith("cuda") or (name == "auto" and cuda):
        if not cuda:
            raise MsamilError(f"Device {name!r} cannot be used: {why_no_cuda}. Choose 'auto' or 'cpu'.")
        index = torch.device(name).index if name.startswith("cuda:") else torch.cuda.current_device()
        if index is None or index >= torch.cuda.device_count():
            raise MsamilError(f"Device {name!r} is not there: {torch.cuda.device_count()} CUDA device(s) found.")
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return Device(f"cuda:{index}", torch.cuda.get_device_name(index), precision)
    mps = torch.backends.mps.is_available()
    if name == "mps" and not mps:
        raise MsamilError("Device 'mps' cannot be used: this machine has no Apple GPU that torch can reach.")
    if name == "mps" or (name == "auto" and mps):
        return Device("mps", "Apple GPU", "fp32")
    threads = torch.get_num_threads()
    reason = "asked for" if name == "cpu" else f"no GPU is used: {why_no_cuda}"
    precision = "bf16" if cpu_precision == "bf16" and _cpu_has_bf16() else "fp32"
    return Device("cpu", f"{reason}; {threads} thread{'s' if threads > 1 else ''}", precision)


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 numbers itself (AVX512-BF16 or AMX), which is when they are faster than fp32."""
    import torch

    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _cuda_state() -> tuple[bool, str]:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return False, "this build of torch has no CUDA support"
    if not torch.cuda.is_available():
        return False, "torch finds no CUDA device or no matching driver"
    return True, ""


def autocast(device: Device) -> torch.autocast:
    """Context of mixed precision for a GPU; does nothing on a CPU, where it converts all weights for every batch."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(device.precision)
    kind = device.name.split(":")[0]
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not None and kind != "cpu")


def default_batch(device: Device, patch_px: int) -> int:
    """Patches per batch: a CPU is fastest with a batch that stays near its caches, a GPU with a large one."""
    if device.name == "cpu":
        return max(4, 16 * 224**2 // patch_px**2)
    return max(8, 128 * 256**2 // patch_px**2)


def parallel_batches(device: Device) -> int:
    """Batches to run at once: on a CPU one per core is a tenth faster than one on all cores; four bound the memory."""
    import torch

    return min(4, torch.get_num_threads()) if device.name == "cpu" else 1


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Results of a function of torch, in the order of the items, with ``workers`` calls under way at once.

    The workers share torch's threads among themselves. Items are taken only as they are needed; closing the generator
    waits for the calls under way and starts no more.
    """
    import torch

    threads = torch.get_num_threads()
    under_way: deque[Future[Result]] = deque()
    each = max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, "msamil-torch", initializer=torch.set_num_threads, initargs=(each,))
    try:
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) >= workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # a new thread begins with the number that was set last, in whichever thread


class BatchRunner:
    """Runs a function over batches and halves the batch whenever memory ends, until single rows fail too.

    The smaller size is kept for later batches, so the failure is paid for once.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], batch_size: int) -> None:
        self.function = function
        self.batch_size = batch_size

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Apply the function to (B, ...) rows in chunks of at most `batch_size`; results are joined, (B, ...)."""
        import torch

        done: list[torch.Tensor] = []
        start = 0
        while start < len(rows):
            chunk = rows[start : start + self.batch_size]
            try:
                done.append(self.function(chunk))
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    raise MsamilError(
                        "Out of memory with a single patch. Close other programs, or use the CPU (device 'cpu')."
                    ) from error
            else:
                start += len(chunk)
                continue
            # Outside the handler: the traceback, which holds the tensors of the failed try, is gone by now.
            self.batch_size = max(1, min(self.batch_size, len(chunk)) // 2)
            logger.warning("out of memory: going on with batches of %d", self.batch_size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return torch.cat(done)


def _out_of_memory(error: RuntimeError) -> bool:
    import torch

    words = ("out of memory", "can't allocate memory", "not enough memory")  # CUDA and MPS, CPU, CPU on Windows
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
