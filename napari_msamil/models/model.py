"""A model: segmenter, extractor, aggregator and their card; one file to share it."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from napari_msamil.errors import ModelFileError, NotFiniteError
from napari_msamil.models.aggregators import aggregator_class
from napari_msamil.models.aggregators.base import Aggregator, AggregatorOutput
from napari_msamil.models.bag import Bag
from napari_msamil.models.card import Card
from napari_msamil.models.extractor import Extractor
from napari_msamil.models.files import read_model_file, write_model_file
from napari_msamil.models.folding import fold_batchnorm
from napari_msamil.models.fusing import can_fuse, fuse_for_cpu
from napari_msamil.models.segmenter import Segmenter
from napari_msamil.resources import demo_model_path

logger = logging.getLogger(__name__)


class Model(nn.Module):
    """The three networks of one method, with everything needed to feed them.

    Attributes:
        card: What the model is and expects.
        segmenter: Thumbnail -> lesion logits. Like the extractor it is missing where the card names features made
            elsewhere: of such a model only `aggregate` can be used.
        extractor: Normalised patches -> features.
        aggregator: Bag -> logits and attention.
        sha256: SHA-256 of the file it was loaded from; None for a model that was built.
        folded: Whether it is a copy for inference, which cannot be saved.
    """

    def __init__(
        self, card: Card, segmenter: Segmenter | None, extractor: Extractor | None, aggregator: Aggregator
    ) -> None:
        super().__init__()
        self.card = card
        self.segmenter = cast(Segmenter, segmenter)  # not None, but for an aggregator alone
        self.extractor = cast(Extractor, extractor)
        self.aggregator = aggregator
        self.sha256: str | None = None
        self.folded = False

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels as the nets see them.

        Args:
            pixels: (B, H, W, 3) RGB, uint8 in 0..255, or floating point in 0..1.

        Returns:
            (B, 3, H, W) float32 on the model's device, channels last in memory.
        """
        if pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(f"pixels must be (B, H, W, 3) RGB, got {tuple(pixels.shape)}")
        top = 1.0 if pixels.is_floating_point() else 255.0
        x = pixels.to(self.device).permute(0, 3, 1, 2).to(torch.float32)  # (B, 3, H, W), channels last
        mean = x.new_tensor(self.card.normalisation.mean).view(1, 3, 1, 1)
        std = x.new_tensor(self.card.normalisation.std).view(1, 3, 1, 1)
        return (x - mean * top).div_(std * top)

    def _input(self, net: nn.Module, pixels: Tensor) -> Tensor:
        """Pixels for a net, normalised, in the type of its weights."""
        return self.normalise(pixels).to(next(net.parameters()).dtype)

    def segment(self, thumbnails: Tensor) -> Tensor:
        """Lesion probability of each thumbnail pixel.

        Args:
            thumbnails: (B, H, W, 3) RGB as for `normalise`; H and W multiples of 32.

        Returns:
            (B, H, W) float32 in 0..1.
        """
        height, width = thumbnails.shape[1:3]
        if height % 32 or width % 32:
            raise ValueError(f"a thumbnail's sides must be multiples of 32, got {width} x {height}")
        logits: Tensor = self.segmenter(self._input(self.segmenter, thumbnails))
        return logits.float().sigmoid()

    def embed(self, pixels: Tensor) -> Tensor:
        """Features of patches.

        Args:
            pixels: (B, P, P, 3) RGB as for `normalise`, with P = `card.patch_px`.

        Returns:
            (B, D) float32.
        """
        side = self.card.patch_px
        if tuple(pixels.shape[1:3]) != (side, side):
            raise ValueError(f"this model's patches are {side} x {side} px, got {tuple(pixels.shape)}")
        features: Tensor = self.extractor(self._input(self.extractor, pixels))
        return features.float()

    def aggregate(self, bag: Bag, *, attention: bool = True) -> AggregatorOutput:
        """Logits and attention of one slide, always in full precision.

        Args:
            bag: On any device.
            attention: Whether to compute the attention too.

        Raises:
            NotFiniteError: The features or the weights are so far off that no finite number comes out.
        """
        bag = bag.to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            output = self.aggregator(bag, attention=attention)
        if not torch.isfinite(output.logits).all():
            raise NotFiniteError(
                f"{self.card.name} gives no finite number for {len(bag)} patches of a slide: features or weights "
                "overflow"
            )
        return output

    def for_inference(self, device: str | None = None, *, bf16: bool = False) -> Model:
        """A copy that computes the same faster: evaluation mode, no gradients, BatchNorm folded into convolutions.

        On a CPU activations go into the convolutions too, and channel gates scale in place (`fuse_for_cpu`). A net that
        cannot be rewritten so runs as it is, and a warning says so.

        Args:
            device: Where the copy is to be; None is where this model is.
            bf16: Whether segmenter and extractor compute in bfloat16; what they return is float32 all the same, and
                the aggregator stays in full precision.
        """
        model = copy.deepcopy(self).to(device).eval().requires_grad_(False)
        try:
            model._rewrite(fuse=model.device.type == "cpu" and can_fuse(torch.bfloat16 if bf16 else torch.float32))
        except Exception as error:  # of hundreds of nets, some take no small example or are wired unlike all others
            logger.warning("%s runs as it is, slower: its nets cannot be rewritten (%s)", self.card.name, error)
            model = copy.deepcopy(self).to(device).eval().requires_grad_(False)
        if bf16:
            model.segmenter.bfloat16()
            model.extractor.bfloat16()
        model.folded = True
        return model.to(memory_format=torch.channels_last)

    def _rewrite(self, *, fuse: bool) -> None:
        example = torch.zeros(1, 3, 64, 64, device=self.device).to(memory_format=torch.channels_last)
        example += torch.linspace(-2, 2, 64, device=self.device)
        fold_batchnorm(self.segmenter.net, example)
        if fuse:
            fuse_for_cpu(self.segmenter.net, example)
        self.extractor.fold(example, fuse=fuse)


