"""What a person does with the panel and sees of it, for the tests."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QLabel

SECONDS = 120_000  # milliseconds; far more than a run takes, so that only a hang fails


def run(panel: Any, qtbot: Any) -> None:
    panel.run_view.start.native.click()
    qtbot.waitUntil(lambda: not panel.running, timeout=SECONDS)


def texts(panel: Any) -> str:
    return "\n".join(label.text() for label in panel.findChildren(QLabel) if not label.isHidden())


def layer_names(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers]


def shown(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers if layer.visible]
