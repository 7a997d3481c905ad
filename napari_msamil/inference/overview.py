"""One picture that shows the slide, the lesion mask and the heatmaps side by side, with class and probability."""

from __future__ import annotations

import logging
import math
import textwrap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from napari_msamil.errors import SlideError
from napari_msamil.inference.heatmap import Heatmap, colour
from napari_msamil.inference.prediction import LESION_RGB, REGION_RGB, RESEARCH_USE, percent
from napari_msamil.slide.damage import read_around_damage
from napari_msamil.slide.slide import open_slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_msamil.inference.prediction import Prediction

logger = logging.getLogger(__name__)

PANEL_PX = 440
GAP_PX = 16
_INK, _PALE, _LINE, _BAR = (30, 30, 34), (110, 110, 118), (222, 222, 226), (66, 106, 168)
_WARN, _UNREAD = (178, 84, 0), (200, 200, 200)
_LESION = np.array(LESION_RGB, np.float32)
_FOOT_PX = 19  # height of a line
_KEY_PX = 230  # width of the colour key beside the first line


def draw_overview(prediction: Prediction) -> Image.Image:
    """RGB image with one panel each for slide, lesion mask and every scale's attention (rank in the bag).

    The border of a region that was looked at is drawn on all of them. The slide is opened again for it; where that
    cannot be, or it is another file by now, the panels are grey below what they show.
    """
    size = _panel_size(prediction.slide_size)
    picture, unread = _picture(prediction, size)
    maps = [prediction.heatmap(i) for i in range(len(prediction.table.scales))]
    panels = [
        ("Slide", picture),
        (f"Lesion mask: {prediction.lesion_label.split(' (')[0]}", _with_mask(picture, prediction)),
    ]
    panels += [(_title(m, prediction), _with_heatmap(picture, m, prediction)) for m in maps]
    bars_px = 26 * len(prediction.classes)
    width = max(760, GAP_PX + len(panels) * (size[0] + GAP_PX))
    foot = _foot(prediction, width - 2 * GAP_PX)
    below = 84 + bars_px + 24 + size[1] + 14
    height = below + _FOOT_PX * len(foot) + 10
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    _write_head(draw, prediction, width - 2 * GAP_PX)
    top = 84 + bars_px
    for index, (title, pixels) in enumerate(panels):
        left = GAP_PX + index * (size[0] + GAP_PX)
        draw.text((left, top), _shortened(title, size[0], draw), fill=_INK, font=_font(14))
        page.paste(_with_region(pixels, prediction), (left, top + 24))
        draw.rectangle((left - 1, top + 23, left + size[0], top + 24 + size[1]), outline=_LINE)
    _draw_scale_bar(draw, (GAP_PX, top + 24), size, prediction)
    _label(draw, (GAP_PX + 10, top + 34), unread, size[0] - 20)
    _label(draw, (GAP_PX + size[0] + GAP_PX + 10, top + 34), _no_lesion(prediction, size), size[0] - 20)
    for number, line in enumerate(foot):
        draw.text((GAP_PX, below + _FOOT_PX * number), line, fill=_PALE, font=_font(12))
    _draw_key(draw, (width - GAP_PX, below))
    return page


def _picture(prediction: Prediction, size: tuple[int, int]) -> tuple[NDArray[np.uint8], str]:
    """The slide, and why it is grey where it is: of a level that only this picture needs, a part may be damaged."""
    nothing = np.full((size[1], size[0], 3), _UNREAD, np.uint8)
    if not prediction.slide_unchanged:
        return nothing, "Not shown: the file was changed since"
    try:
        with open_slide(prediction.slide_path, prediction.mpp) as slide:
            picture, unread = read_around_damage(slide, size)
    except SlideError as error:
        logger.warning("the overview shows no slide: %s", error)
        return nothing, "Not shown: the file is damaged here"
    picture[unread] = _UNREAD
    return picture, "Grey: the file is damaged there" if unread.any() else ""


def _panel_size(slide_size: tuple[int, int]) -> tuple[int, int]:
    width, height = (max(1, round(side / max(slide_size) * PANEL_PX)) for side in slide_size)
    return width, height


