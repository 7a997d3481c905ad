"""Stage "pretrain": the extractor learns which share of a single patch is lesion, before it sees any slide label.

It is ours, not the paper's: MsaMIL-Net starts from ImageNet weights. A network with random weights gets no useful
gradient from a few hundred slide labels, but it does from the lesion masks that train the segmenter.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from napari_msamil.models.model import Model

from .distributed import gather, mine, rank, world
from .loop import Plan, State, train

Patches = tuple[Tensor, Tensor]
"""Pixels (B, P, P, 3), as for `Model.normalise`, and the share of each that is lesion, (B,) float32."""


def pretrain_extractor(
    model: Model,
    draw: Callable[[int], Patches],
    held: Callable[[], Sequence[Patches]],
    *,
    plan: Plan,
    folder: Path,
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
        bf16: Compute the extractor in mixed precision.
        resume: Continue from the checkpoint.
        tensorboard: Write TensorBoard files too.

    Returns:
        The final state; its score is the negative cross-entropy.
    """
    torch.manual_seed(plan.seed)
    head, shortcut = classifiers(model, 1)
    kept: list[Patches] = []

    def step(number: int) -> float:
        model.extractor.train()
        whole = draw(number)
        pixels, target = (part[rank() :: world()] for part in whole)
        if not len(target):
            return 0.0
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            guesses = two_guesses(model, pixels, head, shortcut)
        target = target.to(model.device)
        losses = [_cross_entropy(guess, target).mean() * (len(target) / len(whole[1])) for guess in guesses]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        return float(losses[0].detach())

    def score() -> float:
        if not kept:
            kept.extend(mine(held()))
        model.extractor.eval()
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            guesses = [head(model.extractor(model.normalise(pixels))) for pixels, _ in kept]
        found = [
            _cross_entropy(guess, target.to(model.device)) for guess, (_, target) in zip(guesses, kept, strict=True)
        ]
        losses = torch.tensor([loss for part in gather([one.tolist() for one in found]) for loss in part])
        return -float(losses.mean())

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


def _cross_entropy(guess: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(guess[:, 0].float(), target, reduction="none")
