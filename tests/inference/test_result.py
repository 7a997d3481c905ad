"""The result folder: complete or absent, and never written over by surprise."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_msamil.errors import MsamilError, ReadError, ResultExistsError
from napari_msamil.inference import result
from napari_msamil.inference.classify import classify
from napari_msamil.inference.geojson import Polygon
from napari_msamil.inference.overview import _WARN, _font, _foot, _no_lesion, draw_overview, round_length
from napari_msamil.inference.prediction import REGION_RGB, RESEARCH_USE, Prediction, iso_time
from napari_msamil.inference.result import write_result
from napari_msamil.slide.slide import Slide


@pytest.fixture(scope="module")
def prediction(slide_file: Path, model_file: Path) -> Prediction:
    return classify(slide_file, model_file)


def test_the_folder_holds_the_numbers_that_were_shown(prediction: Prediction, tmp_path: Path) -> None:
    folder = write_result(prediction, tmp_path / "out")
    assert folder == tmp_path / "out" / "square"
    assert sorted(p.name for p in folder.iterdir()) == [
        "attention_10x.tif",
        "attention_2.5x.tif",
        "attention_5x.tif",
        "lesion.geojson",
        "overview.png",
        "patches.csv",
        "prediction.json",
    ]
    facts = json.loads((folder / "prediction.json").read_text(encoding="utf-8"))
    assert facts["probabilities"] == dict(zip(prediction.classes, prediction.probabilities.tolist(), strict=True))
    with (folder / "patches.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["x"]) for r in rows] == prediction.table.coords[:, 0].tolist()
    assert sum(float(r["attention"]) for r in rows) == pytest.approx(1.0, abs=1e-4)
    assert json.loads((folder / "lesion.geojson").read_text())["type"] == "FeatureCollection"


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_heatmap_files_carry_their_mpp_and_place(prediction: Prediction, tmp_path: Path, scale: int) -> None:
    folder = write_result(prediction, tmp_path)
    heatmap = prediction.heatmap(scale, values="attention")
    with tifffile.TiffFile(folder / f"attention_{heatmap.name}.tif") as tif:
        page = tif.pages[0]
        assert np.array_equal(page.asarray(), heatmap.array, equal_nan=True)
        numerator, denominator = page.tags["XResolution"].value
        place = json.loads(page.description)
    cell_um = 64 * prediction.table.scales[scale].mpp
    assert 1e4 / (numerator / denominator) == pytest.approx(cell_um, rel=1e-4)
    assert place["mpp"] == pytest.approx([cell_um, cell_um])
    assert place["origin_level0_px"] == pytest.approx(heatmap.origin)
    assert (place["slide"], place["slide_px"]) == (prediction.slide_path.name, list(prediction.slide_size))
    assert (place["looked_at"], place["weak"], place["notice"]) == ("slide", prediction.weak, RESEARCH_USE)


def test_the_overview_shows_five_panels(prediction: Prediction, tmp_path: Path) -> None:
    folder = write_result(prediction, tmp_path)
    with Image.open(folder / "overview.png") as page:
        assert page.width >= 5 * 440
        assert np.asarray(page).std() > 20


def test_an_existing_result_is_kept_unless_it_may_be_replaced(prediction: Prediction, tmp_path: Path) -> None:
    folder = write_result(prediction, tmp_path)
    (folder / "qupath").mkdir()
    (folder / "qupath" / "note.txt").write_text("mine")
    (folder / "attention_40x.tif").write_text("of a model with other scales")
    (folder / "attention_10x - Copy.tif").write_text("mine")
    facts = json.loads((folder / "prediction.json").read_text())
    facts["scales"].append({"name": "40x"})
    (folder / "prediction.json").write_text(json.dumps(facts))
    with pytest.raises(ResultExistsError, match="is there already"):
        write_result(prediction, tmp_path)
    assert (folder / "attention_40x.tif").exists()
    write_result(prediction, tmp_path, overwrite=True)
    assert not (folder / "attention_40x.tif").exists()
    assert (folder / "qupath" / "note.txt").read_text() == "mine"
    assert (folder / "attention_10x - Copy.tif").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["square"]


def test_a_folder_that_is_no_result_is_never_replaced_not_even_with_overwrite(
    prediction: Prediction, tmp_path: Path
) -> None:
    theirs = tmp_path / "square"
    theirs.mkdir()
    (theirs / "Data0001.dat").write_text("the pixels of a slide of that name")
    with pytest.raises(ResultExistsError, match="no result of ours"):
        write_result(prediction, tmp_path, overwrite=True)
    assert (theirs / "Data0001.dat").exists()


def test_a_failure_half_way_leaves_neither_a_new_folder_nor_harms_the_old(
    prediction: Prediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (write_result(prediction, tmp_path) / "prediction.json").read_bytes()

    def full_disk(*args: object, **about: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result, "write_heatmap", full_disk)
    with pytest.raises(MsamilError, match="No space left"):
        write_result(prediction, tmp_path, overwrite=True)
    assert (tmp_path / "square" / "prediction.json").read_bytes() == before
    with pytest.raises(MsamilError, match="No space left"):
        write_result(prediction, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    for folder in (taken / "square", taken / "deep" / "square", tmp_path / ("long" * 80)):
        with pytest.raises(MsamilError, match="Cannot write the result to"):
            result.check_free(folder, overwrite=True)
    result.check_free(tmp_path / "new" / "square", overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "trying leaves nothing behind"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
@pytest.mark.parametrize("name", ["Schnitt_\udce4.tif", "two\nlines.tif", "n" * 250 + ".tif"])
def test_any_name_that_a_file_can_have_is_written(prediction: Prediction, tmp_path: Path, name: str) -> None:
    slide = tmp_path / name
    shutil.copyfile(prediction.slide_path, slide)
    folder = write_result(replace(prediction, slide_path=slide), tmp_path / "out")
    assert folder.name == slide.stem
    assert json.loads((folder / "prediction.json").read_text(encoding="utf-8"))["slide"]["name"] == name


def test_a_damaged_level_that_only_the_picture_needs_costs_the_picture_and_not_the_result(
    prediction: Prediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*place: object, **size: object) -> None:
        raise ReadError("square.tif cannot be read at level 3")

    monkeypatch.setattr(Slide, "read", damaged)
    folder = write_result(prediction, tmp_path)
    with Image.open(folder / "overview.png") as page:
        assert (np.asarray(page)[100:] == _WARN).all(axis=-1).any(), "the first panel says why it shows no slide"
    assert (folder / "prediction.json").is_file()


def test_the_overview_never_shows_another_file_that_took_the_slides_name(
    prediction: Prediction, tmp_path: Path
) -> None:
    path = tmp_path / "square.tif"
    path.write_bytes(prediction.slide_path.read_bytes())
    file = path.stat()
    told = replace(prediction, slide_path=path, slide_bytes=file.st_size, slide_modified=iso_time(file.st_mtime))

    def panels() -> np.ndarray:
        return np.asarray(draw_overview(told))

    shown = panels()
    os.utime(path, (1, 1))
    changed = panels()
    path.unlink()
    np.testing.assert_array_equal(changed, panels())
    assert (changed != shown).any()
    panel = changed[84 + 26 * 2 + 24 :, 16 : 16 + 440]
    assert (panel == _WARN).all(axis=-1).any()
    assert (panel[150:280] == 200).all(), "down to the scale bar"
    assert (write_result(told, tmp_path / "out") / "prediction.json").is_file()


def test_the_overview_tells_every_note_and_what_the_model_is_for(prediction: Prediction) -> None:
    told = replace(prediction, fallback="took all", notes=("one thing", "another " * 60), intended_use="To look at.")
    lines = _foot(told, 800)
    text = " ".join(lines)
    for part in ("Note: took all.", "Note: one thing.", "another", "Intended use: To look at."):
        assert part in text
    assert max(map(len, lines)) < 100


def test_a_result_on_a_fallback_or_on_few_patches_is_weak_evidence_beside_the_class(prediction: Prediction) -> None:
    strong = replace(prediction, fallback=None)
    assert strong.weak is None
    assert strong.summary()["weak_evidence"] is None
    none = replace(prediction, fallback="took all")
    assert none.weak == none.summary()["weak_evidence"] == "no patch with enough lesion"
    few = replace(strong, table=prediction.table.take(np.arange(10)), attention=prediction.attention[:10])
    assert few.weak is None
    assert replace(few, read_errors={3: "broken tile"}).weak == "only 9 patches"
    assert replace(few, fallback="", read_errors=dict.fromkeys(range(9), "")).weak == (
        "no patch with enough lesion, only 1 patch"
    )
    keys = list(strong.summary())
    assert keys.index("weak_evidence") == keys.index("predicted") + 1
    for told, marked in ((strong, False), (none, True)):
        page = np.asarray(draw_overview(told))
        assert (page[:40] == _WARN).all(axis=-1).any() == marked, "the headline says it"


def test_a_long_name_is_cut_and_never_the_class_or_its_caveat(prediction: Prediction) -> None:
    long = replace(prediction, slide_path=Path("name-" * 60 + ".tif"), fallback="took all")
    short_page, page = draw_overview(replace(prediction, fallback="took all")), draw_overview(long)
    marked = [np.flatnonzero((np.asarray(p)[:40] == _WARN).all(axis=-1).any(axis=0)) for p in (short_page, page)]
    assert marked[1].max() < page.width - 1
    assert np.ptp(marked[1]) == pytest.approx(np.ptp(marked[0]), abs=2)


@pytest.mark.parametrize(
    ("lesion", "said"),
    [((), "No lesion above threshold"), ((slice(60, 61),) * 2, "Lesion too small to be seen here"), ((...,), "")],
)
def test_the_lesion_panel_says_why_it_shows_no_lesion(
    prediction: Prediction, lesion: tuple[object, ...], said: str
) -> None:
    mask = np.zeros((1024, 1024), np.uint8)
    if lesion:
        mask[lesion] = 1
    told = replace(prediction, lesion_mask=mask, fallback=None)
    assert _no_lesion(told, (440, 330)) == said
    panel = np.asarray(draw_overview(told))[:, 16 + 440 + 16 : 2 * (16 + 440)]
    assert (panel == _WARN).all(axis=-1).any() == bool(said)


@pytest.mark.parametrize(("mpp", "um"), [(1.0, 200), (0.25, 100), (10.0, 2000), (0.13, 50)])
def test_the_scale_bar_is_as_long_as_it_says(prediction: Prediction, mpp: float, um: int) -> None:
    told = replace(prediction, mpp=(mpp, 2 * mpp))
    page = np.asarray(draw_overview(told))
    below = 84 + 26 * 2 + 24 + 330  # the panels' lower edge
    bar = (page[below - 14, 16 : 16 + 440] == (30, 30, 34)).all(axis=-1)
    assert bar.sum() == np.ptp(np.flatnonzero(bar)) + 1 == round(um / (1200 * mpp / 440))


def test_round_lengths_are_1_2_or_5_times_a_power_of_ten() -> None:
    assert [round_length(v) for v in (1, 1.99, 2, 4.9, 5, 9.99, 10, 0.3, 12345)] == [1, 1, 2, 2, 5, 5, 10, 0.2, 10000]


def test_names_beyond_ascii_are_written_with_their_letters() -> None:
    nothing = bytes(_font(14).getmask("\uffff"))
    assert [c for c in "µ²äéøñß" if bytes(_font(14).getmask(c)) == nothing] == []


def test_the_overview_shows_the_border_of_the_region_on_every_panel(prediction: Prediction) -> None:
    hole = np.array([[500.0, 300.0], [600.0, 300.0], [600.0, 400.0]])
    square = Polygon(np.array([[300.0, 200.0], [900.0, 200.0], [900.0, 700.0], [300.0, 700.0]]), (hole,))
    plain = np.asarray(draw_overview(prediction))
    page = np.asarray(draw_overview(replace(prediction, region=(square,))))
    red = (page == REGION_RGB).all(axis=-1) & ~(plain == REGION_RGB).all(axis=-1)
    top, shrink = 84 + 26 * 2 + 24, 440 / 1200
    for panel in range(2 + len(prediction.table.scales)):
        left = 16 + panel * (440 + 16)
        for x, y in ((300, 450), (900, 450), (600, 200), (600, 700), (600, 350)):  # sides, then the hole's
            row, column = round(top + y * shrink), round(left + x * shrink)
            assert red[row - 2 : row + 3, column - 2 : column + 3].any(), (panel, x, y)
        assert not red[round(top + 450 * shrink), round(left + 400 * shrink)]
