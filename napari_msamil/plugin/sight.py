"""Evidence is seen on the tissue that it is about, and on no other picture."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer

from napari_msamil.plugin.layers import see_alone
from napari_msamil.plugin.saved import say_hidden
from napari_msamil.plugin.slides import KEY, MAPS, SAVED, SEEN, SLIDE, is_evidence, is_foreign, slides_among, tag

if TYPE_CHECKING:
    import napari.layers

_awaited: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # by layer: turns of its that are to come
_settling: weakref.WeakSet[Any] = weakref.WeakSet()  # evidence that `settle` shows or hides just now
_hidden_now: weakref.WeakSet[Any] = weakref.WeakSet()  # slides, in this turn of the event loop


def follow_eye(layer: napari.layers.Layer, layers: Any) -> None:
    """See to it that evidence lies on its own tissue whenever a layer among `layers` is shown or hidden."""

    was = layer.visible

    def follow(event: Any) -> None:
        nonlocal was
        before, was = was, layer.visible  # napari tells of what stays as it was, too
        if layer not in _settling:
            if was != before:
                _note(layer, layers)
            _awaited[layer] = _awaited.get(layer, 0) + 1
            settle_soon(layers, layer)

    layer.events.visible.connect(follow)


def _note(layer: napari.layers.Layer, layers: Any) -> None:
    """Note that what is hidden right after its slide, as Alt and an eye icon hide all others, comes back with it.

    Of heatmaps one comes back, and none beside one that was shown meanwhile.
    """
    mark = tag(layer)
    if mark.get("role") == SLIDE:
        (_hidden_now.discard if layer.visible else _hidden_now.add)(layer)
        QTimer.singleShot(0, lambda: _hidden_now.discard(layer))
        return
    slide = next((a for a in slides_among(layers) if tag(a)["slide"] == mark.get("slide")), None)
    maps = [a for a in layers if tag(a).get("role") in MAPS and tag(a).get("slide") == mark.get("slide")]
    others = [a for a in maps if a is not layer] if layer in maps else []
    if slide is None or slide.visible:
        return
    if layer.visible:
        for one in [layer, *(a for a in others if not a.visible)]:
            one.metadata[KEY] = {**tag(one), SEEN: False}
    elif slide in _hidden_now and not any(a.visible for a in others):
        layer.metadata[KEY] = {**mark, SEEN: True}


def settle_soon(layers: Any, shown: napari.layers.Layer | None = None) -> None:
    """`settle` once all that happens now has happened: the panel may go to another slide first."""
    QTimer.singleShot(0, lambda: QTimer.singleShot(0, lambda: settle(layers, shown)))


def settle(layers: Any, shown: napari.layers.Layer | None = None) -> None:
    """Hide evidence whose slide is not seen while another picture is, and show it again with its slide.

    Regions that were hidden with their slide come back too. Evidence that the user has just shown brings its slide
    along instead.

    Args:
        layers: all of a viewer.
        shown: the layer that was shown or hidden.
    """
    if shown is not None:
        _awaited[shown] -= 1
    slides = {tag(slide)["slide"]: slide for slide in slides_among(layers)}
    for layer in [a for a in layers if tag(a).get("role") != SLIDE]:
        slide = slides.get(tag(layer).get("slide"))
        if slide is not None and slide.visible:
            if tag(layer).get(SEEN):
                _see(layer, True, later=False)
        elif not is_evidence(layer) or not layer.visible or _awaited.get(layer):
            continue
        elif any(is_foreign(other, slide) for other in layers if other.visible):
            if slide is not None and layer is shown:
                if tag(layer)["role"] in MAPS:
                    see_alone(layers, layer)
                for other in slides_among(layers):
                    other.visible = other == slide
                continue
            _see(layer, False, later=slide is not None)
            if tag(layer)["role"] == SAVED and slide is None:
                say_hidden(layer)


def _see(layer: napari.layers.Layer, visible: bool, *, later: bool) -> None:
    """Show or hide evidence, and note whether it comes back with its slide; that is not the user's doing."""
    layer.metadata[KEY] = {**tag(layer), SEEN: later}
    _settling.add(layer)
    layer.visible = visible
    _settling.discard(layer)
