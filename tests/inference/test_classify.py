"""Algorithm 1 as a generator: what it reads, what it says, and how it stops."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import napari_msamil
from napari_msamil.errors import MissingMppError, MsamilError, ReadError, RegionError, UnreadablePatchesError
from napari_msamil.inference.classify import Progress, Request, classify, classify_steps
from napari_msamil.inference.geojson import Polygon
from napari_msamil.inference.prediction import Prediction
from napari_msamil.models.bag import Bag
from napari_msamil.models.card import Thresholds
from napari_msamil.models.model import Model, load_model, save_model
from napari_msamil.slide.slide import Slide, open_slide


@pytest.fixture(scope="module")
def prediction(slide_file: Path, model_file: Path) -> Prediction:
    return classify(slide_file, model_file)


def test_probabilities_sum_to_one_and_name_a_class(prediction: Prediction) -> None:
    assert prediction.probabilities.sum() == pytest.approx(1.0)
    assert prediction.predicted == prediction.classes[int(prediction.probabilities.argmax())]


def test_attention_is_one_number_per_patch_and_sums_to_one_over_all_scales(prediction: Prediction) -> None:
    assert prediction.attention.shape == (len(prediction.table),)
    assert prediction.attention.sum() == pytest.approx(1.0, abs=1e-5)
    assert set(prediction.table.scale.tolist()) == {0, 1, 2}


def test_the_prediction_is_what_the_model_says_of_the_patches_read_one_by_one(
    prediction: Prediction, slide_file: Path, model_file: Path
) -> None:
    model, table = load_model(model_file), prediction.table
    features = []
    with open_slide(slide_file) as slide, torch.inference_mode():
        for row in range(len(table)):
            (x, y), (width, height) = table.coords[row].tolist(), table.footprint(int(table.scale[row]))
            pixels = slide.read(x, y, width, height, size=(64, 64))
            features.append(model.embed(torch.from_numpy(pixels)[None])[0])
        bag = Bag(
            features=torch.stack(features),
            coords=torch.from_numpy(table.coords),
            scale=torch.from_numpy(table.scale.astype(np.int64)),
            slide_size=table.slide_size,
        )
        output = model.aggregate(bag)
    assert torch.softmax(output.logits, -1).numpy() == pytest.approx(prediction.probabilities, abs=1e-5)
    assert output.attention is not None
    assert output.attention.numpy() == pytest.approx(prediction.attention, abs=1e-6)


def test_a_second_run_gives_identical_numbers(prediction: Prediction, slide_file: Path, model_file: Path) -> None:
    again = napari_msamil.classify(slide_file, model_file)
    assert np.array_equal(again.probabilities, prediction.probabilities)
    assert np.array_equal(again.attention, prediction.attention)
    assert np.array_equal(again.lesion_mask, prediction.lesion_mask)
    first, second = prediction.summary(), again.summary()
    assert first.pop("created") <= second.pop("created"), "when and how long are all that may differ"
    assert first.pop("seconds").keys() == second.pop("seconds").keys()
    assert first == second


def test_the_result_says_when_it_was_made_and_of_which_file(slide_file: Path, model_file: Path, tmp_path: Path) -> None:
    slide_file = Path(shutil.copy(slide_file, tmp_path))
    os.utime(slide_file, (1_700_000_000, 1_700_000_000))
    before = datetime.now(UTC).replace(microsecond=0)
    facts = classify(slide_file, model_file).summary()
    created = datetime.fromisoformat(facts["created"])
    assert created.utcoffset() == timedelta(0)
    assert created.microsecond == 0
    assert before <= created <= datetime.now(UTC)
    assert facts["slide"]["file_bytes"] == slide_file.stat().st_size
    assert facts["slide"]["file_modified"] == "2023-11-14T22:13:20+00:00"


def test_a_model_whose_card_allows_it_runs_in_bf16_on_a_cpu_that_has_it(
    prediction: Prediction, slide_file: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = load_model(model_file)
    allowed.card = allowed.card.model_copy(update={"cpu_precision": "bf16"})
    save_model(allowed, tmp_path / "bf16.safetensors")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    full, half = prediction, classify(slide_file, tmp_path / "bf16.safetensors", device="cpu")
    assert (full.precision, half.precision) == ("fp32", "bf16")
    assert half.probabilities == pytest.approx(full.probabilities, abs=0.02)
    assert not np.array_equal(half.probabilities, full.probabilities)


def _with(model_file: Path, folder: Path, **changes: object) -> Path:
    """A copy of the model whose card says something else."""
    model = load_model(model_file)
    model.card = model.card.model_copy(update=changes)
    save_model(model, folder / "changed.safetensors", overwrite=True)
    return folder / "changed.safetensors"


def test_letterbox_shows_the_segmenter_the_slide_in_its_own_proportions(
    slide_file: Path, model_file: Path, tmp_path: Path, prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    segment = Model.segment

    def spy(model: Model, thumbnails: torch.Tensor) -> torch.Tensor:
        seen.append(thumbnails)
        return segment(model, thumbnails)

    monkeypatch.setattr(Model, "segment", spy)
    found = classify(slide_file, _with(model_file, tmp_path, resize="letterbox"), device="cpu")
    assert found.lesion_mask.shape == found.tissue_mask.shape == (96, 128), "1200 x 900 px in a square of 128"
    assert seen[0].shape == (1, 128, 128, 3)
    assert (seen[0][0, 96:] == 255).all()
    mine, stretched = (
        np.argwhere(mask).mean(axis=0) / mask.shape for mask in (found.tissue_mask, prediction.tissue_mask)
    )
    assert mine == pytest.approx(stretched, abs=0.01), "the mask lies over the same part of the slide"
    assert len(found.table)


def test_each_scale_is_read_from_level_0_where_the_card_says_so(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = tmp_path / "two-colours.tif"
    with tifffile.TiffWriter(slide) as file:  # level 1 has another colour than level 0: pixels tell where they are from
        for side, colour in ((1024, (200, 60, 120)), (512, (90, 60, 170))):
            pixels = np.full((side, side, 3), 255, np.uint8)
            pixels[:, side // 2 :] = colour  # tissue on the right, glass on the left
            file.write(
                pixels, tile=(256, 256), photometric="rgb",
                subfiletype=int(side < 1024), resolution=(1e4, 1e4), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    seen: list[torch.Tensor] = []
    embed = Model.embed
    monkeypatch.setattr(Model, "embed", lambda model, pixels: (seen.append(pixels), embed(model, pixels))[1])
    all_tissue = Thresholds(lesion_fraction=1.0)
    for read, colours in (("pyramid", {200, 90}), ("level0", {200})):
        seen.clear()
        classify(slide, _with(model_file, tmp_path, read=read, thresholds=all_tissue), device="cpu")
        assert {int(red) for patches in seen for red in patches[..., 0].unique()} - {255} == colours


@pytest.fixture(scope="module")
def all_lesion(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a segmenter that calls everything lesion, even the glass."""
    model = load_model(model_file)
    with torch.no_grad():
        model.segmenter.net.segmentation_head[0].bias.fill_(50.0)
    path = tmp_path_factory.mktemp("model") / "all-lesion.safetensors"
    save_model(model, path)
    return path


