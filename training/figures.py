"""Figures of a training as PNG: ROC curves, calibration, confusion, losses. No pyplot: nothing global, no window."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from napari_msamil.files import write_atomically

from .calibration import BINS, expected_calibration_error, reliability
from .predictions import Predictions, Temperature

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Okabe and Ito, Color Universal Design (2008), without yellow, which is faint on white."""
_LINES = ("-", "--", "-.")
_PALE = "#9a9a9a"
_log = logging.getLogger(__name__)


def roc_figure(predictions_by_fold: Mapping[int, Predictions], path: Path) -> None:
    """ROC curves of each fold and of all pooled: one panel for two classes, else one per class against the rest.

    Folds that lack a class, or slides without it, are not in its panel; nor has a class a panel for which all do.

    Args:
        predictions_by_fold: Test predictions by fold number, of the same classes.
        path: PNG to write.

    Raises:
        ValueError: If no class has slides beside slides of another.
    """
    pooled = Predictions.pooled(list(predictions_by_fold.values()))
    wanted = [1] if _is_one_question(pooled) else range(len(pooled.classes))
    shown = [index for index in wanted if 0 < pooled.has[:, index].sum() < len(pooled.slides)]
    if not shown:
        raise ValueError("All slides have the same label: a ROC curve needs slides with a class and without it.")
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = _figure(4.4 * columns, 4.4 * rows)
    for place, index in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, place)
        _roc_panel(axes, predictions_by_fold, pooled, index)
    _save(figure, path)


def _roc_panel(axes: Axes, by_fold: Mapping[int, Predictions], pooled: Predictions, index: int) -> None:
    axes.plot([0, 1], [0, 1], color=_PALE, linestyle=":", linewidth=1, label="chance (0.500)")
    for number, (fold, found) in enumerate(by_fold.items() if len(by_fold) > 1 else ()):
        curve = _roc(found, index)
        if curve is not None:
            colour, line = COLOURS[1 + number % (len(COLOURS) - 2)], _LINES[number % len(_LINES)]
            name = f"fold {fold} ({curve[2]:.3f})"
            axes.plot(*curve[:2], color=colour, linestyle=line, linewidth=1, alpha=0.8, label=name)
    curve = _roc(pooled, index)
    assert curve is not None  # only classes with slides and with others beside them are drawn
    name = "all folds" if len(by_fold) > 1 else "test slides"
    axes.plot(*curve[:2], color=COLOURS[0], linewidth=2.2, label=f"{name} ({curve[2]:.3f})")
    rest = pooled.classes[0] if _is_one_question(pooled) else "the rest"
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_title(_plain(f"{pooled.classes[index]} against {rest}"))
    axes.set_xlabel("False positive rate (1 - specificity)")
    axes.set_ylabel("True positive rate (sensitivity)")
    axes.legend(title="AUC", loc="lower right", fontsize=8, title_fontsize=8, framealpha=0.9)


def _is_one_question(p: Predictions) -> bool:
    """Whether the curve of the second class says all: the first is where the second is not."""
    return p.exclusive and len(p.classes) == 2


def _roc(p: Predictions, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float] | None:
    """False and true positive rates and AUC of a class against the rest; None if either has no slide."""
    positive, score = p.has[:, index], p.probabilities()[:, index]
    if positive.all() or not positive.any():
        return None
    wrong, right, _ = roc_curve(positive, score)
    return wrong, right, float(roc_auc_score(positive, score))


def calibration_figure(pooled: Predictions, temperature: Temperature, path: Path) -> None:
    """Share of true claims over their probability before and after temperature scaling, and how many have which.

    One column for the predicted class; one per class where they do not exclude each other.

    Args:
        pooled: Test predictions of all folds.
        temperature: As fitted; where folds are pooled that of each slide's fold.
        path: PNG to write.
    """
    before, after = pooled.claims(), pooled.claims(temperature)
    figure = _figure(1.2 + 4.0 * len(before), 6.0)
    grid = figure.subplots(2, len(before), sharex=True, squeeze=False, height_ratios=(3, 1))
    for (upper, lower), name in zip(grid.T, before, strict=True):
        errors = _calibration_column(upper, lower, before[name], after[name])
        title = f"Calibration, {len(pooled.slides)} test slides" if pooled.exclusive else name
        upper.set_title(_plain(f"{title}\nECE {errors[0]:.3f} before, {errors[1]:.3f} after"))
        what = "Confidence (probability of the predicted class)" if pooled.exclusive else f"Probability of {name}"
        lower.set_xlabel(_plain(what))
    lowest = 1 / len(pooled.classes) if pooled.exclusive else 0.0
    share = "Accuracy of the slides in a bin" if pooled.exclusive else "Share of a bin with the class"
    grid[0, 0].set(xlim=(lowest - 0.02, 1.02), ylabel=f"{share} (size: how many)")
    grid[1, 0].set(ylabel="Slides")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    _save(figure, path)


