"""Stage "mil": the aggregator alone on whole bags (MsaMIL-Net's stage 2)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from napari_msamil.models.bag import Bag
from napari_msamil.models.model import Model

from .distributed import gather, mine
from .loop import Plan, State, train
from .metrics import validation_auc


def train_aggregator(
    model: Model,
    bags: Sequence[Bag],
    labels: Sequence[int],
    held: Sequence[Bag],
    held_labels: Sequence[int],
    *,
    plan: Plan,
    folder: Path,
    batch: int = 8,
    label_smoothing: float = 0.0,
    resume: bool = False,
    tensorboard: bool = False,
) -> State:
    """Train the aggregator further on whole bags; the extractor is not touched.

    The classes take turns within a step, and a random part of each bag (half or more) is shown. The best weights by
    validation AUC stay in the model.

    Args:
        model: Its aggregator is trained.
        bags, held: Training and validation bags; they may be read as they are asked for.
        labels, held_labels: Their classes.
        plan: The schedule.
        folder: For checkpoint and log.
        batch: Bags a step; several processes share them.
        label_smoothing: Of the cross-entropy.
        resume: Continue from the checkpoint.
        tensorboard: Write TensorBoard files too.
    """
    by_label = [[k for k, label in enumerate(labels) if label == c] for c in range(len(model.card.classes))]
    by_label = [group for group in by_label if group]

    def step(number: int) -> float:
        model.aggregator.train()
        rng = np.random.default_rng([plan.seed, 51, number])
        drawn = []
        for k in range(batch):  # all processes draw alike
            group = by_label[(number * batch + k) % len(by_label)]
            drawn.append((group[rng.integers(len(group))], int(rng.integers(2**31))))
        loss = 0.0
        for row, seed in mine(drawn):
            torch.manual_seed(seed)
            logits = model.aggregate(part_of(bags[row], np.random.default_rng(seed)), attention=False).logits
            target = torch.tensor([labels[row]], device=logits.device)
            part = cross_entropy(logits[None], target, label_smoothing=label_smoothing) / batch
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        return loss

    def score() -> float:
        model.aggregator.eval()
        with torch.inference_mode():
            found = gather([model.aggregate(bag, attention=False).logits.double().cpu() for bag in mine(held)])
        return validation_auc(np.asarray(held_labels), torch.stack(found).softmax(1).numpy())

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
