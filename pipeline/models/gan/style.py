"""The style-based generator (StyleGAN2, Karras et al. 2020), for images of 16 to 64 pixels."""

import itertools
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.noise import Noise
from pipeline.core.task import DataSpec
from pipeline.layers.convolutional import channels, sides
from pipeline.models.gan.resampling import Enlarge
from pipeline.models.gan.settings import GanConfig

MAPPING_LAYERS, MAPPING_RATE = 2, 0.01  # the second scales the learning rate
NUM_MEAN = 4096  # latents for the mean code of a class


class StyleGenerator(nn.Module):
    """Latents (N, L) and labels (N,), or None if not conditional -> images (N, C, H, W) in [0, 1].

    A mapping network makes a code w (N, L) from the latent and the class. The code modulates the convolutions
    at each size of the feature maps, its *levels*, from the smallest to the image's. The image is the sum of
    the outputs at all sizes (skip connections). Without ``noise`` the noise inputs are zero.
    """

    mean_codes: Tensor

    def __init__(self, config: GanConfig, spec: DataSpec) -> None:
        super().__init__()
        size = config.latent_size
        self.classes = nn.Embedding(spec.classes, size) if config.conditional else None
        inputs = [2 * size if config.conditional else size, *[size] * MAPPING_LAYERS]
        self.mapping = nn.ModuleList(
            ScaledLinear(*pair, rate=MAPPING_RATE) for pair in itertools.pairwise(inputs)
        )
        self.synthesis = Synthesis(size, spec, config.width)
        # For truncation; they are computed when the training ends.
        self.register_buffer("mean_codes", torch.zeros(spec.classes if config.conditional else 1, size))

    @property
    def num_levels(self) -> int:
        """The number of levels at which styles can be mixed."""
        return len(self.synthesis.blocks)

    def codes(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Latents (N, L) -> codes w (N, L)."""
        values = _normalised(latents)
        if self.classes is not None:
            values = torch.cat([values, _normalised(self.classes(labels))], 1)
        for layer in self.mapping:
            values = _activation(layer(values))
        return values

    def forward(self, latents: Tensor, labels: Tensor | None, noise: Noise | None = None) -> Tensor:
        return self.synthesis(self.codes(latents, labels), noise)

    def mixed(
        self, codes: Tensor, others: Tensor, levels: Tensor | int, noise: Noise | None = None
    ) -> Tensor:
        """Images with the codes (N, L) at the first ``levels`` (an integer or (N,)), ``others`` after."""
        level = torch.arange(self.num_levels, device=codes.device)[None]
        is_first = level < torch.as_tensor(levels, device=codes.device).reshape(-1, 1)
        return self.synthesis(torch.where(is_first[:, :, None], codes[:, None], others[:, None]), noise)

    def truncated(self, codes: Tensor, labels: Tensor | None, psi: float) -> Tensor:
        """Codes (N, L), moved towards the mean code of their class: psi 1 is the code, 0 the mean.

        Until the mean codes are computed, psi is 1.
        """
        mean = self.mean_codes if labels is None else self.mean_codes[labels]
        mean = torch.where(self.mean_codes.any(), mean, codes)
        return mean + psi * (codes - mean)

    @torch.no_grad()
    def set_mean_codes(self) -> None:
        """Compute the mean code of each class."""
        device = self.mean_codes.device
        latents = Noise.whole(0, NUM_MEAN, "mean codes", device=device).normal(
            "latent", self.mean_codes.shape[1]
        )
        for label, mean in enumerate(self.mean_codes):
            labels = torch.full((NUM_MEAN,), label, device=device)
            mean.copy_(self.codes(latents, labels).mean(0))


class Synthesis(nn.Module):
    """Codes (N, L), or (N, levels, L) -> images (N, C, H, W) in [0, 1]."""

    def __init__(self, code_size: int, spec: DataSpec, width: int) -> None:
        super().__init__()
        all_sides = sides(spec.size)[::-1]
        counts = [*channels(width, len(all_sides) - 1)[::-1], width]
        self.constant = nn.Parameter(torch.randn(counts[0], all_sides[0], all_sides[0]))
        pairs = [(counts[0], counts[0]), *itertools.pairwise(counts)]
        self.blocks = nn.ModuleList(
            StyleBlock(*pair, code_size, side, spec.channels, convolutions=2 if index else 1)
            for index, (pair, side) in enumerate(zip(pairs, all_sides, strict=True))
        )
        self.enlarge = nn.ModuleList(Enlarge(*pair) for pair in itertools.pairwise(all_sides))

    def forward(self, codes: Tensor, noise: Noise | None = None) -> Tensor:
        if codes.dim() == 2:
            codes = codes[:, None].expand(-1, len(self.blocks), -1)
        maps, image = self.blocks[0](self.constant.expand(codes.shape[0], -1, -1, -1), codes[:, 0], noise)
        for level, (enlarge, block) in enumerate(zip(self.enlarge, self.blocks[1:], strict=True), 1):
            maps, change = block(enlarge(maps), codes[:, level], noise)
            image = enlarge(image) + change
        return torch.sigmoid(image)


class StyleBlock(nn.Module):
    """The modulated convolutions at one size, and what they add to the image."""

    def __init__(
        self, before: int, after: int, code_size: int, side: int, image_channels: int, convolutions: int
    ) -> None:
        super().__init__()
        self.side = side
        inputs = [before, *[after] * (convolutions - 1)]
        self.convolutions = nn.ModuleList(ModulatedConv(count, after, 3, code_size) for count in inputs)
        self.noise_scales = nn.Parameter(torch.zeros(convolutions))
        self.biases = nn.Parameter(torch.zeros(convolutions, after, 1, 1))
        self.to_image = ModulatedConv(after, image_channels, 1, code_size, demodulate=False)
        self.image_bias = nn.Parameter(torch.zeros(image_channels, 1, 1))

    def forward(self, maps: Tensor, codes: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        for index, convolution in enumerate(self.convolutions):
            maps = convolution(maps, codes) + self.biases[index]
            if noise is not None:
                drawn = noise.normal(f"pixels_{self.side}_{index}", 1, self.side, self.side)
                maps = maps + self.noise_scales[index] * drawn
            maps = _activation(maps)
        return maps, self.to_image(maps, codes) + self.image_bias


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by an affine function of the code (N, L).

    ``demodulate`` divides each output channel by the norm of its scaled weights. Scaling the inputs and
    outputs gives what a convolution with other weights for each image gives, and is faster.
    """

    def __init__(self, before: int, after: int, kernel: int, code_size: int, demodulate: bool = True) -> None:
        super().__init__()
        self.style = ScaledLinear(code_size, before, bias=1.0)
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.scale, self.padding = 1 / sqrt(before * kernel**2), kernel // 2
        self.demodulate = demodulate

    def forward(self, maps: Tensor, codes: Tensor) -> Tensor:
        styles, weight = self.style(codes), self.weight * self.scale
        result = F.conv2d(maps * styles[:, :, None, None], weight, padding=self.padding)
        if not self.demodulate:
            return result
        squares = styles.square() @ weight.square().sum((2, 3)).T  # (N, after)
        return result * torch.rsqrt(squares + 1e-8)[:, :, None, None]


class ScaledLinear(nn.Module):
    """A linear layer with an equalised learning rate (Karras et al. 2018), times ``rate``."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate / sqrt(inputs), rate

    def forward(self, values: Tensor) -> Tensor:
        return F.linear(values, self.weight * self.scale, self.bias * self.rate)


def _activation(values: Tensor) -> Tensor:
    return F.leaky_relu(values, 0.2) * sqrt(2)


def _normalised(values: Tensor) -> Tensor:
    return values * torch.rsqrt(values.square().mean(1, keepdim=True) + 1e-8)
