"""Model and its file: the same numbers after every way round, and no damaged file is believed."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from napari_msamil.errors import ModelFileError, MsamilError
from napari_msamil.files import write_atomically
from napari_msamil.models.bag import Bag
from napari_msamil.models.card import Card, preset_card
from napari_msamil.models.configs import ExtractorConfig
from napari_msamil.models.files import read_model_file, write_model_file
from napari_msamil.models.fusing import ConvActivation
from napari_msamil.models.model import Model, build_model, load_model, save_model
from napari_msamil.resources import demo_model_path


def tiny_card(**changes: Any) -> Card:
    return preset_card("tiny", classes=["benign", "malignant"], **changes)


def lively(model: Model) -> Model:
    """BatchNorm statistics, scales and shifts as after some training, so that folding has something to do."""
    random_state = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=random_state)
            module.running_var.uniform_(0.5, 2, generator=random_state)
            module.weight.data.uniform_(0.5, 1.5, generator=random_state)
            module.bias.data.normal_(0, 0.2, generator=random_state)
    return model


def pictures(n: int, side: int) -> Tensor:
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def make_bag(features: Tensor) -> Bag:
    n = len(features)
    return Bag(features, torch.arange(2 * n).view(n, 2) * 100, torch.arange(n) % 3, (5000, 5000))


def outputs(model: Model) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode():
        features = model.embed(pictures(5, model.card.patch_px))
        return model.segment(pictures(2, 64)), features, model.aggregate(make_bag(features)).logits


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(3)
    first, second, other = (build_model(tiny_card(), seed=seed) for seed in (0, 0, 1))
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    assert not torch.equal(first.aggregator.head.weight, other.aggregator.head.weight)  # type: ignore[union-attr, arg-type]


def test_normalisation_is_that_of_the_card_for_bytes_and_fractions() -> None:
    model = build_model(tiny_card(normalisation={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.2)}), seed=0)
    pixels = pictures(2, 32)
    expected = ((pixels.double() / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 0.2])).movedim(3, 1)
    torch.testing.assert_close(model.normalise(pixels).double(), expected, rtol=0, atol=1e-6)
    fractions = pixels.float() / 255
    before = fractions.clone()
    torch.testing.assert_close(model.normalise(fractions).double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(fractions, before)


def test_every_convolution_sees_channels_last() -> None:
    model = build_model(tiny_card(), seed=0)
    for part in (model, model.for_inference()):
        seen: list[Tensor] = []
        for module in part.modules():
            if isinstance(module, (nn.Conv2d, ConvActivation)):
                module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        outputs(part)
        assert len(seen) > 10
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_segment_gives_a_probability_per_pixel_and_embed_a_row_per_patch() -> None:
    lesion, features, logits = outputs(build_model(tiny_card(), seed=0))
    assert lesion.shape == (2, 64, 64)
    assert 0 < float(lesion.min()) < float(lesion.max()) < 1
    assert features.shape == (5, 32)
    assert logits.shape == (2,)


@pytest.mark.parametrize("encoder", ["resnet35", "tu-resnet35", "tu-test_vit", "tu-hf-hub:some/net"])
def test_a_segmenter_encoder_that_does_not_fit_is_named(encoder: str) -> None:
    segmenter = tiny_card().segmenter.model_copy(update={"encoder": encoder})
    with pytest.raises(ValueError, match=f"no UNet.. can be built with the encoder '{encoder}'"):
        build_model(tiny_card(segmenter=segmenter))


def test_a_card_cannot_make_timm_open_a_file() -> None:
    with pytest.raises(ValueError, match=r"encoder_options\.checkpoint_path"):
        ExtractorConfig.model_validate({"encoder_options": {"checkpoint_path": "other.pth"}})


def test_three_colour_segmenter_gives_its_first_plane() -> None:
    segmenter = tiny_card().segmenter.model_copy(update={"classes": 3})
    model = build_model(tiny_card(segmenter=segmenter), seed=0)
    with torch.inference_mode():
        planes = model.segmenter.net(model.normalise(pictures(1, 64)))
        assert planes.shape == (1, 3, 64, 64)
        assert torch.equal(model.segment(pictures(1, 64)), planes[:, 0].sigmoid())


def test_wrong_pictures_are_refused_with_their_shape() -> None:
    model = build_model(tiny_card(), seed=0)
    with pytest.raises(ValueError, match="patches are 64 x 64 px"):
        model.embed(pictures(1, 32))
    with pytest.raises(ValueError, match="multiples of 32, got 50 x 50"):
        model.segment(pictures(1, 50))
    with pytest.raises(ValueError, match=r"must be \(B, H, W, 3\) RGB"):
        model.normalise(torch.zeros(1, 3, 8, 8))


def test_bfloat16_autocast_keeps_results_in_float32_and_near() -> None:
    model = build_model(tiny_card(), seed=0)
    expected = outputs(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = outputs(model)
    for full, low in zip(expected, got, strict=True):
        assert low.dtype == torch.float32
        assert 0 < float((low - full).abs().max()) < 0.1 * float(full.abs().max())


def test_numbers_that_overflow_are_an_error_never_a_result() -> None:
    model = build_model(tiny_card(), seed=0)
    with pytest.raises(MsamilError, match="no finite number for 3 patches"):
        model.aggregate(make_bag(torch.full((3, 32), float("inf"))))


def test_the_copy_for_inference_computes_the_same_without_batchnorm() -> None:
    model = lively(build_model(tiny_card(), seed=0))
    fast = model.for_inference()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not any(weight.requires_grad for weight in fast.parameters())
    for expected, got in zip(outputs(model), outputs(fast), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", ["default", "demo"])
def test_batchnorm_folds_away_from_the_shipped_networks(preset: str) -> None:
    card = preset_card(preset, classes=["a", "b"], patch_px=64)
    model = lively(build_model(card, seed=0))
    fast = model.for_inference()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    with torch.inference_mode():
        for name in ("segment", "embed"):
            expected, got = (getattr(net, name)(pictures(1, 64)) for net in (model, fast))
            assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4, name


def test_the_copy_in_bf16_gives_nearly_the_same_in_float32() -> None:
    model = lively(build_model(tiny_card(), seed=0))
    fast = model.for_inference(bf16=True)
    assert next(fast.extractor.parameters()).dtype is torch.bfloat16
    assert next(fast.aggregator.parameters()).dtype is torch.float32
    for expected, got in zip(outputs(model), outputs(fast), strict=True):
        assert got.dtype is torch.float32
        assert not torch.equal(got, expected)
        assert float((got - expected).abs().max() / expected.abs().max()) < 0.05


def test_nets_that_cannot_be_rewritten_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wired_otherwise(*_: object, **__: object) -> None:
        raise RuntimeError("rewriting Net for inference changed its output")

    plain = build_model(tiny_card(), seed=0)
    monkeypatch.setattr("napari_msamil.models.extractor.fold_batchnorm", wired_otherwise)
    copy = plain.for_inference()
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(copy.embed(pixels), plain.embed(pixels))
        torch.testing.assert_close(copy.segment(pixels), plain.segment(pixels))
    assert "runs as it is, slower: its nets cannot be rewritten (rewriting Net" in caplog.text
    assert copy.folded


def test_the_copy_for_inference_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be saved"):
        save_model(build_model(tiny_card(), seed=0).for_inference(), tmp_path / "m.safetensors")


def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = lively(build_model(tiny_card(lesion_label="glands", figures={"auc": 0.5}), seed=0))
    path = tmp_path / "here" / "m.safetensors"
    digest = save_model(model, path)
    state = torch.random.get_rng_state()
    loaded = load_model(path)
    assert torch.equal(state, torch.random.get_rng_state())
    assert loaded.card == model.card
    assert loaded.sha256 == digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    for expected, got in zip(outputs(model), outputs(loaded), strict=True):
        assert torch.equal(got, expected)
    assert [item.name for item in path.parent.iterdir()] == ["m.safetensors"]


def test_half_precision_rounds_weights_only_and_loads_as_float32(tmp_path: Path) -> None:
    model = lively(build_model(tiny_card(), seed=0))
    save_model(model, tmp_path / "half.safetensors", half=True)
    save_model(model, tmp_path / "full.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size
    weights = dict(model.named_parameters())
    for name, tensor in load_model(tmp_path / "half.safetensors").state_dict().items():
        original = model.state_dict()[name]
        assert tensor.dtype == original.dtype
        assert torch.equal(tensor, original.half().float() if name in weights else original), name


def test_the_demo_model_fits_into_16_mb(tmp_path: Path) -> None:
    save_model(build_model(preset_card("demo", classes=["a", "b"]), seed=0), tmp_path / "demo.safetensors", half=True)
    assert (tmp_path / "demo.safetensors").stat().st_size < 16e6


def test_a_weight_too_large_for_half_precision_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model = build_model(tiny_card(), seed=0)
    with torch.no_grad():
        model.aggregator.head.bias[0] = 1e6  # type: ignore[union-attr, operator, index]
    with pytest.raises(
        ModelFileError, match=r"aggregator.head.bias holds numbers that are not finite in half precision"
    ):
        save_model(model, tmp_path / "m.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    first = save_model(build_model(tiny_card(), seed=0), path)
    with pytest.raises(ModelFileError, match=r"m\.safetensors exists already"):
        save_model(build_model(tiny_card(), seed=1), path)
    assert load_model(path).sha256 == first
    assert save_model(build_model(tiny_card(), seed=1), path, overwrite=True) != first


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: Any) -> None:
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


class TestDamagedFiles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "m.safetensors"
        save_model(build_model(tiny_card(), seed=0), path, half=True)
        return path

    def test_cut_at_any_place_it_is_refused_by_name(self, path: Path) -> None:
        whole = path.read_bytes()
        header = int.from_bytes(whole[:8], "little")
        for length in (0, 5, 8, 9, 8 + header // 2, 8 + header, 8 + header + 1000, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelFileError, match=r"m\.safetensors"):
                load_model(path)

    def test_longer_than_it_was_it_is_refused(self, path: Path) -> None:
        path.write_bytes(path.read_bytes() + b"more")
        with pytest.raises(ModelFileError, match=r"m\.safetensors"):
            load_model(path)

    def test_one_changed_bit_anywhere_is_noticed(self, path: Path) -> None:
        whole = path.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little")
        pick = random.Random(0)
        places = [*range(8), *(pick.randrange(8, header) for _ in range(150)), header]
        places += [pick.randrange(header, len(whole)) for _ in range(50)]
        for place in places:
            changed = bytearray(whole)
            changed[place] ^= 1 << pick.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(ModelFileError, match=r"m\.safetensors"):
                load_model(path)

    def test_an_edited_card_is_noticed(self, path: Path) -> None:
        path.write_bytes(path.read_bytes().replace(b"benign", b"normal"))
        with pytest.raises(ModelFileError, match="changed after it was saved"):
            load_model(path)


def test_files_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"There is no model file .*nowhere"):
        load_model(tmp_path / "nowhere.safetensors")
    with pytest.raises(ModelFileError, match="cannot be read as a model file"):
        load_model(tmp_path)
    save_file({"x": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match=r"other\.safetensors is a safetensors file, but not one of napari-msamil"):
        load_model(tmp_path / "other.safetensors")
    contents = {"a.png": b"\x89PNG\r\n\x1a\n" + bytes(50), "empty": b"", "text": b"hello, I am a text"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelFileError, match=f"{name} is not a model file of napari-msamil"):
            load_model(tmp_path / name)
    (tmp_path / "deep").write_bytes((5000).to_bytes(8, "little") + b'{"a":' + b"[" * 4995)
    with pytest.raises(ModelFileError, match="deep was damaged: its header is not readable"):
        load_model(tmp_path / "deep")
    torch.save({"x": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(ModelFileError, match=r"weights\.pt is not a model file"):
        load_model(tmp_path / "weights.pt")


def test_weights_that_do_not_fit_their_card_are_refused_naming_them(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(build_model(tiny_card(), seed=0), path)
    card, tensors, _ = read_model_file(path)
    tensors["stray"] = torch.zeros(1)
    tensors["aggregator.head.bias"] = torch.zeros(7)
    del tensors["extractor.class_token"]
    write_model_file(path, card, tensors)
    with pytest.raises(
        ModelFileError,
        match=r"1 missing: extractor.class_token; 1 unknown: stray; 1 of another shape: aggregator.head.bias",
    ):
        load_model(path)


def test_a_newer_file_says_that_the_program_is_too_old(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(build_model(tiny_card(), seed=0), path)
    card, tensors, _ = read_model_file(path)
    write_model_file(path, json.dumps(json.loads(card) | {"format": 99}), tensors)
    with pytest.raises(ModelFileError, match=r"format version 99, .* Update napari-msamil"):
        load_model(path)


def test_an_encoder_that_this_timm_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(build_model(tiny_card(), seed=0), path)
    card, tensors, _ = read_model_file(path)
    write_model_file(path, card.replace('"encoder":"test_efficientnet"', '"encoder":"net_of_the_future"'), tensors)
    with pytest.raises(ModelFileError, match=r"cannot be built .*net_of_the_future"):
        load_model(path)


def test_the_bundled_model_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert load_model("demo").sha256 == load_model(demo_model_path()).sha256
