"""Labels of one class and of several: how a table writes them, whose turn it is, and how patients are dealt out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from napari_msamil.cli import app
from napari_msamil.slide.sample import write_sample_slide
from napari_msamil.training.cohort import CohortError, CohortSlide, read_cohort, write_cohort
from napari_msamil.training.cohort_check import check_cohort
from napari_msamil.training.folds import split_cohort, spread
from napari_msamil.training.labels import membership, read_label, sampling_groups, write_label

HEADER = "slide,labels,patient"


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table beside forty empty slide files s0.tif to s39.tif."""
    for number in range(40):
        (tmp_path / f"s{number}.tif").touch()

    def write(*lines: str, header: str = HEADER) -> Path:
        path = tmp_path / "cohort.csv"
        path.write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
        return path

    return write


def test_several_classes_one_and_none_are_read_and_written(table: Callable[..., Path], tmp_path: Path) -> None:
    cohort = read_cohort(table("s0.tif,tumour; necrosis,a", "s1.tif,necrosis,b", "s2.tif,None,c"))
    assert not cohort.exclusive
    assert cohort.classes == ("necrosis", "tumour")
    assert [slide.label for slide in cohort.slides] == [("necrosis", "tumour"), ("necrosis",), ()]
    assert cohort.targets().tolist() == [[1, 1], [1, 0], [0, 0]]
    path = write_cohort(cohort.slides, tmp_path / "written.csv")
    assert path.read_text().splitlines() == [
        HEADER,
        "s0.tif,necrosis;tumour,a",
        "s1.tif,necrosis,b",
        "s2.tif,none,c",
    ]
    assert read_cohort(path).slides == cohort.slides


def test_only_the_column_labels_says_that_classes_do_not_exclude_each_other(table: Callable[..., Path]) -> None:
    lines = ("s0.tif,none,a", "s1.tif,tumour,b")
    one = read_cohort(table(*lines, header="slide,label,patient"))
    assert one.exclusive
    assert one.classes == ("none", "tumour"), "a class may be called none where each slide has one"
    several = read_cohort(table(*lines))
    assert not several.exclusive
    assert several.classes == ("tumour",)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("", "line 2: labels is empty: write none for a slide that has none of the classes"),
        ("a;", "line 2: labels is 'a;': a name is missing beside a ;"),
        ("a;;b", "a name is missing beside a ;"),
        ("a;none", "none stands alone"),
        ("a; a", "a name stands there twice"),
        ("a|b", "labels holds 'a|b', which names classes that stand there too: write ; between them"),
        ('"a, b"', "labels holds 'a, b', which names classes"),
    ],
)
def test_a_notation_that_is_not_understood_is_named(table: Callable[..., Path], cell: str, said: str) -> None:
    with pytest.raises(CohortError) as caught:
        read_cohort(table(f"s0.tif,{cell},p", "s1.tif,a,q", "s2.tif,b;a,r"))
    assert said in str(caught.value)


def test_several_classes_in_the_column_label_are_refused_with_the_remedy(table: Callable[..., Path]) -> None:
    with pytest.raises(CohortError, match=r"line 2: label is 'a;b': .* where it may have several, name it labels"):
        read_cohort(table("s0.tif,a;b,p", header="slide,label,patient"))
    with pytest.raises(CohortError, match="both label and labels; keep one"):
        read_cohort(table("s0.tif,a,a,p", header="slide,label,labels,patient"))
    with pytest.raises(CohortError, match="no slide has a class"):
        read_cohort(table("s0.tif,none,p", "s1.tif,none,q"))


def test_labels_of_both_kinds_or_with_a_separator_in_a_name_are_not_written(tmp_path: Path) -> None:
    slide = tmp_path / "s.tif"
    for labels, said in ((["a", ("b",)], "some slides have one class and others a tuple"), (["a;b"], "may not hold ;")):
        with pytest.raises(CohortError, match=said):
            write_cohort([CohortSlide(slide, label, "p") for label in labels], tmp_path / "c.csv")
    assert not list(tmp_path.iterdir())


def test_a_label_reads_back_as_it_was_written() -> None:
    for label in ((), ("a",), ("a", "b c")):
        assert read_label(write_label(label), several=True) == label
    assert read_label(write_label("a"), several=False) == "a"


