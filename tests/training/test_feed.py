"""Values made ahead come in their order; a fault of the maker, or the death of its process, is one sentence."""

import os
import threading

import pytest

from napari_msamil.errors import MsamilError, ReadError
from napari_msamil.training.feed import feed


class Squares:
    """Squares, but for some keys that go wrong."""

    def __getitem__(self, key: int) -> int:
        if key == 7:
            raise ReadError("slide.tif: the patch at x=7 cannot be read")
        if key == 13:
            os._exit(1)
        return key * key


@pytest.mark.parametrize("workers", [0, 2])
def test_values_come_in_the_order_of_their_keys_and_keys_may_have_no_end(workers: int) -> None:
    def keys():  # type: ignore[no-untyped-def]
        while True:
            yield from (3, 1, 2)

    values = feed(Squares(), keys(), workers=workers)
    assert [next(values) for _ in range(7)] == [9, 1, 4, 9, 1, 4, 9]
    values.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("msamil-feed")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_keeps_its_words(workers: int) -> None:
    values = feed(Squares(), [5, 7], workers=workers)
    assert next(values) == 25
    with pytest.raises(ReadError, match=r"^slide\.tif: the patch at x=7 cannot be read$"):
        next(values)


def test_a_process_that_dies_ends_the_training_and_does_not_hang_it() -> None:
    with pytest.raises(MsamilError, match="A process that reads patches died"):
        list(feed(Squares(), [13], workers=1))
