"""A slide as a napari layer, and what must end with it: its file handle and its share of the block cache."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels, Points, Shapes
from napari.utils.notifications import show_error
from napari.utils.transforms import Affine
from qtpy.QtCore import QTimer

from napari_msamil.plugin.background import use_units
from napari_msamil.plugin.compat import camera, forget_deleted_programs
from napari_msamil.plugin.prefetch import Prefetcher
from napari_msamil.slide.pyramid import BlockCache, ViewPyramid
from napari_msamil.slide.slide import Slide, open_slide

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import napari.layers
    import napari.viewer

    from napari_msamil.errors import SlideError

logger = logging.getLogger(__name__)

KEY = "msamil"
SLIDE, LESION, HEATMAP, TOP, REGION = "slide", "lesion", "heatmap", "top patches", "region"
COPY, ANNOTATION = "copy", "annotation"  # made of ours by napari's commands; drawn on layers of napari's own buttons
SAVED = "saved heatmap"  # opened from a result's folder; tied to its slide where that is there
PLACEHOLDER = "placeholder"  # of the sample slide, while it is drawn
_KINDS = {SLIDE: Image, LESION: Labels, HEATMAP: Image, TOP: Shapes}

# One budget for the process, whatever the number of slides: a view of a large screen and its surroundings
# take about 100 MB. napari's own cache (25 % of memory, never given back, not thread-safe) is not used.
CACHE = BlockCache(512 * 2**20)

LayerData = tuple[Any, dict[str, Any], str]


def tag(layer: napari.layers.Layer) -> Mapping[str, Any]:
    """What the plugin wrote on a layer: "role", "slide" (id of the slide's layer) and more; empty if it is not ours.

    Layers are found by this, never by name: users rename.
    """
    found = layer.metadata.get(KEY, {})
    return found if isinstance(found, dict) else {}


def slide_layers(viewer: napari.viewer.Viewer) -> list[napari.layers.Image]:
    """The slides of a viewer, bottom first."""
    return _slides(viewer.layers)


def result_layers(viewer: napari.viewer.Viewer, slide_id: str, role: str | None = None) -> list[napari.layers.Layer]:
    """Layers of the result on the slide layer `slide_id`, bottom first; only those of one role if given."""
    roles = (LESION, HEATMAP, TOP) if role is None else (role,)
    return [a for a in viewer.layers if tag(a).get("slide") == slide_id and tag(a).get("role") in roles]


def slide_of(layer: napari.layers.Layer) -> Slide:
    """The open slide behind a slide layer, or behind one of the channels that it was split into."""
    pyramid: ViewPyramid = tag(layer)["pyramid"]
    return pyramid.slide


def slide_in(described: LayerData) -> Slide:
    """The open slide behind a layer that `layer_data` describes and that is not made yet."""
    pyramid: ViewPyramid = described[1]["metadata"][KEY]["pyramid"]
    return pyramid.slide


def mpp_of(layer: napari.layers.Layer) -> tuple[float, float] | None:
    """µm per level-0 pixel (x, y) of a slide layer: the file's, or else what the user entered; None while unknown."""
    mpp: tuple[float, float] | None = tag(layer)["mpp"]
    return mpp


def layer_data(path: str | Path, mpp: float | None = None) -> LayerData:
    """Open a slide and describe its layer; a dropped slide and one opened from the panel both come from here.

    Args:
        path: the slide file.
        mpp: µm per level-0 pixel, where it is known better than the file says.

    Returns:
        (levels, keywords, "image"): one multiscale RGB layer in µm, or in pixels where the file states no mpp.

    Raises:
        SlideError: the file is not a slide that can be read.
    """
    slide = open_slide(path, mpp)
    use_units()
    pyramid = ViewPyramid(slide, cache=CACHE)
    mpp_x, mpp_y = slide.mpp or (1.0, 1.0)
    unit = "pixel" if slide.mpp is None else "um"
    keywords = {
        "name": slide.path.stem,
        "rgb": True,
        "multiscale": True,
        "cache": False,  # napari's global dask cache breaks when a worker thread computes meanwhile
        "interpolation2d": "linear",
        "scale": (mpp_y, mpp_x),
        "units": (unit, unit),
        "axis_labels": ("y", "x"),
        "metadata": {
            KEY: {
                "role": SLIDE,
                "slide": _new_id(),
                "mpp": slide.mpp,
                "pyramid": pyramid,
                "prefetcher": Prefetcher(pyramid),
            }
        },
    }
    return pyramid.arrays(on_error=_tell_once()), keywords, "image"


def _new_id() -> str:
    """Identity of one slide layer: a file may be open more than once, and each has its own scale and result."""
    return uuid.uuid4().hex


def _tell_once() -> Callable[[SlideError], None]:
    """Say once per slide that pixels cannot be read: an exception would be raised inside the viewer's drawing."""
    told: list[SlideError] = []

    def tell(error: SlideError) -> None:
        logger.warning("%s", error)
        if not told:
            told.append(error)
            show_error(f"{error} Such places are shown in magenta.")

    return tell


def calibrate(viewer: napari.viewer.Viewer, slide_layer: napari.layers.Image, mpp: float) -> None:
    """Give a slide without pixel size one, in µm per level-0 pixel.

    Scale and units of all that lies on it change together: a shape left behind would mark another place of the tissue,
    and one layer left in pixels would rob the whole viewer of its units. The camera moves along, so that the picture
    stays where it is.
    """
    ratio = mpp / slide_layer.scale[-1]
    for layer in _lying_on(viewer, slide_layer):
        layer.scale = layer.scale * ratio
        layer.translate = layer.translate * ratio
        layer.affine = Affine(linear_matrix=layer.affine.linear_matrix, translate=layer.affine.translate * ratio)
        layer.units = ("um",) * layer.ndim
    slide_layer.metadata[KEY] = {**tag(slide_layer), "mpp": (mpp, mpp)}
    view = camera(viewer)
    view.center = tuple(c * ratio for c in view.center)
    view.zoom = view.zoom / ratio


def _lying_on(viewer: napari.viewer.Viewer, slide_layer: napari.layers.Image) -> list[napari.layers.Layer]:
    """The slide's layer, what the plugin laid on it, and what the user did with napari's own buttons.

    The latter carry no mark, but for those that `_adopt` knows. They belong to this slide if they are in pixels, as it
    was itself and no other is, or if there is no other slide at all, as when a pixel size is corrected.
    """
    others = [other for other in slide_layers(viewer) if other is not slide_layer]
    only_one_in_pixels = all(mpp_of(other) is not None for other in others)
    found = []
    for layer in viewer.layers:
        if "slide" in tag(layer):
            ours = tag(layer)["slide"] == tag(slide_layer)["slide"]
        else:
            in_pixels = all(str(unit) == "pixel" for unit in layer.units)
            ours = layer.ndim == 2 and (
                (in_pixels and only_one_in_pixels) or (not others and isinstance(layer, (Shapes, Points)))
            )
        if ours:
            found.append(layer)
    return found


def watch(viewer: napari.viewer.Viewer) -> None:
    """Look after the slides of a viewer: read ahead of the view, and let go of a slide when its layer is removed.

    What lies on a slide goes along when napari's transform tool moves or turns it, and cannot be moved away from it.
    Calling it again changes nothing.
    """
    forget_deleted_programs()
    viewer.layers.events.inserted.connect(_attend)
    viewer.layers.events.inserted.connect(_keep_together)
    viewer.layers.events.removed.connect(_release)


def _attend(event: Any) -> None:
    layer = event.value
    if tag(layer).get("role") != SLIDE:
        return
    if any(other is not layer and tag(other)["slide"] == tag(layer)["slide"] for other in _slides(event.source)):
        # napari's "Duplicate layer" copies the metadata too
        fresh = {"slide": _new_id(), "prefetcher": Prefetcher(tag(layer)["pyramid"]), "result": None}
        layer.metadata[KEY] = {**tag(layer), **fresh}
    prefetcher: Prefetcher = tag(layer)["prefetcher"]
    layer.events.set_data.connect(prefetcher.follow)
    prefetcher.look_around(layer)
    _name_alike(layer, event.source)


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
    seen = [slide for slide in _slides(layers) if slide.visible]
    if not mark and _to_draw_on(inserted) and len(seen) == 1:
        drawn = REGION if isinstance(inserted, Shapes) else ANNOTATION
        inserted.metadata[KEY] = {"role": drawn, "slide": tag(seen[0])["slide"], "own": True}
    elif role in _KINDS and not _is_a(role, inserted):
        kept = {"pyramid"} if role == SLIDE else {"slide"} if inserted.ndim == 2 else set()
        inserted.metadata[KEY] = {"role": COPY, **{name: mark[name] for name in kept}}
    elif role in (LESION, HEATMAP, TOP):
        part = [mark.get(name) for name in ("slide", "role", "scale")]
        twins = [a for a in layers if a is not inserted and [tag(a).get(n) for n in ("slide", "role", "scale")] == part]
        if twins:
            inserted.metadata[KEY] = {"role": COPY, "slide": mark["slide"]}


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

    def follow(event: Any = None) -> None:
        slide_id = tag(inserted).get("slide")
        moved = next((a.affine.affine_matrix for a in _slides(layers) if tag(a)["slide"] == slide_id), None)
        for layer in [a for a in layers if slide_id is not None and tag(a).get("slide") == slide_id]:
            if moved is not None and not np.array_equal(layer.affine.affine_matrix, moved):
                layer.affine = moved

    if "slide" in tag(inserted):
        inserted.events.affine.connect(follow)
        follow()


def _release(event: Any) -> None:
    layer, layers = event.value, event.source
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


def _slides(layers: Any) -> list[Any]:
    return [layer for layer in layers if tag(layer).get("role") == SLIDE]
