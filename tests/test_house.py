"""The rules of the house: who may import whom, and what is packed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from napari_msamil.cli import app

ROOT = Path(__file__).parents[1]
PACKAGE = "napari_msamil"
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "resources": set(),
    "slide": {"errors", "files"},
    "patches": {"errors", "slide"},
    "models": {"errors", "files", "resources"},
    "inference": {"errors", "files", "slide", "patches", "models", "resources"},
    "plugin": {"errors", "slide", "patches", "models", "inference", "resources"},
    "training": {"errors", "files", "slide", "patches", "models", "inference", "resources"},
    "cli": {"errors", "slide", "inference", "cli_model", "cli_training"},
    "cli_model": {"patches", "models", "inference"},
    "cli_training": {"training"},
}
GUI = {"napari", "qtpy", "magicgui", "superqt", "PyQt5", "PyQt6", "PySide6", "vispy"}


def _sources() -> list[tuple[str, Path]]:
    """Every source file with the room of the house it is in."""
    found = []
    for folder in (ROOT / PACKAGE, ROOT / "training", ROOT / "resources"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((parts[1] if parts[0] == PACKAGE else parts[0], path))
    return found


def _imported(path: Path) -> set[str]:
    """Absolute module names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


@pytest.mark.parametrize(("room", "path"), _sources(), ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_a_room_imports_only_the_rooms_it_may(room: str, path: Path) -> None:
    if room == "__init__" or path.name == "__main__.py":
        return
    rooms = {name.split(".")[1] for name in _imported(path) if name.startswith(f"{PACKAGE}.")}
    rooms -= {"__version__", room}
    assert rooms <= MAY_IMPORT[room], f"{path.name} imports {rooms - MAY_IMPORT[room]}"


@pytest.mark.parametrize(("room", "path"), _sources(), ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_only_the_plugin_knows_napari_and_qt(room: str, path: Path) -> None:
    if room != "plugin":
        assert not {name.split(".")[0] for name in _imported(path)} & GUI


def test_no_file_of_ours_unpickles() -> None:
    for _, path in _sources():
        text = path.read_text(encoding="utf-8")
        assert "pickle.load" not in text, path
        assert "weights_only=False" not in text, path


def test_the_package_list_names_every_folder_with_an_init() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for folder in (ROOT / PACKAGE, ROOT / "training", ROOT / "resources"):
        for init in folder.rglob("__init__.py"):
            dotted = ".".join(init.parent.relative_to(ROOT).parts)
            found.add(dotted if dotted.startswith(PACKAGE) else f"{PACKAGE}.{dotted}")
    assert found == listed


def test_importing_and_opening_a_slide_loads_neither_torch_nor_napari(tmp_path: Path) -> None:
    script = f"""
import sys
import numpy as np, tifffile
tifffile.imwrite({str(tmp_path / "a.tif")!r}, np.zeros((512, 512, 3), "u1"), tile=(256, 256), photometric="rgb")
import napari_msamil, napari_msamil.cli
with napari_msamil.open_slide({str(tmp_path / "a.tif")!r}) as slide:
    slide.read(0, 0, 512, 512, size=(64, 64))
heavy = {{"torch", "napari", "openslide", "timm", "distributed", "qtpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_shipped_resources_stay_below_20_mb() -> None:
    assert sum(p.stat().st_size for p in (ROOT / "resources").iterdir() if p.is_file()) < 20e6


def test_the_readme_names_every_command_and_option() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    reference = text.partition("## On the command line")[2].partition("```\n")[2].partition("```")[0]
    said = {" ".join(entry.split()) for entry in reference.split("msamil ")}
    for name, command in _commands(typer.main.get_command(app)):
        [entry] = [text for text in said if f"{text} ".startswith(f"{name} ")]
        for option in command.params:
            if isinstance(option, typer.core.TyperOption):
                assert option.opts[0] in entry, f"README: msamil {name} lacks {option.opts[0]}"


def _commands(command: Any) -> list[tuple[str, Any]]:
    """Name, as typed, and command of everything below a command."""
    inner = getattr(command, "commands", {})
    return [(f"{name} {under}".strip(), one) for name, child in inner.items() for under, one in _commands(child)] or [
        ("", command)
    ]
