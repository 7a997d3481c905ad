"""Settings of the three networks, as a model's card stores them; pydantic only, so that reading a card needs no torch.

Every field that answers one of the open questions of the MsaMIL-Net paper (arXiv 2503.08581) is a switch here; its
default is our reading, the `literal` preset in `card.py` follows the printed equations.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Base of all settings: unknown names are refused, values never change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SegmenterConfig(Frozen):
    """UNet++ that draws the lesion mask (SFFM, section 3.1 of the paper).

    Attributes:
        encoder: Encoder name of segmentation_models_pytorch; `tu-NAME` takes any timm encoder. EfficientNet-B3 by
            default: less than half of ResNet-34's time per slide on a CPU, and half its weights.
        decoder_channels: Widths of the five decoder stages, coarsest first.
        classes: 1 = one lesion logit; 3 = three colour planes as in UBC-OCEAN's masks, of which the first is lesion.
    """

    encoder: str = "tu-efficientnet_b3"
    decoder_channels: tuple[int, int, int, int, int] = (256, 128, 64, 32, 16)
    classes: Literal[1, 3] = 1


class ExtractorConfig(Frozen):
    """Encoder and Transformer that turn one patch into one feature vector (MSFEM).

    Attributes:
        encoder: Any timm model name that gives a feature map or tokens.
        encoder_options: Passed on to `timm.create_model`, e.g. `{"img_size": 512}` for a vision transformer. Numbers
            and switches only: a text could name a file, which timm would open.
        out_dim: Width of the feature vector.
        proj: `post` keeps the encoder's width through the Transformer and projects its result; `pre` projects the
            tokens first, which makes the layers about five times cheaper.
        pool: `cls` reads a learned class token, `mean` averages the patch tokens.
        pos: Position code of the tokens (the class token gets none).
        layers: Number of Transformer layers; 0 needs `pool = "mean"` and leaves a plain encoder.
        heads: Attention heads per layer.
        hidden: Width of the feed-forward part.
        dropout: Dropout probability inside the layers.
        final_norm: LayerNorm after the last pre-norm layer, whose output is otherwise unbounded.
    """

    encoder: str = "efficientnet_b3"
    encoder_options: dict[str, bool | int | float] = Field(default_factory=dict)
    out_dim: int = Field(default=512, ge=1)
    proj: Literal["post", "pre"] = "post"
    pool: Literal["cls", "mean"] = "cls"
    pos: Literal["sin", "learned", "sin2d"] = "sin"
    layers: int = Field(default=2, ge=0)
    heads: int = Field(default=8, ge=1)
    hidden: int = Field(default=2048, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    final_norm: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.layers == 0 and self.pool == "cls":
            raise ValueError('a class token needs at least one Transformer layer: set layers >= 1 or pool = "mean"')
        if self.proj == "pre" and self.layers and self.out_dim % self.heads:
            raise ValueError(f"out_dim {self.out_dim} is not a multiple of heads {self.heads}")
        return self


class MsaMilConfig(Frozen):
    """MsaMIL-Net's aggregator (IAAM): low-rank self-attention over the bag, then learned queries.

    Attributes:
        method: Name of the method.
        dim: Width of features and queries; equals the extractor's `out_dim`.
        heads: Heads of the self-attention (MHE).
        rank: Width of one head's queries and keys.
        depth: Number of MHE layers; more than one always uses the residual form.
        hidden: Hidden width of the MLP.
        dropout: Dropout inside the MLP.
        out_proj: Linear map after the attention.
        residual: `U = T + AV; T' = U + MLP(LN(U))` instead of the printed `T' = MLP(LN(AV))`.
        coords: Units of x, y given to the coordinate encoding: fraction of the slide, of the bag's bounding box,
            finest grid cells, or level-0 px.
        scale_code: Scale as the number 0, 1, 2 (finest first) or one-hot.
        order: Order in which the rows are numbered for the position code.
        pos: Sinusoidal code of that number, or none.
        queries: Number of learned queries (DMQ).
        dmq_heads: Heads of the queries' attention.
        gate: How a query's gate follows from its gate logit.
        gate_dim: 1 = one gate per query; `dim` = one per query and channel.
        head: Classifier on the bag vector.
        attention: `rollout` says which patches the queries read about, `query` which rows they read.
    """

    method: Literal["msamil"] = "msamil"
    dim: int = Field(default=512, ge=2)
    heads: int = Field(default=8, ge=1)
    rank: int = Field(default=16, ge=1)
    depth: int = Field(default=1, ge=1)
    hidden: int = Field(default=2048, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    out_proj: bool = False
    residual: bool = False
    coords: Literal["slide", "bbox", "grid", "raw"] = "slide"
    scale_code: Literal["ordinal", "onehot"] = "ordinal"
    order: Literal["xy", "yx", "quadtree_post"] = "xy"
    pos: Literal["sin", "none"] = "sin"
    queries: int = Field(default=10, ge=1)
    dmq_heads: int = Field(default=1, ge=1)
    gate: Literal["sigmoid", "softmax", "sigmoid_norm"] = "sigmoid"
    gate_dim: int = 1
    head: Literal["linear", "mlp"] = "linear"
    attention: Literal["rollout", "query"] = "rollout"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, heads in (("heads", self.heads), ("dmq_heads", self.dmq_heads)):
            if self.dim % heads:
                raise ValueError(f"dim {self.dim} is not a multiple of {name} {heads}")
        if self.gate_dim not in (1, self.dim):
            raise ValueError(f"gate_dim is {self.gate_dim}: use 1 (a gate per query) or {self.dim} (per channel)")
        if self.pos == "sin" and self.dim % 2:
            raise ValueError(f"dim {self.dim} is odd: the sinusoidal position code needs an even width")
        return self

    @property
    def uses_residual(self) -> bool:
        """Whether the layers run in the residual form; forced where several are stacked."""
        return self.residual or self.depth > 1
