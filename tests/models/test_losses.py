"""The models' losses and layers, compared with closed forms."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pipeline.core import model_files
from pipeline.core.noise import Noise
from pipeline.core.task import DataSpec
from pipeline.layers.augmentation import jitter
from pipeline.layers.convolutional import Decoder, Encoder, sides
from pipeline.layers.dropout import dropout
from pipeline.layers.optimizers import OptimizerSettings
from pipeline.models.ae import AeConfig
from pipeline.models.cnn import CnnConfig
from pipeline.models.gan import GanConfig
from pipeline.models.vae import VaeConfig
from tests.arrays import batch_of

SPEC = DataSpec.labelled_images(1, 8, 3)


def batch(count=5):
    noise = Noise.whole(1, count)
    return batch_of(noise.uniform("x", 1, 8, 8), noise.integers("y", 3))


def test_the_vaes_divergence_is_that_of_the_two_normal_distributions():
    task = model_files.build("vae", VaeConfig(latent_size=4, width=8), SPEC, 0)
    shown = batch()
    mean, log_variance = task.network.encode(shown.images)
    expected = kl_divergence(
        Normal(mean, (log_variance / 2).exp()), Normal(task.network.prior_means(shown.labels), 1.0)
    ).sum(1)
    assert torch.allclose(task.evaluate(shown, Noise.whole(0, 5))["kl"], expected, rtol=1e-4)


def test_the_gaussian_likelihood_is_the_normal_density_in_nats():
    task = model_files.build(
        "vae", VaeConfig(latent_size=4, width=8, likelihood="gaussian", deviation=0.3), SPEC, 0
    )
    logits, images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), batch(2).images
    expected = -Normal(torch.sigmoid(logits), 0.3).log_prob(images).flatten(1).sum(1)
    assert torch.allclose(task._reconstruction(logits, images), expected, rtol=1e-4)


def test_beta_weighs_the_divergence():
    shown, noise = batch(), Noise.whole(0, 5)
    plain = model_files.build("vae", VaeConfig(width=8), SPEC, 0).loss("vae", shown, noise)
    heavy = model_files.build("vae", VaeConfig(width=8, beta=3.0), SPEC, 0).loss("vae", shown, noise)
    assert torch.allclose(heavy[0] - plain[0], 2 * plain[1]["kl"], rtol=1e-3)


@pytest.mark.parametrize("kind", ["non_saturating", "hinge"])
def test_the_adversarial_losses_are_those_of_the_papers(kind):
    task = model_files.build("gan", GanConfig(width=8, shift=0.0, adversarial_loss=kind), SPEC, 0).eval()
    shown, noise = batch(), Noise.whole(0, 5, "discriminator")
    drawn = task.generator(noise.normal("latent", task.config.latent_size), shown.labels)
    real, fake = task.discriminator(shown.images, shown.labels), task.discriminator(drawn, shown.labels)
    if kind == "non_saturating":
        wanted = (
            -(torch.sigmoid(real).log() + (1 - torch.sigmoid(fake)).log()).mean(),
            -torch.sigmoid(fake).log().mean(),
        )
    else:
        wanted = ((1 - real).clamp_min(0) + (1 + fake).clamp_min(0)).mean(), -fake.mean()
    assert torch.allclose(task.loss("discriminator", shown, noise)[0], wanted[0], atol=1e-5)
    assert torch.allclose(task.loss("generator", shown, noise)[0], wanted[1], atol=1e-5)


def test_spectral_normalisation_bounds_each_layers_gain_and_can_be_left_out():
    with_it = model_files.build("gan", GanConfig(width=8), SPEC, 0).train()
    for _ in range(200):
        with_it.discriminator(batch().images, batch().labels)
    gain = torch.linalg.matrix_norm(with_it.discriminator.encoder.output.weight, 2)
    assert abs(gain - 1) < 1e-3
    without = model_files.build("gan", GanConfig(width=8, spectral_normalisation=False), SPEC, 0)
    assert not any("parametrizations" in name for name, _ in without.named_parameters())


def test_the_dense_autoencoder_has_layers_of_64_and_32():
    task = model_files.build("ae", AeConfig(architecture="dense", code_size=5), SPEC, 0)
    shapes = [tuple(layer.weight.shape) for layer in task.modules() if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(64, 64), (32, 64), (5, 32), (32, 5), (64, 32), (64, 64)]


def test_the_default_classifier_has_the_layers_of_the_tutorials():
    task = model_files.build("cnn", CnnConfig(), DataSpec.labelled_images(1, 28, 10), 0)
    shapes = [tuple(p.shape) for p in task.parameters() if p.dim() > 1]
    assert shapes == [(32, 1, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (64, 64 * 7 * 7), (10, 64)]


def test_a_trained_autoencoder_fits_each_classs_mean_code_and_the_pooled_covariance():
    task = model_files.build("ae", AeConfig(architecture="dense", code_size=2), SPEC, 0)
    shown = batch(300)
    task.on_train_end(
        [
            batch_of(shown.images[:100], shown.labels[:100]),
            batch_of(shown.images[100:], shown.labels[100:]),
        ]
    )
    codes = task.encode(shown.images).detach().double()
    for label in range(3):
        assert torch.allclose(
            task.code_means[label].double(), codes[shown.labels == label].mean(0), atol=1e-5
        )
    within = codes - task.code_means[shown.labels].double()
    expected = within.T @ within / 300 + 1e-4 * torch.eye(2)
    assert torch.allclose((task.code_factor @ task.code_factor.T).double(), expected, atol=1e-5)


def test_noise_on_the_input_leaves_the_target_clean():
    shown, noise = batch(), Noise.whole(0, 5)
    plain = model_files.build("ae", AeConfig(architecture="dense"), SPEC, 0).loss(
        "autoencoder", shown, noise
    )[0]
    noisy = model_files.build("ae", AeConfig(architecture="dense", input_noise=0.5), SPEC, 0).loss(
        "autoencoder", shown, noise
    )[0]
    assert not torch.equal(plain, noisy)
    huber = model_files.build(
        "ae", AeConfig(architecture="dense", reconstruction_loss="huber", huber_delta=10.0), SPEC, 0
    )
    loss, values = huber.loss("autoencoder", shown, noise)
    assert torch.allclose(loss, values["mse"] / 2)  # within delta Huber's loss is half the square


@pytest.mark.parametrize("size", [5, 8, 16, 28, 32, 33])
def test_encoder_and_decoder_fit_any_size(size):
    assert Encoder(3, size, 8, 7)(torch.rand(2, 3, size, size)).shape == (2, 7)
    assert Decoder(7, 3, size, 8)(torch.rand(2, 7)).shape == (2, 3, size, size)
    assert sides(size)[0] == size and sides(size)[-1] <= 4


def test_dropout_keeps_the_mean_and_is_off_without_noise():
    values = torch.ones(2000, 10)
    dropped = dropout(values, 0.3, Noise.whole(0, 2000), "d")
    assert abs(dropped.mean() - 1) < 0.02 and abs((dropped == 0).float().mean() - 0.3) < 0.02
    assert dropout(values, 0.3, None, "d") is values


def test_jitter_moves_images_and_is_the_identity_at_zero():
    image = torch.zeros(200, 1, 9, 9)
    image[:, :, 4, 4] = 1
    moved = jitter(image, Noise.whole(0, 200), shift=0.2)
    assert torch.allclose(moved.sum((1, 2, 3)), torch.ones(200), atol=1e-5)  # it moves, it does not fade
    assert not torch.allclose(moved, image) and jitter(image, Noise.whole(0, 200), 0.0) is image
    mass = moved.mean((0, 1))
    assert mass[4].sum() < 0.6 and mass[:2].sum() == 0  # at most 1.8 of 9 pixels away


@pytest.mark.parametrize("kind", ["sgd", "momentum", "rmsprop", "adam", "adamw", "muon"])
def test_every_optimizer_takes_a_downhill_step(kind):
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = OptimizerSettings(kind=kind, learning_rate=0.1).build([weight])
    for _ in range(50):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert abs(weight.item()) < 2.0
