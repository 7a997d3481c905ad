"""Patches per CPU-second: 512 px at three scales of one place, ours against OpenSlide, tiffslide and zarr slicing.

    python tests/benchmarks/bench_read.py [--quick] [SLIDE]

A place is one centre in the tissue, read as three concentric 512-px patches at 0.5, 1 and 2 µm/px from a slide of 0.5
µm/px. Places are visited in scan order (neighbours follow each other, as a heatmap needs them) and at random (as
training draws them), aligned to the file's 256-px tiles and not. Every reader gets one thread, a fresh handle per run
and its own caches as they come (32 MB for OpenSlide; the row "openslide, 64 MB cache" gives it the same as ours), and
is timed by the CPU time of the process: wall time would hide what zarr spends in its own threads. Runs alternate after
a first one that does not count, and the median counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from napari_msamil.slide import open_slide

PATCH_PX = 512
SCALES = (1, 2, 4)
MPP = 0.5
ROOT = Path(__file__).parents[2]

Place = tuple[int, int]
Patch = np.ndarray[Any, np.dtype[np.uint8]]
Reader = Callable[[Place], list[Patch]]


def corners(place: Place) -> Iterator[tuple[int, int, int]]:
    """Scale factor and top-left corner in level-0 px of the three patches centred at a place."""
    for scale in SCALES:
        half = PATCH_PX * scale // 2
        yield scale, place[0] - half, place[1] - half


def ours(path: Path) -> Reader:
    """Read as `patches` does: `Slide.read` of a box in level-0 px."""
    slide = open_slide(path, MPP)

    def read(place: Place) -> list[Patch]:
        return [
            slide.read(x, y, PATCH_PX * scale, PATCH_PX * scale, size=(PATCH_PX, PATCH_PX))
            for scale, x, y in corners(place)
        ]

    return read


def openslide_reader(path: Path, cache_bytes: int | None = None) -> Reader:
    """Read as users of OpenSlide do: best level for the downsample, then PIL."""
    import openslide

    slide = openslide.OpenSlide(path)
    if cache_bytes is not None:
        slide.set_cache(openslide.OpenSlideCache(cache_bytes))

    def read(place: Place) -> list[Patch]:
        patches = []
        for scale, x, y in corners(place):
            level = slide.get_best_level_for_downsample(scale + 0.01)
            side = round(PATCH_PX * scale / slide.level_downsamples[level])
            region = slide.read_region((x, y), level, (side, side)).convert("RGB")
            if side != PATCH_PX:
                region = region.resize((PATCH_PX, PATCH_PX), Image.Resampling.BOX)
            patches.append(np.asarray(region))
        return patches

    return read


def tiffslide_reader(path: Path) -> Reader:
    """The same calls through tiffslide."""
    import tiffslide

    slide = tiffslide.TiffSlide(path)

    def read(place: Place) -> list[Patch]:
        patches = []
        for scale, x, y in corners(place):
            level = slide.get_best_level_for_downsample(scale + 0.01)
            side = round(PATCH_PX * scale / slide.level_downsamples[level])
            patches.append(_shrunk(slide.read_region((x, y), level, (side, side), as_array=True)))
        return patches

    return read


def zarr_reader(path: Path) -> Reader:
    """Slices of tiffslide's zarr arrays."""
    import tiffslide

    slide = tiffslide.TiffSlide(path)
    levels = [slide.zarr_group[str(level)] for level in range(slide.level_count)]
    _keep_open.append(slide)

    def read(place: Place) -> list[Patch]:
        patches = []
        for scale, x, y in corners(place):
            level = slide.get_best_level_for_downsample(scale + 0.01)
            downsample = slide.level_downsamples[level]
            side, x0, y0 = round(PATCH_PX * scale / downsample), round(x / downsample), round(y / downsample)
            patches.append(_shrunk(np.asarray(levels[level][y0 : y0 + side, x0 : x0 + side])))
        return patches

    return read


