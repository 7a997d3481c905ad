"""EBHI-Seg: labels and splits by case, lesion only in neoplastic fields, the test fold untouched."""

from pathlib import Path

import numpy as np
import pytest

from napari_msamil.training.datasets.ebhi_seg import (
    CLASSES,
    NEOPLASTIC,
    TISSUES,
    close_mask,
    compose_case,
    load_cell,
    read_cases,
    split_cases,
)


def test_cases_carry_fold_label_and_all_their_fields(small_ebhi: Path) -> None:
    cases = read_cases(small_ebhi, (0, 1, 2, 3))
    assert [case.name for case in cases] == [f"c{k:02d}" for k in range(16)]
    assert [case.label for case in cases] == [k % 2 for k in range(16)]
    assert [case.fold for case in cases] == [k // 4 for k in range(16)]
    assert [len(case.fields) for case in cases] == [1 + k % 3 for k in range(16)]
    assert CLASSES[cases[1].label] == "adenocarcinoma"


def test_only_the_folds_asked_for_are_kept(small_ebhi: Path) -> None:
    assert {case.fold for case in read_cases(small_ebhi, (0, 1, 2))} == {0, 1, 2}


def test_a_case_in_two_folds_is_refused(small_ebhi: Path, tmp_path: Path) -> None:
    text = (small_ebhi / "index.csv").read_text()
    row = next(line for line in text.splitlines() if ",c02,0," in line)
    (tmp_path / "index.csv").write_text(text + row.replace(",c02,0,", ",c02,1,") + "\n")
    with pytest.raises(ValueError, match=r"Case c02 has folds \[0, 1\]"):
        read_cases(tmp_path, (0, 1))


def test_split_is_by_case_stratified_and_repeatable(small_ebhi: Path) -> None:
    cases = read_cases(small_ebhi, (0, 1, 2, 3))
    training, validation = split_cases(cases, share=0.25, seed=3)
    assert not {c.name for c in training} & {c.name for c in validation}
    assert len(training) + len(validation) == 16
    assert sorted(case.label for case in validation) == [0, 0, 1, 1]
    assert split_cases(cases, share=0.25, seed=3) == (training, validation)


def test_lesion_is_the_glands_of_neoplastic_classes_only(small_ebhi: Path) -> None:
    fields = [file for case in read_cases(small_ebhi, (0,)) for file in case.fields]
    for file in fields:
        cell = load_cell(file)
        assert TISSUES[cell.kind] == file.tissue
        assert cell.lesion.any() == (file.tissue in NEOPLASTIC)


def test_a_slide_of_a_case_shows_all_its_fields_and_their_lesion(small_ebhi: Path) -> None:
    sick, well = read_cases(small_ebhi, (0, 1))[5], read_cases(small_ebhi, (0, 1))[2]
    slide = compose_case(sick, np.random.default_rng(0), cells_a_side=(3, 4))
    assert len(slide.used) == 3
    assert (slide.used >= 1).all()
    assert slide.lesion.any()
    assert not compose_case(well, np.random.default_rng(0), cells_a_side=(3, 4)).lesion.any()


def test_closing_fills_strips_and_leaves_wide_gaps() -> None:
    mask = np.ones((200, 300), bool)
    mask[:, 100:140] = False  # 40 px: narrower than 49
    mask[:, 200:260] = False  # 60 px: wider
    closed = close_mask(mask, 24)
    assert closed[:, 100:140].all()
    assert not closed[:, 200:260].any()
    assert np.array_equal(close_mask(closed, 24), closed)
