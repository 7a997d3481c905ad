"""The two-pass gradient cache: the exact gradient of a bag of any size, in the memory of one chunk.

Pass 1 extracts features without a graph. The head runs forward and backward on them and leaves one gradient per
feature. Pass 2 extracts again, chunk by chunk and with a graph, and back-propagates those gradients. Dropout draws the
same numbers in both passes, because the random state of every chunk is kept and put back.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_batch_norm(module: nn.Module) -> None:
    """Make batch norm use its running statistics and leave them alone; call again after every ``module.train()``."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()


def two_pass_backward(
    extract: Callable[[Tensor], Tensor],
    chunks: Callable[[], Iterable[Tensor]],
    head: Callable[[Tensor], Tensor],
    *,
    modules: Sequence[nn.Module],
) -> Tensor:
    """Add the gradients of ``head(extract(all chunks))`` to all parameters that took part.

    Equals the full graph's gradient as long as every item is extracted alone: dropout may be on, batch norm must be
    frozen.

    Args:
        extract: From a chunk (n, ...) to features (n, D).
        chunks: Gives the bag in pieces, once for each pass, the same both times; one piece at a time is held with its
            graph.
        head: From all features (N, D) to a scalar loss.
        modules: What ``extract`` computes with.

    Returns:
        The loss, detached.

    Raises:
        ValueError: If the bag is empty, or a batch norm layer is in training mode: its statistics would then depend on
            the chunks and the gradient be wrong.

    References:
        MsaMIL-Net, arXiv 2503.08581, section 3.4 trains end to end; the scheme is that of Gao et al., arXiv 2101.06983,
        and Andersson, arXiv 2203.03981.
    """
    for module in modules:
        for name, part in module.named_modules():
            if isinstance(part, _BatchNorm) and part.training:
                raise ValueError(f"Batch norm layer {name!r} is in training mode; call freeze_batch_norm first.")
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks():
            states.append(_random_state(chunk.device))
            parts.append(extract(chunk))
    if not parts:
        raise ValueError("An empty bag has no gradient; give at least one chunk of patches.")
    features = torch.cat(parts).detach().requires_grad_()  # (N, D), a leaf
    loss = head(features)
    loss.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    after = _random_state(features.device)
    gradients = torch.split(features.grad, [len(part) for part in parts])
    for chunk, state, gradient in zip(chunks(), states, gradients, strict=True):
        _restore(state, chunk.device)
        extract(chunk).backward(gradient)  # type: ignore[no-untyped-call]
    _restore(after, features.device)
    return loss.detach()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    own = None
    if device.type == "cuda":
        own = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        own = torch.mps.get_rng_state()
    return torch.get_rng_state(), own


def _restore(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None and device.type == "mps":
        torch.mps.set_rng_state(state[1])
    elif state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
