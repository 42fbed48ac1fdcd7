"""Discriminators: images and labels to logits of being real."""

import itertools
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from pipeline.core.task import DataSpec
from pipeline.layers.convolutional import Encoder, Wrap, channels, sides
from pipeline.models.gan.generators import R3Block
from pipeline.models.gan.losses import LOSSES
from pipeline.models.gan.resampling import halve
from pipeline.models.gan.settings import GanConfig


class Discriminator(nn.Module):
    """Images (N, C, H, W) and labels (N,) -> logits (N,) of being real: psi(phi(x)) + e_y . phi(x).

    The second term (projection discriminator, Miyato & Koyama 2018) is there if ``config.conditional``.
    """

    def __init__(self, config: GanConfig, spec: DataSpec) -> None:
        super().__init__()
        wrap: Wrap = spectral_norm if config.spectral_normalisation else lambda layer: layer
        features = 4 * config.width
        self.encoder = ENCODERS[config.architecture](
            spec.channels, spec.size, config.width, features, wrap=wrap
        )
        # Without spectral normalisation the scale of the logits is learned; with it classes collapse.
        # A bias cancels in the losses that know differences only.
        has_bias = LOSSES[config.adversarial_loss].threshold is not None
        self.realness = nn.Linear(features, 1, bias=has_bias)
        self.classes = nn.Embedding(spec.classes, features) if config.conditional else None

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        features = F.leaky_relu(self.encoder(images), 0.2)
        logits = self.realness(features).squeeze(1)
        if self.classes is None:
            return logits
        return logits + (self.classes(labels) * features).sum(1)


class DenseEncoder(nn.Module):
    """Two hidden layers, as in tutorials and in Goodfellow et al. 2014."""

    def __init__(self, image_channels: int, size: int, width: int, outputs: int, wrap: Wrap) -> None:
        super().__init__()
        counts = [image_channels * size**2, 32 * width, 16 * width, outputs]
        first, *others = (wrap(nn.Linear(*pair)) for pair in itertools.pairwise(counts))
        self.layers = nn.Sequential(first, *itertools.chain(*((nn.LeakyReLU(0.2), each) for each in others)))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers((images * 2 - 1).flatten(1))


class ResidualEncoder(nn.Module):
    """Residual blocks that halve the size, without normalisation (Miyato et al. 2018, Karras et al. 2020)."""

    def __init__(self, image_channels: int, size: int, width: int, outputs: int, wrap: Wrap) -> None:
        super().__init__()
        counts = [width, *channels(width, len(sides(size)) - 1)]
        blocks = (_ResidualDown(*pair, wrap) for pair in itertools.pairwise(counts))
        self.maps = nn.Sequential(wrap(nn.Conv2d(image_channels, width, 3, padding=1)), *blocks)
        self.output = wrap(nn.Linear(counts[-1] * sides(size)[-1] ** 2, outputs))

    def forward(self, images: Tensor) -> Tensor:
        return self.output(F.leaky_relu(self.maps(images * 2 - 1), 0.2).flatten(1))


class _ResidualDown(nn.Module):
    def __init__(self, before: int, after: int, wrap: Wrap) -> None:
        super().__init__()
        self.first = wrap(nn.Conv2d(before, before, 3, padding=1))
        self.second = wrap(nn.Conv2d(before, after, 3, padding=1))
        self.skip = wrap(nn.Conv2d(before, after, 1, bias=False))

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.leaky_relu(self.first(F.leaky_relu(maps, 0.2)), 0.2)
        return halve(self.second(inner)) + self.skip(halve(maps))


class R3Encoder(nn.Module):
    """The discriminator of R3GAN (Huang et al. 2024), the mirror image of its generator."""

    def __init__(self, image_channels: int, size: int, width: int, outputs: int, wrap: Wrap) -> None:
        super().__init__()
        counts = [width, *channels(width, len(sides(size)) - 1)]
        self.input = nn.Conv2d(image_channels, width, 1)
        self.blocks = nn.ModuleList(nn.Sequential(R3Block(count), R3Block(count)) for count in counts)
        self.changes = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in itertools.pairwise(counts))
        self.pool = nn.Conv2d(counts[-1], counts[-1], sides(size)[-1], groups=counts[-1])
        self.output = nn.Linear(counts[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        first, *others = self.blocks
        maps = first(self.input(images * 2 - 1))
        for change, blocks in zip(self.changes, others, strict=True):
            maps = blocks(change(halve(maps)))
        return self.output(self.pool(maps).flatten(1))


ENCODERS: dict[str, Callable[..., nn.Module]] = {  # image channels, size, width, outputs, wrap
    "convolutional": partial(Encoder, normalise=False),
    "mlp": DenseEncoder,
    "dcgan": partial(Encoder, normalise=False),
    "residual": ResidualEncoder,
    "style": ResidualEncoder,
    "r3": R3Encoder,
}
