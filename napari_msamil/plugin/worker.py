"""One classification in the background: progress, cancel and errors as Qt signals on the GUI thread."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, Signal

from napari_msamil.errors import MsamilError, UnreadablePatchesError
from napari_msamil.inference.engine import tune_allocator
from napari_msamil.plugin.background import CLASSIFY, step_back

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari_msamil.inference.classify import Progress, Request
    from napari_msamil.inference.prediction import Prediction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Outcome:
    """How a run ended; neither a prediction nor an error means stopped."""

    prediction: Prediction | None = None
    error: Exception | None = None


def _steps(request: Request, stop: threading.Event, files: ExitStack) -> Generator[Progress, None, _Outcome]:
    """Run a classification until it ends or is told to stop; it closes its files in its own thread.

    Where napari itself drops the worker, as it does when the window closes, this is left at a yield for good: then
    whoever owns ``files`` closes them.

    Errors are returned, not raised: napari's worker takes a RuntimeError, which is what torch raises, for a sign that
    the worker itself was deleted, and then says nothing to anyone.
    """
    from napari_msamil.inference.classify import classify_steps

    step_back(CLASSIFY)
    try:
        with files:
            steps = files.enter_context(closing(classify_steps(request)))
            while not stop.is_set():
                try:
                    progress = next(steps)
                except StopIteration as end:
                    return _Outcome(prediction=end.value)
                yield progress
            return _Outcome()
    except Exception as error:
        return _Outcome(error=error)


class Run(QObject):
    """A classification in its own thread, with its own slide handle; it never touches the viewer.

    Signals, all delivered on the GUI thread; at most one of the last three, and nothing after it or after `stop`:
        progressed(Progress), succeeded(Prediction), failed(str);
        unreadable(str): failed because of patches that the request could have allowed to be left out.
    """

    unfinished: ClassVar[set[Run]] = set()
    """Runs whose thread is not done: one that was stopped still owns its files until then."""

    progressed = Signal(object)
    succeeded = Signal(object)
    failed = Signal(str)
    unreadable = Signal(str)

    def __init__(self, request: Request, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.request = request
        self._stop = threading.Event()
        self._outcome = _Outcome()
        self._files = ExitStack()
        self._worker = create_worker(_steps, request, self._stop, self._files, _start_thread=False, _ignore_errors=True)
        self._worker.yielded.connect(self._on_yielded)
        self._worker.returned.connect(self._on_returned)
        self._worker.finished.connect(self._on_finished)

    def start(self) -> None:
        """Begin; returns at once."""
        tune_allocator()  # before the thread exists: a thread keeps the memory arena it began with
        _keep_triton_out()
        self.unfinished.add(self)
        self._worker.start()

    def stop(self) -> None:
        """Be silent from now on; the thread ends at its next step, within a batch or an import."""
        self._stop.set()

    def _on_yielded(self, progress: Progress) -> None:
        if not self._stop.is_set():
            self.progressed.emit(progress)

    def _on_returned(self, outcome: _Outcome) -> None:
        self._outcome = outcome

    def _on_finished(self) -> None:
        self._files.close()
        self.unfinished.discard(self)
        error, prediction = self._outcome.error, self._outcome.prediction
        if self._stop.is_set():
            return
        if isinstance(error, UnreadablePatchesError) and self.request.max_read_errors < 1:
            self.unreadable.emit(str(error))
        elif isinstance(error, MsamilError):
            self.failed.emit(str(error))
        elif error is not None:
            logger.error("classification failed", exc_info=error)
            self.failed.emit(f"Unexpected error, please report it ({type(error).__name__}: {error}).")
        elif prediction is not None:
            self.succeeded.emit(prediction)


def _keep_triton_out() -> None:
    """Make torch do without triton where Mesa has loaded LLVM, as it does for software and AMD rendering on Linux.

    torchvision imports triton, whose library brings an LLVM of its own; its symbols get bound to Mesa's, which are
    global, and the process dies with a segmentation fault. Only torch.compile needs triton; nothing here compiles.
    """
    if sys.platform.startswith("linux") and "triton" not in sys.modules:
        if "libLLVM" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"):
            sys.modules["triton"] = None  # type: ignore[assignment]  # Python's way to say "not installed"


STAGES = {
    "open": "Opening slide and model",
    "lesion mask": "Outlining the lesion",
    "patches": "Reading patches",
    "aggregate": "Combining the scales",
}


class Pace:
    """Turns Progress into a line of text: stage, count, rate and time left."""

    def __init__(self) -> None:
        self._stage = ""
        self._since = time.perf_counter()

    def text(self, progress: Progress | None) -> str:
        """One line, such as "Reading patches 120 / 257 · 11.2 per s · 0:12 left"; None is before the first stage."""
        if progress is not None and progress.stage != self._stage:
            self._stage, self._since = progress.stage, time.perf_counter()
        seconds = time.perf_counter() - self._since
        if progress is None or progress.total <= 1:
            stage = "Starting" if progress is None else STAGES.get(progress.stage, progress.stage.capitalize())
            return f"{stage} · {_clock(seconds)}" if seconds >= 1 else f"{stage} …"
        parts = [f"{STAGES[progress.stage]} {progress.done} / {progress.total}"]
        if progress.done and seconds > 0:
            parts.append(f"{progress.done / seconds:.3g} per s")
        if progress.seconds_left is not None:
            parts.append(f"{_clock(progress.seconds_left)} left")
        return " · ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
