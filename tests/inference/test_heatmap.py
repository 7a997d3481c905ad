"""Heatmaps: each value stands in its patch's cell, and units mean what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_msamil.inference.heatmap import Heatmap, colour, express, rasterize, read_heatmap, write_heatmap
from napari_msamil.patches.grid import PatchTable, Scale, build_table


@pytest.fixture
def table() -> PatchTable:
    tissue = np.zeros((50, 80), bool)
    tissue[10:40, 30:70] = True
    scales = (Scale(0.5, 100), Scale(1.0, 100))
    return build_table((800, 500), (0.25, 0.25), scales=scales, tissue=tissue, lesion=tissue, region=None)


@pytest.mark.parametrize("scale", [0, 1])
def test_each_value_stands_in_the_cell_of_its_patch(table: PatchTable, scale: int) -> None:
    numbers = np.arange(len(table), dtype=np.float32)
    heatmap = rasterize(table, numbers, scale, values="attention")
    rows = np.flatnonzero(table.scale == scale)
    assert np.isfinite(heatmap.array).sum() == rows.size
    for row in rows:
        column, line = ((table.coords[row] - heatmap.origin) / heatmap.downsample).round().astype(int)
        assert heatmap.array[line, column] == row


def test_where_patches_overlap_a_cell_is_the_mean_of_those_over_it() -> None:
    everywhere = np.ones((1, 1), bool)
    table = build_table(
        (300, 200), (0.5, 0.5), scales=(Scale(0.5, 100),), tissue=everywhere, lesion=everywhere, overlap=0.5
    )
    numbers = np.random.default_rng(0).random(len(table)).astype(np.float32)
    numbers[0] = np.nan
    heatmap = rasterize(table, numbers, 0, values="attention")
    assert heatmap.downsample == (50, 50)
    for line, column in np.ndindex(heatmap.array.shape):
        x, y = (column + 0.5) * 50, (line + 0.5) * 50
        over = ((table.coords <= (x, y)) & (table.coords + 100 > (x, y))).all(axis=1) & np.isfinite(numbers)
        expected = numbers[over].mean() if over.any() else np.nan
        assert heatmap.array[line, column] == pytest.approx(expected, nan_ok=True)


def test_cells_without_a_patch_are_nan_and_not_zero(table: PatchTable) -> None:
    some = table.take(np.flatnonzero((table.scale == 0) & (table.tissue > 0.5)))
    heatmap = rasterize(some, np.ones(len(some), np.float32), 0, values="relative")
    assert set(np.unique(heatmap.array[np.isfinite(heatmap.array)])) == {1.0}
    assert np.isnan(rasterize(some, np.ones(len(some), np.float32), 1, values="relative").array).all()


def test_relative_attention_of_a_uniform_bag_is_one_and_its_rank_one_half() -> None:
    uniform = np.full(8, 1 / 8, np.float32)
    assert express(uniform, "relative") == pytest.approx(1.0)
    assert express(uniform, "rank") == pytest.approx(0.5)


def test_rank_orders_the_bag_and_leaves_unread_patches_out() -> None:
    attention = np.array([0.5, np.nan, 0.2, 0.3], np.float32)
    ranks = express(attention, "rank")
    assert np.isnan(ranks[1])
    assert ranks[[2, 3, 0]] == pytest.approx([1 / 6, 3 / 6, 5 / 6])


def test_an_unknown_unit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="percentile"):
        express(np.ones(2, np.float32), "percentile")  # type: ignore[arg-type]


def test_colours_rise_with_the_value_and_nan_is_transparent() -> None:
    rgba = colour(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32), (0.0, 1.0))
    assert np.all(np.diff(rgba[0, :3, :3].astype(int).sum(axis=1)) > 0)
    assert rgba[0, :, 3].tolist() == [255, 255, 255, 0]


def test_a_written_heatmap_is_read_back_and_no_other_file_is_taken_for_one(tmp_path: Path) -> None:
    array = np.array([[np.nan, 0.25], [0.5, 0.0]], np.float32)
    path = tmp_path / "map.tif"
    write_heatmap(Heatmap(array, (448.0, 448.0), (896.0, 0.0), "10x", 1.0, "attention"), (0.5, 0.25), path)
    found = read_heatmap(path)
    assert found is not None
    assert np.array_equal(found[0], array, equal_nan=True)
    assert found[1]["mpp"] == [224.0, 112.0]
    assert found[1]["origin_level0_px"] == [896.0, 0.0]
    whole = path.read_bytes()
    other = tmp_path / "other.tif"
    for content in (b"", b"II*\0", whole[: len(whole) // 2], whole.replace(b'"downsample"', b'"downsimple"'),
                    whole.replace(b"[448.0, 448.0]", b"[448.0,   0.0]"), b'"origin_level0_px"'):  # fmt: skip
        other.write_bytes(content)
        assert read_heatmap(other) is None
    assert read_heatmap(tmp_path / "absent.tif") is None
    assert read_heatmap(tmp_path) is None
