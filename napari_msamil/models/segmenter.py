"""UNet++ on a thumbnail of the whole slide: where is lesion (SFFM)."""

from __future__ import annotations

import segmentation_models_pytorch as smp
import timm
from torch import Tensor, nn

from napari_msamil.models.configs import SegmenterConfig


class Segmenter(nn.Module):
    """UNet++ of segmentation_models_pytorch with one lesion logit per pixel, never pretrained.

    References:
        Zhou et al., "UNet++" (2018); MsaMIL-Net, arXiv 2503.08581, section 3.1.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        """Builds the net with random weights; nothing is downloaded.

        Raises:
            ValueError: segmentation_models_pytorch cannot build it with this encoder.
        """
        super().__init__()
        timm_name = config.encoder.removeprefix("tu-")
        if timm_name != config.encoder and not timm.is_model(timm_name):  # else "hf-hub:..." would go to the network
            raise ValueError(f"no UNet++ can be built with the encoder {config.encoder!r}: timm has no {timm_name!r}")
        try:
            self.net = smp.UnetPlusPlus(
                config.encoder,
                encoder_weights=None,
                decoder_channels=config.decoder_channels,
                classes=config.classes,
            )
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"no UNet++ can be built with the encoder {config.encoder!r}: {error}") from error

    def forward(self, pictures: Tensor) -> Tensor:
        """Lesion logits.

        Args:
            pictures: (B, 3, H, W) normalised; H and W multiples of 32.

        Returns:
            (B, H, W) logits; the first plane where the net has three.
        """
        logits: Tensor = self.net(pictures)  # (B, classes, H, W)
        return logits[:, 0]
