"""A slide as a napari layer, and the marks by which it and what lies on it are known."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from napari.utils.notifications import show_error
from napari.utils.transforms import Affine

from napari_msamil.plugin.background import use_units
from napari_msamil.plugin.compat import camera, grid
from napari_msamil.plugin.prefetch import Prefetcher
from napari_msamil.slide.pyramid import BlockCache, ViewPyramid
from napari_msamil.slide.slide import Slide, open_slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import napari.layers
    import napari.viewer

    from napari_msamil.errors import SlideError

logger = logging.getLogger(__name__)

KEY = "msamil"
SLIDE, LESION, HEATMAP, TOP, REGION = "slide", "lesion", "heatmap", "top patches", "region"
COPY, ANNOTATION = "copy", "annotation"  # made of ours by napari's commands; drawn on layers of napari's own buttons
SAVED = "saved heatmap"  # opened from a result's folder; tied to its slide where that is there
HEATMAP_COPY = "copy of a heatmap"  # a duplicate, which no later result takes along
MAPS = (HEATMAP, SAVED, HEATMAP_COPY)
PLACEHOLDER = "placeholder"  # of the sample slide, while it is drawn
_COVERING = ("opaque", "translucent", "translucent_no_depth")  # of napari's ways of blending, at full opacity
SEEN = "seen"  # in a layer's mark: whether it is shown when its slide comes back
ALONG = "along"  # in the mark of a layer of the user's: the slide whose pixel size it was given

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
    return slides_among(viewer.layers)


def slides_among(layers: Iterable[Any]) -> list[Any]:
    """The slides in a list of layers, in its order."""
    return [layer for layer in layers if tag(layer).get("role") == SLIDE]


def result_layers(viewer: napari.viewer.Viewer, slide_id: str, *roles: str) -> list[napari.layers.Layer]:
    """Layers of some roles on the slide layer `slide_id`, bottom first; of its latest result if none is given."""
    roles = roles or (LESION, HEATMAP, TOP)
    return [a for a in viewer.layers if tag(a).get("slide") == slide_id and tag(a).get("role") in roles]


def lies_over(viewer: napari.viewer.Viewer, upper: napari.layers.Layer, lower: napari.layers.Layer) -> bool:
    """Whether a layer that is seen hides another one: above it, not beside it (the middle of one is in the other)."""
    if not upper.visible or upper.opacity < 1 or upper.blending not in _COVERING or grid(viewer).enabled:
        return False
    above = viewer.layers.index(upper) > viewer.layers.index(lower)
    return above and (_middle_in(upper, lower) or _middle_in(lower, upper))


def _middle_in(layer: napari.layers.Layer, other: napari.layers.Layer) -> bool:
    low, high = other.extent.data
    middle = np.asarray(other.world_to_data(layer.extent.world.mean(axis=0)))
    return bool(np.all((low <= middle) & (middle <= high)))


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
                "slide": new_id(),
                "mpp": slide.mpp,
                "pyramid": pyramid,
                "prefetcher": Prefetcher(pyramid),
            }
        },
    }
    return pyramid.arrays(on_error=_tell_once()), keywords, "image"


def new_id() -> str:
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
        if "slide" not in tag(layer):
            layer.metadata[KEY] = {**tag(layer), ALONG: tag(slide_layer)["slide"]}
    slide_layer.metadata[KEY] = {**tag(slide_layer), "mpp": (mpp, mpp)}
    view = camera(viewer)
    view.center = tuple(c * ratio for c in view.center)
    view.zoom = view.zoom / ratio


def _lying_on(viewer: napari.viewer.Viewer, slide_layer: napari.layers.Image) -> list[napari.layers.Layer]:
    """The slide's layer, what the plugin laid on it, and what the user did with napari's own buttons.

    The latter carry no mark, but for those that `watch` knows and those that went along before. They belong to this
    slide if they are in its unit, and no other slide is. A picture does only where it covers what the slide covers, as
    one that was computed from it: any other has a pixel size of its own.
    """
    slides = slide_layers(viewer)
    ids, mine = {tag(slide)["slide"] for slide in slides}, tag(slide_layer)["slide"]
    corrected = mpp_of(slide_layer) is not None
    alone = all(slide is slide_layer or (mpp_of(slide) is not None) != corrected for slide in slides)
    found = []
    for layer in viewer.layers:
        of = tag(layer).get("slide", tag(layer).get(ALONG))
        if "slide" in tag(layer) or of in ids:
            ours = of == mine
        elif layer.ndim != 2 or layer.units != slide_layer.units:
            ours = False
        elif isinstance(layer, Image) or (isinstance(layer, Labels) and corrected):
            ours = _same_place(layer, slide_layer)
        else:
            ours = alone
        if ours:
            found.append(layer)
    return found


def is_evidence(layer: napari.layers.Layer) -> bool:
    """Whether a layer is of a result, be it the latest, a saved or a copied one."""
    mark = tag(layer)
    return mark.get("role") in (LESION, TOP, *MAPS) or (mark.get("role") == COPY and "slide" in mark)


def is_foreign(layer: napari.layers.Layer, slide: napari.layers.Image | None) -> bool:
    """Whether a layer is a picture of something else than a slide, or than what was computed from it."""
    mark = tag(layer)
    if layer is slide or not isinstance(layer, Image) or mark.get("role") == SAVED:
        return False
    if "slide" in mark:  # of what the plugin laid on slides only these are pictures of tissue
        return bool(mark["role"] == SLIDE)
    return slide is None or layer.ndim != 2 or not _same_place(layer, slide)


def _same_place(layer: napari.layers.Layer, other: napari.layers.Layer) -> bool:
    return np.allclose(layer.extent.world, other.extent.world, rtol=0, atol=float(max(layer.scale)))
