"""The table of slides: every fault is named at once, and no patient is ever in two parts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_msamil.errors import ResultExistsError
from napari_msamil.slide.sample import write_sample_slide
from napari_msamil.slide.slide import Slide, open_slide
from napari_msamil.training import cohort_check
from napari_msamil.training.cohort import (
    Cohort,
    CohortError,
    CohortSlide,
    read_cohort,
    write_cohort,
)
from napari_msamil.training.cohort_check import check_cohort
from napari_msamil.training.folds import refuse_untrainable_segmenters, split_cohort

HEADER = "slide,label,patient"


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table beside ten empty slide files s0.tif to s9.tif."""
    for number in range(10):
        (tmp_path / f"s{number}.tif").touch()

    def write(*lines: str, header: str = HEADER) -> Path:
        path = tmp_path / "cohort.csv"
        path.write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
        return path

    return write


def test_a_full_row_is_read_with_paths_relative_to_the_table(table: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "s0.geojson").touch()
    path = table("s0.tif,tumour,p1,2,0.25,s0.geojson,Bonn", header=HEADER + ",fold,mpp,lesion,site")
    [slide] = read_cohort(path).slides
    expected = CohortSlide(
        tmp_path / "s0.tif", "tumour", "p1", fold=2, mpp=0.25, lesion=tmp_path / "s0.geojson", site="Bonn"
    )
    assert slide == expected


def test_classes_are_the_labels_in_alphabetical_order(table: Callable[..., Path]) -> None:
    cohort = read_cohort(table("s0.tif,tumour,a", "s1.tif,normal,b", "s2.tif,tumour,c"))
    assert cohort.classes == ("normal", "tumour")
    assert cohort.targets().tolist() == [1, 0, 1]


def test_every_fault_is_named_in_one_message(table: Callable[..., Path]) -> None:
    path = table(
        "gone.tif,a,p1,training,", "s1.tif,,p2,training,", "s2.tif,a,p3,train,0.5", "s3.tif,b,p4,test,99",
        "s4.tif,a,p5,test,", "s4.tif,b,p5,training,",
        header=HEADER + ",split,mpp",
    )  # fmt: skip
    with pytest.raises(CohortError) as caught:
        read_cohort(path)
    said = str(caught.value)
    for fault in (
        "cohort.csv", "line 2: there is no slide", "gone.tif", "line 3: label is empty", "line 4: split is 'train'",
        "line 5: mpp is '99'", "s4.tif stands there 2 times", "patient p5 is in test and training",
    ):  # fmt: skip
        assert fault in said
    assert len(said.splitlines()) == 7, "each in a line of its own"


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("slide,label", "s0.tif,a", "lacks the column patient"),
        (HEADER + ",mmp", "s0.tif,a,p,1", "unknown columns 'mmp'"),
        (HEADER + ",split,fold", "s0.tif,a,p,test,1", "both split and fold"),
        (HEADER, "s0.tif,a,p,extra", "more cells than the header"),
        (HEADER + ",fold", "s0.tif,a,p,one", "fold is 'one'"),
        (HEADER + ",lesion", "s0.tif,a,p,s1.docx", "there is no lesion file"),
        (HEADER, "s0.tif,Polyp,p\ns1.tif,polyp,q", "classes 'Polyp' and 'polyp' differ by capitals only"),
        (HEADER, "s0.tif,a,P1\ns1.tif,b,p1", "patients 'P1' and 'p1' differ by capitals only"),
        (HEADER.replace(",", ";"), "s0.tif;a;p", "separated by semicolons: save it with commas"),
        (HEADER.replace(",", "\t"), "s0.tif\ta\tp", "separated by tabs"),
    ],
)
def test_a_fault_of_the_table_says_what_is_wrong(
    table: Callable[..., Path], header: str, line: str, message: str
) -> None:
    with pytest.raises(CohortError, match=message):
        read_cohort(table(line, header=header))


def test_a_folder_is_read_by_its_table_and_blank_lines_are_passed_over(table: Callable[..., Path]) -> None:
    file = table("s0.tif,a,p0", ",,", "s1.tif,b,p1", ",,")
    assert file.name == "cohort.csv"
    assert [slide.path.name for slide in read_cohort(file.parent).slides] == ["s0.tif", "s1.tif"]


def test_an_empty_or_binary_file_is_no_table(tmp_path: Path, table: Callable[..., Path]) -> None:
    with pytest.raises(CohortError, match=r"gone\.csv cannot be read: No such file"):
        read_cohort(tmp_path / "gone.csv")
    with pytest.raises(CohortError, match="no slides"):
        read_cohort(table())
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(CohortError, match="cannot be read"):
        read_cohort(tmp_path / "binary.csv")


