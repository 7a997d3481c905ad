"""A heatmap that was saved with a result, as a layer that lies on its slide again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_warning

from napari_msamil.inference.heatmap import limits_of, read_heatmap
from napari_msamil.plugin.captions import keep_marked, mark_view
from napari_msamil.plugin.layers import HEATMAP_LOOK, place, see_alone
from napari_msamil.plugin.slides import KEY, SAVED, SEEN, is_foreign, slide_layers, slide_of, slides_among, tag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import napari.layers
    import napari.viewer

    from napari_msamil.inference.heatmap import Values
    from napari_msamil.plugin.slides import LayerData


def from_file(path: str | Path, viewer: napari.viewer.Viewer | None) -> LayerData | None:
    """Describe the layer of a heatmap that was saved with a result; None for any other file.

    Where its slide is in the viewer, it lies on that, goes along with it and is hidden with it. Otherwise it lies
    where the slide would, in µm, and is hidden where there are other pictures, on whose tissue it would be seen.
    """
    found = read_heatmap(path)
    if found is None:
        return None
    array, where = found
    patches = where.get("patches")  # that share the attention; earlier results do not tell
    values: Values = "relative" if patches else "attention"
    array = array * np.float32(patches or 1)
    cell, downsample, origin = (np.array(where[name])[::-1] for name in ("mpp", "downsample", "origin_level0_px"))
    slides = [] if viewer is None else slide_layers(viewer)
    slide = max((a for a in slides if _made_of(where, a)), key=lambda a: bool(a.visible), default=None)
    scale, of = where.get("scale", ""), where.get("slide") or Path(path).parent.name
    mark = {
        "role": SAVED,
        "scale": scale,
        "values": values,
        "of": where.get("looked_at", "slide"),
        "empty": "" if np.isfinite(array).any() else f"{scale}: no patch was looked at",
        "weak": where.get("weak"),
        "name": f"{of}, saved result",
        "path": str(path),
        "where": dict(where),
    }
    keywords = {
        **HEATMAP_LOOK,
        "name": f"{Path(path).parent.name} | saved attention {scale}",
        "contrast_limits": limits_of(array, values),
    }
    if slide is None:
        keywords |= {"scale": cell, "translate": cell / downsample * (origin + (downsample - 1) / 2)}
        keywords |= {"units": slides[0].units if slides else ("um", "um"), "axis_labels": ("y", "x")}
        keywords["visible"] = viewer is None or not any(is_foreign(a, None) for a in viewer.layers if a.visible)
    else:
        keywords |= place(slide, where["downsample"], where["origin_level0_px"])
        mark |= {"slide": tag(slide)["slide"], SEEN: not slide.visible}
        keywords["visible"] = slide.visible
    return array, {**keywords, "metadata": {KEY: mark}}, "image"


def _made_of(where: Mapping[str, Any], slide: napari.layers.Image) -> bool:
    """Whether a slide is the one that a heatmap was made of, by the file's name and sizes."""
    file = slide_of(slide)
    if (where.get("slide"), where.get("slide_px")) != (file.path.name, [file.width, file.height]):
        return False
    try:
        return where.get("slide_bytes") in (None, file.path.stat().st_size)  # earlier results do not tell
    except OSError:
        return False


def lay_on(slide: napari.layers.Image, heatmap: napari.layers.Image, layers: Any) -> bool:
    """Lay a saved heatmap on a slide that was opened after it; says whether it is this slide's."""
    where = tag(heatmap)["where"]
    ours = _made_of(where, slide)
    if ours:
        for name, value in place(slide, where["downsample"], where["origin_level0_px"]).items():
            setattr(heatmap, name, value)
        heatmap.metadata[KEY] = {**tag(heatmap), "slide": tag(slide)["slide"]}
        heatmap.visible = True
        see_alone(layers, heatmap)
    return ours


def say_hidden(heatmap: napari.layers.Layer, *, there: bool = False) -> None:
    """Tell the user why a saved heatmap is not seen: its slide is hidden, or not `there` at all."""
    of = tag(heatmap)["where"].get("slide") or "another slide"
    how = 'not open as a slide ("Open …" in the panel opens it so): it is hidden'
    if there:
        how = "hidden: it is hidden too"
    show_warning(f"{heatmap.name} is of {of}, which is {how}, so that it lies on no other tissue.")


def loose(layers: Sequence[Any]) -> list[Any]:
    """The saved heatmaps among layers whose slide is not there."""
    there = {tag(slide)["slide"] for slide in slides_among(layers)}
    return [layer for layer in layers if tag(layer).get("role") == SAVED and tag(layer).get("slide") not in there]


def mark_when_added(viewer: napari.viewer.Viewer, described: LayerData) -> None:
    """Let the canvas text speak of a saved heatmap from when it is added, as it does of a result."""

    def mark(event: Any) -> None:
        if tag(event.value).get("path") == described[1]["metadata"][KEY]["path"]:
            viewer.layers.events.inserted.disconnect(mark)
            keep_marked(viewer, [event.value])
            mark_view(viewer)
            see_alone(viewer.layers, event.value)
            if not event.value.visible:
                say_hidden(event.value, there="slide" in tag(event.value))

    viewer.layers.events.inserted.connect(mark, position="last")
