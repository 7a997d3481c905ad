"""The one training loop of all stages: schedule, checks, logs, choice of the best weights, exact resume.

Nothing random is carried from step to step: whatever step ``n`` draws follows from the seed and ``n`` alone, and so
does the learning rate. A run that was stopped and resumed is therefore the run that was not stopped, and a checkpoint
needs no state of any random generator, sampler or scheduler.
"""

import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from tqdm import tqdm

from napari_msamil.errors import MsamilError, NotFiniteError

from .checkpoint import CheckpointError, load_checkpoint, put_back, save_checkpoint, weights_of
from .distributed import all_parameters, average_statistics, rank, sum_gradients, total, wait_for_all
from .log import TELL_SECONDS, Log

__all__ = ["CheckpointError", "DivergedError", "Plan", "State", "StoppedError", "train"]

_log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 300.0
"""A checkpoint is never older than this by more than one step."""
_NOTES_A_SCORE = 10  # lines in the log between two scores


class DivergedError(MsamilError):
    """A loss became infinite or no number."""


class StoppedError(MsamilError):
    """A stage was asked to stop, wrote its checkpoint and did so."""


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
        patience: Scores without a better one after which the stage ends early; 0 never.
        clip: Largest norm of the gradient.
        seed: Of everything random.
        made_from: Hash of all else that the result depends on (settings, slides), so that a resumed run is the same.
        begun_from: Hash of the weights of earlier stages that it went on from.
    """

    name: str
    steps: int
    learning_rate: float
    warmup: int = 50
    weight_decay: float = 1e-4
    score_every: int = 100
    patience: int = 0
    clip: float = 5.0
    seed: int = 0
    made_from: str = ""
    begun_from: str = ""


@dataclass
class State:
    """Where a stage stands: what a checkpoint holds beside weights and optimiser.

    Of equal scores the latest counts as best (few validation slides soon all rank right, and more training still helps
    the probabilities), but only a better one is worth more patience.
    """

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    better_step: int = 0
    seconds: float = 0.0
    loss: float = math.nan

    @classmethod
    def of(cls, found: dict[str, Any]) -> Self:
        """As a checkpoint holds it; runs of earlier versions do not say when a score was better."""
        return cls(**{"better_step": found["best_step"], **found})

    def count(self, loss: float) -> None:
        """Book a step."""
        self.step += 1
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss

    def judge(self, score: float) -> bool:
        """Book a validation score; says whether it is the best."""
        best = score >= self.best_score
        if score > self.best_score:
            self.better_step = self.step
        if best:
            self.best_score, self.best_step = score, self.step
        return best

    def over(self, plan: Plan) -> bool:
        """Whether nothing is left to do."""
        waited = self.step - self.better_step
        scored = self.step % plan.score_every == 0
        return self.step >= plan.steps or (plan.patience > 0 and scored and waited >= plan.patience * plan.score_every)


def train(
    plan: Plan,
    modules: Mapping[str, nn.Module],
    *,
    step: Callable[[int], float],
    score: Callable[[], float],
    folder: Path,
    resume: bool = False,
    rates: Mapping[str, float] | None = None,
    slides: Callable[[int], str] | None = None,
    tensorboard: bool = False,
    stop_after: int | None = None,
) -> State:
    """Train modules and leave the best of their weights in them.

    Args:
        plan: The schedule.
        modules: What is trained and saved, by name.
        step: Draws the data of step n, runs forward and backward, returns the loss. Sets the modules' modes itself. Of
            several processes each does its share, and the sum of their losses and gradients is the step's.
        score: Validation score of the present weights, higher is better; the same in all processes.
        folder: Where ``<stage>.pt`` (checkpoint), ``log.jsonl`` and ``log.csv`` go.
        resume: Continue from the checkpoint if there is one.
        rates: Factor of the learning rate by module name; 1 where not named.
        slides: Names the slides of step n, for messages.
        tensorboard: Write TensorBoard files too.
        stop_after: Leave after this step as if the process were killed (for tests).

    Returns:
        The final state.

    Raises:
        DivergedError: A loss, a gradient or a validation score is not finite; the last checkpoint is kept.
        CheckpointError: The checkpoint belongs to another plan, or is damaged.
        StoppedError: Ctrl-C or SIGTERM came; the checkpoint holds the last finished step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{plan.name}.pt"
    optimiser = torch.optim.AdamW(_groups(modules, plan, rates or {}))
    state, best = State(), weights_of(modules)
    if resume and file.exists():
        found, best = load_checkpoint(file, asdict(plan), modules, optimiser)
        state = State.of(found)
        _log.info("%s: resumed at step %d of %d", plan.name, state.step, plan.steps)
    first = rank() == 0
    saved = told = time.monotonic()
    started = saved - state.seconds

    def save() -> None:
        nonlocal saved
        saved = time.monotonic()
        if first:
            save_checkpoint(file, asdict(plan), modules, optimiser, asdict(state), best)
        wait_for_all()

    with (
        _asked_to_stop() as asked,
        Log(folder, plan.name, resumed_at=state.step, tensorboard=tensorboard) if first else nullcontext() as log,
        tqdm(total=plan.steps, initial=state.step, desc=plan.name, unit="step", disable=None if first else True) as bar,
    ):
        while not state.over(plan):
            rate = _set_rate(optimiser, plan, state.step)
            with _finite(plan, f"step {state.step}{f' on {slides(state.step)}' if slides else ''}", file):
                loss, gradient = _take_step(plan, modules, optimiser, step, state.step)
            state.count(loss)
            bar.set_postfix(loss=f"{state.loss:.3f}", refresh=False)
            bar.update()
            scored = state.step % plan.score_every == 0 or state.step == plan.steps
            with _finite(plan, f"the validation slides after step {state.step}", file):
                value = score() if scored else None
                _refuse_infinite("validation score", 0.0 if value is None else value)
            if value is not None and state.judge(value):
                best = weights_of(modules)
            state.seconds = time.monotonic() - started
            if bar.disable and (time.monotonic() - told >= TELL_SECONDS or state.over(plan)):
                told = time.monotonic()
                _tell(plan, state)
            if state.over(plan) and state.step < plan.steps:
                _log.info("%s: ended early, no better score in %d scores (patience)", plan.name, plan.patience)
            if log and (scored or state.step % max(1, plan.score_every // _NOTES_A_SCORE) == 0):
                facts = asdict(state) | {"best_score": state.best_score if state.best_step else None}
                del facts["better_step"]
                log.note(**facts, steps=plan.steps, score=value, gradient=gradient, rate=rate)
            stop = total(float(asked.is_set())) > 0  # all processes stop at the same step
            late = total(float(time.monotonic() - saved > CHECKPOINT_SECONDS)) > 0
            if scored or stop or late:
                save()
            if stop:
                raise StoppedError(
                    f"Stage {plan.name} was stopped after step {state.step} of {plan.steps}. The same command goes on "
                    "from there."
                )
            if stop_after is not None and state.step >= stop_after:
                return state
    put_back(modules, best)
    return state


def _take_step(
    plan: Plan,
    modules: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    step: Callable[[int], float],
    number: int,
) -> tuple[float, float]:
    """Draw, forward, backward, and a step of the optimiser; returns the loss and the norm of the gradient.

    Raises:
        NotFiniteError: One of them is not finite; the weights stay as they were.
    """
    torch.manual_seed(plan.seed * 1_000_003 + number)
    loss = total(step(number))
    _refuse_infinite("loss", loss)
    sum_gradients(all_parameters(modules.values()))
    gradient = float(nn.utils.clip_grad_norm_(all_parameters(modules.values()), plan.clip))
    _refuse_infinite("gradient", gradient)
    average_statistics(modules.values())
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss, gradient


def _refuse_infinite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise NotFiniteError(f"the {what} became {value}")


@contextmanager
def _finite(plan: Plan, where: str, file: Path) -> Iterator[None]:
    """Say of which stage and step it is that a number overflows, and what to do."""
    try:
        yield
    except NotFiniteError as error:
        kept = f"{file} holds the last good state" if file.exists() else "nothing was saved yet"
        raise DivergedError(
            f"Stage {plan.name} diverged at {where}: {error}; {kept}. Look at the slide, or lower the learning rate "
            f"(now {plan.learning_rate:g} at its highest) in a run of its own."
        ) from error


def _tell(plan: Plan, state: State) -> None:
    """A line in the log for those who see no bar."""
    best = f", best score {state.best_score:.4f} at step {state.best_step}" if state.best_step else ""
    left = state.seconds / state.step * (plan.steps - state.step)
    _log.info("%s: step %d of %d, loss %.3f%s, %.0f s left", plan.name, state.step, plan.steps, state.loss, best, left)


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, instead of ending the process in the middle of a step."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may take signals
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set():  # the second time means now
            raise KeyboardInterrupt
        asked.set()
        tqdm.write("stopping after this step; once more to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _groups(modules: Mapping[str, nn.Module], plan: Plan, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    groups = []
    for name, module in modules.items():
        parameters = list(module.parameters())
        factor = rates.get(name, 1.0)
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decays]
            groups.append({"params": chosen, "weight_decay": plan.weight_decay * decays, "factor": factor})
    return [group for group in groups if group["params"]]


def _set_rate(optimiser: torch.optim.Optimizer, plan: Plan, step: int) -> float:
    """Set the learning rate of a step; returns it without the modules' own factors."""
    rise = min((step + 1) / max(plan.warmup, 1), 1.0)
    fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    rate = plan.learning_rate * rise * fall
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]
    return rate
