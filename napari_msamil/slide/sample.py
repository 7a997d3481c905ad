"""A synthetic slide, made offline: something to open, classify and test on when no real slide is at hand.

The picture is that of an H&E-stained polyp of the colon, drawn and not photographed: glass, a fibrous core with fat and
vessels, crypts around it, and with ``lesion=True`` a sector of crowded, irregular, dark glands. Colours come from a
Beer-Lambert model of two stains, so that light and dark mix as they do in a real section. Nothing here is medical data.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from napari_msamil.errors import SlideError
from napari_msamil.slide.write import write_slide

Floats = NDArray[np.float32]

MPP = 1.0
"""µm per pixel of level 0."""

SAMPLE_SEED = 10
"""Of the slide that users see: in its lesion lie whole patches of each of the demo model's scales."""

_SMALLEST_PX = 512
# Optical density per unit of stain, red, green and blue: haematoxylin and eosin as scanners see them.
_HAEMATOXYLIN = np.array([0.62, 0.70, 0.29], np.float32)
_EOSIN = np.array([0.08, 0.60, 0.30], np.float32)


@dataclass
class _Canvas:
    """The stain densities while they are painted, and the list of nuclei that are stamped last."""

    haematoxylin: Floats
    eosin: Floats
    lesion: NDArray[np.bool_]
    nuclei: list[Floats] = field(default_factory=list)  # rows of x, y, angle (rad), kind

    def add_nuclei(self, x: Floats, y: Floats, angle: Floats, kind: int) -> None:
        rows = np.stack(np.broadcast_arrays(x, y, angle, np.float32(kind)), axis=-1)
        self.nuclei.append(rows.reshape(-1, 4).astype(np.float32))


# Half length, half width in px and density of a nucleus of each kind.
_NORMAL, _NEOPLASTIC, _LYMPHOCYTE, _FIBROBLAST = range(4)
_NUCLEI = ((4.2, 2.3, 0.95), (6.6, 3.1, 1.20), (2.9, 2.7, 1.25), (6.0, 1.3, 0.80))
_ANGLES = 12


def sample_arrays(
    seed: int = SAMPLE_SEED, lesion: bool = True, size_px: int = 4096
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint a synthetic slide.

    Args:
        seed: The same seed gives the same picture.
        lesion: Whether a part of the polyp is drawn neoplastic.
        size_px: Side of the square picture, 512 or more; one pixel is 1 µm.

    Returns:
        The picture (size_px, size_px, 3) uint8 RGB and its lesion mask (size_px, size_px) bool: the bodies of the
        neoplastic glands; all False with ``lesion=False``.

    Raises:
        SlideError: If ``size_px`` is smaller than 512.
    """
    if size_px < _SMALLEST_PX:
        raise SlideError(
            f"A sample slide of {size_px} px is too small to hold tissue; ask for {_SMALLEST_PX} px or more."
        )
    rng = np.random.default_rng([seed, int(lesion), 7])
    depth, angle = _polyp(rng, size_px)
    tissue = np.clip((1.0 - depth) * size_px * 0.12, 0, 1)
    core = depth < 0.42 + 0.07 * _noise(rng, size_px, size_px // 200)
    canvas = _stroma(rng, core)
    _fat_and_vessels(rng, canvas, depth, core)
    sector = _sector(rng, depth, angle) if lesion else np.zeros(depth.shape, bool)
    _glands(rng, canvas, depth, core, sector)
    _scatter_cells(rng, canvas, depth, core)
    _stamp_nuclei(canvas)
    canvas.lesion &= tissue > 0.5
    return _develop(rng, canvas, tissue), canvas.lesion


def write_sample_slide(path: str | Path, *, seed: int = SAMPLE_SEED, lesion: bool = True, size_px: int = 4096) -> Path:
    """Write a synthetic slide as a tiled pyramid TIFF (JPEG, 256-px tiles, halved levels, 1 µm per pixel).

    The file appears under its name only when it is complete. See `sample_arrays` for the arguments.

    Returns:
        The path written.
    """
    rgb, _ = sample_arrays(seed, lesion, size_px)
    return write_slide(path, rgb, mpp=MPP, software="napari-msamil synthetic slide")


def _noise(rng: np.random.Generator, size: int, cell: int, octaves: int = 1) -> Floats:
    """Smooth noise of about unit amplitude; features are ``cell`` px wide, halved with each octave."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        side = max(4, round(size / max(cell / 2**octave, 1)) + 3)
        grid = rng.standard_normal((side, side)).astype(np.float32)
        smooth = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC, box=(1, 1, side - 1, side - 1))
        total += np.asarray(smooth) * np.float32(0.6**octave)
    return total


