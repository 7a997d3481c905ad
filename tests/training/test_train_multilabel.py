"""A whole training where a slide may have several classes or none, from the table to what `msamil classify` says."""

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from typer.testing import CliRunner

from napari_msamil.cli import app
from napari_msamil.inference.prediction import NOT_EXCLUSIVE
from napari_msamil.models.model import load_model
from napari_msamil.training.cohort import CohortError, CohortSlide, read_cohort, write_cohort
from napari_msamil.training.command import run_training
from napari_msamil.training.run import RunError

CLASSES = ("dots", "violet")
SETTINGS = [
    "model.thumbnail_px=128", "end_to_end.patches=6", "end_to_end.chunk=4", "machine.device=cpu", "run_folds=[]",
    "end_to_end.label_smoothing=0.1", "mil.epochs=2",
]  # fmt: skip


def draw(path: Path, label: tuple[str, ...], rng: np.random.Generator) -> None:
    """Glass with a square of tissue, which may be violet, and may have dark dots; both or neither."""
    pixels = np.full((512, 512, 3), 245, np.uint8)
    colour = (140, 90, 190) if "violet" in label else (200, 110, 150)
    pixels[100:400, 80:420] = rng.normal(colour, 20, (300, 340, 3)).clip(0, 255).astype(np.uint8)
    if "dots" in label:
        y, x = np.mgrid[:512, :512]
        for cx, cy in rng.integers(110, 390, (40, 2)):
            pixels[(x - cx) ** 2 + (y - cy) ** 2 < 36] = (40, 20, 60)
    place = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="deflate", **place)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen drawn slides, four of each of the four answers."""
    folder = tmp_path_factory.mktemp("cohort")
    slides = []
    for number in range(16):
        label = tuple(name for bit, name in enumerate(CLASSES) if number >> bit & 1)
        draw(folder / f"s{number:02d}.tif", label, np.random.default_rng(number))
        slides.append(CohortSlide(folder / f"s{number:02d}.tif", label, f"p{number:02d}"))
    return write_cohort(slides, folder / "cohort.csv")


def train(cohort: Path, out: Path) -> Path | None:
    return run_training("all", preset="tiny", settings=SETTINGS, cohort=cohort, out=out, command="the command")


@pytest.fixture(scope="module")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages on both folds, by the command line."""
    out = tmp_path_factory.mktemp("run") / "run"
    line = ["train", "all", "--preset", "tiny", "--cohort", str(cohort), "--out", str(out), *SETTINGS]
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out


