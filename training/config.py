"""What a training run does: presets, a TOML file, single settings; every fault in one sentence before any work.

The defaults below are those of MsaMIL-Net where the paper states them and ours where it does not.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError, field_validator, model_validator

from napari_msamil.errors import MsamilError
from napari_msamil.models.card import Card, explain, preset_card
from napari_msamil.models.configs import Frozen

_PRESET = re.compile(r"train-[a-z-]+\.toml").fullmatch
FROM_THE_RUN = (
    "classes",
    "exclusive",
    "preset",
    "format",
    "features",
    "temperature",
    "figures",
    "command",
    "created",
    "dataset",
    "cpu_precision",
)
"""Fields of a model's card that nobody sets: a run fills them in."""


class ConfigError(MsamilError):
    """A preset, a settings file or a setting on the command line cannot be used."""


class Segment(Frozen):
    """Stage "segment": UNet++ on thumbnails.

    Attributes:
        epochs: Passes over the slides whose lesion is known.
        learning_rate: Peak rate of AdamW.
        batch: Thumbnails a step.
        crop_px: Side of the piece of a thumbnail that is learned from; 0 is the whole.
        patience: Epochs without a better validation IoU after which the stage ends; 0 never.
    """

    epochs: int = Field(default=50, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    batch: int = Field(default=4, ge=1)
    crop_px: int = Field(default=0, ge=0, multiple_of=32)
    patience: int = Field(default=10, ge=0)


class Pretrain(Frozen):
    """Stage "pretrain": the extractor learns from single patches which share of them is lesion.

    Ours, not the paper's, which starts from ImageNet weights: to random ones, some hundred slide labels teach nothing.

    Attributes:
        steps: Optimiser steps; 0 leaves the stage out.
        batch: Patches a step, two of each slide, drawn as end_to_end.sample says.
        crop_px: Side of the piece of a patch that is learned from; 0 is the whole.
        learning_rate: Peak rate of AdamW.
        weight_decay: Of AdamW.
        labels: Learn from each patch the label of its slide too, as if it were its own; for cohorts in which most
            patches of a slide show what it is labelled for.
    """

    steps: int = Field(default=0, ge=0)
    batch: int = Field(default=48, ge=1)
    crop_px: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    labels: bool = False


class EndToEnd(Frozen):
    """Stage "end-to-end": extractor and aggregator together.

    Attributes:
        epochs: Passes over the training slides; 0 leaves the stage out: the extractor stays as pretrain or the
            segmenter leaves it, and stage mil trains a new aggregator on its features.
        patches: Patches of a slide that a step draws, B; the memory of a step does not depend on it.
        sample: `uniform` draws evenly from the tissue patches of all scales, `quota` the same number of each scale.
        chunk: Patches that are held with their graph at a time; the memory of a step depends on it.
        accum: Slides whose gradients are added up before a step.
        start: What the extractor's encoder starts from, in stage pretrain where there is one: `segmenter` takes the
            encoder of the lesion segmenter, `random` random weights, `imagenet` those that timm downloads.
        freeze: Train the aggregator alone on an extractor that stays as it starts.
        lr_mil: Peak rate of the aggregator.
        lr_encoder: Peak rate of the extractor.
        weight_decay: Of AdamW.
        bn: `frozen` uses the running statistics of batch norm and leaves them alone, which makes the two-pass gradient
            exact; `train` updates them, chunk by chunk, and holds the graph of all patches of a slide at once.
        label_smoothing: Of the cross-entropy.
        precision: `auto` is bf16 where the device has such arithmetic, `fp32` never: on CPUs it trains a small encoder
            faster (a third, MobileNetV3-small at 224 px), a large one slower (EfficientNet-B3 at 512 px).
        patience: Epochs without a better validation AUC after which the stage ends; 0 never.
    """

    epochs: int = Field(default=50, ge=0)
    patches: int = Field(default=200, ge=1)
    sample: Literal["uniform", "quota"] = "uniform"
    chunk: int = Field(default=4, ge=1)
    accum: int = Field(default=4, ge=1)
    start: Literal["segmenter", "random", "imagenet"] = "segmenter"
    freeze: bool = False
    lr_mil: float = Field(default=1e-4, gt=0)
    lr_encoder: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    bn: Literal["frozen", "train"] = "frozen"
    precision: Literal["auto", "fp32"] = "auto"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    patience: int = Field(default=10, ge=0)


class Mil(Frozen):
    """Stage "mil": the aggregator alone on whole bags of lesion patches.

    Attributes:
        epochs: Passes over the training slides.
        batch: Slides a step.
        learning_rate: Peak rate of AdamW.
        weight_decay: Of AdamW.
        stage2_init: `continue` goes on from the end-to-end aggregator, `new` begins with random weights.
        label_smoothing: Of the cross-entropy.
        patience: Epochs without a better validation AUC after which the stage ends; 0 never.
        features: Folder of .h5 features that CLAM or TRIDENT made, or one folder per scale of `model.scales_mpp`, to
            learn from instead of slides: a run then has the stages mil and evaluate, and no pixel is read. The width
            of the aggregator is that of the features.
    """

    epochs: int = Field(default=50, ge=1)
    batch: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    stage2_init: Literal["continue", "new"] = "continue"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    patience: int = Field(default=10, ge=0)
    features: tuple[Path, ...] | None = Field(default=None, min_length=1)

    @field_validator("features", mode="before")
    @classmethod
    def _one_folder(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given


class Evaluate(Frozen):
    """Stage "evaluate": the test part, read once.

    Attributes:
        auc: How the classes' one-against-the-rest AUCs become one: mean, or mean weighted by their slides.
        bootstrap: Resamplings of the patients for the intervals.
        selection: Which choices of patches are compared: the paper's Table 1.
        random: Patches of a slide that the choice `random` draws.
    """

    auc: Literal["macro", "weighted"] = "macro"
    bootstrap: int = Field(default=1000, ge=100)
    selection: tuple[Literal["lesion", "all", "random"], ...] = ("lesion", "random", "all")
    random: int = Field(default=3000, ge=1)

    @model_validator(mode="after")
    def _has_lesion(self) -> "Evaluate":
        if "lesion" not in self.selection or len(set(self.selection)) < len(self.selection):
            raise ValueError(f"selection holds 'lesion', and each choice once, not {list(self.selection)}")
        return self


class Machine(Frozen):
    """Where a run computes; the only settings that may change when it is resumed.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        workers: Processes that read patches; 0 reads in a thread.
        skip_bad_slides: Leave out a slide that cannot be read, and say so, instead of stopping. To know that from the
            start, all patches that a stage may come to are read once, some 500 of 512 px per CPU-second; those of the
            test part when it is tested.
        tensorboard: Write TensorBoard files too.
        folds: Folds that this command works on; empty is all of the run's. Several commands, each on its own folds,
            may share a run's folder at the same time; whichever ends last writes the report.
        reuse: Folder of another run, whose finished stages are taken over as long as they learned from the same slides
            with the same settings.
    """

    device: str = "auto"
    workers: int = Field(default=0, ge=0)
    skip_bad_slides: bool = False
    tensorboard: bool = False
    folds: tuple[int, ...] = ()
    reuse: Path | None = None


class Config(Frozen):
    """All settings of a run.

    Attributes:
        preset: The network: one of the model presets.
        model: Fields of the model's card that differ from the preset's.
        weights: Where the segmenter's encoder starts: random weights, or ImageNet's, which timm downloads.
        seed: Of everything random.
        folds: Folds that are drawn where the table of slides has none.
        run_folds: Numbers of the folds that are trained and tested; empty is all.
        validation: About which share of the slides that are not tested is held out for choosing.
        augment: Change colour, sharpness and orientation of what is learned from.
        segment, pretrain, end_to_end, mil, evaluate: The stages.
        machine: Where it computes.
    """

    preset: str = "default"
    model: dict[str, Any] = Field(default_factory=dict)
    weights: Literal["random", "imagenet"] = "random"
    seed: int = Field(default=0, ge=0)
    folds: int = Field(default=5, ge=2)
    run_folds: tuple[int, ...] = ()
    validation: float = Field(default=0.2, gt=0, lt=1)
    augment: bool = True
    segment: Segment = Segment()
    pretrain: Pretrain = Pretrain()
    end_to_end: EndToEnd = EndToEnd()
    mil: Mil = Mil()
    evaluate: Evaluate = Evaluate()
    machine: Machine = Machine()

    @model_validator(mode="after")
    def _parts_fit(self) -> "Config":
        given = [name for name in FROM_THE_RUN if name in self.model]
        if given:
            raise ValueError(f"model.{given[0]} follows from the run and cannot be set")
        try:
            card = self.card(("a", "b"))
        except ValidationError as error:
            raise ValueError(explain(error, under="model.")) from error
        if self.pretrain.crop_px > card.patch_px:
            raise ValueError(f"pretrain.crop_px is {self.pretrain.crop_px}, but a patch has {card.patch_px} px")
        if self.end_to_end.start == "segmenter":
            shared = card.segmenter.encoder.removeprefix("tu-")
            if shared != card.extractor.encoder:
                raise ValueError(
                    f"end_to_end.start is 'segmenter', but the segmenter's encoder is {card.segmenter.encoder!r} and "
                    f"the extractor's {card.extractor.encoder!r}: make them the same, or start from 'random' or "
                    "'imagenet'"
                )
        folders = self.mil.features
        if folders and len(folders) != len(card.scales_mpp):
            raise ValueError(
                f"mil.features names {len(folders)} folder{'s' if len(folders) > 1 else ''}, but the model has "
                f"{len(card.scales_mpp)} scales: give one folder per scale, finest first, or say at which µm per pixel "
                f"the features were made, for example 'model.scales_mpp=[0.5]' for one folder of 20x"
            )
        if self.segment.crop_px > card.thumbnail_px:
            raise ValueError(f"segment.crop_px {self.segment.crop_px} is larger than thumbnail_px {card.thumbnail_px}")
        return self

    def card(self, classes: Sequence[str], *, exclusive: bool = True) -> Card:
        """The card of the untrained model."""
        preset = preset_card(self.preset, classes=tuple(classes), exclusive=exclusive)
        return Card.model_validate(_merged(preset.model_dump(), self.model))

    def to_toml(self) -> str:
        """All settings as TOML, to be read back by `read_config`."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def fixed(self) -> dict[str, Any]:
        """What may not change when a run is resumed, as plain values; the model's whether they were given or not."""
        card = self.card(("a", "b")).model_dump(mode="json", exclude=set(FROM_THE_RUN))
        return self.model_dump(mode="json", exclude={"machine"}, exclude_none=True) | {"model": card}


def read_config(preset: str, settings: Sequence[str] = ()) -> Config:
    """Settings of a run.

    Args:
        preset: Name of a preset, as of the files train-NAME.toml in resources, or a TOML file.
        settings: "key=value" each, the key with dots ("end_to_end.patches=2000"), the value as in TOML.

    Raises:
        ConfigError: Names each unknown key, wrong type and impossible combination.
    """
    content = _read_toml(preset)
    for setting in settings:
        _put(content, setting)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        unknown = any(fault["type"] == "extra_forbidden" for fault in error.errors())
        known = content.get("preset", "default") if preset.endswith(".toml") else preset  # the file would fail again
        where = f" `msamil settings {known}` prints all there are." if unknown else ""
        raise ConfigError(f"{preset}: these settings cannot be used: {explain(error)}.{where}") from error
    except ValueError as error:
        raise ConfigError(f"{preset}: these settings cannot be used: {error}.") from error


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables of which the second overrules the first, value by value."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def _read_toml(preset: str) -> dict[str, Any]:
    shipped = {file.name[6:-5]: file for file in files("napari_msamil.resources").iterdir() if _PRESET(file.name)}
    if preset in shipped:
        text = shipped[preset].read_text(encoding="utf-8")
    else:
        path = Path(preset)
        if path.suffix != ".toml":
            names = ", ".join(sorted(shipped))
            raise ConfigError(f"There is no preset {preset!r}: use {names}, or a file that ends in .toml.")
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}): check the path.") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not TOML: it is not in UTF-8.") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{preset} is not TOML: {error}.") from error


def _put(content: dict[str, Any], setting: str) -> None:
    """Put one "key=value" into nested tables."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{setting!r} is no setting: write key=value, for example end_to_end.patches=2000.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a text: quotation marks rarely survive a shell
    if isinstance(value, date | time):
        value = text.strip()  # no setting is one, but a folder may be called by its day
    *tables, last = key.strip().split(".")
    for name in tables:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{key}: {name} is one value and no table of settings.")
    content[last] = value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, under: str = "") -> list[str]:
    """What is not the same in two nested tables of plain values, one sentence part each."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, under=f"{under}{key}.")
        elif before != now:
            found.append(f"{under}{key} was {before} and is now {now}")
    return found
