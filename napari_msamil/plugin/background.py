"""What keeps background work from being felt in the window."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading

READ_AHEAD, CLASSIFY = 10, 15
"""How much further back than drawing, in steps of niceness."""

FOR_SLIDES = ("dask.array", "tiffslide")
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
    """Import modules in a thread: half a second that nobody then waits for."""
    threading.Thread(target=_import, args=(names,), name="msamil-import", daemon=True).start()


def _import(names: tuple[str, ...]) -> None:
    step_back(READ_AHEAD)
    for name in names:
        with contextlib.suppress(ImportError):  # whoever needs it will say so
            importlib.import_module(name)
