"""What a stage writes down while it runs: JSON lines and CSV always, TensorBoard where asked for."""

import csv
import io
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from tqdm import tqdm

from napari_msamil.errors import MsamilError
from napari_msamil.files import write_atomically

COLUMNS = ("stage", "step", "steps", "loss", "score", "best_score", "best_step", "gradient", "rate", "seconds")
TELL_SECONDS = 30.0
"""Between lines that say how far the work is, where there is no terminal for a bar."""
Item = TypeVar("Item")
_log = logging.getLogger(__name__)


class Log:
    """``log.jsonl`` and ``log.csv`` in a folder, one line per note, shared by the stages of a run.

    Used as a context, which closes the TensorBoard file: what it holds back would be lost.
    """

    def __init__(self, folder: Path, stage: str, *, resumed_at: int, tensorboard: bool = False) -> None:
        """Go on after step ``resumed_at``; lines of this stage from later steps are of work that was lost, and go.

        Raises:
            MsamilError: TensorBoard is asked for and not installed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._stage = stage
        self._jsonl, self._csv = folder / "log.jsonl", folder / "log.csv"
        self._lines = [
            line
            for line in _read(self._jsonl)
            if line["stage"] != stage or (line["step"] <= resumed_at and resumed_at > 0)
        ]
        self._rewrite()
        self._writer = None
        if tensorboard:  # a folder for each stage: what is purged there would be purged in all of them
            self._writer = summary_writer()(folder / "tensorboard" / stage, purge_step=resumed_at + 1)

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write what TensorBoard's writer holds back."""
        if self._writer is not None:
            self._writer.close()

    def note(self, **values: Any) -> None:
        """Write one line; names are those of `COLUMNS`."""
        line = {"stage": self._stage} | {k: _rounded(v) for k, v in values.items()}
        _log.debug("%s", json.dumps(line))
        with self._jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        with self._csv.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(line)
        if self._writer is not None:
            for name in ("loss", "score", "gradient", "rate"):
                if line.get(name) is not None:
                    self._writer.add_scalar(f"{self._stage}/{name}", line[name], line["step"])

    def _rewrite(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self._lines)
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, COLUMNS)
        writer.writeheader()
        writer.writerows(self._lines)
        write_atomically(self._jsonl, lambda file: file.write(lines.encode()))
        write_atomically(self._csv, lambda file: file.write(table.getvalue().encode()))


def progress(items: Sequence[Item], what: str, unit: str, *, tell: bool = True) -> Iterator[Item]:
    """Items one by one: with a bar on a terminal, elsewhere with a line in the log every half minute."""
    bar = tqdm(items, desc=what, unit=unit, disable=None if tell else True)
    if not bar.disable:
        yield from bar
        return
    told = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if tell and time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            _log.info("%s: %d of %d %s", what, done, len(items), unit)


def _read(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off by the end of the process is left out."""
    if not file.exists():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        lines.append({key: value for key, value in line.items() if key in COLUMNS})
    return lines


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def summary_writer() -> Any:
    """TensorBoard's writer.

    Raises:
        MsamilError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MsamilError(
            'TensorBoard is asked for and not installed: pip install "napari-msamil[tensorboard]", or set '
            "machine.tensorboard to false."
        ) from error
    return SummaryWriter
