"""Features made elsewhere: the .h5 files of CLAM and TRIDENT, one per slide and scale, read as bags.

Both hold the datasets `features`, (N, D) or (1, N, D), and `coords`, (N, 2) level-0 px. What the attributes of `coords`
say is used where it stands there: CLAM's `patch_size`, `downsample` and `level_dim`, TRIDENT's `patch_size_level0`,
`level0_width`, `level0_height` and `target_magnification`. Only numbers are read, and only from the file itself.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from napari_msamil.errors import MsamilError, listed
from napari_msamil.models.bag import Bag

from .cohort import CohortSlide
from .distributed import gather, mine, rank
from .features import StoredBags
from .slides import identity

_TOLERANCE = 0.05  # relative, between the scale that a file states and the one that the settings say
_log = logging.getLogger(__name__)


class FeatureError(MsamilError):
    """Features made elsewhere cannot be used; the message names each file and what is wrong with it."""


@dataclass(frozen=True)
class FeatureFolders:
    """Where the features of slides lie: one folder per scale, in each a file per slide, found by the slide's name.

    Attributes:
        folders: Finest scale first.
        scales_mpp: µm per px of each scale.
    """

    folders: tuple[Path, ...]
    scales_mpp: tuple[float, ...]

    def files_of(self, slide: Path) -> list[Path]:
        """The files of a slide, one per scale; they need not be there."""
        return [_file_of(slide, folder) for folder in self.folders]

    def bag_of(self, slide: Path) -> Bag:
        """Features (N, D) float32 of a slide at all scales.

        Where no file says how large the slide is, it is taken to end where its last patch does.

        Raises:
            FeatureError: A file is missing or cannot be used.
        """
        parts = [_read(file, mpp) for file, mpp in zip(self.files_of(slide), self.scales_mpp, strict=True)]
        widths = {part.features.shape[1] for part in parts}
        if len(widths) > 1:
            raise FeatureError(
                f"{slide.stem}: its scales have {' and '.join(map(str, sorted(widths)))} numbers a patch"
            )
        self._check_order(slide, parts)
        sides = [part.side for part in parts if part.side is not None]
        ends = [part.size if part.size is not None else part.end for part in parts]
        return Bag(
            features=torch.from_numpy(np.concatenate([part.features for part in parts])),
            coords=torch.from_numpy(np.concatenate([part.coords for part in parts])),
            scale=torch.from_numpy(np.repeat(np.arange(len(parts)), [len(part.coords) for part in parts])),
            slide_size=(max(1, *(round(end[0]) for end in ends)), max(1, *(round(end[1]) for end in ends))),
            footprint=torch.tensor(sides, dtype=torch.float64) if len(sides) == len(parts) else None,
        )

    def _check_order(self, slide: Path, parts: Sequence["_Part"]) -> None:
        """Refuse a coarser scale whose patches lie closer than a finer one's: its folder stands in another's place."""
        steps = [(part.step, folder) for part, folder in zip(parts, self.folders, strict=True) if part.step is not None]
        for (fine, first), (coarse, second) in pairwise(steps):
            if coarse < fine * (1 - _TOLERANCE):
                raise FeatureError(
                    f"{slide.stem}: its patches in {first} lie {fine} px apart, those in {second} only {coarse}: "
                    "mil.features names the folder of the finest scale first, in the order of model.scales_mpp"
                )

    def bags_of(self, slides: Sequence[CohortSlide]) -> StoredBags:
        """Bags of some slides, read when they are asked for."""
        return StoredBags([slide.path for slide in slides], self.bag_of)

    def look_at(
        self, slides: Sequence[CohortSlide], *, skip_bad: bool = False
    ) -> tuple[list[CohortSlide], int, dict[str, list[Any]]]:
        """Read every file of some slides once, to know all faults before anything is learned from them.

        Args:
            slides: Of the table.
            skip_bad: Leave out slides whose files cannot be used, with a warning for each.

        Returns:
            The slides that can be used, D, and by slide what tells its files from others.

        Raises:
            FeatureError: Names every fault; or h5py is not installed.
        """
        _h5py()
        if missing := [str(folder) for folder in self.folders if not folder.is_dir()]:
            raise FeatureError(f"mil.features names {' and '.join(missing)}, which is no folder: check the path.")
        shared = _named_alike(self, slides)
        bar = tqdm(mine(slides), desc="features", unit="slide", disable=None if rank() == 0 else True)
        looks = gather([_look(self, slide, shared) for slide in bar])
        widths = Counter(look.width for look in looks if not look.fault)
        width = widths.most_common(1)[0][0] if widths else 0
        faults = {
            slide.path: look.fault or f"{slide.path.stem}: {look.width} numbers a patch, where most have {width}"
            for slide, look in zip(slides, looks, strict=True)
            if look.fault or look.width != width
        }
        if faults and (not skip_bad or len(faults) == len(slides)):
            remedy = "Make them again, take the slides out of the table, or set machine.skip_bad_slides=true."
            raise FeatureError(
                f"Features of {len(faults)} of {len(slides)} slides cannot be used:"
                + listed(list(faults.values()), remedy)
            )
        for fault in faults.values():
            _log.warning("left out: %s", fault)
        kept = [(s, look) for s, look in zip(slides, looks, strict=True) if s.path not in faults]
        return [slide for slide, _ in kept], width, {slide.path.name: look.files for slide, look in kept}


@dataclass(frozen=True)
class _Look:
    """What was seen of a slide's files: numbers a patch, what tells the files from others, and what is wrong, or ""."""

    width: int
    files: list[Any]
    fault: str


