"""`msamil train`: settings, slides, a folder, and then the stages, fold by fold."""

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from napari_msamil.errors import ReadError
from napari_msamil.inference.engine import tune_allocator

from .cohort import read_cohort
from .config import read_config
from .distributed import process_group, rank
from .evaluate import evaluate_fold, finish
from .loop import StoppedError
from .run import Run, RunError, begin
from .stages import Fold, stages_of


def run_training(
    stage: str, *, preset: str, settings: Sequence[str], cohort: Path, out: Path, command: str = ""
) -> Path | None:
    """Run one stage, or all of them, on the folds of a run; what is done already is not done again.

    Args:
        stage: One of `stages.STAGES`, or "all".
        preset: Name of a preset or a TOML file.
        settings: "key=value" each.
        cohort: Table of slides, or a folder with a cohort.csv.
        out: Folder of the run; made, or gone on with.
        command: To be written on the model's card.

    Returns:
        The model file, once all folds are tested.

    Raises:
        MsamilError: Any fault in settings, slides, checkpoints or what is read; each is one sentence.
    """
    tune_allocator()
    config = read_config(preset, settings)
    table = read_cohort(cohort, files=not config.mil.features)
    with _ended_by_a_sentence(), process_group():
        if rank() > 0:
            logging.getLogger("napari_msamil").setLevel(logging.WARNING)
        run = begin(config, table, out, command=command)
        try:
            _run_stages(run, stages_of(run) if stage == "all" else (stage,))
        except ReadError as error:
            raise type(error)(
                f"{error} Repair the file and give the same command again, or leave out slides that cannot be read: "
                "machine.skip_bad_slides=true."
            ) from error
        return finish(run) if rank() == 0 else None


@contextmanager
def _ended_by_a_sentence() -> Iterator[None]:
    """A full disk, a second Ctrl-C or SIGTERM, and any outside a stage's steps, in which the loop takes them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may take signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError("Training was stopped. The same command goes on from what was saved last.") from None
    except OSError as error:
        raise RunError(
            f"{error.filename or 'A file'} cannot be read or written ({error.strerror or error}). See to it, and the "
            "same command goes on from what was saved last; or choose another --out."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_stages(run: Run, stages: Sequence[str]) -> None:
    for number, parts in run.of_this_command().items():
        with run.claimed(number):
            tested = len(stages) > 1 and run.tested(number)  # it is not trained again unasked
            for name in stages[-1:] if tested else stages:
                fold = Fold(run, number, parts)  # a fresh model: each stage takes from files what came before
                if name == "evaluate":
                    evaluate_fold(fold)
                else:
                    fold.run_stage(name)
