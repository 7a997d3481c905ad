"""Areas of masks: boxes anywhere give what the cells of a grid give, and what counting pixels gives."""

import numpy as np
import pytest

from napari_msamil.patches.areas import box_areas, cell_areas, pieces


def test_the_area_in_a_box_is_that_of_a_grid_with_just_this_cell() -> None:
    rng = np.random.default_rng(0)
    picture = pieces(rng.random((37, 53)) < 0.4, (1000, 700))
    starts = rng.uniform(-200, 900, (50, 2))
    ends = starts + rng.uniform(1, 400, (50, 2))
    expected = [cell_areas(picture, *corners.T)[0, 0] for corners in np.stack([starts, ends], axis=1)]
    np.testing.assert_allclose(box_areas(picture, starts, ends), expected, atol=1e-6)


def test_the_area_in_a_box_is_the_number_of_true_pixels() -> None:
    mask = np.random.default_rng(1).random((40, 60)) < 0.5
    picture = pieces(mask, (60, 40))
    found = box_areas(picture, np.array([[3, 5], [0, 0], [-9, -9]]), np.array([[20, 30], [60, 40], [70, 50]]))
    assert found == pytest.approx([mask[5:30, 3:20].sum(), mask.sum(), mask.sum()])


def test_a_box_beside_the_picture_holds_nothing() -> None:
    picture = pieces(np.ones((4, 4), bool), (4, 4))
    assert box_areas(picture, np.array([[4.0, 0.0], [-3.0, -3.0]]), np.array([[6.0, 4.0], [0.0, 9.0]])).tolist() == [
        0,
        0,
    ]
