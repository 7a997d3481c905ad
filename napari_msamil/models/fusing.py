"""Fewer passes over memory on a CPU: activations inside the convolutions, channel gates in place.

The maps of an EfficientNet at 512 px do not fit a CPU's caches, so each pass over one costs as much as the arithmetic.
"""

from __future__ import annotations

import platform

import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from napari_msamil.models.folding import check_same, followers

_NAMES = {nn.SiLU: "swish", nn.Hardswish: "hardswish", nn.ReLU: "relu"}  # of activations, in oneDNN


def fuse_for_cpu(net: nn.Module, example: Tensor) -> None:
    """Fuses what follows each other in a net, in place, where this CPU can; the net ends in evaluation mode.

    Args:
        net: Any net in float32, its BatchNorm folded; it can no longer be trained.
        example: An input it accepts, as small as possible.

    Raises:
        RuntimeError: The fused net gives another output for the example.
    """
    net.eval()
    with torch.no_grad():
        before = net(example)
        for gate_name, gate in [found for found in net.named_modules() if isinstance(found[1], SqueezeExcite)]:
            net.set_submodule(gate_name, InPlaceGate(gate))
        for kind, name in _NAMES.items():
            for conv, activation in followers(net, example, nn.Conv2d, kind):
                _fuse_activation(net, conv, activation, name)
        after = net(example)
    check_same(net, before, after)


def can_fuse(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes convolution and activation at once here; tried, since builds of torch differ."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    conv = nn.Conv2d(8, 8, 1, dtype=dtype, device="meta")  # draws no random number
    conv = conv.to_empty(device="cpu").requires_grad_(False)
    try:
        ConvActivation(conv, "swish")(torch.ones(1, 8, 4, 4, dtype=dtype))
    except (AttributeError, RuntimeError):  # this build lacks the operation, or this CPU the type
        return False
    return True


class ConvActivation(nn.Module):
    """`activation(conv(x))`, the activation applied while the output is in the cache.

    The operation is the one that torch.compile uses on a CPU; it needs no compiler itself.
    """

    def __init__(self, conv: nn.Conv2d, activation: str) -> None:
        super().__init__()
        self.conv = conv
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, D, h', w')."""
        c = self.conv
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, c.weight, c.bias, c.padding, c.stride, c.dilation, c.groups, self.activation, [], ""
        )
        return result


class InPlaceGate(nn.Module):
    """Squeeze-and-excitation that scales the map itself instead of a copy."""

    def __init__(self, gate: SqueezeExcite) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w), overwritten."""
        part = self.gate
        return x.mul_(part.gate(part.conv_expand(part.act1(part.conv_reduce(x.mean((2, 3), keepdim=True))))))


def _fuse_activation(net: nn.Module, conv_name: str, activation_name: str, activation: str) -> None:
    conv = net.get_submodule(conv_name)
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return
    net.set_submodule(conv_name, ConvActivation(conv, activation))
    net.set_submodule(activation_name, nn.Identity())
