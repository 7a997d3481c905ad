"""Pre-norm Transformer encoder layer whose last use needs one token only."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class EncoderLayer(nn.Module):
    """`x + Attention(LN(x))`, then `x + FeedForward(LN(x))`, with biases and GELU.

    Written here instead of `nn.TransformerEncoderLayer`: that one computes all tokens, and switches to a nested-tensor
    path of its own in evaluation mode.

    References:
        Vaswani et al. (2017); Xiong et al., "On layer normalization in the Transformer architecture" (2020), pre-norm.
    """

    def __init__(self, dim: int, *, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} of the tokens is not a multiple of {heads} heads")
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ff1 = nn.Linear(dim, hidden)
        self.ff2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """All tokens: (B, T, D) -> (B, T, D)."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout.p if self.training else 0.0)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, dim)
        x = x + self.dropout(self.out(mixed))
        return x + self._feed_forward(x)

    def first_token(self, x: Tensor) -> Tensor:
        """Token 0 of `forward(x)` alone, without projecting the other tokens: (B, T, D) -> (B, D).

        Exact algebra per head: `q · (W_k y + b_k) = (W_kᵀ q) · y + const`, where the constant cancels in the softmax,
        and `Σ a (W_v y + b_v) = W_v (Σ a y) + b_v Σ a`. So queries, keys and values of T tokens shrink to those of one.
        """
        batch, _, dim = x.shape
        width = dim // self.heads
        y = self.norm1(x)  # (B, T, D)
        w_q, w_k, w_v = self.qkv.weight.view(3, self.heads, width, dim)
        b_q, _, b_v = self.qkv.bias.view(3, self.heads, width)
        q = (y[:, 0] @ w_q.reshape(dim, dim).T).view(batch, self.heads, width) + b_q
        u = (q.transpose(0, 1) @ w_k).transpose(0, 1)  # (B, heads, D)
        a = ((u * width**-0.5) @ y.transpose(1, 2)).softmax(-1)  # (B, heads, T)
        a = self.dropout(a)  # as dropout_p of the full form; afterwards a no longer sums to 1
        m = a @ y  # (B, heads, D)
        o = (m.transpose(0, 1) @ w_v.transpose(1, 2)).transpose(0, 1) + b_v * a.sum(-1, keepdim=True)
        first: Tensor = x[:, 0] + self.dropout(self.out(o.reshape(batch, dim)))
        return first + self._feed_forward(first)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(functional.gelu(self.ff1(self.norm2(x))))
        result: Tensor = self.dropout(self.ff2(hidden))
        return result
