"""Settings: what can be wrong is one sentence, and what a run keeps reads back the same."""

import tomllib
from pathlib import Path

import pytest

from napari_msamil.training.config import Config, ConfigError, differences, read_config
from napari_msamil.training.settings import explained_toml


@pytest.mark.parametrize("preset", ["default", "literal", "demo", "tiny", "ebhi-seg"])
def test_every_preset_is_valid_and_reads_back_as_it_was_written(preset: str) -> None:
    config = read_config(preset)
    assert Config.model_validate(tomllib.loads(config.to_toml())) == config
    assert config.card(("a", "b")).classes == ("a", "b")


@pytest.mark.parametrize("preset", ["default", "literal", "demo", "tiny", "ebhi-seg"])
def test_all_settings_are_printed_with_what_they_mean_and_read_back(preset: str, tmp_path: Path) -> None:
    config = read_config(preset)
    file = tmp_path / "mine.toml"
    file.write_text(explained_toml(config), encoding="utf-8")
    again = read_config(str(file))
    assert again.card(("a", "b")) == config.card(("a", "b"))
    assert again.fixed() == config.fixed(), "a run goes on when its settings are written out"
    lines = file.read_text(encoding="utf-8").splitlines()
    at = lines.index("[end_to_end]")
    assert lines[at - 1] == '# Stage "end-to-end": extractor and aggregator together.'
    assert lines[at + 1].startswith("# Passes over the training slides; 0 leaves the stage out")
    assert "# reuse is not set" in lines
    keys = [number for number, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert all(lines[number - 1].startswith("# ") for number in keys)


def test_the_default_is_what_the_paper_says() -> None:
    config, card = read_config("default"), read_config("default").card(("a", "b"))
    assert (config.end_to_end.patches, config.end_to_end.sample, config.end_to_end.bn) == (200, "uniform", "frozen")
    assert (config.mil.stage2_init, config.evaluate.auc, config.evaluate.random, config.folds) == (
        "continue", "macro", 3000, 5,
    )  # fmt: skip
    assert (card.patch_px, card.scales_mpp, card.thumbnail_px) == (512, (0.5, 1.0, 2.0), 1024)
    assert card.thresholds.lesion_fraction == 0.7


def test_single_settings_overrule_a_preset_and_leave_what_stands_beside_them() -> None:
    config = read_config("demo", ["end_to_end.patches=2000", "model.extractor.layers=3", "machine.device=cpu"])
    card = config.card(("a", "b"))
    assert (config.end_to_end.patches, config.end_to_end.chunk, config.machine.device) == (2000, 12, "cpu")
    assert (card.extractor.layers, card.extractor.encoder) == (3, "mobilenetv3_small_100")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["end_to_end.patchs=3"],
            "there is no such setting. `msamil settings demo` prints all",
        ),
        (["end_to_end.patches=many"], "unable to parse string as an integer, got 'many'"),
        (["end_to_end.patches=0"], "greater than or equal to 1"),
        (["segment.crop_px=100"], "multiple of 32"),
        (["segment.crop_px=2048"], "larger than thumbnail_px 1024"),
        (["evaluate.selection=lesion"], "evaluate.selection: a list in brackets is needed, got 'lesion'"),
        (["evaluate.selection=['all']"], "selection holds 'lesion'"),
        (["model.scales_mpp=[1, 3.5]"], "cannot be used: model.scales_mpp: each scale must be a whole multiple"),
        (["model.aggregator.heads=0"], "model.aggregator.heads: Input"),
        (["model.extractor.encoder=resnet18"], "make them the same, or start from 'random'"),
        (["model.classes=['x', 'y']"], "follows from the run"),
        (["patches"], "write key=value"),
        (["seed.x=1", "seed.y=2"], "seed"),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_setting(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.").replace("[", r"\[")):
        read_config("demo", settings)


def test_a_file_that_is_no_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no preset 'defualt': use default, demo"):
        read_config("defualt")
    (tmp_path / "a.toml").write_text("preset = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config(str(tmp_path / "a.toml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(str(tmp_path / "b.toml"))


def test_a_folder_may_be_called_by_its_day() -> None:
    assert read_config("tiny", ["machine.reuse=2026-11-29"]).machine.reuse == Path("2026-11-29")


def test_differences_name_each_setting_with_both_values() -> None:
    old, new = read_config("demo").fixed(), read_config("demo", ["seed=4", "end_to_end.lr_mil=1"]).fixed()
    assert differences(old, new) == ["end_to_end.lr_mil was 0.0005 and is now 1.0", "seed was 0 and is now 4"]
    assert read_config("demo", ["machine.workers=3"]).fixed() == old
    wider = read_config("demo", ["model.extractor.hidden=7"]).fixed()
    assert differences(old, wider) == ["model.extractor.hidden was 512 and is now 7"]


def test_a_fault_of_an_own_file_names_what_prints_all_settings(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('preset = "demo"\nfold = 3\n')
    with pytest.raises(ConfigError, match=r"fold: there is no such setting\. `msamil settings demo` prints all"):
        read_config(str(mine))
