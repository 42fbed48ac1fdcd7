"""A vector-quantised autoencoder (VQ-VAE, van den Oord et al. 2017).

An image becomes a grid of codes, whole numbers, which a Transformer can learn to draw. The codebook is in
codebook.py, the networks are in networks.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.core.noise import Noise
from pipeline.core.settings import ScheduleSettings
from pipeline.core.task import Batch, DataSpec, Phase, Task
from pipeline.layers.similarity import image_loss
from pipeline.models.vqvae.codebook import Codebook
from pipeline.models.vqvae.networks import Decoder, Encoder, sides
from pipeline.models.vqvae.settings import VqvaeConfig


class Vqvae(Task):
    """Encodes images as codes, and reconstructs them."""

    Config = VqvaeConfig

    def __init__(self, config: VqvaeConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.network = nn.ModuleDict({"encoder": Encoder(config, spec), "decoder": Decoder(config, spec)})
        self.codebook = Codebook(
            config.num_codes, config.code_size, config.codebook_decay, config.revive_below
        )
        self.num_tokens, self.side = config.num_codes, sides(spec.size, config.halvings)[-1]

    def phases(self) -> list[Phase]:
        optimizer = self.config.optimizer.build(self.network.parameters())
        return [
            Phase("autoencoder", self.network, optimizer),
            Phase("codebook", self.codebook, self.codebook.optimizer(), schedule=ScheduleSettings()),
        ]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        config = self.config
        encodings = self._encodings(batch.images)
        if phase == "codebook":
            perplexity = self.codebook.perplexity
            return self.codebook.loss(encodings.flatten(1, 2), noise), {"perplexity": perplexity}
        codes = self.codebook.codes[self.codebook.nearest(encodings)]
        # The gradient of the codes is passed on to the encodings as it is.
        restored = self._image(encodings + (codes - encodings).detach())
        errors = image_loss(config.reconstruction_loss, restored, batch.images, config.huber_delta)
        commitment = (encodings - codes).square().mean()
        return errors.mean() + config.commitment * commitment, {
            "mse": (restored - batch.images).square().mean(),
            "commitment": commitment,
        }

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        error = self.reconstruct(batch.images) - batch.images
        return {"mse": error.square().flatten(1).mean(1), "mae": error.abs().flatten(1).mean(1)}

    def _encodings(self, images: Tensor) -> Tensor:
        return self.network["encoder"](images * 2 - 1).float().movedim(1, -1)  # (N, h, w, D)

    def _image(self, codes: Tensor) -> Tensor:
        return torch.sigmoid(self.network["decoder"](codes.movedim(-1, 1))).float()

    def tokens(self, images: Tensor) -> Tensor:
        """The numbers of the codes of ``images``, (N, h, w), int64."""
        return self.codebook.nearest(self._encodings(images))

    def image_of(self, tokens: Tensor) -> Tensor:
        """The images (N, C, H, W) of ``tokens`` (N, h, w)."""
        return self._image(self.codebook.codes[tokens])

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.image_of(self.tokens(images))
