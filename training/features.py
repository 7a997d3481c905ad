"""Stage "extract": the features of a slide's patches, one bag file per slide, made again only if need be."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from napari_msamil import __version__
from napari_msamil.errors import MissingMppError, MsamilError
from napari_msamil.inference.candidates import candidate_table, choose_patches, read_thumbnail
from napari_msamil.inference.engine import Device
from napari_msamil.inference.features import extract_features, find_masks, make_bag
from napari_msamil.models.bag import Bag, BagError, load_bag, load_provenance, save_bag
from napari_msamil.models.model import Model
from napari_msamil.patches.select import tissue_rows
from napari_msamil.slide.slide import open_slide

from .checkpoint import digest_of
from .cohort import CohortSlide
from .distributed import mine, wait_for_all
from .log import progress
from .slides import identity

Selection = Literal["lesion", "all", "random"]


class StoredBags(Sequence[Bag]):
    """Bags that are read from their files when they are asked for."""

    def __init__(self, files: Sequence[Path], read: Callable[[Path], Bag] = load_bag) -> None:
        """Of these files, in this order, each read by ``read``."""
        self.files = list(files)
        self._read = read

    def __len__(self) -> int:
        """How many."""
        return len(self.files)

    def __getitem__(self, at: Any) -> Any:
        """The bag at a place; bags of a slice stay in their files."""
        return StoredBags(self.files[at], self._read) if isinstance(at, slice) else self._read(self.files[at])

    def __iter__(self) -> Iterator[Bag]:
        """One after the other."""
        return map(self._read, self.files)


def digest(model: Model) -> str:
    """Hash of all that features depend on in a model: its card, and the weights of segmenter and extractor."""
    weights = {"segmenter": model.segmenter.state_dict(), "extractor": model.extractor.state_dict()}
    return hashlib.sha256((model.card.to_json() + digest_of(weights)).encode()).hexdigest()


def extract_bags(
    model: Model,
    slides: Sequence[CohortSlide],
    rows: Sequence[int],
    folder: Path,
    *,
    device: Device,
    selection: Selection = "lesion",
    random: int = 3000,
    seed: int = 0,
) -> StoredBags:
    """Bags of some slides; those that are there already, and were made by the same model of the same file, stay.

    Args:
        model: In evaluation mode, on the device.
        slides: Of the cohort.
        rows: Which of them.
        folder: For the bag files.
        device: Where to compute.
        selection: Patches with enough lesion, as when a slide is classified; or all tissue; or some of all tissue.
        random: How many the selection "random" draws.
        seed: Of that draw.

    Raises:
        MsamilError: Names the slide that cannot be used, and why.
    """
    files = [folder / f"{row:05d}.pt" for row in rows]
    made_by = digest(model)

    def provenance(row: int) -> dict[str, Any]:
        return {
            "program": __version__,
            "readers": _readers(),
            "model": made_by,
            "slide": identity(slides[row].path),
            "mpp": slides[row].mpp,
            "precision": device.precision,
            "selection": [selection, random, seed, row] if selection == "random" else [selection],
        }

    share = mine(list(zip(rows, files, strict=True)))
    todo = [(row, file) for row, file in share if not _is_made_from(file, provenance(row))]
    fast = model.for_inference() if todo else model
    for row, file in progress(todo, f"features ({selection})", "slides"):
        began = time.monotonic()
        bag, facts = bag_of_slide(
            fast, slides[row], device=device, selection=selection, random=random, seed=[seed, 41, row]
        )
        facts["seconds"] = round(time.monotonic() - began, 3)
        save_bag(bag, file, provenance=provenance(row) | facts)
    wait_for_all()
    return StoredBags(files)


def bag_of_slide(
    model: Model,
    one: CohortSlide,
    *,
    device: Device,
    selection: Selection = "lesion",
    random: int = 3000,
    seed: Sequence[int] = (0,),
) -> tuple[Bag, dict[str, Any]]:
    """Algorithm 1 up to the bag, as `classify` does it; see `extract_bags`.

    Returns:
        The bag, and what else there is to say of it: whether the fallback was used, and by what the slide was read.
    """
    try:
        with open_slide(one.path, one.mpp) as slide:
            if slide.mpp is None:
                raise MissingMppError(f"{slide.name} does not say its µm per pixel: fill in its mpp in the table.")
            card = model.card
            tissue, lesion = find_masks(read_thumbnail(slide, card), slide.background, model, device)
            table = candidate_table((slide.width, slide.height), slide.mpp, card, tissue=tissue, lesion=lesion)
            chosen = choose_patches(table, card)
            rows, fallback = chosen.rows, chosen.fallback
            if selection != "lesion":
                rows, fallback = tissue_rows(table, card.thresholds.tissue_fraction), None
            if selection == "random":
                rng = np.random.default_rng(list(seed))
                rows = np.sort(rng.choice(rows, min(random, len(rows)), replace=False))
            if not len(rows):
                raise MsamilError(f"{slide.name} shows no tissue: there is nothing to extract.")
            table = table.take(rows)
            steps = extract_features(slide, model, table, device=device)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    features: torch.Tensor = end.value[0]
                    break
    except MsamilError as error:
        name = one.path.name
        raise type(error)(str(error) if name in str(error) else f"{name}: {error}") from error
    return make_bag(features, table), {"fallback": fallback, "reader": slide.backend}


def _readers() -> dict[str, str]:
    """Versions of what reads slides: the bag of another one is made again, so that no two are mixed."""
    found = {}
    for name in ("tiffslide", "openslide-python"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _is_made_from(file: Path, provenance: dict[str, Any]) -> bool:
    if not file.exists():
        return False
    try:
        found = load_provenance(file)
    except BagError:
        return False
    wanted = json.loads(json.dumps(provenance))
    return all(found.get(key) == value for key, value in wanted.items())
