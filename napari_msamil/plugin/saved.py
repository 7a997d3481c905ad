"""A heatmap that was saved with a result, as a layer that lies on its slide again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.inference.heatmap import read_heatmap
from napari_msamil.plugin.layers import COLORMAP, keep_marked, mark_view
from napari_msamil.plugin.slides import KEY, SAVED, tag

if TYPE_CHECKING:
    import napari.viewer

    from napari_msamil.plugin.slides import LayerData


def from_file(path: str | Path) -> LayerData | None:
    """Describe the layer of a heatmap that was saved with a result, in µm from the corner of its slide, which it lies
    on when that is open too and has its pixel size; None for any other file.
    """
    found = read_heatmap(path)
    if found is None:
        return None
    array, where = found
    cell, downsample, origin = (np.array(where[name])[::-1] for name in ("mpp", "downsample", "origin_level0_px"))
    keywords = {
        "name": f"{Path(path).parent.name} | saved attention {where.get('scale', '')}",
        "scale": cell,
        "translate": cell / downsample * (origin + (downsample - 1) / 2),  # see `layers.place`
        "units": ("um", "um"),
        "axis_labels": ("y", "x"),
        "rgb": False,
        "multiscale": False,
        "colormap": COLORMAP,
        "contrast_limits": (0.0, float(np.nanmax(array, initial=0.0)) or 1.0),
        "interpolation2d": "nearest",
        "interpolation3d": "nearest",
        "opacity": 0.5,
        "blending": "translucent_no_depth",
        "metadata": {
            KEY: {"role": SAVED, "scale": where.get("scale", ""), "values": "attention", "of": "slide", "empty": "",
                  "weak": "", "path": str(path)}
        },
    }  # fmt: skip
    return array, keywords, "image"


def mark_when_added(viewer: napari.viewer.Viewer, described: LayerData) -> None:
    """Let the canvas text speak of a saved heatmap from when it is added, as it does of a result."""

    def mark(event: Any) -> None:
        if tag(event.value) == described[1]["metadata"][KEY]:
            viewer.layers.events.inserted.disconnect(mark)
            keep_marked(viewer, [event.value])
            mark_view(viewer)

    viewer.layers.events.inserted.connect(mark, position="last")
