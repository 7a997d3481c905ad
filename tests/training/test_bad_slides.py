"""A slide that opens and cannot be read deep inside: the run stops and names it, or leaves it out once and for all."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from napari_msamil.errors import ReadError
from napari_msamil.slide.slide import Slide, open_slide
from napari_msamil.training.checkpoint import CheckpointError
from napari_msamil.training.cohort import CohortError, read_cohort, write_cohort
from napari_msamil.training.command import run_training
from napari_msamil.training.datasets import synthetic

TRAINED, TESTED = 1, 9  # rows of the slides that are spoiled
SETTINGS = ["model.thumbnail_px=128", "end_to_end.patches=6", "end_to_end.chunk=4", "evaluate.selection=['lesion']"]
SKIP = "machine.skip_bad_slides=true"


def spoil(file: Path) -> None:
    """Overwrite the tiles of the finest level, which the thumbnail is not read from."""
    with tifffile.TiffFile(file) as tiff:
        assert len(tiff.pages) == 2
        page = tiff.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with file.open("r+b") as out:
        for offset, count in places:
            out.seek(offset)
            out.write(bytes(count))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten slides of two levels, five to learn from, two to validate on and three to test on."""
    table = synthetic.write(tmp_path_factory.mktemp("drawn"), slides=10, size_px=1024)
    parts = ["training"] * 5 + ["validation"] * 2 + ["test"] * 3
    slides = [replace(s, split=part, fold=None) for s, part in zip(read_cohort(table).slides, parts, strict=True)]
    return write_cohort(slides, table, overwrite=True)


@pytest.fixture
def spoiled(drawn: Path, tmp_path: Path) -> Path:
    """The same with one slide to learn from and one to test on that cannot be read at their finest level."""
    table = Path(shutil.copytree(drawn.parent, tmp_path / "cohort")) / drawn.name
    slides = read_cohort(table).slides
    for row in (TRAINED, TESTED):
        spoil(slides[row].path)
        with open_slide(slides[row].path) as slide:
            slide.read(0, 0, slide.width, slide.height, size=(128, 128))
    return table


def train(stage: str, cohort: Path, out: Path, *settings: str) -> Path | None:
    settings = (*SETTINGS, "machine.device=cpu", *settings)
    return run_training(stage, preset="tiny", settings=settings, cohort=cohort, out=out, command="it")


def names(cohort: Path) -> tuple[str, str]:
    slides = read_cohort(cohort).slides
    return slides[TRAINED].path.name, slides[TESTED].path.name


def test_a_patch_that_cannot_be_read_stops_the_run_and_says_what_to_do(spoiled: Path, tmp_path: Path) -> None:
    bad, _ = names(spoiled)
    train("segment", spoiled, tmp_path / "run")  # its thumbnail can be read
    with pytest.raises(ReadError, match=rf"{bad}: the patch at x=\d+, y=\d+ cannot be read .*skip_bad_slides=true"):
        train("end-to-end", spoiled, tmp_path / "run")


def test_bad_slides_are_named_once_left_out_and_stand_in_the_report(
    spoiled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "napari_msamil"):
        train("all", spoiled, tmp_path / "run", SKIP)
    for name in names(spoiled):
        assert len([r for r in caplog.records if name in r.getMessage()]) == 1, name
        assert f"left out: {name}: the patch at x=" in caplog.text
    result = json.loads((tmp_path / "run" / "fold-0" / "result.json").read_text())
    assert result["slides"] == {"training": 4, "validation": 2, "test": 2}
    assert result["left_out"] == sorted(names(spoiled))
    assert json.loads((tmp_path / "run" / "fold-0" / "logits.json").read_text())["rows"] == [7, 8]
    assert (
        f"Left out of all parts, since they could not be used: {', '.join(sorted(names(spoiled)))}."
        in (tmp_path / "run" / "report.md").read_text()
    )


def test_a_run_that_is_gone_on_with_leaves_out_what_it_left_out_bit_for_bit(
    spoiled: Path, drawn: Path, tmp_path: Path
) -> None:
    for stage in ("segment", "end-to-end"):
        train(stage, spoiled, tmp_path / "a", SKIP)
    train("segment", spoiled, tmp_path / "b", SKIP)
    shutil.copy(read_cohort(drawn).slides[TRAINED].path, read_cohort(spoiled).slides[TRAINED].path)  # repaired
    train("end-to-end", spoiled, tmp_path / "b", SKIP)
    one, two = (torch.load(tmp_path / k / "fold-0" / "end-to-end.pt", weights_only=True) for k in "ab")
    assert one["plan"] == two["plan"]
    for name, value in one["modules"]["aggregator"].items():
        assert torch.equal(value, two["modules"]["aggregator"][name]), name


def test_slides_are_read_through_once_for_all_stages_and_the_test_part_not_before_its_stage(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain = Slide.read

    def noted(self: Slide, *given: object, **named: object) -> object:
        read.append(self.name)
        return plain(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Slide, "read", noted)
    train("segment", drawn, tmp_path / "run", SKIP)
    slides = [slide.path.name for slide in read_cohort(drawn).slides]
    assert min(map(read.count, slides[:7])) > 10, "a thumbnail and many patches"
    assert not set(slides[7:]) & set(read)
    read.clear()
    train("segment", drawn, tmp_path / "run", SKIP)
    assert not read


def test_leaving_slides_out_of_a_run_that_learned_from_them_is_refused(spoiled: Path, tmp_path: Path) -> None:
    train("segment", spoiled, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"cannot be resumed: .*it learned from other slides or settings"):
        train("segment", spoiled, tmp_path / "run", SKIP)


def thin(file: Path) -> None:
    """Put a slide in the place of another that shows a thread of tissue, so that no patch is one of tissue."""
    with open_slide(file) as slide:
        width, height, mpp = slide.width, slide.height, slide.mpp
    assert mpp is not None
    picture = np.full((height, width, 3), 245, np.uint8)
    picture[height // 2 - 16 : height // 2 + 16, 100:-100] = (170, 80, 150)
    where = {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(file, picture, tile=(256, 256), photometric="rgb", **where)


@pytest.mark.parametrize("row", [TRAINED, TESTED])
def test_a_slide_without_a_patch_of_tissue_is_left_out_before_training_and_not_found_after_it(
    drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, row: int
) -> None:
    table = Path(shutil.copytree(drawn.parent, tmp_path / "cohort")) / drawn.name
    file = read_cohort(table).slides[row].path
    thin(file)
    for _ in range(2 * (row == TRAINED)):  # the same command again says the same
        with pytest.raises(
            CohortError, match=rf"{file.name}: no patch holds 0\.50 or more of tissue .*skip_bad_slides"
        ):
            train("segment", table, tmp_path / "stopped")
    with caplog.at_level(logging.WARNING, "napari_msamil"):
        train("all", table, tmp_path / "run", SKIP)
    assert f"left out: {file.name}: no patch holds 0.50 or more of tissue (its patches hold at most 0." in caplog.text
    result = json.loads((tmp_path / "run" / "fold-0" / "result.json").read_text())
    assert result["left_out"] == [file.name]
