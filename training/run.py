"""A run: its folder, and what must be the same when it is gone on with."""

import csv
import io
import json
import logging
import os
import platform
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

from napari_msamil.errors import MsamilError, listed
from napari_msamil.files import TEMPORARY, write_atomically
from napari_msamil.inference.engine import Device, choose_device
from napari_msamil.models.card import Card, explain

from .cohort import (
    TABLE,
    Cohort,
    CohortSlide,
    read_cohort,
    write_cohort,
    written_path,
)
from .cohort_check import refuse_untrainable
from .config import Config, ConfigError, differences
from .distributed import rank, wait_for_all, world
from .folds import Parts, refuse_untrainable_segmenters, split_cohort
from .h5 import FeatureFolders
from .labels import membership, write_label
from .log import summary_writer

CONFIG, COHORT, VERSIONS, SPLITS = "config.toml", TABLE, "versions.json", "splits.csv"
FEATURES, COMMANDS, RESULT = "features.json", "commands.txt", "result.json"
_LOCK = ".run.lock"
_log = logging.getLogger(__name__)


class RunError(MsamilError):
    """A folder cannot be used for a run, or a stage cannot begin yet."""


@dataclass(frozen=True)
class Run:
    """What all stages of a training share.

    Attributes:
        folder: Of the run.
        config: All settings.
        cohort: The slides.
        card: Of the untrained model.
        device: Where it computes.
        command: That works on it now.
        features: Where the features lie that are learned from instead of slides, or None.
        feature_files: By slide, what tells its files of features from others.
        left_out: Names of slides of the table whose features cannot be used, and which are not in the cohort.
    """

    folder: Path
    config: Config
    cohort: Cohort
    card: Card
    device: Device
    command: str
    features: FeatureFolders | None = None
    feature_files: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def bf16(self) -> bool:
        """Whether training computes in mixed precision: on a device that has such arithmetic."""
        return choose_device(self.device.name, cpu_precision="bf16").precision == "bf16"

    def parts(self) -> dict[int, Parts]:
        """The folds that are trained and tested, by number."""
        every = split_cohort(
            self.cohort, folds=self.config.folds, validation=self.config.validation, seed=self.config.seed
        )
        unknown = sorted(set(self.config.run_folds) - every.keys())
        if unknown:
            numbers = ", ".join(map(str, every))
            raise RunError(
                f"run_folds names fold {unknown[0]}, but the folds are {numbers}: set run_folds=[{min(every)}] for the "
                "first, or run_folds=[] for all."
            )
        return {k: parts for k, parts in every.items() if k in self.config.run_folds or not self.config.run_folds}

    def of_this_command(self) -> dict[int, Parts]:
        """Those of the folds that this command works on."""
        parts, wanted = self.parts(), self.config.machine.folds
        unknown = sorted(set(wanted) - parts.keys())
        if unknown:
            numbers = ", ".join(map(str, parts))
            raise RunError(
                f"machine.folds names fold {unknown[0]}, but the folds of the run are {numbers}: set run_folds=[] to "
                "have all, or name others."
            )
        return {number: one for number, one in parts.items() if number in wanted or not wanted}

    def fold_folder(self, fold: int) -> Path:
        """Where the files of a fold lie."""
        return self.folder / f"fold-{fold}"

    def tested(self, fold: int) -> bool:
        """Whether the test part of a fold was looked at, once and for all."""
        return (self.fold_folder(fold) / RESULT).exists()

    def commands(self) -> list[str]:
        """All commands that worked on it, in their order, each once."""
        file = self.folder / COMMANDS
        said = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return list(dict.fromkeys([*said, self.command]))

    @contextmanager
    def claimed(self, fold: int) -> Iterator[None]:
        """Keep other commands off a fold; a claim ends with its process, however that ends.

        Raises:
            RunError: Another command works on it.
        """
        if rank() > 0:
            yield  # the first process claims it for all
            return
        lock = FileLock(self.folder / f".fold-{fold}.lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"Another command is working on fold {fold} of {self.folder}: wait until it ends, or choose others by "
                "machine.folds."
            ) from None
        for half in self.fold_folder(fold).glob(f"*{TEMPORARY}*"):
            half.unlink()  # of a command that was killed while it wrote
        try:
            yield
        finally:
            lock.release()


