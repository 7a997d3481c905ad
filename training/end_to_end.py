"""Stage "end-to-end": extractor and aggregator learn together from slide labels (MsaMIL-Net, section 3.4)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_msamil.inference.features import make_bag
from napari_msamil.models.logits import loss as loss_of
from napari_msamil.models.logits import probabilities as probabilities_of
from napari_msamil.models.model import Model

from .distributed import gather, mine
from .drawn import Drawn
from .loop import Plan, State, train
from .metrics import validation_auc
from .two_pass import freeze_batch_norm, two_pass_backward


def train_end_to_end(
    model: Model,
    draw: Callable[[int, int], Drawn],
    held: Callable[[], Sequence[Drawn]],
    *,
    plan: Plan,
    folder: Path,
    slides: int = 2,
    encoder_rate: float = 1.0,
    freeze: bool = False,
    bn_trains: bool = False,
    label_smoothing: float = 0.0,
    bf16: bool = False,
    resume: bool = False,
    tensorboard: bool = False,
) -> State:
    """Stage 1 of MsaMIL-Net: each step draws patches of some slides and updates extractor and aggregator together.

    Memory holds one chunk of patches with its graph, however many there are (see two_pass.py). The best weights by
    validation AUC over slides stay in the model.

    Args:
        model: Its extractor and aggregator are trained.
        draw: From the numbers of a step and of a slide in it to that slide's patches.
        held: Gives the patches of the validation slides; called once, when the first score is due.
        plan: The schedule.
        folder: For checkpoint and log.
        slides: Slides whose gradients are added up before a step; several processes share them.
        encoder_rate: Learning rate of the extractor as a factor of the aggregator's.
        freeze: Leave the extractor as it is.
        bn_trains: Let batch norm use and update the statistics of what it sees. The gradient is then that of all
            patches in one graph, whose memory grows with their number.
        label_smoothing: Of the cross-entropy.
        bf16: Compute the extractor in mixed precision.
        resume: Continue from the checkpoint.
        tensorboard: Write TensorBoard files too.
    """

    def step(number: int) -> float:
        model.extractor.train(not freeze)
        if not bn_trains:
            freeze_batch_norm(model.extractor)
        model.aggregator.train()
        loss = 0.0
        for slot in mine(range(slides)):
            torch.manual_seed((plan.seed * 1_000_003 + number) * slides + slot)  # whichever process does it
            loss += backward(
                model,
                draw(number, slot),
                weight=1 / slides,
                freeze=freeze,
                one_graph=bn_trains,
                label_smoothing=label_smoothing,
                bf16=bf16,
            )
        return loss

    kept: list[Drawn] = []

    def score() -> float:
        if not kept:
            kept.extend(held())
        model.eval()
        found = gather([(one.target, probabilities(model, one, bf16=bf16)) for one in mine(kept)])
        return validation_auc(np.array([target for target, _ in found]), np.stack([guess for _, guess in found]))

    trained = (
        {"aggregator": model.aggregator} if freeze else {"extractor": model.extractor, "aggregator": model.aggregator}
    )
    return train(
        plan,
        trained,
        step=step,
        score=score,
        folder=folder,
        resume=resume,
        rates={"extractor": encoder_rate},
        slides=lambda number: " or ".join(draw(number, slot).name for slot in range(slides)),
        tensorboard=tensorboard,
    )


def backward(
    model: Model,
    drawn: Drawn,
    *,
    weight: float = 1.0,
    freeze: bool = False,
    one_graph: bool = False,
    label_smoothing: float = 0.0,
    bf16: bool = False,
) -> float:
    """Add the gradients of one slide's loss, times ``weight``; returns that loss. See `train_end_to_end`."""
    target = torch.as_tensor(drawn.target, device=model.device)

    def head(features: Tensor) -> Tensor:
        output = model.aggregate(make_bag(features, drawn.table), attention=False)
        return weight * loss_of(output.logits, target, exclusive=model.card.exclusive, label_smoothing=label_smoothing)

    def extract(pixels: Tensor) -> Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            features: Tensor = model.extractor(pixels)
        return features.float()

    def chunks() -> Iterator[Tensor]:
        return map(model.normalise, drawn.chunks())

    if freeze or one_graph:
        with torch.set_grad_enabled(not freeze):
            features = torch.cat([extract(chunk) for chunk in chunks()])
        loss = head(features)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())
    return float(two_pass_backward(extract, chunks, head, modules=[model.extractor]))


def probabilities(model: Model, drawn: Drawn, *, bf16: bool = False) -> NDArray[np.float64]:
    """Probability of each class (C,) from some patches of a slide; the model is in evaluation mode."""
    with torch.inference_mode():
        parts = []
        for chunk in drawn.chunks():
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                parts.append(model.embed(chunk))
        output = model.aggregate(make_bag(torch.cat(parts), drawn.table), attention=False)
    found: NDArray[np.float64] = probabilities_of(output.logits.cpu().double(), exclusive=model.card.exclusive).numpy()
    return found
