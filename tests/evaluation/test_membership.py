"""Attacks find the training images of models that know them by heart, and only those."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.estimate import Estimate
from pipeline.evaluation import averages, pixels
from pipeline.evaluation.context import Context
from pipeline.evaluation.distances import is_copy
from pipeline.evaluation.evaluators import membership
from pipeline.evaluation.evaluators.likelihood import NATS
from tests.evaluation.conftest import SETTINGS, Autoencoder, Classifier, Conditional, run, world


def everything(split):
    return torch.from_numpy(split.rows(np.arange(len(split)))["image"]).float() / 255


class Remembering(Autoencoder):
    """Reconstructs, generates and classifies what it has seen much better than other images."""

    def __init__(self, seen):
        super().__init__()
        self.seen = everything(seen)

    def knows(self, images):
        return torch.cdist(images.flatten(1), self.seen.flatten(1)).amin(1) < 0.02  # but for rounding

    def reconstruct(self, images):
        known = self.knows(images)[:, None, None, None]
        return torch.where(known, images, super().reconstruct(images))

    def generate(self, labels, count, noise):
        return self.seen[noise.integers("seen", len(self.seen))]


class Sure(Classifier):
    def __init__(self, seen):
        super().__init__()
        self.knows = Remembering(seen).knows

    def classify(self, images):
        return super().classify(images) * (1 + 9 * self.knows(images))[:, None]


def test_a_model_that_remembers_is_found_and_a_model_that_does_not_is_not(tmp_path):
    data = world()
    models = {
        "cnn": Sure(data.train),
        "parrot": Remembering(data.train),
        "innocent": Remembering(world().test),  # it remembers other images than those of the training
        "gan": Conditional(),
    }
    data.test = data.validation
    results = run(data, models, tmp_path)
    attacks = ("reconstruction_attack", "distance_attack")
    for name, model in (*((name, "parrot") for name in attacks), ("loss_attack", "cnn")):
        assert results[model][name]["value"] > 0.95, name
        assert results[model][f"{name}_found"]["value"] > 0.5, name
    for name, model in (*((name, "innocent") for name in attacks), ("distance_attack", "gan")):
        assert results[model][name]["low"] < 0.5 < results[model][name]["high"], name
    warned = {name: [each["rule"] for each in found] for name, found in results["warnings"].items()}
    assert "exposed" in warned["parrot"] and "exposed" in warned["cnn"]
    assert "exposed" not in warned.get("innocent", []) + warned.get("gan", [])
    [text] = [each["what"] for each in results["warnings"]["parrot"] if each["rule"] == "exposed"]
    assert "parrot gives its training images away" in text and "of all pairs (chance: 50.0%)" in text
    table = pd.read_csv(tmp_path / "plots/tables/parrot-membership.csv")
    assert table["attack"].tolist() == ["reconstruction", "distance"]
    assert table["meaning"].str.contains("given away").all()
    for kind in ("reconstruction-attack", "distance-attack"):
        assert (tmp_path / f"plots/pictures/parrot-{kind}.png").is_file()


def context(data, task, plots=None):
    return Context(SETTINGS, {"images": data}, {"ae": task}, {"ae": "d"}, plots, "ae")


@pytest.mark.parametrize("held_out", [None, 2])
def test_as_many_training_images_as_unseen_ones_are_attacked_each_once(held_out):
    data, task = world(), Autoencoder()
    task.config = SimpleNamespace(held_out_class=held_out)
    members, unseen = membership.chosen(context(data, task))
    [(train, rows)] = members
    assert train is data.train and len(set(rows)) == len(rows) == sum(len(each) for _, each in unseen)
    assert [split for split, _ in unseen] == [data.validation, data.test]
    for split, each in (*members, *unseen):
        assert (held_out in split.labels[each]) is False and len(set(each)) == len(each)
        assert len(each) == len(split) or split is data.train or held_out is not None
    again = membership.chosen(context(data, task))
    assert all((one == other).all() for (_, one), (_, other) in zip(unseen, again[1]))


def test_test_images_are_attacked_only_where_validation_images_are_too_few(monkeypatch):
    monkeypatch.setattr(membership, "NUM_IMAGES", 12)
    members, unseen = membership.chosen(context(world(), Autoencoder()))
    assert [len(rows) for _, rows in (*members, *unseen)] == [12, 12, 0]


def test_equal_images_have_the_same_distance_in_any_batch_and_generated_ones_have_none():
    data = world()
    attack = membership.attacks(context(data, Remembering(data.train)))["distance_attack"]
    batch, others = data.train.batch(np.arange(60)), data.test.batch(np.arange(30))
    assert not attack.score(batch).any()
    alone = [float(attack.score(data.test.batch(np.array([row])))) for row in range(30)]
    assert attack.score(others).tolist() == alone


def test_of_too_few_images_nothing_is_measured(monkeypatch):
    tried = []
    monkeypatch.setattr(membership, "attacks", lambda model: tried.append(membership.NUM_IMAGES) or {})
    for number in (membership.LEAST_IMAGES, membership.LEAST_IMAGES - 1):
        monkeypatch.setattr(membership, "NUM_IMAGES", number)
        assert membership.evaluate(context(world(), Autoencoder())) == {}
    assert tried == [membership.LEAST_IMAGES]


def test_a_model_of_tokens_is_attacked_by_its_loss(tmp_path):
    data, task = world(), Classifier()
    knows = Remembering(data.train).knows
    task.classify = task.features = lambda images: None
    task.evaluate = lambda batch, noise: {NATS: 1 - 0.5 * knows(batch.images)}
    model = context(data, task, tmp_path)
    assert not membership.evaluate(model)  # it is none
    model.measured[NATS] = Estimate(1.0)
    assert membership.evaluate(model)["loss_attack"].value == 1


def test_the_score_by_loss_is_that_of_the_loss_and_keeps_the_order_of_very_sure_answers():
    logits, labels = torch.randn(30, 5), torch.randint(5, (30,))
    loss = cross_entropy(logits.double(), labels, reduction="none")
    assert torch.allclose(membership.log_odds(logits, labels), -torch.expm1(loss).log())  # p = exp(-loss)
    sure = torch.tensor([[200.0, 0.0], [300.0, 0.0]])  # the losses are both 0
    assert membership.log_odds(sure, torch.zeros(2, dtype=torch.int64)).tolist() == [200, 300]


def test_the_true_positive_rate_counts_what_is_above_all_but_one_percent_of_the_others():
    others = np.arange(200.0)  # two of them may be above the threshold, so it is 197
    rate = lambda found: averages.true_positive_rate(np.array(found), others, 0.01, 5, 0).value
    assert rate([197.0, 197.5, 198.0, 0.0]) == 0.5
    assert rate([300.0, 400.0]) == 1 and rate([0.0, 197.0]) == 0
    few = averages.true_positive_rate(np.array([0.5, 2.0]), np.array([0.0, 1.0]), 0.01, 5, 0)
    assert few.value == 0.5 and few.floor == pytest.approx(1 / 3)  # no false positive is allowed


def test_without_membership_one_percent_is_found_and_the_interval_covers_it():
    random, covered, values = np.random.default_rng(0), 0, []
    for seed in range(60):
        known, others = random.normal(size=(2, 500))
        found = averages.true_positive_rate(known, others, 0.01, 100, seed)
        covered += found.low <= 0.012 and found.high >= 0.01
        values.append(found.value)
    assert np.mean(values) == pytest.approx(found.floor, abs=0.003)
    assert found.floor == 6 / 501  # of 500, five exceed the sixth
    assert covered >= 50


def test_copies_are_much_nearer_to_one_training_image_than_to_the_next():
    random = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randint(0, 256, (count, 64), dtype=torch.uint8, generator=random)
    reference, unseen = draw(50), draw(20)
    noisy = (reference[:20].int() + draw(20).int() % 9 - 4).clamp(0, 255).byte()
    assert is_copy(pixels.nearest(noisy, reference)).all()
    assert not is_copy(pixels.nearest(unseen, reference)).any()
    between = ((reference[:1].int() + reference[1:2]) // 2).byte()  # as near to two training images
    assert not is_copy(pixels.nearest(between, reference[:2])).any()
    large = torch.randint(0, 256, (3, 20_000), dtype=torch.uint8, generator=random)
    blank = torch.full((2, 20_000), 255, dtype=torch.uint8)
    for twice in (large[:1].repeat(2, 1), blank):
        found = pixels.nearest(twice, torch.cat([large[1:], twice]))
        assert (found == 0).all() and not is_copy(found).any()  # the same picture twice hides its copies
    near = blank.clone()
    near[0, 0], near[1, :16] = 254, 254  # distances of 1 and 4 grey levels
    assert pixels.nearest(blank[:1], near) == pytest.approx(np.array([[1, 4]]) / 255)
