"""The one command from data to model file, at its smallest."""

from pathlib import Path

import numpy as np
import pytest
import torch

from napari_msamil.models.card import Card
from napari_msamil.models.configs import ExtractorConfig, MsaMilConfig, SegmenterConfig
from napari_msamil.models.model import load_model
from napari_msamil.training import demo, demo_data, demo_report
from napari_msamil.training.datasets import synthetic
from napari_msamil.training.datasets.compose import Cell, ComposedSlide
from napari_msamil.training.datasets.ebhi_seg import CLASSES
from napari_msamil.training.demo import make_demo
from napari_msamil.training.demo_recipe import STAGES, Recipe, demo_card

RECIPE = Recipe(
    segment=2, patches=2, end_to_end=2, mil=2, drawn=2, test_drawn=2,
    thumbnail_px=64, thumbnails=2, batches=(2, 4), scored=12, crop_px=64, bag=6, cells=1,
)  # fmt: skip


def tiny_card() -> Card:
    small = {
        "thumbnail_px": 64,
        "patch_px": 64,
        "segmenter": SegmenterConfig(encoder="tu-mobilenetv3_small_050", decoder_channels=(16, 16, 8, 8, 8)),
        "extractor": ExtractorConfig(encoder="mobilenetv3_small_050", out_dim=16, proj="pre", heads=2, hidden=16),
        "aggregator": MsaMilConfig(dim=16, heads=2, rank=4, hidden=16),
    }
    return demo_card().model_copy(update=small)


@pytest.fixture
def small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stages on less data: small drawn slides, no plain tissue."""

    def drawn(seed: int, *, lesion: bool, size_px: int = 512) -> ComposedSlide:
        return synthetic.synthetic_slide(seed, lesion=lesion, size_px=512)

    def plain() -> tuple[Cell, ...]:
        return (Cell(np.full((224, 224, 3), 200, np.uint8), np.zeros((224, 224), bool), 0),)

    monkeypatch.setattr(demo_data, "synthetic_slide", drawn)
    monkeypatch.setattr(demo_report, "synthetic_slide", drawn)
    monkeypatch.setattr(demo_data, "_plain_cells", plain)
    demo_data.drawn_slide.cache_clear()


def test_two_steps_of_each_stage_end_in_a_file_with_a_full_card(
    small_work: None, small_ebhi: Path, tmp_path: Path
) -> None:
    out = make_demo(small_ebhi, tmp_path / "demo.safetensors", recipe=RECIPE, card=tiny_card(), command="the command")
    model = load_model(out)
    card = model.card
    assert card.classes == CLASSES
    assert "10.3389/fmed.2023.1114673" in card.attribution
    assert "CC BY 4.0" in card.attribution
    assert "composed" in card.dataset
    assert card.command == "the command"
    test = card.figures["fold 3 (composed slides, one per case)"]
    assert test["cases"] == 4
    assert test["with adenocarcinoma"] == 2
    assert 0 <= test["AUC"] <= 1
    assert set(card.figures["validation"]) == {
        "lesion IoU on thumbnails", "patch AUC", "slide AUC, end to end", "slide AUC, whole bags",
    }  # fmt: skip


def test_stages_run_apart_and_resumed_give_the_same_weights(small_work: None, small_ebhi: Path, tmp_path: Path) -> None:
    whole = make_demo(small_ebhi, tmp_path / "a" / "demo.safetensors", recipe=RECIPE, card=tiny_card())
    for until in STAGES:
        parts = make_demo(
            small_ebhi, tmp_path / "b" / "demo.safetensors", recipe=RECIPE, card=tiny_card(), until=until, resume=True
        )
    first, second = load_model(whole).state_dict(), load_model(parts).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_test_fold_is_not_opened_before_the_model_is_frozen(
    small_work: None, small_ebhi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = tmp_path / "demo.run" / "frozen.safetensors"
    asked: list[tuple[tuple[int, ...], bool]] = []
    original = demo.read_cases

    def spy(folder: Path, folds: tuple[int, ...]) -> list[object]:
        asked.append((tuple(folds), frozen.exists()))
        return original(folder, folds)  # type: ignore[return-value]

    monkeypatch.setattr(demo, "read_cases", spy)
    monkeypatch.setattr(demo_report, "read_cases", spy)
    make_demo(small_ebhi, tmp_path / "demo.safetensors", recipe=RECIPE, card=tiny_card())
    assert asked == [((0, 1, 2), False), ((3,), True)]
