"""A whole training on drawn slides: what comes out, what is never looked at, and what an interruption does."""

import csv
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_msamil import classify, load_model
from napari_msamil.errors import MsamilError
from napari_msamil.slide.slide import Slide
from napari_msamil.training import command, evaluate, run
from napari_msamil.training.cohort import CohortError, read_cohort
from napari_msamil.training.command import run_training
from napari_msamil.training.config import read_config
from napari_msamil.training.datasets import synthetic
from napari_msamil.training.loop import CheckpointError, StoppedError
from napari_msamil.training.run import RunError

SETTINGS = ["model.thumbnail_px=128", "end_to_end.patches=6", "end_to_end.chunk=4", "machine.device=cpu"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small drawn slides."""
    return synthetic.write(tmp_path_factory.mktemp("cohort"), slides=12, size_px=512)


def train(stage: str, cohort: Path, out: Path, *settings: str) -> Path | None:
    return run_training(
        stage, preset="tiny", settings=[*SETTINGS, *settings], cohort=cohort, out=out, command="the command"
    )


def shell(stage: str, cohort: Path, out: Path, *settings: str) -> list[str]:
    return [
        *(sys.executable, "-m", "napari_msamil.training", stage, "--preset", "tiny"),
        *("--cohort", str(cohort), "--out", str(out), *SETTINGS, *settings),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages on both folds."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert train("all", cohort, out, "run_folds=[]") == out / "model.safetensors"
    return out


def test_what_comes_out_is_a_model_that_classifies_as_its_evaluation_did(finished: Path, cohort: Path) -> None:
    card = load_model(finished / "model.safetensors").card
    assert card.classes == ("adenocarcinoma", "no adenocarcinoma")
    assert card.command == "the command"
    assert card.name == f"{cohort.parent.name} (msamil-tiny)"
    results = [json.loads((finished / f"fold-{k}" / "result.json").read_text()) for k in (0, 1)]
    chosen = max((0, 1), key=lambda k: (results[k]["validation"]["auc"], -k))
    assert card.figures[f"test part of fold {chosen}"]["auc"] == results[chosen]["test"]["auc"]
    logits = json.loads((finished / f"fold-{chosen}" / "logits.json").read_text())
    slide = read_cohort(cohort).slides[logits["rows"][0]]
    found = classify(slide.path, finished / "model.safetensors", device="cpu").probabilities
    assert card.temperature == results[chosen]["temperature"] != 1
    scaled = torch.tensor(logits["logits"][0], dtype=torch.float64) / card.temperature
    np.testing.assert_allclose(found, scaled.softmax(0).numpy(), atol=1e-5)
    told = (finished / "predictions.csv").read_text().splitlines()
    [line] = [line for line in csv.DictReader(told) if Path(line["slide"]).name == slide.path.name]
    np.testing.assert_allclose(found, [float(line[f"probability of {name}"]) for name in card.classes], atol=1e-5)
    np.testing.assert_allclose(logits["logits"][0], [float(line[f"logit of {n}"]) for n in card.classes], rtol=1e-5)
    assert {"segment", "end-to-end", "extract", "mil"} == results[chosen]["seconds"].keys()


def test_every_slide_is_tested_once_and_the_report_stands_on_them(finished: Path, cohort: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["pooled"]["slides"] == 12
    rows = [row for k in (0, 1) for row in json.loads((finished / f"fold-{k}" / "logits.json").read_text())["rows"]]
    assert sorted(rows) == list(range(12))
    report = (finished / "report.md").read_text()
    assert "Research use only" in report
    assert f"{metrics['pooled']['auc']:.3f}" in report
    assert "AUC: of class no adenocarcinoma. " in report
    assert f"predictions.csv are, the pooled AUC is {metrics['pooled_calibrated']['auc']:.3f}." in report
    for name in ("roc.png", "calibration.png", "confusion.png", "loss.png", "predictions.csv", "splits.csv"):
        assert (finished / name).stat().st_size > 100, name
    assert set(metrics["folds"][0]["selection"]) == {"lesion", "all", "random"}
    assert json.loads((finished / "versions.json").read_text())["torch"] == version("torch")


def test_no_patient_is_in_two_parts(finished: Path) -> None:
    lines = (finished / "splits.csv").read_text().splitlines()
    assert lines[0] == "slide,patient,label,fold 0,fold 1"
    slides = {}
    for table in ("cohort.csv", "splits.csv", "predictions.csv"):
        rows = csv.DictReader((finished / table).read_text().splitlines())
        slides[table] = sorted(row["slide"] for row in rows)
    assert slides["cohort.csv"] == slides["splits.csv"] == slides["predictions.csv"], "the tables can be joined"
    cells = [line.split(",") for line in lines[1:]]
    assert all({row[3], row[4]} & {"test"} for row in cells), "each slide is tested in one fold"
    predicted = csv.DictReader((finished / "predictions.csv").read_text().splitlines())
    assert {row["slide"]: row["fold"] for row in predicted} == {row[0]: "01"[row[4] == "test"] for row in cells}
    assert sum(row[3] == "test" for row in cells) + sum(row[4] == "test" for row in cells) == 12


def test_no_pixel_of_the_test_part_is_read_before_the_last_stage(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    seen_by_then: list[set[str]] = []
    for name in ("read", "read_level"):
        plain = getattr(Slide, name)

        def noted(self: Slide, *given: object, _plain: object = plain, **named: object) -> object:
            read.add(self.name)
            return _plain(self, *given, **named)  # type: ignore[operator]

        monkeypatch.setattr(Slide, name, noted)
    whole = evaluate.evaluate_fold
    monkeypatch.setattr(command, "evaluate_fold", lambda fold: (seen_by_then.append(set(read)), whole(fold)))
    train("all", cohort, tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "fold-0" / "logits.json").read_text())["rows"]
    tested = {read_cohort(cohort).slides[row].path.name for row in rows}
    assert len(tested) == 6
    assert not tested & seen_by_then[0]
    assert tested <= read


def test_a_tested_fold_is_not_opened_again(finished: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **named: object) -> None:
        raise AssertionError("a slide was read")

    monkeypatch.setattr(Slide, "read", fail)
    before = (finished / "fold-0" / "result.json").read_bytes()
    train("evaluate", cohort, finished, "run_folds=[]")
    assert (finished / "fold-0" / "result.json").read_bytes() == before


def test_killed_and_resumed_equals_never_interrupted_bit_for_bit(cohort: Path, tmp_path: Path) -> None:
    epochs = "end_to_end.epochs=4"
    train("segment", cohort, tmp_path / "a", epochs)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    train("end-to-end", cohort, tmp_path / "a", epochs)
    log = tmp_path / "b" / "fold-0" / "log.jsonl"
    alike = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums differ by the number of threads
    going_on = shell("end-to-end", cohort, tmp_path / "b", epochs)
    process = subprocess.Popen(going_on, stderr=subprocess.DEVNULL, env=alike)
    while process.poll() is None and not (tmp_path / "b" / "fold-0" / "end-to-end.pt").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    part = torch.load(tmp_path / "b" / "fold-0" / "end-to-end.pt", weights_only=True)["state"]["step"]
    (tmp_path / "b" / "fold-0" / "end-to-end.pt.tmp-1-1").write_bytes(b"half of a checkpoint")
    train("end-to-end", cohort, tmp_path / "b", epochs)
    one, two = (torch.load(tmp_path / k / "fold-0" / "end-to-end.pt", weights_only=True) for k in "ab")
    assert 0 < part < one["state"]["step"] == two["state"]["step"]
    assert not list(tmp_path.rglob("*.tmp-*")), "what was half written is gone"
    assert one["state"]["best_score"] == two["state"]["best_score"]
    for module in ("extractor", "aggregator"):
        for name, value in one["modules"][module].items():
            assert torch.equal(value, two["modules"][module][name]), f"{module}.{name}"
            assert torch.equal(one["best"][module][name], two["best"][module][name]), f"best {module}.{name}"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in lines if line["stage"] == "end-to-end"]
    assert steps == sorted(set(steps)), "work that was lost and done again stands in the log once"


def test_sigterm_saves_and_ends_with_a_sentence(cohort: Path, tmp_path: Path) -> None:
    command_line = shell("segment", cohort, tmp_path, "segment.epochs=500")
    process = subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "fold-0" / "segment.pt").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "The same command goes on from there" in said
    state = torch.load(tmp_path / "fold-0" / "segment.pt", weights_only=True)["state"]
    assert f"after step {state['step']} of" in said
    assert (tmp_path / "commands.txt").read_text().startswith("msamil train segment --preset tiny")


def test_a_changed_setting_or_table_does_not_resume_and_is_named(finished: Path, cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"end_to_end\.lr_mil was 0\.0001 and is now 0\.5.*machine\.reuse=/"):
        train("all", cohort, finished, "run_folds=[]", "end_to_end.lr_mil=0.5")
    table = cohort.parent / "other.csv"
    lines = cohort.read_text().splitlines()
    table.write_text("\n".join([*lines[:-1], lines[-1].replace("no adenocarcinoma", "adenocarcinoma")]) + "\n")
    with pytest.raises(RunError, match=r"1 row of the table changed, first .*drawn-0011\.tif"):
        train("all", table, finished, "run_folds=[]")
    moved = shutil.copytree(cohort.parent, tmp_path / "moved")
    with pytest.raises(RunError, match=r"the slides lie elsewhere, .*moved/slides/drawn-0000\.tif was /.*0000\.tif"):
        train("all", moved, finished, "run_folds=[]")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        train("all", cohort, tmp_path)


def test_a_stage_waits_for_those_before_it(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Stage segment of fold 0 is not over"):
        train("mil", cohort, tmp_path / "run")


def test_faults_of_slides_are_told_before_anything_is_written(cohort: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_text("no slide")
    table = tmp_path / "cohort.csv"
    rows = [f"{cohort.parent}/{line}" for line in cohort.read_text().splitlines()[1:]]
    rows = [row.split(",")[:3] for row in rows]
    table.write_text(
        "slide,label,patient\n" + "\n".join(",".join(row) for row in rows) + "\nbad.tif,adenocarcinoma,p\n"
    )
    with pytest.raises(CohortError, match=r"bad\.tif"):
        train("all", table, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_tensorboard_one_sentence_comes_before_any_work(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MsamilError, match=r'not installed: pip install "napari-msamil\[tensorboard\]", or set machine'):
        train("all", cohort, tmp_path / "run", "machine.tensorboard=true")
    assert not (tmp_path / "run").exists()


def test_without_lesions_the_model_looks_at_all_tissue(cohort: Path, tmp_path: Path) -> None:
    table = cohort.parent / "plain.csv"
    table.write_text("\n".join(",".join(line.split(",")[:3]) for line in cohort.read_text().splitlines()) + "\n")
    out = train("all", table, tmp_path / "run", "evaluate.selection=['lesion']")
    assert out is not None
    assert load_model(out).card.on_empty.policy == "tissue"
    assert json.loads((tmp_path / "run" / "fold-0" / "result.json").read_text())["segment"] is None
    assert "the segmenter is untrained" in (tmp_path / "run" / "report.md").read_text()


def test_processes_that_read_patches_give_the_same_training_as_a_thread(cohort: Path, tmp_path: Path) -> None:
    for out, workers in (("a", 0), ("b", 2)):
        for stage in ("segment", "end-to-end"):
            train(stage, cohort, tmp_path / out, f"machine.workers={workers}")
    one, two = (torch.load(tmp_path / k / "fold-0" / "end-to-end.pt", weights_only=True) for k in "ab")
    for name, value in one["modules"]["aggregator"].items():
        assert torch.equal(value, two["modules"]["aggregator"][name]), name


@pytest.mark.parametrize("labels", ["false", "true"])
def test_stage_pretrain_makes_the_extractor_that_later_stages_begin_with(
    cohort: Path, tmp_path: Path, labels: str
) -> None:
    first = ["pretrain.steps=3", "pretrain.batch=8", "pretrain.crop_px=48", "end_to_end.freeze=true"]
    first.append(f"pretrain.labels={labels}")
    train("segment", cohort, tmp_path, *first)
    with pytest.raises(RunError, match="Stage pretrain of fold 0 is not over: run `msamil train pretrain`"):
        train("end-to-end", cohort, tmp_path, *first)
    train("pretrain", cohort, tmp_path, *first)
    train("all", cohort, tmp_path, *first)
    kept = torch.load(tmp_path / "fold-0" / "pretrain.pt", weights_only=True)
    started = torch.load(tmp_path / "fold-0" / "segment.pt", weights_only=True)["best"]["segmenter"]
    learned = kept["best"]["extractor"]
    folded = load_model(tmp_path / "model.safetensors").extractor.state_dict()
    for name in ("class_token", "norm.weight"):
        torch.testing.assert_close(folded[name], learned[name].to(folded[name].dtype), atol=1e-3, rtol=1e-3)
    stem = "conv_stem.weight"
    assert not torch.equal(learned[f"encoder.{stem}"], started[f"net.encoder.model.{stem}"]), "it learned on"


def test_stage_pretrain_without_steps_says_how_to_have_it(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Stage pretrain is left out, for pretrain\.steps is 0"):
        train("pretrain", cohort, tmp_path)


def test_folds_may_be_worked_on_by_separate_commands_and_give_the_same_report(
    finished: Path, cohort: Path, tmp_path: Path
) -> None:
    assert train("all", cohort, tmp_path, "run_folds=[]", "machine.folds=[1]") is None, "fold 0 is not tested yet"
    assert not (tmp_path / "fold-0").exists()
    assert train("all", cohort, tmp_path, "run_folds=[]", "machine.folds=[0]") == tmp_path / "model.safetensors"
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (finished, tmp_path))
    assert one["pooled"] == two["pooled"]
    with pytest.raises(RunError, match=r"machine\.folds names fold 7, but the folds of the run are 0, 1"):
        train("all", cohort, tmp_path, "run_folds=[]", "machine.folds=[7]")


def test_two_commands_never_work_on_the_same_fold(cohort: Path, tmp_path: Path) -> None:
    other = subprocess.Popen(shell("all", cohort, tmp_path, "end_to_end.epochs=1000", "machine.folds=[0]"))
    try:
        while not (tmp_path / "fold-0" / "log.csv").exists():
            assert other.poll() is None
            time.sleep(0.1)
        with pytest.raises(RunError, match=r"Another command is working on fold 0 of .*: wait until it ends"):
            train("segment", cohort, tmp_path, "end_to_end.epochs=1000")
    finally:
        other.kill()
        other.wait()
    train("segment", cohort, tmp_path, "end_to_end.epochs=1000")  # what was killed holds nothing


def test_stages_that_would_be_the_same_are_taken_over_from_another_run(
    finished: Path, cohort: Path, tmp_path: Path
) -> None:
    reuse, run = f"machine.reuse={finished}", tmp_path / "run"
    train("end-to-end", cohort, run, "end_to_end.lr_mil=0.01", reuse)
    of = {s: [(k / "fold-0" / f"{s}.pt").read_bytes() for k in (finished, run)] for s in ("segment", "end-to-end")}
    assert of["segment"][0] == of["segment"][1]
    assert of["end-to-end"][0] != of["end-to-end"][1], "another rate gives other weights"
    train(
        "segment",
        cohort,
        tmp_path / "wider",
        "model.extractor.hidden=48",
        "model.thresholds.lesion_fraction=0.5",
        reuse,
    )
    assert (tmp_path / "wider" / "fold-0" / "segment.pt").read_bytes() == of["segment"][0], "the segmenter is the same"
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"machine\.reuse is .*, which holds no run"):
        train("segment", cohort, tmp_path / "other", f"machine.reuse={tmp_path / 'empty'}")
    lines = cohort.read_text().splitlines()
    table = cohort.parent / "fewer.csv"
    table.write_text("\n".join([lines[0], *lines[3:]]) + "\n")
    with pytest.raises(RunError, match=r"a run of other slides \(2 rows of the table changed"):
        train("segment", table, tmp_path / "other", reuse)
    assert not (tmp_path / "other").exists()


def test_a_stage_is_not_taken_over_when_a_slide_changed_since(finished: Path, cohort: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    for file in (old / "thumbnails").glob("*.npz"):
        with np.load(file) as kept:
            content = dict(kept)
        np.savez(file, **content | {"made_from": "another file of that name"})
    with pytest.raises(RunError, match=r"a run of other slides: the file of .* changed since \(\d+ in all\)"):
        train("segment", cohort, tmp_path / "run", f"machine.reuse={old}")


def test_a_fold_that_was_tested_is_not_trained_again_unasked(finished: Path, cohort: Path, tmp_path: Path) -> None:
    fold = shutil.copytree(finished, tmp_path / "run") / "fold-0"
    (fold / "mil.pt").unlink()
    train("all", cohort, tmp_path / "run", "run_folds=[]")
    assert not (fold / "mil.pt").exists(), "its model and figures would not be those of the new weights"
    with pytest.raises(RunError, match=r"Fold 0 was tested, and .*mil\.pt is gone: delete result\.json"):
        train("mil", cohort, tmp_path / "run", "run_folds=[]")


def test_a_test_slide_that_changed_since_another_fold_learned_from_it_is_named(tmp_path: Path) -> None:
    cohort = synthetic.write(tmp_path / "cohort", slides=12, size_px=512)
    train("all", cohort, tmp_path / "run", "run_folds=[]", "machine.folds=[0]")
    parts = csv.DictReader((tmp_path / "run" / "splits.csv").read_text().splitlines())
    swapped = next(
        cohort.parent / row["slide"] for row in parts if (row["fold 0"], row["fold 1"]) == ("training", "test")
    )
    shutil.copy(next(one.path for one in read_cohort(cohort).slides if one.path.name != swapped.name), swapped)
    with pytest.raises(CohortError, match="slide or lesion file changed since this run looked at it"):
        train("all", cohort, tmp_path / "run", "run_folds=[]", "machine.folds=[1]")


def test_other_threads_than_a_run_was_begun_with_are_warned_of(
    finished: Path, cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    facts = json.loads((run / "versions.json").read_text())
    (run / "versions.json").write_text(json.dumps(facts | {"threads": 99}))
    train("all", cohort, run, "run_folds=[]")
    assert f"was begun with threads 99, now {torch.get_num_threads()}: its figures may differ" in caplog.text


def test_a_stage_does_not_go_on_from_weights_that_were_made_anew_since(
    finished: Path, cohort: Path, tmp_path: Path
) -> None:
    fold = shutil.copytree(finished, tmp_path / "run") / "fold-0"
    made_anew = torch.load(fold / "end-to-end.pt", weights_only=True)
    made_anew["best"]["extractor"]["encoder.conv_stem.weight"] += 0.001
    torch.save(made_anew, fold / "end-to-end.pt")
    with pytest.raises(CheckpointError, match=r"mil\.pt cannot be resumed: it went on from other weights.*Delete"):
        train("mil", cohort, tmp_path / "run", "run_folds=[]")


def test_without_the_end_to_end_stage_the_aggregator_learns_on_the_extractor_as_it_was(
    finished: Path, cohort: Path, tmp_path: Path
) -> None:
    settings = ["end_to_end.epochs=0", "evaluate.selection=['lesion']"]
    out = train("all", cohort, tmp_path, *settings, f"machine.reuse={finished}")
    assert out is not None
    assert not (tmp_path / "fold-0" / "end-to-end.pt").exists()
    model = load_model(out)
    stem = "conv_stem.weight"
    one, two = (
        model.extractor.state_dict()[f"encoder.{stem}"],
        model.segmenter.state_dict()[f"net.encoder.model.{stem}"],
    )
    assert torch.equal(one, two)
    assert json.loads((tmp_path / "fold-0" / "result.json").read_text())["test_before_mil"] is None
    with pytest.raises(RunError, match=r"Stage end-to-end is left out, for end_to_end\.epochs is 0"):
        train("end-to-end", cohort, tmp_path, *settings)


def test_a_run_that_takes_over_all_its_stages_has_a_report_without_a_loss_curve(
    finished: Path, cohort: Path, tmp_path: Path
) -> None:
    out = train("all", cohort, tmp_path / "run", "run_folds=[]", "evaluate.bootstrap=100", f"machine.reuse={finished}")
    assert out is not None
    assert load_model(out).card.command == "the command"
    report = (tmp_path / "run" / "report.md").read_text()
    assert "roc.png" in report
    assert "loss.png" not in report


@pytest.mark.parametrize(("out", "what"), [("file", "is a file"), ("file/run", "is a file")])
def test_a_place_where_no_folder_can_be_is_named(cohort: Path, tmp_path: Path, out: str, what: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=f"cannot be made a run's folder, since .*file {what}"):
        train("all", cohort, tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_steps_ends_with_a_sentence_too(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(command, "finish", lambda _: signal.raise_signal(number))
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match=r"was stopped\. The same command goes on"):
        train("segment", cohort, tmp_path / "run", "segment.epochs=1")
    signal.signal(signal.SIGINT, usual)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_lesion_file_that_changed_under_a_run_is_named(tmp_path: Path) -> None:
    cohort = synthetic.write(tmp_path / "cohort", slides=12, size_px=512)
    train("segment", cohort, tmp_path / "run", "segment.epochs=1")
    train("segment", cohort, tmp_path / "run", "segment.epochs=1")  # nothing changed
    parts = csv.DictReader((tmp_path / "run" / "splits.csv").read_text().splitlines())
    learned = {Path(row["slide"]).name for row in parts if row["fold 0"] == "training"}
    lesion = next(one.lesion for one in read_cohort(cohort).slides if one.path.name in learned and one.lesion)
    with lesion.open("ab") as file:
        file.write(b"more")
    with pytest.raises(CohortError, match=r"tif: slide or lesion file changed since this run looked at it"):
        train("segment", cohort, tmp_path / "run", "segment.epochs=1")


def test_a_table_with_too_few_patients_or_classes_is_refused_in_the_words_of_the_check(
    cohort: Path, tmp_path: Path
) -> None:
    with pytest.raises(CohortError, match="class 'adenocarcinoma' has 6 patients for 99 folds: use fewer folds"):
        train("segment", cohort, tmp_path / "run", "folds=99")
    lines = cohort.read_text().splitlines()
    table = cohort.parent / "one-class.csv"
    table.write_text("\n".join([lines[0], *(line for line in lines if ",no adenocarcinoma," in line)]) + "\n")
    with pytest.raises(CohortError, match="all slides are 'no adenocarcinoma': a classifier needs at least two"):
        train("segment", table, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_of_a_run_is_named_with_what_to_do(finished: Path, cohort: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    result = run / "fold-0" / "result.json"
    whole = result.read_text()
    result.write_text("{")
    with pytest.raises(
        RunError, match=r"fold-0/result\.json is damaged or missing: put a copy of it back, or delete .*result"
    ):
        train("all", cohort, run, "run_folds=[]")
    result.write_text(whole)
    models = [run / name / "model.safetensors" for name in ("fold-0", "fold-1", ".")]
    good = [file.read_bytes() for file in models]
    of = good.index(good[2])  # the fold that the run's model is of
    for ruin in (lambda: models[of].write_bytes(good[of][:300]), models[of].unlink):
        ruin()
        with pytest.raises(RunError, match=rf"fold-{of}/model\.safetensors is damaged or missing: put a copy"):
            train("all", cohort, run, "run_folds=[]")
    assert models[2].read_bytes() == good[2], "the copy that is whole stays"
    thumbnail = run / "thumbnails" / "00000.npz"
    kept = thumbnail.read_bytes()
    shutil.rmtree(run / "fold-0")
    for damaged in (b"", kept[:500], b"no archive"):
        thumbnail.write_bytes(damaged)
        with pytest.raises(CohortError, match=r"00000\.npz is damaged: delete it and give the same command again"):
            train("segment", cohort, run, "run_folds=[]")


def test_a_folder_that_another_command_took_while_slides_were_looked_at_is_refused(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(seed: int) -> None:
        settings = [*SETTINGS, f"seed={seed}"]
        run.begin(read_config("tiny", settings), read_cohort(cohort), tmp_path / "run", command=f"seed {seed}")

    def look(*given: Any, files: bool, whole: Any = run.refuse_untrainable, **more: Any) -> None:
        whole(*given, files=files, **more)
        if files:
            monkeypatch.undo()
            begin(2)

    monkeypatch.setattr(run, "refuse_untrainable", look)
    with pytest.raises(RunError, match="seed was 2 and is now 1"):
        begin(1)
    assert (tmp_path / "run" / "commands.txt").read_text() == "seed 2\n"


def test_all_commands_that_worked_on_a_run_stand_in_its_report(cohort: Path, tmp_path: Path) -> None:
    for fold in (1, 0):
        settings = [*SETTINGS, "run_folds=[]", f"machine.folds=[{fold}]"]
        run_training(
            "all", preset="tiny", settings=settings, cohort=cohort, out=tmp_path / "run", command=f"train {fold}"
        )
    report = (tmp_path / "run" / "report.md").read_text()
    assert "Several commands worked on it" in report
    assert "```\ntrain 1\ntrain 0\n```" in report


def test_a_full_disk_ends_in_a_sentence_that_names_the_file(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 10_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def save(content: object, stream: object, whole: Any = torch.save) -> None:
        whole(content, Full())  # as torch writes onto a disk that fills up

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RunError, match=r"fold-0/segment\.pt cannot be read or written \(No space left on device\)"):
        train("segment", cohort, tmp_path / "run")
