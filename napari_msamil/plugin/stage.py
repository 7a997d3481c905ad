"""One slide at a time: what lies on the chosen slide is shown, what lies on the others waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_msamil.plugin import compat
from napari_msamil.plugin.slides import KEY, SLIDE, mpp_of, tag

if TYPE_CHECKING:
    import napari.layers
    import napari.viewer

_SEEN = "seen"  # in a layer's mark: whether it was shown when its slide was left


class Stage:
    """Shows one slide of a viewer, with its result and its regions, and hides those of all others.

    It acts when another slide is chosen and at no other time, so that one may still look at two slides by their eye
    icons. A slide that comes back is shown as it was left. Layers that are not tied to a slide are left alone.

    Args:
        viewer: whose layers are shown and hidden.
        chosen: the slide to begin with; the camera stays where it is.
    """

    def __init__(self, viewer: napari.viewer.Viewer, chosen: napari.layers.Image | None) -> None:
        self._viewer = viewer
        self._slide_id = ""
        self._show(chosen)

    def turn_to(self, chosen: napari.layers.Image | None) -> bool:
        """Show a slide, all of it, in place of the one before; says whether it was another one."""
        turned = self._show(chosen)
        self._share_unit(chosen)
        if turned and chosen is not None:
            self._viewer.layers.selection.active = chosen  # else a tool might go on drawing on a layer that is hidden
            compat.fit(self._viewer, chosen)
        return turned

    def _share_unit(self, chosen: napari.layers.Image | None) -> None:
        """Give what lies on the other slides the chosen one's unit: where units differ napari shows a bar without one.

        Pixels that are called µm while nobody sees them are called pixels again when their slide is chosen.
        """
        if chosen is None:
            return
        unit = "pixel" if mpp_of(chosen) is None else "um"
        for layer in [a for a in self._viewer.layers if "slide" in tag(a)]:
            layer.units = (unit,) * layer.ndim

    def _show(self, chosen: napari.layers.Image | None) -> bool:
        left, self._slide_id = self._slide_id, "" if chosen is None else tag(chosen)["slide"]
        if left == self._slide_id:
            return False
        for layer in [a for a in self._viewer.layers if "slide" in tag(a)]:
            mark = tag(layer)
            if mark["slide"] == self._slide_id:
                layer.visible = mark["role"] == SLIDE or layer.visible or mark.get(_SEEN, False)
            else:
                if layer.visible or mark["slide"] == left:
                    layer.metadata[KEY] = {**mark, _SEEN: layer.visible}
                layer.visible = False
        return True
