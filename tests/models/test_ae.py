"""The autoencoder's losses, penalties, objectives and held-out classes, compared with explicit forms."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.core import model_files
from pipeline.core.noise import Noise
from pipeline.core.task import DataSpec
from pipeline.errors import BadInput
from pipeline.evaluation.averages import auroc
from pipeline.layers import damage
from pipeline.layers.similarity import image_loss, ssim
from pipeline.models.ae import AeConfig
from pipeline.params import validate
from tests.arrays import batch_of

SPEC = DataSpec.labelled_images(1, 8, 3)
SMALL = {"architecture": "dense", "dense": [16], "code_size": 4}
IMAGES = torch.rand(6, 2, 12, 12, generator=torch.Generator().manual_seed(0))
OTHERS = torch.rand(6, 2, 12, 12, generator=torch.Generator().manual_seed(1))


def build(**settings):
    small = SMALL if settings.get("architecture", "dense") == "dense" else {"width": 8}
    return model_files.build("ae", validate({**small, **settings}, AeConfig, "ae"), SPEC, 0)


def batch(count=5):
    noise = Noise.whole(1, count)
    return batch_of(noise.uniform("x", 1, 8, 8), noise.integers("y", 3))


def test_ssim_is_that_of_a_plain_loop_over_windows():
    line = torch.exp(-(torch.arange(-5, 6).double() ** 2) / (2 * 1.5**2))
    window = line[:, None] * line / (line.sum() ** 2)

    def slow(first, second):
        values = []
        for top in range(2):
            for left in range(2):
                a, b = (image[top : top + 11, left : left + 11] for image in (first, second))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
                values.append(luminance * (2 * covariance + 9e-4) / (var_a + var_b + 9e-4))
        return torch.stack(values).mean()

    expected = [
        torch.stack([slow(a, b) for a, b in zip(first, second, strict=True)]).mean()
        for first, second in zip(IMAGES.double(), OTHERS.double(), strict=True)
    ]
    assert torch.allclose(ssim(IMAGES.double(), OTHERS.double()), torch.stack(expected))
    assert torch.allclose(ssim(IMAGES, OTHERS).double(), torch.stack(expected), atol=1e-4)


def test_image_losses_are_means_over_the_pixels_of_each_image():
    errors = (IMAGES - OTHERS).flatten(1)
    assert torch.allclose(image_loss("mse", IMAGES, OTHERS, 0.1), errors.square().mean(1))
    assert torch.allclose(image_loss("l1", IMAGES, OTHERS, 0.1), errors.abs().mean(1))
    huber = torch.where(errors.abs() < 0.1, errors.square() / 2, 0.1 * (errors.abs() - 0.05)).mean(1)
    assert torch.allclose(image_loss("huber", IMAGES, OTHERS, 0.1), huber)
    assert torch.equal(image_loss("ssim", IMAGES, OTHERS, 0.1), 1 - ssim(IMAGES, OTHERS))


def test_the_contractive_penalty_is_the_squared_norm_of_the_encoders_jacobian():
    task, shown = build(penalty="contractive", penalty_weight=2.0), batch(3)
    encode = task.network.encoder
    exact = torch.stack(
        [torch.autograd.functional.jacobian(encode, image[None]).square().sum() for image in shown.images]
    )
    images = shown.images.clone().requires_grad_()
    drawn = torch.stack([task._penalty(images, Noise.whole(seed, 3)).detach() for seed in range(3000)])
    assert torch.allclose(drawn.mean(0), exact, rtol=0.06)
    loss, values = task.loss("autoencoder", shown, Noise.whole(0, 3))
    plain = build().loss("autoencoder", shown, Noise.whole(0, 3))[0]
    assert torch.allclose(loss, plain + 2 * values["penalty"]) and values["penalty"] > 0
    loss.backward()
    assert encode[1].weight.grad.abs().sum() > 0


def test_the_sparse_penalty_is_the_sum_of_the_codes_absolute_values():
    task, shown = build(penalty="sparse", penalty_weight=0.5), batch()
    loss, values = task.loss("autoencoder", shown, Noise.whole(0, 5))
    assert torch.allclose(values["penalty"], task.encode(shown.images).abs().sum(1).mean())
    assert torch.allclose(
        loss, build().loss("autoencoder", shown, Noise.whole(0, 5))[0] + values["penalty"] / 2
    )


def test_masks_are_squares_of_half_the_side_everywhere_in_the_image():
    images, position = torch.rand(500, 1, 9, 9), Noise.whole(0, 500).uniform("square", 2)
    missing = 1 - damage.square_mask(images, position)
    assert (missing.sum((1, 2, 3)) == 25).all()
    for dimension in (2, 3):
        lines = missing.amax(dimension)[:, 0]  # (N, 9)
        assert (lines.sum(1) == 5).all() and (lines.diff(dim=1) == 1).sum(1).max() == 1
    assert (missing.sum(0) > 0).all()
    hidden = damage.hide(images, 1 - missing)
    assert (hidden[missing == 1] == 0.5).all() and torch.equal(hidden[missing == 0], images[missing == 0])


def test_each_image_is_damaged_for_one_of_the_objectives_and_its_target_is_clean():
    task = build(objectives=["reconstruct", "denoise", "inpaint", "upscale"], input_noise=0.25)
    shown, noise = batch(400), Noise.whole(0, 400, "autoencoder")
    images, mask = task._damaged(shown.images, noise)
    same = (images == shown.images).all(3).all(2)[:, 0]
    hidden = (mask == 0).any(3).any(2)[:, 0]
    small = (images[..., ::2, ::2] == images[..., 1::2, 1::2]).all(3).all(2)[:, 0]
    noisy = ~(same | hidden | small)
    shares = torch.stack([same, hidden, small, noisy]).float().mean(1)
    assert shares.sum() == pytest.approx(1) and ((shares > 0.18) & (shares < 0.32)).all()
    assert torch.equal(images[hidden] * mask[hidden], shown.images[hidden] * mask[hidden])
    assert (mask[~hidden] == 1).all() and images.min() >= 0 and images.max() <= 1
    deviation = (images - shown.images)[noisy][(images[noisy] > 0) & (images[noisy] < 1)].std()
    assert 0.15 < deviation < 0.26
    restored = task.network(images, mask).sigmoid()
    loss = task.loss("autoencoder", shown, noise)[0]
    assert torch.allclose(loss, (restored - shown.images).square().mean())


@pytest.mark.parametrize("architecture", ["dense", "convolutional", "unet"])
def test_in_painting_keeps_the_known_pixels(architecture):
    task = build(architecture=architecture, width=8, objectives=["inpaint"])
    images = batch().images
    mask = damage.square_mask(images, torch.full((5, 2), 0.5))
    filled = task.restore(images, mask)
    assert torch.equal(filled * mask, images * mask)
    assert torch.equal(filled, task.restore(damage.hide(images, mask), mask))  # what is hidden is not used
    assert not torch.equal(filled, images) and task.restorations == ("inpaint",)


def test_a_u_net_has_no_codes_and_generates_nothing():
    task = build(architecture="unet", width=8, objectives=["upscale"], prior="mixture")
    task.on_train_end([batch(20)])
    assert task.encode(batch().images) is None and task.generate(None, 5, Noise.whole(0, 5)) is None


def test_a_held_out_class_is_not_learned_from():
    task, shown, noise = build(held_out_class=1), batch(30), Noise.whole(0, 30)
    others = shown.labels != 1
    loss = task.loss("autoencoder", shown, noise)[0]
    errors = (task.reconstruct(shown.images) - shown.images).square().flatten(1).mean(1)
    assert torch.allclose(loss, errors[others].sum() / 30)
    task.on_train_end([shown])
    codes = task.encode(shown.images)[others]
    assert torch.allclose(task.code_means[1], codes.mean(0), atol=1e-6)  # of all classes that it knows
    with pytest.raises(BadInput, match="there is no class 3 to hold out"):
        build(held_out_class=3)


def test_the_auroc_counts_pairs_and_its_interval_is_that_of_repeated_samples():
    random = np.random.default_rng(0)
    assert auroc(np.array([1.0, 2.0]), np.array([3.0, 4.0])).value == 1
    assert auroc(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0])).value == pytest.approx(0.5)
    scores = np.random.default_rng(1).normal(size=(2, 3000))
    tracemalloc.start()
    auroc(*scores)
    assert tracemalloc.get_traced_memory()[1] < 5e6  # not a matrix of all pairs
    tracemalloc.stop()
    draws = [auroc(random.normal(0, 1, 80), random.normal(1, 1, 40)) for _ in range(300)]
    values = np.array([draw.value for draw in draws])
    reach = np.mean([draw.high - draw.value for draw in draws])
    assert reach == pytest.approx(1.96 * values.std(), rel=0.15)
    assert values.mean() == pytest.approx(0.760, abs=0.01)  # Phi(1 / sqrt 2)


def test_the_known_names_of_the_restorations_follow_from_the_objectives():
    assert build().restorations == ()
    assert build(input_noise=0.1).restorations == ("denoise",)
    both = build(objectives=["upscale", "denoise"], input_noise=0.1).restorations
    assert set(both) == {"denoise", "upscale"}


def test_combinations_that_make_no_sense_are_refused_all_at_once():
    with pytest.raises(BadInput) as raised:
        build(architecture="unet", penalty="sparse", objectives=["reconstruct", "denoise"])
    for part in ("needs input_noise > 0", "copies its input", "no code for penalty"):
        assert part in str(raised.value)
    for settings, text in (
        ({"objectives": ["inpaint", "inpaint"]}, "named twice"),
        ({"objectives": ["inpaint"], "input_noise": 0.1}, "needs denoise"),
        ({"objectives": ["inpaint"], "held_out_class": 0}, "held_out_class needs"),
        ({"prior": "mixture", "code_size": 513}, "code_size <= 512"),
    ):
        with pytest.raises(BadInput, match=text):
            build(**settings)


def test_smoothness_of_ssim_lets_a_training_lower_it():
    weight = torch.zeros_like(IMAGES, requires_grad=True)
    optimizer = torch.optim.Adam([weight], 0.05)
    before = image_loss("ssim", torch.sigmoid(weight), IMAGES, 0.1).mean()
    for _ in range(60):
        optimizer.zero_grad()
        image_loss("ssim", torch.sigmoid(weight), IMAGES, 0.1).mean().backward()
        optimizer.step()
    assert image_loss("ssim", torch.sigmoid(weight), IMAGES, 0.1).mean() < before / 2
    assert F.mse_loss(torch.sigmoid(weight), IMAGES) < F.mse_loss(torch.full_like(IMAGES, 0.5), IMAGES)


@pytest.mark.parametrize("prior", ["normal", "mixture"])
def test_the_temperature_scales_the_deviations_from_the_mean(prior):
    cold, cool, warm = (build(prior=prior, temperature=temperature) for temperature in (1e-9, 0.5, 1.0))
    shown, noise = batch(40), Noise.whole(0, 40)
    for task in (cold, cool, warm):
        task.load_state_dict(warm.state_dict())
        task.on_train_end([shown])
    means, half, whole = (task.latents(40, noise, shown.labels) for task in (cold, cool, warm))
    assert (whole - means).abs().mean() > 0.001
    assert torch.allclose(half - means, (whole - means) / 2, atol=1e-6)


def test_settings_without_effect_and_layers_without_values_are_refused():
    for settings in (
        {"huber_delta": 0.5},
        {"penalty_weight": 1.0},
        {"num_components": 3},
        {"prior": "none", "temperature": 0.5},
        {"architecture": "unet", "objectives": ["inpaint"], "code_size": 4},
        {"architecture": "convolutional", "dense": [16]},
        {"dense": [0]},
    ):
        with pytest.raises(BadInput, match=list(settings)[-1]):
            build(**settings)
    build(architecture="unet", objectives=["inpaint"], code_size=16, dense=[64, 32])  # the defaults


def test_ssim_does_not_depend_on_the_precision_of_the_networks():
    expected = ssim(IMAGES, IMAGES * 0.98)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssim(IMAGES, IMAGES * 0.98), expected)


def test_a_class_without_codes_has_the_mean_of_all():
    task, shown = build(held_out_class=1), batch(20)
    task.on_train_end([shown])
    with torch.no_grad():
        codes = task.encode(shown.images)[shown.labels != 1]
    assert torch.allclose(task.code_means[1], codes.mean(0), atol=1e-6)


@pytest.mark.parametrize("width", [28, 100])
def test_a_width_that_is_no_multiple_of_eight_can_be_built(width):
    task = build(architecture="convolutional", width=width)
    assert task.reconstruct(batch(2).images).isfinite().all()
