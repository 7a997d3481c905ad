"""What is prepared in a thread before it is needed."""

from __future__ import annotations

import threading

import pint
import pytest

from napari_msamil.plugin import background


@pytest.fixture
def unread(monkeypatch):
    """pint as it is before anything asked for a unit."""
    used = pint.application_registry.get()
    monkeypatch.setattr(background, "_units", [])
    pint.set_application_registry(pint.registry.LazyRegistry())
    yield
    pint.set_application_registry(used)


def _prepare() -> None:
    background.import_ahead(("a_module_that_is_not_there",))
    for thread in threading.enumerate():
        if thread.name == "msamil-import":
            thread.join()


def test_napari_takes_the_prepared_units(unread) -> None:
    _prepare()
    [prepared] = background._units
    assert pint.application_registry.get() is not prepared, "not before the window's thread says so"
    background.use_units()
    assert pint.application_registry.get() is prepared
    assert pint.get_application_registry()("2 um").to("mm").magnitude == pytest.approx(0.002)


def test_units_in_use_are_not_replaced(unread) -> None:
    _prepare()
    before = pint.get_application_registry().pixel
    background.use_units()
    after = pint.get_application_registry().pixel
    assert before == after, "pint refuses to compare units of two registries"
    assert pint.application_registry.get() is not background._units[0]


def test_units_that_are_read_already_are_not_prepared_again(unread) -> None:
    assert pint.get_application_registry().meter is not None
    _prepare()
    assert background._units == []
