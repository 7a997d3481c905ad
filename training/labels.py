"""The label of a slide: one class of several, or any number of classes that do not exclude each other.

As numbers, *targets* are an index for each slide, (n,), in the first case, and 0 and 1 for each class, (n, C), in the
second: their shape tells the two apart.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SEPARATOR, NO_CLASS = ";", "none"
"""How a table writes several classes, and that a slide has none of them."""
Label = str | tuple[str, ...]
"""The one class of a slide; or its classes in alphabetical order where there may be several or none."""


def read_label(cell: str, *, several: bool) -> Label:
    """A label as it stands in a table.

    Args:
        cell: Its text, without spaces at the ends.
        several: Whether a slide may have several classes, or none.

    Raises:
        ValueError: The text is no such label; the message goes on after the column's name.
    """
    if not cell:
        raise ValueError(
            "is empty" + (f": write {NO_CLASS} for a slide that has none of the classes" if several else "")
        )
    if not several:
        if SEPARATOR in cell:
            raise ValueError(f"is {cell!r}: here a slide has one class; where it may have several, name it labels")
        return cell
    if cell.casefold() == NO_CLASS:
        return ()
    names = [name.strip() for name in cell.split(SEPARATOR)]
    if not all(names):
        raise ValueError(f"is {cell!r}: a name is missing beside a {SEPARATOR}")
    if NO_CLASS in (name.casefold() for name in names):
        raise ValueError(f"is {cell!r}: {NO_CLASS} stands alone, for a slide that has none of the classes")
    if len(set(names)) < len(names):
        raise ValueError(f"is {cell!r}: a name stands there twice")
    return tuple(sorted(names))


def write_label(label: Label) -> str:
    """A label as `read_label` reads it."""
    return label if isinstance(label, str) else SEPARATOR.join(label) or NO_CLASS


def membership(targets: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    """Whether each slide has each class, (n, C)."""
    return np.asarray(targets == 1 if targets.ndim == 2 else targets[:, None] == np.arange(classes))


def sampling_groups(targets: NDArray[np.int64], rows: Sequence[int]) -> list[list[int]]:
    """Groups of rows that take turns, so that a rare class is learned from as much as a frequent one.

    Of classes that exclude each other: the slides of each. Of others: for each class the slides with it and those
    without it, so that a slide is in as many groups as there are classes, and rare and nearly universal classes alike
    are seen both ways.
    """
    if targets.ndim == 2:
        groups = [[row for row in rows if has[row] == wanted] for has in targets.T for wanted in (1, 0)]
    else:
        groups = [[row for row in rows if targets[row] == label] for label in np.unique(targets)]
    return [group for group in groups if group]
