"""What a viewer's slides need: to be read ahead of the view, kept together with what lies on them, and closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels, Points, Shapes
from qtpy.QtCore import QTimer

from napari_msamil.plugin.captions import keep_marked, mark_view
from napari_msamil.plugin.compat import forget_deleted_programs, overlay
from napari_msamil.plugin.prefetch import Prefetcher
from napari_msamil.plugin.saved import lay_on, loose
from napari_msamil.plugin.sight import follow_eye, settle_soon
from napari_msamil.plugin.slides import (
    ANNOTATION,
    CACHE,
    COPY,
    HEATMAP,
    HEATMAP_COPY,
    KEY,
    LESION,
    REGION,
    SAVED,
    SLIDE,
    TOP,
    new_id,
    slide_of,
    slides_among,
    tag,
)

if TYPE_CHECKING:
    import napari.layers
    import napari.viewer

    from napari_msamil.slide.slide import Slide

SCALE_BAR_MS = 500
_KINDS = {SLIDE: Image, LESION: Labels, HEATMAP: Image, SAVED: Image, HEATMAP_COPY: Image, TOP: Shapes}


def watch(viewer: napari.viewer.Viewer) -> None:
    """Look after the slides of a viewer: read ahead of the view, and let go of a slide when its layer is removed.

    What lies on a slide goes along when napari's transform tool moves or turns it, and cannot be moved away from it; a
    new layer comes to lie directly above what its slide has, below other slides. Evidence is seen on its own slide's
    tissue only. Calling it again changes nothing.
    """
    forget_deleted_programs()
    events = viewer.layers.events
    if _attend in events.inserted.callbacks:
        return
    events.inserted.connect(_attend)
    events.inserted.connect(_keep_together)
    events.inserted.connect(_look_after)
    events.reordered.connect(_restack)
    events.inserted.connect(lambda event: _mark_copy(viewer, event.value), position="last")
    events.removed.connect(_release)
    for layer in viewer.layers:
        follow_eye(layer, viewer.layers)


def show_scale_bar(viewer: napari.viewer.Viewer) -> None:
    """Show the scale bar once the picture stands: napari takes as long for the bar's letters as for a slide."""

    def show() -> None:
        overlay(viewer, "scale_bar").visible = True

    QTimer.singleShot(0, lambda: QTimer.singleShot(SCALE_BAR_MS, show))  # counted from when the slide's layer is there


def _look_after(event: Any) -> None:
    follow_eye(event.value, event.source)
    settle_soon(event.source)


def _attend(event: Any) -> None:
    layer = event.value
    if tag(layer).get("role") != SLIDE:
        return
    if any(other is not layer and tag(other)["slide"] == tag(layer)["slide"] for other in slides_among(event.source)):
        # napari's "Duplicate layer" copies the metadata too
        fresh = {"slide": new_id(), "prefetcher": Prefetcher(tag(layer)["pyramid"]), "result": None}
        layer.metadata[KEY] = {**tag(layer), **fresh}
    prefetcher: Prefetcher = tag(layer)["prefetcher"]
    layer.events.set_data.connect(prefetcher.follow)
    prefetcher.look_around(layer)
    _name_alike(layer, event.source)
    for heatmap in loose(event.source):
        if lay_on(layer, heatmap, event.source):
            _tie(heatmap, event.source)


def _name_alike(slide_layer: napari.layers.Image, layers: Any) -> None:
    """Let what is named after a slide, as its result is, go on being so when the slide gets another name."""
    called = slide_layer.name

    def rename(event: Any) -> None:
        nonlocal called
        before, called = f"{called} | ", slide_layer.name
        for layer in [a for a in layers if tag(a).get("slide") == tag(slide_layer)["slide"]]:
            if layer.name.startswith(before):
                layer.name = f"{called} | {layer.name.removeprefix(before)}"

    slide_layer.events.name.connect(rename)


def _adopt(inserted: Any, layers: Any) -> None:
    """Mark what napari's own buttons and commands made.

    An empty layer to draw on belongs to the slide that is seen, and stays the user's own when that is removed. A copy
    of a part of a result is none of the next result's. What was made of one of our layers and is of another kind, as
    the channels that "Split RGB" makes of a slide, is not what that was.
    """
    mark = tag(inserted)
    role = mark.get("role", "")
    seen = [slide for slide in slides_among(layers) if slide.visible]
    if not mark and _to_draw_on(inserted) and len(seen) == 1:
        drawn = REGION if isinstance(inserted, Shapes) else ANNOTATION
        inserted.metadata[KEY] = {"role": drawn, "slide": tag(seen[0])["slide"], "own": True}
    elif role in _KINDS and not _is_a(role, inserted):
        kept = {"pyramid"} if role == SLIDE else {"slide", "weak"} if inserted.ndim == 2 else set()
        inserted.metadata[KEY] = {"role": COPY, "was": role, **{name: mark[name] for name in kept if name in mark}}
    elif role in (LESION, HEATMAP, TOP):
        part = [mark.get(name) for name in ("slide", "role", "scale")]
        twins = [a for a in layers if a is not inserted and [tag(a).get(n) for n in ("slide", "role", "scale")] == part]
        if twins:
            inserted.metadata[KEY] = {**mark, "role": HEATMAP_COPY if role == HEATMAP else COPY, "was": role}
        if twins and role == LESION:
            inserted.contour = twins[0].contour  # napari's command forgets it, and tissue would be covered


