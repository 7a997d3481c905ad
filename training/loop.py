"""The one training loop of all stages: schedule, checks, logs, choice of the best weights, exact resume.

Nothing random is carried from step to step: whatever step ``n`` draws follows from the seed and ``n`` alone. A run that
was stopped and resumed is therefore the run that was not stopped.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Plan:
    """A stage's schedule.

    Attributes:
        name: Of the stage; names its checkpoint and log lines.
        steps: Optimiser steps.
        learning_rate: Peak rate; it rises over the first ``warmup`` steps and falls to a hundredth along a cosine.
        warmup: Steps of linear rise.
        weight_decay: Of AdamW; not applied to biases and norms.
        score_every: Steps between validation scores; the last step is always scored.
        clip: Largest norm of the gradient.
        seed: Of everything random.
    """

    name: str
    steps: int
    learning_rate: float
    warmup: int = 50
    weight_decay: float = 1e-4
    score_every: int = 100
    clip: float = 5.0
    seed: int = 0


class Ahead(Generic[Batch]):
    """Makes the next step's batch in a thread while this one's is learned from."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        """``make`` turns a step's number into its batch; the batch must depend on nothing else."""
        self._make = make
        self._pool = ThreadPoolExecutor(1)
        self._coming: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        mine = self._coming.pop(step, None) or self._pool.submit(self._make, step)
        self._coming = {step + 1: self._pool.submit(self._make, step + 1)}
        return mine.result()


@dataclass
class State:
    """Where a stage stands: what a checkpoint holds beside the optimiser."""

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    seconds: float = 0.0


def train(
    plan: Plan,
    modules: Mapping[str, nn.Module],
    *,
    step: Callable[[int], float],
    score: Callable[[], float],
    folder: Path,
    resume: bool = False,
    rates: Mapping[str, float] | None = None,
    stop_after: int | None = None,
) -> State:
    """Train modules and leave the best of their weights in them.

    Args:
        plan: The schedule.
        modules: What is trained and saved, by name.
        step: Draws the data of step n, runs forward and backward, returns the loss. Sets the modules' modes itself.
        score: Validation score of the present weights, higher is better.
        folder: Where ``<stage>.pt`` (checkpoint) and ``log.jsonl`` go.
        resume: Continue from the checkpoint if there is one.
        rates: Factor of the learning rate by module name; 1 where not named.
        stop_after: Leave after this step as if interrupted (for tests).

    Returns:
        The final state.

    Raises:
        FloatingPointError: If a loss is not finite; the last checkpoint is kept.
        ValueError: If the checkpoint belongs to another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{plan.name}.pt"
    optimiser = torch.optim.AdamW(_groups(modules, plan, rates or {}))
    state, best = State(), _weights(modules)
    if resume and file.exists():
        state, best = _load(file, plan, modules, optimiser)
        _log.info("%s: resumed at step %d of %d", plan.name, state.step, plan.steps)
    started, smooth = time.monotonic() - state.seconds, math.nan
    while state.step < plan.steps:
        torch.manual_seed(plan.seed * 1_000_003 + state.step)
        _set_rate(optimiser, plan, state.step)
        loss = step(state.step)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss of stage {plan.name} became {loss} at step {state.step}; it stops here."
            )
        norm = nn.utils.clip_grad_norm_((p for m in modules.values() for p in m.parameters()), plan.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        state.step += 1
        smooth = loss if math.isnan(smooth) else 0.95 * smooth + 0.05 * loss
        if state.step % plan.score_every == 0 or state.step == plan.steps:
            value = score()
            if value >= state.best_score:
                state.best_score, state.best_step, best = value, state.step, _weights(modules)
            state.seconds = time.monotonic() - started
            line = {"stage": plan.name, **asdict(state), "score": value, "loss": smooth, "gradient": float(norm)}
            _note(folder / "log.jsonl", line)
            _save(file, plan, modules, optimiser, state, best)
        if stop_after is not None and state.step >= stop_after:
            return state
    _restore(modules, best)
    return state


def _groups(modules: Mapping[str, nn.Module], plan: Plan, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    groups = []
    for name, module in modules.items():
        parameters = list(module.parameters())
        factor = rates.get(name, 1.0)
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decays]
            groups.append({"params": chosen, "weight_decay": plan.weight_decay * decays, "factor": factor})
    return [group for group in groups if group["params"]]


def _set_rate(optimiser: torch.optim.Optimizer, plan: Plan, step: int) -> None:
    rise = min((step + 1) / max(plan.warmup, 1), 1.0)
    fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    for group in optimiser.param_groups:
        group["lr"] = plan.learning_rate * group["factor"] * rise * fall


def _weights(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    return {name: {key: value.clone() for key, value in m.state_dict().items()} for name, m in modules.items()}


def _restore(modules: Mapping[str, nn.Module], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    for name, module in modules.items():
        module.load_state_dict(weights[name])


def _save(
    file: Path,
    plan: Plan,
    modules: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    state: State,
    best: Mapping[str, Mapping[str, Tensor]],
) -> None:
    content = {
        "plan": json.dumps(asdict(plan), sort_keys=True),
        "state": asdict(state),
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "best": best,
        "optimiser": optimiser.state_dict(),
    }
    unfinished = file.with_name(f"{file.name}.tmp-{os.getpid()}")
    try:
        with unfinished.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _load(
    file: Path, plan: Plan, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer
) -> tuple[State, dict[str, dict[str, Tensor]]]:
    content = torch.load(file, weights_only=True)
    mine, theirs = asdict(plan), json.loads(content["plan"])
    different: Sequence[str] = [key for key in mine if mine[key] != theirs.get(key)]
    if different:
        changes = ", ".join(f"{key} was {theirs.get(key)} and is now {mine[key]}" for key in different)
        raise ValueError(f"{file} cannot be resumed: {changes}. Use the old values, or start anew without --resume.")
    _restore(modules, content["modules"])
    optimiser.load_state_dict(content["optimiser"])
    best: dict[str, dict[str, Tensor]] = content["best"]
    return State(**content["state"]), best


def _note(file: Path, line: Mapping[str, Any]) -> None:
    text = json.dumps({key: round(v, 5) if isinstance(v, float) else v for key, v in line.items()})
    _log.info(text)
    with file.open("a") as log:
        log.write(text + "\n")
