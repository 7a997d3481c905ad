"""A byte-bounded store of decoded pixels, shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

Key = tuple[Hashable, ...]


class BlockCache:
    """Least-recently-used blocks of pixels, never more than `max_bytes` of them.

    A key is a tuple whose first item says what the block belongs to (for slides: `slide.uid`), so that everything of
    one slide can be dropped at once. Blocks are stored read-only: many readers share one array.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"a cache cannot hold {max_bytes} bytes; give 0 (keeps nothing) or more")
        self.max_bytes = max_bytes
        self._blocks: OrderedDict[Key, NDArray[np.uint8]] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held now."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, key: Key) -> NDArray[np.uint8] | None:
        """Return the block and count it as used, or None."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def put(self, key: Key, block: NDArray[np.uint8]) -> None:
        """Keep the block (made read-only); the longest unused ones go, and one larger than the cache is not kept."""
        block.setflags(write=False)
        if block.nbytes > self.max_bytes:
            return
        with self._lock:
            old = self._blocks.pop(key, None)
            if old is not None:
                self._nbytes -= old.nbytes
            self._blocks[key] = block
            self._nbytes += block.nbytes
            while self._nbytes > self.max_bytes:
                _, gone = self._blocks.popitem(last=False)
                self._nbytes -= gone.nbytes

    def drop(self, owner: Hashable) -> None:
        """Forget every block whose key starts with `owner` (a slide's uid)."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == owner]:
                self._nbytes -= self._blocks.pop(key).nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._blocks.clear()
            self._nbytes = 0
