"""Adapters: a stand-in laid out like each original becomes a table without faults, whose lesions hit their pixels."""

import json
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from napari_msamil.cli import app
from napari_msamil.errors import AnnotationError, ResultExistsError, SlideError
from napari_msamil.inference.engine import choose_device
from napari_msamil.slide.slide import open_slide
from napari_msamil.slide.write import write_slide
from napari_msamil.training.annotations import read_lesion
from napari_msamil.training.cohort import Cohort, CohortError, CohortSlide, read_cohort
from napari_msamil.training.cohort_check import check_cohort
from napari_msamil.training.config import read_config
from napari_msamil.training.datasets import (
    bcnb,
    camelyon16,
    digestpath2019,
    ebhi_seg,
    folders,
    synthetic,
    ubc_ocean,
)
from napari_msamil.training.datasets.adapters import ADAPTERS, write_dataset
from napari_msamil.training.folds import Parts
from napari_msamil.training.run import Run
from napari_msamil.training.stages import Fold

SIZE = (600, 400)  # width, height of the stand-in slides
MASK = (20, 30)  # of the masks they are read as: 20 px of the slide to each of its px


def picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """A pink picture unlike any other, flat or as a slide by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.full((size[1], size[0], 3), (225, 170, 200), np.uint8)
    rgb += np.random.default_rng(zlib.crc32(bytes(path))).integers(0, 8, rgb.shape, np.uint8)
    if path.suffix == ".tif":
        return write_slide(path, rgb, mpp=0.243, software="test")
    Image.fromarray(rgb).save(path)
    return path


def faultless(table: Path) -> Cohort:
    cohort = read_cohort(table)
    assert check_cohort(cohort, folds=2) == []
    return cohort


def lesion(slide: CohortSlide) -> NDArray[np.bool_]:
    assert slide.lesion is not None
    return read_lesion(slide.lesion, SIZE, MASK)


def box(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    """What a box in slide px looks like in the mask."""
    mask = np.zeros(MASK, bool)
    mask[top // 20 : bottom // 20, left // 20 : right // 20] = True
    return mask


# --- UBC-OCEAN


@pytest.fixture
def ubc(tmp_path: Path) -> Path:
    folder = tmp_path / "UBC-OCEAN"
    rows = ["image_id,label,image_width,image_height,is_tma"]
    for number, (label, core) in enumerate([("HGSC", False), ("HGSC", True), ("CC", False), ("CC", True)]):
        picture(folder / "train_images" / f"{number + 4}.png")
        rows.append(f"{number + 4},{label},600,400,{core}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    marks = np.zeros((400, 600, 3), np.uint8)
    marks[100:200, 100:200] = (255, 0, 0)
    marks[100:200, 200:300] = (0, 255, 0)
    marks[100:200, 300:400] = (0, 0, 255)
    masks = folder / "ubc-ovarian-cancer-competition-supplemental-masks"
    masks.mkdir()
    Image.fromarray(marks).save(masks / "4.png")
    return folder


def test_ubc_ocean_takes_red_for_lesion_and_cores_for_40x(ubc: Path, tmp_path: Path) -> None:
    cohort = faultless(ubc_ocean.write(ubc, tmp_path / "out"))
    assert [(s.label, s.mpp, s.patient) for s in cohort.slides] == [
        ("HGSC", 0.5, "4"), ("HGSC", 0.25, "5"), ("CC", 0.5, "6"), ("CC", 0.25, "7"),
    ]  # fmt: skip
    first, *rest = cohort.slides
    assert np.array_equal(lesion(first), box(100, 100, 200, 200))
    assert all(slide.lesion is None and not slide.lesion_free for slide in rest), "unmarked is unknown"
    without = read_cohort(ubc_ocean.write(ubc, tmp_path / "slides", cores=False))
    assert [s.path.stem for s in without.slides] == ["4", "6"]


def test_ubc_ocean_names_all_that_is_missing(ubc: Path, tmp_path: Path) -> None:
    (ubc / "train_images" / "5.png").unlink()
    with (ubc / "train.csv").open("a") as file:
        file.write("9,,1,1,maybe\n")
    with pytest.raises(CohortError) as caught:
        ubc_ocean.write(ubc, tmp_path / "out")
    for fault in ("train_images/5.png", "train_images/9.png", "image 9 has no label", "is_tma of image 9 is 'maybe'"):
        assert fault in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_ubc_ocean_refuses_a_mask_of_another_image_and_one_cut_off(ubc: Path, tmp_path: Path) -> None:
    masks = ubc / ubc_ocean.MASKS[0]
    whole = (masks / "4.png").read_bytes()
    (masks / "4.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AnnotationError, match=r"4.png .*(damaged|cut off)"):
        ubc_ocean.write(ubc, tmp_path / "out")
    picture(masks / "4.png", (400, 400))
    with pytest.raises(AnnotationError, match="proportions"):
        ubc_ocean.write(ubc, tmp_path / "out")
    assert not (tmp_path / "out" / "cohort.csv").exists()


# --- BCNB


def workbook(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Just enough of an Excel workbook: text shared and inline, numbers as numbers, an empty cell left out."""
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    texts = [cell for row in rows for cell in row if cell and not cell.isdigit()]
    shared = "".join(f"<si><r><t>{t[:2]}</t></r><r><t>{t[2:]}</t></r></si>" for t in texts).replace("(>", "(&gt;")
    lines, used = "", 0
    for y, row in enumerate(rows, start=1):
        for x, cell in enumerate(row):
            where = f'r="{chr(ord("A") + x)}{y}"'
            if cell.isdigit():
                lines += f"{'<row>' if not x else ''}<c {where}><v>{cell}</v></c>"
            else:
                lines += "<row>" if not x else ""
                lines += f'<c {where} t="s"><v>{used}</v></c>' if cell else ""
                used += bool(cell)
        lines += "</row>"
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("xl/sharedStrings.xml", f"<sst {main}>{shared}</sst>")
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet {main}><sheetData>{lines}</sheetData></worksheet>")


