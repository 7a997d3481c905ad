"""Training on features of CLAM and TRIDENT: what comes out without a pixel, and what is wrong with a file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from napari_msamil import load_model
from napari_msamil.cli import app
from napari_msamil.errors import ModelFileError
from napari_msamil.inference.classify import open_model
from napari_msamil.training.cohort import CohortError, CohortSlide
from napari_msamil.training.command import run_training
from napari_msamil.training.config import ConfigError, read_config
from napari_msamil.training.h5 import FeatureError, FeatureFolders
from napari_msamil.training.run import RunError

D = 16
PLACES = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2) * 512 + 1000  # 20 patches


def write_clam(file: Path, features: Any, coords: Any = PLACES, **attributes: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as out:
        out.create_dataset("features", data=features, chunks=True, maxshape=(None, *np.shape(features)[1:]))
        if coords is not None:
            out.create_dataset("coords", data=coords).attrs.update(attributes)
    return file


def write_trident(file: Path, features: Any, coords: Any = PLACES, *, magnification: int = 20) -> Path:
    side = 256 * 40 // magnification
    return write_clam(
        file, features, coords, patch_size=256, patch_size_level0=side, level0_magnification=40, overlap=0,
        target_magnification=magnification, level0_width=9000, level0_height=8000, name="s", savetodir="somewhere",
    )  # fmt: skip


def drawn(number: int, *, width: int = D) -> np.ndarray:
    """Features of slide ``number``; some patches of the odd ones point another way."""
    features = np.random.default_rng(number).normal(0, 1, (len(PLACES), width)).astype(np.float32)
    features[:6, 0] += 6 * (number % 2)
    return features


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Twelve slides of twelve patients, of which there is nothing but the names."""
    lines = [f"slides/s{k:02d}.svs,{'ab'[k % 2]},p{k:02d}" for k in range(12)]
    table = tmp_path / "cohort.csv"
    table.write_text("\n".join(["slide,label,patient", *lines]) + "\n")
    return table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of each slide, as CLAM writes it."""
    for k in range(12):
        write_clam(tmp_path / "h5_files" / f"s{k:02d}.h5", drawn(k))
    return tmp_path / "h5_files"


def train(stage: str, cohort: Path, out: Path, *settings: str) -> Path | None:
    common = ["model.scales_mpp=[0.5]", "machine.device=cpu", "run_folds=[]", "mil.epochs=8", "mil.learning_rate=0.003"]
    return run_training(stage, preset="tiny", settings=[*common, *settings], cohort=cohort, out=out, command="it")


def read(*files: Path, mpp: tuple[float, ...] = (0.5,)) -> Any:
    return FeatureFolders(tuple(file.parent for file in files), mpp).bag_of(files[0].with_suffix(".svs"))


def test_folds_are_trained_and_tested_without_a_pixel(cohort: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    file = train("all", cohort, out, f"mil.features={folder}")
    assert file == out / "aggregator.safetensors"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["pooled"]["slides"] == 12
    assert metrics["pooled"]["auc"] > 0.9
    assert metrics["pooled_before_mil"] is None
    report = (out / "report.md").read_text()
    assert "There is no model.safetensors: the features were made elsewhere (16 numbers a patch, from" in report
    assert "Which patches the model sees" not in report

    model = load_model(file, aggregator_alone=True)
    assert (model.card.aggregator.dim, model.card.command, model.card.scales_mpp) == (D, "it", (0.5,))
    assert str(folder) in model.card.features
    assert all(name.startswith("aggregator.") for name in model.state_dict())
    chosen = int(report.split("aggregator.safetensors is the model of fold ")[1][0])
    logits = json.loads((out / f"fold-{chosen}" / "logits.json").read_text())
    bag = FeatureFolders((folder,), (0.5,)).bag_of(Path(f"s{logits['rows'][0]:02d}.svs"))
    with torch.inference_mode():
        assert model.aggregate(bag).logits.tolist() == pytest.approx(logits["logits"][0], abs=1e-5)


def test_an_aggregator_alone_says_that_it_classifies_no_slide(cohort: Path, folder: Path, tmp_path: Path) -> None:
    file = train("all", cohort, tmp_path / "run", f"mil.features={folder}", "mil.epochs=1")
    assert file is not None
    with pytest.raises(
        ModelFileError, match=r"cannot classify a slide: it is an aggregator alone.*Use a model that was"
    ):
        open_model(file)  # as napari and `msamil classify` do
    shown = " ".join(CliRunner().invoke(app, ["model", "show", str(file)]).stdout.split())
    assert "features made elsewhere" in shown
    assert "is lesion" not in shown
    assert "whole and unchanged msamil model" in CliRunner().invoke(app, ["model", "verify", str(file)]).stdout


def test_stages_run_one_by_one_and_those_that_need_pixels_are_refused(
    cohort: Path, folder: Path, tmp_path: Path
) -> None:
    settings = (f"mil.features={folder}", "mil.epochs=1")
    with pytest.raises(RunError, match="Stage mil of fold 0 is not over"):
        train("evaluate", cohort, tmp_path / "run", *settings)
    with pytest.raises(
        RunError, match=r"Stage segment needs the pixels of slides: with these settings there are mil, evaluate"
    ):
        train("segment", cohort, tmp_path / "run", *settings)
    train("mil", cohort, tmp_path / "run", *settings)
    assert train("evaluate", cohort, tmp_path / "run", *settings)


def test_both_layouts_give_the_bag_that_was_written(tmp_path: Path) -> None:
    features = drawn(1)
    clam = write_clam(tmp_path / "a" / "s.h5", features)
    patches = {"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0), "level_dim": (4500, 4000)}
    told = write_clam(tmp_path / "b" / "s.h5", features.astype(np.float16), PLACES.astype(np.int32), **patches)
    trident = write_trident(tmp_path / "c" / "s.h5", features[None], PLACES[None])
    for file, size, side in ((clam, (3049, 2537), None), (told, (9000, 8000), 512), (trident, (9000, 8000), 512)):
        bag = read(file)
        assert bag.features.dtype == torch.float32
        np.testing.assert_allclose(bag.features.numpy(), features, atol=4e-3 if file == told else 0)
        assert bag.coords.tolist() == PLACES.tolist()
        assert bag.slide_size == size
        assert bag.footprint is None if side is None else bag.footprint.tolist() == [[side, side]]


def test_a_folder_per_scale_makes_one_bag_finest_first(tmp_path: Path) -> None:
    fine = write_trident(tmp_path / "20x" / "s.h5", drawn(1))
    coarse = write_trident(tmp_path / "10x" / "s.h5", drawn(2)[:5], PLACES[:5], magnification=10)
    bag = read(fine, coarse, mpp=(0.5, 1.0))
    assert bag.scale.tolist() == [0] * 20 + [1] * 5
    assert bag.footprint.tolist() == [[512, 512], [1024, 1024]]
    np.testing.assert_array_equal(bag.features[20:].numpy(), drawn(2)[:5])
    with pytest.raises(FeatureError, match=r"10x.s\.h5 was made at 10x, 1 µm/px, and model\.scales_mpp says 0\.5"):
        read(coarse, fine, mpp=(0.5, 1.0))


def test_folders_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    """CLAM's files do not say their magnification; the distance of their patches does."""
    fine = write_clam(tmp_path / "20x" / "s.h5", drawn(1))
    coarse = write_clam(tmp_path / "10x" / "s.h5", drawn(2)[:8], 2 * PLACES[:8])
    lone = write_clam(tmp_path / "5x" / "s.h5", drawn(3)[:1], PLACES[:1])  # tells nothing
    assert len(read(fine, coarse, lone, mpp=(0.5, 1.0, 2.0)).coords) == 29
    assert len(read(fine, lone, fine, mpp=(0.5, 1.0, 2.0)).coords) == 41  # the same field at all scales is no fault
    said = r"10x lie 1024 px apart, those in .*20x only 512: mil\.features names the folder of the finest scale first"
    with pytest.raises(FeatureError, match=said):
        read(coarse, lone, fine, mpp=(0.5, 1.0, 2.0))


