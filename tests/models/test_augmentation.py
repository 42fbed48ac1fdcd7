"""Augmentation of training images, compared with closed forms."""

import functools
import math

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.noise import Noise
from pipeline.core.task import DataSpec
from pipeline.layers.augmentation import box, color_jitter, crop, erase, flip, rotate, rotated
from pipeline.models.cnn import CnnConfig
from pipeline.models.gan import GanConfig
from tests.arrays import batch_of

COUNT = 70  # rows in three blocks of the noise
IMAGES = torch.rand(COUNT, 3, 9, 9, generator=torch.Generator().manual_seed(0))
NOISE = Noise.whole(3, COUNT, "classifier")
AUGMENTATIONS = {
    "flip": functools.partial(flip, probability=0.5),
    "rotate": functools.partial(rotate, degrees=30.0),
    "crop": functools.partial(crop, pixels=3),
    "erase": functools.partial(erase, probability=0.5),
    "color_jitter": functools.partial(color_jitter, strength=0.4),
}


def equal_to(images, others):
    """Which of the images, (N,), equal the others."""
    return (images == others).flatten(1).all(1)


def test_a_flipped_image_is_the_mirror_image_and_the_probability_says_how_many_are_flipped():
    assert equal_to(flip(IMAGES, NOISE, 1.0), IMAGES.flip(-1)).all()
    half = flip(IMAGES, NOISE, 0.5)
    mirrored, kept = equal_to(half, IMAGES.flip(-1)), equal_to(half, IMAGES)
    assert (mirrored ^ kept).all() and 20 < mirrored.sum() < 50


@pytest.mark.parametrize("size", [8, 9])
def test_rotations_by_right_angles_move_each_pixel_and_others_keep_the_middle(size):
    images = IMAGES[..., :size, :size]
    for quarters in (0, 1, 2, 3, -1):
        turned = rotated(images, torch.full((COUNT,), quarters * math.pi / 2))
        assert torch.allclose(turned, torch.rot90(images, quarters, (2, 3)), atol=1e-5)
    ramp = torch.linspace(0, 1, 9).expand(COUNT, 1, 9, 9)  # brighter to the right
    turned = rotated(ramp, torch.full((COUNT,), math.pi / 6))
    pixels = torch.linspace(-0.5, 0.5, 9)
    down, right = torch.meshgrid(pixels, pixels, indexing="ij")
    plane = 0.5 + math.cos(math.pi / 6) * right - math.sin(math.pi / 6) * down
    assert torch.allclose(turned[0, 0, 2:7, 2:7], plane[2:7, 2:7], atol=1e-5)


def test_angles_are_drawn_up_to_the_given_one_either_way():
    point = torch.zeros(COUNT, 1, 33, 33)
    point[:, :, 16, 30] = 1  # right of the centre
    turned = rotate(point, NOISE, 40.0)[:, 0]
    down = (turned.sum(2) * torch.arange(-16, 17)).sum(1) / turned.sum((1, 2))
    right = (turned.sum(1) * torch.arange(-16, 17)).sum(1) / turned.sum((1, 2))
    degrees = torch.rad2deg(torch.atan2(-down, right))
    assert degrees.abs().max() < 41 and degrees.min() < -25 and degrees.max() > 25


def test_color_jitter_scales_the_mean_the_contrast_and_the_saturation():
    images = 0.4 + 0.2 * IMAGES  # so that nothing is clamped
    jittered = color_jitter(images, NOISE, 0.2)
    factors = 1 + 0.2 * (NOISE.uniform("color", 3) * 2 - 1)
    brightness, contrast, saturation = factors.unbind(1)
    means = images.mean((1, 2, 3))
    assert torch.allclose(jittered.mean((1, 2, 3)), brightness * means, atol=1e-5)
    grey, grey_before = jittered.mean(1), images.mean(1)
    spread, spread_before = grey.flatten(1).std(1), grey_before.flatten(1).std(1)
    assert torch.allclose(spread, brightness * contrast * spread_before, atol=1e-5)
    colour, colour_before = jittered - grey[:, None], images - grey_before[:, None]
    expected = (brightness * contrast * saturation)[:, None, None, None] * colour_before
    assert torch.allclose(colour, expected, atol=1e-5)
    strong = color_jitter(IMAGES, NOISE, 1.0)
    assert strong.min() >= 0 and strong.max() <= 1


