"""What every multiple-instance method takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from napari_msamil.models.bag import Bag


@dataclass(frozen=True, eq=False)
class AggregatorOutput:
    """Result for one slide.

    Attributes:
        logits: (C,), one per class.
        attention: (N,) in the bag's row order, not negative, sums to 1 over the bag, without gradient; None if not
            asked for.
    """

    logits: Tensor
    attention: Tensor | None = None


class Aggregator(nn.Module, ABC):
    """A multiple-instance method: one bag of one slide in, logits and attention out.

    The rows of a bag may stand in any order; the logits do not depend on it and the attention follows it.
    """

    @abstractmethod
    def __init__(self, config: Any, *, classes: int, scales: int) -> None:
        """Builds the net with random weights.

        Args:
            config: The method's settings.
            classes: Number of logits.
            scales: Number of scales a bag may hold.
        """
        super().__init__()

    @abstractmethod
    def forward(self, bag: Bag, *, attention: bool = True) -> AggregatorOutput:
        """Classifies a bag.

        Args:
            bag: At least one instance.
            attention: Whether to compute the attention too, which costs extra time on long bags.
        """

    def __call__(self, bag: Bag, *, attention: bool = True) -> AggregatorOutput:
        """See `forward`."""
        output: AggregatorOutput = super().__call__(bag, attention=attention)
        return output
