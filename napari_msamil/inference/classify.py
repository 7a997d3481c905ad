"""Algorithm 1 of MsaMIL-Net, from a slide and a model to a Prediction, as a generator that tells how far it is.

Thumbnail → lesion mask → patches at every scale with enough lesion → extractor → aggregator → probabilities and
attention. The command line and the plugin run this very generator, so their numbers agree.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.errors import MissingMppError, MsamilError, NotFiniteError
from napari_msamil.inference.candidates import candidate_table, choose_patches, region_mask
from napari_msamil.inference.engine import Device, choose_device, tune_allocator
from napari_msamil.inference.geojson import Polygon, polygon_mask, read_polygons
from napari_msamil.inference.prediction import Prediction, iso_time
from napari_msamil.patches.grid import PatchTable
from napari_msamil.patches.select import Selection
from napari_msamil.patches.tissue import is_grey
from napari_msamil.slide.slide import Slide, open_slide

if TYPE_CHECKING:
    from collections.abc import Generator

    import torch
    from numpy.typing import NDArray

    from napari_msamil.models.card import Card
    from napari_msamil.models.model import Model


@dataclass(frozen=True)
class Request:
    """All that decides a classification.

    Attributes:
        slide: slide file.
        model: "demo", a model file, a loaded model, or what `ready_model` made of it for the same device: the last
            saves the most for every slide.
        mpp: µm per level-0 px, one number or (x, y), where the slide does not say, or says it wrongly.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        region: look only inside these polygons (level-0 px); None is the whole slide.
        batch_size: patches per batch; None picks one for the device.
        max_read_errors: share of patches, and of the slide where tissue is looked for, 0..1, that may be unreadable
            before the slide fails.
    """

    slide: Path
    model: str | Path | Model = "demo"
    mpp: float | tuple[float, float] | None = None
    device: str = "auto"
    region: tuple[Polygon, ...] | None = None
    batch_size: int | None = None
    max_read_errors: float = 0.0


@dataclass(frozen=True)
class Progress:
    """How far a classification is: `done` of `total` steps of a stage, and the seconds left where they can be told."""

    stage: str
    done: int
    total: int
    seconds_left: float | None = None


def classify(
    slide: str | Path,
    model: str | Path | Model = "demo",
    *,
    mpp: float | tuple[float, float] | None = None,
    device: str = "auto",
    region: str | Path | tuple[Polygon, ...] | None = None,
    max_read_errors: float = 0.0,
) -> Prediction:
    """Classify one slide: the same as `msamil classify`, without writing anything.

    Args:
        slide: slide file.
        model: "demo", a model file, or a loaded model, which saves loading it for every slide.
        mpp: µm per level-0 px, one number or (x, y), where the slide does not say, or says it wrongly.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        region: look only there: a GeoJSON file, or polygons in level-0 px; None is the whole slide.
        max_read_errors: share of patches, 0..1, that may be unreadable before the slide fails.

    Returns:
        Probabilities, attention per patch, lesion mask, and every fact needed to repeat it.

    Raises:
        MsamilError: see `classify_steps`; each message says what to do.
    """
    polygons = read_polygons(Path(region)) if isinstance(region, (str, Path)) else region
    steps = classify_steps(Request(Path(slide), model, mpp, device, polygons, max_read_errors=max_read_errors))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            prediction: Prediction = end.value
            return prediction


def classify_steps(request: Request) -> Generator[Progress, None, Prediction]:
    """Classify one slide step by step; closing the generator stops within a batch and leaves nothing behind.

    Yields:
        Progress at the start of each stage and after every batch of patches.

    Returns:
        The Prediction, as the generator's return value.

    Raises:
        SlideError, MissingMppError, ReadError: the slide cannot be used, and why.
        UnreadablePatchesError: more patches cannot be read than the request accepts.
        ModelFileError: the model file cannot be used.
        RegionError: the region does not touch the slide.
        MsamilError: no tissue, or an unusable device.

    References:
        MsaMIL-Net (arXiv 2503.08581), Algorithm 1 and Sec. 3.
    """
    tune_allocator()
    from napari_msamil.inference.features import find_masks, read_damaged_thumbnail

    clock = _Clock()
    yield Progress("open", 0, 1)
    with open_slide(request.slide, request.mpp) as slide:
        file = slide.path.stat()
        if slide.mpp is None:
            raise MissingMppError(f"{slide.mpp_missing} Give the true value.")
        size = (slide.width, slide.height)
        region = region_mask(request.region, size)
        model, device = ready_model(request.model, request.device)
        clock.lap("open")

        yield Progress("lesion mask", 0, 1)
        card = model.card
        thumbnail, unread = read_damaged_thumbnail(slide, card, request.max_read_errors, request.region)
        tissue, lesion = find_masks(thumbnail, slide.background, model, device)
        clock.lap("lesion mask")

        table = candidate_table(size, slide.mpp, card, tissue=tissue, lesion=lesion, region=region)
        selection = choose_patches(table, card)
        if selection.rows.size == 0:
            raise MsamilError(f"{slide.name}: {_nothing(request, card, table, selection)}")
        table = table.take(selection.rows)
        grey = is_grey(thumbnail[tissue | lesion])
        clock.lap("patches")

        features, errors = yield from _extract(slide, model, table, device=device, request=request, clock=clock)
        yield Progress("aggregate", 0, 1)
        probabilities, attention = _aggregate(model, table, features, errors)
        if request.region is not None:
            inside = polygon_mask(request.region, size, lesion.shape)
            lesion, tissue = lesion & inside, tissue & inside
        clock.lap("aggregate")
        return Prediction(
            created=iso_time(time.time()),
            slide_path=Path(request.slide),
            slide_bytes=file.st_size,
            slide_modified=iso_time(file.st_mtime),
            slide_size=size,
            mpp=slide.mpp,
            mpp_source=slide.mpp_source,
            slide_reader=slide.backend,
            model_name=card.name,
            method=card.method,
            preset=card.preset,
            model_sha256=model.sha256 or "",
            classes=tuple(card.classes),
            exclusive=card.exclusive,
            probabilities=probabilities,
            table=table,
            attention=attention,
            read_errors=errors,
            lesion_mask=lesion.astype(np.uint8),
            tissue_mask=tissue.astype(np.uint8),
            lesion_label=card.lesion_label,
            finds_lesion=card.finds_lesion,
            intended_use=card.intended_use,
            fallback=selection.fallback,
            region=request.region,
            notes=slide.warnings + _notes(request, card, table, errors, unread=unread, grey=grey),
            device=device.name,
            device_reason=device.reason,
            precision=device.precision,
            seconds=clock.report(),
            versions=_versions(),
        )


def ready_model(model: str | Path | Model, device: str) -> tuple[Model, Device]:
    """A model as `classify_steps` uses it, and where it will run; given to several requests it is made ready once.

    Args:
        model: As in a `Request`. What this function gave before is returned as it is.
        device: As in a `Request`.

    Raises:
        ModelFileError, MsamilError: The file or the device cannot be used.
    """
    opened = open_model(model)
    chosen = choose_device(device, cpu_precision=opened.card.cpu_precision)
    if opened.folded:
        if opened.device.type != chosen.name.split(":")[0]:
            raise MsamilError(f"This model was made ready for {opened.device}, not for {chosen.name}: give its device.")
        return opened, chosen
    return opened.for_inference(chosen.name, bf16=chosen.name == "cpu" and chosen.precision == "bf16"), chosen


def open_model(model: str | Path | Model, *, aggregator_alone: bool = False) -> Model:
    """Load a model for inference, see `load_model`; a loaded model is returned as it is."""
    tune_allocator()  # before torch starts threads
    from napari_msamil.models.model import Model, load_model

    return model if isinstance(model, Model) else load_model(model, aggregator_alone=aggregator_alone)


def _nothing(request: Request, card: Card, table: PatchTable, selection: Selection) -> str:
    """Why there is no patch to look at, and what helps."""
    smallest = table.scales[0].patch_px * table.scales[0].mpp
    if request.region is None:
        width, height = (side * mpp for side, mpp in zip(table.slide_size, table.slide_mpp, strict=True))
        most = min(width / smallest, 1) * min(height / smallest, 1)  # of a patch, were all of the slide tissue
        if most < card.thresholds.tissue_fraction:
            return (
                f"the slide is too small to classify: it measures {width:.0f} x {height:.0f} µm, the smallest patches "
                f"{smallest:.0f} µm. Check its µm per pixel."
            )
        return (
            f"{selection.fallback}; there is nothing to classify. Check that it shows tissue, in pieces of at least "
            f"{smallest:.0f} µm (the smallest patches), and its µm per pixel."
        )
    return (
        f"the region is too small, or holds too little tissue: {selection.fallback}, and the smallest patches are "
        f"{smallest:.0f} µm wide. Draw it larger, or on tissue."
    )


def _notes(
    request: Request, card: Card, table: PatchTable, errors: dict[int, str], *, unread: float, grey: bool
) -> tuple[str, ...]:
    """What a reader of the result should know about how it came about."""
    notes = []
    if grey:
        notes.append("the picture has no colour: unless the model learned from such pictures, its answer means nothing")
    if not card.finds_lesion:
        notes.append("the model was trained without marked lesions: it looks at all tissue and draws no lesion mask")
    if unread:
        where = "slide" if request.region is None else "region"
        wrong = ", and the lesion mask may be wrong near it" if card.finds_lesion else ""
        notes.append(f"{100 * unread:.1f} % of the {where} could not be read when tissue was looked for{wrong}")
    if errors:
        were = "was" if len(errors) == 1 else "were"
        notes.append(f"{len(errors)} of {len(table)} patches could not be read and {were} left out")
    if request.region is not None:
        notes.append(
            "only the drawn region was looked at: masks and areas end at its border, patches may reach half beyond it"
        )
    return tuple(notes)


def _extract(
    slide: Slide, model: Model, table: PatchTable, *, device: Device, request: Request, clock: _Clock
) -> Generator[Progress, None, tuple[torch.Tensor, dict[int, str]]]:
    """`extract_features`, told as progress."""
    from napari_msamil.inference.features import extract_features

    yield Progress("patches", 0, len(table))
    started = time.perf_counter()
    steps = extract_features(
        slide,
        model,
        table,
        device=device,
        batch_size=request.batch_size,
        max_read_errors=request.max_read_errors,
    )
    with closing(steps):
        while True:
            try:
                done = next(steps)
            except StopIteration as end:
                found: tuple[torch.Tensor, dict[int, str]] = end.value
                return found
            clock.lap("extract")
            left = (time.perf_counter() - started) / done * (len(table) - done)
            yield Progress("patches", done, len(table), left)


def _aggregate(
    model: Model, table: PatchTable, features: torch.Tensor, errors: dict[int, str]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Probabilities (C,) and attention (N,), NaN for rows in `errors`, which the bag leaves out."""
    import torch

    from napari_msamil.inference.features import make_bag
    from napari_msamil.models.logits import probabilities

    kept = np.setdiff1d(np.arange(len(table)), np.fromiter(errors, np.int64, len(errors)))
    bag = make_bag(features[torch.from_numpy(kept)], table.take(kept))
    with torch.inference_mode():
        try:
            output = model.aggregate(bag)
        except NotFiniteError as error:
            raise NotFiniteError(
                f"{error}. Classify in full precision (--device cpu), or train the model again."
            ) from error
    temperature = torch.tensor(model.card.temperature, dtype=torch.float64)
    found = probabilities(output.logits.cpu().double() / temperature, exclusive=model.card.exclusive).numpy()
    attention = np.full(len(table), np.nan, np.float32)
    assert output.attention is not None  # asked for by default
    attention[kept] = output.attention.float().cpu().numpy()
    return found, attention


class _Clock:
    """Adds up wall time by stage; `lap` books the time since the last lap."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def report(self) -> dict[str, float]:
        return {**self._seconds, "total": time.perf_counter() - self._start}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("napari-msamil", "torch", "timm", "numpy", "tiffslide")}
