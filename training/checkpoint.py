"""The checkpoint of a stage: written whole or not at all, read back only for the same plan."""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from napari_msamil.errors import MsamilError
from napari_msamil.files import write_atomically

Weights = dict[str, dict[str, Tensor]]
_SAID = {
    "made_from": "it learned from other slides or settings",
    "begun_from": "it went on from other weights of earlier stages than those that are there now",
}


class CheckpointError(MsamilError):
    """A checkpoint cannot be resumed."""


def weights_of(modules: Mapping[str, nn.Module]) -> Weights:
    """A copy of the modules' weights, by module and parameter."""
    return {name: {key: value.clone() for key, value in m.state_dict().items()} for name, m in modules.items()}


def digest_of(weights: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Hash of weights, of their names too."""
    total = hashlib.sha256()
    for module in sorted(weights):
        for name, value in sorted(weights[module].items()):
            total.update(f"{module}.{name}".encode())
            total.update(value.cpu().numpy().tobytes())
    return total.hexdigest()


def put_back(modules: Mapping[str, nn.Module], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load weights into modules of the same names."""
    for name, module in modules.items():
        module.load_state_dict(weights[name])


def save_checkpoint(
    file: Path,
    plan: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    state: Mapping[str, Any],
    best: Weights,
) -> None:
    """Write a checkpoint.

    Args:
        file: To make or replace.
        plan: Plain values that must be the same when it is resumed.
        modules: Their present weights are kept.
        optimiser: Its state is kept.
        state: Plain values.
        best: The weights with the best score.
    """
    content = {
        "plan": json.dumps(dict(plan), sort_keys=True),
        "state": dict(state),
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "best": best,
        "optimiser": optimiser.state_dict(),
    }
    write_atomically(file, lambda stream: torch.save(content, stream))


def load_checkpoint(
    file: Path,
    plan: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer | None,
) -> tuple[dict[str, Any], Weights]:
    """Put a checkpoint into modules and, where it is to be gone on with, into their optimiser.

    Returns:
        The state and the best weights that were saved.

    Raises:
        CheckpointError: It is damaged, or was written for another plan; the message names what differs.
    """
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
        theirs = json.loads(content["plan"])
    except (
        RuntimeError,
        OSError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        LookupError,
        ValueError,
    ) as error:
        raise CheckpointError(
            f"{file} is damaged, or no checkpoint at all: delete it to begin the stage anew."
        ) from error
    mine = json.loads(json.dumps(dict(plan)))
    different = [key for key in mine if mine[key] != theirs.get(key)]
    if different:
        changes = ", ".join(_SAID.get(key, f"{key} was {theirs.get(key)} and is now {mine[key]}") for key in different)
        remedy = "Use the old values, or another folder"
        if different == ["begun_from"]:
            remedy = "Delete it to begin the stage anew"
        raise CheckpointError(f"{file} cannot be resumed: {changes}. {remedy}.")
    put_back(modules, content["modules"])
    if optimiser is not None:
        optimiser.load_state_dict(content["optimiser"])
    state: dict[str, Any] = content["state"]
    best: Weights = content["best"]
    return state, best
