"""Makes what a training step needs before it is asked for, in a thread or in processes of its own."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, tee
from typing import Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from napari_msamil.errors import MsamilError

Key = TypeVar("Key")
Key_contra = TypeVar("Key_contra", contravariant=True)
Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)
_AHEAD = 3  # values made before they are asked for, by the thread or by each process


class Maker(Protocol[Key_contra, Value_co]):
    """Makes a value from its key alone; it must be possible to pickle it."""

    def __getitem__(self, key: Key_contra, /) -> Value_co:
        """The value of a key."""
        ...


def feed(maker: Maker[Key, Value], keys: Iterable[Key], *, workers: int = 0) -> Generator[Value, None, None]:
    """The values of some keys, in their order, made ahead; closing it ends the thread or the processes.

    Args:
        maker: Makes them.
        keys: May have no end; taken only as far ahead as values are made.
        workers: Processes, begun by spawning; 0 is one thread.

    Raises:
        MsamilError: A process died; or what the maker raised.
    """
    return _by_processes(maker, keys, workers) if workers else _by_thread(maker, keys)


class Ahead(Generic[Key, Value]):
    """Values that are asked for one by one and made ahead; whoever asks out of order begins anew from there."""

    def __init__(
        self, maker: Maker[Key, Value], keys_from: Callable[[Key], Iterable[Key]], *, workers: int = 0
    ) -> None:
        """Make the values of keys.

        Args:
            maker: Makes them.
            keys_from: From a key to itself and all that follow it.
            workers: See `feed`.
        """
        self._maker = maker
        self._keys_from = keys_from
        self._workers = workers
        self._keys: Iterator[Key] = iter(())
        self._values: Generator[Value, None, None] | None = None

    def __call__(self, key: Key) -> Value:
        """The value of a key."""
        if self._values is None or next(self._keys, None) != key:
            self.close()
            keys, self._keys = tee(self._keys_from(key))
            self._values = feed(self._maker, keys, workers=self._workers)
            first = next(self._keys)
            if first != key:
                raise RuntimeError(f"value {key} is asked for, and the series that begins there begins with {first}")
        return next(self._values)

    def close(self) -> None:
        """Make no more of them."""
        if self._values is not None:
            self._values.close()
        self._values = None


def _by_thread(maker: Maker[Key, Value], keys: Iterable[Key]) -> Generator[Value, None, None]:
    left = iter(keys)
    pool = ThreadPoolExecutor(1, "msamil-feed")
    try:
        coming: deque[Future[Value]] = deque(pool.submit(maker.__getitem__, key) for key in islice(left, _AHEAD))
        while coming:
            value = coming.popleft().result()
            coming.extend(pool.submit(maker.__getitem__, key) for key in islice(left, 1))
            yield value
    finally:
        pool.shutdown(cancel_futures=True)


class _Keys(Generic[Key]):
    """A sampler that is any series of keys."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)


class _Items(Dataset[Value], Generic[Key, Value]):
    """A maker as torch's loader wants it; errors cross to the other process as values, word for word."""

    def __init__(self, maker: Maker[Key, Value]) -> None:
        self._maker = maker

    def __getitem__(self, key: Key) -> Value | MsamilError:  # type: ignore[override]
        try:
            return self._maker[key]
        except MsamilError as error:
            return error


def _same(value: Value) -> Value:
    """Leaves values as they are."""
    return value


def _by_processes(maker: Maker[Key, Value], keys: Iterable[Key], workers: int) -> Generator[Value, None, None]:
    loader: DataLoader[Value] = DataLoader(
        _Items(maker),
        sampler=_Keys(keys),  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_same,
        num_workers=workers,
        multiprocessing_context="spawn",
        prefetch_factor=_AHEAD,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # else it draws from the stream of random numbers that dropout draws from
    )
    try:
        for value in loader:
            if isinstance(value, MsamilError):
                raise value
            yield value
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MsamilError(
            f"A process that reads patches died ({error}). Most often memory ran out: use fewer machine.workers, or a "
            "smaller chunk."
        ) from error


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
