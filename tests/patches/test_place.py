"""A patch's pixels prove its place.

Red and green of these slides are sines of x and y, blue tells the wavelength's cell (see conftest). How a patch's place
is estimated, from nothing but its pixels: in its valid interior (all but a pixel and a half at the slide's edge) the
phase of red along x and of green along y is fitted by least squares; phase times wavelength is the place of the
interior's centre. It is compared with what the table says, in pixels of the patch's own scale. The same is done for
both halves of the interior, so that a stretched patch fails too. Blue must be that of the cells the patch lies on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_msamil.patches.grid import PatchTable, Scale, build_table
from napari_msamil.patches.reader import read_patches
from napari_msamil.slide.slide import open_slide

P = 64
SCALES = (Scale(0.5, P), Scale(1.0, P), Scale(2.0, P))
WAVE_PX = 24  # wavelength in pixels of the finest scale: 6 pixels of the coarsest
FIT_NOISE = 0.02  # px: what rounding to whole grey levels can move a phase by

HALF_A_PIXEL = 0.5
SLICED = 0.125  # a slice may drift by half a pixel over the patch: an eighth at the middle of a half


@dataclass(frozen=True)
class Case:
    """A slide: level sizes (width, height), finest first, and its mpp."""

    sizes: tuple[tuple[int, int], ...]
    mpp: tuple[float, float]


# Long slides: at their far end, levels are half a pixel or a whole one from where a whole ratio would put them.
A = ((79_996, 128), (20_000, 32), (5000, 8))  # 3.9998, 15.9992
B = ((80_002, 128), (20_000, 32))  # 4.0001
A_SHORT = ((19_999, 150), (5000, 37), (1250, 9))
B_SHORT = ((40_001, 100), (10_000, 25))
C = ((2304, 1503), (768, 501), (256, 167))  # 3.0, 9.0
CASES = {
    "3.9998 at a quarter of the finest scale": Case(A, (0.25, 0.25)),
    "3.9998 at the finest scale": Case(A, (0.5, 0.5)),
    "3.9998 and 15.9992 sliced": Case(A, (0.125, 0.125)),
    "3.9998 resampled": Case(A_SHORT, (0.263, 0.263)),
    "3.9998 upright": Case(tuple((h, w) for w, h in A), (0.25, 0.25)),
    "4.0001": Case(B, (0.25, 0.25)),
    "4.0001 a little enlarged": Case(B_SHORT, (0.54, 0.54)),
    "3.0 resampled": Case(C, (0.5, 0.5)),
    "3.0 sliced": Case(C, (0.5 / 3, 0.5 / 3)),
    "a little anisotropic": Case(C, (0.2528, 0.2517)),
    "much anisotropic": Case(C, (0.5, 0.26)),
    "3.9998 anisotropic": Case(A_SHORT, (0.25, 0.31)),
    "one level": Case(C[:1], (0.2, 0.2)),
    "one level, far too fine": Case(C[:1], (0.08, 0.08)),
    "smaller than a patch": Case(((50, 41),), (0.5, 0.5)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_patch_lies_within_half_a_pixel_of_its_place(case: Case, write_waves: Callable[..., Any]) -> None:
    unit = SCALES[0].mpp / np.array(case.mpp)  # level-0 px per pixel of the finest scale
    path, waves = write_waves(case.sizes, tuple(WAVE_PX * unit))
    with open_slide(path, case.mpp) as slide:
        assert {(level.width, level.height) for level in slide.levels} >= set(case.sizes)
        yes = np.ones((1, 1), dtype=bool)
        table = build_table((slide.width, slide.height), case.mpp, scales=SCALES, tissue=yes, lesion=yes)
        measured: list[int] = []
        for batch in read_patches(slide, table, np.arange(len(table)), batch_size=32):
            assert batch.failed == ()
            for row, pixels in zip(batch.rows.tolist(), batch.pixels, strict=True):
                check_padding(table, row, pixels)
                if interior(table, row).min() >= 4:
                    check_place(table, row, pixels, waves)
                    check_cells(table, row, pixels, waves)
                    measured.append(row)
    assert set(table.scale[measured].tolist()) == {0, 1, 2}
    assert table.valid[measured].min() < 1  # the edge was measured, too


def test_the_proof_notices_a_shift_a_stretch_and_a_wrong_cell(write_waves: Callable[..., Any]) -> None:
    path, waves = write_waves(((600, 500),), (24.0, 24.0))
    yes = np.ones((1, 1), dtype=bool)
    table = build_table((600, 500), (0.5, 0.5), scales=SCALES[:1], tissue=yes, lesion=yes)
    row = int(np.flatnonzero(table.valid == 1)[5])
    x, y = table.coords[row].tolist()
    with open_slide(path, (0.5, 0.5)) as slide:
        check_place(table, row, slide.read(x + 0.4, y, P, P, size=(P, P)), waves)
        for box in ((x + 1, y, P, P), (x, y - 1, P, P), (x - 2, y - 2, P + 4, P + 4)):
            with pytest.raises(AssertionError):
                check_place(table, row, slide.read(*box, size=(P, P)), waves)
        moved = slide.read(x + 24, y, P, P, size=(P, P))  # by one wavelength: only blue can tell
        check_place(table, row, moved, waves)
        with pytest.raises(AssertionError):
            check_cells(table, row, moved, waves)


def pixel(table: PatchTable, row: int) -> NDArray[np.float64]:
    """(x, y) level-0 px per pixel of the patch."""
    return np.array(table.footprint(int(table.scale[row]))) / P


def interior(table: PatchTable, row: int) -> NDArray[np.int64]:
    """(columns, rows) of a patch that lie at least a pixel and a half inside the slide."""
    room = (np.array(table.slide_size) - table.coords[row]) / pixel(table, row)
    return np.clip(np.floor(room - 1.5), 0, P).astype(int)


def check_padding(table: PatchTable, row: int, pixels: NDArray[np.uint8]) -> None:
    """Beyond the edge there is background and nothing else; inside there is none."""
    room = (np.array(table.slide_size) - table.coords[row]) / pixel(table, row)
    columns, rows = np.clip(np.ceil(room + 1), 0, P).astype(int)
    assert np.all(pixels[:, columns:] == 255)
    assert np.all(pixels[rows:] == 255)
    columns, rows = interior(table, row)
    assert np.all(pixels[:rows, :columns] < 235)


def check_place(table: PatchTable, row: int, pixels: NDArray[np.uint8], waves: Any) -> None:
    count, size = interior(table, row), pixel(table, row)
    for axis in (0, 1):
        line = pixels[: count[1], : count[0], axis].mean(axis=axis)  # axis 0 is x: the mean over rows leaves columns
        n = int(count[axis])
        parts = {(0, n): HALF_A_PIXEL}
        if n >= 16:
            parts |= {(0, n // 2): HALF_A_PIXEL + SLICED, (n - n // 2, n): HALF_A_PIXEL + SLICED}
        for (first, last), limit in parts.items():
            centre = table.coords[row, axis] + (first + last) / 2 * size[axis]
            error = misplacement(line[first:last], centre, waves.length[axis], size[axis])
            assert abs(error) <= limit + FIT_NOISE, (row, axis, first, last, error)


def misplacement(line: NDArray[np.float64], centre: float, wavelength: float, size: float) -> float:
    """By how many pixels a line of grey values lies off, whose middle should be at `centre` level-0 px."""
    step = 2 * np.pi * size / wavelength  # radians per pixel
    angle = (np.arange(len(line)) - (len(line) - 1) / 2) * step
    waves = np.column_stack([np.sin(angle), np.cos(angle)])
    along, across = np.linalg.solve(waves.T @ waves, waves.T @ (line - 128))
    phase = np.arctan2(across, along) - 2 * np.pi * centre / wavelength
    return float(((phase + np.pi) % (2 * np.pi) - np.pi) / step)


def check_cells(table: PatchTable, row: int, pixels: NDArray[np.uint8], waves: Any) -> None:
    """Blue equals that of the cells, where a pixel lies well inside one."""
    count, size = interior(table, row), pixel(table, row)
    index, clear = [], []
    for axis in (0, 1):
        place = (table.coords[row, axis] + (np.arange(count[axis]) + 0.5) * size[axis]) / waves.length[axis]
        index.append(place.astype(int))
        clear.append(np.abs(place % 1 - 0.5) * waves.length[axis] < waves.length[axis] / 2 - 2 * size[axis])
    expected = waves.cells[np.ix_(index[1], index[0])].astype(int)
    found = pixels[: count[1], : count[0], 2].astype(int)
    assert np.all(np.abs(found - expected)[np.outer(clear[1], clear[0])] <= 1)
