"""Composed slides: small labelled fields set side by side as a piece of tissue on glass.

A composed slide has the texture and the labels of the fields it is made of, at their own resolution, but no real
architecture beyond one field: say "composed" wherever such a slide is used or reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

GLASS = 255
"""Kind of a place without tissue."""

KIND_STEP_PX = 8
"""The map of kinds is this much coarser than the picture."""

_FEATHER = 0.03  # of a cell's side: neighbours fade into each other over this width
_PAD = 0.125  # of a cell's side, mirrored around it before it is turned


@dataclass(frozen=True)
class Cell:
    """One field, square: pixels (P, P, 3) uint8 RGB, lesion (P, P) bool, kind = index of its tissue class (< 255)."""

    pixels: Bytes
    lesion: NDArray[np.bool_]
    kind: int


@dataclass(frozen=True)
class ComposedSlide:
    """A slide in memory.

    Attributes:
        rgb: (H, W, 3) uint8.
        lesion: (H, W) bool, aligned with the pixels.
        kinds: (ceil(H / 8), ceil(W / 8)) uint8: kind of the cell at the middle of each 8-px block; 255 is glass.
        used: How often each of the cells given was drawn.
        mpp: µm per pixel.
    """

    rgb: Bytes
    lesion: NDArray[np.bool_]
    kinds: Bytes
    used: NDArray[np.int64]
    mpp: float


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Floats:
    """Smooth noise (H, W) of about unit amplitude with ``cells`` features along the longer side."""
    height, width = shape
    step = max(height, width) / cells
    rows, columns = max(4, round(height / step) + 3), max(4, round(width / step) + 3)
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    box = (1, 1, columns - 1, rows - 1)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC, box=box))


def tissue_shape(rng: np.random.Generator, shape: tuple[int, int], *, fill: float) -> Floats:
    """A ragged piece of tissue: (H, W) float, positive inside; ``fill`` (0..1) is its share of the canvas, about."""
    height, width = shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    field = 1 - np.maximum(np.abs(x), np.abs(y)) ** 2 - 0.25 * (x * x + y * y)
    field = field + 0.30 * smooth_noise(rng, shape, 5) + 0.10 * smooth_noise(rng, shape, 16)
    sample = field[:: max(height // 64, 1), :: max(width // 64, 1)]
    inside: Floats = (field - np.float32(np.quantile(sample, 1 - fill))).astype(np.float32)
    return inside


def compose(
    cells: Sequence[Cell],
    rng: np.random.Generator,
    *,
    grid: tuple[int, int],
    mpp: float = 1.0,
    cell_mpp: float = 1.0,
    fill: float = 0.75,
    groups: Sequence[int] | None = None,
    use_all: bool = True,
) -> ComposedSlide:
    """Lay cells out as one irregular piece of tissue.

    Every cell is flipped, turned by a multiple of 90 degrees and a few degrees more, and faded into its neighbours. The
    cells that lie wholly inside the tissue are filled first, with each given cell once, so that none is left out.

    Args:
        cells: The fields; all square and of one size.
        rng: Everything random comes from here.
        grid: Columns and rows of the mosaic; with ``use_all`` it grows until all cells fit.
        mpp: µm per pixel of the slide.
        cell_mpp: µm per pixel of the fields.
        fill: Share of the canvas that is tissue.
        groups: For each cell the number of the specimen it comes from. Cells of one group are then kept together, as
            neighbouring regions of one piece; without it all cells are mixed.
        use_all: Whether every cell must appear.

    Raises:
        ValueError: If there are no cells.
    """
    if not cells:
        raise ValueError("A slide cannot be composed of no fields; give at least one cell.")
    columns, rows = grid
    side = len(cells[0].pixels)
    step = side * cell_mpp / mpp
    while True:
        shape = round((rows + 0.5) * step), round((columns + 0.5) * step)
        inside = tissue_shape(rng, shape, fill=fill)
        offset = rng.uniform(-0.25, 0.75, 2) * step  # so that cells do not fall on any patch grid
        corners = _corners(shape, step, offset)
        share = _share_inside(inside, corners, step)
        if not use_all or (share > 0.9).sum() >= len(cells):
            break
        columns, rows = columns + 1, rows + 1
    choice = _assign(rng, corners, share, len(cells), groups, shape)
    return _render(cells, rng, choice, corners, inside, step, mpp)


def _corners(shape: tuple[int, int], step: float, offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Top-left corners (n, 2) x, y of all cells that touch the canvas."""
    xs = np.arange(offset[0] - step, shape[1], step)
    ys = np.arange(offset[1] - step, shape[0], step)
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def _share_inside(inside: Floats, corners: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Share (n,) of each cell that is tissue; what hangs over the canvas counts as glass."""
    height, width = inside.shape
    at = (np.arange(5) + 0.5) / 5 * step
    x = (corners[:, 0, None, None] + at[None, None, :]).astype(int)
    y = (corners[:, 1, None, None] + at[None, :, None]).astype(int)
    x, y = np.broadcast_arrays(x, y)
    on = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    tissue = inside[y.clip(0, height - 1), x.clip(0, width - 1)] > 0
    share: NDArray[np.float64] = (on & tissue).mean(axis=(1, 2))
    return share


def _assign(
    rng: np.random.Generator,
    corners: NDArray[np.float64],
    share: NDArray[np.float64],
    count: int,
    groups: Sequence[int] | None,
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Which cell is drawn at each corner; -1 for none."""
    choice = np.full(len(corners), -1)
    wanted = np.flatnonzero(share > 0)
    if groups is None:
        order = wanted[np.argsort(-(share[wanted] > 0.9).astype(float) + rng.uniform(0, 0.5, len(wanted)))]
        repeats = -(-len(order) // count)
        deck = np.concatenate([rng.permutation(count) for _ in range(repeats)])
        choice[order] = deck[: len(order)]
        return choice
    group = np.asarray(groups)
    names = np.unique(group)
    fields = np.stack([smooth_noise(rng, shape, 4) for _ in names])
    x = np.clip(corners[:, 0], 0, shape[1] - 1).astype(int)
    y = np.clip(corners[:, 1], 0, shape[0] - 1).astype(int)
    region = names[fields[:, y, x].argmax(axis=0)]
    for place in wanted:
        choice[place] = rng.choice(np.flatnonzero(group == region[place]))
    return choice


def _feather(size: int) -> Image.Image:
    """Opacity of a cell of ``size`` px: it fades in over its left and upper neighbour, which are drawn before it."""
    ramp = np.clip((np.arange(size) + 0.5) / max(2 * _FEATHER * size, 1), 0, 1)
    return Image.fromarray((255 * ramp[:, None] * ramp[None, :]).astype(np.uint8))


def _render(
    cells: Sequence[Cell],
    rng: np.random.Generator,
    choice: NDArray[np.int64],
    corners: NDArray[np.float64],
    inside: Floats,
    step: float,
    mpp: float,
) -> ComposedSlide:
    height, width = inside.shape
    glass = (rng.uniform(226, 250) + rng.normal(0, 3, 3)).clip(200, 255)
    picture = Image.new("RGB", (width, height), tuple(int(c) for c in glass))
    lesion = Image.new("L", (width, height))
    kinds = np.full((-(-height // KIND_STEP_PX), -(-width // KIND_STEP_PX)), GLASS, np.uint8)
    size = round(step * (1 + 2 * _FEATHER))
    opacity = _feather(size)
    solid = opacity.point(lambda value: 255 * (value > 127))
    side = len(cells[0].pixels)
    ratio = side / max(int(side / step), 1) / step
    prepared: dict[int, tuple[Image.Image, Image.Image]] = {}
    for place in np.flatnonzero(choice >= 0):
        cell = cells[choice[place]]
        if choice[place] not in prepared:
            prepared[choice[place]] = _prepared(cell, step)
        left, top = (round(float(c) - step * _FEATHER) for c in corners[place])
        pixels, mask = _turned(prepared[choice[place]], rng, size, ratio)
        picture.paste(pixels, (left, top), opacity)
        lesion.paste(mask, (left, top), solid)
        x0, y0 = (max(round(float(c) / KIND_STEP_PX), 0) for c in corners[place])
        x1, y1 = (max(round(float(c + step) / KIND_STEP_PX), 0) for c in corners[place])
        kinds[y0:y1, x0:x1] = cell.kind
    cover = np.clip(255 * (inside * (max(height, width) / 8) + 0.5), 0, 255).astype(np.uint8)
    rgb = np.asarray(Image.composite(picture, _grainy_glass(rng, glass, (height, width)), Image.fromarray(cover)))
    kinds[~_every(inside > 0, kinds.shape)] = GLASS
    used = np.bincount(choice[choice >= 0], minlength=len(cells)).astype(np.int64)
    return ComposedSlide(rgb, (np.asarray(lesion) > 127) & (inside > 0), kinds, used, mpp)


def _grainy_glass(rng: np.random.Generator, colour: NDArray[np.float64], shape: tuple[int, int]) -> Image.Image:
    """Empty glass with a camera's noise; a small piece of noise is repeated, for speed."""
    grain = colour + rng.normal(0, 1.5, (128, 128, 1))
    tiles = -(-shape[0] // 128), -(-shape[1] // 128), 1
    return Image.fromarray(np.tile(grain.clip(0, 255).astype(np.uint8), tiles)[: shape[0], : shape[1]])


def _every(mask: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask read at the middle of each block of the kinds' map."""
    y = np.minimum(np.arange(shape[0]) * KIND_STEP_PX + KIND_STEP_PX // 2, mask.shape[0] - 1)
    x = np.minimum(np.arange(shape[1]) * KIND_STEP_PX + KIND_STEP_PX // 2, mask.shape[1] - 1)
    picked: NDArray[np.bool_] = mask[y[:, None], x[None, :]]
    return picked


def _prepared(cell: Cell, step: float) -> tuple[Image.Image, Image.Image]:
    """A cell's pixels and lesion with mirrored margins, shrunk by a whole number where the slide is coarser."""
    side = len(cell.pixels)
    factor = max(int(side / step), 1)  # the affine transform that follows does not average
    pad = round(_PAD * side / factor) * factor
    images = []
    for array in (cell.pixels, cell.lesion.astype(np.uint8) * 255):
        margins = ((pad, pad), (pad, pad), (0, 0))[: array.ndim]
        image = Image.fromarray(np.pad(array, margins, mode="reflect"))
        images.append(image.reduce(factor) if factor > 1 else image)
    return images[0], images[1]


def _turned(
    prepared: tuple[Image.Image, Image.Image], rng: np.random.Generator, size: int, ratio: float
) -> list[Image.Image]:
    """Pixels and lesion of a cell, both (size, size), under one and the same random flip and turn.

    ``ratio`` is how many px of the prepared cell make one of the slide.
    """
    quarter, flip = int(rng.integers(4)), bool(rng.integers(2))
    angle = quarter * np.pi / 2 + np.deg2rad(rng.uniform(-6, 6))
    cos, sin = np.cos(angle) * ratio, np.sin(angle) * ratio
    mirror = -1 if flip else 1
    a, b, d, e = mirror * cos, -mirror * sin, sin, cos
    centre = prepared[0].width / 2
    affine = (a, b, centre - (a + b) * size / 2, d, e, centre - (d + e) * size / 2)
    return [
        image.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR) for image in prepared
    ]
