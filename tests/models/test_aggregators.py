"""The contract that every multiple-instance method keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from napari_msamil.models.aggregators import AGGREGATORS, aggregator_class
from napari_msamil.models.aggregators.base import Aggregator
from napari_msamil.models.bag import Bag
from napari_msamil.models.card import preset_card
from napari_msamil.models.configs import MsaMilConfig
from napari_msamil.models.model import build_model, load_model, save_model

SMALL = {"msamil": MsaMilConfig(dim=32, heads=4, rank=4, hidden=64)}


def make_net(method: str) -> Aggregator:
    torch.manual_seed(0)
    return aggregator_class(method)(SMALL[method], classes=3, scales=3).eval()


def make_bag(n: int = 40, *, seed: int = 0) -> Bag:
    random = torch.Generator().manual_seed(seed)
    cell = torch.randperm(400, generator=random)[:n]
    return Bag(
        features=torch.randn(n, 32, generator=random),
        coords=torch.stack((cell // 20, cell % 20), 1) * 448,
        scale=torch.randint(0, 3, (n,), generator=random),
        slide_size=(9000, 9000),
        footprint=torch.tensor([[224.0, 224.0], [448.0, 448.0], [896.0, 896.0]]).double(),
    )


def attention_of(net: Aggregator, bag: Bag) -> Tensor:
    attention = net(bag).attention
    assert attention is not None
    return attention


def test_every_method_is_tested_here() -> None:
    assert SMALL.keys() == AGGREGATORS.keys()


@pytest.mark.parametrize("method", AGGREGATORS)
class TestEveryMethod:
    def test_logits_and_attention_are_finite_and_attention_sums_to_one(self, method: str) -> None:
        for n in (1, 2, 40, 300):
            output = make_net(method)(make_bag(n))
            assert output.logits.shape == (3,)
            assert torch.isfinite(output.logits).all()
            assert output.attention is not None
            assert output.attention.shape == (n,)
            assert float(output.attention.min()) >= 0
            assert float(output.attention.sum()) == pytest.approx(1, abs=1e-5)
            assert not output.attention.requires_grad

    def test_attention_is_left_out_on_request_and_changes_no_logit(self, method: str) -> None:
        net, bag = make_net(method), make_bag()
        without = net(bag, attention=False)
        assert without.attention is None
        assert torch.equal(without.logits, net(bag).logits)

    def test_gradient_reaches_every_weight_and_every_instance(self, method: str) -> None:
        net, bag = make_net(method), make_bag()
        features = bag.features.clone().requires_grad_()
        logits = net(Bag(features, bag.coords, bag.scale, bag.slide_size, bag.footprint)).logits
        torch.nn.functional.cross_entropy(logits[None], torch.tensor([1])).backward()
        without = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]
        assert without == []
        assert features.grad is not None
        assert bool(features.grad.abs().sum(1).all())

    def test_row_order_changes_no_logit_and_attention_follows_it(self, method: str) -> None:
        net, bag = make_net(method), make_bag()
        shuffled = torch.randperm(len(bag), generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            straight, mixed = net(bag), net(bag.take(shuffled))
        torch.testing.assert_close(mixed.logits, straight.logits, rtol=0, atol=1e-6)
        assert straight.attention is not None
        torch.testing.assert_close(mixed.attention, straight.attention[shuffled], rtol=0, atol=1e-6)

    def test_same_bag_gives_the_same_bits(self, method: str) -> None:
        net, bag = make_net(method), make_bag()
        with torch.inference_mode():
            assert torch.equal(net(bag).logits, net(bag).logits)
            assert torch.equal(attention_of(net, bag), attention_of(net, bag))

    def test_attention_and_logits_depend_on_the_features(self, method: str) -> None:
        net = make_net(method)
        assert not torch.allclose(net(make_bag(seed=1)).logits, net(make_bag(seed=2)).logits)

    def test_saved_and_loaded_it_gives_the_same_logits(self, method: str, tmp_path: Path) -> None:
        extractor = preset_card("demo", classes=["a", "b", "c"]).extractor
        card = preset_card(
            "demo",
            classes=["a", "b", "c"],
            aggregator=SMALL[method],
            extractor=extractor.model_copy(update={"out_dim": 32}),
        )
        model = build_model(card, seed=5)
        save_model(model, tmp_path / "model.safetensors")
        loaded = load_model(tmp_path / "model.safetensors")
        bag = make_bag()
        with torch.inference_mode():
            assert torch.equal(loaded.aggregate(bag).logits, model.aggregate(bag).logits)


def test_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no method 'median': choose one of .*msamil"):
        aggregator_class("median")


def test_names_settings_and_card_are_known_without_torch() -> None:
    program = (
        "import sys, napari_msamil.models, napari_msamil.models.aggregators, napari_msamil.models.card as c;"
        "c.preset_card('demo', classes=['a', 'b']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


LONG_BAG = """
import resource, sys
import torch
from napari_msamil.models.aggregators.msamil import MsaMil
from napari_msamil.models.bag import Bag
from napari_msamil.models.card import preset_card

def peak():
    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value if sys.platform == "darwin" else value * 1024

n = int(sys.argv[1])
net = MsaMil(preset_card(sys.argv[2], classes=list("abcde")).aggregator, classes=5, scales=3).eval()
before = peak()
cell = torch.randperm(n)
dim = net.config.dim
bag = Bag(torch.randn(n, dim), torch.stack((cell // 250, cell % 250), 1) * 512, cell % 3, (200_000, 200_000))
with torch.inference_mode():
    output = net(bag)
assert torch.isfinite(output.logits).all()
assert abs(float(output.attention.sum()) - 1) < 1e-4
print(peak() - before)
"""


def growth(instances: int, preset: str) -> int:
    """Peak memory in bytes that a bag of so many instances needs beyond the program and its weights."""
    pytest.importorskip("resource")
    run = [sys.executable, "-c", LONG_BAG, str(instances), preset]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def test_memory_grows_with_the_bag_not_with_its_square() -> None:
    assert growth(12_000, "demo") < 200e6  # one 12,000 x 12,000 matrix would take 576 MB


@pytest.mark.slow
def test_a_bag_of_50_000_instances_runs_within_2_gb() -> None:
    assert growth(50_000, "default") < 2e9
