"""A small model with random weights and a slide of one square of tissue, for tests that classify."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_msamil.models.card import Card, OnEmpty, Thresholds, preset_card
from napari_msamil.models.model import build_model, save_model


def small_card(**changes: object) -> Card:
    """The tiny preset: patches of 64 px at 1, 2 and 4 µm/px."""
    fields: dict[str, object] = {
        "thumbnail_px": 128,
        "thresholds": Thresholds(lesion_fraction=0.5),
        "on_empty": OnEmpty(policy="tissue"),
        **changes,
    }
    return preset_card("tiny", classes=["benign", "malignant"], **fields)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(build_model(small_card(), seed=3), path)
    return path


@pytest.fixture(scope="session")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1200 x 900 px at 1 µm/px: white glass with a square of pink and violet tissue."""
    rng = np.random.default_rng(0)
    picture = np.full((900, 1200, 3), 245, np.uint8)
    tissue = rng.normal((190, 110, 170), 25, (500, 600, 3)).clip(0, 255)
    picture[200:700, 300:900] = tissue.astype(np.uint8)
    path = tmp_path_factory.mktemp("slide") / "square.tif"
    tifffile.imwrite(
        path,
        picture,
        tile=(256, 256),
        photometric="rgb",
        compression="deflate",
        resolution=(1e4, 1e4),
        resolutionunit="CENTIMETER",
    )
    return path
