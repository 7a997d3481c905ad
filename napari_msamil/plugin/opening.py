"""Opens slide files in a viewer: at once where that is quick, else after the image was decoded in the background."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from napari.layers import Layer
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error
from qtpy.QtCore import QObject, QSettings, Signal
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_msamil.errors import MsamilError
from napari_msamil.plugin.saved import from_file, loose, mark_when_added
from napari_msamil.plugin.slides import layer_data, slide_in, slide_layers
from napari_msamil.plugin.watch import show_scale_bar
from napari_msamil.slide.detect import SLIDE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari.layers
    import napari.viewer

    from napari_msamil.plugin.slides import LayerData
    from napari_msamil.slide.slide import Slide

logger = logging.getLogger(__name__)

FILTER = f"Slides ({' '.join(f'*{suffix}' for suffix in SLIDE_SUFFIXES)});;All files (*)"


class Opener(QObject):
    """Opens slide files as layers.

    Signals:
        refused(str): why a file cannot be opened.
        preparing_changed(): the list of images that are decoded now is another one.
    """

    refused = Signal(str)
    preparing_changed = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, parent: QWidget) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._window = parent
        self._closed = False
        self.preparing: list[str] = []

    def open(
        self, path: str | Path, mpp: float | None = None, *, then: Callable[[], None] | None = None
    ) -> napari.layers.Image | None:
        """Open one file; see `MilPanel.open_slide`."""
        if (saved := from_file(path, self._viewer)) is not None:
            mark_when_added(self._viewer, saved)
            self._viewer.add_layer(Layer.create(*saved))
            return None
        try:
            described = layer_data(path, mpp)
        except MsamilError as error:
            self._refuse(str(error))
            return None
        slide = slide_in(described)
        if not slide.decodes_first:
            return self._add(described, then)
        self.preparing.append(slide.name)
        worker = create_worker(_prepare, slide, _start_thread=False, _ignore_errors=True)
        worker.returned.connect(lambda error: self._on_prepared(described, error, then))
        self.preparing_changed.emit()
        worker.start()
        return None

    def ask(self) -> None:
        """Let the user choose a file and open it."""
        settings = QSettings("napari-msamil", "napari-msamil")
        path, _ = QFileDialog.getOpenFileName(self._window, "Open a slide", str(settings.value("slides", "")), FILTER)
        if path:
            settings.setValue("slides", str(Path(path).parent))
            self.open(path)

    def shut_down(self) -> None:
        """Add nothing more to the viewer; images that are decoded now are closed when that ends."""
        self._closed = True

    def _on_prepared(self, described: LayerData, error: str, then: Callable[[], None] | None) -> None:
        slide = slide_in(described)
        if self._closed:
            slide.close()
            return
        self.preparing.remove(slide.name)
        if error:
            slide.close()
            self.preparing_changed.emit()
            self._refuse(error)
        else:
            self._add(described, then)

    def _add(self, described: LayerData, then: Callable[[], None] | None) -> napari.layers.Image:
        data, keywords, _ = described
        for other in [*slide_layers(self._viewer), *loose(self._viewer.layers)][:1]:
            keywords["units"] = other.units  # until it is chosen, see `Stage`: napari complains of units that differ
        layer = self._viewer.add_image(data, **keywords)
        show_scale_bar(self._viewer)
        if then is not None:
            then()
        return layer

    def _refuse(self, reason: str) -> None:
        show_error(reason)
        self.refused.emit(reason)


def _prepare(slide: Slide) -> str:
    """Decode a flat image; returns what went wrong, if anything did."""
    try:
        slide.prepare()
    except MsamilError as error:
        return str(error)
    except Exception as error:
        logger.exception("%s could not be prepared", slide.name)
        return f"{slide.name} cannot be opened ({type(error).__name__}: {error})."
    return ""