def test_a_crop_is_that_of_the_image_padded_by_reflection():
    padded, found = torch.nn.functional.pad(IMAGES, (2, 2, 2, 2), mode="reflect"), set()
    for image, whole in zip(crop(IMAGES, NOISE, 2), padded, strict=True):
        places = [(a, b) for a in range(5) for b in range(5)]
        equal = [place for place in places if torch.equal(image, whole[:, place[0] :, place[1] :][:, :9, :9])]
        assert len(equal) == 1
        found.add(equal[0])
    assert {a for a, _ in found} == {b for _, b in found} == set(range(5))
    assert torch.equal(
        crop(IMAGES, NOISE, 99).amax((1, 2, 3)) <= IMAGES.amax((1, 2, 3)), torch.ones(COUNT) > 0
    )


def test_an_erased_rectangle_has_one_colour_and_two_to_33_percent_of_the_area():
    images = -torch.ones(2000, 2, 40, 40)
    erased = erase(images, Noise.whole(0, 2000), 0.7)
    painted = erased >= 0
    assert torch.equal(painted[:, 0], painted[:, 1])  # all channels
    area = painted[:, 0].float().mean((1, 2))
    assert abs((area > 0).float().mean() - 0.7) < 0.04 and area.max() <= 0.36
    for image, mask in zip(erased[:50], painted[:50], strict=True):
        rows, columns = mask[0].any(1), mask[0].any(0)
        assert torch.equal(mask[0], rows[:, None] & columns[None])  # a rectangle
        assert not mask.any() or all(len(channel[mask[0]].unique()) == 1 for channel in image)


@pytest.mark.parametrize("size", [8, 80])
def test_a_box_in_the_middle_has_its_area_and_one_in_the_corner_a_quarter(size):
    side = torch.full((2, 1, 1, 1), 0.5)
    centres = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    middle, corner = box(size, centres, side, side / 2)[:, 0]
    assert abs(middle.mean() - 1 / 8) < 0.03 and abs(corner.mean() - 1 / 32) < 0.02
    assert corner[0, -1] == 1 and corner[-1, 0] == 0 and torch.equal(middle, middle.flip(0, 1))


def test_each_is_the_identity_at_zero():
    assert crop(IMAGES, NOISE, 0) is IMAGES and erase(IMAGES, NOISE, 0.0) is IMAGES
    assert flip(IMAGES, NOISE, 0.0) is IMAGES and rotate(IMAGES, NOISE, 0.0) is IMAGES
    assert color_jitter(IMAGES, NOISE, 0.0) is IMAGES


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_is_a_function_of_the_noise_and_a_workers_rows_are_those_of_the_whole_batch(name):
    augment = AUGMENTATIONS[name]
    whole = augment(IMAGES, NOISE)
    assert torch.equal(whole, augment(IMAGES, NOISE)) and not torch.equal(whole, IMAGES)
    assert not torch.equal(whole, augment(IMAGES, Noise.whole(4, COUNT, "classifier")))
    for start, stop in ((0, 23), (23, 47), (47, COUNT)):
        assert torch.equal(augment(IMAGES[start:stop], NOISE.rows(start, stop)), whole[start:stop])


def test_the_classifier_is_trained_on_augmented_images_and_evaluated_on_the_images():
    spec, labels = DataSpec.labelled_images(3, 9, 2), torch.arange(COUNT) % 2
    plain, augmented = CnnConfig(), CnnConfig(flip=0.5, rotate=20.0, color_jitter=0.3)
    tasks = [model_files.build("cnn", config, spec, 0) for config in (plain, augmented)]
    losses = [task.loss("classifier", batch_of(IMAGES, labels), NOISE)[0] for task in tasks]
    assert losses[0] != losses[1]
    metrics = [task.evaluate(batch_of(IMAGES, labels), NOISE)["cross_entropy"] for task in tasks]
    assert torch.equal(*metrics)


def test_the_discriminator_sees_mirrored_real_and_generated_images():
    task = model_files.build(
        "gan", GanConfig(width=8, flip=0.5, shift=0.0), DataSpec.labelled_images(3, 9, 2), 0
    )
    seen = []
    task.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    task.loss("discriminator", batch_of(IMAGES, torch.zeros(COUNT, dtype=torch.long)), NOISE)
    real, generated = seen[0].chunk(2)
    mirrored = equal_to(real, IMAGES.flip(-1))
    assert (mirrored ^ equal_to(real, IMAGES)).all() and 20 < mirrored.sum() < 50
    latents = NOISE.normal("latent", task.config.latent_size)
    drawn = task.generator(latents, torch.zeros(COUNT, dtype=torch.long))
    assert 20 < equal_to(generated, drawn.flip(-1)).sum() < 50