STATUS = ["N0", "N0", "N+(1-2)", "N+(1-2)", "N+(>2)", "N+(>2)"]


@pytest.fixture
def biopsies(tmp_path: Path) -> Path:
    folder = tmp_path / "BCNB"
    for number in range(1, 7):
        picture(folder / "WSIs" / f"{number}.jpg")
    areas = {
        "positive": [{"name": "Annotation 0", "vertices": [[100, 100], [300, 100], [300, 200], [100, 200]]}],
        "negative": [{"name": "Annotation 1", "vertices": [[200, 100], [240, 100], [240, 200], [200, 200]]}],
    }
    (folder / "WSIs" / "1.json").write_text(json.dumps(areas))
    (folder / "WSIs" / "2.json").write_text('{"positive": [], "negative": []}')
    rows = [["Patient ID", "Age(years)", "ALN status"]]
    rows += [[str(number), "" if number == 1 else "60", status] for number, status in enumerate(STATUS, start=1)]
    workbook(folder / "patient-clinical-data.xlsx", rows)
    return folder


def test_bcnb_is_labelled_by_the_nodes_and_marked_where_annotated(biopsies: Path, tmp_path: Path) -> None:
    cohort = faultless(bcnb.write(biopsies, tmp_path / "out"))
    assert cohort.classes == ("N+(1-2)", "N+(>2)", "N0")
    assert [s.label for s in cohort.slides] == STATUS
    assert [s.patient for s in cohort.slides] == [s.path.stem for s in cohort.slides] == list("123456")
    assert {s.mpp for s in cohort.slides} == {0.5}
    expected = box(100, 100, 300, 200) & ~box(200, 100, 240, 200)
    assert np.array_equal(lesion(cohort.slides[0]), expected)
    assert all(s.lesion is None and not s.lesion_free for s in cohort.slides[1:])


def test_bcnb_reads_its_table_as_csv_too_and_any_spelling_of_the_status(biopsies: Path, tmp_path: Path) -> None:
    (biopsies / "patient-clinical-data.xlsx").unlink()
    spelt = ["N0", "N0 ", "N + (1-2)", "N+(1~2)", "N+(＞2)", "N+(> 2)"]
    rows = "".join(f"{number}.0,{status}\n" for number, status in enumerate(spelt, start=1))
    (biopsies / "patient-clinical-data.csv").write_text("Patient ID,ALN status\n" + rows, encoding="utf-8")
    assert [s.label for s in read_cohort(bcnb.write(biopsies, tmp_path / "out")).slides] == STATUS


