"""Which slides are learned from, which choose weights and which test them: cut by patient, classes spread evenly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from .cohort import SPLITS, Cohort, CohortError
from .labels import membership

_DRAWS = 5  # of validation parts, where few lesions are marked or patients have slides of several classes


@dataclass(frozen=True)
class Parts:
    """Rows of a cohort for one training: (n,) int64 each, no patient in two of them."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_cohort(cohort: Cohort, *, folds: int = 5, validation: float = 0.2, seed: int = 0) -> dict[int, Parts]:
    """Training, validation and test rows by number of the fold; all slides of a patient are in one part.

    Where the table has splits they are fold 0 as they stand; where it has folds, each is the test part once, by its
    number there; else folds are drawn, with about the same share of each class in all. Validation rows, where the table
    names none, are drawn from the training part in the same way.

    Args:
        cohort: The slides.
        folds: Number of folds to draw where the table has none.
        validation: About which share of the rows that are not tested are held out for choosing.
        seed: Of the drawing.

    Raises:
        CohortError: A class has too few patients to be in all parts, or too few are without it.
    """
    rows = np.arange(len(cohort.slides))
    if cohort.has_splits:
        by_split = {name: np.array([s.split == name for s in cohort.slides]) for name in SPLITS}
        training, held = rows[by_split["training"]], rows[by_split["validation"]]
        if not len(held):
            training, held = _held_out(cohort, training, validation, seed)
        return {0: Parts(training, held, rows[by_split["test"]])}
    if cohort.has_folds:
        numbers = np.array([s.fold for s in cohort.slides])
        tests = {int(fold): rows[numbers == fold] for fold in np.unique(numbers)}
        if len(tests) == 1:
            raise CohortError(
                f"{cohort.source}: all slides are in fold {next(iter(tests))}, and none is left to learn from when it "
                "is tested: give several folds, or leave the column out."
            )
    else:
        tests = dict(enumerate(_draw(cohort, rows, folds, seed)))
    return {
        fold: Parts(*_held_out(cohort, np.setdiff1d(rows, test), validation, seed), test)
        for fold, test in tests.items()
    }


def refuse_untrainable_segmenters(cohort: Cohort, parts: Mapping[int, Parts]) -> None:
    """Raise CohortError where lesions are known to learn from, but all are empty, or none is there to choose by."""
    known = {fold: cohort.rows_with_lesion(part.training.tolist()) for fold, part in parts.items()}
    marked = [fold for fold, rows in known.items() if cohort.has_lesion(rows)]
    empty = [fold for fold, rows in known.items() if rows and fold not in marked]
    unchosen = [fold for fold in marked if not cohort.has_lesion(parts[fold].validation.tolist())]
    for found, lack in (
        (empty, "no training slide with a lesion to learn from, but some that have none"),
        (unchosen, "no validation slide with a marked lesion to choose the segmenter by"),
    ):
        if found:
            which = f"fold{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
            raise CohortError(
                f"{cohort.source}: {which} would have {lack}: mark the lesions of more slides ('none' where there is "
                "none), set another seed, or leave the whole column lesion empty to do without."
            )


def _held_out(
    cohort: Cohort, rows: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows less about a share of them, and that share; more where a class has few patients, so that it is in both.

    All classes are in both if that can be had, also where a patient has slides of several; and lesions where some are
    marked: to learn from, and to choose the segmenter by.
    """
    patients = {who: len(found) for who, found in cohort.patients_by_outcome(rows.tolist()).items() if found}
    rarest = min(patients, key=lambda who: patients[who])
    if patients[rarest] < 2:
        raise CohortError(
            f"{cohort.source}: where a fold is tested, {rarest} one patient left, who cannot be both learned from and "
            "validated on: use more patients, or leave the class out."
        )
    parts = max(2, min(round(1 / share), patients[rarest]))
    outcomes = {who for who, found in cohort.patients_by_outcome(rows.tolist()).items() if found}
    marked = cohort.has_lesion(rows.tolist())

    def good(pair: tuple[NDArray[np.int64], ...]) -> tuple[bool, bool]:
        """Whether both parts have every class, and a lesion where one is marked."""
        found = [{who for who, of in cohort.patients_by_outcome(p.tolist()).items() if of} for p in pair]
        return all(f >= outcomes for f in found), not marked or all(cohort.has_lesion(p.tolist()) for p in pair)

    tried = []
    for turn in range(_DRAWS):
        for held in _draw(cohort, rows, parts, seed + turn):
            tried.append((np.setdiff1d(rows, held), held))
            if all(good(tried[-1])):
                return tried[-1]
    return max(tried, key=good)  # the first of the best


def _draw(cohort: Cohort, rows: NDArray[np.int64], folds: int, seed: int) -> list[NDArray[np.int64]]:
    """Rows cut into folds: patients whole, classes spread evenly."""
    targets, patients = cohort.targets()[rows], [cohort.slides[row].patient for row in rows]
    if cohort.exclusive:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        return [rows[test] for _, test in splitter.split(rows, targets, patients)]
    fold = spread(membership(targets, len(cohort.classes)), patients, folds=folds, seed=seed)
    return [rows[fold == number] for number in range(folds)]


def spread(has: NDArray[np.bool_], patients: Sequence[str], *, folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Number of the fold of each slide, (n,), where classes do not exclude each other.

    Patients are dealt out by the outcome that fewest of those left have (a class, or being without it), each to the
    fold that lacks it most, then to the one with most room, then at random.

    Args:
        has: (n, C) whether each slide has each class.
        patients: Whom each of n slides is of; all slides of a patient go to one fold.
        folds: How many.
        seed: Of the drawing.

    References:
        Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-label Data, ECML PKDD 2011, algorithm 1, with
        patients for examples, and with being without a class as a label of its own.
    """
    rng = np.random.default_rng(seed)
    names, member, slides = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    shown = np.zeros((len(names), 2 * has.shape[1]), bool)  # (P, outcomes): some slide of the patient has it
    np.logical_or.at(shown, member, np.concatenate([has, ~has], axis=1))
    lacking = np.tile(shown.sum(0) / folds, (folds, 1))  # (folds, outcomes)
    room = np.full(folds, len(has) / folds)
    fold = np.full(len(names), -1)
    shuffled = rng.permutation(len(names))
    while len(left := shuffled[fold[shuffled] < 0]):
        counts = shown[left].sum(0)
        rarest = int(np.argmin(np.where(counts > 0, counts, len(names) + 1)))  # each patient shows some outcome
        for patient in left[shown[left, rarest]]:
            chosen = np.lexsort((rng.random(folds), -room, -lacking[:, rarest]))[0]
            fold[patient] = chosen
            lacking[chosen] -= shown[patient]
            room[chosen] -= slides[patient]
    return fold[member]
