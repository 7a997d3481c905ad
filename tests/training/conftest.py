"""One thread for all tests of training, and a stand-in for EBHI-Seg, laid out like the original."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

HEADER = "image,mask,class,case,fold,case_has_adenocarcinoma,mask_fraction"


def write_field(folder: Path, name: str, tissue: str, rng: np.random.Generator) -> tuple[str, str]:
    """Glands are discs: dark and many where neoplastic, pale and few where not; the mask outlines them."""
    dark = tissue not in ("Normal", "Polyp")
    y, x = np.mgrid[:224, :224]
    mask = np.zeros((224, 224), bool)
    for cx, cy in rng.uniform(0, 224, (30 if dark else 8, 2)):
        mask |= (x - cx) ** 2 + (y - cy) ** 2 < 20**2
    pixels = np.full((224, 224, 3), (225, 170, 200), np.uint8)
    pixels[mask] = (90, 50, 140) if dark else (200, 190, 220)
    pixels = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{name}.jpg")
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
    return f"images/{name}.jpg", f"masks/{name}.png"


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are fastest on one; on two, sums may be rounded differently, and runs could not be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_ebhi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 cases in folds 0-3, half with adenocarcinoma, one to three fields each: index, pictures, gland masks."""
    folder = tmp_path_factory.mktemp("ebhi")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    lines = [HEADER]
    for case in range(16):
        label = case % 2
        for number in range(1 + case % 3):
            tissue = "Adenocarcinoma" if label and number == 0 else "Polyp"
            image, mask = write_field(folder, f"{case}-{number}", tissue, rng)
            lines.append(f"{image},{mask},{tissue},c{case:02d},{case // 4},{label},0.5")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    return folder
