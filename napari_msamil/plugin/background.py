"""What keeps background work from being felt in the window."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from typing import Any

import pint

READ_AHEAD, CLASSIFY = 10, 15
"""How much further back than drawing, in steps of niceness."""

FOR_SLIDES = ("dask.array", "tiffslide", "scipy.ndimage")
FOR_RESULTS = ("pandas", "skimage.color.colorconv", "skimage.exposure")  # napari imports them at the first labels layer


def step_back(steps: int) -> None:
    """Let this thread, and those it starts, yield the processor to the window's thread.

    Linux only: elsewhere a thread has no niceness of its own. Measured on two cores, it takes back most of what a
    running classification adds to the time of a pan.
    """
    if sys.platform.startswith("linux"):
        window = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, window + steps))


def import_ahead(names: tuple[str, ...]) -> None:
    """Import modules, and prepare pint's units, in a thread: a second that nobody then waits for."""
    threading.Thread(target=_import, args=(names,), name="msamil-import", daemon=True).start()


def use_units() -> None:
    """Let napari take the units that were prepared, if it has not read pint's list itself; for the window's thread.

    pint reads its list of units when the first layer or scale bar asks for one, which holds the window for a third of
    a second. napari uses pint in the window's thread only, so that here is where the list can change hands.
    """
    with _units_lock:
        if _units and _units_unread():
            pint.set_application_registry(_units[0])  # type: ignore[no-untyped-call]


_units: list[Any] = []  # the one prepared registry
_units_lock = threading.Lock()


def _import(names: tuple[str, ...]) -> None:
    step_back(READ_AHEAD)
    for name in names:
        with contextlib.suppress(ImportError):  # whoever needs it will say so
            importlib.import_module(name)
    with _units_lock:
        if not _units and _units_unread():
            _units.append(pint.UnitRegistry(on_redefinition="raise"))  # as pint makes its own


def _units_unread() -> bool:
    return isinstance(pint.application_registry.get(), pint.registry.LazyRegistry)  # type: ignore[no-untyped-call]
