"""An autoencoder (Hinton & Salakhutdinov 2006), dense or convolutional, and a U-Net that restores images.

Vincent et al. 2008 (denoising); Pathak et al. 2016 (in-painting); Rifai et al. 2011 (contractive penalty);
Zhao et al. 2017 (SSIM as a loss); Ghosh et al. 2020 (a distribution of the codes, fitted after training).
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pipeline.core.noise import Noise
from pipeline.core.task import Batch, DataSpec, Phase, Task
from pipeline.errors import BadInput
from pipeline.layers import damage
from pipeline.layers.mixture import ClassMixture, cholesky_factors
from pipeline.layers.private import PrivateLoss
from pipeline.layers.similarity import image_loss
from pipeline.models.ae.networks import Pair, build_network
from pipeline.models.ae.settings import AeConfig


class Ae(Task):
    """Encodes and reconstructs images; after training it also generates them. A U-Net only restores them."""

    Config = AeConfig
    code_means: Tensor  # (classes, D)
    code_factor: Tensor  # (D, D), lower Cholesky factor of the covariance
    fitted: Tensor  # (), bool: whether the code distribution is fitted

    def __init__(self, config: AeConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        held_out = config.held_out_class
        if held_out is not None and not (spec.classes > 1 and held_out < spec.classes):
            remedy = f"choose 0 to {spec.classes - 1} of at least two classes"
            raise BadInput(f"there is no class {held_out} to hold out", where="held_out_class", remedy=remedy)
        self.restorations = config.restorations  # what restore() was trained for
        self.network = build_network(config, spec)
        self.private = PrivateLoss(config.privacy) if config.privacy else None
        self.mixture: ClassMixture | None = None
        if not self._has_prior:
            return
        if config.prior == "mixture":
            self.mixture = ClassMixture(config.num_components, config.code_size, spec.classes)
        else:
            self.register_buffer("code_means", torch.zeros(spec.classes, config.code_size))
            self.register_buffer("code_factor", torch.zeros(config.code_size, config.code_size))
            self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @property
    def _has_prior(self) -> bool:
        return isinstance(self.network, Pair) and self.config.prior != "none"

    def phases(self) -> list[Phase]:
        return [Phase("autoencoder", self.network, self.config.optimizer.build(self.network.parameters()))]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.private(self, self._loss, batch, noise) if self.private else self._loss(batch, noise)

    def _loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        config = self.config
        images, mask = self._damaged(batch.images, noise)
        if config.penalty == "contractive":
            images = images.detach().requires_grad_()
        restored = torch.sigmoid(self.network(images, mask)).float()
        errors = image_loss(config.reconstruction_loss, restored, batch.images, config.huber_delta)
        values = {}
        if config.reconstruction_loss != "mse":
            values["mse"] = (restored - batch.images).square().mean()
        if config.penalty != "none":
            penalty = self._penalty(images, noise)
            errors = errors + config.penalty_weight * penalty
            values["penalty"] = penalty.mean()
        if config.held_out_class is not None:
            errors = errors * (batch.labels != config.held_out_class)
        return errors.mean(), values

    def _damaged(self, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The input of the network: images (N, C, H, W), each damaged for one objective, and their masks."""
        objectives, known = self.config.objectives, torch.ones_like(images[:, :1])
        deviation = self.config.input_noise
        if objectives == ("reconstruct",):
            noisy = images + deviation * noise.normal("input", *images.shape[1:]) if deviation else images
            return noisy, known
        inputs, chosen = images, noise.integers("objective", len(objectives))
        for number, objective in enumerate(objectives):
            own = (chosen == number)[:, None, None, None]
            if objective == "denoise":
                inputs = torch.where(own, damage.add_noise(images, deviation, noise), inputs)
            elif objective == "inpaint":
                known = torch.where(own, damage.square_mask(images, noise.uniform("square", 2)), known)
                inputs = damage.hide(inputs, known)
            elif objective == "upscale":
                inputs = torch.where(own, damage.shrink(images), inputs)
        return inputs, known

    def _penalty(self, images: Tensor, noise: Noise) -> Tensor:
        """The penalty of the codes of each image, (N,)."""
        assert isinstance(self.network, Pair)
        codes = self.network.encoder(images).float()
        if self.config.penalty == "sparse":
            return codes.abs().sum(1)
        # E |v J|^2 over normal v is the squared Frobenius norm of the Jacobian J.
        directions = noise.normal("direction", codes.shape[1])
        (products,) = torch.autograd.grad(codes, images, directions, create_graph=True)
        return products.square().flatten(1).sum(1)

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        error = self.reconstruct(batch.images) - batch.images
        values = {"mse": error.square().flatten(1).mean(1), "mae": error.abs().flatten(1).mean(1)}
        if self.restorations:
            images, mask = self._damaged(batch.images, noise)
            restored = torch.sigmoid(self.network(images, mask))
            values["restoration_mse"] = (restored - batch.images).square().flatten(1).mean(1)
        return values

    def encode(self, images: Tensor) -> Tensor | None:
        """Codes (N, D); a U-Net has none."""
        return self.network.encoder(images) if isinstance(self.network, Pair) else None

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) of ``latents`` (N, D)."""
        assert isinstance(self.network, Pair)
        return torch.sigmoid(self.network.decoder(latents))

    def reconstruct(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.network(images, torch.ones_like(images[:, :1])))

    def restore(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Repaired images. Pixels that ``mask`` (N or 1, 1, H, W) says are known, with 1, are kept."""
        if mask is None:
            return self.reconstruct(images)
        hidden = damage.hide(images, mask)
        return torch.where(mask > 0, images, torch.sigmoid(self.network(hidden, mask)))

    @torch.no_grad()
    def on_train_end(self, batches: Iterable[Batch]) -> None:
        if not self._has_prior:
            return
        assert isinstance(self.network, Pair)
        # On the CPU, because mps has no float64.
        pairs = [(self.network.encoder(batch.images).cpu().double(), batch.labels.cpu()) for batch in batches]
        codes, labels = torch.cat([codes for codes, _ in pairs]), torch.cat([labels for _, labels in pairs])
        if self.config.held_out_class is not None:
            learned = labels != self.config.held_out_class
            codes, labels = codes[learned], labels[learned]
        if self.mixture:
            self.mixture.fit(codes, labels)
            return
        counts = torch.bincount(labels, minlength=self.spec.classes)[:, None]
        sums = torch.zeros(self.code_means.shape, dtype=torch.float64).index_add_(0, labels, codes)
        means = torch.where(counts > 0, sums / counts.clamp_min(1), codes.mean(0))
        within = codes - means[labels]
        covariance = within.T @ within / len(within)
        self.code_means.copy_(means)
        self.code_factor.copy_(cholesky_factors(covariance))
        self.fitted.fill_(True)

    def latents(self, count: int, noise: Noise, labels: Tensor | None = None) -> Tensor | None:
        """Codes (count, D) of classes ``labels`` (count,) or of random ones; None before they are fitted."""
        if not self._has_prior or not (self.mixture or self).fitted:
            return None
        labels = noise.integers("label", self.spec.classes) if labels is None else labels
        if self.mixture:
            return self.mixture.draw(labels, noise, "code", self.config.temperature)
        normal = self.config.temperature * noise.normal("code", self.config.code_size)
        return self.code_means[labels] + normal @ self.code_factor.T

    def generate(self, labels: Tensor | None, count: int, noise: Noise) -> Tensor | None:
        codes = self.latents(count, noise, labels)
        return None if codes is None else self.decode(codes)
