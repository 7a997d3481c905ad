"""Makes the demo model from EBHI-Seg and the sample generator, in one command:

``python -m napari_msamil.training.demo --data DIR --out FILE``

Stages: segment, patches (warm-up), end-to-end, mil, evaluate. Folds 0-2 are split by case into training and validation;
fold 3 is read once, at the very end, by a model that no longer changes.
"""

import argparse
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_msamil.inference.engine import tune_allocator
from napari_msamil.models.bag import Bag
from napari_msamil.models.card import Card, preset_card
from napari_msamil.models.configs import ExtractorConfig, SegmenterConfig
from napari_msamil.models.model import Model, build_model, load_model, save_model
from napari_msamil.patches.tissue import tissue_mask

from .augment import random_look
from .datasets.compose import ComposedSlide
from .datasets.ebhi_seg import ATTRIBUTION, CLASSES, CLOSING_UM, Case, compose_case, read_cases, split_cases
from .datasets.synthetic import TEST_SEEDS, synthetic_slide
from .end_to_end import SlideData, make_bag, train_end_to_end, train_on_patches
from .evaluate import Overlap, auc, bootstrap_auc
from .loop import Plan
from .mil import bag_of, extract, train_aggregator
from .patches import thumbnail
from .segmentation import DRAWN, SegmentData, drawn_slide, train_segmenter

_log = logging.getLogger(__name__)

TRAINING_FOLDS = (0, 1, 2)
TEST_FOLD = 3
VALIDATION_SHARE = 0.2
STAGES = ("segment", "patches", "end-to-end", "mil")


@dataclass(frozen=True)
class Recipe:
    """How much work each stage does; `sized` makes it smaller or larger as a whole.

    Attributes:
        segment, patches, end_to_end, mil: Steps of the stages.
        seed: Of everything random.
        drawn: Drawn slides trained on.
        test_drawn: Drawn slides evaluated on.
        thumbnail_px: Side of the thumbnails that the segmenter learns from.
        thumbnails: Thumbnails it is scored on.
        batches: Thumbnails and patches a step.
        crop_px: Side of the pieces of patches that the warm-up learns from.
        scored: Patches that the warm-up is scored on.
        bag: Patches a slide, end to end.
        cells: Fields along a side of the smallest composed slides.
    """

    segment: int = 450
    patches: int = 1200
    end_to_end: int = 100
    mil: int = 400
    seed: int = 0
    drawn: int = DRAWN
    test_drawn: int = 10
    thumbnail_px: int = 384
    thumbnails: int = 40
    batches: tuple[int, int] = (4, 48)
    crop_px: int = 128
    scored: int = 240
    bag: int = 24
    cells: int = 6

    def sized(self, minutes: float) -> "Recipe":
        """Steps for about ``minutes`` on two free CPU cores, in proportion to the standard 60."""
        factor = minutes / 60

        def steps(standard: int) -> int:
            return max(2, round(standard * factor))

        return replace(
            self,
            segment=steps(self.segment),
            patches=steps(self.patches),
            end_to_end=steps(self.end_to_end),
            mil=steps(self.mil),
        )


def demo_card() -> Card:
    """The demo network: MsaMIL-Net with small encoders, 224-px patches at 1, 2 and 4 µm per pixel."""
    return preset_card(
        "demo",
        classes=CLASSES,
        name="demo: colon, adenocarcinoma or not",
        segmenter=SegmenterConfig(encoder="tu-mobilenetv3_small_100", decoder_channels=(64, 48, 32, 24, 16)),
        extractor=ExtractorConfig(
            encoder="mobilenetv3_small_100", out_dim=256, proj="pre", layers=2, heads=4, hidden=512
        ),
        lesion_label="neoplasia (intraepithelial neoplasia, serrated adenoma, adenocarcinoma)",
    )


