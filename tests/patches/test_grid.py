"""The patch table: exact areas, one linked grid, complete trees, clear refusals."""

from __future__ import annotations

import time
import tracemalloc
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_msamil.errors import SlideError
from napari_msamil.patches.grid import PatchTable, Scale, build_table

SCALES = (Scale(0.5, 64), Scale(1.0, 64), Scale(2.0, 64))


def everywhere(value: bool = True) -> NDArray[np.bool_]:
    return np.full((1, 1), value)


def table_of(
    size: tuple[int, int] = (1000, 777), mpp: tuple[float, float] = (0.5, 0.5), **changes: object
) -> PatchTable:
    settings: dict[str, object] = {"scales": SCALES, "tissue": everywhere(), "lesion": everywhere(False)}
    return build_table(size, mpp, **{**settings, **changes})  # type: ignore[arg-type]


def exact_fraction(table: PatchTable, row: int, masks: list[NDArray[np.bool_]]) -> float:
    """Area where all masks are true / footprint, in rational arithmetic, summed pixel by pixel."""
    width, height = table.slide_size
    finest = table.scales[0]
    scale = table.scales[table.scale[row]]
    times = round(scale.mpp * scale.patch_px / (finest.mpp * finest.patch_px))
    cell = []
    for axis in (0, 1):
        side = times * Fraction(finest.patch_px * finest.mpp / table.slide_mpp[axis])
        start = int(table.grid[row, axis]) * side
        cell.append((start, start + side))
    (x0, x1), (y0, y1) = cell
    xs = sorted({min(max(Fraction(i * width, m.shape[1]), x0), x1) for m in masks for i in range(m.shape[1] + 1)})
    ys = sorted({min(max(Fraction(i * height, m.shape[0]), y0), y1) for m in masks for i in range(m.shape[0] + 1)})
    area = Fraction(0)
    for left, right in pairwise(xs):
        for top, bottom in pairwise(ys):
            x, y = (left + right) / 2, (top + bottom) / 2
            if all(m[int(y * m.shape[0] / height), int(x * m.shape[1] / width)] for m in masks):
                area += (right - left) * (bottom - top)
    return float(area / ((x1 - x0) * (y1 - y0)))


