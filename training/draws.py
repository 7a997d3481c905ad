"""What each step of the end-to-end stage and of the segmenter draws from a cohort."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from napari_msamil.errors import MsamilError
from napari_msamil.patches.grid import PatchTable

from .augment import Look, apply_look, random_look
from .config import Config
from .distributed import rank, world
from .drawn import Drawn, Thumbnail, sample_rows
from .feed import Ahead, feed
from .labels import sampling_groups
from .slides import SlideStore, pieces, tensor_of, turned

_KEPT_BYTES = 64 * 2**20
_OF_A_SLIDE, _HELD_OF_A_SLIDE = 2, 12  # patches of a slide in a step of stage pretrain, and in its validation
HELD = -1
"""Step number of the validation slides."""

Key = tuple[int, int, int]  # step, slot, chunk


@dataclass(frozen=True)
class Choice:
    """One slide of a step: row of the table, some of its patches, and how they are changed, all of them alike."""

    row: int
    table: PatchTable
    turn: int
    look: Look | None


class PatchDraws:
    """The patches of every step, following from seed, step and slot alone; `__getitem__` may run in any process."""

    def __init__(
        self,
        store: SlideStore,
        config: Config,
        targets: NDArray[np.int64],
        training: Sequence[int],
        held: Sequence[int],
    ) -> None:
        """Draw from the rows ``training`` and show the rows ``held`` as they are.

        Args:
            store: The slides.
            config: Of the run.
            targets: Of each row of the table, as `Cohort.targets` gives them.
            training: Rows that are learned from.
            held: Rows that are validated on.
        """
        self.store = store
        self.settings = config.end_to_end
        self.augment = config.augment
        self.seed = config.seed
        self.targets = targets
        self.held = tuple(held)
        self.groups = sampling_groups(targets, training)
        self._choice = lru_cache(maxsize=8)(self._choose)

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory of what was drawn, which cannot be pickled."""
        return {key: value for key, value in self.__dict__.items() if key != "_choice"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        self.__dict__.update(state)
        self._choice = lru_cache(maxsize=8)(self._choose)

    def choice(self, step: int, slot: int) -> Choice:
        """Slide ``slot`` of a step; of the step `HELD`, validation slide ``slot``."""
        return self._choice(step, slot)

    def _choose(self, step: int, slot: int) -> Choice:
        rng = np.random.default_rng([self.seed, 31, step - HELD, slot])
        if step == HELD:
            row = self.held[slot]
        else:
            group = self.groups[(step * self.settings.accum + slot) % len(self.groups)]
            row = group[rng.integers(len(group))]
        table = self.store.table(row)
        rows = sample_rows(
            table,
            rng,
            self.settings.patches,
            tissue=self.store.card.thresholds.tissue_fraction,
            quota=self.settings.sample == "quota",
        )
        if not len(rows):
            raise MsamilError(f"{self.store.slides[row].path.name} shows no tissue: there is nothing to learn from it.")
        changed = self.augment and step != HELD
        return Choice(
            row, table.take(rows), int(rng.integers(8)) if changed else 0, random_look(rng) if changed else None
        )

    def keys(self, step: int, slot: int) -> list[Key]:
        """Keys of a slide's chunks, in the order of its rows."""
        parts = pieces(len(self.choice(step, slot).table), self.settings.chunk)
        return [(step, slot, number) for number, _ in enumerate(parts)]

    def __getitem__(self, key: Key) -> Tensor:
        """A chunk (n, P, P, 3): uint8, or float in 0..1 where its colours were changed."""
        step, slot, number = key
        choice = self.choice(step, slot)
        part = list(pieces(len(choice.table), self.settings.chunk))[number]
        pixels = turned(self.store.pixels(choice.row, choice.table.take(np.arange(part.start, part.stop))), choice.turn)
        if choice.look is None:
            return tensor_of(pixels)
        seed = int(np.random.default_rng([self.seed, 32, *key]).integers(2**31))
        return apply_look(pixels, choice.look, generator=torch.Generator().manual_seed(seed))


class PatchStream:
    """The slides of a training as `Drawn`, whose chunks are made ahead over the passes, slides and steps to come."""

    def __init__(self, draws: PatchDraws, *, passes: int, workers: int) -> None:
        """Expect ``passes`` passes over each slide that this process takes of a step."""
        self._draws = draws
        self._passes = passes
        self._workers = workers
        self._chunks = Ahead(draws, self._keys_from, workers=workers)

    def close(self) -> None:
        """Make no more chunks."""
        self._chunks.close()

    def draw(self, step: int, slot: int) -> Drawn:
        """A slide of a step."""
        keys = self._draws.keys(step, slot)
        if self._reads(step, slot) == self._passes:
            return self._drawn(step, slot, lambda: map(self._chunks, keys))
        kept: list[Tensor] = []

        def chunks() -> Iterator[Tensor]:
            if not kept:
                kept.extend(map(self._chunks, keys))
            return iter(kept)

        return self._drawn(step, slot, chunks)

    def _reads(self, step: int, slot: int) -> int:
        """How often a slide's patches are read: once, if so few that they can be kept for the other passes."""
        side, float32 = self._draws.store.card.patch_px, 4
        held = len(self._draws.choice(step, slot).table) * side * side * 3 * float32
        return 1 if held <= _KEPT_BYTES else self._passes

    def held(self) -> list[Drawn]:
        """The validation slides."""
        return [self._held(slot) for slot in range(len(self._draws.held))]

    def _held(self, slot: int) -> Drawn:
        keys = self._draws.keys(HELD, slot)
        return self._drawn(HELD, slot, lambda: feed(self._draws, keys))

    def _drawn(self, step: int, slot: int, chunks: Callable[[], Iterator[Tensor]]) -> Drawn:
        choice = self._draws.choice(step, slot)
        name = self._draws.store.slides[choice.row].path.name
        return Drawn(name, choice.table, self._draws.targets[choice.row], chunks)

    def _keys_from(self, first: Key) -> Iterator[Key]:
        """Keys of the slide that begins with this chunk, and of all that follow, as often as they are passed over."""
        step, slot, _ = first
        mine = range(self._draws.settings.accum)[rank() :: world()]
        for number in count(step):
            for one in mine:
                if number > step or one >= slot:
                    for _ in range(self._reads(number, one)):
                        yield from self._draws.keys(number, one)


Patches = tuple[Tensor, Tensor, Tensor]
"""Pixels (B, P, P, 3), as for `Model.normalise`; the share of each that is lesion, (B,) float32; the target of its
slide, (B,) or, where classes do not exclude each other, (B, C), int64."""


class PatchesWithLesion:
    """Single patches of slides whose lesions are known, each step from its number alone."""

    def __init__(
        self,
        store: SlideStore,
        config: Config,
        targets: NDArray[np.int64],
        training: Sequence[int],
        held: Sequence[int],
    ) -> None:
        """See `PatchDraws`; the lesions of the rows ``training`` and ``held`` are known."""
        self._store = store
        self._settings = config.pretrain
        self._quota = config.end_to_end.sample == "quota"
        self._augment = config.augment
        self._seed = config.seed
        self._targets = targets
        self._groups = sampling_groups(targets, training) if config.pretrain.labels else _by_lesion(store, training)
        self._held = tuple(held)

    def __getitem__(self, step: int) -> Patches:
        """The patches of a step."""
        counts = [len(range(part.start, part.stop)) for part in pieces(self._settings.batch, _OF_A_SLIDE)]
        parts = []
        for slot, wanted in enumerate(counts):
            rng = np.random.default_rng([self._seed, 21, step, slot])
            group = self._groups[(step * len(counts) + slot) % len(self._groups)]
            parts.append(self._some(group[rng.integers(len(group))], rng, wanted, changed=self._augment))
        pixels, shares, labels = zip(*parts, strict=True)
        return torch.cat(pixels), torch.cat(shares), torch.cat(labels)

    def held(self) -> list[Patches]:
        """Some patches of each validation slide, always the same."""
        rngs = {row: np.random.default_rng([self._seed, 22, row]) for row in self._held}
        return [self._some(row, rng, _HELD_OF_A_SLIDE, changed=False) for row, rng in rngs.items()]

    def _some(self, row: int, rng: np.random.Generator, count: int, *, changed: bool) -> Patches:
        """Pieces of some patches of a slide, each changed in its own way, so that none is told by its slide's stain."""
        table, side = self._store.table(row), self._store.card.patch_px
        tissue = self._store.card.thresholds.tissue_fraction
        rows = sample_rows(table, rng, count, tissue=tissue, quota=self._quota)
        table, px = table.take(rows), self._settings.crop_px or side
        corners = rng.integers(side - px + 1, size=(len(rows), 2)).tolist()  # (x, y) in patch px
        whole = self._store.pixels(row, table)
        pixels = np.stack([one[y : y + px, x : x + px] for one, (x, y) in zip(whole, corners, strict=True)])
        steps = np.array([table.footprint(int(scale)) for scale in table.scale]) / side  # level-0 px of a patch px
        starts = table.coords + np.array(corners) * steps
        share = torch.from_numpy(self._store.lesion_shares(row, starts, starts + px * steps))
        label = tensor_of(np.repeat(self._targets[row][None], len(rows), axis=0))
        if not changed:
            return tensor_of(pixels), share, label
        pixels = np.concatenate([turned(one[None], int(rng.integers(8))) for one in pixels])
        looks = [random_look(rng) for _ in pixels]
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        return apply_look(pixels, looks, generator=generator), share, label


def _by_lesion(store: SlideStore, rows: Sequence[int]) -> list[list[int]]:
    """Slides with a lesion, and those without one, as far as there are any."""
    has = {row: bool(store.square(row)[1].any()) for row in rows}
    return [group for group in ([r for r, x in has.items() if x], [r for r, x in has.items() if not x]) if group]


class ThumbnailDraws:
    """The thumbnails of every step of the segmenter, each following from seed and step alone."""

    def __init__(self, store: SlideStore, config: Config, training: Sequence[int]) -> None:
        """Draw from the rows ``training``, whose lesions are known; those with a lesion come as often as the others."""
        self._store = store
        self._settings = config.segment
        self._augment = config.augment
        self._seed = config.seed
        self._groups = _by_lesion(store, training)

    def __getitem__(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Pictures (px, px, 3) and lesions (px, px) bool."""
        return [self._one(step, k) for k in range(self._settings.batch)]

    def _one(self, step: int, k: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self._seed, 11, step, k])
        group = self._groups[(step * self._settings.batch + k) % len(self._groups)]
        picture, lesion = self._store.square(group[rng.integers(len(group))])
        px = self._settings.crop_px or len(picture)
        if self._augment:
            picture, lesion = zoomed(picture, lesion, float(np.exp(rng.uniform(-0.25, 0.25))), least=px)
        y, x = (int(rng.integers(length - px + 1)) for length in lesion.shape)
        picture, lesion = picture[y : y + px, x : x + px][None], lesion[y : y + px, x : x + px][None]
        if not self._augment:
            return tensor_of(picture)[0], tensor_of(lesion)[0]
        turn, look = int(rng.integers(8)), random_look(rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        seen = apply_look(turned(picture, turn), look, generator=generator)
        return seen[0], tensor_of(turned(lesion, turn))[0]


def zoomed(picture: NDArray[np.uint8], lesion: NDArray[np.bool_], factor: float, *, least: int) -> Thumbnail:
    """A picture and its lesion enlarged or shrunken, but to no side shorter than ``least``."""
    px = max(least, round(len(picture) * factor))
    shown = Image.fromarray(picture).resize((px, px), Image.Resampling.BILINEAR)
    mask = Image.fromarray(lesion.astype(np.uint8) * 255).resize((px, px), Image.Resampling.BILINEAR)
    return np.asarray(shown), np.asarray(mask) > 127