def test_bcnb_names_all_that_is_missing(biopsies: Path, tmp_path: Path) -> None:
    (biopsies / "WSIs" / "3.jpg").rename(biopsies / "WSIs" / "99.jpg")
    (biopsies / "WSIs" / "2.json").write_text('{"positive": [{"vertices": [[1, 2]]}]}')
    rows = [["Patient ID", "ALN status"], ["1", "N0"], ["1", "N0"], ["2", "N9"], ["3", "N+(>2)"]]
    workbook(biopsies / "patient-clinical-data.xlsx", rows)
    with pytest.raises(CohortError) as caught:
        bcnb.write(biopsies, tmp_path / "out")
    for fault in (
        "no WSIs/3.jpg", "WSIs/99.jpg is not in", "WSIs/4.jpg is not in", "patient 1 stands in", "patient 2 is 'N9'",
        "WSIs/2.json is no annotation", "three points",
    ):  # fmt: skip
        assert fault in str(caught.value)
    (biopsies / "patient-clinical-data.xlsx").write_bytes(b"no workbook")
    with pytest.raises(CohortError, match="cannot be read as an Excel workbook"):
        bcnb.write(biopsies, tmp_path / "out")


# --- DigestPath 2019


@pytest.fixture
def colonoscopies(tmp_path: Path) -> Path:
    folder = tmp_path / "Colonoscopy_tissue_segment_dataset"
    names = (
        "tissue-train-pos-v1/18-09926A_2019-05-08 00_06_12-lv1-1-2-3-4",
        "tissue-train-pos-v1/18-09926B_2019-05-08 00_13_33-lv1-9-9-3-4",
        "tissue-train-pos-v1/2018_64982_1-3_2019-02-25 21_57_36-lv1-1-2-3-4",
        "tissue-train-neg/2018_64982_1-1_2019-02-25 21_50_00-lv1-1-2-3-4",
        "tissue-train-neg/2019-06-11 15_26_11-lv1-1-2-3-4",
        "tissue-train-neg/other",
    )
    mask = np.zeros((400, 600), np.uint8)
    mask[200:300, 400:500] = 255
    for name in names:
        picture(folder / f"{name}.jpg")
        if "pos" in name:
            Image.fromarray(mask).save(folder / f"{name}_mask.jpg")
    return folder


def test_digestpath_specimens_are_patients_and_negatives_have_no_lesion(colonoscopies: Path, tmp_path: Path) -> None:
    cohort = faultless(digestpath2019.write(colonoscopies, tmp_path / "out"))
    assert [(s.label, s.patient) for s in cohort.slides] == [
        ("positive", "18-09926"), ("positive", "18-09926"), ("positive", "2018_64982"),
        ("negative", "2018_64982"), ("negative", "2019-06-11 15_26_11"), ("negative", "other"),
    ]  # fmt: skip
    for slide in cohort.slides:
        assert slide.mpp == 0.5
        assert slide.lesion_free == (slide.label == "negative")
        assert slide.lesion_free or np.array_equal(lesion(slide), box(400, 200, 500, 300))
    above = digestpath2019.write(colonoscopies.parent, tmp_path / "above", mpp=0.4)
    assert [s.mpp for s in read_cohort(above).slides] == [0.4] * 6


def test_digestpath_names_all_that_is_missing(colonoscopies: Path, tmp_path: Path) -> None:
    first, second, _ = sorted((colonoscopies / "tissue-train-pos-v1").glob("*[0-9].jpg"))
    first.unlink()
    second.with_name(f"{second.stem}_mask.jpg").unlink()
    shutil.rmtree(colonoscopies / "tissue-train-neg")
    with pytest.raises(CohortError) as caught:
        digestpath2019.write(colonoscopies, tmp_path / "out")
    for fault in ("no folder tissue-train-neg", f"{first.stem}_mask.jpg has no picture", f"{second.name} has no"):
        assert fault in str(caught.value)