@pytest.mark.parametrize(
    ("seed", "size", "mpp", "shape"),
    [
        (0, (1000, 777), (0.5, 0.5), (13, 17)),
        (1, (513, 1201), (0.23, 0.31), (29, 7)),
        (2, (300, 200), (0.526, 0.526), (40, 40)),  # mask finer than the grid
        (3, (997, 1009), (0.4999, 0.2501), (3, 2)),  # mask pixels larger than a patch
        (4, (40, 30), (0.5, 0.5), (5, 5)),  # slide smaller than a patch
    ],
)
def test_fractions_are_exact_areas(
    seed: int, size: tuple[int, int], mpp: tuple[float, float], shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    tissue, lesion = rng.random(shape) > 0.5, rng.random((shape[1], shape[0] + 3)) > 0.6
    region = rng.random((4, 5)) > 0.3
    table = table_of(size, mpp, tissue=tissue, lesion=lesion)
    limited = table_of(size, mpp, tissue=tissue, lesion=lesion, region=region)
    for row in rng.permutation(len(table))[:40]:
        assert table.tissue[row] == pytest.approx(exact_fraction(table, row, [tissue]), abs=1e-7)
        assert table.lesion[row] == pytest.approx(exact_fraction(table, row, [lesion]), abs=1e-7)
        assert table.valid[row] == pytest.approx(exact_fraction(table, row, [np.ones((1, 1), bool)]), abs=1e-7)
    for row in rng.permutation(len(limited))[:20]:
        assert limited.tissue[row] == pytest.approx(exact_fraction(limited, row, [tissue, region]), abs=1e-7)
        assert limited.lesion[row] == pytest.approx(exact_fraction(limited, row, [lesion, region]), abs=1e-7)


def test_the_footprints_of_each_scale_add_up_to_the_slide_and_to_its_lesion() -> None:
    lesion = np.random.default_rng(5).random((50, 60)) > 0.7
    table = table_of((5000, 3777), (0.251, 0.249), lesion=lesion)
    for scale in range(3):
        rows = table.rows_at(scale)
        area = np.prod(table.footprint(scale))
        assert table.valid[rows].sum(dtype=float) * area == pytest.approx(5000 * 3777, rel=1e-6)
        assert table.lesion[rows].sum(dtype=float) * area == pytest.approx(lesion.mean() * 5000 * 3777, rel=1e-6)


def test_a_parent_is_the_mean_of_its_children_and_starts_where_its_first_child_does() -> None:
    rng = np.random.default_rng(6)
    table = table_of(
        (9001, 7013), (0.2637, 0.2511), tissue=rng.random((64, 64)) > 0.8, lesion=rng.random((31, 9)) > 0.5
    )
    for scale in (1, 2):
        for name in ("tissue", "lesion", "valid"):
            values = getattr(table, name).astype(float)
            parents = table.rows_at(scale)
            children = table.rows_at(scale - 1).reshape(len(parents), 4)
            assert np.array_equal(table.parent[children], np.repeat(parents[:, None], 4, axis=1))
            np.testing.assert_allclose(values[children].mean(axis=1), values[parents], atol=1e-6)
            assert np.array_equal(table.coords[children[:, 0]], table.coords[parents])


def test_links_follow_from_the_grid_index_and_rows_from_x_then_y() -> None:
    table = table_of(
        (4000, 3000), tissue=np.random.default_rng(7).random((40, 30)) > 0.9, scales=(Scale(0.5, 32), Scale(2, 32))
    )
    coarse, fine = table.rows_at(1), table.rows_at(0)
    assert np.array_equal(table.grid[fine] // 4, table.grid[table.parent[fine]])
    assert np.all(table.parent[coarse] == -1)
    assert np.array_equal(np.concatenate([coarse, fine]), np.arange(len(table)))  # the coarsest scale comes first
    assert np.array_equal(np.lexsort(table.grid[coarse].T[::-1]), np.arange(len(coarse)))  # by x, then y
    blocks = table.grid[fine].reshape(-1, 16, 2) - 4 * table.grid[coarse][:, None]
    assert np.array_equal(blocks, np.broadcast_to(np.argwhere(np.ones((4, 4))), blocks.shape))


def test_coords_are_rounded_once_so_nothing_drifts_to_the_bottom_right() -> None:
    table = table_of((90_000, 60_000), (0.2528, 0.2517))
    for scale in range(3):
        rows = table.rows_at(scale)
        exact = table.grid[rows] * np.array(table.footprint(scale))
        assert np.abs(table.coords[rows] - exact).max() <= 0.5 + 1e-6
        assert exact.max() > 59_000
    assert table.coords.dtype == np.int64


def test_only_trees_that_touch_tissue_are_kept_and_they_are_complete() -> None:
    tissue = np.zeros((1024, 1024), dtype=bool)
    tissue[1023, 700] = True  # one pixel of the mask, at the bottom edge
    table = table_of((100_000, 80_000), (0.25, 0.25), tissue=tissue)
    assert [len(table.rows_at(scale)) for scale in range(3)] == [16, 4, 1]
    assert np.count_nonzero(table.tissue) == 3
    x, y = table.coords[0]
    assert x <= 700 / 1024 * 100_000 < x + 512
    assert y <= 1023 / 1024 * 80_000 < y + 512


@pytest.mark.parametrize(("overlap", "steps"), [(0.5, 2), (2 / 3, 3), (0.75, 4)])
def test_overlapping_patches_cover_the_slide_lie_in_their_parents_and_have_exact_areas(
    overlap: float, steps: int
) -> None:
    rng = np.random.default_rng(9)
    size, mpp, lesion = (1777, 1203), (0.41, 0.39), rng.random((17, 23)) > 0.5
    table = table_of(size, mpp, lesion=lesion, overlap=overlap)
    fine_mask = np.kron(lesion, np.ones((600, 600)))  # each mask pixel 600 times finer, to measure by counting
    for scale in range(3):
        rows = table.rows_at(scale)
        assert table.pitch(scale) == pytest.approx(np.array(table.footprint(scale)) / steps)
        start = table.grid[rows] * np.array(table.pitch(scale))
        assert np.abs(table.coords[rows] - start).max() <= 0.5 + 1e-6
        assert (start.max(axis=0) + table.footprint(scale) >= np.array(size) - 1e-6).all(), "the far edges are covered"
        if scale < 2:
            up = table.grid[table.parent[rows]] * np.array(table.pitch(scale + 1))
            assert (up <= start + 1e-6).all()
            end = start + table.footprint(scale)
            assert (end <= up + np.array(table.footprint(scale + 1)) + 1e-6).all()
        for row in rng.permutation(rows)[:10]:
            x0, y0 = table.grid[row] * np.array(table.pitch(scale))
            x1, y1 = np.array([x0, y0]) + table.footprint(scale)
            scale_x, scale_y = fine_mask.shape[1] / size[0], fine_mask.shape[0] / size[1]
            inside = fine_mask[round(y0 * scale_y) : round(y1 * scale_y), round(x0 * scale_x) : round(x1 * scale_x)]
            counted = inside.sum() / ((x1 - x0) * scale_x * (y1 - y0) * scale_y)
            assert table.lesion[row] == pytest.approx(counted, abs=5e-3)


def test_a_step_that_does_not_divide_a_patch_is_refused() -> None:
    for overlap in (0.3, 1.0, -0.5):
        with pytest.raises(ValueError, match="overlap"):
            table_of(overlap=overlap)


def test_on_whole_mask_pixels_a_fraction_counts_pixels_and_places_stay() -> None:
    lesion = np.random.default_rng(10).random((40, 50)) > 0.5
    masks = {"lesion": lesion, "tissue": np.ones_like(lesion), "scales": (Scale(0.5, 90),)}
    exact = table_of((1000, 800), (0.5, 0.5), **masks)
    rounded = table_of((1000, 800), (0.5, 0.5), whole_pixels=True, **masks)
    places = {tuple(corner): row for row, corner in enumerate(exact.coords.tolist())}
    same = [places[tuple(corner)] for corner in rounded.coords.tolist()]  # the last column holds half a mask pixel
    for row in rounded.rows_at(0):  # a mask pixel is 20 px, a patch 4.5 of them
        i, j = rounded.grid[row]
        x0, x1, y0, y1 = (int(np.floor(k * 4.5 + 0.5)) for k in (i, i + 1, j, j + 1))
        if x1 <= 50 and y1 <= 40:
            assert rounded.lesion[row] == pytest.approx(lesion[y0:y1, x0:x1].mean(), abs=1e-6)
    assert not np.allclose(exact.lesion[same], rounded.lesion)


def test_no_tissue_gives_a_table_without_rows() -> None:
    table = table_of(tissue=everywhere(False))
    assert len(table) == 0
    assert table.coords.shape == (0, 2)


def test_outside_the_region_nothing_is_tissue_or_lesion() -> None:
    rng = np.random.default_rng(8)
    tissue, lesion, region = (rng.random((48, 36)) > 0.5 for _ in range(3))
    region[:, 20:] = False
    limited = table_of((3001, 2003), tissue=tissue, lesion=lesion, region=region)
    masked = table_of((3001, 2003), tissue=tissue & region, lesion=lesion & region)
    np.testing.assert_array_equal(limited.coords, masked.coords)
    np.testing.assert_allclose(limited.tissue, masked.tissue, atol=1e-7)
    np.testing.assert_allclose(limited.lesion, masked.lesion, atol=1e-7)
    coarse = limited.rows_at(2)
    assert limited.coords[coarse, 0].max() < 20 / 36 * 3001


@pytest.mark.parametrize("mpp", [(0.551, 0.5), (0.5, 0.6), (1.0, 1.0), (353.0, 353.0)])
def test_r05_enlarging_by_more_than_a_tenth_is_refused(mpp: tuple[float, float]) -> None:
    with pytest.raises(SlideError, match=r"looks at 0\.5 µm/px.*enlarged"):
        table_of(mpp=mpp)


def test_r05_a_slide_a_little_coarser_than_the_scale_is_accepted() -> None:
    assert table_of(mpp=(0.549, 0.526)).footprint(0) == pytest.approx((32 / 0.549, 32 / 0.526))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((Scale(0.5, 64), Scale(1.3, 64)), r"2\.6 times as wide"),
        ((Scale(0.5, 224), Scale(1.0, 256)), r"whole number"),
        ((Scale(1.0, 64), Scale(0.5, 64)), r"1 µm/px comes before 0\.5"),
        ((Scale(0.5, 64), Scale(0.5, 64)), "fine to coarse"),
        ((), "at least one scale"),
    ],
)
def test_scales_that_cannot_be_linked_are_refused(scales: tuple[Scale, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table_of(scales=scales)


def test_scales_may_differ_in_patch_size_where_their_footprints_nest() -> None:
    table = table_of(scales=(Scale(0.5, 256), Scale(1.0, 128), Scale(2.0, 192)))
    assert [table.footprint(scale) for scale in range(3)] == [(256, 256), (256, 256), (768, 768)]
    assert np.array_equal(table.grid[table.rows_at(0)], table.grid[table.rows_at(1)])


@pytest.mark.parametrize("mask", [np.zeros((0, 3), bool), np.zeros(5, bool), np.zeros((2, 2, 3), bool)])
def test_a_mask_of_an_impossible_shape_is_refused(mask: NDArray[np.bool_]) -> None:
    with pytest.raises(ValueError, match=r"\(height, width\)"):
        table_of(lesion=mask)


@pytest.mark.parametrize("arguments", [((0, 5), (0.5, 0.5)), ((5, 5), (0.5, float("nan"))), ((5, 5), (-1.0, 0.5))])
def test_an_impossible_slide_is_refused(arguments: tuple[tuple[int, int], tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="positive size and mpp"):
        table_of(*arguments)
    with pytest.raises(ValueError, match="positive mpp and patch size"):
        Scale(0.0, 224)


def test_taking_rows_remaps_parents_and_forgets_those_left_behind() -> None:
    table = table_of()
    parents, children = table.rows_at(1), table.rows_at(0)
    rows = np.concatenate([children[::-1], parents[1:]])
    taken = table.take(rows)
    np.testing.assert_array_equal(taken.coords, table.coords[rows])
    linked = taken.parent >= 0
    np.testing.assert_array_equal(rows[taken.parent[linked]], table.parent[rows][linked])
    assert set(table.parent[rows][~linked]) == {parents[0], *table.parent[parents[1:]]}
    assert len(table.take(np.array([], dtype=np.int64))) == 0


def test_scales_are_named_as_on_a_microscope() -> None:
    assert [Scale(mpp, 1).name for mpp in (0.25, 0.5, 1, 2, 4)] == ["40x", "20x", "10x", "5x", "2.5x"]


def test_a_very_large_slide_takes_about_a_second_and_little_memory() -> None:
    rng = np.random.default_rng(9)
    masks = {"tissue": rng.random((1024, 1024)) > 0.5, "lesion": rng.random((1024, 1024)) > 0.5}
    region = rng.random((1638, 2048)) > 0.01
    started = time.process_time()
    table = table_of((100_000, 80_000), (0.25, 0.25), scales=(Scale(0.5, 224), Scale(1, 224), Scale(2, 224)), **masks)
    seconds = time.process_time() - started
    assert len(table) == 52_920
    assert seconds < 2  # measured 0.15
    tracemalloc.start()
    try:
        table_of((100_000, 80_000), (0.25, 0.25), region=region, **masks)
        assert tracemalloc.get_traced_memory()[1] < 400e6
    finally:
        tracemalloc.stop()