def test_checking_opens_every_slide_and_counts_patients(table: Callable[..., Path], tmp_path: Path) -> None:
    write_sample_slide(tmp_path / "s0.tif", size_px=512)
    cohort = read_cohort(table("s0.tif,a,p0", "s1.tif,b,p1"))
    faults = check_cohort(cohort, folds=2)
    assert any("s1.tif" in fault for fault in faults)
    assert any("class 'a' has 1 patient for 2 folds" in fault for fault in faults)
    assert not any("s0.tif" in fault for fault in faults)


def test_what_may_be_taken_for_lesion_by_mistake_is_warned_of(
    table: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (0, 1):
        write_sample_slide(tmp_path / f"s{number}.tif", size_px=512, seed=number)
    labels = np.full((64, 64), 1, np.uint8)  # 1 is background here, as in many exports
    labels[20:40, 20:40] = 3
    Image.fromarray(labels).save(tmp_path / "s0.png")
    box = {"type": "Polygon", "coordinates": [[[9, 9], [99, 9], [99, 99], [9, 99], [9, 9]]]}
    both = [
        {"type": "Feature", "geometry": box, "properties": {"classification": {"name": name}}}
        for name in ("Tumor", "Stroma", "Normal")
    ]
    unnamed = {"type": "Feature", "geometry": box, "properties": {}}
    (tmp_path / "s1.geojson").write_text(json.dumps([*both, unnamed]))
    write_sample_slide(tmp_path / "s2.tif", size_px=512, seed=2)
    Image.new("L", (64, 64)).save(tmp_path / "s2.png")
    rows = ("s0.tif,a,p0,s0.png", "s1.tif,b,p1,s1.geojson", "s2.tif,b,p2,s2.png")
    assert check_cohort(read_cohort(table(*rows, header=HEADER + ",lesion")), folds=1) == []
    assert "s0.png says that all of s0.tif is lesion: in masks whatever is not 0 is taken for it" in caplog.text
    assert "s2.png says that nothing of s2.tif is lesion" in caplog.text
    assert "these classes are lesion: (no class), Stroma, Tumor; in masks" in caplog.text


def test_a_slide_that_was_cut_off_is_a_fault(table: Callable[..., Path], tmp_path: Path) -> None:
    for number in (0, 1):
        write_sample_slide(tmp_path / f"s{number}.tif", size_px=512, seed=number)
    whole = (tmp_path / "s1.tif").read_bytes()
    (tmp_path / "s1.tif").write_bytes(whole[:-100])
    [fault] = check_cohort(read_cohort(table("s0.tif,a,p0", "s1.tif,b,p1")), folds=1)
    assert fault.startswith("s1.tif is cut off: ")


def test_a_slide_that_is_there_twice_under_two_names_is_found(table: Callable[..., Path], tmp_path: Path) -> None:
    for number, seed in enumerate((0, 1, 0)):
        write_sample_slide(tmp_path / f"s{number}.tif", size_px=512, seed=seed)
    rows = [f"s{number}.tif,{label},p{number}" for number, label in enumerate("abb")]
    faults = check_cohort(read_cohort(table(*rows)), folds=1)
    assert faults == ["s2.tif is a copy of s0.tif, byte by byte: keep one of them"]


def test_two_files_of_one_slide_are_found(
    table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_hashed(path: Path, mpp: float | None) -> Slide:
        slide = open_slide(path, mpp)
        slide.properties = {"quickhash": "one" if path.stem in ("s0", "s2") else path.stem}
        return slide

    monkeypatch.setattr(cohort_check, "open_slide", open_hashed)
    for number in range(3):
        write_sample_slide(tmp_path / f"s{number}.tif", size_px=512, seed=number)
    faults = check_cohort(read_cohort(table("s0.tif,a,p0", "s1.tif,b,p1", "s2.tif,b,p2")), folds=1)
    assert faults == ["s2.tif shows the same slide as s0.tif: keep one of them"]


def test_no_patient_is_in_two_parts_and_every_slide_is_tested_once(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"t{number}.tif").touch()
    lines = [f"t{k}.tif,{'ab'[k // 3 % 2]},p{k // 3}" for k in range(60)]  # 20 patients of three slides each
    path = tmp_path / "cohort.csv"
    path.write_text("\n".join((HEADER, *lines)))
    cohort = read_cohort(path)
    parts = list(split_cohort(cohort, folds=5, seed=1).values())
    assert sorted(np.concatenate([part.test for part in parts]).tolist()) == list(range(60))
    for part in parts:
        three = (part.training, part.validation, part.test)
        patients = [{cohort.slides[row].patient for row in rows} for rows in three]
        assert sum(map(len, patients)) == len(set.union(*patients)) == 20
        for rows in three:
            assert set(cohort.targets()[rows].tolist()) == {0, 1}, "both classes are in every part"
    again = split_cohort(cohort, folds=5, seed=1).values()
    assert all(np.array_equal(one.validation, other.validation) for one, other in zip(parts, again, strict=True))


def test_splits_and_folds_of_the_table_are_kept(table: Callable[..., Path]) -> None:
    lines = [
        f"s{k}.tif,{'ab'[k % 2]},p{k},{['training', 'training', 'validation', 'test'][k // 2 % 4]}" for k in range(8)
    ]
    [part] = split_cohort(read_cohort(table(*lines, header=HEADER + ",split"))).values()
    assert (part.training.tolist(), part.validation.tolist(), part.test.tolist()) == ([0, 1, 2, 3], [4, 5], [6, 7])
    lines = [f"s{k}.tif,{'ab'[k % 2]},p{k},{1 + 2 * (k // 5)}" for k in range(10)]
    parts = split_cohort(read_cohort(table(*lines, header=HEADER + ",fold")))
    assert {fold: one.test.tolist() for fold, one in parts.items()} == {1: [0, 1, 2, 3, 4], 3: [5, 6, 7, 8, 9]}


def test_parts_that_cannot_be_learned_from_or_chosen_by_are_faults(table: Callable[..., Path]) -> None:
    lines = [f"s{k}.tif,{'ab'[k >= 8]},p{k},{k // 4}" for k in range(12)]
    faults = check_cohort(read_cohort(table(*lines, header=HEADER + ",fold"), files=False), files=False)
    assert faults == ["all slides of class 'b' are in fold 2: when it is tested, none is left to learn from"]
    parts = ["training", "training", "validation", "test", "test"]
    lines = [f"s{k}.tif,{'abaab'[k]},p{k},{part}" for k, part in enumerate(parts)]
    faults = check_cohort(read_cohort(table(*lines, header=HEADER + ",split"), files=False), files=False)
    assert faults == ["the validation part has slides of one kind only, by which no weights can be chosen"]


def test_no_lesion_is_told_from_nobody_knows(table: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "s2.png").touch()
    path = table("s0.tif,a,p0,none", "s1.tif,b,p1,", "s2.tif,b,p2,s2.png", header=HEADER + ",lesion")
    free, unknown, marked = read_cohort(path).slides
    assert (free.lesion, free.lesion_free) == (None, True)
    assert (unknown.lesion, unknown.lesion_free) == (None, False)
    assert (marked.lesion, marked.lesion_free) == (tmp_path / "s2.png", False)


def test_a_written_table_reads_back_and_moves_with_its_folder(table: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "s0.png").touch()
    slides = (
        CohortSlide(tmp_path / "s0.tif", "a, or b", "p1", fold=0, mpp=0.2431, lesion=tmp_path / "s0.png", site="Köln"),
        CohortSlide(tmp_path / "s1.tif", "c", "p2", fold=1, lesion_free=True),
    )
    path = write_cohort(slides, tmp_path / "written.csv")
    assert path.read_text(encoding="utf-8").splitlines() == [
        "slide,label,patient,fold,mpp,lesion,site",
        's0.tif,"a, or b",p1,0,0.2431,s0.png,Köln',
        "s1.tif,c,p2,1,,none,",
    ]
    assert read_cohort(path).slides == slides
    elsewhere = write_cohort(slides, tmp_path / "below" / "written.csv")
    assert read_cohort(elsewhere).slides == slides, "slides beside the table's folder keep their full path"


def test_a_table_is_replaced_only_on_demand_and_never_in_part(tmp_path: Path) -> None:
    slide = CohortSlide(tmp_path / "s.tif", "a", "p")
    path = write_cohort([slide], tmp_path / "cohort.csv")
    before = path.read_text()
    with pytest.raises(ResultExistsError, match=r"cohort.csv is already there"):
        write_cohort([slide, slide], path)
    with pytest.raises(CohortError, match="said to have no lesion"):
        write_cohort([CohortSlide(path, "a", "p", lesion=path, lesion_free=True)], path, overwrite=True)
    assert path.read_text() == before
    write_cohort([slide, slide], path, overwrite=True)
    assert len(path.read_text().splitlines()) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["cohort.csv"]


def test_checking_names_lesion_files_that_cannot_be_read(table: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("s0.tif", "s1.tif"):
        write_sample_slide(tmp_path / name, size_px=512)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    square = [[10, 10], [300, 10], [300, 300], [10, 10]]
    (tmp_path / "good.geojson").write_text(f'{{"type": "Polygon", "coordinates": [{square}]}}')
    path = table("s0.tif,a,p0,0,bad.png", "s1.tif,b,p1,1,good.geojson", header=HEADER + ",fold,lesion")
    faults = check_cohort(read_cohort(path))
    assert sum("bad.png cannot be read" in fault for fault in faults) == 1
    assert not any("good.geojson" in fault for fault in faults)


def test_a_class_too_rare_to_be_held_out_is_named(table: Callable[..., Path]) -> None:
    rows = [f"s{k}.tif,{'ab'[k % 2]},p{k}" for k in range(4)]
    with pytest.raises(CohortError, match="has one patient left"):
        split_cohort(read_cohort(table(*rows)), folds=2)


def test_slides_coarser_than_the_model_are_named_before_training(table: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(2):
        write_sample_slide(tmp_path / f"s{number}.tif", size_px=512)
    cohort = read_cohort(table("s0.tif,a,p0,", "s1.tif,b,p1,4", header=HEADER + ",mpp"))
    faults = check_cohort(cohort, folds=1, finest_mpp=1.0)
    assert len(faults) == 1
    assert faults[0].startswith("s1.tif: The slide's finest pixels are 4 µm wide, but the model looks at 1 µm/px")


def test_a_scale_that_is_not_the_files_own_is_warned_of(
    table: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_sample_slide(tmp_path / "s0.tif", size_px=512)
    check_cohort(read_cohort(table("s0.tif,a,p0,1.1", header=HEADER + ",mpp")))
    assert "s0.tif states 1 µm per pixel; the 1.1 given by hand is used instead" in caplog.text


def test_a_table_of_one_fold_is_refused(table: Callable[..., Path]) -> None:
    lines = [f"s{k}.tif,{'ab'[k % 2]},p{k},3" for k in range(6)]
    with pytest.raises(CohortError, match="all slides are in fold 3, and none is left to learn from"):
        split_cohort(read_cohort(table(*lines, header=HEADER + ",fold"), files=False))


def test_lesions_that_cannot_be_learned_or_not_be_chosen_by_are_refused_before_training(
    table: Callable[..., Path],
) -> None:
    parts = ["training"] * 4 + ["validation"] * 2 + ["test"] * 2

    def cohort(**lesions: str) -> Cohort:
        rows = [f"s{k}.tif,{'ab'[k % 2]},p{k},{part},{lesions.get(f's{k}', '')}" for k, part in enumerate(parts)]
        return read_cohort(table(*rows, header=HEADER + ",split,lesion"), files=False)

    def look_at(**lesions: str) -> None:
        refuse_untrainable_segmenters(cohort(**lesions), split_cohort(cohort(**lesions)))

    with pytest.raises(CohortError, match="fold 0 would have no validation slide with a marked lesion"):
        look_at(s0="a.xml", s7="none")
    with pytest.raises(CohortError, match="fold 0 would have no validation slide with a marked lesion"):
        look_at(s0="a.xml", s1="none", s4="none")  # weights that find nothing would be the best
    with pytest.raises(CohortError, match="fold 0 would have no training slide with a lesion to learn from"):
        look_at(s0="none", s4="a.xml")
    for lesions in ({"s0": "a.xml", "s1": "none", "s4": "b.xml"}, {"s4": "none"}, {}):
        look_at(**lesions)


def test_few_marked_lesions_are_shared_out_between_learning_and_choosing(table: Callable[..., Path]) -> None:
    """With four of forty lesions marked, the first part drawn often holds none of them."""
    for seed in range(10):
        marked = {int(k) for k in np.random.default_rng(seed).choice(np.arange(1, 80, 2), 4, replace=False)}
        lines = [f"s{k}.tif,{'ab'[k % 2]},p{k},{'none' if k % 2 == 0 else 'a.xml' * (k in marked)}" for k in range(80)]
        cohort = read_cohort(table(*lines, header=HEADER + ",lesion"), files=False)
        for part in split_cohort(cohort, seed=seed).values():
            if len(marked - set(part.test.tolist())) > 1:  # else there is nothing to share
                assert cohort.has_lesion(part.training.tolist())
                assert cohort.has_lesion(part.validation.tolist())


@pytest.mark.parametrize("seed", [0, 4, 5, 6, 7])
def test_classes_of_patients_with_slides_of_several_are_in_training_and_validation_alike(
    table: Callable[..., Path], seed: int
) -> None:
    """With seeds of which the first part drawn lacks a class."""
    rng = np.random.default_rng(seed)
    lines = []
    for patient in range(int(rng.integers(6, 14))):
        for number in range(int(rng.integers(1, 6))):
            lines.append(f"s{patient}_{number}.tif,{'abc'[int(rng.choice(3, p=[0.6, 0.25, 0.15]))]},p{patient}")
    cohort = read_cohort(table(*lines), files=False)
    for part in split_cohort(cohort, folds=3, seed=seed).values():
        first, second = (set(cohort.targets()[rows].tolist()) for rows in (part.training, part.validation))
        assert first == second