def _calibration_column(
    upper: Axes, lower: Axes, *claims: tuple[NDArray[np.float64], NDArray[np.bool_]]
) -> list[float]:
    """Draw a claim before and after temperature scaling; returns both calibration errors."""
    upper.plot([0, 1], [0, 1], color=_PALE, linestyle=":", linewidth=1, label="probability = share that is right")
    edges = np.linspace(0, 1, BINS + 1)
    for number, (probability, right) in enumerate(claims):
        counts, mean, share = reliability(probability, right)
        colour, line, mark = COLOURS[3 * number], ("--", "-")[number], "os"[number]
        label = f"{('before', 'after')[number]} temperature scaling"
        upper.plot(mean, share, color=colour, linestyle=line, marker=mark, markersize=3, label=label)
        sizes = 10 + 400 * counts / counts.sum()
        upper.scatter(mean, share, sizes, colour, marker=mark, alpha=0.6, linewidths=0)
        lower.stairs(np.histogram(probability, edges)[0], edges, color=colour, linestyle=line, linewidth=1.4)
    upper.set_ylim(-0.02, 1.02)
    lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return [expected_calibration_error(*claim) for claim in claims]


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """Counts with their share of the true class, which also gives the colour.

    Args:
        confusion: (C, C), rows true, columns predicted.
        classes: C labels.
        path: PNG to write.
    """
    counts = np.asarray(confusion)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.4 + 0.9 * len(classes)
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.55 else "black"
        text = f"{count}\n{share[row, column]:.0%}" if counts[row].any() else "0"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
    names = [_plain(label) for label in classes]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="Predicted class", ylabel="True class", title=f"Confusion, {counts.sum()} test slides")
    figure.colorbar(picture, ax=axes, label="Share of the true class", shrink=0.8)
    _save(figure, path)


def loss_figure(log_jsonl_paths: Iterable[Path], path: Path) -> None:
    """Training loss and validation score over steps: one column per stage, one line per log, named after its folder.

    Args:
        log_jsonl_paths: Logs as `loop.train` writes them: one JSON object a line with stage, step, loss, score.
        path: PNG to write.

    Raises:
        ValueError: If no log has a line with stage, step and loss.
    """
    logs = {log: _read_log(log) for log in log_jsonl_paths}
    stages = list(dict.fromkeys(stage for found in logs.values() for stage in found))
    if not stages:
        names = ", ".join(map(str, logs)) or "none"
        raise ValueError(f"No line with stage, step and loss in the logs ({names}): give log.jsonl of a training.")
    figure = _figure(0.6 + 3.6 * len(stages), 5.6)
    grid = figure.subplots(2, len(stages), sharex="col", squeeze=False)
    for column, stage in enumerate(stages):
        for number, (log, found) in enumerate(logs.items()):
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": _LINES[number // len(COLOURS) % len(_LINES)]}
            for axes, key in zip(grid[:, column], ("loss", "score"), strict=True):
                lines = [line for line in found.get(stage, {}).values() if line.get(key) is not None]
                steps, values = [line["step"] for line in lines], [line[key] for line in lines]
                axes.plot(steps, values, marker=".", linewidth=1.3, label=_plain(log.parent.name or "run"), **style)
        grid[0, column].set_title(_plain(stage))
        grid[1, column].set_xlabel("Optimiser steps")
        grid[1, column].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    grid[0, 0].set_ylabel("Training loss (smoothed)")
    grid[1, 0].set_ylabel("Validation score (higher is better)")
    if len(logs) > 1:
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    _save(figure, path)


def _read_log(path: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Lines by stage and step; of a step that was logged twice, before and after a resume, the later line."""
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []  # of stages taken over there is none
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
        except ValueError:  # a run that was killed may leave half a line
            _log.warning("%s, line %d is no JSON and is left out.", path, number)
            continue
        if isinstance(line, dict) and {"stage", "step", "loss"} <= line.keys():
            stages.setdefault(line["stage"], {})[line["step"]] = line
    return {stage: dict(sorted(lines.items())) for stage, lines in stages.items()}


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def _plain(text: str) -> str:
    """A label as it stands: a dollar sign would start a formula."""
    return text.replace("$", r"\$")
