"""The card: everything about a model but its weights. Importable without torch."""

from __future__ import annotations

import itertools
import json
import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from napari_msamil.errors import ModelFileError
from napari_msamil.models.configs import ExtractorConfig, Frozen, MsaMilConfig, SegmenterConfig

FORMAT = 1
"""Version of the card and of the file around it; raised when an older program could no longer read a newer file."""

PRESETS = ("default", "literal", "demo", "tiny")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalisation(Frozen):
    """Colour statistics of pixels in 0..1: a net sees `(pixel / 255 - mean) / std`.

    Attributes:
        mean: Of red, green and blue.
        std: Their standard deviations, above 0.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError(f"a standard deviation must be above 0, got {std}")
        return std


Share = Annotated[float, Field(ge=0, le=1)]


class Thresholds(Frozen):
    """Limits of the patch selection.

    Attributes:
        lesion_probability: A thumbnail pixel above it is lesion; 1: nothing is, for want of a trained segmenter.
        lesion_fraction: A patch with more lesion area than this is looked at; one number, or one per scale.
        tissue_fraction: A patch with at least this much tissue area counts as tissue.
    """

    lesion_probability: float = Field(default=0.5, ge=0, le=1)
    lesion_fraction: Share | tuple[Share, ...] = 0.7
    tissue_fraction: float = Field(default=0.5, ge=0, le=1)


class OnEmpty(Frozen):
    """What to do with a slide on which no patch passes the lesion threshold.

    Attributes:
        policy: `topk` takes the k patches with the most lesion area, and all tissue where there is none at all;
            `tissue` takes all tissue at once; `error` refuses.
        k: Number of patches for `topk`.
    """

    policy: Literal["topk", "tissue", "error"] = "topk"
    k: int = Field(default=64, ge=1)


class Card(Frozen):
    """What a model is, what it expects, and where it comes from.

    Attributes:
        format: Version of the file format.
        name: Short name shown to the user.
        preset: The preset it grew from.
        classes: Class names in the order of the logits.
        exclusive: Whether a slide belongs to exactly one class, as in every file that does not say. False: each class
            is there or not by itself, several or none may be, and probabilities need not sum to 1.
        scales_mpp: Working resolutions in µm per pixel, finest first, each a whole multiple of the one before. A patch
            covers `patch_px` pixels of its own resolution, whatever the slide was scanned at.
        patch_px: Side of a patch in pixels, at every scale.
        overlap: Part of a patch's side that its neighbour covers too: 0, 0.5 or 0.75.
        grid: Where lesion and tissue are measured: `level0` on the exact footprint, `mask_round` on the footprint
            rounded to whole pixels of the mask.
        read: `pyramid` reads each scale from the coarsest level that is fine enough, `level0` shrinks level 0 itself.
        thumbnail_px: Side of the square picture of the whole slide that the segmenter sees; a multiple of 32.
        resize: How a slide becomes that square: `stretch` fills it, `letterbox` keeps the proportions and adds glass.
        normalisation: Colour statistics that segmenter and extractor share.
        thresholds: Limits of the patch selection.
        on_empty: Fallback for slides without a lesion patch.
        segmenter: Settings of the UNet++.
        extractor: Settings of encoder and Transformer.
        aggregator: Settings of the multiple-instance method; its `method` names the method.
        features: Of an aggregator alone, which was trained on features made elsewhere: how wide they are and where they
            came from. It has no segmenter and no extractor, whatever is said of them here, and classifies no slide.
        temperature: Divides the logits before they become probabilities: one number, or one for each class; above 0.
            1 in every file that does not say.
        cpu_precision: `bf16` once the extractor was shown to give the same probabilities in it; CPUs that compute it
            natively are then 1.6 times faster.
        lesion_label: What the lesion mask shows, e.g. "neoplastic glands".
        dataset: Data the weights were trained on.
        attribution: Credit the data's licence asks for.
        licence: Licence of the weights.
        command: Command that made the file.
        figures: Measured results, e.g. `{"auc": 0.93}`.
        intended_use: What it is for, and what not.
        created: Date in ISO form, or empty.
    """

    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    name: str = Field(min_length=1)
    preset: str = "default"
    classes: tuple[str, ...]
    exclusive: bool = True
    scales_mpp: tuple[float, ...] = (0.5, 1.0, 2.0)
    patch_px: int = Field(default=512, ge=8)
    overlap: float = 0.0
    grid: Literal["level0", "mask_round"] = "level0"
    read: Literal["pyramid", "level0"] = "pyramid"
    thumbnail_px: int = Field(default=1024, ge=32)
    resize: Literal["stretch", "letterbox"] = "stretch"
    normalisation: Normalisation = Normalisation()
    thresholds: Thresholds = Thresholds()
    on_empty: OnEmpty = OnEmpty()
    segmenter: SegmenterConfig = SegmenterConfig()
    extractor: ExtractorConfig = ExtractorConfig()
    aggregator: MsaMilConfig = MsaMilConfig()
    features: str = ""
    temperature: float | tuple[float, ...] = 1.0
    cpu_precision: Literal["fp32", "bf16"] = "fp32"
    lesion_label: str = "lesion"
    dataset: str = ""
    attribution: str = ""
    licence: str = ""
    command: str = ""
    figures: dict[str, Any] = Field(default_factory=dict)
    intended_use: str = "Research use only. Not for diagnosis."
    created: str = ""

    @property
    def method(self) -> str:
        """Name of the multiple-instance method, e.g. "msamil"."""
        return self.aggregator.method

    @property
    def finds_lesion(self) -> bool:
        """Whether there is a trained segmenter: one that learned from no mask is never surer than certain."""
        return self.thresholds.lesion_probability < 1

    @field_validator("classes")
    @classmethod
    def _distinct_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) < 2:
            raise ValueError(f"a classifier needs at least two classes, got {list(classes)}")
        if any(not name.strip() for name in classes):
            raise ValueError(f"a class name is empty: {list(classes)}")
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"class names must differ, but {', '.join(map(repr, twice))} stands there twice")
        return classes

    @field_validator("scales_mpp")
    @classmethod
    def _nested_scales(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if not scales or not all(math.isfinite(mpp) and mpp > 0 for mpp in scales):
            raise ValueError(f"scales are one or more µm per pixel above 0, got {list(scales)}")
        for fine, coarse in itertools.pairwise(scales):
            ratio = coarse / fine
            if round(ratio) < 2 or abs(ratio - round(ratio)) > 1e-6:
                raise ValueError(
                    f"each scale must be a whole multiple of the finer one before it, "
                    f"but {coarse:g} / {fine:g} = {ratio:g} in {list(scales)}"
                )
        return scales

    @field_validator("temperature")
    @classmethod
    def _above_zero(cls, temperature: float | tuple[float, ...]) -> float | tuple[float, ...]:
        for number in temperature if isinstance(temperature, tuple) else (temperature,):
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"a temperature is a finite number above 0, got {number:g}")
        return temperature

    @field_validator("overlap")
    @classmethod
    def _whole_steps(cls, overlap: float) -> float:
        if overlap not in (0, 0.5, 0.75):
            raise ValueError(f"patches cannot overlap by {overlap:g} of their side: use 0, 0.5 or 0.75")
        return overlap

    @field_validator("thumbnail_px")
    @classmethod
    def _thumbnail_fits(cls, px: int) -> int:
        if px % 32:
            raise ValueError(f"{px} is not a multiple of 32, which the segmenter's five halvings need")
        return px

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.extractor.out_dim != self.aggregator.dim:
            raise ValueError(
                f"the extractor gives {self.extractor.out_dim} numbers per patch, the aggregator takes "
                f"{self.aggregator.dim}: make extractor.out_dim and aggregator.dim equal"
            )
        if self.overlap and getattr(self.aggregator, "order", "") == "quadtree_post":
            raise ValueError("the order quadtree_post needs patches side by side: set overlap to 0, or another order")
        if isinstance(self.temperature, tuple) and len(self.temperature) != len(self.classes):
            raise ValueError(
                f"{len(self.temperature)} temperatures for {len(self.classes)} classes: give one, or one each"
            )
        limits = self.thresholds.lesion_fraction
        if isinstance(limits, tuple) and len(limits) != len(self.scales_mpp):
            raise ValueError(
                f"thresholds.lesion_fraction has {len(limits)} numbers for {len(self.scales_mpp)} scales: give one for "
                "all, or one per scale"
            )
        try:
            json.dumps(self.figures, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"figures must be plain finite JSON values: {error}") from error
        return self

    def to_json(self) -> str:
        """The card as one JSON object; what goes without saying, since files say nothing of it, is left out."""
        usual = {"exclusive": True, "temperature": 1.0}
        return self.model_dump_json(exclude={name for name, value in usual.items() if getattr(self, name) == value})

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Card:
        """Reads a card back.

        Args:
            text: What `to_json` gave.
            source: Where it stood, for messages.

        Raises:
            ModelFileError: It is no card, it contradicts itself, or it was written by a newer version.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{source}: its card is not readable JSON ({error}). Get the file again.") from error
        version = data.get("format") if isinstance(data, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise ModelFileError(
                f"{source} has format version {version}, this napari-msamil reads up to {FORMAT}. "
                "Update napari-msamil to use it."
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ModelFileError(f"{source}: its card is not valid ({explain(error)}).") from error


def explain(error: ValidationError, *, under: str = "") -> str:
    """One line that names each wrong setting, after where it stands, what is wrong with it, and the value given."""
    parts = []
    for item in error.errors(include_url=False):
        where = under + ".".join(str(key) for key in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            what = "there is no such setting"
        elif item["type"] == "tuple_type":
            what = f"a list in brackets is needed, got {item['input']!r}"
        elif item["type"] != "value_error":  # our own sentences name the value themselves
            given = repr(item["input"])
            what += f", got {given if len(given) < 60 else given[:56] + ' ...'}"
        parts.append(f"{where}: {what}" if item["loc"] else what)
    return "; ".join(parts)


_DEMO: dict[str, Any] = {
    "scales_mpp": (1.0, 2.0, 4.0),
    "patch_px": 224,
    "segmenter": SegmenterConfig(encoder="tu-mobilenetv3_small_100", decoder_channels=(64, 48, 32, 24, 16)),
    "extractor": ExtractorConfig(encoder="mobilenetv3_small_100", out_dim=256, proj="pre", heads=4, hidden=512),
    "aggregator": MsaMilConfig(dim=256, heads=4, rank=16, hidden=512),
}
_TINY: dict[str, Any] = {
    "scales_mpp": (1.0, 2.0, 4.0),
    "patch_px": 64,
    "thumbnail_px": 256,
    "segmenter": SegmenterConfig(encoder="tu-test_efficientnet", decoder_channels=(16, 16, 8, 8, 8)),
    "extractor": ExtractorConfig(encoder="test_efficientnet", out_dim=32, proj="pre", heads=4, hidden=64),
    "aggregator": MsaMilConfig(dim=32, heads=4, rank=4, hidden=64),
}
_LITERAL: dict[str, Any] = {
    "extractor": ExtractorConfig(final_norm=False),
    "aggregator": MsaMilConfig(heads=1, rank=64),
}
_CHANGES: dict[str, dict[str, Any]] = {"default": {}, "literal": _LITERAL, "demo": _DEMO, "tiny": _TINY}


def preset_card(preset: str, *, classes: tuple[str, ...] | list[str], **changes: Any) -> Card:
    """Card of a fresh model.

    Args:
        preset: `default` (multi-head, EfficientNet-B3, 512 px at 0.5, 1 and 2 µm/px), `literal` (the aggregator's
            equations as printed: one head of rank 64), `demo` (small, for a CPU: MobileNetV3-small, 224 px at
            1, 2 and 4 µm/px), or `tiny` (milliseconds; to try whether everything fits together).
        classes: Class names in the order of the logits.
        **changes: Any other field of `Card`, replacing the preset's.

    Raises:
        ValueError: The preset does not exist, or a field is not valid (pydantic's ValidationError is one).
    """
    if preset not in _CHANGES:
        raise ValueError(f"no preset {preset!r}: choose one of {', '.join(PRESETS)}")
    fields = {"name": f"msamil-{preset}", "preset": preset, "classes": tuple(classes)} | _CHANGES[preset] | changes
    return Card(**fields)
