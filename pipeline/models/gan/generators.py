"""Generators other than the style-based one: latents and labels to images."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.noise import Noise
from pipeline.core.task import DataSpec
from pipeline.layers.convolutional import Decoder, channels, group_norm, num_groups, sides
from pipeline.models.gan.resampling import Enlarge
from pipeline.models.gan.settings import GanConfig


class Generator(nn.Module):
    """Latents (N, L) and labels (N,), or None if not conditional -> images (N, C, H, W) in [0, 1].

    The class is embedded and concatenated with the latent; a decoder makes logits of the pixels from both.
    """

    def __init__(self, config: GanConfig, spec: DataSpec) -> None:
        super().__init__()
        size = config.latent_size
        self.classes = nn.Embedding(spec.classes, size) if config.conditional else None
        inputs = 2 * size if config.conditional else size
        self.decoder = DECODERS[config.architecture](inputs, spec.channels, spec.size, config.width)

    def forward(self, latents: Tensor, labels: Tensor | None, noise: Noise | None = None) -> Tensor:
        if self.classes is not None:
            latents = torch.cat([latents, self.classes(labels)], 1)
        return torch.sigmoid(self.decoder(latents))


class DenseDecoder(nn.Sequential):
    """Three hidden layers, as in tutorials and in Goodfellow et al. 2014."""

    def __init__(self, inputs: int, image_channels: int, size: int, width: int) -> None:
        counts = [inputs, 8 * width, 16 * width, 32 * width]
        hidden = [(nn.Linear(*pair), nn.LeakyReLU(0.2)) for pair in itertools.pairwise(counts)]
        output = nn.Linear(counts[-1], image_channels * size**2)
        super().__init__(*itertools.chain(*hidden), output, nn.Unflatten(1, (image_channels, size, size)))


class TransposedDecoder(nn.Sequential):
    """Transposed convolutions (DCGAN, Radford et al. 2016).

    Group normalisation replaces batch normalisation, whose statistics depend on the number of workers.
    """

    def __init__(self, inputs: int, image_channels: int, size: int, width: int) -> None:
        all_sides = sides(size)[::-1]
        counts = [*channels(2 * width, len(all_sides) - 1)[::-1], image_channels]
        start = counts[0] * all_sides[0] ** 2
        layers = [nn.Linear(inputs, start), nn.Unflatten(1, (counts[0], all_sides[0], all_sides[0]))]
        for (before, after), side in zip(itertools.pairwise(counts), all_sides[1:], strict=True):
            kernel = 4 if side % 2 == 0 else 3
            layers += [group_norm(before), nn.ReLU(), nn.ConvTranspose2d(before, after, kernel, 2, padding=1)]
        super().__init__(*layers)


class ResidualDecoder(nn.Sequential):
    """Residual blocks that double the size (Gulrajani et al. 2017, Miyato et al. 2018)."""

    def __init__(self, inputs: int, image_channels: int, size: int, width: int) -> None:
        all_sides = sides(size)[::-1]
        counts = [*channels(width, len(all_sides) - 1)[::-1], width]
        start = counts[0] * all_sides[0] ** 2
        layers = [nn.Linear(inputs, start), nn.Unflatten(1, (counts[0], all_sides[0], all_sides[0]))]
        for pair, side in zip(itertools.pairwise(counts), all_sides[1:], strict=True):
            layers.append(_ResidualUp(*pair, side))
        output = nn.Conv2d(width, image_channels, 3, padding=1)
        super().__init__(*layers, group_norm(width), nn.ReLU(), output)


class _ResidualUp(nn.Module):
    def __init__(self, before: int, after: int, side: int) -> None:
        super().__init__()
        larger = nn.Upsample((side, side), mode="nearest")
        self.main = nn.Sequential(
            *(group_norm(before), nn.ReLU(), larger, nn.Conv2d(before, after, 3, padding=1)),
            *(group_norm(after), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1)),
        )
        self.skip = nn.Sequential(nn.Conv2d(before, after, 1), larger)

    def forward(self, maps: Tensor) -> Tensor:
        return self.main(maps) + self.skip(maps)


class R3Decoder(nn.Module):
    """The generator of R3GAN (Huang et al. 2024): learned 4 x 4 maps, scaled by the latent, then blocks."""

    def __init__(self, inputs: int, image_channels: int, size: int, width: int) -> None:
        super().__init__()
        all_sides = sides(size)[::-1]
        counts = [*channels(width, len(all_sides) - 1)[::-1], width]
        self.scales = nn.Linear(inputs, counts[0])
        self.maps = nn.Parameter(torch.randn(counts[0], all_sides[0], all_sides[0]))
        stages: list[nn.Module] = [R3Block(counts[0]), R3Block(counts[0])]
        resized = zip(itertools.pairwise(counts), itertools.pairwise(all_sides), strict=True)
        for (before, after), (smaller, larger) in resized:
            stages += [nn.Conv2d(before, after, 1), Enlarge(smaller, larger), R3Block(after), R3Block(after)]
        self.stages = nn.Sequential(*stages, nn.Conv2d(width, image_channels, 1))

    def forward(self, codes: Tensor) -> Tensor:
        return self.stages(self.scales(codes)[:, :, None, None] * self.maps)


class R3Block(nn.Module):
    """A residual block with grouped convolutions and without normalisation; it begins as the identity."""

    def __init__(self, count: int, group_size: int = 16) -> None:
        super().__init__()
        inner = 2 * count
        layers = [
            nn.Conv2d(count, inner, 1),
            nn.Conv2d(inner, inner, 3, padding=1, groups=num_groups(inner, group_size)),
            nn.Conv2d(inner, count, 1, bias=False),
        ]
        for layer in layers[:2]:
            nn.init.kaiming_normal_(layer.weight, 0.2)
        nn.init.zeros_(layers[2].weight)
        self.layers = nn.ModuleList(layers)

    def forward(self, maps: Tensor) -> Tensor:
        enter, inside, leave = self.layers
        return maps + leave(F.leaky_relu(inside(F.leaky_relu(enter(maps), 0.2)), 0.2))


DECODERS: dict[str, Callable[[int, int, int, int], nn.Module]] = {  # inputs, image channels, size, width
    "convolutional": Decoder,
    "mlp": DenseDecoder,
    "dcgan": TransposedDecoder,
    "residual": ResidualDecoder,
    "r3": R3Decoder,
}
