"""The stages of one fold, in their order; each goes on where it stood, and leaves its best weights in the model."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, astuple
from typing import Any

import numpy as np
from torch import nn

from napari_msamil.files import copy_atomically
from napari_msamil.models.model import Model, build_model

from .checkpoint import CheckpointError, digest_of, load_checkpoint, put_back
from .distributed import rank, wait_for_all
from .draws import PatchDraws, PatchesWithLesion, PatchStream, ThumbnailDraws
from .end_to_end import train_end_to_end
from .features import StoredBags, extract_bags
from .feed import Ahead
from .folds import Parts
from .loop import Plan, State
from .mil import train_aggregator
from .networks import start_from_imagenet, start_from_segmenter
from .plans import plan_of
from .pretrain import pretrain_extractor
from .run import RESULT, Run, RunError
from .segmentation import lesion_overlaps, sum_overlaps, train_segmenter
from .slides import SlideStore

STAGES = ("segment", "pretrain", "end-to-end", "extract", "mil", "evaluate")
_SCORES = {"segment": "lesion IoU", "pretrain": "negative cross-entropy"}  # of the others it is the validation AUC
THUMBNAILS = "thumbnails"
_log = logging.getLogger(__name__)


def stages_of(run: Run) -> tuple[str, ...]:
    """The stages that a run has: those that look at pixels fall away where features are given."""
    if run.features:
        return STAGES[STAGES.index("mil") :]
    left_out = {"pretrain": not run.config.pretrain.steps, "end-to-end": not run.config.end_to_end.epochs}
    return tuple(stage for stage in STAGES if not left_out.get(stage))


class Fold:
    """Training on one fold. It knows the rows of its test part and never looks at their pixels; `evaluate` does."""

    def __init__(self, run: Run, number: int, parts: Parts) -> None:
        """Build the model with the random weights of the run's seed."""
        self.run = run
        self.number = number
        self.folder = run.fold_folder(number)
        self.parts = parts
        self.targets = run.cohort.targets()
        self.model: Model = build_model(run.card, seed=run.config.seed).to(run.device.name)
        self.seconds: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self._taken_over: dict[str, str] = {}  # by stage: hash of its best weights
        self._store = SlideStore(run.cohort.slides, run.card, run.folder / THUMBNAILS)
        self._usable: list[int] | None = None
        self._start_from_imagenet()

    def take_over(self, stages: Sequence[str]) -> None:
        """Put the best weights of stages that are over into the model."""
        for stage in stages:
            self._reuse(stage)
            self._take_over(stage)

    def run_stage(self, stage: str) -> None:
        """Run a stage, or go on with it; those before it must be over."""
        stages = stages_of(self.run)
        if stage not in stages:
            amount = "pretrain.steps" if stage == "pretrain" else "end_to_end.epochs"
            why = "needs the pixels of slides" if self.run.features else f"is left out, for {amount} is 0"
            raise RunError(f"Stage {stage} {why}: with these settings there are {', '.join(stages)}, or all.")
        file = self.folder / f"{stage}.pt"
        if stage in ("end-to-end", "mil") and self.run.tested(self.number) and not file.exists():
            raise RunError(
                f"Fold {self.number} was tested, and {file} is gone: delete {RESULT} beside it to train and test anew."
            )
        self.take_over(stages[: stages.index(stage)])
        self._reuse(stage)
        began = time.monotonic()
        begin = {
            "segment": self._segment,
            "pretrain": self._pretrain,
            "end-to-end": self._end_to_end,
            "extract": self._extract,
            "mil": self._mil,
        }
        begin[stage]()
        _log.info("fold %d: %s took %.0f s", self.number, stage, time.monotonic() - began)

    def _start_from_imagenet(self) -> None:
        card, config = self.run.card, self.run.config
        if self.run.features:
            return  # neither network is there
        if config.weights == "imagenet":
            start_from_imagenet((self.model.segmenter.net.encoder, card.segmenter.encoder))
        if config.end_to_end.start == "imagenet":
            start_from_imagenet((self.model.extractor.encoder, card.extractor.encoder))

    # ---- what the stages learn from

    def training(self) -> list[int]:
        """Rows that are learned from."""
        return [row for row in self.parts.training.tolist() if row in self._good()]

    def held(self) -> list[int]:
        """Rows that weights are chosen by."""
        return [row for row in self.parts.validation.tolist() if row in self._good()]

    def tested(self) -> list[int]:
        """Rows that the weights are tested on. Where bad slides are left out this reads them: only `evaluate` asks."""
        rows: list[int] = self.parts.test.tolist()
        if self.run.features:
            return rows
        if not self.run.config.machine.skip_bad_slides:
            self._store.refuse_changed(rows)
            return rows
        good = self._store.prepare(rows, skip_bad=True)
        if not good:
            raise RunError(f"Fold {self.number} has no test slide that can be read.")
        return good

    def left_out(self, tested: Sequence[int]) -> set[int]:
        """Rows of the fold that are not used, given those that are tested."""
        return {*np.concatenate(astuple(self.parts)).tolist()} - {*self.training(), *self.held(), *tested}

    def _good(self) -> list[int]:
        if self._usable is None:
            rows = [*self.parts.training.tolist(), *self.parts.validation.tolist()]
            if self.run.features:
                return rows
            self._usable = self._store.prepare(rows, skip_bad=self.run.config.machine.skip_bad_slides)
            for part in ("training", "validation"):
                if not set(getattr(self.parts, part).tolist()) & set(self._usable):
                    raise RunError(f"Fold {self.number} has no {part} slide that can be read.")
        return self._usable

    # ---- stages

    def _segment(self) -> None:
        known, held = (self.run.cohort.rows_with_lesion(rows) for rows in (self.training(), self.held()))
        if not known:
            _log.warning("fold %d: no training slide has a known lesion; stage segment is left out", self.number)
            return
        if not self.run.cohort.has_lesion(held):  # weights that find nothing would be the best
            raise RunError(
                f"Fold {self.number} has no validation slide with a marked lesion to choose the segmenter by."
            )
        draws = ThumbnailDraws(self._store, self.run.config, known)
        with closing(Ahead(draws, self._steps_from("segment"))) as draw:
            state = train_segmenter(
                self.model,
                draw,
                lambda: [self._store.square(row) for row in held],
                bf16=self.run.bf16,
                **self._how("segment"),
            )
        self._note("segment", state, _SCORES["segment"])

    def _pretrain(self) -> None:
        known, held = (self.run.cohort.rows_with_lesion(rows) for rows in (self.training(), self.held()))
        if not self._pretrains():
            _log.warning("fold %d: no training slide has a known lesion; stage pretrain is left out", self.number)
            return
        draws = PatchesWithLesion(self._store, self.run.config, self.targets, known, held)
        bf16 = self.run.bf16 and self.run.config.end_to_end.precision == "auto"
        with closing(Ahead(draws, self._steps_from("pretrain"))) as draw:
            labels = self.run.config.pretrain.labels
            state = pretrain_extractor(self.model, draw, draws.held, labels=labels, bf16=bf16, **self._how("pretrain"))
        self._note("pretrain", state, _SCORES["pretrain"])

    def _pretrains(self) -> bool:
        """Whether the extractor learns from lesions first; stage segment has seen to it that these can be validated."""
        return self.run.config.pretrain.steps > 0 and bool(self.run.cohort.rows_with_lesion(self.training()))

    def _end_to_end(self) -> None:
        settings = self.run.config.end_to_end
        draws = PatchDraws(self._store, self.run.config, self.targets, self.training(), self.held())
        one_pass = settings.freeze or settings.bn == "train"
        stream = PatchStream(draws, passes=1 if one_pass else 2, workers=self.run.config.machine.workers)
        with closing(stream):
            state = train_end_to_end(
                self.model,
                stream.draw,
                stream.held,
                slides=settings.accum,
                encoder_rate=settings.lr_encoder / settings.lr_mil,
                freeze=settings.freeze,
                bn_trains=settings.bn == "train",
                label_smoothing=settings.label_smoothing,
                bf16=self.run.bf16 and settings.precision == "auto",
                **self._how("end-to-end"),
            )
        self._note("end-to-end", state, "validation AUC")

    def _extract(self) -> None:
        self.bags([*self.training(), *self.held()])

    def bags(self, rows: Sequence[int]) -> StoredBags:
        """Bags of lesion patches of some slides, or of all patches whose features were given."""
        if self.run.features:
            return self.run.features.bags_of([self.run.cohort.slides[row] for row in rows])
        self.model.eval()
        return extract_bags(
            self.model,
            self.run.cohort.slides,
            rows,
            self.folder / "bags",
            device=self.run.device,
            seed=self.run.config.seed,
        )

    def _mil(self) -> None:
        settings, training, held = self.run.config.mil, self.training(), self.held()
        if settings.stage2_init == "new":
            fresh = build_model(self.run.card, seed=self.run.config.seed + 1)
            self.model.aggregator.load_state_dict(fresh.aggregator.state_dict())
        state = train_aggregator(
            self.model,
            self.bags(training),
            self.targets[training],
            self.bags(held),
            self.targets[held],
            batch=settings.batch,
            label_smoothing=settings.label_smoothing,
            **self._how("mil"),
        )
        self._note("mil", state, "validation AUC")

    # ---- what stands between the stages

    def _how(self, stage: str) -> dict[str, Any]:
        """What every training is told."""
        return {
            "plan": self._plan(stage),
            "folder": self.folder,
            "resume": True,
            "tensorboard": self.run.config.machine.tensorboard,
        }

    def _plan(self, stage: str) -> Plan:
        """Of a stage that trains, once those before it are taken over."""
        before = [self._taken_over[name] for name in STAGES[: STAGES.index(stage)] if name in self._taken_over]
        return plan_of(stage, self.run, self.training(), self.held(), before)

    def _steps_from(self, stage: str) -> Callable[[int], range]:
        steps = self._plan(stage).steps
        return lambda first: range(first, steps)

    def _take_over(self, stage: str) -> None:
        """Put the best weights of a stage that is over into the model."""
        modules: dict[str, nn.Module] = {"aggregator": self.model.aggregator}
        if stage == "segment":
            self._take_over_segmenter()
            return
        elif stage == "pretrain":
            if not self._pretrains():
                return
            modules = {"extractor": self.model.extractor}
        elif stage == "end-to-end" and not self.run.config.end_to_end.freeze:
            modules["extractor"] = self.model.extractor
        elif stage == "extract":
            return  # bags are made where they are missing
        self._take_over_best(stage, modules)

    def _take_over_segmenter(self) -> None:
        """Also by the extractor, if that is wanted; stages that train it go on from there."""
        if self.run.cohort.rows_with_lesion(self.training()):
            self._take_over_best("segment", {"segmenter": self.model.segmenter})
        if self.run.config.end_to_end.start == "segmenter":
            start_from_segmenter(self.model)

    def _take_over_best(self, stage: str, modules: dict[str, nn.Module]) -> None:
        plan = self._plan(stage)
        state = self._best_of(plan, modules)
        if state is None or not state.over(plan):
            raise RunError(
                f"Stage {stage} of fold {self.number} is not over: run `msamil train {stage}` with the same --out "
                "first, or `msamil train all`."
            )
        self._note(stage, state, _SCORES.get(stage, "validation AUC"))

    def _best_of(self, plan: Plan, modules: dict[str, nn.Module]) -> State | None:
        file = self.folder / f"{plan.name}.pt"
        if not file.exists():
            return None
        found, best = load_checkpoint(file, asdict(plan), modules, None)
        put_back(modules, best)
        self._taken_over[plan.name] = digest_of(best)
        return State.of(found)

    def _reuse(self, stage: str) -> None:
        """Copy the checkpoint of a stage that another run went through with the same settings and slides."""
        source, own = self.run.config.machine.reuse, self.folder / f"{stage}.pt"
        if source is None or stage == "extract":
            return
        other = source / self.folder.name / own.name
        plan = self._plan(stage)  # in all processes: they look at the slides together
        if rank() == 0 and other.exists() and not own.exists():
            try:
                state, _ = load_checkpoint(other, asdict(plan), {}, None)
            except CheckpointError as error:
                why = str(error).partition("cannot be resumed: ")[2].partition(". ")[0] or str(error)
                _log.info("fold %d: %s is made anew, not taken over: %s", self.number, stage, why)
            else:
                kept = SlideStore(self.run.cohort.slides, self.run.card, source / THUMBNAILS)
                changed = list(filter(None, map(kept.changed, [*self.training(), *self.held()])))
                if changed:
                    raise RunError(
                        f"machine.reuse is {source}, a run of other slides: the file of {changed[0]} changed since "
                        f"({len(changed)} in all). Leave machine.reuse out."
                    )
                if State.of(state).over(plan):
                    copy_atomically(other, own)
                    _log.info("fold %d: %s is taken over from %s", self.number, stage, source)
        wait_for_all()

    def _note(self, stage: str, state: State, what: str) -> None:
        self.seconds[stage] = round(state.seconds, 1)
        self.scores[f"{stage}: {what}"] = round(state.best_score, 4)

    def segment_figures(self) -> dict[str, float] | None:
        """Validation IoU and Dice of the lesion mask, and of the mask that holds every pixel; None without masks."""
        held = self.run.cohort.rows_with_lesion(self.held())
        if not held or "segment" not in self.seconds:
            return None
        thumbnails = [self._store.square(row) for row in held]
        found = sum_overlaps(lesion_overlaps(self.model, thumbnails))
        everything = sum_overlaps(lesion_overlaps(self.model, thumbnails, everything=True))
        return {
            "iou": found.iou,
            "dice": found.dice,
            "everything_iou": everything.iou,
            "everything_dice": everything.dice,
        }
