"""Stage "evaluate": the test part of a fold is looked at, once, by weights that no longer change; then the report."""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_msamil.errors import MsamilError
from napari_msamil.files import copy_atomically, write_atomically
from napari_msamil.models.bag import load_provenance
from napari_msamil.models.card import Card
from napari_msamil.models.model import Model, load_model, save_model

from .calibration import fit_temperature
from .cohort import written_path
from .distributed import rank, wait_for_all
from .features import Selection, StoredBags, extract_bags
from .figures import calibration_figure, confusion_figure, loss_figure, roc_figure
from .metrics import over_folds, summarise
from .multilabel import summarise_each
from .predictions import Predictions, Temperature
from .report import write_report
from .run import RESULT, Run, RunError, class_counts, versions
from .stages import Fold, stages_of

MODEL, AGGREGATOR = "model.safetensors", "aggregator.safetensors"
LOGITS = "logits.json"
_log = logging.getLogger(__name__)


def evaluate_fold(fold: Fold) -> None:
    """Test a fold and write its model, predictions and figures; a fold that was tested stays as it is."""
    run = fold.run
    if run.tested(fold.number):
        _log.info("fold %d was tested before; its test part stays closed", fold.number)
        return
    fold.take_over(stages_of(run)[:-1])  # raises unless all of them are over
    model = fold.model.eval()
    rows = fold.tested()
    _log.info("fold %d: testing on %d slides", fold.number, len(rows))
    before = None
    if "end-to-end" in stages_of(run):
        fold.take_over(("end-to-end",))
        before = _predictions(
            run, rows, _logits(model, _test_bags(fold, rows, "lesion"))
        )  # the bags know no aggregator
        fold.take_over(("mil",))
    held = _predictions(run, fold.held(), _logits(model, fold.bags(fold.held())))
    temperature = fit_temperature(held)
    segment = fold.segment_figures()
    selection: dict[str, Any] = {}
    by_choice: dict[str, Predictions] = {}
    if run.features:  # the choice of patches was made where they were
        by_choice["lesion"] = _predictions(run, rows, _logits(model, fold.bags(rows)))
    for choice in () if run.features else run.config.evaluate.selection:
        bags = _test_bags(fold, rows, choice)
        by_choice[choice] = _predictions(run, rows, _logits(model, bags))
        selection[choice] = _figures_of(run, by_choice[choice]) | _cost(bags)
    test = by_choice["lesion"]
    result = {
        "fold": fold.number,
        "slides": {
            "training": len(fold.training()),
            "validation": len(fold.held()),
            "test": len(rows),
        },
        "validation": _summary(run, held),
        "test": _summary(run, test),
        "test_before_mil": _summary(run, before) if before else None,
        "left_out": sorted(run.cohort.slides[row].path.name for row in fold.left_out(rows)),
        "temperature": temperature,
        "test_calibrated": _summary(run, test, temperature),
        "segment": segment,
        "seconds": _seconds(fold),
        "scores": fold.scores,
        "selection": selection,
        "fallbacks": sum(load_provenance(f)["fallback"] is not None for f in _lesion_files(fold)),
    }
    if rank() == 0:
        test.write_csv(fold.folder / "predictions-test.csv", fold=fold.number, temperature=temperature)
        held.write_csv(fold.folder / "predictions-validation.csv", fold=fold.number, temperature=temperature)
        model.card = _finished_card(run, fold, result)
        save_model(model, fold.folder / model_name(run), overwrite=True)
        logits = {"rows": rows, "logits": test.logits.tolist()}
        if before:
            logits["before_mil"] = before.logits.tolist()
        _write_json(fold.folder / LOGITS, logits)
        _write_json(fold.folder / RESULT, result)
    wait_for_all()