def _title(heatmap: Heatmap, prediction: Prediction) -> str:
    seen = np.isfinite(heatmap.array).any()
    return f"Attention {heatmap.name}{f', rank in {prediction.looked_at}' if seen else ': no patch was looked at'}"


def _write_head(draw: ImageDraw.ImageDraw, prediction: Prediction, width_px: int) -> None:
    _write_headline(draw, prediction, width_px)
    draw.text(
        (GAP_PX, 46), f"{RESEARCH_USE}  Model {prediction.model_name}, {prediction.method}", fill=_PALE, font=_font(14)
    )
    for index, (name, p) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True)):
        y = 76 + 26 * index
        draw.text((GAP_PX, y), _shortened(name, 210, draw), fill=_INK, font=_font(14))
        draw.rectangle((GAP_PX + 220, y + 2, GAP_PX + 520, y + 17), outline=_LINE)
        bar = _PALE if prediction.weak else _BAR
        draw.rectangle((GAP_PX + 220, y + 2, GAP_PX + 220 + round(300 * float(p)), y + 17), fill=bar)
        draw.text((GAP_PX + 532, y), percent(float(p)), fill=_INK, font=_font(14))


def _write_headline(draw: ImageDraw.ImageDraw, prediction: Prediction, width_px: int) -> None:
    """Slide, class and what weakens it on one line; a name too long for it is cut, never the class or its caveat."""
    said = f": {prediction.headline}"
    caveat = f"   weak evidence: {prediction.weak}" if prediction.weak else ""
    said = _shortened(
        said, width_px - 80 - round(draw.textlength(caveat, font=_font(22))), draw, 22
    )  # if many are found
    room = width_px - round(draw.textlength(said + caveat, font=_font(22)))
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in prediction.slide_path.name)
    said = _shortened(name, room, draw, 22) + said
    draw.text((GAP_PX, 12), said, fill=_INK, font=_font(22))
    draw.text((GAP_PX + draw.textlength(said, font=_font(22)), 12), caveat, fill=_WARN, font=_font(22))


def _foot(prediction: Prediction, width_px: int) -> list[str]:
    """What belongs to the result, in lines that fit the page: counts, areas, every note, what the model is for."""
    counts = ", ".join(
        f"{count} at {scale.name}"
        for count, scale in zip(prediction.patches_read, prediction.table.scales, strict=True)
    )
    areas = f"Lesion {prediction.lesion_area}, tissue {prediction.tissue_area_mm2:.3g} mm²."
    notes = [f"Note: {text.rstrip('.')}." for text in (prediction.fallback, *prediction.notes) if text]
    columns = (width_px - _KEY_PX) // 8
    reading = [prediction.how_to_read] if prediction.how_to_read else []
    told = [f"Patches: {counts}. {areas}", *reading, *notes, f"Intended use: {prediction.intended_use}"]
    return [line for text in told for line in textwrap.wrap(text, columns)]


def _draw_key(draw: ImageDraw.ImageDraw, right: tuple[int, int]) -> None:
    ramp = colour(np.linspace(0, 1, 120, dtype=np.float32)[None], (0.0, 1.0))[0]
    x, y = right[0] - 190, right[1]
    draw.text((x - 30, y), "low", fill=_PALE, font=_font(12))
    for i, rgba in enumerate(ramp):
        draw.line((x + i, y + 2, x + i, y + 14), fill=tuple(int(v) for v in rgba[:3]))
    draw.text((x + 126, y), "high", fill=_PALE, font=_font(12))


def _draw_scale_bar(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int], prediction: Prediction
) -> None:
    """A bar of a round length, at most a third of the panel, in its bottom left corner, on white."""
    um_per_px = prediction.slide_size[0] * prediction.mpp[0] / size[0]
    um = round_length(size[0] / 3 * um_per_px)
    bar_px, text = round(um / um_per_px), f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
    wide = max(bar_px, round(draw.textlength(text, font=_font(12))))
    if wide + 20 > size[0] or size[1] < 40:  # a strip: the bar would cover it
        return
    x, y = corner[0] + 8, corner[1] + size[1] - 36
    draw.rectangle((x - 4, y - 2, x + wide + 4, y + 28), fill="white")
    draw.text((x, y), text, fill=_INK, font=_font(12))
    draw.rectangle((x, y + 20, x + bar_px - 1, y + 23), fill=_INK)


