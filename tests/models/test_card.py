"""Cards: what is wrong is said with the value in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from napari_msamil.errors import ModelFileError
from napari_msamil.models.card import FORMAT, PRESETS, Card, explain, preset_card
from napari_msamil.models.files import read_model_file
from napari_msamil.resources import demo_model_path


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_json(preset: str) -> None:
    card = preset_card(preset, classes=["benign", "malignant"], figures={"auc": 0.9, "by fold": [1, 2]})
    assert Card.from_json(card.to_json(), source="card") == card
    assert card.method == "msamil"


def test_presets_state_the_scales_of_the_design() -> None:
    default, demo = (preset_card(name, classes=["a", "b"]) for name in ("default", "demo"))
    assert (default.scales_mpp, default.patch_px) == ((0.5, 1.0, 2.0), 512)
    assert (demo.scales_mpp, demo.patch_px) == ((1.0, 2.0, 4.0), 224)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a"]}, r"classes: .*at least two classes, got \['a'\]"),
        ({"classes": ["a", "b", "a"]}, "classes: class names must differ, but 'a' stands there twice"),
        ({"classes": ["a", " "]}, "classes: a class name is empty"),
        ({"scales_mpp": (0.5, 1.2)}, r"scales_mpp: .*whole multiple.* 1.2 / 0.5 = 2.4"),
        ({"scales_mpp": (1.0, 0.5)}, r"scales_mpp: .*0.5 / 1 = 0.5"),
        ({"scales_mpp": (1.0, 1.0)}, r"scales_mpp: .*1 / 1 = 1 "),
        ({"scales_mpp": ()}, "scales_mpp: .*above 0"),
        ({"scales_mpp": (0.0, 1.0)}, "scales_mpp: .*above 0"),
        ({"thumbnail_px": 1000}, "thumbnail_px: 1000 is not a multiple of 32"),
        ({"overlap": 0.3}, "overlap: patches cannot overlap by 0.3 of their side: use 0, 0.5 or 0.75"),
        ({"thresholds": {"lesion_fraction": (0.7, 0.7)}}, "lesion_fraction has 2 numbers for 3 scales"),
        ({"figures": {"auc": float("nan")}}, "figures must be plain finite JSON"),
        ({"figures": {"auc": object()}}, "figures must be plain finite JSON"),
        ({"pacth_px": 512}, "pacth_px: there is no such setting"),
        ({"aggregator": {"dim": 256}}, "extractor gives 512 numbers per patch, the aggregator takes 256"),
        ({"aggregator": {"heads": 7}}, "dim 512 is not a multiple of heads 7"),
        ({"aggregator": {"gate_dim": 10}}, "gate_dim is 10: use 1 .* or 512"),
        ({"extractor": {"layers": 0}}, "a class token needs at least one Transformer layer"),
        ({"normalisation": {"std": (0.2, 0.0, 0.2)}}, "standard deviation must be above 0"),
    ],
)
def test_faults_are_named_with_their_value(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"classes": ["a", "b"]} | changes
    with pytest.raises(ValidationError) as caught:
        preset_card("default", **fields)
    with pytest.raises(ValueError, match=message):
        raise ValueError(explain(caught.value))


def test_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no preset 'large': choose one of default, literal, demo"):
        preset_card("large", classes=["a", "b"])


def test_a_card_never_changes() -> None:
    card = preset_card("demo", classes=["a", "b"])
    with pytest.raises(ValidationError, match="frozen"):
        card.name = "other"  # type: ignore[misc]


def test_a_newer_format_is_refused_as_newer_whatever_else_it_holds() -> None:
    data = json.loads(preset_card("demo", classes=["a", "b"]).to_json()) | {"format": FORMAT + 1, "hologram": True}
    with pytest.raises(ModelFileError, match=f"new.safetensors has format version {FORMAT + 1}.* Update napari-msamil"):
        Card.from_json(json.dumps(data), source="new.safetensors")


@pytest.mark.parametrize("text", ["[]", "{}", "nonsense", '{"format": "one"}', "null"])
def test_what_is_no_card_is_refused_by_its_source(text: str) -> None:
    with pytest.raises(ModelFileError, match=r"^here: "):
        Card.from_json(text, source="here")


def test_classes_exclude_each_other_unless_the_card_says_that_they_do_not() -> None:
    card = preset_card("demo", classes=["a", "b"])
    assert card.exclusive
    assert "exclusive" not in json.loads(card.to_json()), "a card that says nothing new is written as it was"
    assert Card.from_json(card.to_json(), source="card") == card
    several = preset_card("demo", classes=["a", "b"], exclusive=False)
    assert not Card.from_json(several.to_json(), source="card").exclusive


def test_the_card_of_a_file_from_before_that_choice_reads_and_writes_the_same() -> None:
    text, _, _ = read_model_file(demo_model_path())
    card = Card.from_json(text, source="demo")
    assert card.exclusive
    before, after = json.loads(text), json.loads(card.to_json())
    assert {key: after[key] for key in before} == before
    assert "exclusive" not in after
