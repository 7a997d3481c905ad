"""Batch normalisation folded into the convolutions before it: the same function with one pass over memory less."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_TOLERANCE = 1e-3  # relative; exact but for rounding


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
        for conv_name, norm_name in followers(net, example, nn.Conv2d, nn.BatchNorm2d):
            conv, norm = net.get_submodule(conv_name), net.get_submodule(norm_name)
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            _fold(conv, norm)
            # timm's BatchNorm carries its activation, which must stay
            rest = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
            net.set_submodule(norm_name, rest[0] if len(rest) == 1 else nn.Sequential(*rest))
        after = net(example)
    check_same(net, before, after)


def followers(net: nn.Module, example: Tensor, first: type[nn.Module], then: type[nn.Module]) -> list[tuple[str, str]]:
    """Names of pairs of modules, where the second reads the very tensor that the first gave, and each runs once.

    A tensor that was changed in place in between, as by `x += shortcut`, is no longer the one that was given.
    """
    made_by: dict[int, tuple[str, int, Tensor]] = {}  # the tensor is kept so that its id stays its own
    found: list[tuple[str, str]] = []
    calls: Counter[str] = Counter()

    def before(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls[name] += 1
        if isinstance(module, then) and id(args[0]) in made_by:
            maker, version, _ = made_by[id(args[0])]
            if args[0]._version == version:
                found.append((maker, name))

    def after(name: str, module: nn.Module, output: Tensor) -> None:
        if isinstance(module, first):
            made_by[id(output)] = (name, output._version, output)

    handles = []
    for name, module in net.named_modules():
        if isinstance(module, (first, then)):
            handles.append(module.register_forward_pre_hook(lambda part, args, name=name: before(name, part, args)))
            handles.append(module.register_forward_hook(lambda part, _args, out, name=name: after(name, part, out)))
    net(example)
    for handle in handles:
        handle.remove()
    return [(one, other) for one, other in found if calls[one] == calls[other] == 1]


def check_same(net: nn.Module, before: Tensor, after: Tensor) -> None:
    """Raises RuntimeError unless a rewritten net gives what it gave before, but for rounding."""
    if not torch.allclose(before, after, rtol=_TOLERANCE, atol=_TOLERANCE * float(before.abs().max())):
        raise RuntimeError(f"rewriting {type(net).__name__} for inference changed its output")


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