def finish(run: Run) -> Path | None:
    """Write the report and the model of a run once all its folds are tested.

    Returns:
        The model file, or None as long as folds are missing.
    """
    parts = run.parts()
    folders = {fold: run.fold_folder(fold) for fold in parts}
    waiting = [fold for fold in folders if not run.tested(fold)]
    if waiting:
        _log.info("not tested yet, and waited for by the report: fold %s", ", ".join(map(str, waiting)))
        return None
    results = {fold: _read_json(folder / RESULT) for fold, folder in folders.items()}
    logits = {fold: _read_json(folder / LOGITS) for fold, folder in folders.items()}
    tests = {fold: _predictions(run, one["rows"], np.array(one["logits"])) for fold, one in logits.items()}
    pooled = Predictions.pooled(list(tests.values()))
    before = [
        _predictions(run, one["rows"], np.array(one["before_mil"])) for one in logits.values() if "before_mil" in one
    ]
    temperature = np.concatenate([[results[fold]["temperature"]] * len(tests[fold].slides) for fold in tests])
    numbers = [fold for fold, one in tests.items() for _ in one.slides]
    pooled.write_csv(run.folder / "predictions.csv", fold=numbers, temperature=temperature)
    figures: dict[str, Any] = {
        "pooled": _summary(run, pooled),
        "pooled_before_mil": _summary(run, Predictions.pooled(before)) if before else None,
        "pooled_calibrated": _summary(run, pooled, temperature),
        "mean": over_folds([one["test"] for one in results.values()]),
    }
    _draw_figures(run, tests, figures["pooled"], temperature)
    chosen = max(results, key=lambda fold: (results[fold]["validation"]["auc"] or 0.0, -fold))
    model = model_name(run)
    try:
        load_model(folders[chosen] / model, aggregator_alone=bool(run.features))  # as the plugin will
    except (MsamilError, OSError) as error:
        raise _damaged(folders[chosen] / model) from error
    copy_atomically(folders[chosen] / model, run.folder / model)
    write_report(run.folder, _facts(run, results, chosen) | figures)
    return run.folder / model


def _draw_figures(
    run: Run, tests: dict[int, Predictions], overall: Mapping[str, Any], temperature: NDArray[np.float64]
) -> None:
    """The report's figures, as far as there is something to draw, given the summary of all folds' slides.

    The temperature is that of each slide's fold.
    """
    if overall["auc"] is not None:
        roc_figure(tests, run.folder / "roc.png")
    calibration_figure(Predictions.pooled(list(tests.values())), temperature, run.folder / "calibration.png")
    if run.cohort.exclusive:
        confusion_figure(overall["confusion"], run.cohort.classes, run.folder / "confusion.png")
    logs = [run.fold_folder(fold) / "log.jsonl" for fold in tests]
    if any(log.exists() and log.stat().st_size for log in logs):  # else all stages were taken over from another run
        loss_figure(logs, run.folder / "loss.png")


def _facts(run: Run, results: Mapping[int, dict[str, Any]], chosen: int) -> dict[str, Any]:
    """What the report says beside the figures of all folds together; the model of fold ``chosen`` is the run's."""
    left_out = sorted({*run.left_out, *(name for one in results.values() for name in one.get("left_out", ()))})
    return {
        "cohort": {
            "name": run.cohort.name,
            "slides": len(run.cohort.slides),
            "patients": len({slide.patient for slide in run.cohort.slides}),
            "classes": class_counts(run.cohort, range(len(run.cohort.slides))),
            "exclusive": run.cohort.exclusive,
            "left_out": left_out,
        },
        "commands": run.commands(),
        "preset": run.config.preset,
        "seed": run.config.seed,
        "versions": versions(),
        "folds": list(results.values()),
        "notes": [
            f"{model_name(run)} is the model of fold {chosen}, {_why(results, chosen)}; its test slides had no part in "
            "that choice.",
            *_unknown_lesions(run),
            *_notes(run, left_out),
        ],
    }


def _why(results: Mapping[int, dict[str, Any]], chosen: int) -> str:
    """Why the model of a fold was chosen."""
    best = results[chosen]["validation"]["auc"]
    equal = [fold for fold, one in results.items() if one["validation"]["auc"] == best]
    if len(results) == 1:
        return "the only one"
    if len(equal) > 1:
        return f"the first of {len(equal)} that have the best AUC, each on its own validation slides"
    return "which has the best AUC on its own validation slides"


def model_name(run: Run) -> str:
    """Name of the file that a run leads to; one that classifies no slide is not called a model."""
    return AGGREGATOR if run.features else MODEL


def _unknown_lesions(run: Run) -> list[str]:
    """Of a cohort in which nobody marked a lesion."""
    if run.features or not run.cohort.no_lesion_known:
        return []
    return [
        "Where lesions are: the table names none, so the segmenter is untrained, and whatever is called lesion patches "
        "is all tissue. What the model's lesion mask shows, or does not, means nothing."
    ]


