"""What logits mean: one class of several, or each class for itself. The only place where the two kinds are computed."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


def probabilities(logits: Tensor, *, exclusive: bool) -> Tensor:
    """Probability of each class.

    Args:
        logits: (..., C).
        exclusive: Whether a slide belongs to exactly one class.

    Returns:
        (..., C): softmax, which sums to 1; or, where classes do not exclude each other, the sigmoid of each logit.
    """
    return logits.softmax(-1) if exclusive else logits.sigmoid()


def loss(logits: Tensor, target: Tensor, *, exclusive: bool, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood of a slide's label, a scalar.

    Args:
        logits: (C,).
        target: Index of the class, (); or, where classes do not exclude each other, (C,) of 0 and 1.
        exclusive: Whether a slide belongs to exactly one class.
        label_smoothing: Share s of the label that is spread evenly over what it might have been: over all classes; or,
            for each class by itself, over "there" and "not there", so that 0 and 1 become s / 2 and 1 - s / 2.

    Returns:
        Cross-entropy; or the mean over classes of the binary cross-entropies, so that both have the size of one.
    """
    return loss_of_each(logits[None], target[None], exclusive=exclusive, label_smoothing=label_smoothing)[0]


def loss_of_each(logits: Tensor, target: Tensor, *, exclusive: bool, label_smoothing: float = 0.0) -> Tensor:
    """The same for several at once: logits (B, C), target (B,) or (B, C), losses (B,)."""
    if exclusive:
        return cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
    wanted = target.to(logits) * (1 - label_smoothing) + label_smoothing / 2
    return binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
