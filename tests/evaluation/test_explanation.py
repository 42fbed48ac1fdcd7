"""Maps of what speaks for a class, and the sanity check."""

import io
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from pipeline.core import model_files
from pipeline.core.dataset import Dataset, Split
from pipeline.core.loop import Loop
from pipeline.core.settings import TrainingSettings
from pipeline.core.task import DataSpec
from pipeline.evaluation import explanation
from pipeline.evaluation.evaluators.explanation import check, chosen, title
from pipeline.evaluation.explanation import Explainer, Similarity, blank, randomised
from tests.evaluation.conftest import CLASSES, SIZE, Classifier, run, world

SPEC = DataSpec.labelled_images(3, 16, 4)
SMALL = {"channels": [4, 6, 8]}
ARCHITECTURES = {
    "article": {**SMALL, "dense": [8]},
    "residual": {**SMALL, "architecture": "residual", "depth": 1},
    "fast": {**SMALL, "architecture": "fast"},
}


def cnn(spec=SPEC, **config):
    task = model_files.build("cnn", config, spec, 1).eval().requires_grad_(False)
    if config.get("architecture") == "fast":
        weight = task.network.whitening.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    return task


def images_of(spec, count=3):
    return torch.rand(count, *spec["image"].shape, generator=torch.Generator().manual_seed(3))


def test_a_blank_image_has_the_median_colour_of_the_border():
    images = torch.zeros(1, 2, 4, 4)
    images[:, :, 1:3, 1:3] = 1
    images[0, 1, 0], images[0, 1, :, 0], images[0, 1, :, 3] = 0.5, 0.5, 0.75
    assert blank(images)[0, 0].unique().tolist() == [0] and blank(images).shape == images.shape
    assert blank(images)[0, 1].unique().tolist() == [0.5]


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_of_a_linear_classifier_agree_with_closed_forms(channels):
    task = Classifier(channels)
    images, labels = images_of(task.spec), torch.tensor([0, 1, 2])
    columns = torch.arange(SIZE)[None] // 2 == labels[:, None]
    weights = (20 / (2 * SIZE * channels) * columns.float())[:, None, None, :]  # of each pixel in the logit
    change = (weights * (images - blank(images))).sum(1, keepdim=True)
    maps = Explainer(task).map("gradients", images, labels)
    assert torch.allclose(maps, change, atol=1e-4)
    square = Explainer(task).map("occlusion", images, labels)  # squares of one pixel
    assert torch.allclose(square, change, atol=1e-4)
    assert Explainer(task).layer is None and Explainer(task).methods == ["gradients", "occlusion"]


