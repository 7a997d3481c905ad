"""The two-pass gradient equals the gradient of the full graph."""

import pytest
import torch
from torch import Tensor, nn

from napari_msamil.training.two_pass import freeze_batch_norm, two_pass_backward


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 16), nn.Dropout(0.2),
    ).double()  # fmt: skip


class Head(nn.Module):
    """Attention over the bag, so that every feature's gradient depends on all others."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.out = nn.Linear(16, 1).double(), nn.Linear(16, 2).double()

    def forward(self, features: Tensor) -> Tensor:
        pooled = (self.score(features).softmax(0) * features.tanh()).sum(0)
        return nn.functional.cross_entropy(self.out(pooled)[None], torch.tensor([1]))


def gradients(*modules: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for module in modules for p in module.parameters() if p.grad is not None]


def trained_statistics() -> tuple[nn.Sequential, Head, list[Tensor]]:
    torch.manual_seed(1)
    extractor, head = network(), Head()
    bag = torch.randn(11, 3, 9, 9, dtype=torch.float64)
    extractor(bag)  # moves the running statistics away from 0 and 1
    extractor.train()
    freeze_batch_norm(extractor)
    return extractor, head, list(torch.split(bag, 4))


def test_gradient_equals_the_full_graph_with_dropout_on() -> None:
    extractor, head, chunks = trained_statistics()
    torch.manual_seed(7)
    loss = two_pass_backward(extractor, lambda: chunks, head, modules=[extractor])
    cached = gradients(extractor, head)
    extractor.zero_grad()
    head.zero_grad()
    torch.manual_seed(7)
    full = head(torch.cat([extractor(chunk) for chunk in chunks]))
    full.backward()
    whole = gradients(extractor, head)
    torch.testing.assert_close(loss, full.detach(), rtol=1e-12, atol=0)
    assert len(cached) == len(whole) == 10
    for mine, theirs in zip(cached, whole, strict=True):
        assert (mine - theirs).norm() <= 1e-10 * theirs.norm()


def test_gradient_does_not_depend_on_the_chunks() -> None:
    extractor, head, chunks = trained_statistics()
    extractor.eval()
    results = []
    for parts in (chunks, [torch.cat(chunks)]):
        extractor.zero_grad()
        head.zero_grad()
        two_pass_backward(extractor, lambda parts=parts: parts, head, modules=[extractor])
        results.append(gradients(extractor, head))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_running_statistics_stay_as_they_were() -> None:
    extractor, head, chunks = trained_statistics()
    before = [buffer.clone() for buffer in extractor.buffers()]
    two_pass_backward(extractor, lambda: chunks, head, modules=[extractor])
    assert all(torch.equal(a, b) for a, b in zip(before, extractor.buffers(), strict=True))


def test_training_batch_norm_is_refused_by_name() -> None:
    extractor, head, chunks = trained_statistics()
    extractor.train()
    with pytest.raises(ValueError, match="'1' is in training mode"):
        two_pass_backward(extractor, lambda: chunks, head, modules=[extractor])


def test_an_empty_bag_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one chunk"):
        two_pass_backward(network().eval(), list, Head(), modules=[])
