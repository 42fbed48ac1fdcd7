"""The GAN's losses, penalties, layers and settings, compared with closed forms and plain versions."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from pipeline.core import model_files
from pipeline.core.abilities import Ability, abilities
from pipeline.core.distributed import DistributedContext
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.core.task import DataSpec
from pipeline.errors import BadInput
from pipeline.models.gan import GanConfig
from pipeline.models.gan.augmentation import AdaptiveProbability, augment, change_color, cut_out
from pipeline.models.gan.losses import LOSSES
from pipeline.models.gan.penalties import (
    gradient_penalty,
    input_gradients,
    path_lengths,
    zero_centred_penalty,
)
from pipeline.models.gan.resampling import Enlarge, halve
from pipeline.models.gan.style import ModulatedConv
from pipeline.params import validate
from tests.arrays import batch_of
from tests.models import variants

SPEC = DataSpec.labelled_images(1, 8, 3)
FREE = {"width": 8, "latent_size": 8, "spectral_normalisation": False, "shift": 0.0}
STYLE = {**FREE, "architecture": "style"}
WASSERSTEIN = {**FREE, "adversarial_loss": "wasserstein"}


def build(settings, seed=0):
    return model_files.build("gan", settings, SPEC, seed)


def batch(count=5):
    noise = Noise.whole(1, count)
    return batch_of(noise.uniform("x", 1, 8, 8), noise.integers("y", 3))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def log_sigmoid(values):
    return values.sigmoid().log()


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("minimax", lambda r, f: -log_sigmoid(r) - log_sigmoid(-f), lambda r, f: log_sigmoid(-f)),
        ("non_saturating", lambda r, f: -log_sigmoid(r) - log_sigmoid(-f), lambda r, f: -log_sigmoid(f)),
        ("hinge", lambda r, f: (1 - r).clamp_min(0) + (1 + f).clamp_min(0), lambda r, f: -f),
        ("least_squares", lambda r, f: (r - 1) ** 2 / 2 + f**2 / 2, lambda r, f: (f - 1) ** 2 / 2),
        ("wasserstein", lambda r, f: f - r, lambda r, f: -f),
        ("relativistic", lambda r, f: -log_sigmoid(r - f), lambda r, f: -log_sigmoid(f - r)),
    ],
)
def test_each_adversarial_loss_is_that_of_its_paper(name, discriminator, generator):
    real, fake = random(50), random(50, seed=1)
    assert torch.allclose(LOSSES[name].discriminator(real, fake), discriminator(real, fake), atol=1e-5)
    assert torch.allclose(LOSSES[name].generator(real, fake), generator(real, fake), atol=1e-5)


def test_the_relativistic_loss_compares_each_real_image_with_the_generated_one_of_its_row():
    task = build({**FREE, "adversarial_loss": "relativistic", "r1": 1e-9}).eval()
    shown, noise = batch(), Noise.whole(0, 5, "generator")
    drawn = task.generator(noise.normal("latent", 8), shown.labels)
    real, fake = task.discriminator(shown.images, shown.labels), task.discriminator(drawn, shown.labels)
    assert torch.allclose(task.loss("generator", shown, noise)[0], F.softplus(real - fake).mean(), atol=1e-6)
    assert torch.allclose(
        task.loss("discriminator", shown, noise)[0], F.softplus(fake - real).mean(), atol=1e-6
    )


def test_the_gradient_penalty_of_a_linear_critic_depends_on_the_norm_of_its_weights():
    weights, images = random(12), random(5, 12).requires_grad_()
    found = gradient_penalty(input_gradients(images @ weights, images))
    assert torch.allclose(found, ((weights.norm() - 1) ** 2).expand(5))


def test_r1_of_a_quadratic_is_half_the_square_of_its_gradient():
    matrix, images = random(6, 6), random(5, 6, seed=1).requires_grad_()
    found = zero_centred_penalty(input_gradients(((images @ matrix) * images).sum(1) / 2, images))
    gradient = images @ (matrix + matrix.T) / 2
    assert torch.allclose(found, gradient.square().sum(1) / 2, rtol=1e-4)


@pytest.mark.parametrize("kind", ["r1", "r2", "gradient_penalty"])
@pytest.mark.parametrize("every", [1, 3])
def test_penalties_are_at_the_papers_points_and_a_lazy_one_has_its_weight_multiplied(kind, every):
    weight = 2.5
    settings = {**FREE, kind: weight, "penalty_every": every}
    task, plain = build({**settings, "penalty_every": every}).eval(), build(FREE).eval()
    shown = batch()
    phase = "discriminator" if every == 1 else "penalty"
    noise = Noise.whole(0, 5, phase)
    generated = plain.generator(noise.normal("latent", 8), shown.labels).detach()
    mix = noise.uniform("mix", 1, 1, 1)
    mixed = mix * generated + (1 - mix) * shown.images
    points = {"r1": shown.images, "r2": generated, "gradient_penalty": mixed}[kind].requires_grad_()
    slope = (
        torch.autograd.grad(plain.discriminator(points, shown.labels).sum(), points)[0].flatten(1).norm(dim=1)
    )
    expected = weight * ((slope - 1) ** 2 if kind == "gradient_penalty" else slope**2 / 2).mean()
    if every == 1:
        expected = expected + plain.loss(phase, shown, noise)[0]
        assert [each.name for each in task.phases()] == ["discriminator", "generator"]
    else:
        assert [(each.name, each.every) for each in task.phases()][2:] == [("penalty", every)]
        assert torch.equal(
            task.loss("discriminator", shown, noise)[0], plain.loss("discriminator", shown, noise)[0]
        )
    assert torch.allclose(task.loss(phase, shown, noise)[0], every ** (every > 1) * expected, rtol=1e-4)


def test_the_path_length_of_a_linear_map_is_the_norm_of_the_direction_pulled_back():
    matrix, codes, directions = (
        random(4, 9),
        random(5, 4, seed=1).requires_grad_(),
        random(5, 1, 3, 3, seed=2),
    )
    found = path_lengths((codes @ matrix).reshape(5, 1, 3, 3), codes, directions)
    assert torch.allclose(found, (directions.flatten(1) @ matrix.T / 3).norm(dim=1), rtol=1e-4)


def test_path_length_regularisation_estimates_the_variance_of_the_lengths():
    task, count = build({**STYLE, "path_length": 2.0, "path_length_every": 4}), 3000
    for block in task.generator.synthesis.blocks:  # lengths that differ
        block.noise_scales.data.zero_()
    labels, noise = torch.zeros(count, dtype=torch.long), Noise.whole(0, count, "path_length")
    loss = task.loss("path_length", batch_of(torch.zeros(count, 1, 8, 8), labels), noise)[0]
    codes = task.generator.codes(noise.normal("latent 0", 8), labels)
    images = task.generator.synthesis(codes)
    lengths = path_lengths(images, codes, noise.normal("direction 0", 1, 8, 8)).detach()
    assert torch.allclose(loss, 2.0 * 4 * lengths.var(), rtol=0.1)


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulation_is_a_convolution_with_other_weights_for_each_image(demodulate):
    layer = ModulatedConv(3, 5, 3, 4, demodulate)
    maps, codes = random(6, 3, 7, 7), random(6, 4, seed=1)
    for one, code, found in zip(maps, codes, layer(maps, codes), strict=True):
        style = layer.style(code[None])[0]
        weight = layer.weight * layer.scale * style[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        assert torch.allclose(found, F.conv2d(one[None], weight, padding=1)[0], atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(4, 7), (7, 14), (4, 8), (14, 28)])
def test_enlarging_is_linear_interpolation_and_halving_takes_means(before, after):
    maps = random(2, 3, before, before)
    expected = F.interpolate(maps, (after, after), mode="bilinear", align_corners=False)
    assert torch.allclose(Enlarge(before, after)(maps), expected, atol=1e-5)
    assert halve(expected).shape[-1] == -(-after // 2)
    assert torch.allclose(halve(expected)[..., 0, 0], expected[..., :2, :2].mean((-2, -1)))


def test_weights_stay_clipped_after_every_step():
    task = build({**WASSERSTEIN, "weight_clipping": 0.02})
    step = Step(task, task.phases(), TrainingSettings(), DistributedContext())
    for number in (1, 2):
        step.run(number, batch(), Noise.whole(0, 5, "", number))
        assert all(parameter.abs().max() <= 0.02 for parameter in task.discriminator.parameters())
    assert any(parameter.abs().max() > 0.02 for parameter in task.generator.parameters())


def test_historical_averaging_is_the_distance_from_the_mean_over_the_steps():
    task = build({**FREE, "historical_averaging": 0.5}).eval()
    plain, seen = build(FREE).eval(), []
    for number in (1, 2, 3):
        with torch.no_grad():
            for parameter in task.generator.parameters():
                parameter += 0.01 * number
        plain.load_state_dict(task.state_dict(), strict=False)
        seen.append(parameters_to_vector(task.generator.parameters()).detach())
        mean, noise = torch.stack(seen).mean(0), Noise.whole(0, 5, "generator", number)
        expected = plain.loss("generator", batch(), noise)[0] + 0.5 * (seen[-1] - mean).square().sum()
        for _ in range(2):  # a second piece of the same batch does not count again
            assert torch.allclose(task.loss("generator", batch(), noise)[0], expected, rtol=1e-5)


def test_the_adaptive_probability_follows_the_sign_of_the_logits_of_real_images():
    adaptive, target, step = AdaptiveProbability(), 0.6, 0.05
    task = build({**FREE, "shift": 0.1, "adaptive_target": target, "adaptive_step": step})
    task.adaptive = adaptive
    optimizer = next(phase.optimizer for phase in task.phases() if phase.name == "augmentation")
    expected = 0.0
    for sure in [1.0] * 30 + [0.7] * 10 + [1.0] * 5:  # the share of real images that are recognised
        logits = torch.where(torch.arange(100) < 100 * sure, 0.3, -2.0)
        optimizer.zero_grad()
        adaptive.loss(logits, target).backward()
        optimizer.step()
        expected = min(1.0, max(0.0, expected + (step if 2 * sure - 1 > target else -step)))
        assert adaptive.probability.item() == pytest.approx(expected, abs=step * 1.001)
    assert adaptive.probability.item() == pytest.approx(0.75, abs=step * 1.001)


def test_adaptive_augmentation_begins_with_none_and_ends_with_the_fixed_one():
    images, noise = batch(40).images, Noise.whole(0, 40)
    config = GanConfig(flip=0.5, shift=0.1, color=0.3, cutout=0.4)
    fixed = augment(images, noise, config, 0, None)
    never, always, half = (augment(images, noise, config, 0, torch.tensor(p)) for p in (0.0, 1.0, 0.5))
    assert torch.equal(never, images) and torch.equal(always, fixed)
    kept = [torch.equal(a, b) for a, b in zip(half, images, strict=True)]
    assert any(kept) and not all(kept)
    assert not torch.equal(augment(images, noise, config, 1, None), fixed)


def test_colours_change_and_squares_are_cut_out_as_set():
    images, noise = batch(50).images, Noise.whole(0, 50)
    changed = change_color(images, noise, 0.4, "c")
    moved = (changed - images).mean((1, 2, 3))  # contrast and saturation keep the mean
    assert 0.2 < moved.abs().max() <= 0.4 and moved.min() < 0 < moved.max()
    cut = cut_out(images, noise, 0.5, "d") != images
    assert cut.any(3).sum(2).max() == 4 and cut.any(2).sum(2).max() == 4  # half of eight pixels
    assert cut.sum((1, 2, 3)).max() == 16


@pytest.mark.parametrize("architecture", ["convolutional", "style"])
def test_truncation_draws_images_together_until_they_are_one(architecture):
    task = build({**FREE, "architecture": architecture}, seed=3).eval()
    task.on_train_end([])
    latents, labels = task.latents(20, Noise.whole(0, 20)), torch.ones(20, dtype=torch.long)
    assert latents.shape == (20, 8)
    spread = [task.decode(latents, labels, psi).var(0).sum().item() for psi in (0.0, 0.5, 1.0)]
    assert spread[0] < 1e-9 < spread[1] < spread[2]
    noise = Noise.whole(0, 20)
    assert torch.equal(task.generate(labels, 20, noise), task.decode(latents, labels, noise=noise))
    truncated = build({**FREE, "architecture": architecture, "truncation": 0.5}, seed=3).eval()
    truncated.on_train_end([])
    assert torch.equal(truncated.generate(labels, 20, noise), task.generate(labels, 20, noise, 0.5))


def test_mixed_styles_are_those_of_the_first_up_to_the_level_and_of_the_second_from_it():
    task = build(STYLE).eval()
    first, second = (task.latents(4, Noise.whole(seed, 4)) for seed in (0, 1))
    labels = torch.tensor([0, 1, 2, 0])
    assert task.num_levels == 2
    assert torch.equal(task.mix(first, second, 2, labels), task.decode(first, labels))
    assert torch.equal(task.mix(first, second, 0, labels), task.decode(second, labels))
    mixed = task.mix(first, second, 1, labels)
    assert not any(torch.allclose(mixed, task.decode(each, labels)) for each in (first, second))
    assert build(FREE).mix(first, second, 1) is None


def test_some_training_images_have_two_styles():
    plain, mixing = build(STYLE).eval(), build({**STYLE, "style_mixing": 0.5}).eval()
    shown, noise = batch(40), Noise.whole(0, 40, "generator")
    pairs = zip(*(task._training_images(shown.labels, noise) for task in (plain, mixing)), strict=True)
    same = sum(torch.equal(one, two) for one, two in pairs)
    assert 10 < same < 30


def test_noise_inputs_change_details_once_their_scales_are_learned():
    task = build(STYLE).eval()
    latents, labels = task.latents(4, Noise.whole(0, 4)), torch.tensor([0, 1, 2, 0])
    draw = lambda seed: task.decode(latents, labels, noise=Noise.whole(seed, 4))
    assert torch.equal(draw(1), draw(2))  # the scales begin at zero
    task.generator.synthesis.blocks[1].noise_scales.data.fill_(0.1)
    assert not torch.equal(draw(1), draw(2)) and torch.equal(draw(1), draw(1))


@pytest.mark.parametrize("architecture", ["convolutional", "style"])
def test_without_classes_no_network_knows_the_label(architecture):
    task = build({**FREE, "architecture": architecture, "conditional": False}).eval()
    assert not any("classes" in name for name, _ in task.named_parameters())
    assert abilities(task) == {Ability.GENERATE, Ability.DECODE}
    unlabelled = model_files.build(
        "gan", {**FREE, "conditional": False}, DataSpec({"image": SPEC["image"]}), 0
    )
    shown = batch()
    loss = unlabelled.loss("discriminator", batch_of(shown.images, None), Noise.whole(0, 5))[0]
    assert loss.isfinite()


@pytest.mark.parametrize("name", [name for name, (model, _) in variants.ALL.items() if model == "gan"])
def test_no_variant_uses_statistics_of_the_batch(name):
    """The logit and the image of a row do not depend on the other rows."""
    task = build(variants.ALL[name][1]).eval()
    shown, noise = batch(6), Noise.whole(0, 6)
    logits = task.discriminator(shown.images, shown.labels)
    assert torch.allclose(task.discriminator(shown.images[:2], shown.labels[:2]), logits[:2], atol=1e-5)
    images = task.generate(shown.labels, 6, noise)
    assert torch.allclose(task.generate(shown.labels[:2], 2, noise.rows(0, 2)), images[:2], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adversarial_loss": "wasserstein"}, "gradient_penalty: 10"),
        ({"weight_clipping": 0.1, "spectral_normalisation": False}, "adversarial_loss: wasserstein"),
        (
            {**WASSERSTEIN, "spectral_normalisation": True, "weight_clipping": 0.1},
            "spectral_normalisation: false",
        ),
        ({**WASSERSTEIN, "weight_clipping": 0.1, "gradient_penalty": 1.0}, "set one of them to 0"),
        ({"gradient_penalty": 1.0, "r1": 1.0}, "pulls slopes to 1"),
        ({"gradient_penalty": 1.0, "r2": 1.0}, "pulls slopes to 1"),
        ({**FREE, "adversarial_loss": "relativistic"}, "set r1 and r2"),
        ({"architecture": "r3"}, "spectral_normalisation: false"),
        ({"style_mixing": 0.5}, "architecture: style"),
        ({"path_length": 2.0, "architecture": "residual"}, "architecture: style"),
        ({"penalty_every": 4}, "penalty_every: 1"),
        ({"adaptive_target": 0.6, "shift": 0.0}, "set flip, shift, color or cutout"),
        (
            {**WASSERSTEIN, "gradient_penalty": 1.0, "shift": 0.1, "adaptive_target": 0.6},
            "wasserstein does not",
        ),
        (
            {**FREE, "adversarial_loss": "relativistic", "r1": 1.0, "shift": 0.1, "adaptive_target": 0.6},
            "relativistic does not",
        ),
    ],
)
def test_settings_that_exclude_each_other_are_refused_with_a_remedy(settings, said):
    with pytest.raises(BadInput) as refused:
        validate(settings, GanConfig, where="gan.model")
    assert said in refused.value.what and refused.value.where == "gan.model"


def test_all_faults_are_named_at_once():
    with pytest.raises(BadInput) as refused:
        validate(
            {"architecture": "r3", "style_mixing": 0.5, "path_length": 1.0, "penalty_every": 4},
            GanConfig,
            where="gan.model",
        )
    assert refused.value.what.count(";") == 3
    assert all(name in refused.value.what for name in ("r3", "style_mixing", "path_length", "penalty_every"))
