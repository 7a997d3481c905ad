"""Patch in, feature vector out: a convolutional encoder, its map as tokens, a Transformer, its class token (MSFEM)."""

from __future__ import annotations

import difflib
import math

import timm
import torch
from torch import Tensor, nn

from napari_msamil.models.configs import ExtractorConfig
from napari_msamil.models.folding import fold_batchnorm
from napari_msamil.models.fusing import fuse_for_cpu
from napari_msamil.models.layers import EncoderLayer
from napari_msamil.models.positions import sinusoid, sinusoid_2d


class Extractor(nn.Module):
    """One set of weights for all scales: normalised patches (B, 3, P, P) -> features (B, out_dim).

    With EfficientNet-B3 at 512 px the tokens are the 16 x 16 cells of its last map, 1536 wide. A class token is learned
    and prepended; it gets no position. Only that token of the last layer is read, so only it is computed there.

    References:
        MsaMIL-Net, arXiv 2503.08581, section 3.2.
    """

    def __init__(self, config: ExtractorConfig, *, patch_px: int) -> None:
        """Builds the net with random weights; nothing is downloaded.

        Args:
            config: Which encoder and how its map becomes a vector.
            patch_px: Side of a patch; only a learned position code depends on it.

        Raises:
            ValueError: timm does not know the encoder, or widths and heads do not fit.
        """
        super().__init__()
        if not timm.is_model(config.encoder):
            near = ", ".join(difflib.get_close_matches(config.encoder, timm.list_models(), n=3))
            raise ValueError(f"timm has no encoder {config.encoder!r}" + (f"; near it: {near}" if near else ""))
        self.config = config
        self.encoder = timm.create_model(
            config.encoder, pretrained=False, num_classes=0, global_pool="", **config.encoder_options
        )
        channels = int(self.encoder.num_features)
        dim = config.out_dim if config.proj == "pre" else channels
        self.project_in = nn.Linear(channels, dim) if config.proj == "pre" else nn.Identity()
        self.project_out = nn.Linear(dim, config.out_dim) if config.proj == "post" else nn.Identity()
        self.layers = nn.ModuleList(
            EncoderLayer(dim, heads=config.heads, hidden=config.hidden, dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim) if config.final_norm and config.layers else nn.Identity()
        if config.pool == "cls":
            self.class_token = nn.Parameter(torch.randn(dim) * 0.02)
        side = math.ceil(patch_px / self._reduction())
        if config.pos == "learned":
            self.position = nn.Parameter(torch.randn(side * side, dim) * 0.02)
        else:  # follows from the settings, so it is no part of the file
            self.register_buffer("position", self._sinusoid(side, side, dim), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Features of patches.

        Args:
            patches: (B, 3, P, P) normalised.

        Returns:
            (B, out_dim).
        """
        x = self.tokens(patches)  # (B, T, D), class token first
        by_class = self.config.pool == "cls"
        for layer in self.layers[:-1] if by_class else self.layers:
            x = layer(x)
        pooled = self.layers[-1].first_token(x) if by_class else None  # type: ignore[operator]
        features: Tensor = self.norm(x) if pooled is None else self.norm(pooled)
        features = self.project_out(features.mean(1) if pooled is None else features)
        return features

    def tokens(self, patches: Tensor) -> Tensor:
        """Input of the first Transformer layer, class token first where there is one: (B, 3, P, P) -> (B, T, D)."""
        grid = self._map(self.encoder.forward_features(patches))  # (B, h, w, channels)
        x: Tensor = self.project_in(grid.flatten(1, 2))  # (B, h * w, D), row-major
        x = x + self._position(grid.shape[1], grid.shape[2], x.shape[2])
        if self.config.pool == "mean":
            return x
        return torch.cat((self.class_token.to(x.dtype).expand(len(x), 1, -1), x), dim=1)

    def fold(self, example: Tensor, *, fuse: bool) -> None:
        """Folds the encoder's BatchNorm into its convolutions, in place.

        Args:
            example: (1, 3, H, W), a small input; ignored by an encoder that takes one size only and has no BatchNorm.
            fuse: Whether to go on and fuse what can be for a CPU.
        """
        if any(isinstance(part, nn.BatchNorm2d) for part in self.encoder.modules()):
            fold_batchnorm(self.encoder, example)
            if fuse:
                fuse_for_cpu(self.encoder, example)

    def _map(self, features: Tensor) -> Tensor:
        """Whatever layout the encoder has -> (B, h, w, channels)."""
        channels = int(self.encoder.num_features)
        if features.ndim == 3:  # tokens of a vision transformer, its own class tokens first
            cells = features[:, int(getattr(self.encoder, "num_prefix_tokens", 0)) :]
            side = math.isqrt(cells.shape[1])
            return cells.reshape(len(cells), side, -1, channels)
        if features.shape[1] == channels:
            return features.permute(0, 2, 3, 1)
        return features

    def _position(self, rows: int, columns: int, dim: int) -> Tensor:
        position: Tensor = self.position
        if len(position) == rows * columns:
            return position
        if self.config.pos == "learned":
            raise ValueError(f"the learned position code has {len(position)} cells, the patch gives {rows}x{columns}")
        return self._sinusoid(rows, columns, dim).to(position)

    def _sinusoid(self, rows: int, columns: int, dim: int) -> Tensor:
        if self.config.pos == "sin2d":
            return sinusoid_2d(rows, columns, dim)
        return sinusoid(torch.arange(rows * columns), dim)

    def _reduction(self) -> int:
        info = getattr(self.encoder, "feature_info", None)
        return int(info[-1]["reduction"]) if info else 32