def make_demo(
    data: Path,
    out: Path,
    *,
    recipe: Recipe,
    resume: bool = False,
    stages: Sequence[str] = STAGES,
    command: str = "",
    card: Card | None = None,
) -> Path:
    """Train, choose, freeze, evaluate once, write.

    Args:
        data: EBHI-Seg folder with index.csv, images and masks.
        out: Model file to write; checkpoints go to a folder beside it, named after it.
        recipe: How much work.
        resume: Continue from the checkpoints.
        stages: Those to run; without all of them nothing is evaluated or written.
        command: Written on the card.
        card: The network, if not that of `demo_card`.

    Returns:
        ``out``.
    """
    folder = out.with_suffix(".run")
    model = build_model(card or demo_card(), seed=recipe.seed)
    training, validation = split_cases(read_cases(data, TRAINING_FOLDS), share=VALIDATION_SHARE, seed=recipe.seed)
    chosen = train_stages(model, training, validation, recipe=recipe, folder=folder, resume=resume, stages=stages)
    if set(stages) != set(STAGES):
        return out
    frozen = folder / "frozen.safetensors"
    save_model(model, frozen, half=True, overwrite=True)
    model = load_model(frozen)  # from here on the numbers are those of the file, rounded to half precision
    figures = {"validation": chosen} | evaluate(model, data, recipe, folder)
    model.card = finished_card(model.card, figures, recipe, len(training), len(validation), command)
    save_model(model, out, half=True, overwrite=True)
    return out


