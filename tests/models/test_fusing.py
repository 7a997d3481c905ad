"""Fused nets give the same numbers, and nothing is fused where that cannot be."""

from __future__ import annotations

import platform

import pytest
import timm
import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from napari_msamil.models import fusing
from napari_msamil.models.card import preset_card
from napari_msamil.models.folding import fold_batchnorm
from napari_msamil.models.fusing import ConvActivation, InPlaceGate, can_fuse, fuse_for_cpu
from napari_msamil.models.model import build_model

needs_fusing = pytest.mark.skipif(not can_fuse(torch.float32), reason="this CPU or build of torch cannot fuse")


def picture(batch: int = 1, side: int = 64) -> Tensor:
    random_state = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, side, side, generator=random_state).to(memory_format=torch.channels_last)


def count(net: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in net.modules())


@needs_fusing
@pytest.mark.parametrize("preset", ["default", "demo"])
def test_the_shipped_extractors_are_fused_throughout_and_give_the_same(preset: str) -> None:
    model = build_model(preset_card(preset, classes=["a", "b"], patch_px=64), seed=0)
    net = model.for_inference().extractor
    with torch.no_grad():
        expected, got = model.extractor.encoder(picture(3)), net.encoder(picture(3))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert count(net.encoder, InPlaceGate) == count(net.encoder, SqueezeExcite) > 5
    assert count(net.encoder, ConvActivation) > 10
    assert not any(count(net.encoder, kind) for kind in (nn.SiLU, nn.Hardswish, nn.ReLU))


@needs_fusing
def test_an_activation_used_twice_and_other_convolutions_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.shared = nn.ReLU()
            self.same, self.own = nn.Conv2d(4, 4, 3, padding="same"), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.own(self.same(self.shared(self.second(self.shared(self.first(x))))))
            return result

    net = Net().requires_grad_(False)
    fuse_for_cpu(net, picture())
    assert count(net, ConvActivation) == 0


def test_a_net_of_another_kind_is_left_as_it_is() -> None:
    net = timm.create_model("resnet18", num_classes=0, global_pool="").requires_grad_(False).eval()
    expected = net(picture())
    fuse_for_cpu(net, picture())
    torch.testing.assert_close(net(picture()), expected, rtol=1e-4, atol=1e-4)


@needs_fusing
@pytest.mark.parametrize("encoder", ["resnet18", "resnet26d"])
def test_a_shortcut_added_in_place_stands_between_convolution_and_activation(encoder: str) -> None:
    """timm's residual blocks do `x += shortcut`: what the activation reads is not what the convolution gave."""
    torch.manual_seed(0)
    net = timm.create_model(encoder, num_classes=0, global_pool="").requires_grad_(False).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.normal_(0, 1)  # as after training; timm begins with zeros, where nothing would be noticed
    expected = net(picture())
    fold_batchnorm(net, picture())
    fuse_for_cpu(net, picture())
    torch.testing.assert_close(net(picture()), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert count(net, ConvActivation) > 5


def test_a_machine_that_cannot_fuse_computes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(preset_card("demo", classes=["a", "b"], patch_px=64), seed=0)
    fused = model.for_inference()
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    plain = model.for_inference()
    assert count(plain, ConvActivation) == count(plain, InPlaceGate) == 0
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    torch.testing.assert_close(fused.embed(pixels), plain.embed(pixels), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused.segment(pixels), plain.segment(pixels), rtol=1e-4, atol=1e-4)


def test_a_build_of_torch_without_the_operation_cannot_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise AttributeError("no _convolution_pointwise")

    monkeypatch.setattr(fusing.ConvActivation, "forward", missing)
    assert not can_fuse(torch.float32)


def test_asking_whether_it_can_draws_no_random_number() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    can_fuse(torch.float32)
    torch.testing.assert_close(torch.rand(2), expected)