def test_checking_names_classes_that_everybody_has_or_hardly_anybody(
    table: Callable[..., Path], tmp_path: Path
) -> None:
    for number in range(4):
        write_sample_slide(tmp_path / f"s{number}.tif", size_px=512, seed=number)
    rows = ["s0.tif,a;b,p0", "s1.tif,a,p1", "s2.tif,a;c,p2", "s3.tif,a;b,p3"]
    faults = check_cohort(read_cohort(table(*rows)), folds=2)
    assert faults == [
        "every slide has class 'a': there is nothing to tell it from; leave the class out",
        "class 'c' has 1 patient for 2 folds: use fewer folds, or leave the class out",
    ]
    rows = [row.replace("a;c", "a;b").replace(",a,", ",none,") for row in rows]  # a and b on all slides but one
    faults = check_cohort(read_cohort(table(*rows)), folds=2)
    assert [fault.split(":")[0] for fault in faults] == [
        "slides without class 'a' have 1 patient for 2 folds",
        "slides without class 'b' have 1 patient for 2 folds",
    ]
    split = [f"{row},{part}" for row, part in zip(rows, ("training", "training", "test", "test"), strict=True)]
    assert check_cohort(read_cohort(table(*split, header=HEADER + ",split"))) == [
        "the test part has no slide without class 'a'",
        "the test part has no slide without class 'b'",
    ]
    assert check_cohort(read_cohort(table("s0.tif,a,p", "s1.tif,none,q"))) == [
        "'a' is the only class: name what the other slides are too, in a column label"
    ]


def test_the_check_says_how_labels_were_understood(table: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(8):
        write_sample_slide(tmp_path / f"s{number}.tif", size_px=512, seed=number)
    path = table(*(f"s{number}.tif,{('a;b', 'none')[number % 2]},p{number}" for number in range(8)))
    done = CliRunner().invoke(app, ["cohort", "check", str(path), "--folds", "2"])
    assert done.exit_code == 0, done.output
    assert "classes a, b, which do not exclude each other (column labels): 4 slides have several, 0 one, 4 none" in (
        done.stdout
    )


def test_each_class_is_shown_with_and_without_by_turns() -> None:
    targets = np.array([[1, 0], [0, 0], [0, 0], [1, 1], [0, 0]])
    assert sampling_groups(targets, [0, 1, 3, 4]) == [[0, 3], [1, 4], [3], [0, 1, 4]]
    assert sampling_groups(targets, [1, 2]) == [[1, 2], [1, 2]], "what nobody has takes no turn"
    assert sampling_groups(np.array([2, 0, 2, 1]), [0, 1, 2]) == [[1], [0, 2]]
    assert membership(np.array([1, 0]), 3).tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("seed", range(5))
def test_rare_and_nearly_universal_classes_are_in_every_fold_and_patients_in_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    has = rng.random((60, 4)) < (0.1, 0.9, 0.5, 0.3)
    has[:10, 0] = np.arange(10) < 5  # at least five patients with and without each
    has[:10, 1] = np.arange(10) >= 5
    patients = [f"p{k // 2}" if k >= 10 else f"q{k}" for k in range(60)]
    fold = spread(has, patients, folds=5, seed=seed)
    assert len({(name, int(number)) for name, number in zip(patients, fold, strict=True)}) == len(set(patients))
    sizes = np.bincount(fold, minlength=5)
    assert sizes.min() >= 9
    for number in range(5):
        part = has[fold == number]
        assert part.any(0).all()
        assert not part.all(0).any()
        assert np.abs(part.mean(0) - has.mean(0)).max() < 0.25
    assert np.array_equal(fold, spread(has, patients, folds=5, seed=seed))
    assert not np.array_equal(fold, spread(has, patients, folds=5, seed=seed + 100))


def test_parts_of_such_a_cohort_hold_both_outcomes_of_each_class(table: Callable[..., Path]) -> None:
    labels = ["a;b", "a", "b", "none"]
    rows = [f"s{k}.tif,{labels[k // 2 % 4]},p{k // 2}" for k in range(40)]
    cohort = read_cohort(table(*rows))
    parts = list(split_cohort(cohort, folds=3, seed=2).values())
    assert sorted(np.concatenate([part.test for part in parts]).tolist()) == list(range(40))
    for part in parts:
        three = (part.training, part.validation, part.test)
        names = [{cohort.slides[row].patient for row in rows} for rows in three]
        assert sum(map(len, names)) == len(set.union(*names)) == 20
        for rows_of_part in three:
            found = cohort.targets()[rows_of_part]
            assert found.any(0).all()
            assert not found.all(0).any()


def test_a_class_that_one_patient_lacks_cannot_be_validated(table: Callable[..., Path]) -> None:
    rows = [f"s{k}.tif,{'a;b' if k % 2 else 'a'},p{k}" for k in range(6)] + ["s6.tif,b,p6", "s7.tif,b,p7"]
    with pytest.raises(CohortError, match="slides without class 'a' have one patient left"):
        split_cohort(read_cohort(table(*rows)), folds=2)
