"""The segmentation network: losses by closed form, weights of the classes, augmentation of image and mask."""

import math

import numpy as np
import pytest
import torch

from pipeline.core.abilities import Ability, abilities
from pipeline.core.batch import Batch
from pipeline.core.dataset import Split
from pipeline.core.fields import DataSpec, Field
from pipeline.core.noise import Noise
from pipeline.core.task import mean_ratio
from pipeline.errors import BadInput
from pipeline.layers.label_maps import IGNORED, answers, colors, overlap, paint
from pipeline.models.unet import Unet
from pipeline.models.unet.losses import LOSSES
from pipeline.models.unet.networks import SHARPNESS, ResidualBlock
from pipeline.models.unet.settings import UnetConfig
from pipeline.params import validate

SIZE, CLASSES = 8, 3
SPEC = DataSpec({"image": Field("image", (1, SIZE, SIZE)), "mask": Field("label_map", (SIZE, SIZE), CLASSES)})


def config(**settings):
    return validate({"width": 8, "depth": 1, **settings}, UnetConfig, where="unet.model")


def examples(count=2):
    """Each image is its own mask, so that it shows how the mask has moved."""
    masks = torch.randint(CLASSES, (count, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    return Batch({"image": masks[:, None] / (CLASSES - 1), "mask": masks})


def test_losses_of_two_pixels_agree_with_their_formulas():
    logits = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).log().T.reshape(1, 2, 1, 2)  # p of pixels 0 and 1
    masks = torch.tensor([[[0, 0]]])
    weights = torch.tensor([2.0, 5.0])
    entropy = -(math.log(0.8) + math.log(0.3)) / 2
    focal = -(0.2**2 * math.log(0.8) + 0.7**2 * math.log(0.3)) / 2
    dice = ((1 - (2 * 1.1 + 1) / (1.1 + 2 + 1)) + (1 - 1 / (0.9 + 1))) / 2
    expected = {"cross_entropy": 2 * entropy, "focal": 2 * focal, "dice": dice, "sum": 2 * entropy + dice}
    for name, value in expected.items():
        loss = LOSSES[name](logits, masks, config(), weights)
        assert loss.tolist() == pytest.approx([value], rel=1e-5), name


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_do_not_count_in_a_loss(name):
    logits = torch.randn(2, CLASSES, 4, 4, generator=torch.Generator().manual_seed(1))
    masks = torch.ones(2, 4, 4, dtype=torch.int64)
    masks[:, 2:] = IGNORED
    other = logits.clone()
    other[:, :, 2:] = 9.0
    whole = LOSSES[name](logits[:, :, :2], masks[:, :2], config(), None)
    for each in (logits, other):
        assert torch.allclose(LOSSES[name](each, masks, config(), None), whole)
    assert LOSSES[name](logits, torch.full_like(masks, IGNORED), config(), None).abs().max() < 1e-6


def test_automatic_weights_are_inverse_to_the_frequencies_of_the_pixels():
    masks = np.zeros((4, SIZE, SIZE), np.uint8)
    masks[:, 0] = 1
    masks[:, 1, :4] = IGNORED
    task = Unet(config(class_weights="auto"), SPEC)
    task.on_train_start(Split([{"image": np.zeros((4, 1, SIZE, SIZE), np.uint8), "mask": masks}], SPEC))
    assert task.class_weights[:2].tolist() == pytest.approx([60 / (52 * 2), 60 / (8 * 2)])
    assert Unet(config(), SPEC).class_weights is None


def test_image_and_mask_are_mirrored_and_shifted_alike():
    batch = examples(64)
    task = Unet(config(flip=0.5, crop=2), SPEC)
    images, masks = task._augmented(batch, Noise.whole(0, 64))
    assert torch.equal((images[:, 0] * (CLASSES - 1)).round().long(), masks)
    moved = (masks != batch["mask"]).flatten(1).any(1)
    assert moved.sum() > 32 and torch.equal(masks.unique(), batch["mask"].unique())
    again = task._augmented(batch.rows(32, 64), Noise.whole(0, 64).rows(32, 64))
    assert torch.equal(again[1], masks[32:])


def test_the_overlap_of_a_known_pair():
    found, real = torch.tensor([[[0, 1, 1, 2]]]), torch.tensor([[[0, 1, 2, IGNORED]]])
    both, ours, theirs = overlap(found, real, 3)
    assert (both.tolist(), ours.tolist(), theirs.tolist()) == ([[1, 1, 0]], [[1, 2, 0]], [[1, 1, 1]])


@pytest.mark.parametrize("size", [8, 7])
def test_with_patches_the_pixels_of_the_logits_are_those_of_the_image(size):
    spec = DataSpec({"image": Field("image", (1, size, size)), "mask": Field("label_map", (size, size), 3)})
    task = Unet(config(patch_size=2), spec)
    output = task.network.output
    with torch.no_grad():
        for values in (output.weight, output.bias):
            values.zero_()
        for place in range(4):  # the class 1 reads the pixel itself, which follows 8 channels of maps
            output.weight[4 + place, 8 + place] = 1 / SHARPNESS
    images = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([torch.zeros_like(images), images * 2 - 1, torch.zeros_like(images)], 1)
    assert torch.allclose(task.segment(images), expected, atol=1e-6)


@pytest.mark.parametrize("patch_size, blocks", [(1, [0, 2, 2, 3, 0, 0]), (2, [2, 2, 2, 3, 3, 0])])
def test_residual_blocks_are_where_maps_are_at_most_a_quarter_of_the_image(patch_size, blocks):
    network = Unet(config(patch_size=patch_size, num_blocks=2, decoder_blocks=3, depth=3), SPEC).network
    levels = [*network.down, *network.up]
    assert [sum(isinstance(layer, ResidualBlock) for layer in level) for level in levels] == blocks


def test_channels_double_up_to_a_limit():
    network = Unet(config(depth=3, max_width=20), SPEC).network
    assert [down[0].out_channels for down in network.down] == [16, 20, 20]


def test_it_can_segment_and_nothing_else_and_evaluates_ratios():
    task = Unet(config(), SPEC).eval()
    assert abilities(task) == {Ability.SEGMENT}
    values = task.evaluate(examples(), Noise.whole(0, 2))
    assert values["mean_iou"].numerator.shape == (2, CLASSES)
    assert values["foreground_iou"].numerator.shape == (2, CLASSES - 1)
    assert values["pixel_accuracy"].denominator.tolist() == [SIZE**2, SIZE**2]


@pytest.mark.parametrize("label", [0, IGNORED])
def test_without_an_object_in_truth_and_answer_nothing_is_missed(label, monkeypatch):
    task = Unet(config(), SPEC).eval()
    background = torch.zeros(2, CLASSES, SIZE, SIZE)
    background[:, 0] = 1
    monkeypatch.setattr(task, "segment", lambda images: background)
    masks = torch.full((2, SIZE, SIZE), label)
    values = task.evaluate(Batch({"image": torch.zeros(2, 1, SIZE, SIZE), "mask": masks}), Noise.whole(0, 2))
    for name in ("mean_iou", "foreground_iou", "pixel_accuracy"):
        assert mean_ratio(*(part.double().sum(0) for part in values[name])) == 1, name
    assert values["cross_entropy"].isfinite().all()
    assert math.isnan(mean_ratio(torch.ones(1), torch.full((1,), torch.nan)))  # not hidden


def test_images_are_evaluated_in_parts_of_bounded_size(monkeypatch):
    task, batch = Unet(config(), SPEC).eval(), examples(5)
    whole = task.evaluate(batch, Noise.whole(0, 5))
    seen, segment = [], task.segment
    monkeypatch.setattr("pipeline.layers.label_maps.PIXELS", 2 * SIZE**2 + 1)
    monkeypatch.setattr(task, "segment", lambda images: seen.append(len(images)) or segment(images))
    found = task.evaluate(batch, Noise.whole(0, 5))
    assert seen == [2, 2, 1]
    assert torch.equal(answers(task.segment, batch.images), segment(batch.images).argmax(1))
    assert seen[3:] == [2, 2, 1]
    assert torch.equal(found["mean_iou"].numerator, whole["mean_iou"].numerator)
    assert torch.allclose(found["cross_entropy"], whole["cross_entropy"])


def test_classes_have_different_colours_and_the_background_is_black():
    assert colors(1) == [(0, 0, 0)] and len(set(colors(40))) == 40
    painted = paint(torch.tensor([[[0, 2, IGNORED]]]), 3) * 255
    assert painted[0, :, 0].T.round().long().tolist() == [[0, 0, 0], list(colors(3)[2]), [128] * 3]


def test_settings_without_an_effect_are_refused():
    with pytest.raises(BadInput, match=r"focal_gamma is for loss: focal.*class_weights is for loss"):
        config(loss="dice", focal_gamma=3.0, class_weights="auto")