_keep_open: list[Any] = []


def _shrunk(pixels: Patch) -> Patch:
    if pixels.shape[0] == PATCH_PX:
        return pixels
    return np.asarray(Image.fromarray(pixels).reduce(pixels.shape[0] // PATCH_PX))


READERS: dict[str, Callable[[Path], Reader]] = {
    "ours": ours,
    "openslide": openslide_reader,
    "openslide, 64 MB cache": lambda path: openslide_reader(path, 64 << 20),
    "tiffslide read_region": tiffslide_reader,
    "zarr slicing": zarr_reader,
}
TARGETS = {"openslide": 2.5}


def make_places(size: tuple[int, int], *, step: int, offset: int, count: int) -> list[Place]:
    """Return a block of neighbouring places in scan order, each at least half a coarse patch away from the edges."""
    margin = PATCH_PX * SCALES[-1] // 2
    side = max(1, int(count**0.5))
    x0, y0 = (((size[axis] - step * side) // 2 // step) * step + offset for axis in (0, 1))
    places = [(x0 + step * column, y0 + step * row) for row in range(side) for column in range(side)]
    return [(x, y) for x, y in places if margin <= x <= size[0] - margin and margin <= y <= size[1] - margin]


def run(quick: bool = False, slide: Path | None = None) -> list[dict[str, Any]]:
    """Measure: one row per case and competitor; value is ours, ratio is ours against the baseline."""
    path = slide or _default_slide()
    with open_slide(path, MPP) as opened:
        size = (opened.width, opened.height)
    count, repeats = (9, 1) if quick else (64, 5)
    rng = np.random.default_rng(0)
    rows = []
    for alignment, offset in (("aligned", 0), ("unaligned", 101)):
        scan = make_places(size, step=PATCH_PX, offset=offset, count=count)
        far = make_places(size, step=2 * PATCH_PX, offset=offset, count=count)
        orders = {"scan order": scan, "random order": [far[i] for i in rng.permutation(len(far))]}
        for order, places in orders.items():
            rows += _compare(path, places, repeats, f"{alignment}, {order}")
    return rows


def _compare(path: Path, places: list[Place], repeats: int, case: str) -> list[dict[str, Any]]:
    rates: dict[str, list[float]] = {name: [] for name in READERS}
    for attempt in range(repeats + 1):
        for name, make in READERS.items():
            rate = _places_per_cpu_second(make(path), places if attempt else places[:2])
            if attempt:
                rates[name].append(rate)
    value = {name: statistics.median(found) for name, found in rates.items()}
    rows: list[dict[str, Any]] = []
    for name in READERS:
        if name == "ours":
            continue
        ratio, target = value["ours"] / value[name], TARGETS.get(name)
        row = {
            "name": f"read 3 scales, {case}",
            "value": round(value["ours"], 1),
            "unit": "places/CPU-s",
            "baseline": f"{name} {value[name]:.1f}",
            "ratio": round(ratio, 2),
        }
        rows.append(row if target is None else {**row, "target": f">= {target:g}x", "met": ratio >= target})
    return rows


def _places_per_cpu_second(read: Reader, places: list[Place]) -> float:
    start = time.process_time()
    for place in places:
        patches = read(place)
        assert all(patch.shape == (PATCH_PX, PATCH_PX, 3) for patch in patches)
    return len(places) / max(time.process_time() - start, 1e-9)


def _default_slide() -> Path:
    folder = Path(os.environ.get("MSAMIL_TEST_DATA", ROOT / ".." / "shared" / "data"))
    return folder.resolve() / "slides" / "tubularadenoma-flat_HE.tif"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few places, once: does it run at all")
    parser.add_argument("slide", nargs="?", type=Path)
    arguments = parser.parse_args()
    from run import table

    print(table(run(arguments.quick, arguments.slide)))


if __name__ == "__main__":
    main()
