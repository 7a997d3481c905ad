"""Stage "segment": UNet++ learns the lesion mask on thumbnails."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from napari_msamil.models.model import Model

from .distributed import gather, mine
from .drawn import Thumbnail
from .loop import Plan, State, train
from .metrics import Overlap


def lesion_loss(logits: Tensor, lesion: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice loss, the latter over the whole batch so that empty masks have a gradient.

    Args:
        logits: (B, H, W).
        lesion: (B, H, W) in 0..1.
    """
    probability = logits.sigmoid()
    dice = (2 * (probability * lesion).sum() + 1) / (probability.sum() + lesion.sum() + 1)
    return binary_cross_entropy_with_logits(logits, lesion) + 1 - dice


def train_segmenter(
    model: Model,
    draw: Callable[[int], Sequence[tuple[Tensor, Tensor]]],
    held: Callable[[], Sequence[Thumbnail]],
    *,
    plan: Plan,
    folder: Path,
    bf16: bool = False,
    resume: bool = False,
    tensorboard: bool = False,
) -> State:
    """Train the segmenter; the weights with the best validation IoU stay in the model.

    Args:
        model: Its segmenter is trained.
        draw: From a step's number to its pictures (H, W, 3), as for `Model.normalise`, and lesions (H, W) bool; sides
            are multiples of 32, the same within a step.
        held: Gives the validation thumbnails; called once, when the first score is due.
        plan: The schedule.
        folder: For checkpoint and log.
        bf16: Compute in mixed precision.
        resume: Continue from the checkpoint.
        tensorboard: Write TensorBoard files too.
    """

    def step(number: int) -> float:
        model.segmenter.train()
        whole = draw(number)
        share = mine(whole)
        if not share:
            return 0.0
        x = model.normalise(torch.stack([picture for picture, _ in share]))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            logits = model.segmenter(x).float()
        lesion = torch.stack([mask for _, mask in share]).float().to(logits.device)
        loss = lesion_loss(logits, lesion) * (len(share) / len(whole))
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    thumbnails: list[Thumbnail] = []

    def score() -> float:
        if not thumbnails:
            thumbnails.extend(mine(held()))
        return sum_overlaps(gather(lesion_overlaps(model, thumbnails))).iou

    return train(
        plan,
        {"segmenter": model.segmenter},
        step=step,
        score=score,
        folder=folder,
        resume=resume,
        tensorboard=tensorboard,
    )


def lesion_overlaps(model: Model, thumbnails: Sequence[Thumbnail], *, everything: bool = False) -> list[Overlap]:
    """How the predicted lesion of each thumbnail overlaps the true one; or that of a mask that holds every pixel."""
    model.segmenter.eval()
    overlaps = []
    for picture, true in thumbnails:
        with torch.inference_mode():
            found = model.segment(torch.from_numpy(picture[None]))[0].cpu().numpy()
        predicted = found > model.card.thresholds.lesion_probability
        overlap = Overlap()
        overlap.add(predicted | True if everything else predicted, true)
        overlaps.append(overlap)
    return overlaps


def sum_overlaps(overlaps: Sequence[Overlap]) -> Overlap:
    """Overlaps of several slides as one."""
    return Overlap(*(sum(getattr(o, name) for o in overlaps) for name in ("both", "predicted", "true")))