def test_overlap_reads_more_patches_and_one_threshold_per_scale_can_leave_a_scale_out(
    slide_file: Path, all_lesion: Path, tmp_path: Path
) -> None:
    plain = classify(slide_file, all_lesion, device="cpu")
    only_finest = Thresholds(lesion_fraction=(0.5, 1.0, 1.0))
    found = classify(slide_file, _with(all_lesion, tmp_path, overlap=0.5, thresholds=only_finest), device="cpu")
    assert set(plain.table.scale.tolist()) == {0, 1, 2}
    assert set(found.table.scale.tolist()) == {0}
    count = (plain.table.scale == 0).sum()
    assert 3 * count < len(found.table) < 5 * count
    assert found.heatmap(0).downsample == (32, 32)


def test_glass_is_never_looked_at(slide_file: Path, all_lesion: Path) -> None:
    prediction = classify(slide_file, all_lesion, device="cpu")
    assert prediction.lesion_mask.all()
    assert prediction.fallback is None
    assert prediction.table.tissue.min() >= 0.5
    corners = prediction.table.coords[prediction.table.scale == 0]
    assert corners.min(axis=0).tolist() == [320, 192]
    assert corners.max(axis=0).tolist() == [832, 640]


def test_progress_counts_up_to_every_patch_and_tells_the_time_left(slide_file: Path, model_file: Path) -> None:
    steps = list(classify_steps(Request(slide_file, model_file, batch_size=8)))
    assert [s.stage for s in steps if s.done == 0] == ["open", "lesion mask", "patches", "aggregate"]
    counts = [s for s in steps if s.stage == "patches"]
    assert counts[-1].done == counts[-1].total
    assert [s.done for s in counts] == sorted({s.done for s in counts})
    assert all(s.seconds_left is not None for s in counts[1:])
    assert counts[-1].seconds_left == pytest.approx(0)


def test_closing_the_generator_stops_the_reading_threads(slide_file: Path, model_file: Path) -> None:
    import threading

    steps = classify_steps(Request(slide_file, model_file, batch_size=2))
    for step in steps:
        if step.stage == "patches" and step.done:
            break
    steps.close()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("msamil")]