def _polyp(rng: np.random.Generator, size: int) -> tuple[Floats, Floats]:
    """Depth (0 in the middle, 1 at the rim, above 1 on glass) and angle of every pixel about the polyp's centre."""
    axis = (np.arange(size, dtype=np.float32) - size / 2) / (size / 2)
    x, y = axis[None, :] - rng.uniform(-0.05, 0.05), axis[:, None] - rng.uniform(-0.05, 0.05)
    turn = rng.uniform(0, np.pi)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    angle = np.arctan2(v, u).astype(np.float32)
    radius = np.float32(0.80)
    for k in range(2, 12):  # lobes, the finer the shallower
        radius = radius + np.float32(rng.normal(0, 0.10 / k)) * np.cos(k * angle + np.float32(rng.uniform(0, 6.28)))
    depth = np.hypot(u / 0.98, v / 0.80) / radius
    depth += 0.010 * _noise(rng, size, 120, octaves=2)
    return depth.astype(np.float32), angle


def _sector(rng: np.random.Generator, depth: Floats, angle: Floats) -> NDArray[np.bool_]:
    """The part of the polyp that is neoplastic: a third of the way round, from the rim down."""
    middle, half = rng.uniform(-np.pi, np.pi), rng.uniform(0.75, 1.15)
    away = np.abs((angle - np.float32(middle) + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi))
    ragged = away + 0.13 * _noise(rng, len(depth), max(len(depth) // 24, 8), octaves=2)
    inside: NDArray[np.bool_] = (ragged < half) & (depth > 0.22)
    return inside


def _stroma(rng: np.random.Generator, core: NDArray[np.bool_]) -> _Canvas:
    """Pink fibrous ground: wavy fibres, finer between the glands, looser in the core."""
    size = len(core)
    axis = np.arange(size, dtype=np.float32)
    flow = 9.0 * _noise(rng, size, 330) + 3.2 * _noise(rng, size, 90, octaves=2)
    fibre = np.sin(axis[None, :] / 13 + axis[:, None] / 19 + flow)
    fine = _noise(rng, size, 12, octaves=3)
    blotch = _noise(rng, size, 90, octaves=2)
    eosin = 0.29 + 0.05 * fibre + 0.05 * fine + 0.03 * blotch
    loose = 0.23 + 0.09 * fibre + 0.09 * fine + 0.07 * blotch
    eosin = np.where(core, np.clip(loose, 0.03, None), eosin).astype(np.float32)
    haematoxylin = (0.07 + 0.02 * fine).astype(np.float32)
    return _Canvas(haematoxylin, eosin, np.zeros(core.shape, bool))


def _window(size: int, x: float, y: float, half: float) -> tuple[tuple[slice, slice], Floats, Floats]:
    """The part of the canvas within ``half`` px of a point, and its pixels' offsets from the point."""
    x0, x1 = max(int(x - half), 0), min(int(x + half) + 1, size)
    y0, y1 = max(int(y - half), 0), min(int(y + half) + 1, size)
    dx = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(x)
    dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(y)
    return (slice(y0, y1), slice(x0, x1)), dx, dy


def _lattice(rng: np.random.Generator, size: int, step: float, jitter: float) -> Floats:
    """Centres (n, 2) x, y of a jittered hexagonal lattice."""
    rows = np.arange(0, size, step * 0.87, dtype=np.float32)
    columns = np.arange(0, size, step, dtype=np.float32)
    x, y = np.meshgrid(columns, rows)
    x[1::2] += step / 2
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points += rng.normal(0, jitter * step, points.shape).astype(np.float32)
    inside = ((points > 0) & (points < size - 1)).all(axis=1)
    chosen: Floats = points[inside].astype(np.float32)
    return chosen


def _fat_and_vessels(rng: np.random.Generator, canvas: _Canvas, depth: Floats, core: NDArray[np.bool_]) -> None:
    size = len(depth)
    lobule = _noise(rng, size, max(size // 12, 8)) > 0.55
    for x, y in _lattice(rng, size, 58, 0.10):
        here = int(y), int(x)
        if not (core[here] and lobule[here]) or depth[here] > 0.30:
            continue
        radius = rng.uniform(23, 31)
        box, dx, dy = _window(size, x, y, radius + 3)
        inside = np.clip(radius - np.hypot(dx, dy * rng.uniform(0.85, 1.15)), 0, 2) / 2
        for layer in (canvas.eosin, canvas.haematoxylin):
            layer[box] *= 1 - 0.96 * inside
    for x, y in _lattice(rng, size, 330, 0.25):
        if not core[int(y), int(x)] or lobule[int(y), int(x)]:
            continue
        radius, squeeze = rng.uniform(14, 34), rng.uniform(0.6, 1.0)
        box, dx, dy = _window(size, x, y, radius * 1.8)
        rho = np.hypot(dx, dy / squeeze) / radius
        wall, blood = (rho < 1.35) & (rho > 1), rho <= 1
        canvas.eosin[box] = np.where(wall, 0.55, np.where(blood, 0.80 * (rng.random() < 0.6), canvas.eosin[box]))


def _glands(
    rng: np.random.Generator, canvas: _Canvas, depth: Floats, core: NDArray[np.bool_], sector: NDArray[np.bool_]
) -> None:
    """Round, evenly set crypts in the mucosa; crowded and irregular ones in the lesion's sector."""
    size = len(depth)
    middle = size / 2
    for x, y in _lattice(rng, size, 80, 0.10):
        here = int(y), int(x)
        if not core[here] and not sector[here] and depth[here] < 0.965:
            _crypt(rng, canvas, x, y, outward=float(np.arctan2(y - middle, x - middle)))
    centres = _lattice(rng, size, 76, 0.22)
    for x, y in rng.permutation(centres):
        if sector[int(y), int(x)] and depth[int(y), int(x)] < 0.975:
            _neoplastic_gland(rng, canvas, x, y)


def _gland_shape(
    rng: np.random.Generator, dx: Floats, dy: Floats, axes: tuple[float, float], turn: float, wobble: float
) -> tuple[Floats, Floats]:
    """Relative radius (1 on the gland's outline) and angle of the pixels around a gland."""
    u = (dx * np.cos(turn) + dy * np.sin(turn)) / axes[0]
    v = (dy * np.cos(turn) - dx * np.sin(turn)) / axes[1]
    theta = np.arctan2(v, u)
    outline = np.ones_like(theta)
    for k in range(2, 7):
        outline += rng.normal(0, wobble / np.sqrt(k)) * np.cos(k * theta + rng.uniform(0, 6.28))
    return (np.hypot(u, v) / np.clip(outline, 0.45, None)).astype(np.float32), theta.astype(np.float32)


def _paint(layer: Floats, box: tuple[slice, slice], value: Floats, cover: Floats) -> None:
    layer[box] += cover * (value - layer[box])


def _crypt(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, *, outward: float) -> None:
    long, wide = rng.uniform(29, 37) * rng.choice([1.0, 1.0, 1.25]), rng.uniform(25, 30)
    turn = outward + rng.normal(0, 0.25)
    box, dx, dy = _window(len(canvas.eosin), x, y, 1.35 * long)
    rho, theta = _gland_shape(rng, dx, dy, (long, wide), turn, 0.035)
    cells = int(rng.integers(15, 21))
    wall = np.abs(np.cos(theta * cells / 2 + rng.uniform(0, 3))) ** 10  # the membranes between goblet cells
    goblet = (rho > 0.24) & (rho < 0.74)
    lumen = rho < 0.17 + 0.05 * np.cos(3 * theta)
    haematoxylin = np.where(lumen, 0.03, np.where(goblet, 0.15 + 0.18 * wall, 0.40))
    eosin = np.where(lumen, 0.05, np.where(goblet, 0.11 + 0.16 * wall, 0.30))
    cover = np.clip((1 - rho) * wide / 1.5, 0, 1)
    _paint(canvas.haematoxylin, box, haematoxylin, cover)
    _paint(canvas.eosin, box, eosin, cover)
    count = int(2 * np.pi * wide * 0.86 / 6.0)
    around = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.normal(0, 0.05, count)
    ring = rng.normal(0.85, 0.03, count)
    _nuclei_at(canvas, (x, y), (long, wide), turn, around, ring, _NORMAL)


def _neoplastic_gland(rng: np.random.Generator, canvas: _Canvas, x: float, y: float) -> None:
    long, wide = rng.uniform(38, 62), rng.uniform(27, 40)
    turn = rng.uniform(0, np.pi)
    box, dx, dy = _window(len(canvas.eosin), x, y, 1.6 * long)
    rho, theta = _gland_shape(rng, dx, dy, (long, wide), turn, 0.10)
    lumen = rho < rng.uniform(0.12, 0.36) * (1 + 0.45 * np.cos(2 * theta + 1) + 0.25 * np.cos(5 * theta))
    for _ in range(int(rng.integers(0, 3))):  # cribriform: holes beside the lumen
        at, far = rng.uniform(0, 6.28), rng.uniform(0.35, 0.6)
        lumen |= np.hypot(rho * np.cos(theta) - far * np.cos(at), rho * np.sin(theta) - far * np.sin(at)) < 0.13
    debris = rng.uniform(0.05, 0.35)  # dirty necrosis stains the lumen pink
    grain = rng.normal(0, 0.03, rho.shape)
    haematoxylin = np.where(lumen, 0.04, rng.uniform(0.30, 0.46) + grain)
    eosin = np.where(lumen, debris, rng.uniform(0.30, 0.44) + grain)
    cover = np.clip((1 - rho) * wide / 1.5, 0, 1)
    _paint(canvas.haematoxylin, box, haematoxylin, cover)
    _paint(canvas.eosin, box, eosin, cover)
    canvas.lesion[box] |= rho < 1
    count = int(long * wide / 19)
    around = rng.uniform(0, 2 * np.pi, count)
    ring = np.sqrt(rng.uniform(0.30, 0.90, count))
    solid = rng.random(count) < 0.9
    _nuclei_at(canvas, (x, y), (long, wide), turn, around[solid], ring[solid], _NEOPLASTIC)


def _nuclei_at(
    canvas: _Canvas,
    centre: tuple[float, float],
    axes: tuple[float, float],
    turn: float,
    around: NDArray[np.float64],
    ring: NDArray[np.float64],
    kind: int,
) -> None:
    """Nuclei inside a gland, standing on its outline: their long axis points at its centre."""
    u, v = axes[0] * ring * np.cos(around), axes[1] * ring * np.sin(around)
    x = u * np.cos(turn) - v * np.sin(turn)
    y = u * np.sin(turn) + v * np.cos(turn)
    canvas.add_nuclei(
        (centre[0] + x).astype(np.float32),
        (centre[1] + y).astype(np.float32),
        np.arctan2(y, x).astype(np.float32),
        kind,
    )


def _scatter_cells(rng: np.random.Generator, canvas: _Canvas, depth: Floats, core: NDArray[np.bool_]) -> None:
    """Lymphocytes and fibroblasts in the stroma, and a few lymphoid aggregates; never inside a gland."""
    size = len(depth)
    stroma = (canvas.haematoxylin < 0.2) & (canvas.eosin > 0.15) & (depth < 1)
    for kind, per_mm2 in ((_LYMPHOCYTE, 1500), (_FIBROBLAST, 1100)):
        count = int(per_mm2 * (size * MPP / 1000) ** 2)
        x, y = rng.uniform(0, size - 1, (2, count)).astype(np.float32)
        place = y.astype(int), x.astype(int)
        thin_out = np.where(core[place], 0.35 if kind == _LYMPHOCYTE else 0.8, 1.0)
        keep = stroma[place] & (rng.random(count) < thin_out)
        canvas.add_nuclei(x[keep], y[keep], rng.uniform(0, np.pi, int(keep.sum())).astype(np.float32), kind)
    for x0, y0 in _lattice(rng, size, max(size / 3.2, 400), 0.2):
        count = int(rng.integers(500, 900))
        x, y = (np.array([[x0], [y0]]) + rng.normal(0, 55, (2, count))).astype(np.float32)
        inside = (x > 0) & (y > 0) & (x < size - 1) & (y < size - 1)
        x, y = x[inside], y[inside]
        keep = stroma[y.astype(int), x.astype(int)]
        canvas.add_nuclei(x[keep], y[keep], np.zeros(int(keep.sum()), np.float32), _LYMPHOCYTE)


def _stamp_nuclei(canvas: _Canvas) -> None:
    """Draw all nuclei: one antialiased stamp per kind and direction, laid down where it is the darkest."""
    size = len(canvas.eosin)
    nuclei = np.concatenate(canvas.nuclei)
    direction = np.round(nuclei[:, 2] / np.pi * _ANGLES).astype(int) % _ANGLES
    flat = canvas.haematoxylin.reshape(-1)
    for kind, (half_length, half_width, density) in enumerate(_NUCLEI):
        reach = int(np.ceil(half_length)) + 1
        dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
        for number in range(_ANGLES):
            mine = nuclei[(nuclei[:, 3] == kind) & (direction == number)]
            x, y = np.round(mine[:, 0]).astype(int), np.round(mine[:, 1]).astype(int)
            keep = (x >= reach) & (y >= reach) & (x < size - reach) & (y < size - reach)
            turn = number * np.pi / _ANGLES
            u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
            distance = np.hypot(u / half_length, v / half_width)
            rim = density * (0.82 + 0.25 * distance**2)  # chromatin gathers at the membrane
            stamp = rim * np.clip((1 - distance) * half_width / 1.1, 0, 1)
            offsets = (dy * size + dx).astype(int)
            # Shade varies from nucleus to nucleus, but not with the order of drawing.
            shade = 0.78 + 0.3 * ((x[keep] * 31 + y[keep] * 17) % 64)[:, None, None] / 64
            places = (y[keep] * size + x[keep])[:, None, None] + offsets
            np.maximum.at(flat, places.ravel(), (shade * stamp).astype(np.float32).ravel())


def _develop(rng: np.random.Generator, canvas: _Canvas, tissue: Floats) -> NDArray[np.uint8]:
    """Stain densities to colours (Beer-Lambert), on off-white glass, with a lens' blur and a camera's noise."""
    size = len(tissue)
    shading = 1 + 0.08 * _noise(rng, size, max(size // 5, 8))
    haematoxylin = np.clip(canvas.haematoxylin, 0, None) * tissue * shading
    eosin = np.clip(canvas.eosin, 0, None) * tissue * shading
    glass = np.array([243, 241, 244], np.float32)
    rgb = np.empty((size, size, 3), np.uint8)
    for channel in range(3):
        density = haematoxylin * _HAEMATOXYLIN[channel] + eosin * _EOSIN[channel]
        light = glass[channel] * np.float32(10) ** -density
        light += rng.standard_normal((size, size), dtype=np.float32) * 2.2
        rgb[..., channel] = np.clip(light, 0, 255)
    return np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(0.7)))
