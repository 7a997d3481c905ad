"""Several processes as one: who does which part of a step, and how their gradients become one.

Started by ``torchrun --nproc-per-node N -m napari_msamil.training ...``; in a single process everything here does
nothing. Gradients are summed by hand, once per step: hooks that sum while a backward pass runs would do so after each
chunk of the two-pass gradient cache.
"""

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist

from napari_msamil.errors import MsamilError

Item = TypeVar("Item")
_PATIENCE = timedelta(days=1)  # one process may prepare slides for hours while the others wait; torchrun ends them all


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes where torchrun started this one, and leave at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_own_gpu(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _own_gpu(local_rank: int, gpus: int) -> int:
    if local_rank >= gpus:
        raise MsamilError(
            f"torchrun started process {local_rank + 1} on a machine with {gpus} GPU{'s' if gpus > 1 else ''}: give "
            "--nproc-per-node the number of GPUs at most."
        )
    return local_rank


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def called_as(arguments: Sequence[str]) -> str:
    """The command line of this program, also where torchrun started it; ``arguments`` follow the program's name."""
    processes, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if processes < 2:
        return shlex.join(["msamil", *arguments])
    nodes = [] if processes == local else ["--nnodes", str(processes // local)]
    launcher = ["torchrun", *nodes, "--nproc-per-node", str(local), "-m", "napari_msamil.training"]
    return shlex.join([*launcher, *arguments[1:]])  # without `train`, which the module stands for


def mine(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share: every world-th item, none of them twice and none added."""
    return items[rank() :: world()]


def gather(results: Sequence[Item]) -> list[Item]:
    """The results of all processes for the items that `mine` gave them, in the order of the items."""
    if world() == 1:
        return list(results)
    parts: list[Sequence[Item]] = [()] * world()
    dist.all_gather_object(parts, list(results))
    ordered: list[Item] = []
    for place in range(max(map(len, parts))):
        ordered += [part[place] for part in parts if place < len(part)]
    return ordered


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up each parameter's gradient over all processes; one that took part nowhere keeps none."""
    if world() == 1:
        return
    chosen = [p for p in parameters if p.requires_grad]
    took_part = torch.tensor([p.grad is not None for p in chosen], dtype=torch.int32, device=chosen[0].device)
    dist.all_reduce(took_part, dist.ReduceOp.MAX)
    for parameter, wanted in zip(chosen, took_part.tolist(), strict=True):
        if wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def average_statistics(modules: Iterable[torch.nn.Module]) -> None:
    """Make the running statistics of batch norm those of all processes, each of which saw its own share."""
    if world() == 1:
        return
    learning = [
        part
        for module in modules
        for part in module.modules()
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.training
    ]
    buffers = [b for part in learning for b in (part.running_mean, part.running_var) if b is not None]
    if buffers:
        together = torch.cat([b.flatten() for b in buffers])
        dist.all_reduce(together)
        means = torch.split(together / world(), [b.numel() for b in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean.view_as(buffer))


def total(value: float) -> float:
    """A number added up over all processes."""
    if world() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(summed)
    return float(summed)


def wait_for_all() -> None:
    """Go on only when every process has come here."""
    if world() > 1:
        dist.barrier()


def all_parameters(modules: Iterable[torch.nn.Module]) -> Iterator[torch.nn.Parameter]:
    """The parameters of several modules, one after the other."""
    return chain.from_iterable(module.parameters() for module in modules)
