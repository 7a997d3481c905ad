"""Several processes are one training: the same gradient, the same steps, every slide once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from napari_msamil.training.command import run_training
from napari_msamil.training.datasets import synthetic

GRADIENT = """
import sys, torch
from torch import nn
from napari_msamil.training.distributed import gather, mine, process_group, rank, sum_gradients, world
from napari_msamil.training.two_pass import freeze_batch_norm, two_pass_backward

torch.set_num_threads(1)
torch.manual_seed(0)
extractor = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    nn.Linear(32, 16),
).double()
score, out = nn.Linear(16, 1).double(), nn.Linear(16, 2).double()
bags = [torch.randn(5 + k, 3, 9, 9, dtype=torch.float64) for k in range(3)]
extractor(bags[0])
extractor.train()
freeze_batch_norm(extractor)

def head(features):
    pooled = (score(features).softmax(0) * features.tanh()).sum(0)
    return nn.functional.cross_entropy(out(pooled)[None], torch.tensor([1])) / len(bags)

parameters = [*extractor.parameters(), *score.parameters(), *out.parameters()]
with process_group():
    for way in sys.argv[2:]:
        for parameter in parameters:
            parameter.grad = None
        for k in mine(range(len(bags))):
            torch.manual_seed(100 + k)
            if way == "full":
                head(torch.cat([extractor(chunk) for chunk in torch.split(bags[k], 2)])).backward()
            else:
                two_pass_backward(extractor, lambda: torch.split(bags[k], 2), head, modules=[extractor])
        sum_gradients(parameters)
        if rank() == 0:
            torch.save([p.grad for p in parameters], f"{sys.argv[1]}/{way}-{world()}.pt")
    assert gather([k * k for k in mine(range(5))]) == [0, 1, 4, 9, 16]
"""

STATISTICS = """
import sys, torch
from torch import nn
from napari_msamil.training.distributed import average_statistics, process_group, rank

with process_group():
    learning, frozen = nn.BatchNorm2d(2), nn.BatchNorm2d(2).eval()
    frozen.running_mean.fill_(rank())
    learning(torch.full((3, 2, 4, 4), 10.0 * rank()))
    average_statistics([learning, frozen])
    torch.save([learning.running_mean, frozen.running_mean], f"{sys.argv[1]}/{rank()}.pt")
"""


def run(processes: int, *arguments: str) -> None:
    """A program in one process, or in several that torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    line = [sys.executable, *(start if processes > 1 else []), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def train(processes: int, stage: str, cohort: Path, out: Path, *settings: str) -> None:
    """A stage in this process, or in several that torchrun starts."""
    if processes == 1:
        run_training(stage, preset="tiny", settings=settings, cohort=cohort, out=out, command="the command")
    else:
        where = ("--preset", "tiny", "--cohort", str(cohort), "--out", str(out))
        run(processes, "-m", "napari_msamil.training", stage, *where, *settings)


def test_the_two_pass_gradient_of_two_processes_is_the_full_graphs_of_one(tmp_path: Path) -> None:
    program = tmp_path / "gradient.py"
    program.write_text(GRADIENT)
    run(1, str(program), str(tmp_path), "full", "two-pass")
    run(2, str(program), str(tmp_path), "two-pass")
    names = ("full-1", "two-pass-1", "two-pass-2")
    full, one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in names)
    assert len(full) == 10
    for whole, single, double in zip(full, one, two, strict=True):
        assert (single - whole).norm() <= 1e-10 * whole.norm()
        assert (double - whole).norm() <= 1e-10 * whole.norm()


def test_statistics_of_batch_norm_are_those_of_all_processes(tmp_path: Path) -> None:
    program = tmp_path / "statistics.py"
    program.write_text(STATISTICS)
    run(2, str(program), str(tmp_path))
    for rank in (0, 1):
        learning, frozen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(learning, torch.full((2,), 0.5))  # momentum 0.1 towards 0 and towards 10
        torch.testing.assert_close(frozen, torch.full((2,), float(rank)))


SETTINGS = ("model.thumbnail_px=128", "end_to_end.patches=6", "end_to_end.accum=3", "machine.device=cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cohort's table, and the folder of all stages trained on it in one process."""
    folder = tmp_path_factory.mktemp("one")
    cohort = synthetic.write(folder / "cohort", slides=10, size_px=512)
    train(1, "all", cohort, folder / "1", *SETTINGS)
    return cohort, folder / "1"


def test_two_processes_train_and_score_as_one_does(trained: tuple[Path, Path], tmp_path: Path) -> None:
    cohort, one = trained
    train(2, "all", cohort, tmp_path / "2", *SETTINGS)
    said = (tmp_path / "2" / "commands.txt").read_text()
    assert said.startswith("torchrun --nproc-per-node 2 -m napari_msamil.training all --preset tiny")
    logs = []
    for out in (one, tmp_path / "2"):
        lines = (out / "fold-0" / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    assert [(line["stage"], line["step"]) for line in logs[0]] == [(line["stage"], line["step"]) for line in logs[1]]
    first = [next(line for line in log if line["stage"] == "end-to-end") for log in logs]
    assert abs(first[0]["loss"] - first[1]["loss"]) < 0.02 * first[0]["loss"]
    weights = [
        torch.load(out / "fold-0" / "end-to-end.pt", weights_only=True)["modules"]["aggregator"]
        for out in (one, tmp_path / "2")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=2e-3)


def test_two_processes_take_a_stage_over_from_another_run(trained: tuple[Path, Path], tmp_path: Path) -> None:
    cohort, one = trained
    train(2, "segment", cohort, tmp_path / "2", *SETTINGS, f"machine.reuse={one}")
    taken, made = ((out / "fold-0" / "segment.pt").read_bytes() for out in (tmp_path / "2", one))
    assert taken == made
