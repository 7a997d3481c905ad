"""MsaMIL-Net's aggregator: low-rank self-attention over all patches of all scales, then ten learned queries (IAAM).

References:
    Wen, Wen, Fang, "MsaMIL-Net", arXiv 2503.08581 (2025), section 3.3; letters in comments are the paper's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_msamil.models.aggregators.base import Aggregator, AggregatorOutput
from napari_msamil.models.aggregators.order import place_code, row_order
from napari_msamil.models.bag import Bag
from napari_msamil.models.configs import MsaMilConfig
from napari_msamil.models.positions import sinusoid

_ROWS_AT_ONCE = 4096  # rows per piece of a row-wise function on long bags: 32 MiB of a 2048 wide hidden layer
# Attention scores held at once while it is rolled out: on a CPU 4 MiB, which its cache holds; a GPU wants few launches.
_SCORES_AT_ONCE = {True: 2**20, False: 2**26}


class MsaMil(Aggregator):
    """MHE and DMQ of MsaMIL-Net, every open question of the text a switch of its settings."""

    def __init__(self, config: MsaMilConfig, *, classes: int, scales: int) -> None:
        super().__init__(config, classes=classes, scales=scales)
        dim = config.dim
        self.config = config
        self.scales = scales
        self.place = nn.Linear(3 if config.scale_code == "ordinal" else 2 + scales, dim)
        self.layers = nn.ModuleList(LowRankAttention(config) for _ in range(config.depth))
        self.queries = LearnedQueries(config)
        self.head = (
            nn.Linear(dim, classes)
            if config.head == "linear"
            else nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, classes))
        )

    def forward(self, bag: Bag, *, attention: bool = True) -> AggregatorOutput:
        """Classifies a bag; see `Aggregator.forward`."""
        order = row_order(bag, self.config.order)
        t = self.place(place_code(bag, units=self.config.coords, scale_code=self.config.scale_code, scales=self.scales))
        t = (t + bag.features)[order]  # (N, D), T + FC([x, y, scale])
        if self.config.pos == "sin":
            t = t + sinusoid(torch.arange(len(t), device=t.device), t.shape[1], dtype=t.dtype)
        steps = []
        for layer in self.layers:
            t, q, k = layer(t)
            steps.append((q.detach(), k.detach()))
        vector, read = self.queries(t)
        logits = self.head(vector)  # (C,)
        if not attention:
            return AggregatorOutput(logits)
        a = read.detach().float() if read.dtype != torch.float64 else read.detach()
        if self.config.attention == "rollout":
            for q, k in reversed(steps):
                mixed = _roll_out(a, q.to(a.dtype), k.to(a.dtype))
                a = (a + mixed) / 2 if self.config.uses_residual else mixed
        result = torch.empty_like(a)
        result[order] = a / a.sum()
        return AggregatorOutput(logits, result)


class LowRankAttention(nn.Module):
    """One layer of MHE: `MLP(LN(softmax(Q Kᵀ / √r) V))` with queries and keys of rank r per head (Eq. 3-5)."""

    def __init__(self, config: MsaMilConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.rank, self.residual = config.heads, config.rank, config.uses_residual
        self.q = nn.Linear(dim, config.heads * config.rank, bias=False)
        self.k = nn.Linear(dim, config.heads * config.rank, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim) if config.out_proj else nn.Identity()
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, config.hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, dim)
        )

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) -> (N, D), and the (heads, N, r) queries and keys for the rollout."""
        q, k, v = (self._split(linear(t)) for linear in (self.q, self.k, self.v))
        u = self.out(_attend(q, k, v))  # (N, D), A V
        del v
        if self.residual:
            u = u + t
            return u + _by_rows(lambda rows: self.mlp(self.norm(rows)), u), q, k
        return _by_rows(lambda rows: self.mlp(self.norm(rows)), u), q, k

    def _split(self, t: Tensor) -> Tensor:
        return t.view(len(t), self.heads, -1).transpose(0, 1)  # (heads, N, width)


class LearnedQueries(nn.Module):
    """DMQ: ten learned queries read the bag, gates weigh what they found (Eq. 6-8)."""

    def __init__(self, config: MsaMilConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.kind = config.dmq_heads, config.gate
        self.z = nn.Parameter(torch.randn(config.queries, dim) * 0.02)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, config.gate_dim)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Bag vector (D,) and the share of attention that each row of `t` (N, D) gets from all queries (N,).

        Keys and values of the N rows are never formed: `q · (W_K t) = (W_Kᵀ q) · t` and `Σ a (W_V t) = W_V (Σ a t)`.
        """
        dim = t.shape[1]
        width = dim // self.heads
        w_k, w_v = (linear.weight.view(self.heads, width, dim) for linear in (self.k, self.v))
        q = self.q(self.z).view(-1, self.heads, width).transpose(0, 1)  # (heads, queries, width)
        a = ((q @ w_k * width**-0.5) @ t.T).softmax(-1)  # (heads, queries, N), A'
        z = ((a @ t) @ w_v.transpose(1, 2)).transpose(0, 1).reshape(-1, dim)  # (queries, D), Z'
        log_gates = self._log_gates(z)  # (queries, 1 or D)
        vector = (log_gates.exp() * z).sum(0)  # (D,), F_bag
        share = log_gates.logsumexp(1).softmax(0)  # (queries,), mean gate of each, over their sum
        return vector, share @ a.mean(0)

    def _log_gates(self, z: Tensor) -> Tensor:
        """Logarithms: a ratio of gates that are all close to 0 stays exact."""
        logits: Tensor = self.gate(z)
        if self.kind == "softmax":
            return logits.log_softmax(0)
        log_gates: Tensor = functional.logsigmoid(logits)
        return log_gates.log_softmax(0) if self.kind == "sigmoid_norm" else log_gates


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(Q Kᵀ / √r) V` in linear memory: q, k (heads, N, r), v (heads, N, d) -> (N, heads * d).

    The fused kernels want one width for all three; zeros beyond r change no score, as long as the scale stays 1/√r.
    """
    rank, width = q.shape[2], v.shape[2]
    q, k, v = (functional.pad(part, (0, max(rank, width) - part.shape[2]))[None] for part in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, scale=rank**-0.5)[0, :, :, :width]
    return mixed.transpose(0, 1).flatten(1)


def _by_rows(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """`function(t)` for a function of single rows that keeps their width; in pieces where no gradient is kept."""
    if torch.is_grad_enabled() or len(t) <= _ROWS_AT_ONCE:
        return function(t)
    result = torch.empty_like(t)
    for start in range(0, len(t), _ROWS_AT_ONCE):
        result[start : start + _ROWS_AT_ONCE] = function(t[start : start + _ROWS_AT_ONCE])
    return result


@torch.no_grad()
def _roll_out(a: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """`a A` with A = softmax(Q Kᵀ / √r) averaged over heads, never held whole: (N,), two of (heads, N, r) -> (N,)."""
    result = torch.zeros_like(a)
    rows = max(1, _SCORES_AT_ONCE[a.device.type == "cpu"] // len(a))
    for q_head, k_head in zip(q, k * q.shape[2] ** -0.5, strict=True):
        for start in range(0, len(a), rows):
            part = slice(start, start + rows)
            result += a[part] @ (q_head[part] @ k_head.T).softmax(1)  # (rows,) @ (rows, N)
    return result / len(q)
