"""A composed slide shows its fields, all of them, with their lesion where their pixels are."""

import numpy as np
import pytest

from napari_msamil.training.datasets.compose import GLASS, KIND_STEP_PX, Cell, compose


def marked_cell(kind: int, red: int) -> Cell:
    """Dark, with a lesion in one corner that is painted: the mask can be read off the pixels."""
    lesion = np.zeros((64, 64), bool)
    lesion[6:40, 10:30] = True
    pixels = np.full((64, 64, 3), (40, 40, 40), np.uint8)
    pixels[lesion] = (red, 0, 0)
    return Cell(pixels, lesion, kind)


def test_every_field_appears_even_on_a_small_canvas() -> None:
    cells = [marked_cell(k, 200) for k in range(30)]
    slide = compose(cells, np.random.default_rng(0), grid=(3, 3))
    assert (slide.used >= 1).all()
    assert set(np.unique(slide.kinds)) == {*range(30), GLASS}


@pytest.mark.parametrize("mpp", [1.0, 2.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lesion_lies_on_the_pixels_it_belongs_to(seed: int, mpp: float) -> None:
    slide = compose([marked_cell(0, 200)], np.random.default_rng(seed), grid=(6, 5), mpp=mpp)
    painted = (slide.rgb[..., 0] > 110) & (slide.rgb[..., 1] < 45)
    both, either = (painted & slide.lesion).sum(), (painted | slide.lesion).sum()
    assert painted.sum() > 1000
    assert both / either > 0.90


def test_kinds_mark_tissue_and_glass() -> None:
    slide = compose([marked_cell(3, 200)], np.random.default_rng(5), grid=(6, 6))
    middle = slice(KIND_STEP_PX // 2, None, KIND_STEP_PX)
    dark = slide.rgb[middle, middle].max(axis=2) < 210
    agree = dark == (slide.kinds[: dark.shape[0], : dark.shape[1]] == 3)
    assert agree.mean() > 0.97


def test_groups_stay_together() -> None:
    cells = [marked_cell(0, 200), marked_cell(1, 200)]
    rng = np.random.default_rng(3)
    grouped = compose(cells, rng, grid=(16, 16), mpp=4.0, groups=[0, 1], use_all=False).kinds
    mixed = compose(cells, rng, grid=(16, 16), mpp=4.0).kinds

    def seams(kinds: np.ndarray) -> float:
        a, b = kinds[:, 1:], kinds[:, :-1]
        tissue = (a != GLASS) & (b != GLASS)
        return float((a != b)[tissue].mean())

    assert seams(grouped) < 0.5 * seams(mixed)


def test_same_seed_same_slide() -> None:
    cells = [marked_cell(0, 200), marked_cell(1, 120)]
    first, second = (compose(cells, np.random.default_rng(9), grid=(4, 6)) for _ in range(2))
    assert np.array_equal(first.rgb, second.rgb)
    assert np.array_equal(first.lesion, second.lesion)


def test_coarser_slides_have_fewer_pixels_of_the_same_tissue() -> None:
    fine = compose([marked_cell(0, 200)], np.random.default_rng(0), grid=(8, 8), fill=0.8)
    coarse = compose([marked_cell(0, 200)], np.random.default_rng(0), grid=(8, 8), fill=0.8, mpp=4.0)
    assert coarse.rgb.shape[0] == pytest.approx(fine.rgb.shape[0] / 4, abs=1)
    assert coarse.lesion.mean() == pytest.approx(fine.lesion.mean(), abs=0.04)


def test_no_fields_no_slide() -> None:
    with pytest.raises(ValueError, match="no fields"):
        compose([], np.random.default_rng(0), grid=(2, 2))
