"""A Prediction as napari layers that lie exactly on the tissue they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.inference.prediction import LESION_RGB
from napari_msamil.plugin.captions import keep_marked, mark_view
from napari_msamil.plugin.compat import remove
from napari_msamil.plugin.outlines import CONTOURS, fit_outlines, top_colours, top_widths
from napari_msamil.plugin.slides import HEATMAP, KEY, LESION, MAPS, SEEN, TOP, result_layers, slide_layers, tag

if TYPE_CHECKING:
    from collections.abc import Mapping

    import napari.layers
    import napari.viewer
    from numpy.typing import NDArray

    from napari_msamil.inference.heatmap import Values
    from napari_msamil.inference.prediction import Prediction
    from napari_msamil.plugin.slides import LayerData

COLORMAP = "viridis"  # perceptual, and unlike the pinks and violets of H&E
LESION_COLOUR = (*(value / 255 for value in LESION_RGB), 1.0)
HEATMAP_LOOK = {
    "rgb": False,
    "multiscale": False,
    "colormap": COLORMAP,
    "interpolation2d": "nearest",  # real patch cells; linear would eat half a patch beside every NaN
    "interpolation3d": "nearest",
    "opacity": 0.5,
    "blending": "translucent_no_depth",
}
TOP_COUNT = 10


def place(
    slide_layer: napari.layers.Image, downsample: tuple[float, float], origin: tuple[float, float] = (0.0, 0.0)
) -> dict[str, Any]:
    """Keywords that lay a coarser array on a slide layer.

    napari's origin is the centre of pixel (0, 0), so an array whose pixels are `d` level-0 px wide must be moved by
    (d - 1) / 2 level-0 px besides being scaled, or it sits off by half of one of its own pixels.

    Args:
        slide_layer: the slide; its scale, translation and units are taken over.
        downsample: level-0 px per array pixel, (x, y).
        origin: level-0 px of the top-left corner of the array's first pixel, (x, y).
    """
    d = np.array(downsample[::-1])  # (row, column) from here on
    scale, translate = np.asarray(slide_layer.scale), np.asarray(slide_layer.translate)
    return {
        "scale": scale * d,
        "translate": translate + scale * (np.array(origin[::-1]) + (d - 1) / 2),
        "units": slide_layer.units,
        "axis_labels": slide_layer.axis_labels,
    }


def from_prediction(
    prediction: Prediction, slide_layer: napari.layers.Image, *, values: Values = "rank"
) -> list[LayerData]:
    """Describe the layers of a result: one heatmap per scale, coarsest first, the finest visible; the lesion mask;
    outlines of the patches with most attention.

    Args:
        prediction: of the slide in `slide_layer`.
        slide_layer: gives place, units and name.
        values: what the heatmaps show; see `Heatmap`.
    """
    from napari.utils.colormaps import DirectLabelColormap

    mark = {
        "slide": tag(slide_layer)["slide"],
        "model": prediction.model_name,
        "weak": prediction.weak,
        "made_mpp": prediction.mpp,
    }
    height, width = prediction.lesion_mask.shape
    downsample = (prediction.slide_size[0] / width, prediction.slide_size[1] / height)
    clear = (0.0, 0.0, 0.0, 0.0)
    mask = {
        **place(slide_layer, downsample),
        "name": f"{slide_layer.name} | lesion",
        "colormap": DirectLabelColormap(color_dict={None: clear, 0: clear, 1: LESION_COLOUR}),
        "opacity": 0.8,
        "blending": "translucent_no_depth",
        "metadata": {KEY: {**mark, "role": LESION}},
    }
    scales = reversed(range(len(prediction.table.scales)))
    maps = [_heatmap(prediction, slide_layer, scale, values, mark) for scale in scales]
    return [*maps, (prediction.lesion_mask, mask, "labels"), _top_patches(prediction, slide_layer, mark)]


def _heatmap(
    prediction: Prediction, slide_layer: napari.layers.Image, scale: int, values: Values, mark: dict[str, Any]
) -> LayerData:
    heatmap = prediction.heatmap(scale, values=values)
    keywords = {
        **place(slide_layer, heatmap.downsample, heatmap.origin),
        **HEATMAP_LOOK,
        "name": f"{slide_layer.name} | attention {heatmap.name}",
        "contrast_limits": heatmap.limits,
        "visible": scale == 0,
        "metadata": {
            KEY: {
                **mark,
                "role": HEATMAP,
                "scale": heatmap.name,
                "mpp": heatmap.mpp,
                "values": values,
                "of": prediction.looked_at,
                "empty": why_empty(prediction, scale),
            }
        },
    }
    return heatmap.array, keywords, "image"


def why_empty(prediction: Prediction, scale: int) -> str:
    """Why one scale's heatmap shows nothing, as a line for the user; empty where it shows something."""
    here = prediction.table.scale == scale
    if np.isfinite(prediction.attention[here]).any():
        return ""
    name = prediction.table.scales[scale].name
    if here.any():
        return f"{name}: no patch could be read"
    if prediction.fallback is not None:
        return f"{name}: no patch was among those taken"
    return f"{name}: no patch{' of the region' if prediction.region else ''} passed the lesion test"