def test_a_classifier_without_gradients_has_occlusion_only():
    task = Classifier(1)
    task.classify = torch.no_grad()(task.classify)
    assert Explainer(task).methods == ["occlusion"]
    assert check(Explainer(task), images_of(task.spec), torch.tensor([0, 1, 2]), 0)["map"].tolist() == [
        "Occlusion"
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_integrated_gradients_add_up_to_the_change_of_the_logit(architecture, monkeypatch):
    monkeypatch.setattr(explanation, "STEPS", 128)  # with 32 they are up to 5 % off
    task = cnn(**ARCHITECTURES[architecture])
    images, labels = images_of(SPEC, 10), torch.arange(10) % 4
    with torch.inference_mode():  # as in an evaluation
        maps = Explainer(task).map("gradients", images, labels)
        change = (task.classify(images) - task.classify(blank(images))).gather(1, labels[:, None])[:, 0]
    assert maps.shape == (10, 1, 16, 16)
    assert torch.allclose(maps.sum((1, 2, 3)), change, rtol=0, atol=0.03 * change.abs().max().item())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_occlusion_is_the_mean_change_of_the_logit_over_the_squares_that_hide_a_pixel(architecture):
    task = cnn(**ARCHITECTURES[architecture])
    images, labels = images_of(SPEC, 2), torch.tensor([1, 3])
    sums, counts = torch.zeros(2, 1, 16, 16), torch.zeros(16, 16)
    for top in range(0, 13, 2):
        for left in range(0, 13, 2):
            hidden = images.clone()
            square = (..., slice(top, top + 4), slice(left, left + 4))
            hidden[square] = blank(images)[square]
            change = (task.classify(images) - task.classify(hidden)).gather(1, labels[:, None])
            sums[square] += change[:, :, None, None]
            counts[square] += 1
    maps = Explainer(task).map("occlusion", images, labels)
    assert torch.allclose(maps, sums / counts, atol=1e-5)
    assert Explainer(task).source("occlusion") == "squares of 4 x 4 pixels"


def test_grad_cam_is_the_class_activation_map_of_a_network_with_global_pooling():
    task = cnn(**ARCHITECTURES["residual"])
    images, labels = images_of(SPEC), torch.tensor([0, 2, 3])
    activations = task.network.blocks(images * 2 - 1)
    weights = task.network.output.weight[labels] / activations[0, 0].numel()
    maps = F.relu((weights[:, :, None, None] * activations).sum(1, keepdim=True))
    expected = F.interpolate(maps, (16, 16), mode="bilinear")
    assert torch.allclose(Explainer(task).map("grad-cam", images, labels), expected, atol=1e-6)


def test_grad_cam_of_a_classifier_with_test_time_flip_is_that_of_the_image_and_its_mirror_image():
    flipping = cnn(flip=0.5, test_time_flip=True, **ARCHITECTURES["residual"])
    task = cnn(**ARCHITECTURES["residual"])
    images, labels = images_of(SPEC), torch.tensor([0, 2, 3])
    weights = task.network.output.weight[labels][:, :, None, None] / 2

    def activations(images):
        return (weights * task.network.blocks(images * 2 - 1)).sum(1, keepdim=True)

    both = activations(images) + activations(images.flip(-1)).flip(-1)
    expected = F.interpolate(F.relu(both) / both[0].numel(), (16, 16), mode="bilinear")
    assert torch.allclose(Explainer(flipping).map("grad-cam", images, labels), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "layer", "sides"),
    [
        (ARCHITECTURES["article"], "network.convolutions", (4, 4)),
        (ARCHITECTURES["residual"], "network.blocks", (4, 4)),
        (ARCHITECTURES["fast"], "network.convolutions.11", (3, 3)),  # maps of single values follow, as below
        ({"channels": [4] * 6}, "network.convolutions.10", (2, 2)),
    ],
)
def test_grad_cam_uses_the_last_layer_with_maps_of_more_than_one_value(config, layer, sides):
    explainer = Explainer(cnn(**config))
    assert explainer.layer[0] == layer and explainer.layer[2] == sides
    assert explainer.source("grad-cam") == f"{layer}, {sides[0]} x {sides[1]} values"
    assert not any(module._forward_hooks for module in explainer.task.modules())


