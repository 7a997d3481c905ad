"""Multiple-instance methods by name; a method's file, and torch with it, is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_msamil.models.aggregators.base import Aggregator

AGGREGATORS = {
    "msamil": "msamil:MsaMil",
}
"""Method name -> `module:class` in this package."""


def aggregator_class(method: str) -> type[Aggregator]:
    """The class behind a method's name.

    Raises:
        ValueError: No such method.
    """
    if method not in AGGREGATORS:
        raise ValueError(f"no method {method!r}: choose one of {', '.join(sorted(AGGREGATORS))}")
    module, name = AGGREGATORS[method].split(":")
    found: type[Aggregator] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found
