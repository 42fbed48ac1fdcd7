"""A Transformer that draws images token by token (Chen et al. 2020), of a given class or of any.

Tokens are pixels in a few grey levels, or the codes of a vector-quantised autoencoder (van den Oord et al.
2017; Esser et al. 2021). The network is in network.py, the choice of tokens in sampling.py.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.noise import Noise
from pipeline.core.task import Batch, DataSpec, Phase, Task
from pipeline.models.transformer.network import Cache, Network
from pipeline.models.transformer.sampling import draw, probabilities
from pipeline.models.transformer.settings import TransformerConfig

COMPLETIONS = 2  # passes of a completion with codes


class Transformer(Task):
    """Draws and completes images. It has the weights of the model ``vqvae``, too, unless it draws pixels."""

    Config = TransformerConfig
    needs: ClassVar[tuple[str, ...]] = ("vqvae",)

    def __init__(self, config: TransformerConfig, spec: DataSpec, vqvae: Any = None) -> None:
        super().__init__(config, spec)
        if config.tokens == "pixels":
            self.vqvae, self.needs = None, ()  # type: ignore[misc]
            self.grid, self.num_tokens = (spec.size, spec.size, spec.channels), config.levels
        else:
            self.vqvae = vqvae
            self.grid, self.num_tokens = (vqvae.side, vqvae.side, 1), vqvae.num_tokens
        self.network = Network(config, self.num_tokens, self.grid, spec.classes)

    def phases(self) -> list[Phase]:
        return [Phase("transformer", self.network, self.config.optimizer.build(self.network.parameters()))]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        classes = self._classes(batch.labels)
        if self.config.conditional and self.config.label_dropout:
            dropped = noise.uniform("label") < self.config.label_dropout
            classes = torch.where(dropped, self.spec.classes, classes)
        return self._nats(batch.images, classes, noise).mean(), {}

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        nats = self._nats(batch.images, self._classes(batch.labels)).mean(1)
        values = {"nats_per_token": nats}
        return values if self.vqvae else values | {"bits_per_dimension": nats / math.log(2)}

    def _nats(self, images: Tensor, classes: Tensor, noise: Noise | None = None) -> Tensor:
        """-log p of each token, (N, L)."""
        tokens = self.tokens(images)
        logits = self.network(tokens, classes, noise).float()
        return F.cross_entropy(logits.mT, tokens, reduction="none")

    def _classes(self, labels: Tensor) -> Tensor:
        return labels if self.config.conditional else torch.full_like(labels, self.spec.classes)

    def tokens(self, images: Tensor) -> Tensor:
        """The tokens (N, L) of ``images``, int64, row by row; of a pixel its channels one after the other."""
        if self.vqvae:
            return self.vqvae.tokens(images).flatten(1)
        return (images * (self.config.levels - 1)).round().long().movedim(1, -1).flatten(1)

    def image_of(self, tokens: Tensor) -> Tensor:
        """The images (N, C, H, W) of ``tokens`` (N, L)."""
        grids = tokens.unflatten(1, self.grid)
        if self.vqvae:
            return self.vqvae.image_of(grids[..., 0])
        return grids.movedim(-1, 1).float() / (self.config.levels - 1)

    def generate(self, labels: Tensor | None, count: int, noise: Noise) -> Tensor:
        labels = noise.integers("label", self.spec.classes) if labels is None else labels
        return self.image_of(self._draw(self._classes(labels), noise))

    def complete(self, images: Tensor, known: Tensor, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images whose pixels are drawn where ``known`` (N or 1, 1, H, W) is 0; without labels of any class.

        Tokens are drawn in their order, so each of them depends on the known ones before it. A code is known
        if all of its pixels are. Codes also depend on pixels around their own; so a second pass reads them
        from the completed image.
        """
        if labels is None and self.config.conditional and not self.config.label_dropout:
            labels = noise.integers("label", self.spec.classes)  # it knows no image without a class
        none = torch.full((len(images),), self.spec.classes, device=images.device)
        classes = none if labels is None else self._classes(labels)
        known = known.expand(len(images), 1, *images.shape[2:])
        cells = -F.adaptive_max_pool2d(-known, self.grid[:2])  # the smallest value of each cell
        given = (cells.flatten(1) > 0).repeat_interleave(self.grid[2], 1)
        completed = torch.where(known > 0, images, 0)
        for number in range(COMPLETIONS if self.vqvae else 1):
            drawn = self._draw(classes, noise.at(f"{noise.phase} {number}"), self.tokens(completed), given)
            completed = torch.where(known > 0, images, self.image_of(drawn))
        return completed

    def _draw(
        self, classes: Tensor, noise: Noise, tokens: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Tokens (N, L), drawn one after the other; those that are ``given`` (N, L) are from ``tokens``."""
        config, cache = self.config, Cache()
        chances = noise.uniform("token", math.prod(self.grid))
        token, drawn = torch.zeros_like(classes), list[Tensor]()
        for number, chance in enumerate(chances.unbind(1)):
            logits = self.network.next(token, classes, number, cache).cpu()
            shares = probabilities(logits, config.temperature, config.top_k, config.top_p)
            token = draw(shares, chance.cpu()).to(classes.device)
            if tokens is not None and given is not None:
                token = torch.where(given[:, number], tokens[:, number], token)
            drawn.append(token)
        return torch.stack(drawn, 1)