def round_length(longest: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is not above `longest`."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9)) * power


def _no_lesion(prediction: Prediction, size: tuple[int, int]) -> str:
    """Why the lesion panel shows no lesion; empty where it shows one."""
    if not prediction.finds_lesion:
        return "Not looked for by this model"
    if not prediction.lesion_mask.any():
        return f"No lesion above threshold{' in the region' if prediction.region else ''}"
    return "" if _shown_mask(prediction, size).any() else "Lesion too small to be seen here"


def _label(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width_px: int) -> None:
    """Text on white, so that it is read over tissue too."""
    if text:
        text = _shortened(text, width_px, draw)
        x0, y0, x1, y1 = draw.textbbox(place, text, font=_font(14))
        draw.rectangle((x0 - 4, y0 - 4, x1 + 4, y1 + 4), fill="white")
        draw.text(place, text, fill=_WARN, font=_font(14))


def _shown_mask(prediction: Prediction, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The lesion mask at the size (width, height) of a panel: (h, w)."""
    mask = Image.fromarray(prediction.lesion_mask * np.uint8(255))
    shown: NDArray[np.bool_] = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > 127
    return shown


def _with_mask(picture: NDArray[np.uint8], prediction: Prediction) -> NDArray[np.uint8]:
    inside = _shown_mask(prediction, (picture.shape[1], picture.shape[0]))[..., None]
    mixed: NDArray[np.uint8] = np.where(inside, 0.55 * picture + 0.45 * _LESION, picture).round().astype(np.uint8)
    return mixed


def _with_heatmap(picture: NDArray[np.uint8], heatmap: Heatmap, prediction: Prediction) -> NDArray[np.uint8]:
    """Lay the cells over the picture: each pixel takes the cell in which its centre lies."""
    rows, columns = heatmap.array.shape
    where = []
    for axis, count in ((0, columns), (1, rows)):
        shown = picture.shape[1 - axis]
        centres = (np.arange(shown) + 0.5) * prediction.slide_size[axis] / shown
        cell = np.floor((centres - heatmap.origin[axis]) / heatmap.downsample[axis]).astype(int)
        where.append((np.clip(cell, 0, count - 1), (cell >= 0) & (cell < count)))
    (x, x_in), (y, y_in) = where
    rgba = colour(heatmap.array, heatmap.limits)[y[:, None], x[None, :]].astype(np.float32)
    alpha = rgba[..., 3:] / 255 * 0.6 * (y_in[:, None] & x_in[None, :])[..., None]
    grey = picture.mean(axis=2, keepdims=True)  # colours of the stain would be taken for those of the ramp
    base = np.where(alpha > 0, grey, picture)
    mixed: NDArray[np.uint8] = (base * (1 - alpha) + rgba[..., :3] * alpha).round().astype(np.uint8)
    return mixed


def _with_region(pixels: NDArray[np.uint8], prediction: Prediction) -> Image.Image:
    """A panel with the border of the region that was looked at, if it was one, red on a dark edge."""
    panel = Image.fromarray(pixels)
    draw = ImageDraw.Draw(panel)
    shrink = np.divide(panel.size, prediction.slide_size)
    rings = [ring for polygon in prediction.region or () for ring in (polygon.exterior, *polygon.holes)]
    for width, ink in ((4, _INK), (2, REGION_RGB)):
        for ring in rings:
            draw.line([tuple(point) for point in np.vstack((ring, ring[:1])) * shrink], fill=ink, width=width)
    return panel


def _shortened(text: str, width_px: int, draw: ImageDraw.ImageDraw, font_px: int = 14) -> str:
    while len(text) > 4 and draw.textlength(text, font=_font(font_px)) > width_px:
        text = text[:-2].rstrip("…") + "…"
    return text


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font has neither µ nor any letter beyond ASCII."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
