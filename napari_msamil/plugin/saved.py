"""A heatmap that was saved with a result, as a layer that lies on its slide again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.inference.heatmap import read_heatmap
from napari_msamil.plugin.layers import HEATMAP_LOOK, keep_marked, mark_view, place
from napari_msamil.plugin.slides import KEY, SAVED, slide_layers, slide_of, tag

if TYPE_CHECKING:
    from collections.abc import Mapping

    import napari.layers
    import napari.viewer

    from napari_msamil.plugin.slides import LayerData


def from_file(path: str | Path, viewer: napari.viewer.Viewer | None) -> LayerData | None:
    """Describe the layer of a heatmap that was saved with a result; None for any other file.

    Where its slide is in the viewer, it lies on that, goes along with it and is hidden with it. Otherwise it lies
    where the slide would, in µm.
    """
    found = read_heatmap(path)
    if found is None:
        return None
    array, where = found
    cell, downsample, origin = (np.array(where[name])[::-1] for name in ("mpp", "downsample", "origin_level0_px"))
    slide = _slide_of(where, viewer)
    scale, of = where.get("scale", ""), where.get("slide") or Path(path).parent.name
    mark = {
        "role": SAVED,
        "scale": scale,
        "values": "attention",
        "of": where.get("looked_at", "slide"),
        "empty": "" if np.isfinite(array).any() else f"{scale}: no patch was looked at",
        "weak": where.get("weak"),
        "name": f"{of}, saved result",
        "path": str(path),
    }
    keywords = {
        **HEATMAP_LOOK,
        "name": f"{Path(path).parent.name} | saved attention {scale}",
        "contrast_limits": (0.0, float(np.nanmax(array, initial=0.0)) or 1.0),
    }
    if slide is None:
        um = {"units": ("um", "um"), "axis_labels": ("y", "x")}
        keywords |= {"scale": cell, "translate": cell / downsample * (origin + (downsample - 1) / 2), **um}
    else:
        keywords |= place(slide, tuple(downsample[::-1]), tuple(origin[::-1]))
        mark["slide"] = tag(slide)["slide"]
    return array, {**keywords, "metadata": {KEY: mark}}, "image"


def _slide_of(where: Mapping[str, Any], viewer: napari.viewer.Viewer | None) -> napari.layers.Image | None:
    """The layer of the slide that a heatmap was made of, by the file's name and size; rather one that is seen."""
    named = (where.get("slide"), where.get("slide_px"))
    layers = [] if viewer is None else slide_layers(viewer)
    found = [a for a in layers if (slide_of(a).path.name, [slide_of(a).width, slide_of(a).height]) == named]
    return max(found, key=lambda a: bool(a.visible), default=None)


def mark_when_added(viewer: napari.viewer.Viewer, described: LayerData) -> None:
    """Let the canvas text speak of a saved heatmap from when it is added, as it does of a result."""

    def mark(event: Any) -> None:
        if tag(event.value).get("path") == described[1]["metadata"][KEY]["path"]:
            viewer.layers.events.inserted.disconnect(mark)
            keep_marked(viewer, [event.value])
            mark_view(viewer)

    viewer.layers.events.inserted.connect(mark, position="last")
