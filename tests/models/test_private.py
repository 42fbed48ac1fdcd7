"""DP-SGD: the accountant, clipping, the noise, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pipeline.core import model_files
from pipeline.core.batch import Batch
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.errors import BadInput
from pipeline.layers import private
from pipeline.layers.private import PrivacySettings, delta_of, mu_of, noise_multiplier, secret_normal
from pipeline.params import validate
from tests.arrays import dataset_for

NORM, COUNT = 0.05, 9  # of a clipped gradient; examples in a batch
CONFIGS = {
    "cnn": {"channels": (8, 8), "dense": (16,), "dropout": 0.3, "shift": 0.1, "rotate": 9.0, "erase": 0.5},
    "cnn group": {"channels": (8, 8), "normalisation": "group", "loss": "focal", "crop": 1, "flip": 0.5},
    "cnn residual": {"architecture": "residual", "channels": (8, 16), "normalisation": "weight"},
    "ae": {"width": 8, "prior": "none", "input_noise": 0.1, "penalty": "sparse"},
    "ae dense": {
        "architecture": "dense",
        "prior": "none",
        "reconstruction_loss": "ssim",
        "held_out_class": 1,
    },
    "ae unet": {"architecture": "unet", "width": 8, "objectives": ("inpaint", "upscale")},
}


def build(name="cnn", key=b"key", norm=NORM, training=None, data=None):
    """A private model with its data."""
    model = name.split()[0]
    data = data or dataset_for(model)
    config = CONFIGS[name] | {"privacy": {"epsilon": 8.0, "max_grad_norm": norm}}
    task = model_files.build(model, config, data.spec, 0)
    task.private.begin(training or TrainingSettings(num_steps=5, batch_size=COUNT), len(data.train), key)
    return task, data


def gradient(task, batch, noise):
    """The gradient of the private loss, as one vector."""
    loss, _ = task.loss("train", batch, noise)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(task.parameters()))])


def noiseless(task):
    task.private.deviation = 0.0
    return task


@pytest.mark.parametrize(
    ("mu", "epsilon", "delta"),
    [
        (1 / 3.730632, 1.0, 1e-5),  # the analytic Gaussian mechanism of Balle & Wang 2018
        (1.0, 0.0, 0.3829249),  # total variation, 2 Phi(1 / 2) - 1
        (1.0, 1.0, 0.1269367),  # Dong et al. 2022
    ],
)
def test_the_accountant_has_published_values(mu, epsilon, delta):
    assert delta_of(mu, epsilon) == pytest.approx(delta, rel=1e-4)
    if epsilon:
        assert mu_of(epsilon, delta) == pytest.approx(mu, rel=1e-4)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.3, 1.0), (1.0, 0.5), (2.0, 8.0), (4.0, 8.0)])
def test_delta_is_the_integral_of_the_densities_that_differ_by_more_than_epsilon(mu, epsilon):
    density, e = stats.norm.pdf, math.exp(epsilon)
    crossing = epsilon / mu + mu / 2
    area, _ = integrate.quad(lambda x: density(x, mu) - e * density(x), crossing, crossing + 40, epsabs=1e-14)
    assert delta_of(mu, epsilon) == pytest.approx(area, rel=1e-6, abs=1e-13)


def test_epochs_compose_like_the_sums_of_their_privacy_losses():
    """The distribution of the sum of three privacy losses, convolved numerically."""
    training = TrainingSettings(num_steps=29, batch_size=10)  # three epochs of ten steps, the last not whole
    settings, step = PrivacySettings(epsilon=2.0, delta=1e-4), 1e-3
    mu = 1 / noise_multiplier(settings, training, 105)  # of one epoch
    losses = np.arange(-8, 8, step)
    one = stats.norm.pdf(losses, mu**2 / 2, mu) * step  # log(p / q) under p is normal
    three = np.convolve(np.convolve(one, one), one)
    sums = 3 * losses[0] + step * np.arange(len(three))
    delta = (three * np.clip(1 - np.exp(settings.epsilon - sums), 0, None)).sum()
    assert delta == pytest.approx(settings.delta, rel=1e-3)


NIGHTLY = ("cnn group", "ae", "ae dense")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly) if name in NIGHTLY else name for name in CONFIGS]
)
def test_the_gradient_is_the_mean_of_clipped_gradients_of_single_examples(name, monkeypatch):
    monkeypatch.setattr(private, "CHUNK", 4)  # the last chunk is smaller
    task, data = build(name)
    noiseless(task)
    batch, noise = data.train.batch(np.arange(COUNT)), Noise.whole(3, COUNT, "train", 2)
    clipped, losses = [], []
    for row in range(COUNT):
        loss, values = task._loss(batch.rows(row, row + 1), noise.rows(row, row + 1))
        parts = torch.autograd.grad(loss, list(task.parameters()))
        own = torch.cat([part.flatten() for part in parts])
        clipped.append(own / max(1.0, float(own.norm()) / NORM))
        losses.append(loss)
    found, values = task.loss("train", batch, noise)
    assert found.item() == pytest.approx(sum(losses).item() / COUNT, rel=1e-5)
    assert torch.allclose(gradient(task, batch, noise), sum(clipped) / COUNT, atol=1e-6)
    assert 0 < values["clipped_fraction"] <= 1  # the norm of some is larger


@pytest.mark.parametrize("name", ["cnn", "ae"])
def test_one_example_changes_the_sum_by_at_most_the_norm(name):
    """Compared with a gradient of 0 in its place, however extreme the example is."""
    task, data = build(name)
    noiseless(task)
    batch, noise = data.train.batch(np.arange(COUNT)), Noise.whole(3, COUNT, "train", 2)
    extreme = batch.images.clone()
    extreme[4] *= 100
    sums = [
        gradient(task, Batch({**batch.fields, "image": images}), noise) for images in (batch.images, extreme)
    ]
    others = [
        gradient(task, batch.rows(*part), noise.rows(*part)) * (part[1] - part[0])
        for part in ((0, 4), (5, 9))
    ]
    for found in sums:
        assert (found * COUNT - sum(others)).norm() <= NORM * (1 + 1e-4)
    assert (sums[0] - sums[1]).norm() * COUNT > NORM / 2  # the example was extreme


def test_in_bfloat16_too_one_example_changes_the_sum_by_at_most_the_norm(monkeypatch):
    """The gradients are equal, so a sum in bfloat16 would lose or gain whole ones."""
    task, data = build("cnn")
    noiseless(task)
    batch, noise = data.train.batch(np.zeros(COUNT, int)), Noise.whole(3, COUNT, "train", 2)
    of_each, sums = private._of_each, []
    for last in (1.0, 0.0):

        def equal(*given, last=last):
            gradients, values = of_each(*given)
            rows = torch.ones(len(values["loss"]))
            rows[-1] = last
            shaped = {name: rows.view(-1, *[1] * (value.dim() - 1)) for name, value in gradients.items()}
            return {name: value[:1] * shaped[name] for name, value in gradients.items()}, values

        monkeypatch.setattr(private, "_of_each", equal)
        with torch.autocast("cpu", torch.bfloat16):
            sums.append(gradient(task, batch, noise) * COUNT)
    assert 0 < (sums[0] - sums[1]).norm() <= NORM * (1 + 1e-4)


@pytest.mark.parametrize(("epsilon", "delta"), [(e, d) for e in (1e-3, 100.0) for d in (1e-12, 0.5)])
def test_the_accountant_holds_at_the_ends_of_the_accepted_settings(epsilon, delta):
    PrivacySettings(epsilon=epsilon, delta=delta)
    assert delta_of(mu_of(epsilon, delta), epsilon) <= delta * (1 + 1e-3)


def test_the_noise_has_the_deviation_of_the_accountant_and_depends_on_key_and_step_alone():
    training = TrainingSettings(num_steps=50, batch_size=COUNT)
    task, data = build(training=training)
    batch = data.train.batch(np.arange(COUNT))

    def drawn(key, step, seed=0):
        task.private.begin(training, len(data.train), key)
        noise = Noise.whole(seed, COUNT, "train", step)
        noisy = gradient(task, batch, noise)
        return (noisy - gradient(noiseless(task), batch, noise)) * COUNT

    first = drawn(b"key", 1)
    expected = NORM * noise_multiplier(task.private.settings, training, len(data.train))
    assert first.std() == pytest.approx(expected, rel=0.1) and len(first) > 1000
    assert torch.allclose(first, drawn(b"key", 1, seed=5), atol=expected * 1e-3)
    for other in (drawn(b"key", 2), drawn(b"other", 1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.1


def test_secret_numbers_are_normal_and_a_function_of_key_and_step():
    numbers = secret_normal(b"key", 1, 20_001)
    assert numbers.dtype == torch.float64 and torch.equal(numbers, secret_normal(b"key", 1, 20_001))
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3
    assert not torch.isclose(numbers, secret_normal(b"key", 2, 20_001)).any()
    assert abs(np.corrcoef(numbers[:-1:2], numbers[1::2])[0, 1]) < 0.04  # both of a pair


def test_a_private_loss_without_a_key_or_with_a_checkpoint_of_another_key_is_refused():
    task, data = build()
    other, _ = build(key=b"other")
    with pytest.raises(BadInput, match="began with another secret"):
        other.load_state_dict(task.state_dict())
    again, _ = build()
    again.load_state_dict(task.state_dict())
    loaded = model_files.build("cnn", task.config, data.spec, 1)
    loaded.load_state_dict(task.state_dict())  # for inference
    with pytest.raises(AssertionError, match="begin"):
        loaded.loss("train", data.train.batch(np.arange(4)), Noise.whole(0, 4))


@pytest.mark.parametrize(
    ("name", "settings", "what"),
    [
        ("cnn", {"mixup": 0.2}, "several times"),
        ("cnn", {"cutmix": 1.0}, "several times"),
        ("cnn", {"class_weights": "auto"}, "counts without noise"),
        ("cnn", {"architecture": "fast"}, "fits its filters"),
        ("cnn", {"calibrate": True}, "fits a temperature"),
        ("ae", {}, "prior is fitted without noise"),
        ("ae", {"prior": "mixture"}, "prior is fitted without noise"),
        ("ae", {"prior": "none", "penalty": "contractive"}, "contractive"),
        ("gan", {}, "no such setting"),
        ("vae", {}, "no such setting"),
    ],
)
def test_settings_of_a_model_that_use_images_without_noise_are_refused_by_name(name, settings, what):
    kind = model_files.find(name)
    with pytest.raises(BadInput, match=what):
        validate(settings | {"privacy": {"epsilon": 8.0}}, kind.Config, where=name)
    if what != "no such setting":
        validate(settings, kind.Config, where=name)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"sampling": "balanced"}, "sampling: balanced"),
        ({"keep": "best", "monitor": "validation/accuracy"}, "keep: best"),
        ({"patience": 3, "monitor": "validation/accuracy"}, "patience"),
        ({"precision": "float16"}, "float16"),
        ({"compile": True}, "compile"),
    ],
)
def test_settings_of_a_training_that_contradict_privacy_are_refused_by_name(values, what):
    with pytest.raises(BadInput, match=what):
        build(training=TrainingSettings(batch_size=COUNT, **values))


def test_a_delta_that_allows_to_publish_a_whole_image_is_refused():
    data = dataset_for("cnn")
    task = model_files.build("cnn", {"privacy": {"epsilon": 1.0, "delta": 1 / 96}}, data.spec, 0)
    with pytest.raises(BadInput, match="not less than 1 / 96"):
        task.private.begin(TrainingSettings(), len(data.train), b"key")