def train_stages(
    model: Model,
    training: Sequence[Case],
    validation: Sequence[Case],
    *,
    recipe: Recipe,
    folder: Path,
    resume: bool,
    stages: Sequence[str],
) -> dict[str, Any]:
    """Run the stages asked for, in order, and return the validation score of each."""
    chosen: dict[str, Any] = {}
    sides = (recipe.cells, recipe.cells * 3 // 2)
    slides, held = SlideData(training, recipe.drawn, sides), SlideData(validation, recipe.drawn, sides)
    if "segment" in stages:
        plan = Plan("segment", recipe.segment, 2e-3, score_every=50, seed=recipe.seed)
        state = train_segmenter(
            model,
            SegmentData(training, recipe.thumbnail_px, recipe.drawn),
            SegmentData(validation, recipe.thumbnail_px, recipe.drawn),
            plan=plan,
            folder=folder,
            batch=recipe.batches[0],
            thumbnails=recipe.thumbnails,
            resume=resume,
        )
        chosen["lesion IoU on thumbnails"] = state.best_score
    if "patches" in stages:
        plan = Plan("patches", recipe.patches, 2e-3, weight_decay=0.02, score_every=100, seed=recipe.seed)
        state = train_on_patches(
            model,
            slides,
            held,
            plan=plan,
            folder=folder,
            batch=recipe.batches[1],
            crop_px=recipe.crop_px,
            scored=recipe.scored,
            resume=resume,
        )
        chosen["patch AUC"] = state.best_score
    if "end-to-end" in stages:
        plan = Plan("end-to-end", recipe.end_to_end, 5e-4, warmup=10, score_every=25, seed=recipe.seed)
        state = train_end_to_end(model, slides, validation, plan=plan, folder=folder, patches=recipe.bag, resume=resume)
        chosen["slide AUC, end to end"] = state.best_score
    if "mil" in stages:
        model.eval()
        bags, held_bags = _bags(model, training, validation, recipe, folder, resume)
        plan = Plan("mil", recipe.mil, 5e-4, warmup=20, score_every=20, seed=recipe.seed)
        state = train_aggregator(model, bags, held_bags, plan=plan, folder=folder, resume=resume)
        chosen["slide AUC, whole bags"] = state.best_score
    model.eval()
    return {key: round(value, 4) for key, value in chosen.items()}


def _bags(
    model: Model, training: Sequence[Case], validation: Sequence[Case], recipe: Recipe, folder: Path, resume: bool
) -> tuple[list[tuple[Bag, int]], list[tuple[Bag, int]]]:
    """Bags of lesion patches: one composed slide per case, recoloured in training, and the drawn slides."""
    where = folder / "bags"
    if not resume and where.exists():
        for file in where.glob("*.pt"):
            file.unlink()
    parts: list[list[tuple[Bag, int]]] = [[], []]
    for part, cases in enumerate((training, validation)):
        for k, case in enumerate(cases):
            rng = np.random.default_rng([recipe.seed, 41, part, k])
            slide = compose_case(case, rng, cells_a_side=(recipe.cells, recipe.cells + 4))
            look = random_look(rng) if part == 0 else None
            parts[part].append((bag_of(model, slide, where / f"{case.name}.pt", look=look, seed=k), case.label))
            _log.info("bag %d of %d: %d patches", k + 1, len(cases), len(parts[part][-1][0].features))
    for k in range(recipe.drawn):
        look = random_look(np.random.default_rng([recipe.seed, 42, k]))
        bag = bag_of(model, drawn_slide(k), where / f"drawn-{k}.pt", look=look, seed=k)
        parts[0].append((bag, 1 - k % 2))
    return parts[0], parts[1]


def evaluate(model: Model, data: Path, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The one look at fold 3, and at drawn slides with seeds never trained on."""
    cases = read_cases(data, (TEST_FOLD,))
    slides = (
        compose_case(
            case, np.random.default_rng([recipe.seed, 61, k]), cells_a_side=(recipe.cells + 2, recipe.cells * 2 + 2)
        )
        for k, case in enumerate(cases)
    )
    found = _predict(model, slides)
    positive = np.array([case.label == 1 for case in cases])
    fields = np.array([len(case.fields) for case in cases], float)
    score = found["score"]
    low, high = bootstrap_auc(positive, score)
    table = "\n".join(f"{c.name},{c.label},{s:.6f}" for c, s in zip(cases, score, strict=True))
    (folder / "fold3.csv").write_text("case,label,probability of adenocarcinoma\n" + table + "\n")
    labels = [seed % 2 == 0 for seed in TEST_SEEDS[: recipe.test_drawn]]
    drawn = _predict(
        model, (synthetic_slide(s, lesion=s % 2 == 0, size_px=3072) for s in TEST_SEEDS[: recipe.test_drawn])
    )
    return {
        "fold 3 (composed slides, one per case)": {
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
        },
        "drawn slides, unseen seeds": {
            "slides": len(labels),
            "accuracy": round(float(((drawn["score"] > 0.5) == np.array(labels)).mean()), 4),
            "lesion Dice": round(drawn["lesion"].dice, 4),
        },
    }


def _predict(model: Model, slides: Any) -> dict[str, Any]:
    score: list[float] = []
    overlaps = {"lesion": Overlap(), "tissue": Overlap(), "everything": Overlap()}
    fallbacks = 0
    for slide in slides:
        found = extract(model, slide)
        with torch.inference_mode():
            logits = model.aggregate(make_bag(found.features, found.table), attention=False).logits
        score.append(float(logits.softmax(-1)[1]))
        true = _shrunk(slide, model.card.thumbnail_px)
        overlaps["lesion"].add(found.lesion, true)
        overlaps["tissue"].add(tissue_mask(thumbnail(slide, model.card.thumbnail_px)), true)
        overlaps["everything"].add(np.ones_like(true), true)
        fallbacks += found.fallback is not None
        _log.info("slide %d: %.3f, %d patches", len(score), score[-1], len(found.table))
    return {"score": np.array(score), "fallbacks": fallbacks, **overlaps}


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
            "command": command,
            "figures": figures
            | {
                "measured": "after rounding the weights to half precision; fold 3 was read once, after training",
                "steps": {
                    "segment": recipe.segment,
                    "patches": recipe.patches,
                    "end-to-end": recipe.end_to_end,
                    "mil": recipe.mil,
                },
                "versions": versions | {"python": platform.python_version()},
            },
            "intended_use": (
                "Shows the program at work on colon sections. Research use only. Not for diagnosis. Trained on fields "
                "of one hospital set side by side, never on whole slides."
            ),
            "created": datetime.now(UTC).date().isoformat(),
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m napari_msamil.training.demo", description="Train the demo model.")
    parser.add_argument("--data", type=Path, required=True, help="EBHI-Seg folder: index.csv, images, masks")
    parser.add_argument("--out", type=Path, required=True, help="model file to write (.safetensors)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints beside the model file")
    parser.add_argument("--minutes", type=float, default=60, help="size of the work: minutes on two free cores")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, help="only these; then nothing is written"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    tune_allocator()
    torch.set_num_threads(chosen.threads)
    command = (
        f"python -m napari_msamil.training.demo --data EBHI-SEG --out {chosen.out.name} --minutes {chosen.minutes:g}"
    )
    make_demo(
        chosen.data,
        chosen.out,
        recipe=Recipe().sized(chosen.minutes),
        resume=chosen.resume,
        stages=chosen.stages,
        command=command,
    )


if __name__ == "__main__":
    main()
