"""The variational autoencoder, compared with closed forms and numerical integrals."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from pipeline.core import model_files
from pipeline.core.distributed import DistributedContext
from pipeline.core.noise import Noise
from pipeline.core.settings import ScheduleSettings, TrainingSettings
from pipeline.core.step import Step
from pipeline.core.task import DataSpec
from pipeline.errors import BadInput
from pipeline.models.vae import VaeConfig
from pipeline.models.vae.second_stage import SecondStage
from pipeline.params import validate
from tests.arrays import batch_of

SPEC = DataSpec.labelled_images(1, 8, 3)
SMALL = {"architecture": "dense", "dense": [16]}


def build(**settings):
    small = SMALL if settings.get("architecture", "dense") == "dense" else {"width": 8}
    return model_files.build("vae", validate({**small, **settings}, VaeConfig, "vae"), SPEC, 0)


def batch(count=5):
    noise = Noise.whole(1, count)
    return batch_of(noise.uniform("x", 1, 8, 8), noise.integers("y", 3))


def divergences(task, shown, prior_means):
    mean, log_variance = task.network.encode(shown.images)
    return kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(prior_means, torch.ones_like(mean)))


def test_the_divergence_from_a_standard_prior_is_that_of_two_normal_distributions():
    task, shown = build(prior="standard"), batch()
    expected = divergences(task, shown, torch.zeros(5, 16)).sum(1)
    assert torch.allclose(task.evaluate(shown, Noise.whole(0, 5))["kl"], expected, rtol=1e-4)


def test_free_bits_raise_each_values_divergence_to_the_limit_in_the_loss_alone():
    plain, task, shown = build(), build(free_bits=0.2), batch()
    each = divergences(task, shown, task.network.prior_means(shown.labels))
    assert (each < 0.2).any() and (each > 0.2).any()
    loss, values = task.loss("vae", shown, Noise.whole(0, 5))
    expected = each.clamp_min(0.2).sum(1).mean() + values["reconstruction"]
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.equal(values["kl"], plain.loss("vae", shown, Noise.whole(0, 5))[1]["kl"])


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)])
def test_the_warm_up_raises_the_weight_of_the_divergence_linearly(step, share):
    loss, values = build(kl_warmup_steps=4, beta=3.0).loss("vae", batch(), Noise.whole(0, 5, step=step))
    assert torch.allclose(loss, values["reconstruction"] + 3 * share * values["kl"], rtol=1e-5)


def test_the_learned_deviation_is_that_of_the_normal_density_and_is_trained():
    task, shown = build(likelihood="gaussian", deviation=0.3, learn_deviation=True), batch(2)
    logits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.no_grad():
        task.network.log_deviation.fill_(math.log(0.7))
    expected = -Normal(torch.sigmoid(logits), 0.7).log_prob(shown.images).flatten(1).sum(1)
    assert torch.allclose(task._reconstruction(logits, shown.images), expected, rtol=1e-4)
    errors = (torch.sigmoid(logits) - shown.images).square().mean()
    best = build(likelihood="gaussian", deviation=errors.sqrt().item(), learn_deviation=True)
    best._reconstruction(logits, shown.images).sum().backward()
    assert abs(best.network.log_deviation.grad) < 1e-2  # the best deviation is the root of the mean square


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_importance_weighted_bound_approaches_the_log_likelihood(likelihood):
    """With latents of one value, log p(x | y) is an integral on a line."""
    settings = {"deviation": 0.5} if likelihood == "gaussian" else {}
    task, shown = build(latent_size=1, likelihood=likelihood, **settings), batch(6)
    with torch.no_grad():
        weights = task.log_weights(shown, Noise.whole(0, 6), 4000).double()
        line = torch.linspace(-12, 12, 4001)
        logits = task._logits(line[:, None])
        prior = Normal(task.network.prior_means(shown.labels), 1.0).log_prob(line)  # (N, points)
        errors = torch.stack(
            [task._reconstruction(logits, image.expand_as(logits)) for image in shown.images]
        )
        exact = torch.logsumexp((prior - errors).double(), 1) + math.log(24 / 4000)
    bounds = {size: weights[:, :size].logsumexp(1) - math.log(size) for size in (1, 50, 4000)}
    assert torch.allclose(bounds[4000], exact, atol=0.05)
    assert (weights.mean(1) <= bounds[4000]).all()  # the evidence lower bound
    negative_elbo = torch.stack(
        [task.evaluate(shown, Noise.whole(seed, 6))["negative_elbo"] for seed in range(400)]
    )
    assert torch.allclose(-negative_elbo.mean(0).double(), weights.mean(1), atol=0.2)


def test_the_second_stages_loss_is_a_negative_elbo():
    stage, noise = SecondStage(3, 2), Noise.whole(0, 7)
    latents, labels = noise.normal("z", 3), noise.integers("y", 2)
    inputs = torch.cat([latents, torch.nn.functional.one_hot(labels, 2)], 1)
    mean, log_variance = stage.encoder(inputs).chunk(2, 1)
    posterior = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    codes = mean + (log_variance / 2).exp() * noise.normal("second_stage", 3)
    given = stage.decoder(torch.cat([codes, torch.nn.functional.one_hot(labels, 2)], 1))
    likelihood = Independent(Normal(given, stage.log_deviation.exp().expand_as(given)), 1)
    prior = Independent(Normal(torch.zeros(7, 3), torch.ones(7, 3)), 1)
    expected = kl_divergence(posterior, prior) - likelihood.log_prob(latents)
    assert torch.allclose(stage.negative_elbo(latents, labels, noise), expected, rtol=1e-4)


def test_the_second_stage_learns_the_distribution_of_the_latents_and_leaves_the_first_alone():
    task = build(latent_size=2, second_stage="vae", second_stage_first=2)
    first, second = task.phases()
    assert (first.first, second.first) == (1, 2)
    loss, _ = task.loss("second_stage", batch(), Noise.whole(0, 5))
    loss.backward()
    assert all(parameter.grad is None for parameter in task.network.parameters())
    optimizer, noise = torch.optim.Adam(task.second_stage.parameters(), 1e-2), Noise.whole(0, 256)
    for step in range(600):
        noise = Noise.whole(0, 256, step=step)
        labels = noise.integers("y", 3)
        latents = labels[:, None] * 2.0 + 0.3 * noise.normal("z", 2)
        optimizer.zero_grad()
        task.second_stage.negative_elbo(latents, labels, noise).mean().backward()
        optimizer.step()
    drawn = task.latents(3000, Noise.whole(1, 3000), torch.arange(3000) % 3).detach()
    for label in range(3):
        own = drawn[label::3]
        assert torch.allclose(own.mean(0), torch.full((2,), 2.0 * label), atol=0.15)
        assert torch.allclose(own.std(0), torch.full((2,), 0.3), atol=0.12)


def test_latents_come_from_the_prior_in_use_and_decode_to_the_generated_images():
    for settings in ({}, {"prior": "standard"}, {"prior": "mixture"}, {"second_stage": "vae"}):
        task, labels, noise = build(latent_size=2, **settings).eval(), batch().labels, Noise.whole(0, 5)
        task.on_train_end([batch(40)])
        codes = task.latents(5, noise, labels)
        assert codes.shape == (5, 2)
        assert torch.equal(task.decode(codes), task.generate(labels, 5, noise))
        other = task.latents(5, noise, (labels + 1) % 3)
        assert torch.equal(codes, other) == (settings == {"prior": "standard"})


@pytest.mark.parametrize("prior", [{"prior": "standard"}, {"prior": "class"}, {"prior": "mixture"}], ids=str)
def test_the_temperature_scales_the_deviations_from_the_mean(prior):
    cold, cool, warm = (
        build(latent_size=2, temperature=temperature, **prior) for temperature in (1e-9, 0.5, 1.0)
    )
    shown, noise = batch(40), Noise.whole(0, 40)
    for task in (cold, cool, warm):
        task.load_state_dict(warm.state_dict())
        task.on_train_end([shown])
    means, half, whole = (task.latents(40, noise, shown.labels) for task in (cold, cool, warm))
    assert (whole - means).abs().mean() > 0.01
    assert torch.allclose(half - means, (whole - means) / 2, atol=1e-6)


def test_the_temperature_scales_both_noises_of_a_second_stage():
    cool, warm = (build(latent_size=2, second_stage="vae", temperature=each) for each in (0.5, 1.0))
    cool.load_state_dict(warm.state_dict())
    labels = torch.arange(3000) % 3
    half, whole = (task.latents(3000, Noise.whole(0, 3000), labels).std(0) for task in (cool, warm))
    assert torch.allclose(half, whole / 2, rtol=0.1)


def test_a_mixture_is_fitted_to_the_codes_after_the_training_and_class_means_draw_until_then():
    task, plain, noise = build(latent_size=2, prior="mixture"), build(latent_size=2), Noise.whole(0, 5)
    assert torch.equal(task.latents(5, noise, batch().labels), plain.latents(5, noise, batch().labels))
    shown = batch(3000)
    task.on_train_end([shown])
    labels = torch.zeros(3000, dtype=torch.int64)
    drawn, codes = task.latents(3000, Noise.whole(0, 3000), labels), task.encode(shown.images)
    own = codes[shown.labels == 0]
    assert torch.allclose(drawn.mean(0), own.mean(0), atol=0.05)
    assert torch.allclose(drawn.T.cov(), own.T.cov(), atol=0.03)


def test_combinations_that_make_no_sense_are_refused_all_at_once():
    with pytest.raises(BadInput) as raised:
        build(learn_deviation=True, beta=0.0, kl_warmup_steps=3, prior="mixture", second_stage="vae")
    text = str(raised.value)
    for part in ("learn_deviation needs likelihood: gaussian", "kl_warmup_steps needs beta", "both draw"):
        assert part in text
    with pytest.raises(BadInput, match="latent_size <= 512"):
        build(prior="mixture", latent_size=513)
    with pytest.raises(BadInput, match="free_bits needs beta > 0"):
        build(free_bits=1.0, beta=0.0)


def test_settings_without_effect_and_layers_without_values_are_refused():
    for settings in (
        {"num_components": 3},
        {"deviation": 0.2},
        {"second_stage_first": 3},
        {"second_stage_optimizer": {"learning_rate": 0.1}},
        {"architecture": "convolutional", "dense": [16]},
        {"dense": [0]},
    ):
        with pytest.raises(BadInput, match=list(settings)[-1]):
            build(**settings)


def test_the_second_stage_has_its_own_schedule_and_must_begin_before_the_end():
    task = build(second_stage="vae", second_stage_first=9)
    training = TrainingSettings(num_steps=10, schedule=ScheduleSettings(kind="linear"))
    step = Step(task, task.phases(), training, DistributedContext())
    step.run(9, batch(), Noise.whole(0, 5, step=9))
    assert step.phases[1].optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 2)  # the first of two steps
    with pytest.raises(BadInput, match="second_stage begins at step 9") as raised:
        Step(task, task.phases(), TrainingSettings(num_steps=8), DistributedContext())
    assert raised.value.where == "vae.training.num_steps"
