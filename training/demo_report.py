"""The last look at the demo model: its figures, frozen, on data it never saw, and the card that tells them."""

import logging
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_msamil.inference.engine import in_parallel
from napari_msamil.inference.features import make_bag
from napari_msamil.models.card import Card
from napari_msamil.models.model import Model
from napari_msamil.patches.tissue import tissue_mask

from .datasets.compose import ComposedSlide
from .datasets.ebhi_seg import ATTRIBUTION, CLOSING_UM, compose_case, read_cases
from .datasets.synthetic import TEST_SEEDS, synthetic_slide
from .demo_bags import extract
from .demo_patches import thumbnail
from .demo_recipe import SLIDES_AT_ONCE, TEST_FOLD, Recipe
from .metrics import Overlap, auc, bootstrap_auc

FOLD = "fold 3 (composed slides, one per case)"
BF16, BF16_LIMIT = "largest change of a probability in bf16", 0.01
_log = logging.getLogger(__name__)


def evaluate(model: Model, data: Path, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The one look at fold 3, and at drawn slides with seeds never trained on."""
    cases = read_cases(data, (TEST_FOLD,))
    sides = (recipe.cells + 2, recipe.cells * 2 + 2)

    def composed(k: int) -> ComposedSlide:
        return compose_case(cases[k], np.random.default_rng([recipe.seed, 61, k]), cells_a_side=sides)

    found = _predict(model, composed, len(cases))
    positive = np.array([case.label == 1 for case in cases])
    fields = np.array([len(case.fields) for case in cases], float)
    score = found["score"]
    low, high = bootstrap_auc(positive, score)
    table = "\n".join(f"{c.name},{c.label},{s:.6f}" for c, s in zip(cases, score, strict=True))
    (folder / "fold3.csv").write_text("case,label,probability of adenocarcinoma\n" + table + "\n")
    halved = _predict(model.for_inference(bf16=True), composed, len(cases))
    labels = [seed % 2 == 0 for seed in TEST_SEEDS[: recipe.test_drawn]]

    def drawing(k: int) -> ComposedSlide:
        return synthetic_slide(TEST_SEEDS[k], lesion=labels[k], size_px=3072)

    drawn = _predict(model, drawing, len(labels))
    return {
        FOLD: {
            "cases": len(cases),
            "with adenocarcinoma": int(positive.sum()),
            "AUC": round(auc(positive, score), 4),
            "AUC 95% interval": [round(low, 4), round(high, 4)],
            "accuracy": round(float(((score > 0.5) == positive).mean()), 4),
            "balanced accuracy": round(
                float(((score > 0.5)[positive].mean() + (score <= 0.5)[~positive].mean()) / 2), 4
            ),
            "lesion Dice": round(found["lesion"].dice, 4),
            "lesion IoU": round(found["lesion"].iou, 4),
            "baseline, Dice if all tissue is lesion": round(found["tissue"].dice, 4),
            "baseline, Dice if every pixel is lesion": round(found["everything"].dice, 4),
            "baseline, AUC of the number of fields": round(auc(positive, fields), 4),
            "baseline, AUC of colour and texture by logistic regression, five folds, quoted": 0.956,
            "slides without lesion patch (fallback)": found["fallbacks"],
            BF16: round(float(np.abs(halved["score"] - score).max()), 4),
        },
        "drawn slides, unseen seeds": {
            "slides": len(labels),
            "accuracy": round(float(((drawn["score"] > 0.5) == np.array(labels)).mean()), 4),
            "lesion Dice": round(drawn["lesion"].dice, 4),
        },
    }


def _predict(model: Model, slide_of: Callable[[int], ComposedSlide], count: int) -> dict[str, Any]:
    """Probability of the second class for each slide, and how its lesion overlaps, added up over slides."""

    def one(k: int) -> tuple[float, list[NDArray[np.bool_]], bool]:
        slide = slide_of(k)
        found = extract(model, slide)
        with torch.inference_mode():
            logits = model.aggregate(make_bag(found.features, found.table), attention=False).logits
        picture = thumbnail(slide, model.card.thumbnail_px)
        _log.info("slide %d of %d: %d patches", k + 1, count, len(found.table))
        masks = [_shrunk(slide, model.card.thumbnail_px), found.lesion, tissue_mask(picture)]
        return float(logits.softmax(-1)[1]), masks, found.fallback is not None

    results = list(in_parallel(one, range(count), SLIDES_AT_ONCE))
    overlaps = {"lesion": Overlap(), "tissue": Overlap(), "everything": Overlap()}
    for _, (true, lesion, tissue), _ in results:
        for overlap, mask in zip(overlaps.values(), (lesion, tissue, np.ones_like(true)), strict=True):
            overlap.add(mask, true)
    return {
        "score": np.array([score for score, *_ in results]),
        "fallbacks": sum(fallback for *_, fallback in results),
        **overlaps,
    }


def _shrunk(slide: ComposedSlide, px: int) -> NDArray[np.bool_]:
    """The true lesion at the thumbnail's pixels."""
    height, width = slide.lesion.shape
    y = ((np.arange(px) + 0.5) * height / px).astype(int)
    x = ((np.arange(px) + 0.5) * width / px).astype(int)
    picked: NDArray[np.bool_] = slide.lesion[y[:, None], x[None, :]]
    return picked


def finished_card(
    card: Card, figures: dict[str, Any], recipe: Recipe, training: int, validation: int, command: str
) -> Card:
    """The card with everything a reader of the file should know."""
    change = figures[FOLD][BF16]
    versions = {name: version(name) for name in ("torch", "timm", "segmentation-models-pytorch", "numpy", "pillow")}
    return card.model_copy(
        update={
            "dataset": (
                f"EBHI-Seg folds 0-2 ({training} cases trained on, {validation} chosen on, split by case) as composed "
                "slides: mosaics of one case's 224-px fields at about 1 um/px on glass, with honest texture and labels "
                f"but no real low-power architecture; {recipe.drawn} drawn slides of the sample generator. Lesion = "
                "glands of Low-grade IN, High-grade IN, Adenocarcinoma and Serrated adenoma, closed over strips of "
                f"stroma up to {2 * CLOSING_UM} um; Normal and Polyp are not lesion. Slides drawn with a lesion are "
                "labelled adenocarcinoma. Random weights at the start; the extractor was warmed up on field labels."
            ),
            "attribution": ATTRIBUTION,
            "licence": "CC BY 4.0 (weights derived from EBHI-Seg)",
            "cpu_precision": "bf16" if change <= BF16_LIMIT else "fp32",
            "command": command,
            "figures": figures
            | {
                "measured": "after rounding the weights to half precision; no weights were chosen by fold 3",
                "steps": {
                    "segment": recipe.segment,
                    "patches": recipe.patches,
                    "end-to-end": recipe.end_to_end,
                    "mil": recipe.mil,
                },
                "versions": versions | {"python": platform.python_version()},
            },
            "intended_use": (
                "Shows the program at work and is good for nothing else: trained on fields of one hospital set side "
                "by side, it is known to be wrong on real slide scans. Research use only. Not for diagnosis."
            ),
            "created": datetime.now(UTC).date().isoformat(),
        }
    )
