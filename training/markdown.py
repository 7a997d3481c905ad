"""Tables and numbers in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

NONE = "–"


def table(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers to the right, the first column to the left."""
    lines = [[cell(head) for head in heads], ["---"] + ["---:"] * (len(heads) - 1)]
    lines += [[cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any) -> str:
    """Text that cannot break out of its cell or line."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return NONE if value is None else f"{value:.{digits}f}"


def interval(ends: Sequence[float] | None) -> str:
    """Both ends of an interval."""
    return NONE if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean ± sample standard deviation of what is there."""
    there = [value for value in values if value is not None]
    if len(there) < 2:
        return number(there[0] if there else None, digits)
    return f"{np.mean(there):.{digits}f} ± {np.std(there, ddof=1):.{digits}f}"


def count(many: int, word: str) -> str:
    """How many of something: "1 fold", "2 folds"."""
    return f"{many} {word}{'' if many == 1 else 's'}"
