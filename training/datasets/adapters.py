"""All public datasets by name."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cohort import CohortError
from . import bcnb, camelyon16, digestpath2019, ebhi_seg, folders, ubc_ocean

ADAPTERS: dict[str, Callable[..., Path]] = {
    "ubc-ocean": ubc_ocean.write,
    "bcnb": bcnb.write,
    "digestpath2019": digestpath2019.write,
    "camelyon16": camelyon16.write,
    "ebhi-seg": ebhi_seg.write,
    "folders": folders.write,
}


def write_dataset(name: str, folder: str | Path, out: str | Path, *, overwrite: bool = False, **options: Any) -> Path:
    """Write the table of a dataset; see the ``write`` of its own file.

    Args:
        name: A key of `ADAPTERS`.
        folder: The dataset as unpacked.
        out: Folder for `cohort.csv` and what else is made.
        overwrite: Whether a table that is already there is replaced.
        options: Of that dataset; None means not given.

    Raises:
        CohortError: No such dataset, an option that it does not have, or something is missing.
    """
    if name not in ADAPTERS:
        raise CohortError(f"There is no dataset {name!r}: use one of {', '.join(ADAPTERS)}.")
    given = {option: value for option, value in options.items() if value is not None}
    unknown = set(given) - set(inspect.signature(ADAPTERS[name]).parameters)
    if unknown:
        raise CohortError(f"{name} has no option {', '.join(sorted(unknown))}: leave it out.")
    return ADAPTERS[name](folder, out, overwrite=overwrite, **given)