def _mark_copy(viewer: napari.viewer.Viewer, inserted: Any) -> None:
    """Let the canvas text speak of a copy, too."""
    if tag(inserted).get("role") in (COPY, HEATMAP_COPY) and "slide" in tag(inserted):
        keep_marked(viewer, [inserted])
        mark_view(viewer)


def _is_a(role: str, layer: Any) -> bool:
    return isinstance(layer, _KINDS[role]) and layer.ndim == 2 and (role != SLIDE or layer.rgb)


def _to_draw_on(layer: Any) -> bool:
    """Whether a layer can lie on a slide and is still empty; of a large array of labels a part is looked at."""
    if layer.ndim != 2:
        return False
    if isinstance(layer, Labels):
        return isinstance(layer.data, np.ndarray) and not layer.data[::64, ::64].any()
    return isinstance(layer, (Shapes, Points)) and not len(layer.data)


def _keep_together(event: Any) -> None:
    """Tie a new layer to the slide that it lies on, or to what lies on it."""
    layers, inserted = event.source, event.value
    _adopt(inserted, layers)
    if "slide" in tag(inserted):
        _tie(inserted, layers)


def _tie(layer: Any, layers: Any) -> None:
    """Let a layer go along with its slide, and put it on top of what lies on that."""

    def follow(event: Any = None) -> None:
        slide_id = tag(layer).get("slide")
        moved = next((a.affine.affine_matrix for a in slides_among(layers) if tag(a)["slide"] == slide_id), None)
        for other in [a for a in layers if slide_id is not None and tag(a).get("slide") == slide_id]:
            if moved is not None and not np.array_equal(other.affine.affine_matrix, moved):
                other.affine = moved

    layer.events.affine.connect(follow)
    follow()
    if _out_of_place(layer, layers):  # not at once: others are still to hear of the insertion
        QTimer.singleShot(0, lambda: _stack(layer, layers))


def _out_of_place(layer: Any, layers: Any) -> bool:
    """Whether a layer lies below its slide, or on top of another one that is above that."""
    slides = [tag(slide)["slide"] for slide in slides_among(layers)]
    below = [tag(slide)["slide"] for slide in slides_among(list(layers)[: layers.index(layer)])]
    mine = tag(layer)["slide"]
    return tag(layer)["role"] != SLIDE and mine in slides and (not below or below[-1] != mine)


def _restack(event: Any) -> None:
    """Put what lies on a slide on top of it again when a layer was dragged in the list."""

    def restack() -> None:
        for layer in astray:
            _stack(layer, layers)

    layers = event.source
    astray = [layer for layer in layers if "slide" in tag(layer) and _out_of_place(layer, layers)]
    if astray:
        QTimer.singleShot(0, restack)  # not at once: the list still moves


def _stack(layer: Any, layers: Any) -> None:
    """Put a layer on top of what lies directly on its slide: evidence must not lie on another slide's tissue."""
    if layer not in layers or not _out_of_place(layer, layers):
        return
    mine = tag(layer)["slide"]
    slide = next(layers.index(a) for a in slides_among(layers) if tag(a)["slide"] == mine)
    others = (i for i, a in enumerate(layers) if i > slide and tag(a).get("slide") != mine)
    layers.move(layers.index(layer), next(others, len(layers)))


def _release(event: Any) -> None:
    layer, layers = event.value, event.source
    settle_soon(layers)
    if tag(layer).get("role") == SLIDE:
        tag(layer)["prefetcher"].stop()
    if "pyramid" in tag(layer):
        slide = slide_of(layer)
        # Not at once: "Split RGB" removes the slide before it adds the channels, which are read from the same file.
        QTimer.singleShot(0, lambda: _close_unused(slide, layers))


def _close_unused(slide: Slide, layers: Any) -> None:
    others = [slide_of(other) for other in layers if "pyramid" in tag(other)]
    if all(other is not slide for other in others):
        slide.close()
    if all(other.uid != slide.uid for other in others):  # the cache is shared by all that show the same file
        CACHE.drop(slide.uid)
