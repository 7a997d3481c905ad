"""The schedule of each stage of a fold, as settings and slides give it."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from .config import Config
from .loop import Plan
from .run import Run

_WARM_UP = 0.05  # share of a stage's steps in which the learning rate rises
_PRETRAIN_SCORES = 10
_AFTER = {
    "segment": ("pretrain", "end_to_end", "mil", "evaluate"),
    "pretrain": ("end_to_end", "mil", "evaluate"),
    "end-to-end": ("mil", "evaluate"),
    "mil": ("evaluate",),
}
"""Settings that a stage does not depend on, for they are of later ones."""
_OF_THUMBNAILS: Any = {
    **dict.fromkeys(("segmenter", "thumbnail_px", "resize", "normalisation"), True),
    "thresholds": {"lesion_probability"},
}
"""What stage segment uses of the card; other networks may stand on the same segmenter."""


def plan_of(stage: str, run: Run, training: Sequence[int], held: Sequence[int], begun_from: Sequence[str]) -> Plan:
    """Schedule of a stage that trains: segment, pretrain, end-to-end or mil.

    Args:
        stage: Its name.
        run: Settings and slides.
        training, held: Rows that are learned from and validated on.
        begun_from: Hashes of the weights of the stages before it.
    """
    config = run.config
    steps, rate, score_every, patience, weight_decay = 0, 0.0, 0, 0, 1e-4
    if stage == "segment":
        score_every = math.ceil(len(run.cohort.rows_with_lesion(training)) / config.segment.batch)
        steps, rate = config.segment.epochs * score_every, config.segment.learning_rate
        patience = config.segment.patience
    elif stage == "pretrain":
        steps, rate = config.pretrain.steps, config.pretrain.learning_rate
        score_every, weight_decay = math.ceil(steps / _PRETRAIN_SCORES), config.pretrain.weight_decay
    elif stage == "end-to-end":
        score_every = math.ceil(len(training) / config.end_to_end.accum)
        steps, rate = config.end_to_end.epochs * score_every, config.end_to_end.lr_mil
        patience, weight_decay = config.end_to_end.patience, config.end_to_end.weight_decay
    else:
        score_every = math.ceil(len(training) / config.mil.batch)
        steps, rate = config.mil.epochs * score_every, config.mil.learning_rate
        patience, weight_decay = config.mil.patience, config.mil.weight_decay
    card = run.card.model_dump(mode="json", include=_OF_THUMBNAILS if stage == "segment" else None)
    made_from = [_settings_of(stage, config), card, list(training), list(held), run.feature_files]
    return Plan(
        stage,
        steps,
        rate,
        warmup=max(1, round(_WARM_UP * steps)),
        weight_decay=weight_decay,
        score_every=score_every,
        patience=patience,
        seed=config.seed,
        made_from=_short_hash(made_from),
        begun_from=_short_hash(list(begun_from)),
    )


def _short_hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _settings_of(stage: str, config: Config) -> dict[str, Any]:
    """What a stage depends on, the rows it learns from aside; another run in which it is equal may lend its result."""
    aside = ("preset", "model", "run_folds", *_AFTER[stage])  # of the first two the card tells
    settings = {key: value for key, value in config.fixed().items() if key not in aside}
    if stage == "pretrain":
        settings |= {key: getattr(config.end_to_end, key) for key in ("start", "precision", "sample")}
    return settings