def _look(folders: FeatureFolders, slide: CohortSlide, shared: set[Path]) -> _Look:
    files = folders.files_of(slide.path)
    try:
        if shared & set(files):
            raise FeatureError(f"{files[0].name} would be of several slides of the table: their names must differ")
        width = folders.bag_of(slide.path).features.shape[1]
        return _Look(width, [identity(file) for file in files], "")
    except MsamilError as error:
        return _Look(0, [], str(error))


def _named_alike(folders: FeatureFolders, slides: Sequence[CohortSlide]) -> set[Path]:
    """Files that more than one slide would be given."""
    counts = Counter(file for slide in slides for file in folders.files_of(slide.path))
    return {file for file, count in counts.items() if count > 1}


def _file_of(slide: Path, folder: Path) -> Path:
    """A slide's file; its name may lack the suffix, and then hold a dot all the same."""
    whole = folder / f"{slide.name}.h5"
    return whole if whole.is_file() else folder / f"{slide.stem}.h5"


@dataclass(frozen=True)
class _Part:
    """One file: features (N, D), coords (N, 2), and what it says of patch side and slide size, in level-0 px."""

    features: NDArray[np.float32]
    coords: NDArray[np.int64]
    side: tuple[float, float] | None
    size: tuple[float, float] | None

    @property
    def step(self) -> int | None:
        """How far apart neighbours in a row of patches begin, most often; None where no two lie in one row."""
        rows = self.coords[np.lexsort(self.coords.T)]  # by y, then x
        apart, down = np.diff(rows, axis=0).T
        apart = apart[(down == 0) & (apart > 0)]
        if not len(apart):
            return None
        steps, counts = np.unique(apart, return_counts=True)
        return int(steps[counts.argmax()])

    @property
    def end(self) -> tuple[float, float]:
        """Where the last patches end, or begin where their side is not known."""
        x, y = self.coords.max(0).tolist()
        width, height = self.side or (1, 1)
        return x + width, y + height