def _top_patches(prediction: Prediction, slide_layer: napari.layers.Image, mark: dict[str, Any]) -> LayerData:
    """The patches with most attention, at most ten per scale, as outlines; those of the finest scale are shown."""
    table = prediction.table
    rows = [prediction.top_patches(scale, TOP_COUNT) for scale in range(len(table.scales))]
    names = [table.scales[scale].name for scale, best in enumerate(rows) for _ in best]
    boxes = [patch_box(prediction, int(row)) for best in rows for row in best]
    keywords = {
        "scale": slide_layer.scale,
        "translate": slide_layer.translate,
        "units": slide_layer.units,
        "axis_labels": slide_layer.axis_labels,
        "ndim": 2,
        "name": f"{slide_layer.name} | top patches",
        "shape_type": "rectangle",
        "face_color": [0.0, 0.0, 0.0, 0.0],
        "edge_color": top_colours(names, table.scales[0].name, None),
        "edge_width": top_widths(boxes, None, 0.0) or 1,
        "features": {
            "scale": names,
            "rank": [place for best in rows for place in range(1, len(best) + 1)],
            "attention": [float(prediction.attention[row]) for best in rows for row in best],
        },
        "metadata": {KEY: {**mark, "role": TOP, "shown": table.scales[0].name, "visited": None}},
    }
    return boxes, keywords, "shapes"


def patch_box(prediction: Prediction, row: int) -> NDArray[np.float64]:
    """Corners of one row's patch: (4, 2) float, (y, x) level-0 px from the first one's centre, as in napari."""
    table = prediction.table
    width, height = table.footprint(int(table.scale[row]))
    x, y = table.grid[row] * table.pitch(int(table.scale[row])) - 0.5
    return np.array([[y, x], [y, x + width], [y + height, x + width], [y + height, x]])


def show(
    viewer: napari.viewer.Viewer,
    slide_layer: napari.layers.Image,
    prediction: Prediction,
    *,
    values: Values = "rank",
) -> list[napari.layers.Layer]:
    """Lay a result on its slide, in place of an earlier one; the camera stays where it is.

    Layers of an earlier result of the same scales are filled anew, and stay as the user shows them: at each removal
    of a layer napari collects garbage, which holds the window.

    Returns:
        The layers: heatmaps, coarsest first, then the lesion mask, then the patches with most attention.
    """
    selected = set(viewer.layers.selection)
    described = from_prediction(prediction, slide_layer, values=values)
    earlier = {_part(tag(a)): a for a in result_layers(viewer, tag(slide_layer)["slide"])}
    parts = [_part(keywords["metadata"][KEY]) for _, keywords, _ in described]
    if earlier.keys() == set(parts):
        shown = [earlier[part] for part in parts]
        for layer, data in zip(shown, described, strict=True):
            _refill(layer, data)
    else:  # none yet, other scales, or some were removed by hand
        remove_result(viewer, tag(slide_layer)["slide"])
        shown = _add(viewer, described)
    viewer.layers.selection = selected & set(viewer.layers)  # the user may be drawing
    _see_the_new(viewer, [layer for layer in shown if tag(layer)["role"] == HEATMAP])
    mark_view(viewer)
    fit_outlines(viewer)
    return shown


