"""The command line: what it prints, writes and exits with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from typer.testing import CliRunner

from napari_msamil import __version__
from napari_msamil.cli import app, main
from napari_msamil.errors import MsamilError
from napari_msamil.models.card import OnEmpty, Thresholds, preset_card
from napari_msamil.models.model import build_model, save_model

runner = CliRunner()


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    card = preset_card("demo", classes=["benign", "malignant"], patch_px=64, thumbnail_px=128, on_empty=OnEmpty(k=8))
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(build_model(card, seed=1), path)
    return path


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    """Two slides of tissue; the second has a name beyond ASCII."""
    paths = [tmp_path / "one.tif", tmp_path / "Präparat 二.tif"]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).normal((190, 110, 170), 25, (512, 512, 3)).clip(0, 255).astype(np.uint8)
        tifffile.imwrite(
            path, pixels, tile=(256, 256), photometric="rgb", resolution=(1e4, 1e4), resolutionunit="CENTIMETER"
        )
    return paths


def test_version_is_the_package_version() -> None:
    assert runner.invoke(app, ["--version"]).stdout.strip() == __version__


def test_info_prints_the_facts_as_text_and_as_json(slides: list[Path]) -> None:
    assert "512 x 512 px" in runner.invoke(app, ["info", str(slides[0])]).stdout
    facts = json.loads(runner.invoke(app, ["info", str(slides[0]), "--json"]).stdout)
    assert facts["width_px"] == 512
    assert facts["mpp"] == pytest.approx([1.0, 1.0])
    assert facts["mpp_source"] == "metadata"


def test_classify_writes_a_folder_per_slide_and_exits_0(slides: list[Path], model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = runner.invoke(app, ["classify", *map(str, slides), "--out", str(out), "--model", str(model_file)])
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in out.iterdir()) == ["Präparat 二", "one"]
    assert "research use only" in done.stdout


def test_weak_evidence_is_said_on_the_line_of_the_class(slides: list[Path], tmp_path: Path) -> None:
    card = preset_card("demo", classes=["benign", "malignant"], patch_px=64, thumbnail_px=128)
    headlines = []
    for lowest in (0.0, 0.9999, 1.0):  # above it a pixel is lesion: all of them, none, and none by design
        limits = Thresholds(lesion_probability=lowest)
        model = tmp_path / f"{lowest}.safetensors"
        save_model(build_model(card.model_copy(update={"thresholds": limits}), seed=1), model)
        given = ["classify", str(slides[0]), "--out", str(tmp_path / f"{lowest}"), "--model", str(model)]
        said = runner.invoke(app, given).stdout
        headlines.append(said.splitlines()[0])
    assert "weak evidence" not in headlines[0]
    assert headlines[1].endswith("%), weak evidence: no lesion found - research use only")
    assert headlines[2].endswith("%) - research use only")  # a model without a segmenter, by its card
    assert "note: the model was trained without marked lesions: it looks at all tissue" in said
    facts = json.loads((tmp_path / "1.0" / "one" / "prediction.json").read_text())
    assert facts["lesion_area_mm2"] is None
    assert facts["fallback"] is None
    shown = " ".join(runner.invoke(app, ["model", "show", str(model)]).stdout.split())
    assert "read where 50% is tissue" in shown
    assert "not looked for: trained without marked lesions" in shown


def test_one_bad_slide_stops_nothing_and_is_listed_last_with_its_reason(
    slides: list[Path], model_file: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_text("no slide")
    given = [str(bad), *map(str, slides)]
    done = runner.invoke(app, ["classify", *given, "--out", str(tmp_path / "out"), "--model", str(model_file)])
    assert done.exit_code == 1
    assert (tmp_path / "out" / "one" / "prediction.json").exists()
    last = done.stderr.strip().splitlines()
    assert last[-2] == "1 of 3 slides failed:"
    assert last[-1].startswith(f"  {bad} is no TIFF file")


def test_a_failed_slide_is_named_once(model_file: Path, tmp_path: Path) -> None:
    glass, gone = tmp_path / "glass.tif", tmp_path / "gone.tif"
    tifffile.imwrite(glass, np.full((512, 512, 3), 243, np.uint8), tile=(256, 256), photometric="rgb")
    given = ["classify", str(glass), str(gone), "--mpp", "1", "--out", str(tmp_path / "out")]
    done = runner.invoke(app, [*given, "--model", str(model_file)])
    first, second = done.stderr.splitlines()[-2:]
    assert "nothing to classify" in first
    assert (first.count("glass.tif"), second.count("gone.tif")) == (1, 1)
    assert first.startswith(f"  {glass}: no ")
    assert second.startswith(f"  {gone} does not exist")


def test_an_existing_result_is_a_failure_until_overwrite_is_given(
    slides: list[Path], model_file: Path, tmp_path: Path
) -> None:
    command = ["classify", str(slides[0]), "--out", str(tmp_path / "out"), "--model", str(model_file)]
    assert runner.invoke(app, command).exit_code == 0
    again = runner.invoke(app, command)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    replaced = runner.invoke(app, [*command, "--overwrite"])
    assert replaced.exit_code == 0
    another = "was of another slide file of this name"
    assert another not in replaced.stdout
    with slides[0].open("ab") as file:
        file.write(b"another")
    assert another in runner.invoke(app, [*command, "--overwrite"]).stdout
    (tmp_path / "out" / "one" / "prediction.json").unlink()
    foreign = runner.invoke(app, [*command, "--overwrite"])
    assert "no result of ours" in foreign.stderr
    assert "--overwrite" not in foreign.stderr, "it does not help"


def test_a_call_that_was_stopped_goes_on(slides: list[Path], model_file: Path, tmp_path: Path) -> None:
    go_on = ["classify", "--out", str(tmp_path / "out"), "--model", str(model_file), "--skip-existing"]
    runner.invoke(app, [*go_on, str(slides[0])])
    file = tmp_path / "out" / "one" / "prediction.json"
    first = file.read_bytes()
    done = runner.invoke(app, [*go_on, *map(str, slides)])
    assert done.exit_code == 0, done.output
    assert f"one.tif: done already in {file.parent}" in done.stdout
    assert (tmp_path / "out" / "Präparat 二" / "prediction.json").is_file()
    assert file.read_bytes() == first
    other = tmp_path / "region.geojson"
    corners = [[0, 0], [400, 0], [400, 400], [0, 400], [0, 0]]
    other.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    for asked in (["--mpp", "0.9"], ["--region", str(other)]):
        refused = runner.invoke(app, [*go_on, str(slides[0]), *asked])
        assert refused.exit_code == 1, "what is there is another result"
        assert "It is not the same: of this file, model, region" in refused.stderr
        assert file.read_bytes() == first
        assert runner.invoke(app, [*go_on, str(slides[0]), *asked, "--overwrite"]).exit_code == 0
        assert "done already" in runner.invoke(app, [*go_on, str(slides[0]), *asked]).stdout
        first = file.read_bytes()
    with slides[1].open("ab") as slide:
        slide.write(b"another")
    assert runner.invoke(app, [*go_on, str(slides[1])]).exit_code == 1


def test_ctrl_c_says_at_which_slide(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("napari_msamil.cli._classify_one", interrupted)
    done = runner.invoke(app, ["classify", "a.tif", "b.tif", "--out", str(tmp_path), "--model", str(model_file)])
    assert done.exit_code == 130
    assert "stopped at a.tif." in done.stderr


def test_a_name_that_the_terminal_has_no_letters_for_is_written_with_escapes(
    slides: list[Path], model_file: Path, tmp_path: Path
) -> None:
    slide = shutil.copy(slides[0], tmp_path / "切片.tif")
    command = [sys.executable, "-m", "napari_msamil", "classify", str(slide), "--out", str(tmp_path / "out")]
    narrow = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([*command, "--model", str(model_file)], env=narrow, capture_output=True, check=True)
    assert done.stdout.startswith(b"\\u5207\\u7247.tif: ")


def test_a_terminal_sees_the_progress_until_the_next_step(
    slides: list[Path], model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_msamil import cli

    shown: list[str] = []
    monkeypatch.setattr(cli._ProgressLine, "show", lambda self, progress: shown.append(progress.stage))
    monkeypatch.setattr(cli._ProgressLine, "clear", lambda self: shown.append("clear"))
    done = runner.invoke(app, ["classify", str(slides[0]), "--out", str(tmp_path / "o"), "--model", str(model_file)])
    assert done.exit_code == 0
    assert shown[0] == "open"
    assert shown.index("clear") == len(shown) - 1


@pytest.mark.parametrize(
    "wrong",
    [["classify"], ["classify", "a.tif"], ["classify", "a.tif", "--out", "o", "--device", "tpu"], ["nonsense"]],
)
def test_wrong_usage_exits_2(wrong: list[str]) -> None:
    assert runner.invoke(app, wrong).exit_code == 2


def test_two_slides_with_one_result_folder_are_wrong_usage(tmp_path: Path) -> None:
    done = runner.invoke(app, ["classify", "a/x.tif", "b/x.svs", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "same result folder" in " ".join(done.stderr.split())


def test_model_show_and_verify_know_a_good_file(model_file: Path) -> None:
    shown = runner.invoke(app, ["model", "show", str(model_file)]).stdout
    assert "benign, malignant" in shown
    assert "whole and unchanged" in runner.invoke(app, ["model", "verify", str(model_file)]).stdout


def test_model_show_is_a_short_summary_and_with_json_the_whole_card() -> None:
    shown = " ".join(runner.invoke(app, ["model", "show", "demo"]).stdout.split())
    for part in (
        "demo: colon, adenocarcinoma or not method msamil, preset demo",
        "classes no adenocarcinoma, adenocarcinoma scales 10x, 5x, 2.5x (1, 2, 4 µm per pixel)",
        "224 x 224 px at every scale, read where more than 70% is lesion",
        "lesion neoplasia",
        "trained on EBHI-Seg",
        "AUC 95% interval 0.9757 to 1;",
        "intended use Shows the program at work",
        "licence CC BY 4.0",
        "attribution EBHI-Seg: Shi L.",
    ):
        assert part in shown
    assert "sigmoid" not in shown
    card = json.loads(runner.invoke(app, ["model", "show", "demo", "--json"]).stdout)
    assert card["aggregator"]["gate"] == "sigmoid"
    assert card["sha256"] in shown


def test_what_a_card_does_not_state_is_said_to_be_missing(model_file: Path) -> None:
    lines = runner.invoke(app, ["model", "show", str(model_file)]).stdout.splitlines()
    missing = [line.split("  ")[1].strip() for line in lines if line.endswith("not stated")]
    assert missing == ["trained on", "figures", "licence", "attribution"]


def test_a_file_that_is_no_slide_opens_no_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_msamil import cli

    monkeypatch.setattr(cli, "_no_viewer_reason", lambda: None)
    monkeypatch.setattr(cli.subprocess, "run", lambda *given, **named: pytest.fail("napari was started"))
    done = runner.invoke(app, ["view", str(tmp_path / "gone.svs")])
    assert isinstance(done.exception, MsamilError)
    assert "gone.svs" in str(done.exception)


def test_what_is_odd_about_a_pixel_size_is_said_before_the_window_opens(
    slides: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_msamil import cli

    monkeypatch.setattr(cli, "_no_viewer_reason", lambda: None)
    monkeypatch.setattr(cli.subprocess, "run", lambda *given, **named: SimpleNamespace(returncode=0))
    said = runner.invoke(app, ["view", str(slides[0]), "--mpp", "99"]).stdout
    assert f"note: mpp 99.0 given for {slides[0].name} is outside 0.05 to 20" in said


def test_a_model_that_is_not_there_opens_no_window(slides: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    done = runner.invoke(app, ["view", str(slides[0]), "--model", "gone.safetensors"])
    assert done.exit_code == 2
    assert "gone.safetensors is no file" in done.stderr


def test_a_place_that_cannot_be_written_to_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("sys.argv", ["msamil", "cohort", "synthetic", "--slides", "2", "--out", str(file / "cohort")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"msamil: {file / 'cohort'}")
    assert said.endswith("cannot be read or written (Not a directory): see to it, or choose another place.\n")


def test_no_fault_is_found_where_nobody_reads_the_answer_to_its_end(
    slides: list[Path], model_file: Path, tmp_path: Path
) -> None:
    classify = ["classify", str(slides[0]), "--out", str(tmp_path / "out"), "--model", str(model_file)]
    for command in (["info", str(slides[0])], classify):
        process = subprocess.Popen(
            [sys.executable, "-m", "napari_msamil", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in (said := process.stderr.read())
        assert "failed" not in said
        assert "BrokenPipe" not in said
        process.stderr.close()
        assert process.wait(60) == 1
    assert (tmp_path / "out" / "one" / "prediction.json").is_file()


def test_a_demo_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = runner.invoke(app, ["demo", "--no-viewer", "--out", str(tmp_path / "file" / "demo")])
    assert isinstance(done.exception, MsamilError)
    assert "give another --out" in str(done.exception)


def test_a_model_region_or_device_that_cannot_be_used_is_wrong_usage_before_any_slide_is_looked_at(
    slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_msamil import cli

    monkeypatch.setattr(cli, "_classify_one", lambda *given, **named: pytest.fail("a slide was looked at"))
    (tmp_path / "bad.safetensors").write_text("no model")
    (tmp_path / "point.geojson").write_text('{"type": "Point", "coordinates": [1, 2]}')
    wrong = {
        "bad.safetensors is not a model file": ["--model", str(tmp_path / "bad.safetensors")],
        "There is no model file": ["--model", str(tmp_path / "gone.safetensors")],
        "holds no polygon": ["--region", str(tmp_path / "point.geojson")],
        "does not exist": ["--region", str(tmp_path / "gone.geojson")],
    }
    if not torch.cuda.is_available():
        wrong["Device 'cuda' cannot be used"] = ["--device", "cuda"]
    for reason, option in wrong.items():
        done = runner.invoke(app, ["classify", *map(str, slides), "--out", str(tmp_path / "out"), *option])
        assert done.exit_code == 2
        last = done.stderr.strip().splitlines()[-1]
        assert reason in last
        assert option[0] in last
        assert last.count(option[1]) == 1


def test_several_slides_load_the_model_once(
    slides: list[Path], model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_msamil.models import model

    loaded: list[str] = []
    load = model.load_model
    monkeypatch.setattr(model, "load_model", lambda path, **named: (loaded.append(path), load(path, **named))[1])
    done = runner.invoke(
        app, ["classify", *map(str, slides), "--out", str(tmp_path / "out"), "--model", str(model_file)]
    )
    assert done.exit_code == 0, done.output
    assert loaded == [str(model_file)]
    facts = [json.loads(file.read_text(encoding="utf-8")) for file in (tmp_path / "out").glob("*/prediction.json")]
    assert {f["model"]["sha256"] for f in facts} == {load(model_file).sha256}


def test_a_slide_given_by_a_relative_path_is_named_once_and_as_given(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svs").mkdir()
    given = ["gone.svs", "folder.svs"]
    done = runner.invoke(app, ["classify", *given, "--out", "out", "--model", str(model_file)])
    assert done.stderr.splitlines()[-2:] == [
        "  gone.svs does not exist; check the path.",
        "  folder.svs is a folder, not a slide; give the file itself.",
    ]


def test_a_slide_without_a_usable_pixel_size_says_so_once_and_how_to_give_it(model_file: Path, tmp_path: Path) -> None:
    wrong, none = tmp_path / "dpi.tif", tmp_path / "none.tif"
    pixels = np.full((256, 256, 3), 120, np.uint8)
    tags = {"resolution": (72, 72), "resolutionunit": "INCH", "extratags": [(274, "H", 1, 3, True)]}
    tifffile.imwrite(wrong, pixels, tile=(256, 256), photometric="rgb", **tags)
    tifffile.imwrite(none, pixels, tile=(256, 256), photometric="rgb")
    done = runner.invoke(
        app, ["classify", str(wrong), str(none), "--out", str(tmp_path / "o"), "--model", str(model_file)]
    )
    states = "states 352.778 µm per pixel, outside 0.05 to 20; it counts as missing"
    assert done.stderr.splitlines()[-2:] == [
        f"  {wrong} {states}. Give the true value (--mpp).",
        f"  {none} does not say its µm per pixel. Give the true value (--mpp).",
    ]


def test_help_speaks_of_slides_and_numbers_not_of_types() -> None:
    for command in ("classify", "info", "view"):
        text = runner.invoke(app, [command, "--help"]).stdout
        assert "list[" not in text
        assert "float range" not in text
        assert "SLIDE" in text
        assert "where the file does not state it" in " ".join(text.split())


@pytest.mark.data
def test_every_bad_input_is_refused_in_one_line_that_names_it_once(
    test_data: Path, model_file: Path, tmp_path: Path
) -> None:
    files = sorted((test_data / "bad-inputs").iterdir())
    given = ["classify", *map(str, files), "--out", str(tmp_path / "out"), "--model", str(model_file)]
    lines = runner.invoke(app, given).stderr.split("slides failed:\n")[1].splitlines()
    assert 15 < len(lines) <= len(files)
    for line in lines:
        assert sum(line.count(file.name) for file in files) == 1, line
        words = ("check", "copy", "export", "give the", "convert", "slides are")
        assert any(word in line.lower() for word in words), f"no remedy in {line}"


def test_a_table_of_slides_is_checked(slides: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "cohort.csv"
    more = [slide.with_name(f"{k} {slide.name}") for slide in slides for k in range(3)]
    for k, file in enumerate(more):
        file.write_bytes(slides[k // 3].read_bytes() + bytes(k + 1))  # no copy, byte by byte, and a slide still
    rows = "".join(f"{file},{'ab'[k % 2]},p{k},{k // 4}\n" for k, file in enumerate([*slides, *more]))
    table.write_text("slide,label,patient,fold\n" + rows, encoding="utf-8")
    done = runner.invoke(app, ["cohort", "check", str(table)])
    assert done.exit_code == 0, done.exception
    assert "8 slides of 8 patients, classes a, b; no faults" in done.stdout
    slides[0].write_bytes(b"no slide")
    done = runner.invoke(app, ["cohort", "check", str(table)])
    assert isinstance(done.exception, MsamilError)
    assert slides[0].name in str(done.exception)