def test_similarity_is_that_of_the_ranks_of_the_values_and_of_their_absolute_values():
    first, second = (torch.randn(5, 1, 9, 9, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    first[:, :, :4], second[:, :, :4] = 0, 0  # ties
    found = Similarity.between(first, second)
    pairs = [(a.flatten().numpy(), b.flatten().numpy()) for a, b in zip(first, second)]
    assert found.rank_correlation == pytest.approx(np.mean([spearmanr(a, b).statistic for a, b in pairs]))
    absolute = np.mean([spearmanr(abs(a), abs(b)).statistic for a, b in pairs])
    assert found.of_absolute_values == pytest.approx(absolute) and found.ssim < 0.9
    assert found.reading == "mostly its signs depend on the weights"
    same = Similarity.between(first, 3 * first)
    assert (same.rank_correlation, same.of_absolute_values) == pytest.approx((1, 1))
    assert same.ssim == pytest.approx(1) and "says little" in same.reading
    nothing = torch.zeros(5, 1, 9, 9)
    empty = Similarity.between(nothing, first)
    assert math.isnan(empty.rank_correlation) and empty.reading == "cannot be checked: the maps are empty"
    some = torch.cat([nothing[:2], first[2:]])  # maps without content count for nothing
    assert Similarity.between(some, second).rank_correlation == pytest.approx(
        Similarity.between(first[2:], second[2:]).rank_correlation
    )
    neither = Similarity.between(nothing, nothing)  # not alike: there is nothing to compare
    assert math.isnan(neither.rank_correlation) and math.isnan(neither.ssim)
    assert "cannot be checked" in neither.reading
    more = [torch.cat([nothing, maps]) for maps in (first, second)]
    assert Similarity.between(*more).ssim == pytest.approx(found.ssim)


def test_a_randomised_network_has_the_same_values_in_another_order_that_depends_on_the_seed():
    task = cnn(**ARCHITECTURES["fast"])
    with torch.inference_mode():
        other, again, third = randomised(task, 0), randomised(task, 0), randomised(task, 0, 1)
    for name, values in task.state_dict().items():
        shuffled = other.state_dict()[name]
        assert torch.equal(shuffled, again.state_dict()[name])
        assert torch.equal(shuffled.flatten().sort().values, values.flatten().sort().values)
        if values.flatten().unique().numel() > 10:
            assert not torch.equal(shuffled, values) and not torch.equal(shuffled, third.state_dict()[name])


def test_maps_of_a_classifier_that_does_not_use_its_weights_say_little():
    task = Classifier(1)
    table = check(Explainer(task), images_of(task.spec), torch.tensor([0, 1, 2]), 0).set_index("map")
    assert list(table.index) == ["Integrated Gradients", "Occlusion"]
    assert table["rank correlation"].tolist() == pytest.approx([1, 1])
    assert all("says little" in reading for reading in table["reading"])


def test_maps_without_content_are_not_checked_and_have_empty_cells(monkeypatch):
    maps = iter([torch.zeros(3, 1, SIZE, SIZE), *torch.rand(3, 3, 1, SIZE, SIZE)])
    monkeypatch.setattr(Explainer, "map", lambda *args: next(maps))
    monkeypatch.setattr(Explainer, "methods", ["occlusion"])
    table = check(Explainer(Classifier(1)), torch.rand(3, 1, SIZE, SIZE), torch.tensor([0, 1, 2]), 0)
    [row] = pd.read_csv(io.StringIO(table.to_csv(index=False)), keep_default_na=False).to_dict("records")
    assert (
        row["rank correlation"] == row["of absolute values"] == "" and "cannot be checked" in row["reading"]
    )


def test_the_worst_mistakes_and_of_the_others_the_least_sure_images_are_chosen():
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet(np.ones(5), 60), random.integers(0, 5, 60)
    rows = chosen(probabilities, labels)
    true = probabilities[np.arange(60), labels]
    assert rows["mistakes"].tolist() == np.argsort(true)[:8].tolist()
    others = sorted(set(range(60)) - set(rows["mistakes"]), key=lambda row: probabilities[row].max())
    assert rows["unsure"].tolist() == others[:8]
    assert list(chosen(probabilities[:5], labels[:5])) == ["mistakes"]
    assert title("cat", "dog", 0.9) == "cat taken for dog, 90.0%" and title("cat", "cat", 0.5) == "cat, 50.0%"


def test_an_evaluation_draws_the_maps_the_same_each_time(tmp_path):
    task = cnn(DataSpec.labelled_images(1, SIZE, CLASSES), channels=[4, 4])
    for folder in ("one", "two"):
        run(world(), {"cnn": task}, tmp_path / folder)
    for path in ("pictures/cnn-mistakes.png", "pictures/cnn-unsure.png", "tables/cnn-maps.csv"):
        one, two = (tmp_path / folder / "plots" / path for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    table = pd.read_csv(tmp_path / "one/plots/tables/cnn-maps.csv")
    assert table["map"].tolist() == ["Integrated Gradients", "Grad-CAM", "Occlusion"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, processed_digits):
    """Two classifiers of the digits with different seeds, and one that learned shuffled labels."""
    data = Dataset.open(processed_digits)
    rows = data.train.rows(np.arange(len(data.train)))
    rows["label"] = np.random.default_rng(0).permutation(rows["label"])
    shuffled = SimpleNamespace(**{**vars(data), "train": Split([rows], data.spec)})

    def train(seed, dataset, num_steps):
        config = {"architecture": "residual", "channels": [16, 32], "depth": 1, "normalisation": "weight"}
        task = model_files.build("cnn", config, data.spec, seed)
        often = {f"{each}_every": 1000 for each in ("log", "validate", "sample", "checkpoint")}
        settings = TrainingSettings(seed=seed, num_steps=num_steps, batch_size=64, ema_decay=0.9, **often)
        return Loop(task, dataset, settings, tmp_path_factory.mktemp("training")).run().eval()

    batch = data.test.batch(np.arange(100))
    return batch, [train(0, data, 150), train(1, data, 150), train(1, shuffled, 400)]


@pytest.mark.nightly
@pytest.mark.parametrize("method", explanation.METHODS)
def test_maps_depend_on_weights_and_tell_a_training_on_shuffled_labels_from_a_sound_one(trained, method):
    batch, (one, other, shuffled) = trained
    maps = [Explainer(task).map(method, batch.images, batch.labels) for task in (one, other, shuffled)]
    sound, wrong = (Similarity.between(maps[0], each) for each in maps[1:])
    assert sound.rank_correlation > wrong.rank_correlation + 0.1 and sound.ssim > wrong.ssim
    found = explanation.sanity_check(Explainer(one), batch.images, batch.labels, [method])[method]
    assert abs(found.rank_correlation) < 0.4 and "depend" in found.reading
