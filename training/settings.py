"""All settings of a run as a TOML file that explains itself: what `msamil settings` prints."""

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import tomli_w
from pydantic import BaseModel

from napari_msamil.models.card import Card

from .config import FROM_THE_RUN, Config

_WIDTH = 120


def explained_toml(config: Config) -> str:
    """Every setting with its value and what it means; `read_config` reads it back as the same settings.

    What the settings mean is taken from the documentation of their classes, so that it stands in one place.
    """
    values = config.model_dump(mode="json")
    card = config.card(("a", "b")).model_dump(mode="json")
    values["model"] = {name: value for name, value in card.items() if name not in FROM_THE_RUN}
    return "\n".join(_table(Config, values, "")).strip() + "\n"


def _table(kind: type[BaseModel], values: Mapping[str, Any], path: str) -> Iterator[str]:
    """The lines of one table, and of the tables in it."""
    meanings = _meanings(kind)
    inner: dict[str, type[BaseModel]] = {}
    if path:
        yield from ("", f"# {(inspect.getdoc(kind) or '').partition(chr(10))[0]}", f"[{path}]")
    for name, value in values.items():
        table = Card if (kind, name) == (Config, "model") else kind.model_fields[name].annotation
        if isinstance(table, type) and issubclass(table, BaseModel):
            inner[name] = table
            continue
        yield from textwrap.wrap(meanings[name], _WIDTH, initial_indent="# ", subsequent_indent="# ")
        yield f"# {name} is not set" if value is None else f"{name} = {_value(value)}"
    for name, table in inner.items():
        yield from _table(table, values[name], f"{path}.{name}" if path else name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _meanings(kind: type[BaseModel]) -> dict[str, str]:
    """What each field means, by its name: the section "Attributes" of the class's documentation."""
    _, _, section = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in textwrap.dedent(section).splitlines():
        if line.startswith(" "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            named, _, text = line.partition(": ")
            names = named.split(", ")
            found |= dict.fromkeys(names, text)
    return found
