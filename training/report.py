"""The report of a training on a cohort: metrics.json for programs, report.md for the supplement of a paper."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_msamil.files import write_atomically
from napari_msamil.inference.prediction import RESEARCH_USE

from .markdown import cell, count, interval, number, spread, table
from .multilabel_report import NOT_EXCLUSIVE, calibration_sections, change, class_sections, how_measured

METRICS_FILE, REPORT_FILE = "metrics.json", "report.md"
FIGURES = {
    "roc.png": "ROC curves of the test slides",
    "calibration.png": "Calibration before and after temperature scaling",
    "confusion.png": "Confusion matrix",
    "loss.png": "Training loss and validation score",
}
"""Files that the report links to where they lie in its folder, and what they show."""
FEW_SLIDES = 20
"""A validation part smaller than this is spoken of as small."""
_NAMES = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1_weighted": "F1, weighted",
    "average_precision": "Average precision",
}
_SELECTIONS = {"lesion": "lesion patches", "all": "all tissue patches", "random": "random tissue patches"}


def write_report(folder: Path, result: Mapping[str, Any]) -> None:
    """Write ``metrics.json``, which is ``result`` as it stands, and ``report.md``; both whole, metrics.json last.

    Args:
        folder: Where to; figures named as in `FIGURES` that lie there are linked to, and so is predictions.csv.
        result: Plain JSON values; a *summary* is what `metrics.summarise` returns, or `multilabel.summarise_each`.

            - cohort: {name, slides, patients, classes: {label: slides}, exclusive, left_out: [slide]}
            - commands: [str] in their order; preset, seed, versions: {name: version}
            - folds: for each fold {fold: number, slides: {training, validation, test}, validation: summary,
              test: summary, temperature, test_calibrated: summary, segment: {iou, dice, everything_iou,
              everything_dice} or None, seconds: {stage: s}, selection: absent, or by "lesion", "all", "random"
              {auc, accuracy, patches_per_slide, seconds_per_slide}}
            - pooled: summary of the test slides of all folds
            - pooled_before_mil: the same by the aggregator of the end-to-end stage; may be absent
            - pooled_calibrated: the same at each fold's own temperature
            - mean: {metric: [mean, standard deviation]} over the test parts, as of `metrics.over_folds`
            - notes: sentences on what these numbers cannot say about this cohort

    Raises:
        KeyError: If a part of the result is missing; nothing is written.
        ValueError: If a number is not finite; nothing is written.
    """
    numbers = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    text = "\n\n".join(_sections(folder, result)) + "\n"
    write_atomically(folder / REPORT_FILE, lambda file: file.write(text.encode()))
    write_atomically(folder / METRICS_FILE, lambda file: file.write(numbers.encode()))


def _sections(folder: Path, result: Mapping[str, Any]) -> Iterable[str]:
    cohort, folds, pooled = result["cohort"], result["folds"], result["pooled"]
    yield f"# {cell(cohort['name'])}: training and test"
    yield f"**{RESEARCH_USE}**"
    yield from _data(cohort, folds)
    yield from _results(result)
    yield from (_classes if cohort["exclusive"] else class_sections)(pooled)
    yield from (_calibration if cohort["exclusive"] else calibration_sections)(result)
    yield from _lesions(folds)
    yield from _selection(folds)
    yield from _figures(folder)
    yield from _limits(result)
    yield from _making(result)


def _data(cohort: Mapping[str, Any], folds: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield "## Slides"
    yield (
        f"{cohort['slides']} slides of {cohort['patients']} patients in {len(cohort['classes'])} classes; all slides "
        "of a patient are in the same part. Weights were trained on the training part, and chosen and calibrated on "
        "the validation part; all numbers below are of test parts, but where they say otherwise."
    )
    if cohort["left_out"]:
        yield f"Left out of all parts, since they could not be used: {', '.join(map(cell, cohort['left_out']))}."
    if not cohort["exclusive"]:
        yield NOT_EXCLUSIVE
    rows: list[list[Any]] = [
        [label, slides, *(fold["test"]["per_class"][label]["support"] for fold in folds)]
        for label, slides in cohort["classes"].items()
    ]
    rows.append(["all slides", cohort["slides"], *(fold["slides"]["test"] for fold in folds)])
    rows.append(["patients", cohort["patients"], *(fold["test"]["patients"] for fold in folds)])
    yield table(["slides", "whole cohort", *(f"test part of fold {fold['fold']}" for fold in folds)], rows)
    parts = [f"fold {f['fold']} {f['slides']['training']} and {f['slides']['validation']}" for f in folds]
    yield f"Slides in the training and validation parts: {', '.join(parts)}."


def _results(result: Mapping[str, Any]) -> Iterable[str]:
    folds, pooled, mean = result["folds"], result["pooled"], result["mean"]
    names = pooled["intervals"]
    yield "## Results on test slides"
    rows: list[list[Any]] = [[f"fold {f['fold']}", *(number(f["test"][name]) for name in names)] for f in folds]
    for place, title in enumerate(("mean", "standard deviation")):
        rows.append([title, *(number(mean[name][place]) for name in names)])
    rows.append(["**all test slides pooled**", *(f"**{number(pooled[name])}**" for name in names)])
    rows.append(["95 % interval", *(interval(pooled["intervals"][name]) for name in names)])
    if before := result.get("pooled_before_mil"):
        rows.append(["pooled, before stage mil", *(number(before[name]) for name in names)])
        rows.append(["95 % interval", *(interval(before["intervals"][name]) for name in names)])
    yield table(["", *(_NAMES[name] for name in names)], rows)
    how = (_how_measured if result["cohort"]["exclusive"] else how_measured)(pooled)
    at = number(result["pooled_calibrated"].get("auc"))
    both = (
        " Folds, and all of them pooled, are measured by their logits as they are; at each fold's own temperature, as "
        f"the probabilities of predictions.csv are, the pooled AUC is {at}."
    )
    differs = len(folds) > 1 or at != number(pooled["auc"])
    yield f"{how} Standard deviation: between folds.{both if differs else ''} {RESEARCH_USE}"


def _how_measured(pooled: Mapping[str, Any]) -> str:
    kind = {None: f"of class {cell(pooled['classes'][1])}", "macro": "macro average, one against the rest"}
    average = kind.get(pooled["auc_average"], "average weighted by slides, one against the rest")
    drawn = pooled["bootstrap"]
    skipped = f"; {drawn['skipped']} that lacked a class were left out" if drawn["skipped"] else ""
    return (
        f"AUC: {average}. Intervals: percentile bootstrap of {drawn['rounds']} resamples, patients drawn with all "
        f"their slides within classes{skipped}."
    )


def _classes(pooled: Mapping[str, Any]) -> Iterable[str]:
    yield "## Classes, all test slides pooled"
    names = ("precision", "recall", "f1", "auc")
    rows = [[label, of["support"], *(number(of[name]) for name in names)] for label, of in pooled["per_class"].items()]
    yield table(["class", "slides", "precision", "recall", "F1", "AUC against the rest"], rows)
    if pooled["classes_left_out"]:
        yield f"Without a test slide, and in no average: {', '.join(map(cell, pooled['classes_left_out']))}."
    rows = [[label, *counts] for label, counts in zip(pooled["classes"], pooled["confusion"], strict=True)]
    yield table(["true \\ predicted", *pooled["classes"]], rows)


def _calibration(result: Mapping[str, Any]) -> Iterable[str]:
    yield "## Calibration"
    rows = [
        [f"fold {f['fold']}", number(f["temperature"], 2), *change(f["test"], f["test_calibrated"])]
        for f in result["folds"]
    ]
    rows.append(["all pooled", "", *change(result["pooled"], result["pooled_calibrated"])])
    heads = ["", "temperature", "ECE before", "ECE after", "Brier before", "Brier after", "NLL before", "NLL after"]
    yield table(heads, rows)
    yield (
        "The temperature was fitted on validation slides. ECE: expected calibration error of the predicted class, "
        "15 bins. Brier: sum over classes, 0 to 2. NLL: negative log-likelihood per slide, natural logarithm."
    )


def _lesions(folds: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    found = [fold for fold in folds if fold["segment"] is not None]
    if not found:
        return
    yield "## Lesion masks on validation slides"
    names = ("iou", "everything_iou", "dice", "everything_dice")
    rows = [[f"fold {f['fold']}", *(number(f["segment"][name]) for name in names)] for f in found]
    rows.append(["mean", *(number(np.mean([f["segment"][name] for f in found])) for name in names)])
    yield table(["", "IoU", 'IoU of "everything is lesion"', "Dice", 'Dice of "everything is lesion"'], rows)


def _selection(folds: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    found = [fold["selection"] for fold in folds if fold.get("selection")]
    if not found:
        return
    yield "## Which patches the model sees"
    heads = ["patches", "AUC", "Accuracy", "patches per slide", "seconds per slide"]
    places = {"auc": 3, "accuracy": 3, "patches_per_slide": 0, "seconds_per_slide": 2}
    rows = []
    for name, title in _SELECTIONS.items():
        folds_with = [of[name] for of in found if name in of]
        if folds_with:
            rows.append([title, *(spread([of[key] for of in folds_with], digits) for key, digits in places.items())])
    yield table(heads, rows)
    yield f"The same test slides, mean ± standard deviation over {count(len(found), 'fold')}."
    without = sum(fold.get("fallbacks", 0) for fold in folds)
    if without:
        tested = sum(fold["slides"]["test"] for fold in folds)
        yield (
            f"On {without} of {count(tested, 'test slide')} no patch had enough lesion: the first line holds what the "
            "fallback took there."
        )


def _figures(folder: Path) -> Iterable[str]:
    found = [f"![{title}]({name})" for name, title in FIGURES.items() if (folder / name).is_file()]
    if found:
        yield "## Figures"
        yield "\n\n".join(found)
    if (folder / "predictions.csv").is_file():
        said = "its logits, and its probabilities at the fitted temperature"
        yield f"Every test slide with {said}: [predictions.csv](predictions.csv)."


def _limits(result: Mapping[str, Any]) -> Iterable[str]:
    pooled, folds = result["pooled"], result["folds"]
    yield "## What these numbers cannot say"
    points = [
        "How the model does on slides of other hospitals, scanners and stains: test slides are of the same cohort.",
        "How much another training would differ: the intervals hold the chance of which patients were tested, not that "
        "of training again.",
    ]
    if len(folds) > 1:
        points.append(
            f"What one model file will do: pooled numbers mix the scores of {len(folds)} models, each on its own fold."
        )
    few = min(fold["slides"]["validation"] for fold in folds)
    if few < FEW_SLIDES:
        points.append(
            f"That the best weights and the right temperature were found: {count(few, 'validation slide')} chose them."
            if len(folds) == 1
            else f"That the best weights and the right temperatures were found: as few as {few} validation slides of a "
            "fold chose them."
        )
    fixed = pooled["bootstrap"]["single_patient_classes"]
    if fixed:
        points.append(
            f"How sure the numbers are for {', '.join(map(cell, fixed))}: one patient only, who is in every resample, "
            "so that intervals, where there are any, are too narrow."
        )
    perfect = [_NAMES[name] for name, ends in pooled["intervals"].items() if ends == [1.0, 1.0]]
    if perfect:
        points.append(
            f"That there are no errors: an interval of 1.000 to 1.000 ({', '.join(perfect)}) says that none was among "
            f"{count(pooled['patients'], 'patient')}."
        )
    flat = [_NAMES[name] for name, ends in pooled["intervals"].items() if ends and ends[0] == ends[1] != 1]
    if flat:
        points.append(
            f"How sure the numbers are whose interval has no width ({', '.join(flat)}): every resample of "
            f"{count(pooled['patients'], 'patient')} gave the same, which shows how few they are."
        )
    yield "\n".join(f"- {point}" for point in [*points, *result["notes"]])


def _making(result: Mapping[str, Any]) -> Iterable[str]:
    yield "## How it was made"
    yield f"Networks: {cell(result['preset'])}; seed {result['seed']}; all settings: [config.toml](config.toml)."
    if len(result["commands"]) > 1:
        yield "Several commands worked on it, one after another or side by side on different folds:"
    yield "```\n" + "\n".join(result["commands"]) + "\n```"
    yield ", ".join(f"{name} {version}" for name, version in result["versions"].items()) + "."
    stages = list(dict.fromkeys(stage for fold in result["folds"] for stage in fold["seconds"]))
    if stages:
        seconds = [[fold["seconds"].get(stage) for stage in stages] for fold in result["folds"]]
        rows = [
            [f"fold {fold['fold']}", *(number(value, 0) for value in (*row, sum(filter(None, row))))]
            for fold, row in zip(result["folds"], seconds, strict=True)
        ]
        yield table(["seconds", *stages, "together"], rows)
    yield f"All numbers of this report, unrounded: [{METRICS_FILE}]({METRICS_FILE})."
