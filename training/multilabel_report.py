"""Sections of the report where classes do not exclude each other: each class by itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .markdown import cell, interval, number, table

NOT_EXCLUSIVE = (
    "**Classes do not exclude each other.** A slide may have several or none of them, so that their slides do not add "
    "up to all slides. The model judges each class by itself: it is found where its probability is 50 % or more, and "
    "probabilities need not sum to 1."
)
AVERAGES = (
    "Accuracy counts each class by itself, found at 50 % or more; beside it stands what one gets by always giving the "
    "more frequent answer. Average precision by chance is the share of slides that have the class."
)
_METRICS = {"auc": "AUC", "average_precision": "average precision", "accuracy": "accuracy"}


def how_measured(pooled: Mapping[str, Any]) -> str:
    """What the averages and their intervals are."""
    drawn = pooled["bootstrap"]
    weighted = (
        "; of the AUCs, weighted by the slides that have the class" if pooled["auc_average"] == "weighted" else ""
    )
    skipped = (
        f"; {drawn['skipped']} in which all slides had a class, or none, were left out" if drawn["skipped"] else ""
    )
    return (
        f"All figures are means over classes, each judged with against without{weighted}. Intervals: percentile "
        f"bootstrap of {drawn['rounds']} resamples, patients drawn with all their slides{skipped}."
    )


def class_sections(pooled: Mapping[str, Any]) -> Iterable[str]:
    """The figures of each class with intervals, and what was found and missed; ``pooled`` as of `summarise_each`."""
    yield "## Classes, all test slides pooled"
    heads = ["class", "slides with it"]
    for title in _METRICS.values():
        heads += [title, "95 % interval"]
    yield table(
        [*heads, "always the same answer"],
        [
            [
                label,
                of["support"],
                *(text for name in _METRICS for text in (number(of[name]), interval(of["intervals"][name]))),
                number(max(of["support"], pooled["slides"] - of["support"]) / pooled["slides"]),
            ]
            for label, of in pooled["per_class"].items()
        ],
    )
    yield AVERAGES
    if pooled["classes_left_out"]:
        left_out = ", ".join(map(cell, pooled["classes_left_out"]))
        yield f"Had by all test slides or by none, and in no average: {left_out}."
    yield "A slide may be right in one class and wrong in another: each class has a confusion matrix of its own."
    rows = []
    for label, of in pooled["per_class"].items():
        (rightly_not, wrongly), (missed, rightly) = of["confusion"]
        rows.append([label, rightly, missed, wrongly, rightly_not])
    yield table(["class", "there, found", "there, missed", "not there, found", "not there, not found"], rows)


def calibration_sections(result: Mapping[str, Any]) -> Iterable[str]:
    """Temperatures by fold and class, and what they change; ``result`` as of `write_report`."""
    yield "## Calibration"
    folds, pooled, calibrated = result["folds"], result["pooled"], result["pooled_calibrated"]
    pairs = [(label, pooled["per_class"][label], calibrated["per_class"][label]) for label in pooled["classes"]]
    rows = [
        [
            label,
            *(number(fold["temperature"][place], 2) for fold in folds),
            *change(before, after),
        ]
        for place, (label, before, after) in enumerate(pairs)
    ]
    rows.append(["mean", *("" for _ in folds), *change(pooled, calibrated)])
    heads = [f"temperature of fold {fold['fold']}" for fold in folds]
    heads += [f"{name} {when}" for name in ("ECE", "Brier", "NLL") for when in ("before", "after")]
    yield table(["class", *heads], rows)
    yield (
        "Each class has a temperature of its own, fitted on validation slides. ECE: expected calibration error of the "
        "probability that the class is there, 15 bins. Brier: of each class, 0 to 1. NLL: negative log-likelihood per "
        "slide and class, natural logarithm. All test slides pooled."
    )


def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> Sequence[str]:
    """Cells of calibration errors before and after temperature scaling."""
    return [number(of[name]) for name in ("ece", "brier", "nll") for of in (before, after)]
