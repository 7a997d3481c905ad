"""A bag: the features of one slide's patches, with where each patch lies."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from napari_msamil.errors import MsamilError
from napari_msamil.files import write_atomically

_FORMAT = 1


class BagError(MsamilError):
    """A bag, or the file of one, cannot be used."""


class EmptyBagError(BagError):
    """A bag without instances: there is nothing to classify."""


@dataclass(frozen=True, eq=False)
class Bag:
    """Features and places of N patches of one slide, rows in any order.

    Attributes:
        features: (N, D) floating point.
        coords: (N, 2) int64, (x, y) of the top-left corner in level-0 px.
        scale: (N,) int64, 0 = finest.
        slide_size: (width, height) of the slide in level-0 px.
        footprint: (S, 2) float64, (width, height) of a patch in level-0 px at each scale, or None.
            Only the `grid` coordinates and the `quadtree_post` order need it.
        parent: (N,) int64, row of the patch one scale coarser that contains this one, -1 for none; or None.

    Raises:
        EmptyBagError: No instances.
        BagError: Lengths, shapes or types do not fit together.
    """

    features: Tensor
    coords: Tensor
    scale: Tensor
    slide_size: tuple[int, int]
    footprint: Tensor | None = None
    parent: Tensor | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not self.features.is_floating_point():
            raise BagError(
                f"features must be (N, D) floating point, got {tuple(self.features.shape)} {self.features.dtype}"
            )
        n = len(self.features)
        if n == 0:
            raise EmptyBagError(
                "The bag has no instances: no patch was selected or read; there is nothing to classify."
            )
        expected = {"coords": (self.coords, (n, 2)), "scale": (self.scale, (n,)), "parent": (self.parent, (n,))}
        for name, (tensor, shape) in expected.items():
            if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype != torch.int64):
                raise BagError(
                    f"{name} must be {shape} int64 for {n} instances, got {tuple(tensor.shape)} {tensor.dtype}"
                )
        if self.footprint is not None and (self.footprint.ndim != 2 or self.footprint.shape[1] != 2):
            raise BagError(f"footprint must be (S, 2), width and height per scale, got {tuple(self.footprint.shape)}")
        if min(self.slide_size) < 1:
            raise BagError(f"slide_size must be (width, height) in level-0 px, got {self.slide_size}")

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str) -> Bag:
        """The same bag on another device; the footprint, float64 and tiny, stays where it is (MPS knows no float64)."""
        moved = {
            name: value.to(device)
            for name in ("features", "coords", "scale", "parent")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def take(self, rows: Tensor) -> Bag:
        """A bag of some rows, in the order asked; parents outside it become -1.

        Args:
            rows: (n,) int64 row numbers without repeats, or (N,) bool.
        """
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        parent = None
        if self.parent is not None:
            new_row = torch.full((len(self) + 1,), -1, dtype=torch.int64, device=rows.device)
            new_row[rows] = torch.arange(len(rows), device=rows.device)
            parent = new_row[self.parent[rows]]  # -1 reads the extra last entry, which is -1
        return replace(
            self, features=self.features[rows], coords=self.coords[rows], scale=self.scale[rows], parent=parent
        )


def save_bag(bag: Bag, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Writes a bag as plain tensors, whole or not at all.

    Args:
        bag: Any device; stored on the CPU in its own dtype.
        path: A `.pt` file; replaced when it exists.
        provenance: Plain JSON values that say how the features were made.
    """
    _check_finite(bag, str(path))
    content: dict[str, Any] = {
        "format": _FORMAT,
        "rows": len(bag),
        "features": bag.features.detach().cpu().contiguous(),
        "coords": bag.coords.cpu().contiguous(),
        "scale": bag.scale.cpu().contiguous(),
        "slide_size": list(bag.slide_size),
        "provenance": json.dumps(dict(provenance or {}), allow_nan=False),
    }
    for name in ("footprint", "parent"):
        value = getattr(bag, name)
        if value is not None:
            content[name] = value.cpu().contiguous()
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(Path(path), lambda file: file.write(buffer.getbuffer()))


def load_bag(path: str | Path) -> Bag:
    """Reads a bag; half-precision features come back as float32.

    Raises:
        BagError: The file is missing, cut, not a bag, or its parts do not fit together.
    """
    content = _read(Path(path))
    try:
        bag = Bag(
            features=content["features"].float() if content["features"].dtype == torch.float16 else content["features"],
            coords=content["coords"],
            scale=content["scale"],
            slide_size=(int(content["slide_size"][0]), int(content["slide_size"][1])),
            footprint=content.get("footprint"),
            parent=content.get("parent"),
        )
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        raise BagError(f"{path} is not a bag of napari-msamil ({error!r}). Extract the features again.") from error
    except BagError as error:
        raise type(error)(f"{path}: {error}") from error
    if content.get("rows") != len(bag):
        raise BagError(f"{path} says {content.get('rows')} rows and holds {len(bag)}. Extract the features again.")
    _check_finite(bag, str(path))
    return bag


def load_provenance(path: str | Path) -> dict[str, Any]:
    """How a bag's features were made, as given to `save_bag`."""
    text = _read(Path(path)).get("provenance", "{}")
    result: dict[str, Any] = json.loads(text)
    return result


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BagError(f"There is no bag file {path}. Extract the features first.") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, OSError) as error:
        raise BagError(f"{path} was cut or changed, or is no bag at all. Extract the features again.") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise BagError(f"{path} is not a bag that this napari-msamil can read. Extract the features again.")
    return content


def _check_finite(bag: Bag, source: str) -> None:
    bad = int((~torch.isfinite(bag.features)).any(1).sum())
    if bad:
        raise BagError(f"{source}: {bad} of {len(bag)} instances have features that are not finite numbers.")
