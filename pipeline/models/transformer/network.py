"""A decoder-only Transformer (Vaswani et al. 2017; Radford et al. 2019) over a grid of tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.noise import Noise
from pipeline.layers.dropout import dropout
from pipeline.models.transformer.settings import TransformerConfig

Cache = list[tuple[Tensor, Tensor]]  # the keys and values of each layer so far, (N, heads, positions, D)


class Attention(nn.Module):
    """Multi-head self-attention; no position sees a later one. (N, L, width) -> the same shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Queries, keys and values. A bias of the keys would change nothing.
        self.input = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width)

    def forward(
        self, values: Tensor, angles: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``past``: keys and values of earlier positions; ``values`` then has a single one."""
        split = self.input(values).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)  # (N, heads, L, D)
        if angles is not None:
            query, key = rotated(query, angles), rotated(key, angles)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        return self.output(mixed.transpose(1, 2).flatten(2)), (key, value)


class Layer(nn.Module):
    """Attention and a perceptron, with layer normalisation before each and a sum around each."""

    def __init__(self, config: TransformerConfig, name: str) -> None:
        super().__init__()
        width = config.width
        self.rate, self.name = config.dropout, name
        self.attention = Attention(width, config.heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self,
        values: Tensor,
        angles: Tensor | None,
        noise: Noise | None = None,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mixed, present = self.attention(self.norms[0](values), angles, past)
        values = values + dropout(mixed, self.rate, noise, f"{self.name} attention")
        changed = self.perceptron(self.norms[1](values))
        return values + dropout(changed, self.rate, noise, f"{self.name} perceptron"), present


class Network(nn.Module):
    """p(token | earlier tokens, class) of each token of a grid (height, width, channels), row by row.

    The class ``num_classes`` stands for no class.
    """

    angles: Tensor | None  # (L, D / 2)

    def __init__(
        self, config: TransformerConfig, num_tokens: int, grid: tuple[int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        self.grid, self.rate, width = grid, config.dropout, config.width
        self.classes = nn.Embedding(num_classes + 1, width)
        self.embedding = nn.Embedding(num_tokens, width)
        self.positions = nn.ParameterList(torch.randn(side, width) * 0.02 for side in grid)
        self.layers = nn.ModuleList(Layer(config, f"layer {number}") for number in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.output = None if config.tied else nn.Linear(width, num_tokens)
        for table in (self.classes, self.embedding):
            nn.init.normal_(table.weight, std=0.02)
        rotary = config.positions == "rotary"
        angles = rotary_angles(grid, width // config.heads) if rotary else None
        self.register_buffer("angles", angles, persistent=False)

    def forward(self, tokens: Tensor, classes: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (N, L, num_tokens) of ``tokens`` (N, L). With ``noise`` values are dropped."""
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
        values = self._inputs(before, classes, 0)
        values = dropout(values, self.rate, noise, "inputs")
        for layer in self.layers:
            values, _ = layer(values, self.angles, noise)
        return self._logits(values)

    def next(self, before: Tensor, classes: Tensor, number: int, cache: Cache) -> Tensor:
        """Logits (N, num_tokens) of the token ``number``, given the one ``before`` it, (N,).

        ``cache`` has the keys and values of earlier positions; those of this one are added.
        """
        values = self._inputs(before[:, None], classes, number)
        angles = None if self.angles is None else self.angles[number : number + 1]
        for index, layer in enumerate(self.layers):
            past = cache[index] if number else None
            values, present = layer(values, angles, None, past)
            cache[index : index + 1] = [present]
        return self._logits(values)[:, 0]

    def _inputs(self, before: Tensor, classes: Tensor, first: int) -> Tensor:
        """The input of the first layer, (N, L, width), at the positions from ``first`` on."""
        rows, columns, channels = self.positions
        places = (rows[:, None, None] + columns[:, None] + channels).flatten(0, 2)
        values = self.embedding(before)
        if first == 0:  # there is no token before the first one
            values = torch.cat([torch.zeros_like(values[:, :1]), values[:, 1:]], 1)
        return values + places[first : first + before.shape[1]] + self.classes(classes)[:, None]

    def _logits(self, values: Tensor) -> Tensor:
        values = self.norm(values)
        return F.linear(values, self.embedding.weight) if self.output is None else self.output(values)


def rotary_angles(grid: tuple[int, int, int], size: int) -> Tensor:
    """Angles (L, ``size`` / 2) of a query or key at each place of ``grid`` (Su et al. 2021).

    The first half of them depends on the row, the second on the column.
    """
    frequencies = 100 ** -(torch.arange(size // 4) / (size // 4))
    rows, columns, _ = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    return torch.cat([place.flatten()[:, None] * frequencies for place in (rows, columns)], 1)


def rotated(vectors: Tensor, angles: Tensor) -> Tensor:
    """``vectors`` (..., L, D): each pair of values, from both halves, rotated by ``angles`` (L, D / 2)."""
    first, second = vectors.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(vectors.dtype)