def build_model(card: Card, *, seed: int | None = None) -> Model:
    """A model with random weights, in evaluation mode; nothing is downloaded.

    Args:
        card: What to build.
        seed: Makes the weights repeatable. The global random state is left as it was in any case.

    Raises:
        ValueError: An encoder does not exist, or the widths do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        segmenter = None if card.features else Segmenter(card.segmenter)
        extractor = None if card.features else Extractor(card.extractor, patch_px=card.patch_px)
        aggregator = aggregator_class(card.method)(
            card.aggregator, classes=len(card.classes), scales=len(card.scales_mpp)
        )
    model = Model(card, segmenter, extractor, aggregator)
    return model.eval().to(memory_format=torch.channels_last)


def save_model(model: Model, path: str | Path, *, half: bool = False, overwrite: bool = False) -> str:
    """Writes a model as one `.safetensors` file: weights, and the card as JSON in the header.

    Args:
        model: Any device; not a copy made `for_inference`.
        path: Target; appears whole or not at all.
        half: Store the weights in float16, half the size. Statistics and integers stay as they are.
        overwrite: Whether an existing file may be replaced.

    Returns:
        SHA-256 of the file.

    Raises:
        ModelFileError: The file exists, or a weight cannot be stored.
    """
    path = Path(path)
    if model.folded:
        raise ModelFileError("This model is a copy for inference and cannot be saved: save the one it was made from.")
    if path.exists() and not overwrite:
        raise ModelFileError(f"{path} exists already. Choose another name, or ask to overwrite it.")
    weights = {name for name, _ in model.named_parameters()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.detach().cpu()
        if half and name in weights:
            stored = stored.half()
        if stored.is_floating_point() and not torch.isfinite(stored).all():
            raise ModelFileError(
                f"{name} holds numbers that are not finite" + (" in half precision" if half else "") + f": {path} was "
                "not written. Save in full precision, or go back to an earlier checkpoint."
            )
        tensors[name] = stored.contiguous()
    return write_model_file(path, model.card.to_json(), tensors)


def load_model(path: str | Path, *, aggregator_alone: bool = False) -> Model:
    """Reads a model file: float32 on the CPU, in evaluation mode. No code in the file is ever run.

    Args:
        path: The file, or "demo" for the bundled model.
        aggregator_alone: Whether a file is welcome that holds an aggregator without the extractor of its features.

    Raises:
        ModelFileError: The file is missing, cut, changed, made by something else or by a newer version; or it holds an
            aggregator alone, and that is not welcome.
    """
    path = demo_model_path() if str(path) == "demo" else Path(path)
    text, tensors, sha256 = read_model_file(path)
    card = Card.from_json(text, source=str(path))
    if card.features and not aggregator_alone:
        raise ModelFileError(
            f"{path} cannot classify a slide: it is an aggregator alone, trained on features made elsewhere "
            f"({card.features}), without their extractor. Use a model that was trained on slides."
        )
    try:
        model = build_model(card, seed=0)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelFileError(f"{path}: the network on its card cannot be built ({error}).") from error
    problems = _mismatch(model.state_dict(), tensors)
    if problems:
        raise ModelFileError(f"{path}: its weights do not fit the network on its card ({problems}).")
    model.load_state_dict(tensors, strict=True)  # copies, and so converts half precision to float32
    model.sha256 = sha256
    return model


def _mismatch(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """What is missing, too much or of another shape; empty if all fits."""
    lists = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unknown": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(n for n in wanted.keys() & given.keys() if wanted[n].shape != given[n].shape),
    }
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in lists.items()
        if names
    )
