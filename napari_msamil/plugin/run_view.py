"""Start, stop and progress of a classification, and the line that speaks to the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magicgui.widgets import PushButton
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QVBoxLayout, QWidget

from napari_msamil.plugin.form import ERROR_STYLE, heading
from napari_msamil.plugin.worker import Pace

if TYPE_CHECKING:
    from napari_msamil.inference.classify import Progress


class RunView(QWidget):
    """Step 4 of the panel.

    Args:
        device: the form's question where to compute; it is asked here.

    Signals:
        start_asked(), cancel_asked(), leave_out_asked(): the buttons.
    """

    start_asked = Signal()
    cancel_asked = Signal()
    leave_out_asked = Signal()

    def __init__(self, device: QWidget, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._pace = Pace()
        self._last: tuple[Progress | None, str] = None, ""  # what was heard of the run last, and of which slide
        self._told = ""
        self._beat = QTimer(self)
        self._beat.setInterval(1000)
        self._beat.timeout.connect(self._tell_again)
        self.start = PushButton(text="Classify")
        self.cancel = PushButton(text="Cancel")
        self.progress = QProgressBar()
        self.status = QLabel()
        self.leave_out = PushButton(
            text="Classify without these patches",
            tooltip="Leave out the patches that cannot be read; the result says how many they are",
        )
        self._lay_out(device)
        self.start.changed.connect(self.start_asked.emit)
        self.cancel.changed.connect(self.cancel_asked.emit)
        self.leave_out.changed.connect(self.leave_out_asked.emit)

    def _lay_out(self, device: QWidget) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        row = QHBoxLayout()
        row.addWidget(heading("4  Run"))
        row.addWidget(QLabel("on"))
        row.addWidget(device, 1)
        column.addLayout(row)
        buttons = QHBoxLayout()
        buttons.addWidget(self.start.native, 2)
        buttons.addWidget(self.cancel.native, 1)
        column.addLayout(buttons)
        self.progress.setTextVisible(False)
        self.progress.setMaximumHeight(12)
        self.status.setWordWrap(True)
        two_lines = 2 * self.status.fontMetrics().lineSpacing() + 2  # how far a run is takes as much
        self.status.setMinimumHeight(two_lines)
        self.status.setAlignment(Qt.AlignmentFlag.AlignTop)
        column.addWidget(self.progress)
        column.addWidget(self.status)
        column.addWidget(self.leave_out.native)
        self.leave_out.native.hide()

    def say(self, text: str, error: bool = False, *, leave_out: bool = False) -> None:
        """Show a message in place of the one before; `leave_out` puts the button below it that is the way on."""
        self.status.setText(text)
        self.status.setStyleSheet(ERROR_STYLE if error else "")
        self.status.setVisible(bool(text))
        self.leave_out.native.setVisible(leave_out)

    @property
    def offers_leave_out(self) -> bool:
        """Whether the message comes with the button to leave unreadable patches out."""
        return not self.leave_out.native.isHidden()

    def enable(self, *, running: bool, missing: str) -> None:
        """Enable the button that makes sense; `missing` says what keeps a run from being started, if anything does."""
        button, other = (self.cancel, self.start) if running else (self.start, self.cancel)
        button.enabled = running or not missing
        if self.window().focusWidget() == other.native:
            button.native.setFocus()  # else Qt gives it to a field far below, and scrolls there
        other.enabled = False
        self.start.tooltip = missing
        self.progress.setVisible(running)
        if not running:
            self._beat.stop()

    def begin(self) -> None:
        """A run was started: it is not known yet how long it takes."""
        self._pace = Pace()
        self.show_progress(None)
        self._beat.start()

    def show_progress(self, progress: Progress | None, of: str = "") -> None:
        """How far the run is, None before it says so; `of` names its slide where another one is shown above.

        Where it is not known how long it takes, the seconds that pass show that it lives. Qt's moving bar would have
        the whole window composed anew for each of its pictures: more than half a core where OpenGL is done in software,
        and the run gets what is left.
        """
        self._last = progress, of
        self.progress.setRange(0, progress.total if progress else 1)
        self.progress.setValue(progress.done if progress else 0)
        text = self._pace.text(progress)
        self._told = f"{of}: {text}" if of else text
        self.say(self._told)

    def _tell_again(self) -> None:
        progress, of = self._last
        if (progress is None or progress.total <= 1) and self.status.text() == self._told:  # nothing was said since
            self.show_progress(progress, of)
