"""Makes the demo model from EBHI-Seg and the sample generator, in one command:

``python -m napari_msamil.training.demo --data DIR --out FILE``

Stages: segment, patches (warm-up), end-to-end, mil, evaluate. Folds 0-2 are split by case into training and validation;
fold 3 is read once, at the very end, by a model that no longer changes.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from napari_msamil.inference.engine import in_parallel, tune_allocator
from napari_msamil.models.bag import Bag
from napari_msamil.models.card import Card
from napari_msamil.models.model import Model, build_model, load_model, save_model

from .augment import random_look
from .datasets.ebhi_seg import Case, compose_case, read_cases, split_cases
from .demo_bags import bag_of
from .demo_data import (
    SegmentData,
    SlideData,
    draw_slide,
    draw_thumbnail,
    drawn_slide,
    held_slide,
    thumbnails_of_step,
)
from .demo_recipe import SLIDES_AT_ONCE, STAGES, TRAINING_FOLDS, VALIDATION_SHARE, Recipe, demo_card
from .demo_report import evaluate, finished_card
from .demo_warm_up import train_on_patches
from .drawn import Drawn, Thumbnail
from .end_to_end import train_end_to_end
from .features import digest
from .loop import Plan, State
from .mil import train_aggregator
from .segmentation import train_segmenter

_log = logging.getLogger(__name__)


def make_demo(
    data: Path,
    out: Path,
    *,
    recipe: Recipe,
    resume: bool = False,
    until: str = STAGES[-1],
    command: str = "",
    card: Card | None = None,
) -> Path:
    """Train, choose, freeze, evaluate once, write.

    Args:
        data: EBHI-Seg folder with index.csv, images and masks.
        out: Model file to write; checkpoints go to a folder beside it, named after it.
        recipe: How much work.
        resume: Continue from the checkpoints; a stage that is finished is not run again.
        until: Last stage to run; no file is written before "evaluate".
        command: Written on the card.
        card: The network, if not that of `demo_card`.

    Returns:
        ``out``.
    """
    folder = out.with_suffix(".run")
    model = build_model(card or demo_card(), seed=recipe.seed)
    training, validation = split_cases(read_cases(data, TRAINING_FOLDS), share=VALIDATION_SHARE, seed=recipe.seed)
    chosen = train_stages(model, training, validation, recipe=recipe, folder=folder, resume=resume, until=until)
    if until != "evaluate":
        return out
    frozen = folder / "frozen.safetensors"
    save_model(model, frozen, half=True, overwrite=True)
    model = load_model(frozen)  # from here on the numbers are those of the file, rounded to half precision
    figures = {"validation": chosen} | evaluate(model, data, recipe, folder)
    model.card = finished_card(model.card, figures, recipe, len(training), len(validation), command)
    save_model(model, out, half=True, overwrite=True)
    return out


@dataclass(frozen=True)
class _Work:
    """What all stages share."""

    model: Model
    training: Sequence[Case]
    validation: Sequence[Case]
    recipe: Recipe
    folder: Path
    resume: bool

    def slides(self, cases: Sequence[Case]) -> SlideData:
        """Composed and drawn slides of some cases."""
        return SlideData(cases, self.recipe.drawn, (self.recipe.cells, self.recipe.cells * 3 // 2))


def train_stages(
    model: Model,
    training: Sequence[Case],
    validation: Sequence[Case],
    *,
    recipe: Recipe,
    folder: Path,
    resume: bool,
    until: str,
) -> dict[str, float]:
    """Run the stages in order and return the validation score of each."""
    work = _Work(model, training, validation, recipe, folder, resume)
    stages = {
        "segment": ("lesion IoU on thumbnails", _segment),
        "patches": ("patch AUC", _patches),
        "end-to-end": ("slide AUC, end to end", _end_to_end),
        "mil": ("slide AUC, whole bags", _mil),
    }
    chosen = {}
    for stage in STAGES[: STAGES.index(until) + 1]:
        if stage in stages:
            score, run = stages[stage]
            chosen[score] = round(run(work).best_score, 4)
    model.eval()
    return chosen


def _segment(work: _Work) -> State:
    recipe = work.recipe
    thumbs = SegmentData(work.training, recipe.thumbnail_px, recipe.drawn)
    held = replace(thumbs, cases=work.validation)

    def held_thumbnails() -> list[Thumbnail]:
        rngs = (np.random.default_rng([recipe.seed, 12, k]) for k in range(recipe.thumbnails))
        return [draw_thumbnail(held, rng) for rng in rngs]

    return train_segmenter(
        work.model,
        lambda step: thumbnails_of_step(thumbs, recipe.seed, step, batch=recipe.batches[0]),
        held_thumbnails,
        plan=Plan("segment", recipe.segment, 2e-3, score_every=100, seed=recipe.seed),
        folder=work.folder,
        resume=work.resume,
    )


def _patches(work: _Work) -> State:
    recipe = work.recipe
    return train_on_patches(
        work.model,
        work.slides(work.training),
        work.slides(work.validation),
        plan=Plan("patches", recipe.patches, 2e-3, weight_decay=0.02, score_every=200, seed=recipe.seed),
        folder=work.folder,
        batch=recipe.batches[1],
        crop_px=recipe.crop_px,
        scored=recipe.scored,
        resume=work.resume,
    )


def _end_to_end(work: _Work) -> State:
    card, recipe = work.model.card, work.recipe
    slides = work.slides(work.training)

    def draw(step: int, slot: int) -> Drawn:
        return draw_slide(slides, card, recipe.seed, step, slot, slots=2, patches=recipe.bag, chunk=recipe.bag // 2)

    def held_slides() -> list[Drawn]:
        cases = enumerate(work.validation)
        return [held_slide(case, card, recipe.seed, k, patches=recipe.bag) for k, case in cases]

    return train_end_to_end(
        work.model,
        draw,
        held_slides,
        plan=Plan("end-to-end", recipe.end_to_end, 5e-4, warmup=10, score_every=25, seed=recipe.seed),
        folder=work.folder,
        encoder_rate=0.3,
        label_smoothing=0.05,
        resume=work.resume,
    )


def _mil(work: _Work) -> State:
    work.model.eval()
    bags, held = _bags(work)
    return train_aggregator(
        work.model,
        [bag for bag, _ in bags],
        np.array([label for _, label in bags]),
        [bag for bag, _ in held],
        np.array([label for _, label in held]),
        plan=Plan("mil", work.recipe.mil, 5e-4, warmup=20, score_every=20, seed=work.recipe.seed),
        folder=work.folder,
        label_smoothing=0.05,
        resume=work.resume,
    )


def _bags(work: _Work) -> tuple[list[tuple[Bag, int]], list[tuple[Bag, int]]]:
    """Bags of lesion patches: one composed slide per case, recoloured in training, and the drawn slides."""
    model, recipe, training = work.model, work.recipe, work.training
    made_by = digest(model)
    cases = [*training, *work.validation]

    def one(k: int) -> tuple[Bag, int]:
        rng = np.random.default_rng([recipe.seed, 41, k])
        look = None if len(training) <= k < len(cases) else random_look(rng)
        if k < len(cases):
            slide = compose_case(cases[k], rng, cells_a_side=(recipe.cells, recipe.cells + 4))
            label, name = cases[k].label, cases[k].name
        else:
            slide = drawn_slide(k - len(cases))
            label, name = 1 - (k - len(cases)) % 2, f"drawn-{k - len(cases)}"
        bag = bag_of(model, slide, work.folder / "bags" / f"{name}.pt", digest=made_by, look=look, seed=k)
        _log.info("bag %d of %d: %d patches", k + 1, len(cases) + recipe.drawn, len(bag))
        return bag, label

    bags = list(in_parallel(one, range(len(cases) + recipe.drawn), SLIDES_AT_ONCE))
    return bags[: len(training)] + bags[len(cases) :], bags[len(training) : len(cases)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m napari_msamil.training.demo", description="Train the demo model.")
    parser.add_argument("--data", type=Path, required=True, help="EBHI-Seg folder: index.csv, images, masks")
    parser.add_argument("--out", type=Path, required=True, help="model file to write (.safetensors)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints beside the model file")
    parser.add_argument("--minutes", type=float, default=90, help="size of the work: minutes on two free cores")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="last stage to run; go on with --resume")
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
        until=chosen.until,
        command=command,
    )


if __name__ == "__main__":
    main()
