"""MsaMIL-Net's aggregator against the paper's equations written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from napari_msamil.models.aggregators import msamil
from napari_msamil.models.aggregators.msamil import MsaMil
from napari_msamil.models.aggregators.order import place_code, row_order
from napari_msamil.models.bag import Bag, BagError
from napari_msamil.models.card import preset_card
from napari_msamil.models.configs import MsaMilConfig
from napari_msamil.models.positions import sinusoid

SIZE = (40_000, 30_000)
FOOTPRINT = torch.tensor([[512.0, 512.0], [1024.0, 1024.0], [2048.0, 2048.0]], dtype=torch.float64)


def make_bag(n: int = 90, dim: int = 512, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Bag:
    """Patches of three scales at distinct places of their grids, in random order."""
    random = torch.Generator().manual_seed(seed)
    scale = torch.randint(0, 3, (n,), generator=random)
    cell = torch.randperm(14 * 14, generator=random)[:n]
    index = torch.stack((cell // 14, cell % 14), 1)
    coords = (index * FOOTPRINT[scale]).to(torch.int64)
    features = torch.randn(n, dim, generator=random, dtype=torch.float64).to(dtype)
    return Bag(features, coords, scale, SIZE, FOOTPRINT)


def make_net(config: MsaMilConfig, *, dtype: torch.dtype = torch.float64) -> MsaMil:
    torch.manual_seed(1)
    net = MsaMil(config, classes=5, scales=3).to(dtype).eval()
    with torch.no_grad():  # scores of some size, so that attention is far from uniform
        for layer in net.layers:
            layer.q.weight *= 4
            layer.k.weight *= 4
        net.queries.z *= 50
        net.queries.k.weight *= 4 if config.uses_residual else 32
        net.queries.gate.weight *= 10
    return net


def by_the_book(net: MsaMil, bag: Bag) -> tuple[Tensor, Tensor]:
    """Logits and attention by plain einsums over whole matrices, one instance list after the other."""
    config, weights = net.config, dict(net.named_parameters())
    rows = sorted(range(len(bag)), key=lambda n: sort_key(bag, n, config.order))
    T, xy, scale = bag.features[rows], bag.coords[rows].double(), bag.scale[rows]
    if config.coords == "slide":
        xy = xy / torch.tensor([40_000.0, 30_000.0], dtype=torch.float64)
    elif config.coords == "bbox":
        xy = (xy - xy.min(0).values) / (xy.max(0).values - xy.min(0).values)
    elif config.coords == "grid":
        xy = xy / 512
    code = torch.eye(3, dtype=torch.float64)[scale] if config.scale_code == "onehot" else scale[:, None].double()
    place = torch.cat((xy, code), 1).to(T.dtype)
    T = T + torch.einsum("nc,dc->nd", place, weights["place.weight"]) + weights["place.bias"]
    if config.pos == "sin":
        E = torch.empty(len(T), config.dim, dtype=torch.float64)
        for p in range(len(T)):
            for i in range(config.dim // 2):
                angle = p / 10000 ** (2 * i / config.dim)
                E[p, 2 * i], E[p, 2 * i + 1] = math.sin(angle), math.cos(angle)
        T = T + E.to(T.dtype)
    mixers = []
    for depth in range(config.depth):
        T, A = one_layer(
            {n.split(".", 2)[2]: w for n, w in weights.items() if n.startswith(f"layers.{depth}.")}, T, net
        )
        mixers.append(A.mean(0))
    logits, a = read_out(weights, T, config)
    if config.attention == "rollout":
        for A in reversed(mixers):
            a = (a + a @ A) / 2 if config.uses_residual else a @ A
    attention = torch.empty_like(a)
    attention[rows] = a
    return logits, attention


def sort_key(bag: Bag, row: int, order: str) -> tuple[float, ...]:
    (x, y), scale = bag.coords[row].tolist(), int(bag.scale[row])
    if order == "xy":
        return (x, y, scale)
    if order == "yx":
        return (y, x, scale)
    path: list[float] = []
    for level in (2, 1, 0):
        side = 512 * 2**level
        path += [x // side, y // side] if level >= scale else [math.inf, math.inf]
    return tuple(path)


def one_layer(weights: dict[str, Tensor], T: Tensor, net: MsaMil) -> tuple[Tensor, Tensor]:
    config = net.config
    Q = torch.einsum("nd,hrd->hnr", T, weights["q.weight"].view(config.heads, -1, config.dim))
    K = torch.einsum("nd,hrd->hnr", T, weights["k.weight"].view(config.heads, -1, config.dim))
    V = torch.einsum("nd,hvd->hnv", T, weights["v.weight"].view(config.heads, -1, config.dim))
    scores = torch.einsum("hnr,hmr->hnm", Q, K) / math.sqrt(config.rank)
    A = scores.softmax(2)
    AV = torch.einsum("hnm,hmv->nhv", A, V).reshape(T.shape)
    if config.out_proj:
        AV = torch.einsum("nd,ed->ne", AV, weights["out.weight"]) + weights["out.bias"]
    U = T + AV if config.uses_residual else AV
    centred = U - U.mean(1, keepdim=True)
    LN = (
        centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * weights["norm.weight"] + weights["norm.bias"]
    )
    H = torch.einsum("nd,fd->nf", LN, weights["mlp.0.weight"]) + weights["mlp.0.bias"]
    H = H * (1 + torch.erf(H / math.sqrt(2))) / 2
    out = torch.einsum("nf,df->nd", H, weights["mlp.3.weight"]) + weights["mlp.3.bias"]
    return (U + out if config.uses_residual else out), A


def read_out(weights: dict[str, Tensor], T: Tensor, config: MsaMilConfig) -> tuple[Tensor, Tensor]:
    heads, width = config.dmq_heads, config.dim // config.dmq_heads
    Q = torch.einsum("id,hwd->hiw", weights["queries.z"], weights["queries.q.weight"].view(heads, width, -1))
    K = torch.einsum("nd,hwd->hnw", T, weights["queries.k.weight"].view(heads, width, -1))
    V = torch.einsum("nd,hwd->hnw", T, weights["queries.v.weight"].view(heads, width, -1))
    scores = torch.einsum("hiw,hnw->hin", Q, K) / math.sqrt(width)
    A = scores.softmax(2)
    Z = torch.einsum("hin,hnw->ihw", A, V).reshape(-1, config.dim)
    g = torch.einsum("id,gd->ig", Z, weights["queries.gate.weight"]) + weights["queries.gate.bias"]
    g = g.exp() / g.exp().sum(0) if config.gate == "softmax" else 1 / (1 + (-g).exp())
    if config.gate == "sigmoid_norm":
        g = g / g.sum(0)
    F = (g * Z).sum(0)
    if config.head == "mlp":
        H = weights["head.0.weight"] @ F + weights["head.0.bias"]
        logits = weights["head.2.weight"] @ (H * (1 + torch.erf(H / math.sqrt(2))) / 2) + weights["head.2.bias"]
    else:
        logits = weights["head.weight"] @ F + weights["head.bias"]
    share = g.mean(1)
    return logits, torch.einsum("i,in->n", share, A.mean(0)) / share.sum()


SWITCHES = {
    "default": {},
    "literal": {"heads": 1, "rank": 64},
    "query attention": {"attention": "query"},
    "yx, one-hot, bounding box": {"order": "yx", "scale_code": "onehot", "coords": "bbox"},
    "quadtree, grid": {"order": "quadtree_post", "coords": "grid"},
    "no position, softmax gate": {"pos": "none", "gate": "softmax"},
    "gate per channel": {"gate_dim": 512, "gate": "sigmoid_norm", "dmq_heads": 4},
    "sigmoid gate per channel": {"gate_dim": 512},
    "residual": {"residual": True, "out_proj": True},
    "two layers": {"depth": 2, "head": "mlp"},
    "rank above width": {"heads": 64, "rank": 16},
}


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_equals_the_papers_equations_written_out(name: str, dtype: torch.dtype) -> None:
    net = make_net(MsaMilConfig.model_validate(SWITCHES[name]), dtype=dtype)
    bag = make_bag(dtype=dtype)
    with torch.inference_mode():
        output = net(bag)
        logits, attention = by_the_book(net.double(), Bag(bag.features.double(), *_rest(bag)))
    assert output.attention is not None
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(output.logits.double(), logits, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(output.attention.double(), attention, rtol=0, atol=tolerance)
    assert float(attention.max()) > 2 / len(bag), "attention this even would prove little"


def _rest(bag: Bag) -> tuple[Tensor, Tensor, tuple[int, int], Tensor | None]:
    return bag.coords, bag.scale, bag.slide_size, bag.footprint


def test_raw_coordinates_are_level_0_pixels() -> None:
    code = place_code(make_bag(), units="raw", scale_code="ordinal", scales=3)
    assert torch.equal(code, torch.cat((make_bag().coords, make_bag().scale[:, None]), 1).double())


@pytest.mark.parametrize(("preset", "count"), [("literal", 3_225_094), ("default", 3_290_630)])
def test_parameter_counts_are_those_of_the_paper(preset: str, count: int) -> None:
    config = preset_card(preset, classes=list("abcde")).aggregator
    assert sum(weight.numel() for weight in MsaMil(config, classes=5, scales=3).parameters()) == count


def test_pieces_of_a_long_bag_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, bag = make_net(MsaMilConfig(residual=True)), make_bag()
    with torch.inference_mode():
        whole = net(bag)
        monkeypatch.setattr(msamil, "_ROWS_AT_ONCE", 7)
        monkeypatch.setattr(msamil, "_SCORES_AT_ONCE", {True: 7 * len(bag), False: 1})
        pieces = net(bag)
    torch.testing.assert_close(pieces.logits, whole.logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pieces.attention, whole.attention, rtol=1e-12, atol=1e-12)


def test_attention_stays_exact_when_all_gates_are_shut() -> None:
    net = make_net(MsaMilConfig(), dtype=torch.float32)
    with torch.no_grad():
        net.queries.gate.bias -= 1000
    attention = net(make_bag(dtype=torch.float32)).attention
    assert attention is not None
    assert math.isclose(float(attention.sum()), 1, rel_tol=1e-5)


def test_quadtree_order_puts_four_children_before_their_parent() -> None:
    coords = torch.tensor([[0, 0], [512, 512], [0, 512], [512, 0], [0, 0], [1024, 0], [0, 0]])
    scale = torch.tensor([1, 0, 0, 0, 0, 0, 2])
    bag = Bag(torch.zeros(7, 4), coords, scale, SIZE, FOOTPRINT)
    assert row_order(bag, "quadtree_post").tolist() == [4, 2, 3, 1, 0, 5, 6]


def test_xy_order_breaks_ties_by_scale_finest_first() -> None:
    coords = torch.tensor([[0, 0], [0, 0], [0, 512], [512, 0], [0, 0]])
    bag = Bag(torch.zeros(5, 4), coords, torch.tensor([2, 0, 0, 0, 1]), SIZE)
    assert row_order(bag, "xy").tolist() == [1, 4, 0, 2, 3]
    assert row_order(bag, "yx").tolist() == [1, 4, 0, 3, 2]


def test_grid_coordinates_without_footprint_are_refused() -> None:
    bag = make_bag()
    with pytest.raises(BagError, match="no footprint"):
        make_net(MsaMilConfig(coords="grid"))(Bag(bag.features, bag.coords, bag.scale, SIZE))


def test_scales_beyond_the_models_own_are_refused() -> None:
    with pytest.raises(BagError, match="scales 0 to 2, this model knows 0 to 1"):
        MsaMil(MsaMilConfig(), classes=2, scales=2)(make_bag(dtype=torch.float32))


def test_position_code_is_exact_far_out() -> None:
    far = sinusoid(torch.tensor([49_999]), 512)[0].double()
    angle = 49_999 / 10000 ** (2 * torch.arange(256, dtype=torch.float64) / 512)
    torch.testing.assert_close(far[0::2], angle.sin(), rtol=0, atol=1e-7)
    torch.testing.assert_close(far[1::2], angle.cos(), rtol=0, atol=1e-7)