# --- CAMELYON16


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    folder = tmp_path / "CAMELYON16"
    for number in (1, 2):
        picture(folder / "training" / "normal" / f"normal_00{number}.tif")
        picture(folder / "training" / "tumor" / f"tumor_00{number}.tif")
        picture(folder / "testing" / "images" / f"test_00{number}.tif")
    picture(folder / "testing" / "images" / "test_049.tif")
    (folder / "testing" / "reference.csv").write_text("test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n")
    points = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(
        [(100, 100), (200, 100), (200, 200), (100, 200)]
    ))  # fmt: skip
    xml = (
        '<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="A" Type="Polygon" PartOfGroup="Tumor">'
        f"<Coordinates>{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    (folder / "annotations").mkdir()
    (folder / "testing" / "lesion_annotations").mkdir()
    for path in ("annotations/tumor_001", "annotations/tumor_002", "testing/lesion_annotations/test_001"):
        (folder / f"{path}.xml").write_text(xml)
    return folder


def test_camelyon16_keeps_its_split_its_pixel_size_and_its_lesions(nodes: Path, tmp_path: Path) -> None:
    cohort = faultless(camelyon16.write(nodes, tmp_path / "out"))
    assert [(s.path.stem, s.label, s.split) for s in cohort.slides] == [
        ("normal_001", "normal", "training"), ("normal_002", "normal", "training"),
        ("tumor_001", "tumor", "training"), ("tumor_002", "tumor", "training"),
        ("test_001", "tumor", "test"), ("test_002", "normal", "test"),
    ]  # fmt: skip
    for slide in cohort.slides:
        assert slide.mpp is None, "the file says it"
        assert slide.patient == slide.path.stem
        assert slide.lesion_free == (slide.label == "normal")
        assert slide.lesion_free or np.array_equal(lesion(slide), box(100, 100, 200, 200))


def test_camelyon16_is_read_flat_as_on_aws_with_a_header_in_its_reference(nodes: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    (flat / "images").mkdir(parents=True)
    (flat / "annotations").mkdir()
    for path in nodes.rglob("*.tif"):
        path.rename(flat / "images" / path.name)
    for path in nodes.rglob("*.xml"):
        path.rename(flat / "annotations" / path.name)
    (flat / "reference.csv").write_text("NAME,LABEL\ntest_001,Tumor\ntest_002,Normal\n")
    cohort = faultless(camelyon16.write(flat, tmp_path / "out"))
    assert [s.split for s in cohort.slides] == ["training"] * 4 + ["test"] * 2


def test_camelyon16_names_all_that_is_missing(nodes: Path, tmp_path: Path) -> None:
    (nodes / "annotations" / "tumor_002.xml").unlink()
    picture(nodes / "testing" / "images" / "test_003.tif")
    (nodes / "testing" / "images" / "test_002.tif").unlink()
    shutil.rmtree(nodes / "training" / "normal")
    with pytest.raises(CohortError) as caught:
        camelyon16.write(nodes, tmp_path / "out")
    for fault in (
        "no annotation tumor_002.xml", "test_003.tif is not in reference.csv", "no test_002.tif",
        "no training slides of class 'normal'",
    ):  # fmt: skip
        assert fault in str(caught.value)


# --- Folders


def test_folders_name_the_classes_and_a_pattern_finds_the_patients(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("benign/P1-a.tif", "benign/more/P2-a.tif", "malignant/P3-a.tif", "malignant/P3-b.tif"):
        picture(tree / name)
    picture(tree / "malignant" / "P4-a.tif")
    Image.new("L", (60, 40), 1).save(tree / "malignant" / "P3-a_mask.png")
    (tree / "malignant" / "notes.txt").touch()
    cohort = faultless(folders.write(tree, tmp_path / "out", patient=r"(P\d+)-"))
    assert [(s.label, s.patient) for s in cohort.slides] == [
        ("benign", "P1"), ("benign", "P2"), ("malignant", "P3"), ("malignant", "P3"), ("malignant", "P4"),
    ]  # fmt: skip
    assert [s.lesion.name if s.lesion else None for s in cohort.slides] == [None, None, "P3-a_mask.png", None, None]
    plain = read_cohort(folders.write(tree, tmp_path / "plain", mpp=0.5))
    assert [s.patient for s in plain.slides] == ["P1-a", "P2-a", "P3-a", "P3-b", "P4-a"]
    assert {s.mpp for s in plain.slides} == {0.5}
    with pytest.raises(CohortError, match=r"no patient is found in 'malignant/P4-a.tif' by 'P\[1-3\]'"):
        folders.write(tree, tmp_path / "none", patient="P[1-3]")
    shutil.rmtree(tree / "benign")
    with pytest.raises(CohortError, match="only slides of class 'malignant'"):
        folders.write(tree, tmp_path / "none")


def test_of_the_files_of_a_dicom_slide_the_first_stands_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/s1-level0.dcm", "a/s1-level1.dcm", "a/s2-level0.dcm", "b/s1-level0.dcm", "b/s3.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def open_slide(path: Path) -> object:  # OpenSlide's hash is of the slide, whichever of its files is opened
        if path.stem == "s3":
            raise SlideError("s3.dcm is empty")
        return nullcontext(SimpleNamespace(properties={"quickhash": path.stem[:2]}))

    monkeypatch.setattr(folders, "open_slide", open_slide)
    rows = read_cohort(folders.write(tmp_path, tmp_path / "out"), files=False).slides
    names = ["a/s1-level0.dcm", "a/s2-level0.dcm", "b/s1-level0.dcm", "b/s3.dcm"]  # in two classes it is a fault
    assert [row.path.relative_to(tmp_path).as_posix() for row in rows] == names


# --- EBHI-Seg and drawn slides


def test_ebhi_slides_carry_mpp_fold_and_the_lesion_of_their_own_pixels(small_ebhi: Path, tmp_path: Path) -> None:
    cohort = faultless(ebhi_seg.write(small_ebhi, tmp_path, folds=(0, 2), cells_a_side=(2, 3)))
    assert [(s.patient, s.fold) for s in cohort.slides] == [(f"c{k:02d}", k // 4) for k in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert [s.label for s in cohort.slides] == ["no adenocarcinoma", "adenocarcinoma"] * 4
    for slide in cohort.slides:
        assert slide.lesion_free == (slide.label == "no adenocarcinoma"), "the stand-in's others are polyps"
        with open_slide(slide.path) as opened:
            assert opened.mpp == pytest.approx((1.0, 1.0))
            if slide.lesion is not None:
                size = opened.width, opened.height
                rgb = opened.read(0, 0, *size, size=(size[0] // 4, size[1] // 4))
                mask = read_lesion(slide.lesion, size, rgb.shape[:2])
                dark = rgb[..., 0] < 150
                assert 0.05 < mask.mean() < 0.9
                assert dark[mask].mean() > 5 * dark[~mask].mean(), "neoplastic glands are the dark ones"


def test_of_folds_not_asked_for_no_picture_is_opened(small_ebhi: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(small_ebhi, part)
    for case in range(4, 16):
        for path in (part / "images").glob(f"{case}-*.jpg"):
            path.unlink()
    write = partial(ebhi_seg.write, part, cells_a_side=(2, 2))
    one, two = write(tmp_path / "one", folds=[0]), write(tmp_path / "two", folds=[0])
    files = sorted(path.relative_to(one.parent) for path in one.parent.rglob("*") if path.is_file())
    assert len(files) == 1 + 4 + 2
    assert all((one.parent / name).read_bytes() == (two.parent / name).read_bytes() for name in files)
    with pytest.raises(CohortError, match=r"- there is no images/4-0\.jpg\n- there is no images/4-1\.jpg"):
        write(tmp_path / "all")


def test_a_fold_that_is_none_of_ebhi_segs_is_no_fault_of_its_files(small_ebhi: Path, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"No case of .* is in the folds 9: leave --fold out for all"):
        ebhi_seg.write(small_ebhi, tmp_path / "out", folds=[9])


def test_drawn_slides_have_a_lesion_every_other_time_and_come_again(tmp_path: Path) -> None:
    write = partial(synthetic.write, size_px=512)
    cohort = faultless(write(tmp_path / "a", slides=4))
    assert [(s.label, s.patient) for s in cohort.slides] == [
        ("adenocarcinoma", "drawn-0000"), ("no adenocarcinoma", "drawn-0001"),
        ("adenocarcinoma", "drawn-0002"), ("no adenocarcinoma", "drawn-0003"),
    ]  # fmt: skip
    for slide in cohort.slides:
        assert slide.lesion_free == (slide.label != "adenocarcinoma")
        if slide.lesion is not None:
            seed = 100_000 + int(slide.patient[-1])
            drawn = synthetic.synthetic_slide(seed, lesion=True, size_px=512).lesion
            assert np.array_equal(read_lesion(slide.lesion, (512, 512), (512, 512)), drawn)
    again = read_cohort(write(tmp_path / "b", slides=2))
    other = read_cohort(write(tmp_path / "c", slides=2, seed=1))
    for first, same, different in zip(cohort.slides, again.slides, other.slides, strict=False):
        assert first.path.read_bytes() == same.path.read_bytes() != different.path.read_bytes()
    with pytest.raises(ResultExistsError, match="already there"):
        write(tmp_path / "a", slides=4)
    with pytest.raises(CohortError, match="1 slides of seed 0 cannot be drawn"):
        write(tmp_path / "d", slides=1)


# --- The command line


def test_the_command_writes_checks_and_does_not_replace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(8):
        picture(tmp_path / "tree" / "ab"[number % 2] / f"{number}.tif")
    command = ["cohort", "from", "folders", str(tmp_path / "tree"), "--out", str(tmp_path / "out"), "--mpp", "0.5"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.exception
    assert "8 slides of 8 patients, classes a, b" in done.stdout
    assert "each file counts as a patient of its own" in caplog.text
    done = CliRunner().invoke(app, ["cohort", "check", str(tmp_path / "out" / "cohort.csv"), "--folds", "2"])
    assert "no faults" in done.stdout
    assert isinstance(CliRunner().invoke(app, command).exception, ResultExistsError)
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0


def test_the_command_draws_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "write", partial(synthetic.write, size_px=512))
    done = CliRunner().invoke(app, ["cohort", "synthetic", "--slides", "2", "--seed", "3", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.exception
    assert "2 slides of 2 patients" in done.stdout


def test_every_dataset_of_the_command_is_there_and_foreign_options_are_refused(tmp_path: Path) -> None:
    from napari_msamil.cli_training import DatasetName

    assert [name.value for name in DatasetName] == list(ADAPTERS)
    with pytest.raises(CohortError, match="camelyon16 has no option mpp"):
        write_dataset("camelyon16", tmp_path, tmp_path / "out", mpp=0.5, patient=None)
    for name in ADAPTERS:
        with pytest.raises(CohortError, match=r"there (is|are) no|holds no slides"):
            write_dataset(name, tmp_path, tmp_path / "out")


# --- training on them


@pytest.mark.parametrize("dataset", ["ubc-ocean", "bcnb", "digestpath2019", "camelyon16", "ebhi-seg", "folders"])
def test_what_an_adapter_writes_trains_an_epoch(dataset: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """All slides are learned from and validated on: the stand-ins are too small for parts."""
    if dataset == "folders":
        for label in "ab":
            for number in range(2):
                picture(tmp_path / "tree" / label / f"{label}{number}.tif")
        table = folders.write(tmp_path / "tree", tmp_path / "out")
    else:
        fixtures = {"ubc-ocean": "ubc", "bcnb": "biopsies", "digestpath2019": "colonoscopies", "camelyon16": "nodes"}
        folder = request.getfixturevalue(fixtures.get(dataset, "small_ebhi"))
        table = write_dataset(dataset, folder, tmp_path / "out")
    cohort = read_cohort(table)
    small = ["model.thumbnail_px=64", "model.patch_px=32", "end_to_end.patches=4", "machine.device=cpu"]
    config = read_config("tiny", small)
    run = Run(tmp_path / "run", config, cohort, config.card(cohort.classes), choose_device("cpu"), "")
    rows = np.arange(len(cohort.slides))
    fold = Fold(run, 0, Parts(rows, rows, rows[:0]))
    for stage in ("segment", "end-to-end", "extract", "mil"):
        fold.run_stage(stage)
    lines = [json.loads(line) for line in (tmp_path / "run" / "fold-0" / "log.jsonl").read_text().splitlines()]
    trained = {"end-to-end", "mil"} | ({"segment"} if any(s.lesion for s in cohort.slides) else set())
    assert {line["stage"] for line in lines if line["score"] is not None} == trained
