"""How the panel's fields take the mouse wheel, the decimal comma, and a number in place of words."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QEvent, QLocale, QObject, Qt, QTimer
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QAbstractSpinBox, QApplication, QComboBox, QDoubleSpinBox, QSlider, QWidget

_FIELDS = (QComboBox, QAbstractSpinBox, QSlider)


class _Unmoved(QObject):
    """Keeps the wheel from a field: the event goes on to the panel, which scrolls."""

    def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: N802
        if event.type() != QEvent.Type.Wheel:
            return False
        event.ignore()
        return True


class _Number(QObject):
    """Lets a number be typed or pasted into a box where Qt would make nothing, or another number, of it.

    A comma becomes a point: 0,5 would be read as 5. Words that stand for no number ("not known") go when something is
    typed: Qt takes no key that would leave a part of them.
    """

    def __init__(self, box: QDoubleSpinBox) -> None:
        super().__init__(box)
        self._box = box
        box.lineEdit().textChanged.connect(self._put_points)
        box.installEventFilter(self)
        box.lineEdit().installEventFilter(self)

    def _select_words(self) -> None:
        if self._box.text() == self._box.specialValueText():
            self._box.selectAll()

    def _put_points(self, text: str) -> None:
        if "," in text:
            line = self._box.lineEdit()
            cursor = line.cursorPosition()
            line.setText(text.replace(",", "."))
            line.setCursorPosition(cursor)

    def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: N802
        if event.type() in (QEvent.Type.KeyPress, QEvent.Type.ContextMenu):
            self._select_words()
        elif event.type() == QEvent.Type.MouseButtonRelease:
            QTimer.singleShot(0, self._select_words)  # not at once: Qt would copy them, as what the mouse selected
        if event.type() not in (QEvent.Type.KeyPress, QEvent.Type.KeyRelease) or event.text() != ",":
            return False
        QApplication.sendEvent(watched, QKeyEvent(event.type(), Qt.Key.Key_Period, event.modifiers(), "."))
        return True


def leave_the_wheel_to(panel: QWidget) -> None:
    """No field of a panel changes its answer when the wheel is turned over it; the panel is scrolled instead."""
    unmoved = _Unmoved(panel)
    for kind in _FIELDS:
        for field in panel.findChildren(kind):
            field.installEventFilter(unmoved)


def take_point_and_comma(box: QDoubleSpinBox) -> None:
    """The number in a box is typed with a point, as we print numbers, or a comma, whatever the language; no arrows."""
    locale = QLocale.c()
    locale.setNumberOptions(QLocale.NumberOption.OmitGroupSeparator | QLocale.NumberOption.RejectGroupSeparator)
    box.setLocale(locale)
    box.setButtonSymbols(QAbstractSpinBox.ButtonSymbols.NoButtons)
    box.setStepType(QAbstractSpinBox.StepType.DefaultStepType)
    box.setSingleStep(0)  # nor do arrow keys: each press would be another answer, not yet given
    _Number(box)