def _read(file: Path, mpp: float) -> _Part:
    """Read a file, or say in one sentence what is wrong with it."""
    if not file.is_file():
        raise FeatureError(f"there is no {file}")
    h5py = _h5py()
    try:
        with h5py.File(file, "r") as opened:
            missing = [name for name in ("features", "coords") if not _is_dataset(opened, name)]
            if missing:
                raise FeatureError(
                    f"{file} has no dataset {' and no '.join(missing)} of its own; it has "
                    f"{', '.join(sorted(opened)[:5]) or 'none'}"
                )
            features, coords = opened["features"], opened["coords"]
            _check_shapes(file, features, coords)
            said = {name: _numbers(coords.attrs.get(name)) for name in _ATTRIBUTES}
            values = features[()].reshape(features.shape[-2:]).astype(np.float32)
            places = coords[()].reshape(-1, 2).astype(np.int64)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise FeatureError(f"{file} is no HDF5 file, or is damaged ({error})") from error
    bad = int((~np.isfinite(values)).any(1).sum())
    if bad:
        raise FeatureError(f"{file}: {bad} of {len(values)} patches have features that are not finite numbers")
    _check_places(file, places)
    magnification = said["target_magnification"]
    if magnification and abs(10 / magnification[0] / mpp - 1) > _TOLERANCE:
        raise FeatureError(
            f"{file} was made at {magnification[0]:g}x, {10 / magnification[0]:g} µm/px, and model.scales_mpp says "
            f"{mpp:g}"
        )
    return _Part(values, places, _side(said), _size(said))


def _is_dataset(opened: Any, name: str) -> bool:
    """Whether there is a dataset of that name whose numbers lie in the file itself."""
    h5py = _h5py()
    if not isinstance(opened.get(name, getlink=True), h5py.HardLink) or not isinstance(opened[name], h5py.Dataset):
        return False
    return not opened[name].is_virtual and opened[name].external is None


def _check_shapes(file: Path, features: Any, coords: Any) -> None:
    """Refuse what is not (N, D) numbers and (N, 2) whole pixels, before it is read."""
    shape = features.shape[1:] if len(features.shape) == 3 and features.shape[0] == 1 else features.shape
    places = coords.shape[1:] if len(coords.shape) == 3 and coords.shape[0] == 1 else coords.shape
    if len(shape) != 2 or features.dtype.kind != "f":
        raise FeatureError(f"{file}: features are {features.shape} {features.dtype}, (N, D) floating point is needed")
    if 0 in shape:
        raise FeatureError(f"{file} has no patches")
    if places != (shape[0], 2) or coords.dtype.kind not in "iu":
        raise FeatureError(
            f"{file}: coords are {coords.shape} {coords.dtype} for {shape[0]} patches, ({shape[0]}, 2) whole level-0 "
            "pixels are needed"
        )


def _check_places(file: Path, places: NDArray[np.int64]) -> None:
    """Refuse (N, 2) places that no slide has: attention and order of the patches would stand for nothing."""
    if places.min() < 0:
        outside = int((places < 0).any(1).sum())
        raise FeatureError(
            f"{file}: {outside} of {len(places)} patches have coords below 0, which no level-0 pixel has"
        )
    if len(places) > 1 and (places == places[0]).all():
        raise FeatureError(
            f"{file}: all {len(places)} patches have the same coords, {tuple(places[0].tolist())}; coords are the "
            "top left corners of the patches in level-0 pixels"
        )


_ATTRIBUTES = (
    *("patch_size", "downsample", "level_dim"),
    *("patch_size_level0", "level0_width", "level0_height", "target_magnification"),
)


def _numbers(value: Any) -> list[float]:
    """An attribute as numbers above 0; none if it is not there or something else."""
    try:
        found = np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError):
        return []
    return found.tolist() if np.isfinite(found).all() and (found > 0).all() else []


def _side(said: dict[str, list[float]]) -> tuple[float, float] | None:
    """Side of a patch in level-0 px, where the file says it."""
    return _pair(said["patch_size_level0"], [1.0]) or _pair(said["patch_size"], said["downsample"])


def _size(said: dict[str, list[float]]) -> tuple[float, float] | None:
    """Width and height of the slide in level-0 px, where the file says it."""
    both = said["level0_width"] + said["level0_height"]
    return _pair(both if len(both) == 2 else [], [1.0]) or _pair(said["level_dim"], said["downsample"])


def _pair(values: list[float], factors: list[float]) -> tuple[float, float] | None:
    """Values times factors, each one for both axes or one per axis."""
    if not 1 <= len(values) <= 2 or not 1 <= len(factors) <= 2:
        return None
    return values[0] * factors[0], values[-1] * factors[-1]


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise FeatureError(
            'mil.features needs h5py, which is not installed: pip install "napari-msamil[h5]".'
        ) from error
    return h5py
