"""Which rows are read: the strict lesion test, and every step of the fallback with its reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_msamil.errors import SlideError
from napari_msamil.patches.grid import PatchTable, Scale, build_table
from napari_msamil.patches.select import Selection, lesion_rows, select_rows, tissue_rows


def table_with(*, lesion: list[float], tissue: list[float] | None = None) -> PatchTable:
    """One row of 10-px patches with these fractions."""
    n = len(lesion)
    yes = np.ones((1, 1), dtype=bool)
    table = build_table((10 * n, 10), (1.0, 1.0), scales=(Scale(1.0, 10),), tissue=yes, lesion=yes)
    assert len(table) == n
    return replace(
        table,
        lesion=np.array(lesion, dtype=np.float32),
        tissue=np.array([1.0] * n if tissue is None else tissue, dtype=np.float32),
    )


def select(table: PatchTable, **changes: object) -> Selection:
    settings: dict[str, object] = {"lesion_threshold": 0.7, "tissue_threshold": 0.5, "on_empty": "topk", "k": 2}
    return select_rows(table, **{**settings, **changes})  # type: ignore[arg-type]


def test_a_lesion_fraction_must_exceed_the_threshold_and_tissue_must_reach_it() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[:7] = True  # exactly 0.7 of one patch
    slide = {"scales": (Scale(1.0, 10),), "tissue": mask}
    table = build_table((10, 10), (1.0, 1.0), lesion=mask, **slide)  # type: ignore[arg-type]
    assert len(lesion_rows(table, 0.7)) == 0
    assert tissue_rows(table, 0.7).tolist() == [0]
    more = mask.copy()
    more[7, 0] = True
    assert lesion_rows(build_table((10, 10), (1.0, 1.0), lesion=more, **slide), 0.7).tolist() == [0]  # type: ignore[arg-type]


def test_seven_tenths_of_a_fractional_footprint_do_not_pass_by_rounding_noise() -> None:
    lesion = np.tile(np.arange(10) < 7, (1, 8))  # 8 patches side by side, 0.7 of each
    yes = np.ones((1, 1), dtype=bool)
    for mpp in np.random.default_rng(0).uniform(0.2, 0.5, 50):
        scale = Scale(float(1000 * mpp / 224), 224)  # footprint 1000 px, up to the last bits
        table = build_table((8000, 1000), (float(mpp),) * 2, scales=(scale,), tissue=yes, lesion=lesion)
        assert len(table) == 8
        assert len(lesion_rows(table, 0.7)) == 0
        assert len(lesion_rows(table, 0.6999)) == 8


def test_rows_that_pass_need_no_fallback() -> None:
    selection = select(table_with(lesion=[0.1, 0.9, 0.71, 0.7]))
    assert selection.rows.tolist() == [1, 2]
    assert selection.rows.dtype == np.int64
    assert selection.fallback is None


def test_lesion_on_empty_glass_does_not_pass() -> None:
    assert select(table_with(lesion=[0.9, 0.9, 1.0], tissue=[1, 0.49, 0])).rows.tolist() == [0]


def test_each_scale_is_tested_on_its_own() -> None:
    lesion = np.zeros((8, 8), dtype=bool)
    lesion[:4, :4] = True  # one child is all lesion, its parent only a quarter
    table = build_table(
        (80, 80), (1.0, 1.0), scales=(Scale(1.0, 40), Scale(2.0, 40)), tissue=np.ones((1, 1), bool), lesion=lesion
    )
    chosen = table.take(select(table).rows)
    assert (chosen.scale.tolist(), chosen.coords.tolist(), chosen.parent.tolist()) == ([0], [[0, 0]], [-1])


def test_topk_takes_the_patches_with_the_most_lesion_on_tissue() -> None:
    table = table_with(lesion=[0.2, 0.6, 0.5, 0.6, 0.0], tissue=[1, 1, 1, 0.4, 1])
    selection = select(table)
    assert selection.rows.tolist() == [1, 2]
    assert selection.fallback == "no tissue patch had a lesion fraction above 0.70: took the 2 with the largest"
    assert select(table, k=16).rows.tolist() == [0, 1, 2]


def test_topk_breaks_ties_by_row() -> None:
    assert select(table_with(lesion=[0.1, 0.3, 0.3, 0.3])).rows.tolist() == [1, 2]


def test_without_any_lesion_all_tissue_is_taken() -> None:
    selection = select(table_with(lesion=[0, 0, 0], tissue=[0.5, 0.49, 1]))
    assert selection.rows.tolist() == [0, 2]
    assert selection.fallback == "no tissue patch had any lesion: took all 2 tissue patches"


def test_the_tissue_policy_takes_all_tissue_at_once() -> None:
    selection = select(table_with(lesion=[0.3, 0, 0.1], tissue=[1, 1, 0]), on_empty="tissue")
    assert selection.rows.tolist() == [0, 1]
    assert selection.fallback == "no tissue patch had a lesion fraction above 0.70: took all 2 tissue patches"


def test_the_error_policy_raises_with_the_threshold() -> None:
    with pytest.raises(SlideError, match=r"No tissue patch had a lesion fraction above 0\.70"):
        select(table_with(lesion=[0.3]), on_empty="error")


@pytest.mark.parametrize(
    ("tissue", "reason"), [([0.0, 0.0], "no tissue was found"), ([0.25, 0.1], "the largest tissue fraction was 0.25")]
)
def test_a_slide_without_enough_tissue_gives_no_rows_and_says_why(tissue: list[float], reason: str) -> None:
    selection = select(table_with(lesion=[0.0, 0.2], tissue=tissue))
    assert selection.rows.tolist() == []
    assert selection.fallback == f"no patch had a tissue fraction of 0.50 or more: {reason}"
    assert select(table_with(lesion=[0.0], tissue=[0.0]), tissue_threshold=0.0).rows.tolist() == []


def test_an_empty_table_gives_no_rows() -> None:
    no = np.zeros((1, 1), dtype=bool)
    selection = select(build_table((10, 10), (1.0, 1.0), scales=(Scale(1.0, 10),), tissue=no, lesion=no))
    assert selection.rows.tolist() == []
    assert selection.fallback is not None
