"""Whether the slides of a table can be trained on: each is opened, and patients are counted by class and part."""

import filecmp
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import MsamilError, listed
from napari_msamil.patches.grid import refuse_coarse
from napari_msamil.slide.slide import Slide, open_slide

from .annotations import lesion_classes, read_lesion
from .cohort import Cohort, CohortError, CohortSlide
from .labels import membership

_log = logging.getLogger(__name__)
_LESION = "in masks whatever is not 0 is taken for it, in annotations all but the classes Normal and Exclusion"
_CHECKED_PX = 512  # longest side of the masks that are read to see whether they can be


def check_cohort(cohort: Cohort, *, folds: int = 5, files: bool = True, finest_mpp: float | None = None) -> list[str]:
    """Every fault that keeps a cohort from being trained on.

    Opens each slide, reads each lesion file as far as a small mask needs it, and counts patients by class and part.
    Warned of, and no faults, are a µm per pixel in the table that is not the file's own, a lesion that covers a whole
    slide or nothing of it, and polygons of several classes that are all taken as lesion.

    Args:
        cohort: What `read_cohort` gave.
        folds: Number of folds where the table has neither splits nor folds.
        files: Whether to open them; False leaves it at counting.
        finest_mpp: µm per pixel of the finest patches of the model, which a slide must be fine enough for; None: any.

    Returns:
        One sentence per fault; none means that training can begin.
    """
    faults: list[str] = []
    opened_slides: list[tuple[CohortSlide, str]] = []
    lesions: set[str] = set()
    for slide in cohort.slides if files else ():
        try:
            with open_slide(slide.path, slide.mpp) as opened:
                if opened.mpp is None:
                    faults.append(f"{slide.path.name} does not say its µm per pixel: fill in its mpp")
                elif finest_mpp is not None:
                    refuse_coarse(opened.mpp, finest_mpp)
                for warning in opened.warnings if slide.mpp is not None else ():
                    _log.warning("%s", warning)
                if opened.damage:
                    faults.append(opened.damage.removesuffix("."))
                if slide.lesion is not None:
                    _warn_of_extremes(slide, read_lesion(slide.lesion, (opened.width, opened.height), _small(opened)))
                    lesions |= lesion_classes(slide.lesion)
            opened_slides.append((slide, opened.properties.get("quickhash", "")))
        except MsamilError as error:
            name, said = slide.path.name, str(error).removesuffix(".")
            faults.append(said if name in said else f"{name}: {said}")
    if lesions:
        names = ", ".join(name or "(no class)" for name in sorted(lesions))
        level = logging.WARNING if len(lesions) > 1 else logging.INFO
        _log.log(level, "annotations of these classes are lesion: %s; %s", names, _LESION)
    return [*faults, *_same_pictures(opened_slides), *_class_faults(cohort, folds)]


def refuse_untrainable(cohort: Cohort, *, folds: int = 5, files: bool = True, finest_mpp: float | None = None) -> None:
    """Raise CohortError with all that `check_cohort` finds, if it finds anything."""
    faults = check_cohort(cohort, folds=folds, files=files, finest_mpp=finest_mpp)
    if faults:
        raise CohortError(f"{cohort.source} cannot be trained on:{listed(faults)}")


def _warn_of_extremes(slide: CohortSlide, lesion: NDArray[np.bool_]) -> None:
    """Masks that may mean something else than they say."""
    if lesion.all():
        _log.warning("%s says that all of %s is lesion: %s", slide.lesion, slide.path.name, _LESION)
    elif not lesion.any():
        _log.warning(
            "%s says that nothing of %s is lesion, or too little to be seen in %d px: look whether it is the right "
            "file, and write none where a slide is known to have no lesion",
            slide.lesion, slide.path.name, max(lesion.shape),
        )  # fmt: skip


def _same_pictures(slides: Sequence[tuple[CohortSlide, str]]) -> Iterator[str]:
    """Slides that are copies of one file: in two parts, they would be tested by what was learned from them.

    Args:
        slides: Each with OpenSlide's hash of it, or "" where another reader opened it.
    """
    by_size, by_hash = defaultdict(list), defaultdict(list)
    for slide, quickhash in slides:
        if quickhash:
            by_hash[quickhash].append(slide)
        else:
            by_size[slide.path.stat().st_size].append(slide)
    for first, *others in by_hash.values():
        for slide in others:
            yield f"{slide.path.name} shows the same slide as {first.path.name}: keep one of them"
    for alike in by_size.values():
        for number, slide in enumerate(alike):
            twin = next((one for one in alike[:number] if filecmp.cmp(one.path, slide.path, shallow=False)), None)
            if twin is not None:
                yield f"{slide.path.name} is a copy of {twin.path.name}, byte by byte: keep one of them"


def _class_faults(cohort: Cohort, folds: int) -> Iterator[str]:
    """Classes that cannot be learned, or not tested."""
    if len(cohort.classes) < 2 and cohort.exclusive:
        yield f"all slides are {cohort.classes[0]!r}: a classifier needs at least two classes"
        return
    if len(cohort.classes) < 2:
        yield f"{cohort.classes[0]!r} is the only class: name what the other slides are too, in a column label"
        return
    has = membership(cohort.targets(), len(cohort.classes))
    for column, name in enumerate(cohort.classes):
        if has[:, column].all():
            yield f"every slide has class {name!r}: there is nothing to tell it from; leave the class out"
        for split in ("training", "test") if cohort.has_splits else ():
            part = has[[slide.split == split for slide in cohort.slides], column]
            if not part.any():
                yield f"the {split} part has no slide of class {name!r}"
            elif not cohort.exclusive and part.all() and not has[:, column].all():
                yield f"the {split} part has no slide without class {name!r}"
    yield from _part_faults(cohort, has)
    if not (cohort.has_splits or cohort.has_folds):
        for who, found in cohort.patients_by_outcome(range(len(cohort.slides))).items():
            if len(found) < folds:
                many = f"{len(found)} patient{'' if len(found) == 1 else 's'}"
                yield f"{who} {many} for {folds} folds: use fewer folds, or leave the class out"


def _part_faults(cohort: Cohort, has: NDArray[np.bool_]) -> Iterator[str]:
    """Folds of a table that leave nothing of a class to learn from, and a validation part that cannot tell classes."""
    if cohort.has_splits:
        part = has[[slide.split == "validation" for slide in cohort.slides]]
        if len(part) and (part.all(0) | ~part.any(0)).all():
            yield "the validation part has slides of one kind only, by which no weights can be chosen"
    folds = np.array([slide.fold for slide in cohort.slides]) if cohort.has_folds else np.empty(0)
    for fold in np.unique(folds):
        rest = has[folds != fold]
        gone = [name for name, any_left in zip(cohort.classes, rest.any(0), strict=True) if not any_left]
        for name in gone if len(rest) else ():
            yield f"all slides of class {name!r} are in fold {fold}: when it is tested, none is left to learn from"


def _small(slide: Slide) -> tuple[int, int]:
    """(h, w) of a small mask of a slide, in its proportions."""
    step = max(slide.width, slide.height, _CHECKED_PX) / _CHECKED_PX
    return max(round(slide.height / step), 1), max(round(slide.width / step), 1)
