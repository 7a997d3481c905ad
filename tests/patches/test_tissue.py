"""The tissue mask, where Otsu works and where it is known not to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_msamil.patches.tissue import is_grey, otsu, tissue_mask
from napari_msamil.slide.slide import open_slide

GLASS = (243, 242, 244)
STROMA = (226, 160, 190)
NUCLEI = (130, 80, 150)


def glass(
    height: int = 400, width: int = 500, colour: tuple[int, int, int] = GLASS, noise: float = 3
) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return np.clip(np.array(colour) + rng.normal(0, noise, (height, width, 3)), 0, 255).astype(np.uint8)


def with_tissue(picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A stained disc of 100 px radius in the middle, and where it is."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    inside = (y - height // 2) ** 2 + (x - width // 2) ** 2 < 100**2
    nuclei = np.random.default_rng(1).random(inside.shape) < 0.3
    out = picture.copy()
    out[inside] = np.where(nuclei[inside, None], NUCLEI, STROMA)
    return out, inside


def agreement(found: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> float:
    return float((found & wanted).sum() / (found | wanted).sum())


def test_tissue_on_glass_is_found_and_nothing_else() -> None:
    picture, inside = with_tissue(glass())
    mask = tissue_mask(picture)
    assert (mask.shape, mask.dtype) == ((400, 500), np.dtype(bool))
    assert agreement(mask, inside) > 0.97


@pytest.mark.parametrize(
    "colour", [GLASS, (255, 255, 255), (238, 232, 222), (225, 215, 222), (210, 210, 215), (0, 0, 0)]
)
@pytest.mark.parametrize("noise", [0, 4])
def test_blank_glass_of_any_tint_has_no_tissue(colour: tuple[int, int, int], noise: float) -> None:
    assert tissue_mask(glass(colour=colour, noise=noise)).mean() == 0


@pytest.mark.parametrize("colour", [STROMA, NUCLEI, (215, 185, 205), (120, 60, 30)])
@pytest.mark.parametrize("noise", [0, 8])
def test_a_field_full_of_tissue_is_all_tissue(colour: tuple[int, int, int], noise: float) -> None:
    assert tissue_mask(glass(colour=colour, noise=noise)).mean() == 1


def test_a_field_full_of_pale_and_dark_tissue_is_all_tissue() -> None:
    picture = glass(colour=STROMA)
    picture[:, ::2] = NUCLEI
    picture[:200] = (225, 190, 208)
    assert tissue_mask(picture).mean() > 0.99


def test_glass_with_a_tint_does_not_hide_pale_tissue() -> None:
    picture = glass(colour=(238, 232, 222))
    picture[100:300, 100:300] = (222, 175, 200)
    wanted = np.zeros(picture.shape[:2], dtype=bool)
    wanted[100:300, 100:300] = True
    assert agreement(tissue_mask(picture), wanted) > 0.95


def test_a_grey_picture_is_split_by_darkness() -> None:
    picture, inside = with_tissue(glass(colour=(240, 240, 240), noise=0))
    grey = np.repeat(picture.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    assert agreement(tissue_mask(grey), inside) > 0.97
    assert is_grey(grey[inside])
    assert not is_grey(picture[inside])
    assert tissue_mask(glass(colour=(240, 240, 240), noise=0)).mean() == 0


def test_black_padding_is_neither_tissue_nor_part_of_the_threshold() -> None:
    picture, inside = with_tissue(glass())
    noise = np.random.default_rng(2).integers(
        0, 6, (400, 120, 3), dtype=np.uint8
    )  # JPEG's black is strongly "saturated"
    picture[:, :120] = noise
    picture[340:] = 2
    inside[:, :120] = inside[340:] = False
    assert agreement(tissue_mask(picture), inside) > 0.95


def test_dark_nuclei_are_tissue_although_they_are_black() -> None:
    picture, _ = with_tissue(glass())
    picture[195:207, 245:257] = (32, 18, 12)
    assert tissue_mask(picture)[195:207, 245:257].all()


@pytest.mark.parametrize("ink", [(30, 140, 70), (80, 190, 120), (40, 70, 190), (15, 60, 140), (20, 18, 22)])
def test_marker_ink_is_not_tissue(ink: tuple[int, int, int]) -> None:
    picture, inside = with_tissue(glass())
    picture[:, 20:60] = ink
    mask = tissue_mask(picture)
    assert not mask[:, 24:56].any()
    assert agreement(mask[:, 70:], inside[:, 70:]) > 0.97


def test_dust_is_dropped_and_gaps_between_cells_are_closed() -> None:
    picture, _ = with_tissue(glass())
    picture[20:23, 20:23] = NUCLEI
    picture[200, 200:300] = GLASS
    mask = tissue_mask(picture)
    assert not mask[:40, :40].any()
    assert mask[200, 200:300].all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (16, 16), (3, 700)])
def test_pictures_of_any_size_have_a_mask(shape: tuple[int, int]) -> None:
    assert tissue_mask(np.full((*shape, 3), STROMA, dtype=np.uint8)).all()
    assert not tissue_mask(np.full((*shape, 3), 255, dtype=np.uint8)).any()


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_other_arrays_are_refused(bad: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"\(height, width, 3\) uint8"):
        tissue_mask(bad)


def test_otsu_cuts_between_two_groups_and_equals_the_exhaustive_search() -> None:
    assert 0.2 < otsu(np.array([0.1] * 70 + [0.2] * 5 + [0.8] * 20)) < 0.8
    values = np.concatenate(
        [np.random.default_rng(3).normal(0.3, 0.05, 900), np.random.default_rng(4).normal(0.6, 0.1, 300)]
    )
    values = np.clip(values, 0, 1)

    def within(cut: float) -> float:
        low, high = values[values <= cut], values[values > cut]
        return float(low.size * low.var() + high.size * high.var())

    best = min(np.linspace(0.2, 0.8, 601), key=within)
    assert otsu(values) == pytest.approx(best, abs=1 / 128)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "mpp", "share", "tissue", "empty"),
    [
        ("crohn_HE4_20x.tif", None, (0.17, 0.25), (0.64, 0.25), (0.95, 0.95)),
        ("tubularadenoma-flat_HE.tif", 0.5, (0.10, 0.16), (0.77, 0.14), (0.2, 0.5)),
        ("CMU-1-Small-Region.svs", None, (0.30, 0.42), (0.45, 0.6), (0.2, 0.7)),
        ("tcga-cr-7395-01a-01-ts1.svs", 0.5, (0.55, 0.68), (0.4, 0.6), (0.1, 0.1)),
        ("OS-1-detail.ome.tif", None, (0.95, 1.0), (0.5, 0.5), None),
    ],
)
def test_real_slides(
    test_data: Path,
    name: str,
    mpp: float | None,
    share: tuple[float, float],
    tissue: tuple[float, float],
    empty: tuple[float, float] | None,
) -> None:
    with open_slide(test_data / "slides" / name, mpp) as slide:
        mask = tissue_mask(slide.read(0, 0, slide.width, slide.height, size=(1024, 1024)))

    def around(place: tuple[float, float]) -> NDArray[np.bool_]:
        x, y = (int(part * 1024) for part in place)
        return mask[y - 8 : y + 8, x - 8 : x + 8]

    assert share[0] <= mask.mean() <= share[1]
    assert around(tissue).mean() > 0.9
    assert empty is None or not around(empty).any()
