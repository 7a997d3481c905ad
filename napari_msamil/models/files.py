"""The file of a model: weights and card in one container, with its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as st
from torch import Tensor

from napari_msamil.errors import ModelFileError
from napari_msamil.files import write_atomically

_MARK = "napari_msamil"  # header key that tells our files from other safetensors
_CARD = "card"
_SUM = "content_sha256"
_AGAIN = "Copy or download the file again."


def _content_sha256(card: str, tensors: Mapping[str, Tensor]) -> str:
    """Digest of the card and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def write_model_file(path: Path, card: str, tensors: Mapping[str, Tensor]) -> str:
    """Writes card and weights as one `.safetensors` file.

    Args:
        path: Target; replaced when it exists.
        card: The card's JSON.
        tensors: Contiguous CPU tensors by name.

    Returns:
        SHA-256 of the whole file.
    """
    metadata = {_MARK: "model", _CARD: card, _SUM: _content_sha256(card, tensors)}
    blob = st.save(dict(tensors), metadata)
    write_atomically(path, lambda file: file.write(blob))
    return hashlib.sha256(blob).hexdigest()


def read_model_file(path: Path) -> tuple[str, dict[str, Tensor], str]:
    """Reads card and weights, and proves that they are what was written.

    Returns:
        Card JSON, tensors by name, SHA-256 of the whole file.

    Raises:
        ModelFileError: The file is missing, cut, changed, or made by something else.
    """
    try:
        blob = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"There is no model file {path}. Check the path.") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read as a model file ({error.strerror}).") from error
    header = _header(path, blob)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get(_MARK) != "model" or _CARD not in metadata:
        raise ModelFileError(
            f"{path} is a safetensors file, but not one of napari-msamil: it carries no card. "
            "Choose a model that napari-msamil saved."
        )
    try:
        tensors = st.load(blob)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelFileError(f"{path} was cut or damaged ({error}). {_AGAIN}") from error
    if metadata.get(_SUM) != _content_sha256(metadata[_CARD], tensors):
        raise ModelFileError(f"{path} was changed after it was saved: its checksum does not match. {_AGAIN}")
    return metadata[_CARD], tensors, hashlib.sha256(blob).hexdigest()


def _header(path: Path, blob: bytes) -> dict[str, object]:
    """JSON header of a safetensors file: 8 bytes of length, then that many bytes of JSON."""
    length = int.from_bytes(blob[:8], "little")
    if len(blob) < 8 or blob[8:9] != b"{":
        raise ModelFileError(
            f"{path} is not a model file of napari-msamil ({len(blob)} bytes, no safetensors header). "
            "Choose a .safetensors file that napari-msamil saved."
        )
    if length > len(blob) - 8:
        raise ModelFileError(f"{path} was cut: its header needs {length} bytes, {len(blob) - 8} are there. {_AGAIN}")
    try:
        header = json.loads(blob[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} was damaged: its header is not readable. {_AGAIN}") from error
    if not isinstance(header, dict):
        raise ModelFileError(f"{path} was damaged: its header is no table of tensors. {_AGAIN}")
    return header
