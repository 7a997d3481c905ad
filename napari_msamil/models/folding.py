"""Batch normalisation folded into the convolutions before it: the same function with one pass over memory less."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_TOLERANCE = 1e-3  # relative; folding is exact but for rounding


def fold_batchnorm(net: nn.Module, example: Tensor) -> None:
    """Folds each BatchNorm into the convolution that it directly follows, in place; the net ends in evaluation mode.

    Pairs are found by running the example: a BatchNorm whose input is the very tensor that a convolution gave.

    Args:
        net: Any net; it can no longer be trained.
        example: An input it accepts, as small as possible.

    Raises:
        RuntimeError: The folded net gives another output for the example.
    """
    net.eval()
    with torch.no_grad():
        before = net(example)
        for conv, norm_name in _pairs(net, example):
            norm = net.get_submodule(norm_name)
            assert isinstance(norm, nn.BatchNorm2d)
            _fold(conv, norm)
            # timm's BatchNorm carries its activation, which must stay
            rest = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
            _replace(net, norm_name, rest[0] if len(rest) == 1 else nn.Sequential(*rest))
        after = net(example)
    if not torch.allclose(before, after, rtol=_TOLERANCE, atol=_TOLERANCE * float(before.abs().max())):
        raise RuntimeError(f"folding BatchNorm changed the output of {type(net).__name__}: please report this net")


def _pairs(net: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, str]]:
    """Convolutions, each with the name of the BatchNorm that reads its output."""
    made_by: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept so that its id stays its own
    found: list[tuple[nn.Conv2d, str]] = []
    calls: dict[nn.Module, int] = {}
    handles = []

    def after_conv(conv: nn.Module, _args: object, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        calls[conv] = calls.get(conv, 0) + 1
        made_by[id(output)] = (conv, output)

    def before_norm(name: str, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls[norm] = calls.get(norm, 0) + 1
        if id(args[0]) in made_by:
            found.append((made_by[id(args[0])][0], name))

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(
                module.register_forward_pre_hook(lambda norm, args, name=name: before_norm(name, norm, args))
            )
    net(example)
    for handle in handles:
        handle.remove()
    return [(conv, name) for conv, name in found if calls[conv] == 1 and calls[net.get_submodule(name)] == 1]


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)
