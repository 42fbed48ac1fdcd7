"""The networks of the autoencoder. Their output is image logits."""

import torch
from torch import Tensor, nn

from pipeline.core.task import DataSpec
from pipeline.layers.convolutional import Decoder, Encoder, channels, sides
from pipeline.layers.dense import dense_decoder, dense_encoder
from pipeline.layers.unet import UNet
from pipeline.models.ae.settings import AeConfig


class Pair(nn.Module):
    """An encoder and a decoder with a code between them. The mask of known pixels is not used."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


class Restorer(UNet):
    """A U-Net of images (N, C, H, W) and masks of known pixels (N, 1, H, W)."""

    def __init__(self, image_channels: int, size: int, width: int) -> None:
        counts = [width, *channels(width, len(sides(size)) - 1)]
        super().__init__(image_channels + 1, image_channels, counts)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        known = mask.expand(len(images), -1, -1, -1)
        return super().forward(torch.cat([images * 2 - 1, known], 1))


def build_network(config: AeConfig, spec: DataSpec) -> Pair | Restorer:
    """Dense layers, or strided convolutions and a decoder of upsampling and convolutions, or a U-Net."""
    image_channels, size = spec.channels, spec.size
    if config.architecture == "unet":
        return Restorer(image_channels, size, config.width)
    if config.architecture == "dense":
        encoder = dense_encoder(image_channels, size, config.dense, config.code_size)
        return Pair(encoder, dense_decoder(config.code_size, image_channels, size, config.dense))
    encoder_of_images = Encoder(image_channels, size, config.width, config.code_size)
    return Pair(encoder_of_images, Decoder(config.code_size, image_channels, size, config.width))