def linked(file: Path) -> None:
    with h5py.File(file, "w") as out:
        out["features"], out["coords"] = h5py.ExternalLink("other.h5", "features"), PLACES


def damaged(file: Path) -> None:
    write_clam(file, drawn(1))
    file.write_bytes(file.read_bytes()[:-300])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda file: file.unlink(), r"there is no .*s00\.h5"),
    "width": (lambda file: write_clam(file, drawn(0, width=8)), r"s00: 8 numbers a patch, where most have 16"),
    "no coords": (
        lambda file: write_clam(file, drawn(0), None),
        r"s00\.h5 has no dataset coords of its own; it has feat",
    ),
    "nan": (
        lambda file: write_clam(file, drawn(0) * [[np.nan]] + [[0.0]]),
        "20 of 20 patches have features that are not",
    ),
    "rows": (lambda file: write_clam(file, drawn(0), PLACES[:9]), r"coords are \(9, 2\) int64 for 20 patches"),
    "real places": (
        lambda file: write_clam(file, drawn(0), PLACES / 2),
        r"coords are \(20, 2\) float64 for 20 patches",
    ),
    "below zero": (lambda file: write_clam(file, drawn(0), PLACES - 10**6), r"20 of 20 patches have coords below 0"),
    "one place": (
        lambda file: write_clam(file, drawn(0), 0 * PLACES),
        r"all 20 patches have the same coords, \(0, 0\); coords are the top left corners",
    ),
    "flat": (lambda file: write_clam(file, drawn(0)[0]), r"features are \(16,\) float32, \(N, D\) floating point"),
    "text": (lambda file: write_clam(file, np.full((20, 2), b"x")), r"features are \(20, 2\) \|S1"),
    "empty": (lambda file: write_clam(file, drawn(0)[:0], PLACES[:0]), r"s00\.h5 has no patches"),
    "no h5": (lambda file: file.write_text("no"), r"s00\.h5 is no HDF5 file, or is damaged"),
    "cut": (damaged, r"s00\.h5 is no HDF5 file, or is damaged"),
    "elsewhere": (linked, r"s00\.h5 has no dataset features of its own"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_file_is_one_sentence_before_anything_is_written(
    fault: str, cohort: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, said = FAULTS[fault]
    spoil(folder / "s00.h5")
    with pytest.raises(FeatureError, match=said) as caught:
        train("mil", cohort, tmp_path / "run", f"mil.features={folder}")
    assert str(caught.value).startswith("Features of 1 of 12 slides cannot be used: ")
    assert not (tmp_path / "run").exists()


def test_all_faults_stand_in_one_message_and_bad_slides_may_be_left_out(
    cohort: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FeatureError, match=r"mil\.features names .*gone, which is no folder"):
        train("all", cohort, tmp_path / "run", f"mil.features={folder / 'gone'}")
    (folder / "s00.h5").unlink()
    write_clam(folder / "s05.h5", drawn(5, width=8))
    given = f"mil.features={folder}"
    with pytest.raises(FeatureError, match=r"Features of 2 of 12 slides (.|\n)*s00\.h5\n- s05: 8 numbers a patch"):
        train("all", cohort, tmp_path / "run", given)
    train("all", cohort, tmp_path / "run", given, "machine.skip_bad_slides=true", "mil.epochs=1")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["pooled"]["slides"] == 10
    assert "left out: there is no" in caplog.text


def test_features_that_changed_do_not_resume_and_are_named(cohort: Path, folder: Path, tmp_path: Path) -> None:
    given = (f"mil.features={folder}", "mil.epochs=1")
    train("mil", cohort, tmp_path / "run", *given)
    write_clam(folder / "s03.h5", drawn(99))
    with pytest.raises(RunError, match=r"features of 1 slide changed, first s03\.svs"):
        train("mil", cohort, tmp_path / "run", *given)


def test_slides_named_alike_are_refused(folder: Path) -> None:
    folders = FeatureFolders((folder,), (0.5,))
    slides = [CohortSlide(Path(place) / "s00.svs", "a", place) for place in ("x", "y")]
    with pytest.raises(FeatureError, match=r"s00\.h5 would be of several slides of the table"):
        folders.look_at(slides)


def test_settings_that_do_not_go_with_the_features_are_refused(cohort: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names 1 folder, but the model has 3 scales.*'model\.scales_mpp=\[0\.5\]'"):
        read_config("tiny", [f"mil.features={folder}"])
    with pytest.raises(ConfigError, match=r"features of 16 numbers a patch .*dim 16 is not a multiple of heads 3"):
        train("mil", cohort, tmp_path / "run", f"mil.features={folder}", "model.aggregator={heads=3, dim=36}",
              "model.extractor={out_dim=36, heads=3}")  # fmt: skip


def test_without_features_the_slides_must_be_there(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"there is no slide .*s00\.svs"):
        train("mil", cohort, tmp_path / "run", "model.scales_mpp=[0.5]")


def test_without_h5py_one_sentence_says_what_to_install(
    cohort: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(FeatureError, match=r'pip install "napari-msamil\[h5\]"'):
        train("mil", cohort, tmp_path / "run", f"mil.features={folder}")
