"""The networks of the autoencoder. Their output is image logits."""

from torch import Tensor, nn

from pipeline.core.task import DataSpec
from pipeline.layers.convolutional import Decoder, Encoder
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


def build_network(config: AeConfig, spec: DataSpec) -> Pair | UNet:
    """Dense layers, or strided convolutions and a decoder of upsampling and convolutions, or a U-Net."""
    channels, size = spec.channels, spec.size
    if config.architecture == "unet":
        return UNet(channels, size, config.width)
    if config.architecture == "dense":
        encoder = dense_encoder(channels, size, config.dense, config.code_size)
        return Pair(encoder, dense_decoder(config.code_size, channels, size, config.dense))
    encoder_of_images = Encoder(channels, size, config.width, config.code_size)
    return Pair(encoder_of_images, Decoder(config.code_size, channels, size, config.width))
