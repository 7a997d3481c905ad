"""Several processes as one: who does which part of a step, and how their gradients become one.

Started by ``torchrun --nproc-per-node N -m napari_msamil.training ...``; in a single process everything here does
nothing. Gradients are summed by hand, once per step: hooks that sum while a backward pass runs would do so after each
chunk of the two-pass gradient cache.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes where torchrun started this one, and leave at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


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


def total(value: float) -> float:
    """A number added up over all processes."""
    if world() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(summed)
    return float(summed)


def wait_for_all() -> None:
    """Go on only when every process has come here."""
    if world() > 1:
        dist.barrier()


def all_parameters(modules: Iterable[torch.nn.Module]) -> Iterator[torch.nn.Parameter]:
    """The parameters of several modules, one after the other."""
    return chain.from_iterable(module.parameters() for module in modules)