def test_the_file_says_that_classes_do_not_exclude_each_other_and_classifies_as_its_evaluation_did(
    finished: Path, cohort: Path, tmp_path: Path
) -> None:
    card = load_model(finished / "model.safetensors").card
    assert (card.classes, card.exclusive) == (CLASSES, False)
    results = [json.loads((finished / f"fold-{k}" / "result.json").read_text()) for k in (0, 1)]
    chosen = max((0, 1), key=lambda k: (results[k]["validation"]["auc"], -k))
    stored = json.loads((finished / f"fold-{chosen}" / "logits.json").read_text())
    slide = read_cohort(cohort).slides[stored["rows"][0]].path
    line = ["classify", str(slide), "--out", str(tmp_path), "--model", str(finished / "model.safetensors")]
    done = CliRunner().invoke(app, [*line, "--device", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / slide.stem / "prediction.json").read_text())
    assert card.temperature == tuple(results[chosen]["temperature"])
    scaled = torch.tensor(stored["logits"][0], dtype=torch.float64) / torch.tensor(card.temperature)
    expected = scaled.sigmoid().tolist()
    assert list(facts["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
    order = np.argsort(-np.array(expected))
    assert facts["predicted"] == [CLASSES[k] for k in order if expected[k] >= 0.5]
    assert facts["model"]["exclusive"] is False
    assert NOT_EXCLUSIVE in done.output
    shown = " ".join(CliRunner().invoke(app, ["model", "show", str(finished / "model.safetensors")]).output.split())
    assert "classes dots, violet; a slide may have several of them or none" in shown
    figures = card.figures[f"test part of fold {chosen}"]
    assert figures["average_precision"] == results[chosen]["test"]["average_precision"]


def test_every_slide_is_tested_once_and_the_report_judges_each_class(finished: Path, cohort: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    pooled = metrics["pooled"]
    assert pooled["slides"] == 16
    assert [pooled["per_class"][name]["support"] for name in CLASSES] == [8, 8]
    assert pooled["auc"] == pytest.approx(np.mean([pooled["per_class"][name]["auc"] for name in CLASSES]))
    report = (finished / "report.md").read_text()
    for said in (
        "Classes do not exclude each other", "Research use only", f"**{pooled['average_precision']:.3f}**",
        "| there, found | there, missed |", "| class | temperature of fold 0 | temperature of fold 1 | ECE before |",
    ):  # fmt: skip
        assert said in report
    assert "confusion.png" not in report
    assert "nan" not in report.lower().split()
    for name, panels in (("roc.png", 2), ("calibration.png", 2)):
        with Image.open(finished / name) as picture:
            assert picture.width > 500 * panels, name
    with (finished / "predictions.csv").open(newline="") as file:
        said = {Path(row["slide"]).name: row["label"] for row in csv.DictReader(file)}
    assert (said["s00.tif"], said["s02.tif"], said["s03.tif"]) == ("none", "violet", "dots;violet")
    splits = (finished / "splits.csv").read_text().splitlines()
    assert "s03.tif,p03,dots;violet," in splits[4]


def test_each_part_holds_slides_with_and_without_each_class(finished: Path, cohort: Path) -> None:
    table = read_cohort(cohort)
    for fold in (0, 1):
        with (finished / "splits.csv").open(newline="") as file:
            parts = [row[f"fold {fold}"] for row in csv.DictReader(file)]
        for part in ("training", "validation", "test"):
            found = table.targets()[[one == part for one in parts]]
            assert found.any(0).all()
            assert not found.all(0).any()


def test_a_finished_run_is_not_gone_on_with_by_a_table_that_means_something_else(
    finished: Path, cohort: Path, tmp_path: Path
) -> None:
    before = (finished / "metrics.json").read_bytes()
    train(cohort, finished)
    assert json.loads((finished / "metrics.json").read_text())["folds"] == json.loads(before)["folds"]
    table = cohort.parent / "one.csv"
    table.write_text(cohort.read_text().replace("labels", "label", 1).replace("dots;violet", "both"))
    with pytest.raises(RunError, match="16 rows of the table changed"):
        train(table, finished)


def test_a_class_that_every_slide_has_is_refused_before_anything_is_written(cohort: Path, tmp_path: Path) -> None:
    table = cohort.parent / "every.csv"
    lines = [line.replace("none", "violet") for line in cohort.read_text().splitlines()]
    table.write_text("\n".join(line.replace(",dots,", ",dots;violet,") for line in lines) + "\n")
    with pytest.raises(CohortError, match="every slide has class 'violet'"):
        train(table, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_on_features_made_elsewhere_each_class_is_learned_whatever_the_other_is(tmp_path: Path) -> None:
    rows, rng = ["slide,labels,patient"], np.random.default_rng(0)
    for number in range(24):
        label = [name for bit, name in enumerate(CLASSES) if number >> bit & 1]
        rows.append(f"s{number:02d}.svs,{';'.join(label) or 'none'},p{number:02d}")
        features = rng.normal(0, 1, (20, 16)).astype(np.float32)
        for place, name in enumerate(CLASSES):
            features[6 * place : 6 * place + 6, place] += 6 * (name in label)
        with h5py.File(tmp_path / f"s{number:02d}.h5", "w") as file:
            file["features"] = features
            file["coords"] = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2) * 512
    table = tmp_path / "cohort.csv"
    table.write_text("\n".join(rows) + "\n")
    settings = ["model.scales_mpp=[0.5]", "machine.device=cpu", "run_folds=[]", f"mil.features={tmp_path}"]
    settings += ["mil.epochs=12", "mil.learning_rate=0.003", "mil.label_smoothing=0.05"]
    run_training("all", preset="tiny", settings=settings, cohort=table, out=tmp_path / "run", command="it")
    pooled = json.loads((tmp_path / "run" / "metrics.json").read_text())["pooled"]
    assert min(pooled["per_class"][name]["auc"] for name in CLASSES) > 0.85
    assert "Classes do not exclude each other" in (tmp_path / "run" / "report.md").read_text()
