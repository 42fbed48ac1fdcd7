"""The classifier's losses, mixing, whitening and networks, compared with closed forms."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch.nn import functional as F

from pipeline.core import model_files
from pipeline.core.noise import Noise
from pipeline.core.task import DataSpec
from pipeline.errors import BadInput
from pipeline.models.cnn import CnnConfig, whitening
from pipeline.models.cnn.losses import LOSSES
from pipeline.models.cnn.mixing import mix
from pipeline.models.cnn.whitening import Whitening
from tests.arrays import ArrayDataset, array_split

COUNT = 40
LOGITS = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.arange(COUNT) % 4
DATA = ArrayDataset(channels=3, size=12, classes=4, train=200)


def losses_of(kind, **settings):
    return LOSSES[kind](LOGITS, LABELS, CnnConfig(loss=kind, **settings)).double()


def classifier(**settings):
    task = model_files.build("cnn", settings, DATA.spec, 0)
    task.on_train_start(DATA.train)
    return task


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_losses_are_those_of_the_papers(smoothing):
    p, rows = LOGITS.double().softmax(1), range(COUNT)
    y = np.full((COUNT, 4), smoothing / 4)
    y[rows, LABELS] += 1 - smoothing
    errors = p.numpy() - y
    small = np.abs(errors) <= 0.3
    expected = {
        "cross_entropy": -(y * p.log().numpy()).sum(1),
        "mse": (errors**2).sum(1),
        "huber": np.where(small, errors**2 / 2, 0.3 * (np.abs(errors) - 0.15)).sum(1),
    }
    for kind, values in expected.items():
        delta = {"huber_delta": 0.3} if kind == "huber" else {}
        found = losses_of(kind, label_smoothing=smoothing, **delta)
        assert found.numpy() == pytest.approx(values, rel=1e-5, abs=1e-6)
    true = p[rows, LABELS]
    assert torch.allclose(losses_of("focal", focal_gamma=3.0), -((1 - true) ** 3) * true.log(), rtol=1e-4)


def test_focal_loss_with_gamma_0_is_the_cross_entropy_and_its_gradient_is_finite():
    config = CnnConfig(loss="focal").model_copy(update={"focal_gamma": 0.0})
    assert torch.allclose(LOSSES["focal"](LOGITS, LABELS, config).double(), losses_of("cross_entropy"))
    sure = torch.tensor([[80.0, -80.0], [-80.0, 80.0]], requires_grad=True)  # right and wrong
    for gamma in (1.0, 2.0):
        LOSSES["focal"](
            sure, torch.tensor([0, 0]), CnnConfig(loss="focal", focal_gamma=gamma)
        ).sum().backward()
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize("a", [0.3, 1.0, 2.0])
def test_mixup_blends_two_images_with_a_share_from_the_beta_distribution(a):
    images, others = torch.zeros(600, 3, 5, 5), torch.ones(600, 3, 5, 5)
    mixed, share = mix(images, others, Noise.whole(0, 600), a, 0.0)
    assert torch.allclose(mixed, (1 - share)[:, None, None, None].expand_as(mixed), atol=1e-6)
    assert kstest(share.numpy(), beta(a, a).cdf).pvalue > 0.01


def test_cutmix_replaces_a_rectangle_and_the_label_has_the_share_of_the_other_pixels():
    images, others = torch.zeros(600, 3, 32, 32), torch.ones(600, 3, 32, 32)
    mixed, share = mix(images, others, Noise.whole(0, 600), 0.0, 1.0)
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(share, 1 - mixed.mean((1, 2, 3)), atol=1e-6)
    assert share.min() < 0.3 and share.max() > 0.95 and torch.equal(mixed[:, 0], mixed[:, 1])
    for mask in mixed[:50, 0] > 0:
        assert torch.equal(mask, mask.any(1)[:, None] & mask.any(0)[None])


def test_with_both_about_half_of_the_images_are_mixed_in_each_way():
    images, others = torch.zeros(400, 1, 16, 16), torch.ones(400, 1, 16, 16)
    mixed, share = mix(images, others, Noise.whole(0, 400), 1.0, 1.0)
    cut = ((mixed == 0) | (mixed == 1)).flatten(1).all(1)
    assert 150 < cut.sum() < 250
    assert torch.allclose(share, 1 - mixed.mean((1, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("settings", [{"mixup": 1.0}, {"cutmix": 1.0, "class_weights": "auto"}])
def test_the_loss_of_mixed_images_is_that_of_both_labels_weighted_by_their_shares(settings):
    task = classifier(channels=[4], dense=[4], **settings)
    batch, noise = DATA.train.batch(np.arange(COUNT)), Noise.whole(0, COUNT, "classifier")
    others, _ = task.read_partners(noise)
    mixup, cutmix = settings.get("mixup", 0.0), settings.get("cutmix", 0.0)
    mixed, share = mix(batch.images, others.images, noise, mixup, cutmix)
    logits = task.network(mixed)
    weights = task.class_weights if task.class_weights is not None else torch.ones(4)
    one, two = (
        F.cross_entropy(logits, y, reduction="none") * weights[y] for y in (batch.labels, others.labels)
    )
    assert torch.allclose(task.loss("classifier", batch, noise)[0], (share * one + (1 - share) * two).mean())


def test_partners_are_drawn_from_the_whole_training_split_by_row_and_the_data_is_not_copied():
    task = classifier(mixup=1.0)
    noise = Noise.whole(0, 100, "classifier")
    images = task.read_partners(noise)[0].images
    rows = [task.read_partners(noise.rows(a, b))[0].images for a, b in ((0, 23), (23, 40), (40, 100))]
    assert torch.equal(images, torch.cat(rows))  # as workers read them
    known = {image.tobytes() for image in DATA.train.rows(np.arange(200))["image"]}
    found = {image.tobytes() for image in (images * 255).round().byte().numpy()}
    assert found <= known and len(found) > 60
    assert copy.deepcopy(task).read_partners is task.read_partners


@pytest.mark.parametrize("channels", [1, 3])
def test_the_whitened_patches_of_the_training_images_have_mean_0_and_the_identity_as_covariance(channels):
    images = np.random.default_rng(0).integers(0, 256, (300, channels, 9, 9), dtype=np.uint8)
    images[:, :, 1:] = images[:, :, 1:] // 2 + images[:, :, :-1] // 2  # so that pixels are correlated
    split = array_split(images, np.zeros(300, np.int64), 2)
    layer = Whitening(channels)
    layer.fit(split)
    patches = layer(split.batch(np.arange(300)).images).detach().permute(0, 2, 3, 1).flatten(0, 2)
    half = 4 * channels
    assert patches.shape[1] == 2 * half and torch.allclose(patches[:, :half], -patches[:, half:], atol=1e-4)
    assert patches.mean(0).abs().max() < 1e-3
    covariance = patches[:, :half].T @ patches[:, :half] / len(patches)
    assert torch.allclose(covariance, torch.eye(half), atol=0.06)  # a little less than 1


def test_flat_images_are_not_amplified_and_the_filters_of_a_trained_model_stay():
    flat = array_split(np.full((10, 1, 8, 8), 90, np.uint8), np.zeros(10, np.int64), 2)
    layer = Whitening(1)
    layer.fit(flat)
    assert layer.weight.isfinite().all() and layer(torch.full((1, 1, 8, 8), 90 / 255)).abs().max() < 1e-3
    before = layer.weight.clone()
    layer.fit(ArrayDataset().train)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("normalisation", ["none", "group", "weight"])
@pytest.mark.parametrize("architecture", ["residual", "fast"])
def test_width_and_depth_scale_and_the_last_layer_is_linear_in_the_features(architecture, normalisation):
    config = {"architecture": architecture, "normalisation": normalisation, "channels": [8, 16, 24]}
    task = classifier(**config)
    images = DATA.test.batch(np.arange(5)).images
    with torch.no_grad():
        features = task.features(images)
        assert features.shape == (5, 24) and features.std() > 0
        assert torch.equal(task.classify(images), task.network.output(features))
    size = lambda **more: sum(value.numel() for value in classifier(**config | more).parameters())
    assert size(channels=[16, 32, 48]) > 3 * size()
    if architecture == "residual":
        assert size(depth=4) > 1.5 * size()


def test_a_residual_block_begins_as_its_shortcut():
    task = classifier(architecture="residual", channels=[8], depth=3)
    maps = torch.rand(2, 8, 6, 6)
    for block in task.network.blocks[1:4]:
        assert torch.equal(block(maps), maps)
        block.scale.data.fill_(0.5)
        assert torch.allclose(block(maps) - maps, block.branch(maps) / 2, atol=1e-6)


def test_standardised_filters_have_mean_0_and_the_norm_of_their_gain():
    task = classifier(normalisation="weight", channels=[6], dense=[8])
    layer = task.network.convolutions[0]
    layer.gain.data[0] = 3.0
    impulse = torch.eye(27).view(27, 3, 3, 3)
    with torch.no_grad():
        filters = (layer(impulse)[:, :, 1, 1] - layer.bias).T  # (6, 27)
    assert torch.allclose(filters.mean(1), torch.zeros(6), atol=1e-5)
    assert torch.allclose(filters.norm(dim=1), torch.tensor([3.0, *[1.7] * 5]), rtol=1e-4)


def test_the_test_time_flip_averages_the_answers_for_an_image_and_its_mirror_image():
    plain, averaged = classifier(flip=0.5), classifier(flip=0.5, test_time_flip=True)
    images = DATA.test.batch(np.arange(6)).images
    both = (plain.classify(images) + plain.classify(images.flip(-1))) / 2
    assert torch.allclose(averaged.classify(images), both, atol=1e-6)
    assert torch.allclose(averaged.classify(images), averaged.classify(images.flip(-1)), atol=1e-6)


def test_settings_that_contradict_each_other_are_refused_by_name_and_all_at_once():
    wrong = {
        "architecture": "fast",
        "dense": [32],
        "depth": 3,
        "huber_delta": 0.1,
        "focal_gamma": 3.0,
        "crop": 2,
        "shift": 0.1,
        "test_time_flip": True,
    }
    with pytest.raises(BadInput) as caught:
        model_files.build("cnn", wrong, DataSpec.labelled_images(1, 8, 2), 0)
    for name in ("dense", "depth", "huber_delta", "focal_gamma", "crop and shift", "test_time_flip"):
        assert name in caught.value.what
    with pytest.raises(BadInput, match="label_smoothing"):
        model_files.build("cnn", {"loss": "focal", "label_smoothing": 0.1}, DATA.spec, 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_multiply_every_loss(loss):
    weighted = classifier(loss=loss, class_weights="auto", channels=[4], dense=[4])
    weighted.class_weights = torch.tensor([1.0, 2.0, 0.5, 4.0])
    batch, noise = DATA.train.batch(np.arange(20)), Noise.whole(0, 20)
    losses = LOSSES[loss](weighted.classify(batch.images), batch.labels, weighted.config)
    expected = (losses * weighted.class_weights[batch.labels]).mean()
    assert torch.allclose(weighted.loss("classifier", batch, noise)[0], expected)


def test_whitening_reads_few_images_at_once_and_sums_their_moments(monkeypatch):
    whole, parts, sizes, read = Whitening(3), Whitening(3), [], DATA.train.batch
    whole.fit(DATA.train)
    monkeypatch.setattr(whitening, "CHUNK", 7)
    monkeypatch.setattr(DATA.train, "batch", lambda rows: sizes.append(len(rows)) or read(rows))
    parts.fit(DATA.train)
    assert max(sizes) <= 7 and sum(sizes) == 200
    assert torch.allclose((whole.weight**2).sum(0), (parts.weight**2).sum(0), rtol=1e-3)  # of any sign


@pytest.mark.parametrize("architecture", ["article", "residual", "fast"])
def test_any_number_of_channels_can_be_normalised_in_groups(architecture):
    task = classifier(architecture=architecture, channels=[28, 13], normalisation="group")
    assert task.classify(DATA.train.batch(np.arange(2)).images).isfinite().all()


@pytest.mark.parametrize("setting", ["channels", "dense"])
def test_layers_without_values_are_refused(setting):
    with pytest.raises(BadInput, match=setting):
        classifier(**{setting: [0]})
