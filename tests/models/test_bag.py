"""Bags: faults are refused before they become wrong numbers; files are whole or not there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from napari_msamil.models.bag import Bag, BagError, EmptyBagError, load_bag, load_provenance, save_bag


def make_bag(n: int = 6) -> Bag:
    return Bag(
        features=torch.randn(n, 4, generator=torch.Generator().manual_seed(0)),
        coords=torch.arange(2 * n).view(n, 2),
        scale=torch.arange(n) % 2,
        slide_size=(100, 80),
        footprint=torch.tensor([[16.0, 16.0], [32.0, 32.0]]),
        parent=torch.tensor([1, -1, 1, -1, 3, -1])[:n],
    )


def test_a_bag_without_instances_is_refused() -> None:
    with pytest.raises(EmptyBagError, match="no instances"):
        make_bag(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.zeros(6)}, r"features must be \(N, D\) floating point, got \(6,\)"),
        ({"features": torch.zeros(6, 4, dtype=torch.int64)}, "features must be .* torch.int64"),
        ({"coords": torch.zeros(5, 2, dtype=torch.int64)}, r"coords must be \(6, 2\) int64 .*, got \(5, 2\)"),
        ({"coords": torch.zeros(6, 2)}, "coords must be .* got .* torch.float32"),
        ({"scale": torch.zeros(6, dtype=torch.int32)}, "scale must be .* torch.int32"),
        ({"parent": torch.zeros(7, dtype=torch.int64)}, "parent must be"),
        ({"footprint": torch.zeros(3)}, "footprint must be"),
        ({"slide_size": (0, 10)}, r"slide_size must be .*\(0, 10\)"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BagError, match=message):
        dataclasses.replace(make_bag(), **changes)  # type: ignore[arg-type]


def test_taken_rows_keep_their_order_and_their_parents() -> None:
    taken = make_bag().take(torch.tensor([4, 3, 0]))
    assert torch.equal(taken.features, make_bag().features[[4, 3, 0]])
    assert taken.coords[:, 0].tolist() == [8, 6, 0]
    assert taken.parent is not None
    assert taken.parent.tolist() == [1, -1, -1]
    assert make_bag().take(torch.tensor([True, False, True, False, False, False])).coords[:, 0].tolist() == [0, 4]


def test_a_saved_bag_comes_back_bit_for_bit(tmp_path: Path) -> None:
    bag = make_bag()
    save_bag(bag, tmp_path / "new" / "bag.pt", provenance={"extractor": "demo", "mpp": 0.5})
    loaded = load_bag(tmp_path / "new" / "bag.pt")
    for field in ("features", "coords", "scale", "footprint", "parent"):
        assert torch.equal(getattr(loaded, field), getattr(bag, field))
    assert loaded.slide_size == (100, 80)
    assert load_provenance(tmp_path / "new" / "bag.pt") == {"extractor": "demo", "mpp": 0.5}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bag.pt"]


def test_half_precision_features_come_back_as_float32(tmp_path: Path) -> None:
    bag = make_bag()
    save_bag(dataclasses.replace(bag, features=bag.features.half()), tmp_path / "bag.pt")
    assert torch.equal(load_bag(tmp_path / "bag.pt").features, bag.features.half().float())


def test_features_that_are_not_finite_are_never_stored(tmp_path: Path) -> None:
    bag = make_bag()
    bag.features[2, 1] = float("nan")
    with pytest.raises(BagError, match=r"bag.pt: 1 of 6 instances have features that are not finite"):
        save_bag(bag, tmp_path / "bag.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_bag_file_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bag.pt"
    save_bag(make_bag(), path)
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BagError, match=r"bag\.pt"):
            load_bag(path)


def test_a_bag_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save(Bomb(), tmp_path / "bag.pt")
    with pytest.raises(BagError, match="no bag"):
        load_bag(tmp_path / "bag.pt")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_bag_or_missing_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"There is no bag file .*nowhere\.pt"):
        load_bag(tmp_path / "nowhere.pt")
    torch.save({"x": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(BagError, match=r"other\.pt is not a bag"):
        load_bag(tmp_path / "other.pt")
    torch.save({"format": 1, "rows": 3}, tmp_path / "parts.pt")
    with pytest.raises(BagError, match=r"parts\.pt is not a bag"):
        load_bag(tmp_path / "parts.pt")