def begin(config: Config, cohort: Cohort, folder: Path, *, command: str) -> Run:
    """Make a run's folder, or go on with one.

    Nothing is written before everything that can be wrong with slides and settings has been looked at.

    Raises:
        RunError: The folder holds something else, or a run with other settings or slides; each difference is named.
        CohortError: Slides cannot be trained on; each fault is named.
        FeatureError: Features made elsewhere cannot be learned from; each fault is named.
        MsamilError: TensorBoard is asked for and not installed.
        ConfigError: The networks cannot be as wide as those features.
    """
    refuse_untrainable(cohort, folds=config.folds, files=False)  # before it is cut into parts
    device = choose_device(config.machine.device)
    if config.machine.tensorboard:
        summary_writer()  # raises where it is not installed
    card = config.card(cohort.classes, exclusive=cohort.exclusive)
    features: FeatureFolders | None = None
    files: dict[str, Any] = {}
    bad: tuple[str, ...] = ()
    if config.mil.features:
        features = FeatureFolders(config.mil.features, card.scales_mpp)
        slides, width, files = features.look_at(cohort.slides, skip_bad=config.machine.skip_bad_slides)
        bad = tuple(slide.path.name for slide in cohort.slides if slide not in slides)
        cohort, card = replace(cohort, slides=tuple(slides)), aggregator_card(card, width, config.mil.features)
        refuse_untrainable(cohort, folds=config.folds, files=False)
    elif cohort.no_lesion_known:
        _log.warning("no slide has a known lesion: the segmenter stays untrained, and all tissue is looked at")
        card = _without_segmenter(card)
    run = Run(folder, config, cohort, card, device, command, features, files, bad)
    run.of_this_command()  # raises
    if not run.features:
        refuse_untrainable_segmenters(cohort, run.parts())
    _look_at_reused(run)
    if rank() == 0:  # the others would see a folder that is half written
        _look_at_folder(run)
        _enter(run)
    wait_for_all()
    return run