def _notes(run: Run, left_out: list[str]) -> list[str]:
    """What a run cannot say that left out slides, or that learned from features made elsewhere."""
    notes = [f"How it does on slides like these, which could not be used: {', '.join(left_out)}."] if left_out else []
    if not run.features:
        return notes
    return [
        *notes,
        f"There is no {MODEL}: the features were made elsewhere ({run.card.features}), and without their extractor no "
        f"slide can be classified, in napari or by msamil classify. {AGGREGATOR} holds the aggregator alone; "
        "`napari_msamil.load_model(file, aggregator_alone=True).aggregate(bag)` takes bags of the same "
        "features, as `napari_msamil.training.h5.FeatureFolders` reads them.",
        "How the extractor of the features was trained, and whether it has seen these slides.",
    ]


def _test_bags(fold: Fold, rows: list[int], choice: Selection) -> StoredBags:
    """Bags of the test slides; the only place where they are read."""
    run = fold.run
    return extract_bags(
        fold.model,
        run.cohort.slides,
        rows,
        fold.folder / "test" / choice,
        device=run.device,
        selection=choice,
        random=run.config.evaluate.random,
        seed=run.config.seed,
    )


def _logits(model: Model, bags: StoredBags) -> NDArray[np.float64]:
    """(n, C) of some bags."""
    model.eval()
    with torch.inference_mode():
        found = [model.aggregate(bag, attention=False).logits.cpu().double().numpy() for bag in bags]
    return np.stack(found)


def _predictions(run: Run, rows: list[int], logits: NDArray[np.float64]) -> Predictions:
    slides = [run.cohort.slides[row] for row in rows]
    return Predictions(
        tuple(written_path(slide.path, run.folder) for slide in slides),
        tuple(slide.patient for slide in slides),
        run.cohort.targets()[np.asarray(rows, np.int64)],
        logits,
        run.cohort.classes,
    )


def _summary(run: Run, predictions: Predictions, temperature: Temperature = 1.0) -> dict[str, Any]:
    settings, figures_of = run.config.evaluate, summarise if predictions.exclusive else summarise_each
    return figures_of(
        predictions, temperature=temperature, auc=settings.auc, rounds=settings.bootstrap, seed=run.config.seed
    )


def _figures_of(run: Run, predictions: Predictions) -> dict[str, Any]:
    summary = _summary(run, predictions)
    return {"auc": summary["auc"], "accuracy": summary["accuracy"]}


def _cost(bags: StoredBags) -> dict[str, float]:
    return {
        "patches_per_slide": float(np.mean([len(bag) for bag in bags])),
        "seconds_per_slide": float(np.mean([load_provenance(file)["seconds"] for file in bags.files])),
    }


def _seconds(fold: Fold) -> dict[str, float]:
    """Seconds of training by stage; those of stage extract are of the bags it left, and lie before those of mil."""
    if fold.run.features:
        return fold.seconds
    files = fold.bags([*fold.training(), *fold.held()]).files
    extract = round(sum(load_provenance(file)["seconds"] for file in files), 1)
    before = {name: value for name, value in fold.seconds.items() if name != "mil"}
    return before | {"extract": extract} | {name: fold.seconds[name] for name in fold.seconds.keys() - before.keys()}


def _lesion_files(fold: Fold) -> list[Path]:
    return sorted((fold.folder / "test" / "lesion").glob("*.pt"))


def _finished_card(run: Run, fold: Fold, result: dict[str, Any]) -> Card:
    """The card with what a reader of the file should know."""
    test, cohort = result["test"], run.cohort
    counts = ", ".join(f"{n} {name}" for name, n in class_counts(cohort, fold.training()).items())
    measured = {key: test[key] for key in test["intervals"]}
    measured |= {key: result["test_calibrated"][key] for key in ("ece", "brier")}  # as the model speaks
    figures: dict[str, Any] = {
        f"test part of fold {fold.number}": measured | {"slides": test["slides"], "intervals": test["intervals"]},
        "chosen by": result["scores"],
        "lesion mask, validation": result["segment"],
        "versions": versions(),
    }
    data, own = cohort.name, run.card.name
    return run.card.model_copy(
        update={
            "name": f"{data} ({own})" if own == f"msamil-{run.config.preset}" else own,
            "dataset": (
                f"{data}: trained on {len(fold.training())} slides ({counts}), chosen "
                f"by {len(fold.held())}, tested on {test['slides']}; fold {fold.number}, split by patient"
            ),
            "temperature": result["temperature"],  # so that the model gives the probabilities of predictions.csv
            "command": run.command,
            "figures": json.loads(json.dumps(figures)),
            "created": datetime.now(UTC).date().isoformat(),
        }
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    return found


def _damaged(path: Path) -> RunError:
    return RunError(
        f"{path} is damaged or missing: put a copy of it back, or delete {path.parent / RESULT} and give the same "
        "command again, by which the same weights look at the test part anew."
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
