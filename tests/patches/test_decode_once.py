"""Reading all scales of a slide decodes each tile of its file once.

The slides are a quarter of real ones in tile, patch and cache size alike: 64-px tiles, 128-px patches and 4 MB stand
for 256-px tiles, 512-px patches and the 64 MB that an open slide keeps. Their level 0 is nine times the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_msamil.patches.grid import PatchTable, Scale, build_table
from napari_msamil.patches.reader import read_patches
from napari_msamil.slide import tiff
from napari_msamil.slide.slide import Slide, open_slide
from napari_msamil.slide.tiles import TileGrid

P = 128
SIZE = (4096, 3072)
SCALES = (Scale(0.5, P), Scale(1.0, P), Scale(2.0, P))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int]]:
    """How often each tile, (level width, index), was decoded."""
    counts: Counter[tuple[int, int]] = Counter()
    original = TileGrid.tile

    def counting(grid: TileGrid, source: Any, index: int) -> NDArray[np.uint8] | None:
        counts[grid.width, index] += 1
        return original(grid, source, index)

    monkeypatch.setattr(TileGrid, "tile", counting)
    monkeypatch.setattr(tiff, "TILE_CACHE_BYTES", tiff.TILE_CACHE_BYTES // 16)
    return counts


def pyramid(*downsamples: int) -> list[tuple[int, int]]:
    return [(SIZE[0] // downsample, SIZE[1] // downsample) for downsample in downsamples]


def whole_table(slide: Slide) -> PatchTable:
    yes = np.ones((1, 1), dtype=bool)
    assert slide.mpp is not None
    return build_table((slide.width, slide.height), slide.mpp, scales=SCALES, tissue=yes, lesion=yes)


@pytest.mark.parametrize(
    ("levels", "mpp", "used"),
    [
        (pyramid(1, 4, 16), 0.25, [4096, 1024]),  # 40x Aperio: 20x from level 0, 10x and 5x from level 1
        (pyramid(1, 2, 4), 0.5, [4096, 2048, 1024]),  # one level for each scale
        (pyramid(1), 0.5, [4096]),  # all scales from one level
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_each_tile_is_decoded_once_for_all_scales(
    levels: list[tuple[int, int]],
    mpp: float,
    used: list[int],
    workers: int,
    write_waves: Callable[..., Any],
    decoded: Counter[tuple[int, int]],
) -> None:
    path, _ = write_waves(levels, (24.0, 24.0), tile_px=64)
    with open_slide(path, mpp) as slide:
        table = whole_table(slide)
        for batch in read_patches(slide, table, np.arange(len(table)), batch_size=16, workers=workers):
            assert batch.failed == ()
    tiles = {width: (width // 64) * (width * 3 // 4 // 64) for width in used}
    assert Counter(width for width, _ in decoded) == tiles  # every tile of the levels that are fine enough, no other
    if workers == 1:
        assert set(decoded.values()) == {1}
    else:  # two threads may meet at a tile
        assert sum(decoded.values()) <= 1.02 * sum(tiles.values())


@pytest.mark.parametrize(
    ("levels", "mpp"), [(pyramid(1, 4, 16), 0.263), (pyramid(1, 2, 4), 0.526), (pyramid(1), 0.526)]
)
def test_patches_that_straddle_tiles_decode_hardly_more(
    levels: list[tuple[int, int]], mpp: float, write_waves: Callable[..., Any], decoded: Counter[tuple[int, int]]
) -> None:
    path, _ = write_waves(levels, (24.0, 24.0), tile_px=64)
    with open_slide(path, mpp) as slide:
        table = whole_table(slide)
        rows = np.arange(len(table))
        for _ in read_patches(slide, table, rows, batch_size=16):
            pass
        thrifty = sum(decoded.values())
        assert thrifty <= 1.1 * len(decoded)
        decoded.clear()
    with open_slide(path, mpp) as slide:  # as everyone does it: scale by scale, row by row
        for row in np.lexsort((table.coords[:, 0], table.coords[:, 1], table.scale)):
            width, height = table.footprint(int(table.scale[row]))
            slide.read(*table.coords[row].tolist(), width, height, size=(P, P))
        assert sum(decoded.values()) > 1.6 * thrifty