def _enter(run: Run) -> None:
    """Write what the run is, or make sure that it is the one that another command began meanwhile or before."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(run.folder / _LOCK):
        if (run.folder / CONFIG).exists():
            _refuse_changes(run)
            _tell_other_circumstances(run)
        else:
            _write_facts(run)
        _write(run.folder / COMMANDS, "\n".join(run.commands()))


def _look_at_folder(run: Run) -> None:
    """Raise if the run can neither go on in its folder nor begin there; the slides of one that begins are opened."""
    folder, config, cohort = run.folder, run.config, run.cohort
    if (folder / CONFIG).exists():
        _refuse_changes(run)
        return
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        what = "cannot be written to" if above.is_dir() else "is a file"
        raise RunError(f"{folder} cannot be made a run's folder, since {above} {what}: choose another --out.")
    if folder.exists() and {file.name for file in folder.iterdir()} - {_LOCK}:
        raise RunError(f"{folder} is not empty and holds no run: choose another --out.")
    files = not (run.features or config.machine.skip_bad_slides)
    refuse_untrainable(cohort, folds=config.folds, files=files, finest_mpp=run.card.scales_mpp[0])
    run.parts()  # raises before anything is written


def _without_segmenter(card: Card) -> Card:
    """A card by which nothing is lesion, and all tissue is looked at."""
    thresholds = card.thresholds.model_copy(update={"lesion_probability": 1.0})
    return card.model_copy(
        update={"thresholds": thresholds, "on_empty": card.on_empty.model_copy(update={"policy": "tissue"})}
    )


def aggregator_card(card: Card, width: int, folders: Sequence[Path]) -> Card:
    """The card of an aggregator alone that takes features of some width.

    Raises:
        ConfigError: Its other settings do not go with that width.
    """
    try:
        aggregator = type(card.aggregator).model_validate(card.aggregator.model_dump() | {"dim": width})
    except ValidationError as error:
        raise ConfigError(
            f"An aggregator cannot take features of {width} numbers a patch ({explain(error)}): set model.aggregator."
        ) from error
    extractor = card.extractor.model_copy(update={"out_dim": width})
    source = f"{width} numbers a patch, from {', '.join(map(str, folders))}"
    return card.model_copy(update={"aggregator": aggregator, "extractor": extractor, "features": source})


def _refuse_changes(run: Run) -> None:
    folder, config = run.folder, run.config
    try:
        before = Config.model_validate(tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))).fixed()
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} holds a run whose settings cannot be read ({error}): choose another --out."
        ) from error
    settings, slides = differences(before, config.fixed()), _changed_slides(run, folder)
    changes = settings + slides
    if run.features and not changes:
        known = json.loads((folder / FEATURES).read_text(encoding="utf-8"))
        changed = sorted(name for name, files in run.feature_files.items() if files != known[name])
        if changed:
            changes.append(
                f"features of {len(changed)} slide{'s' if len(changed) > 1 else ''} changed, first {changed[0]}"
            )
    if changes:
        remedy = "Go back to what it was, or choose another --out"
        if changes == settings:
            remedy += f"; with it, machine.reuse={folder} takes over those stages of this run that stay the same"
        raise RunError(f"{folder} cannot be gone on with:{listed(changes, remedy + '.')}")


def _changed_slides(run: Run, folder: Path) -> list[str]:
    """What is not the same in the tables of slides of a run and of the folder of another; nothing or one sentence."""
    old, new = _by_path(read_cohort(folder / COHORT, files=False)), _by_path(run.cohort)
    changed = sorted(str(path) for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    if changed and not old.keys() & new.keys() and [p.name for p in old] == [p.name for p in new]:
        return [f"the slides lie elsewhere, {next(iter(new))} was {next(iter(old))}"]
    if changed:
        return [f"{len(changed)} row{'s' if len(changed) > 1 else ''} of the table changed, first {changed[0]}"]
    return ["the rows of the table stand in another order"] if list(old) != list(new) else []


def _look_at_reused(run: Run) -> None:
    """Raise if the folder that stages should be taken over from holds no run, or one of other slides."""
    folder = run.config.machine.reuse
    if folder is None:
        return
    if not (folder / CONFIG).exists():
        raise RunError(f"machine.reuse is {folder}, which holds no run: give the --out of another run.")
    changes = _changed_slides(run, folder)
    if changes:
        raise RunError(f"machine.reuse is {folder}, a run of other slides ({changes[0]}): its stages cannot be reused.")


def _by_path(cohort: Cohort) -> dict[Path, CohortSlide]:
    """Rows by the absolute path of their slide."""
    return {
        s.path.resolve(): replace(s, path=s.path.resolve(), lesion=s.lesion.resolve() if s.lesion else None)
        for s in cohort.slides
    }


def _circumstances(run: Run) -> dict[str, Any]:
    """What the last digits of a run depend on beside its settings and slides."""
    return versions() | {
        "system": platform.platform(),
        "device": run.device.name,
        "processes": world(),
        "threads": torch.get_num_threads(),
    }


def _tell_other_circumstances(run: Run) -> None:
    try:
        began = json.loads((run.folder / VERSIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    found = [f"{k} {began.get(k)}, now {now}" for k, now in _circumstances(run).items() if began.get(k) != now]
    if found:
        _log.warning("%s was begun with %s: its figures may differ in their last digits", run.folder, "; ".join(found))


def _write_facts(run: Run) -> None:
    """Settings, slides, parts and versions, before the first step; the settings last, since they make it a run."""
    folder, facts = run.folder, _circumstances(run)
    parts = run.parts()
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["slide", "patient", "label", *(f"fold {fold}" for fold in parts)])
    for row, slide in enumerate(run.cohort.slides):
        label = write_label(slide.label)
        name = written_path(slide.path, folder)
        table.writerow([name, slide.patient, label, *(_part_of(row, one) for one in parts.values())])
    if run.features:
        _write(folder / FEATURES, json.dumps(run.feature_files, indent=1))
    _write(folder / VERSIONS, json.dumps(facts, indent=2))
    _write(folder / SPLITS, text.getvalue())
    write_cohort(run.cohort.slides, folder / COHORT, overwrite=True)
    _write(folder / CONFIG, run.config.to_toml())


def _part_of(row: int, parts: Parts) -> str:
    """Name of the part that a row belongs to."""
    return next((name for name in ("training", "validation", "test") if row in getattr(parts, name)), "")


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write((text.rstrip("\n") + "\n").encode()))


def versions() -> dict[str, str]:
    """Of all that the numbers of a run may depend on."""
    names = ("napari-msamil", "torch", "timm", "segmentation-models-pytorch", "numpy", "pillow", "tiffslide")
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def class_counts(cohort: Cohort, rows: Sequence[int]) -> dict[str, int]:
    """Slides of each class among some rows."""
    has = membership(cohort.targets()[np.asarray(rows, np.int64)], len(cohort.classes))
    return {name: int(count) for name, count in zip(cohort.classes, has.sum(0), strict=True)}
