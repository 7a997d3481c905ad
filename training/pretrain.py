"""Stage "pretrain": the extractor learns from single patches: their share of lesion, their slide's label.

It is ours, not the paper's: MsaMIL-Net starts from ImageNet weights. A network with random weights gets no useful
gradient from a few hundred slide labels, but it does from the lesion masks that train the segmenter.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from napari_msamil.models.logits import loss_of_each
from napari_msamil.models.model import Model

from .distributed import gather, mine, rank, world
from .draws import Patches
from .loop import Plan, State, train


def pretrain_extractor(
    model: Model,
    draw: Callable[[int], Patches],
    held: Callable[[], Sequence[Patches]],
    *,
    plan: Plan,
    folder: Path,
    labels: bool = False,
    bf16: bool = False,
    resume: bool = False,
    tensorboard: bool = False,
) -> State:
    """Train the extractor on single patches; the weights with the least validation cross-entropy stay in the model.

    The classifiers are thrown away.

    Args:
        model: Its extractor is trained.
        draw: From a step's number to its patches.
        held: Gives the validation patches; called once, when the first score is due.
        plan: The schedule.
        folder: For checkpoint and log.
        labels: Learn the target of each patch's slide too, as if it were the patch's own.
        bf16: Compute the extractor in mixed precision.
        resume: Continue from the checkpoint.
        tensorboard: Write TensorBoard files too.

    Returns:
        The final state; its score is the negative cross-entropy.
    """
    torch.manual_seed(plan.seed)
    classes = len(model.card.classes) if labels else 0
    head, shortcut = classifiers(model, 1 + classes)
    kept: list[Patches] = []

    def losses(guess: Tensor, share: Tensor, target: Tensor) -> Tensor:
        """(B,) of each patch."""
        each = binary_cross_entropy_with_logits(guess[:, 0].float(), share.to(guess.device), reduction="none")
        if labels:
            each = each + loss_of_each(guess[:, 1:].float(), target.to(guess.device), exclusive=model.card.exclusive)
        return each

    def step(number: int) -> float:
        model.extractor.train()
        whole = draw(number)
        pixels, share, target = (part[rank() :: world()] for part in whole)
        if not len(share):
            return 0.0
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            guesses = two_guesses(model, pixels, head, shortcut)
        found = [losses(guess, share, target).mean() * (len(share) / len(whole[1])) for guess in guesses]
        torch.stack(found).sum().backward()  # type: ignore[no-untyped-call]
        return float(found[0].detach())

    def score() -> float:
        if not kept:
            kept.extend(mine(held()))
        model.extractor.eval()
        found = []
        for pixels, share, target in kept:
            with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                guess = head(model.extractor(model.normalise(pixels)))
            found.append(losses(guess, share, target).tolist())
        return -float(np.mean([loss for part in gather(found) for loss in part]))

    modules = {"extractor": model.extractor, "head": head, "shortcut": shortcut}
    return train(plan, modules, step=step, score=score, folder=folder, resume=resume, tensorboard=tensorboard)


def classifiers(model: Model, outputs: int) -> tuple[nn.Linear, nn.Linear]:
    """Two with random weights: one on the extractor's features, one on the mean of its encoder's map."""
    head = nn.Linear(model.card.extractor.out_dim, outputs).to(model.device)
    return head, nn.Linear(int(model.extractor.encoder.num_features), outputs).to(model.device)


def two_guesses(model: Model, pixels: Tensor, head: nn.Module, shortcut: nn.Module) -> tuple[Tensor, Tensor]:
    """What each of the `classifiers` says of some pictures (B, P, P, 3): (B, outputs) each.

    Without the second one the encoder learns little until the Transformer above it has settled.
    """
    maps: list[Tensor] = []
    hook = model.extractor.project_in.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    guess = head(model.extractor(model.normalise(pixels)))
    hook.remove()
    return guess, shortcut(maps.pop().mean(1))