def test_a_region_limits_what_is_read(slide_file: Path, model_file: Path) -> None:
    square = np.array([[300.0, 200.0], [500.0, 200.0], [500.0, 400.0], [300.0, 400.0]])
    inside = classify(slide_file, model_file, region=(Polygon(square),))
    assert 0 < len(inside.table) < 60
    assert inside.table.coords.max() <= 512
    assert inside.tissue_area_mm2 == pytest.approx(0.04, rel=0.1)
    assert inside.summary()["region"] == {
        "type": "MultiPolygon",
        "coordinates": [[[*square.tolist(), square[0].tolist()]]],
    }
    assert any("drawn region" in note for note in inside.notes)
    with pytest.raises(RegionError, match="No region lies on the slide"):
        classify(slide_file, "never-loaded.safetensors", region=(Polygon(square + 1e5),))


def test_a_region_too_small_for_any_patch_says_so(slide_file: Path, model_file: Path) -> None:
    small = np.array([[480.0, 380], [500, 380], [500, 400], [480, 400]])
    with pytest.raises(MsamilError, match=r"region is too small.*64 µm wide"):
        classify(slide_file, model_file, region=(Polygon(small),))


def test_a_region_thinner_than_a_pixel_of_the_lesion_mask_has_no_area_but_its_patches(
    slide_file: Path, model_file: Path, tmp_path: Path
) -> None:
    keen = _with(model_file, tmp_path, thresholds=Thresholds(lesion_fraction=0.0, tissue_fraction=0.01))
    thin = np.array([[308.0, 300], [311, 300], [311, 600], [308, 600]])  # the mask's pixels are 9.4 px wide
    found = classify(slide_file, keen, region=(Polygon(thin),))
    assert len(found.table) > 0
    assert found.tissue_area_mm2 == 0


def test_a_region_may_be_a_file(slide_file: Path, model_file: Path, tmp_path: Path) -> None:
    square = [[[300, 200], [800, 200], [800, 700], [300, 700], [300, 200]]]
    path = tmp_path / "region.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": square}))
    found = classify(slide_file, model_file, region=path)
    assert found.region is not None
    assert found.region[0].exterior.tolist() == square[0]


def test_a_slide_without_mpp_is_refused_until_it_is_given(tmp_path: Path, model_file: Path) -> None:
    path = tmp_path / "no-mpp.tif"
    tifffile.imwrite(path, np.full((256, 256, 3), 120, np.uint8), tile=(256, 256), photometric="rgb")
    with pytest.raises(MissingMppError, match=r"no-mpp\.tif does not say its µm per pixel\. Give"):
        classify(path, model_file)
    prediction = classify(path, model_file, mpp=1.0)
    assert prediction.mpp_source == "explicit"


def test_a_result_that_rests_on_few_patches_says_so(slide_file: Path, model_file: Path) -> None:
    corner = np.array([[318.0, 254.0], [450.0, 254.0], [450.0, 322.0], [318.0, 322.0]])
    prediction = classify(slide_file, model_file, region=(Polygon(corner),))
    assert prediction.weak == "no lesion found, only 2 patches"


def test_a_slide_of_glass_says_that_there_is_nothing_to_classify(tmp_path: Path, model_file: Path) -> None:
    path = tmp_path / "glass.tif"
    tifffile.imwrite(path, np.full((512, 512, 3), 243, np.uint8), tile=(256, 256), photometric="rgb")
    with pytest.raises(MsamilError, match=r"glass\.tif.*nothing to classify\. Check that it shows tissue"):
        classify(path, model_file, mpp=1.0)
    with pytest.raises(MsamilError, match=r"glass\.tif: the slide is too small.* 41 x 41 µm, the smallest patches 64"):
        classify(path, model_file, mpp=0.08)


def _break_some_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Slide.read

    def read(self: Slide, x: float, y: float, width: float, height: float, *, size: tuple[int, int]) -> np.ndarray:
        if size == (64, 64) and 500 < x < 600 and width < 100:
            raise ReadError("broken tile")
        return plain(self, x, y, width, height, size=size)

    monkeypatch.setattr(Slide, "read", read)


