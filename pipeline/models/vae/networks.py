"""The networks of the variational autoencoder."""

import math

import torch
from torch import Tensor, nn

from pipeline.core.task import DataSpec
from pipeline.layers.convolutional import Decoder, Encoder
from pipeline.layers.dense import dense_decoder, dense_encoder
from pipeline.models.vae.settings import VaeConfig


class Network(nn.Module):
    """The encoder q(z | x), the decoder p(x | z) and the means of the priors p(z | y)."""

    def __init__(self, config: VaeConfig, spec: DataSpec) -> None:
        super().__init__()
        size, shape = config.latent_size, (spec.channels, spec.size)
        self.encoder: nn.Module
        self.decoder: nn.Module
        if config.architecture == "dense":
            self.encoder = dense_encoder(*shape, config.dense, 2 * size)
            self.decoder = dense_decoder(size, *shape, config.dense)
        else:
            self.encoder = Encoder(*shape, config.width, 2 * size)
            self.decoder = Decoder(size, *shape, config.width)
        self.prior_means = None if config.prior == "standard" else nn.Embedding(spec.classes, size)
        self.log_deviation = (
            nn.Parameter(torch.tensor(math.log(config.deviation))) if config.learn_deviation else None
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each (N, L)."""
        mean, log_variance = self.encoder(images).float().chunk(2, 1)
        return mean, log_variance.clamp(-20, 10)
