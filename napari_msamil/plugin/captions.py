"""What is written on the canvas: which result is seen, what its colours stand for, that it is for research."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.inference.prediction import RESEARCH_USE
from napari_msamil.plugin.compat import overlay
from napari_msamil.plugin.outlines import outline_top
from napari_msamil.plugin.slides import (
    COPY,
    HEATMAP,
    HEATMAP_COPY,
    MAPS,
    SAVED,
    TOP,
    is_evidence,
    mpp_of,
    slide_layers,
    tag,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import napari.layers
    import napari.viewer

_NOT_TO_SCALE = "pixel size not known, not to scale"
VALUE_NAMES = {
    "rank": "attention rank in this {of} (0 lowest, 1 highest)",
    "relative": "attention, an average patch has 1 (colours {low:.2g} to {high:.2g})",
    "attention": "attention (a patch's share of that of the whole {of})",
}
WHICH = {HEATMAP: "", SAVED: "saved ", HEATMAP_COPY: "copy of "}
"""What stands before the name of a heatmap, by its role."""


def keep_marked(viewer: napari.viewer.Viewer, added: list[napari.layers.Layer]) -> None:
    """Let the canvas text follow a result's layers, their eyes, limits and removal, for as long as one is left."""

    def follow(event: Any = None) -> None:
        mark_view(viewer)

    def follow_removal(event: Any) -> None:
        if event.value in added:
            added_left.remove(event.value)
            if not added_left:
                viewer.layers.events.removed.disconnect(follow_removal)
            mark_view(viewer)

    added_left = list(added)
    for layer in added:
        layer.events.visible.connect(follow)
        if tag(layer)["role"] in MAPS:
            layer.events.contrast_limits.connect(follow)
    viewer.layers.events.removed.connect(follow_removal)


def mark_view(viewer: napari.viewer.Viewer) -> None:
    """Write on the canvas what a visible heatmap shows and that it is for research; clear it where none is shown.

    A slide without pixel size is named where it is seen beside one that has one: the scale bar is none of its.
    The outlines of the patches with most attention follow the heatmap too.
    """
    outline_top(viewer)
    sources: dict[Any, list[Any]] = {}  # the results that are seen, and what is seen of each, finest scale first
    for layer in [a for a in reversed(viewer.layers) if a.visible and is_evidence(a) and tag(a)["role"] != TOP]:
        mark = tag(layer)
        source = (mark["name"], mark["weak"]) if mark["role"] == SAVED else mark["slide"]
        if mark["role"] in (COPY, HEATMAP_COPY):  # of an earlier result, perhaps
            source = (mark["slide"], mark.get("made_mpp"), mark.get("weak"))
        sources.setdefault(source, []).append(layer)
    saved = any(tag(one)["role"] == SAVED for seen in sources.values() for one in seen)
    named = saved or len(slide_layers(viewer)) > 1
    lines = [line for seen in reversed(sources.values()) for line in _captions(viewer, seen, named=named)]
    lines = [*_not_to_scale(viewer), *lines, *([RESEARCH_USE] if sources else [])]
    text = overlay(viewer, "text")
    if lines:
        below = [" "] if len(lines) > 3 else []  # napari's box is a little too low for each line
        text.text = "\n".join([*lines, *below])
        text.position = "top_left"  # napari's own messages come up at the bottom
        text.font_size = 9
        text.box = True
        text.visible = True
    elif RESEARCH_USE in text.text or _NOT_TO_SCALE in text.text:
        text.text = ""
        text.visible = False


def _not_to_scale(viewer: napari.viewer.Viewer) -> list[str]:
    seen = [slide for slide in slide_layers(viewer) if slide.visible]
    without = [slide for slide in seen if mpp_of(slide) is None]
    return [f"{slide.name}: {_NOT_TO_SCALE}" for slide in without] if len(without) < len(seen) else []


def made_with(then: Sequence[float] | None, now: Sequence[float] | None) -> str:
    """That a result was made with another pixel size than its slide has now, both µm per level-0 px (x, y), or ""."""
    if then is None or now is None or np.allclose(then, now, rtol=0.005, atol=0):
        return ""
    return f"made with {then[0]:.4g} µm per pixel, not with the {now[0]:.4g} of now"


def _mpp_then(mark: Mapping[str, Any]) -> Sequence[float] | None:
    """The pixel size that a result was made with, by the mark of one of its layers."""
    if mark["role"] != SAVED:
        return mark.get("made_mpp")
    return [float(um / px) for um, px in zip(mark["where"]["mpp"], mark["where"]["downsample"], strict=True)]


def _captions(viewer: napari.viewer.Viewer, seen: list[Any], *, named: bool) -> list[str]:
    """What is said of one result by the layers of it that are seen: of which slide, what is shown, how weak it is."""
    mark = tag(seen[0])
    slide = next((a for a in slide_layers(viewer) if tag(a)["slide"] == mark.get("slide")), None)
    lines = [mark.get("name") or ("" if slide is None else slide.name)] if named else []
    if slide is not None and (made := made_with(_mpp_then(mark), mpp_of(slide))):
        lines.append(made)
    lines += [f"copy of {tag(layer)['was']}" for layer in seen if tag(layer)["role"] == COPY]
    for layer in [a for a in seen if tag(a)["role"] in MAPS]:
        one, (low, high) = tag(layer), layer.contrast_limits
        shows = WHICH[one["role"]] + VALUE_NAMES[one["values"]].format(of=one["of"], low=low, high=high)
        lines.append(one["empty"] or f"{one['scale']}: {shows}")
    return [*lines, f"Weak evidence: {mark['weak']}"] if mark.get("weak") else lines
