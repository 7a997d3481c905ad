"""Stage "mil": the aggregator alone on whole bags (MsaMIL-Net's stage 2)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from napari_msamil.models.bag import Bag
from napari_msamil.models.logits import loss as loss_of
from napari_msamil.models.logits import probabilities
from napari_msamil.models.model import Model

from .distributed import gather, mine
from .labels import sampling_groups
from .loop import Plan, State, train
from .metrics import validation_auc


def train_aggregator(
    model: Model,
    bags: Sequence[Bag],
    targets: NDArray[np.int64],
    held: Sequence[Bag],
    held_targets: NDArray[np.int64],
    *,
    plan: Plan,
    folder: Path,
    batch: int = 8,
    label_smoothing: float = 0.0,
    resume: bool = False,
    tensorboard: bool = False,
) -> State:
    """Train the aggregator further on whole bags; the extractor is not touched.

    The classes take turns within a step (see `labels.sampling_groups`), and a random part of each bag (half or more) is
    shown. The best weights by validation AUC stay in the model.

    Args:
        model: Its aggregator is trained.
        bags, held: Training and validation bags; they may be read as they are asked for.
        targets, held_targets: Of the bags, as `Cohort.targets` gives them: (n,), or (n, C).
        plan: The schedule.
        folder: For checkpoint and log.
        batch: Bags a step; several processes share them.
        label_smoothing: Of the cross-entropy.
        resume: Continue from the checkpoint.
        tensorboard: Write TensorBoard files too.
    """
    exclusive = model.card.exclusive
    groups = sampling_groups(targets, range(len(bags)))

    def step(number: int) -> float:
        model.aggregator.train()
        rng = np.random.default_rng([plan.seed, 51, number])
        drawn = []
        for k in range(batch):  # all processes draw alike
            group = groups[(number * batch + k) % len(groups)]
            drawn.append((group[rng.integers(len(group))], int(rng.integers(2**31))))
        loss = 0.0
        for row, seed in mine(drawn):
            torch.manual_seed(seed)
            logits = model.aggregate(part_of(bags[row], np.random.default_rng(seed)), attention=False).logits
            target = torch.as_tensor(targets[row], device=logits.device)
            part = loss_of(logits, target, exclusive=exclusive, label_smoothing=label_smoothing) / batch
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        return loss

    def score() -> float:
        model.aggregator.eval()
        with torch.inference_mode():
            found = gather([model.aggregate(bag, attention=False).logits.cpu().double() for bag in mine(held)])
        return validation_auc(held_targets, probabilities(torch.stack(found), exclusive=exclusive).numpy())

    return train(
        plan,
        {"aggregator": model.aggregator},
        step=step,
        score=score,
        folder=folder,
        resume=resume,
        tensorboard=tensorboard,
    )


def part_of(bag: Bag, rng: np.random.Generator) -> Bag:
    """A random half to all of a bag's rows."""
    count = max(1, round(rng.uniform(0.5, 1.0) * len(bag)))
    return bag.take(torch.from_numpy(np.sort(rng.choice(len(bag), count, replace=False))))
