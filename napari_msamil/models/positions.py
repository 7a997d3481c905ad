"""Sinusoidal position codes."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoid(positions: Tensor, dim: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Position code `E[p, 2i] = sin(p / 10000^(2i/dim))`, `E[p, 2i+1] = cos(same)`.

    Angles are formed in float64: at p = 50,000 float32 would already be off by some 1e-3.

    Args:
        positions: (N,) numbers, usually 0 .. N-1.
        dim: Even width of the code.

    Returns:
        (N, dim) in -1..1, of the given dtype.

    References:
        Vaswani et al., "Attention is all you need" (2017), section 3.5.
    """
    if dim % 2:
        raise ValueError(f"a sinusoidal code needs an even width, got {dim}")
    device = positions.device
    if device.type == "mps":  # knows no float64
        positions = positions.cpu()
    rates = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
    angles = positions.to(torch.float64)[:, None] * rates  # (N, dim / 2)
    code = torch.empty(len(positions), dim, dtype=dtype, device=device)
    code[:, 0::2] = angles.sin()
    code[:, 1::2] = angles.cos()
    return code


def sinusoid_2d(rows: int, columns: int, dim: int) -> Tensor:
    """Code of a grid in row-major order: the first half of the width codes the row, the second the column.

    Args:
        rows: Height of the grid.
        columns: Width of the grid.
        dim: Width of the code, a multiple of 4.

    Returns:
        (rows * columns, dim) float32.
    """
    if dim % 4:
        raise ValueError(f"a two-dimensional sinusoidal code needs a width that is a multiple of 4, got {dim}")
    of_row = sinusoid(torch.arange(rows), dim // 2)[:, None].expand(rows, columns, -1)
    of_column = sinusoid(torch.arange(columns), dim // 2)[None].expand(rows, columns, -1)
    return torch.cat((of_row, of_column), dim=2).reshape(rows * columns, dim)
