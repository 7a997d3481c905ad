"""Where the networks of a run start from."""

import timm
from torch import Tensor, nn

from napari_msamil.errors import MsamilError
from napari_msamil.models.model import Model


def start_from_imagenet(*encoders: tuple[nn.Module, str]) -> None:
    """Give encoders (module, timm name) the weights of ImageNet that timm downloads and keeps.

    Raises:
        MsamilError: They cannot be had, or there are none for this encoder.
    """
    for encoder, name in encoders:
        try:
            source = timm.create_model(name.removeprefix("tu-"), pretrained=True, num_classes=0)
        except Exception as error:  # timm and the hub below it raise whatever their network library raises
            raise MsamilError(
                f"The ImageNet weights of {name!r} cannot be had ({type(error).__name__}: {error}). Connect to the "
                'internet once, or start from random weights: weights="random".'
            ) from error
        take_weights(source.state_dict(), encoder, name)


def start_from_segmenter(model: Model) -> None:
    """Give the extractor's encoder the weights of the segmenter's, which is of the same kind."""
    take_weights(model.segmenter.net.encoder.state_dict(), model.extractor.encoder, model.card.extractor.encoder)


def take_weights(source: dict[str, Tensor], target: nn.Module, name: str) -> None:
    """Copy all weights whose names end alike and whose shapes agree; the last layers may have none to take.

    Raises:
        MsamilError: Less than half of the target's numbers found a source.
    """
    wanted = target.state_dict()
    plain = {_plain(key): value for key, value in source.items()}
    taken = {
        key: plain[_plain(key)].clone()
        for key, value in wanted.items()
        if _plain(key) in plain and plain[_plain(key)].shape == value.shape
    }
    share = sum(v.numel() for v in taken.values()) / max(sum(v.numel() for v in wanted.values()), 1)
    if share < 0.5:
        raise MsamilError(
            f"Only {share:.0%} of the weights of the encoder {name!r} fit what it should start from: start from "
            'random weights instead: end_to_end.start="random".'
        )
    target.load_state_dict({**wanted, **taken})


def _plain(key: str) -> str:
    """A weight's name without the module that wraps the network."""
    return key.removeprefix("model.")