def _see_the_new(viewer: napari.viewer.Viewer, maps: list[napari.layers.Layer]) -> None:
    """Show a new result's heatmap in place of a saved one or a copy; where the user had chosen none, none is seen."""
    others = [a for a in result_layers(viewer, tag(maps[0])["slide"], *MAPS) if a not in maps]
    if not any(a.visible or tag(a).get(SEEN) for a in maps) and any(a.visible or tag(a).get(SEEN) for a in others):
        maps[-1].visible = True
    for layer in [a for a in maps if a.visible][-1:]:
        see_alone(viewer.layers, layer)


def _part(mark: Mapping[str, Any]) -> tuple[str, str]:
    """Which part of a result a layer is, by its mark: its role, and its scale where it has one."""
    return mark["role"], mark.get("scale", "")


def _add(viewer: napari.viewer.Viewer, described: list[LayerData]) -> list[napari.layers.Layer]:
    import napari.layers

    added = []
    for data, keywords, kind in described:
        layer = napari.layers.Layer.create(data, keywords, kind)
        if kind == "labels":
            layer.contour = CONTOURS[-1]  # an outline lets one see the tissue
        if kind != "image":
            layer.editable = False
        added.append(viewer.add_layer(layer))
    maps = [layer for layer in added if tag(layer)["role"] == HEATMAP]
    if len(maps) > 1:
        viewer.layers.link_layers(maps, ("opacity", "colormap"))
    keep_marked(viewer, added)
    return added


def _refill(layer: Any, described: LayerData) -> None:
    """Let a layer hold what another one of its kind would be made of; colours and visibility stay its own."""
    data, keywords, kind = described
    layer.name = keywords["name"]
    layer.metadata[KEY] = {**tag(layer), **keywords["metadata"][KEY]}
    if kind == "shapes":
        layer.selected_data = set(range(len(layer.data)))
        layer.remove_selected()
        if data:
            layer.add_rectangles(data)
        layer.features = keywords["features"]
    else:
        layer.data = data
    if kind != "image":
        layer.editable = False  # napari forgets it with the data
    else:
        layer.contrast_limits_range = layer.contrast_limits = keywords["contrast_limits"]
    layer.scale, layer.translate = keywords["scale"], keywords["translate"]


def remove_result(viewer: napari.viewer.Viewer, slide_id: str) -> None:
    """Take the layers of a slide's result away, if there are any."""
    remove(viewer, result_layers(viewer, slide_id))


def remove_orphans(viewer: napari.viewer.Viewer) -> None:
    """Take away what lay on slides that are gone: their results, and the regions drawn on them.

    What was drawn with napari's own buttons is the user's, and stays.
    """
    slides = {tag(a)["slide"] for a in slide_layers(viewer)}
    remove(viewer, [a for a in viewer.layers if tag(a).get("slide", "") not in {"", *slides} and "own" not in tag(a)])


def show_scale(viewer: napari.viewer.Viewer, slide_id: str, name: str | None) -> None:
    """Show one scale's heatmap of a slide, such as "20x", and hide all others, saved ones too; None hides all."""
    for layer in result_layers(viewer, slide_id, *MAPS):
        layer.metadata[KEY] = {**tag(layer), SEEN: False}
        layer.visible = tag(layer)["role"] == HEATMAP and tag(layer)["scale"] == name
    mark_view(viewer)


def see_alone(layers: Any, heatmap: napari.layers.Layer) -> None:
    """Hide other heatmaps of the same slide, also when it comes back: seen through each other they mean nothing."""
    key = "slide" if "slide" in tag(heatmap) else "name"
    for other in layers:
        mark = tag(other)
        if other != heatmap and mark.get("role") in MAPS and mark.get(key) == tag(heatmap)[key]:
            other.metadata[KEY] = {**mark, SEEN: False}
            other.visible = False


def set_values(viewer: napari.viewer.Viewer, slide_id: str, prediction: Prediction, values: Values) -> None:
    """Let a slide's heatmaps show ranks or relative attention, in place."""
    names = {s.name: index for index, s in enumerate(prediction.table.scales)}
    for layer in result_layers(viewer, slide_id, HEATMAP):
        heatmap = prediction.heatmap(names[tag(layer)["scale"]], values=values)
        layer.metadata[KEY] = {**tag(layer), "values": values}  # before the limits, which are heard of
        layer.data = heatmap.array
        layer.contrast_limits_range = layer.contrast_limits = heatmap.limits
    mark_view(viewer)
