"""`msamil model`: what a model file says about itself, and whether it is whole."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_msamil.models.card import Card

model_app = typer.Typer(help="Look into model files.", no_args_is_help=True, rich_markup_mode=None)

File = Annotated[str, typer.Argument(metavar="FILE", help='Model file, or "demo".')]

_LABEL = 16  # columns before the text
_HOW_MADE = ("steps", "versions")  # stand among a card's figures, and say nothing about how good the model is


@model_app.command("show")
def show(
    file: File, as_json: Annotated[bool, typer.Option("--json", help="Print the whole card as JSON.")] = False
) -> None:
    """Print what a model is, what it was trained on, how good it is, and what it may be used for."""
    from napari_msamil.inference.classify import open_model

    model = open_model(file, aggregator_alone=True)
    if as_json:
        print(json.dumps({**model.card.model_dump(mode="json"), "sha256": model.sha256}, indent=2, ensure_ascii=False))
        return
    width = max(60, min(120, shutil.get_terminal_size().columns))
    print(model.card.name)
    for label, text in card_rows(model.card, sha256=model.sha256 or ""):
        print(_row(label, text or "not stated", width))
    print(f"The whole card: msamil model show {file} --json")


@model_app.command("verify")
def verify(file: File) -> None:
    """Check that a model file is whole, unchanged and loads; says so in one line."""
    from napari_msamil.inference.classify import open_model

    model = open_model(file, aggregator_alone=True)
    count = sum(p.numel() for p in model.parameters())
    print(f"{file}: a whole and unchanged {model.card.method} model with {count:,} parameters")


def card_rows(card: Card, *, sha256: str) -> Iterator[tuple[str, str]]:
    """What a user wants to know of a model, as (label, text); a row without a label belongs to the one above."""
    from napari_msamil.patches.grid import Scale

    names = ", ".join(Scale(mpp, card.patch_px).name for mpp in card.scales_mpp)
    limits = card.thresholds.lesion_fraction
    shares = " / ".join(f"{share:.0%}" for share in (limits if isinstance(limits, tuple) else (limits,)))
    made = f", made {card.created}" if card.created else ""
    yield "method", f"{card.method}, preset {card.preset}{made}"
    yield "classes", ", ".join(card.classes) + ("" if card.exclusive else "; a slide may have several of them or none")
    yield "scales", f"{names} ({', '.join(f'{mpp:g}' for mpp in card.scales_mpp)} µm per pixel)"
    where = f"more than {shares} is lesion" if card.finds_lesion else f"{card.thresholds.tissue_fraction:.0%} is tissue"
    if card.features:
        yield "features", f"made elsewhere ({card.features}): it takes bags of such features, and classifies no slide"
    else:
        yield "patches", f"{card.patch_px} x {card.patch_px} px at every scale, read where {where}"
        yield "lesion", card.lesion_label if card.finds_lesion else "not looked for: trained without marked lesions"
    yield "trained on", card.dataset
    figures = [f"{name}: {_plain(value)}" for name, value in card.figures.items() if name not in _HOW_MADE]
    for number, text in enumerate(figures or [""]):
        yield "" if number else "figures", text
    yield "intended use", card.intended_use
    yield "licence", card.licence
    yield "attribution", card.attribution
    yield "sha256", sha256


def _row(label: str, text: str, width: int) -> str:
    left = f"  {label:<{_LABEL - 2}}"
    return textwrap.fill(text, width, initial_indent=left, subsequent_indent=" " * _LABEL, break_long_words=False)


def _plain(value: Any) -> str:
    """A figure as text: numbers to four digits, pairs as ranges, tables in one line."""
    if isinstance(value, dict):
        parts = (f"{k} ({_plain(v)})" if isinstance(v, dict) else f"{k} {_plain(v)}" for k, v in value.items())
        return "; ".join(parts)
    if isinstance(value, list):
        return " to ".join(map(_plain, value)) if len(value) == 2 else ", ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)
