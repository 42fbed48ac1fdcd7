"""An autoencoder (Hinton & Salakhutdinov 2006), dense (hidden layers of 64 and 32) or convolutional.

With ``input_noise`` it is a denoising autoencoder (Vincent et al. 2008). After training, a normal
distribution is fitted to the codes of each class, with one covariance for all classes, to generate images
(Ghosh et al. 2020).
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.noise import Noise
from pipeline.core.optimizers import OptimizerSettings
from pipeline.core.task import Batch, DataSpec, Phase, Task
from pipeline.layers.convolutional import Decoder, Encoder
from pipeline.params import Section

RIDGE = 1e-4  # added to the variances, so that the covariance is not singular


class AeConfig(Section):
    """``dense``: the hidden layers of the dense network. ``width``: channels of the convolutional network."""

    architecture: Literal["dense", "convolutional"] = "convolutional"
    code_size: int = Field(16, ge=1, le=4096)
    dense: tuple[int, ...] = (64, 32)
    width: int = Field(32, ge=8, le=1024)
    reconstruction_loss: Literal["mse", "huber"] = "mse"
    huber_delta: float = Field(0.1, gt=0)
    input_noise: float = Field(0.0, ge=0)  # standard deviation, with images in [0, 1]
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=2e-3)


class Ae(Task):
    """Encodes and reconstructs images; after training it also generates them."""

    Config = AeConfig
    network: "Pair"
    code_means: Tensor  # (classes, D)
    code_factor: Tensor  # (D, D), lower Cholesky factor of the covariance
    fitted: Tensor  # (), bool: whether the code distribution is fitted

    def __init__(self, config: AeConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        build_network = dense_network if config.architecture == "dense" else convolutional_network
        self.network = build_network(config, spec)
        self.register_buffer("code_means", torch.zeros(spec.classes, config.code_size))
        self.register_buffer("code_factor", torch.zeros(config.code_size, config.code_size))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def phases(self) -> list[Phase]:
        return [Phase("autoencoder", self.network, self.config.optimizer.build(self.network.parameters()))]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        inputs = batch.images
        if self.config.input_noise:
            inputs = inputs + self.config.input_noise * noise.normal("input", *inputs.shape[1:])
        restored = torch.sigmoid(self.network(inputs)).float()
        squares = (restored - batch.images).square().mean()
        if self.config.reconstruction_loss == "mse":
            return squares, {}
        return F.huber_loss(restored, batch.images, delta=self.config.huber_delta), {"mse": squares}

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        error = self.reconstruct(batch.images) - batch.images
        return {"mse": error.square().flatten(1).mean(1), "mae": error.abs().flatten(1).mean(1)}

    def encode(self, images: Tensor) -> Tensor:
        return self.network.encoder(images)

    def reconstruct(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.network(images))

    @torch.no_grad()
    def on_train_end(self, batches: Iterable[Batch]) -> None:
        # On the CPU, because mps has no float64.
        pairs = [(self.encode(batch.images).cpu().double(), batch.labels.cpu()) for batch in batches]
        codes, labels = torch.cat([codes for codes, _ in pairs]), torch.cat([labels for _, labels in pairs])
        counts = torch.bincount(labels, minlength=self.spec.classes).clamp_min(1)
        sums = torch.zeros(self.code_means.shape, dtype=torch.float64).index_add_(0, labels, codes)
        means = sums / counts[:, None]
        within = codes - means[labels]
        covariance = within.T @ within / len(within)
        ridge = RIDGE * torch.eye(self.config.code_size, dtype=torch.float64)
        self.code_means.copy_(means)
        self.code_factor.copy_(torch.linalg.cholesky(covariance + ridge))
        self.fitted.fill_(True)

    def generate(self, labels: Tensor | None, count: int, noise: Noise) -> Tensor | None:
        codes = self.latents(count, noise, labels)
        return None if codes is None else self.decode(codes)

    def latents(self, count: int, noise: Noise, labels: Tensor | None = None) -> Tensor | None:
        if not self.fitted:
            return None
        labels = noise.integers("label", self.spec.classes) if labels is None else labels
        return self.code_means[labels] + noise.normal("code", self.config.code_size) @ self.code_factor.T

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.network.decoder(latents))


class Pair(nn.Module):
    """An encoder and a decoder. The output is image logits."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


def convolutional_network(config: AeConfig, spec: DataSpec) -> Pair:
    """Strided convolutions, a code, and a decoder of upsampling and convolutions."""
    encoder = Encoder(spec.channels, spec.size, config.width, config.code_size)
    return Pair(encoder, Decoder(config.code_size, spec.channels, spec.size, config.width))


def dense_network(config: AeConfig, spec: DataSpec) -> Pair:
    """Pixels, dense layers, code, the same layers in reverse, pixels."""
    sizes = [spec.channels * spec.size**2, *config.dense, config.code_size]
    decoder = nn.Sequential(*_dense(sizes[::-1]), nn.Unflatten(1, (spec.channels, spec.size, spec.size)))
    return Pair(nn.Sequential(nn.Flatten(), *_dense(sizes)), decoder)


def _dense(sizes: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]