def test_unreadable_patches_fail_the_slide_unless_a_share_is_allowed(
    slide_file: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_some_patches(monkeypatch)
    with pytest.raises(ReadError, match=r"square\.tif: \d+ of \d+ patches could not be read.*broken tile"):
        classify(slide_file, model_file)


def test_allowed_unreadable_patches_are_counted_and_have_no_attention(
    slide_file: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_some_patches(monkeypatch)
    steps = classify_steps(Request(slide_file, model_file, max_read_errors=0.5))
    prediction = _finish(steps)
    failed = np.array(sorted(prediction.read_errors))
    assert failed.size > 0
    assert np.isnan(prediction.attention[failed]).all()
    assert np.nansum(prediction.attention) == pytest.approx(1.0, abs=1e-5)
    assert prediction.summary()["scales"][0]["read_errors"] == failed.size
    assert any(f"{failed.size} of {len(prediction.table)} patches could not be read" in n for n in prediction.notes)


@pytest.fixture
def slide_with_a_bad_tile(slide_file: Path, tmp_path: Path) -> Path:
    """The slide without the second tile of the second row: (256, 256) to (512, 512), in the tissue."""
    with tifffile.TiffFile(slide_file) as tiff:
        index = 1 * 5 + 1
        offset, count = tiff.pages[0].dataoffsets[index], tiff.pages[0].databytecounts[index]
    data = bytearray(slide_file.read_bytes())
    data[offset : offset + count] = bytes(count)
    path = tmp_path / "hole.tif"
    path.write_bytes(data)
    return path


def test_a_tile_that_the_thumbnail_needs_may_be_unreadable_where_that_is_allowed(
    slide_with_a_bad_tile: Path, model_file: Path
) -> None:
    with pytest.raises(UnreadablePatchesError, match=r"hole\.tif cannot be read at level 0"):
        classify(slide_with_a_bad_tile, model_file)
    with pytest.raises(UnreadablePatchesError, match=r"hole\.tif: \d\.\d % of it cannot be read, more than .* 1 %"):
        classify(slide_with_a_bad_tile, model_file, max_read_errors=0.01)
    prediction = classify(slide_with_a_bad_tile, model_file, max_read_errors=0.5)
    [note] = [n for n in prediction.notes if "of the slide could not be read" in n]
    assert 100 * 256 * 256 / (1200 * 900) <= float(note.split("%")[0]) < 100 * 340 * 340 / (1200 * 900)
    height, width = prediction.tissue_mask.shape
    assert not prediction.tissue_mask[height * 384 // 900, width * 384 // 1200]
    assert prediction.tissue_mask[height * 600 // 900, width * 700 // 1200]
    assert np.nansum(prediction.attention) == pytest.approx(1.0, abs=1e-5)
    assert sum(prediction.patches_read) == len(prediction.table) - len(prediction.read_errors)


def test_a_picture_without_colour_is_noted(slide_file: Path, model_file: Path, tmp_path: Path) -> None:
    pixels = tifffile.imread(slide_file, series=0, level=0)
    grey = np.repeat(pixels.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    tifffile.imwrite(tmp_path / "grey.tif", grey, tile=(256, 256), photometric="rgb")
    colours, none = (classify(file, model_file, mpp=1.0).notes for file in (slide_file, tmp_path / "grey.tif"))
    assert not any("no colour" in note for note in colours)
    assert any("no colour" in note for note in none)


def test_damage_outside_the_region_is_no_part_of_the_share(slide_with_a_bad_tile: Path, model_file: Path) -> None:
    away = Polygon(np.array([[620.0, 520], [880, 520], [880, 690], [620, 690]]))
    prediction = classify(slide_with_a_bad_tile, model_file, region=(away,), max_read_errors=0.001)
    assert len(prediction.table)
    assert not prediction.read_errors
    assert not any("could not be read" in note for note in prediction.notes)


def test_a_slide_of_which_nothing_can_be_read_is_refused_whatever_is_allowed(
    slide_file: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ReadError("square.tif cannot be read")

    monkeypatch.setattr(Slide, "read", broken)
    with pytest.raises(ReadError) as caught:
        classify(slide_file, model_file, max_read_errors=1.0)
    assert not isinstance(caught.value, UnreadablePatchesError), "there is nothing to accept"


def test_every_fact_of_the_run_is_kept(prediction: Prediction, model_file: Path) -> None:
    facts = prediction.summary()
    assert facts["notice"] == "Research use only. Not for diagnosis."
    assert facts["slide"]["mpp_x"] == pytest.approx(1.0)
    assert facts["model"]["sha256"] == load_model(model_file).sha256
    assert [s["mpp"] for s in facts["scales"]] == [1.0, 2.0, 4.0]
    assert sum(s["patches"] for s in facts["scales"]) == len(prediction.table)
    assert {"open", "lesion mask", "extract", "aggregate", "total"} <= facts["seconds"].keys()
    assert facts["tissue_area_mm2"] == pytest.approx(0.3, rel=0.1)


def test_top_patches_come_best_first_and_leave_unread_ones_out(prediction: Prediction) -> None:
    rows = prediction.top_patches(0, 5)
    attention = prediction.attention[rows]
    assert np.all(np.diff(attention) <= 0)
    best = attention.max()
    blind = replace(prediction, attention=np.where(prediction.attention == best, np.nan, prediction.attention))
    assert rows[0] not in blind.top_patches(0, 5)


def _finish(steps: object) -> Prediction:
    while True:
        try:
            assert isinstance(next(steps), Progress)  # type: ignore[call-overload]
        except StopIteration as end:
            result: Prediction = end.value
            return result
