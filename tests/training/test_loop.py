"""The loop keeps the best weights, resumes exactly, and refuses what cannot be right."""

import json
import logging
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from napari_msamil.errors import NotFiniteError
from napari_msamil.training.loop import CheckpointError, DivergedError, Plan, State, StoppedError, train

PLAN = Plan("fit", steps=12, learning_rate=0.05, warmup=3, score_every=4, seed=5)


def fit(folder: Path, plan: Plan = PLAN, **options: object) -> tuple[nn.Linear, list[float]]:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    losses: list[float] = []

    def step(number: int) -> float:
        x = torch.randn(8, 4)  # from the global state, as dropout would be
        loss = (nn.functional.dropout(model(x), 0.2) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        return losses[-1]

    def score() -> float:
        return -float((model.weight - 1).abs().sum().detach())

    train(plan, {"model": model}, step=step, score=score, folder=folder, **options)  # type: ignore[arg-type]
    return model, losses


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, losses = fit(tmp_path / "whole")
    _, first = fit(tmp_path / "parts", stop_after=6)  # the last checkpoint is at step 4
    resumed, second = fit(tmp_path / "parts", resume=True)
    assert first[:4] + second == losses
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.bias, resumed.bias)


def test_best_weights_are_left_in_the_model(tmp_path: Path) -> None:
    model, _ = fit(tmp_path, replace(PLAN, steps=40, learning_rate=0.3))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    left = -float((model.weight - 1).abs().sum().detach())
    assert left == pytest.approx(max(line["score"] for line in lines if line["score"] is not None), abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "steps", "best"), [([0.7, 0.9, 0.9, 0.9, 1.0], 16, 16), ([0.7, 0.9, 0.8, 0.85], 16, 8)]
)
def test_patience_ends_with_equal_scores_of_which_the_latest_counts(
    tmp_path: Path, scores: list[float], steps: int, best: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = nn.Linear(4, 1)
    given = iter(scores)

    def step(number: int) -> float:
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return float(loss.detach())

    plan = replace(PLAN, steps=40, patience=2)
    state = train(plan, {"model": model}, step=step, score=lambda: next(given), folder=tmp_path)
    assert (state.step, state.best_step) == (steps, best)
    assert ("ended early, no better score in 2 scores (patience)" in caplog.text) == (steps < 40)
    assert f"step {steps} of 40" in caplog.text


def test_a_run_that_does_not_say_when_its_score_was_better_keeps_its_patience() -> None:
    plan = replace(PLAN, steps=1000, score_every=20, patience=10)
    found = {"step": 240, "best_score": 0.9, "best_step": 240, "seconds": 1.0, "loss": 0.3}
    assert not State.of(found).over(plan)
    assert State.of({**found, "better_step": 40}).over(plan)


def test_tensorboard_holds_what_the_log_holds_and_lost_work_is_purged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(tmp_path, tensorboard=True, stop_after=6)  # the last checkpoint is at step 4
    fit(tmp_path, tensorboard=True, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "fit")).Reload()
    assert events.Tags()["scalars"] == ["fit/loss", "fit/gradient", "fit/rate", "fit/score"]
    for name in ("loss", "score", "gradient", "rate"):
        expected = [(line["step"], line[name]) for line in lines if line[name] is not None]
        found = [(event.step, event.value) for event in events.Scalars(f"fit/{name}")]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected], name
    assert [line["step"] for line in lines] == list(range(1, 13))


def test_another_plan_does_not_resume(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.05 and is now 0\.1"):
        fit(tmp_path, replace(PLAN, learning_rate=0.1), resume=True)


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path, stop_after=6)
    before = (tmp_path / "fit.pt").read_bytes()
    model = nn.Linear(4, 1)

    def overflow(number: int) -> float:
        loss = (model(torch.ones(2, 4)) * math.inf).sum()
        loss.backward()
        return 1.0  # as a loss that was clipped

    def refuse() -> float:
        raise NotFiniteError("msamil-tiny gives no finite number for a slide")

    def good(number: int) -> float:
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return float(loss.detach())

    for step, score, said in (
        (lambda _: math.nan, lambda: 0.0, "Stage fit diverged at step 4: the loss became nan; .*fit.pt holds the last"),
        (
            overflow,
            lambda: 0.0,
            r"at step 4: the gradient became (nan|inf); .* learning rate \(now 0\.05",
        ),
        (good, lambda: math.nan, "at the validation slides after step .*: the validation score became nan; "),
        (good, refuse, "at the validation slides after step .*: msamil-tiny gives no finite number for a slide; "),
    ):
        model.zero_grad()
        with pytest.raises(DivergedError, match=said):
            train(PLAN, {"model": model}, step=step, score=score, folder=tmp_path, resume=True)
    assert (tmp_path / "fit.pt").read_bytes() == before
    assert [file.name for file in tmp_path.glob("*.tmp*")] == []


def test_asked_to_stop_in_the_last_step_it_stops_and_the_next_time_is_over(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)

    def step(number: int) -> float:
        if number == PLAN.steps - 1:
            signal.raise_signal(signal.SIGTERM)
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return float(loss.detach())

    with pytest.raises(StoppedError, match=f"after step {PLAN.steps} of {PLAN.steps}"):
        train(PLAN, {"model": model}, step=step, score=lambda: 0.0, folder=tmp_path)
    again = train(PLAN, {"model": model}, step=step, score=lambda: 0.0, folder=tmp_path, resume=True)
    assert again.step == PLAN.steps
