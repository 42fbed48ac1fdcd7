"""Pictures of latents: interpolations, traversals, mixed styles, truncation."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.core.abilities import Ability, abilities
from pipeline.core.noise import Noise
from pipeline.evaluation import exploration
from pipeline.evaluation.exploration import Latents
from tests.evaluation.conftest import SIZE, Conditional, Fake, run, stripes, world

WEIGHTS = (0.1, 3.0, 1.0, 0.0)  # of the latents, in the brightness of an image


class Latent(Fake):
    """Images whose brightness is the weighted sum of four latents."""

    def latents(self, count, noise, labels=None):
        return noise.normal("latent", len(WEIGHTS))

    def decode(self, latents, labels=None):
        brightness = torch.sigmoid(latents @ torch.tensor(WEIGHTS))[:, None, None, None]
        return brightness.expand(-1, self.spec.channels, SIZE, SIZE) * (1 + labels[:, None, None, None])

    def generate(self, labels, count, noise):
        return self.decode(self.latents(count, noise), labels)


class Styled(Latent):
    num_levels = 4

    def mix(self, latents_a, latents_b, level, labels=None):
        mixed = torch.cat([latents_a[:, :level], latents_b[:, level:]], 1)
        return Latent.decode(self, mixed, labels)

    def decode(self, latents, labels=None, truncation=None):
        return super().decode(latents if truncation is None else truncation * latents, labels)


class Striped(Conditional):
    """Stripes whose blur is the latents."""

    def latents(self, count, noise, labels=None):
        return noise.normal("blur", self.spec.channels * SIZE * SIZE)

    def decode(self, latents, labels=None):
        return stripes(labels, latents.unflatten(1, (-1, SIZE, SIZE)), self.spec.channels)


def of(task, encodes=False):
    return Latents(task, encodes, lambda purpose, count: Noise.whole(0, count, purpose))


def test_spherical_interpolation_keeps_the_norm_and_the_angles():
    first, second = torch.eye(3)[:1] * 2, torch.eye(3)[1:2] * 2
    third = exploration.spherical(first, second, 1 / 3)
    assert third[0].tolist() == pytest.approx([2 * 3**0.5 / 2, 1.0, 0.0], abs=1e-5)
    assert exploration.spherical(first, second, 1.0)[0].tolist() == pytest.approx([0, 2, 0], abs=1e-5)
    same = exploration.spherical(first, first, 0.5)
    assert same[0].tolist() == pytest.approx([2, 0, 0], abs=1e-3)
    assert exploration.linear(first, second, 0.25)[0].tolist() == [1.5, 0.5, 0.0]


def test_parallel_and_opposite_latents_are_interpolated_within_their_ends():
    one, half = torch.ones(1, 1), torch.full((1, 1), -0.5)
    assert exploration.spherical(one, half, 0.5).item() == pytest.approx(0.25)
    assert exploration.spherical(one, -half, 0.5).item() == pytest.approx(0.75)
    for angle in (torch.pi, torch.pi - 1e-4, torch.pi - 1e-2, 1e-4):
        second = torch.tensor([[3 * np.cos(angle), 3 * np.sin(angle)]], dtype=torch.float32)
        way = [exploration.spherical(torch.tensor([[1.0, 0.0]]), second, share) for share in (0, 0.4, 0.8, 1)]
        assert max(point.norm().item() for point in way) <= 3.001
        assert torch.allclose(way[-1], second, atol=1e-3)


def test_an_interpolation_begins_and_ends_with_the_images_of_its_ends():
    latents, labels = of(Latent()), torch.tensor([0, 0])
    sheet = exploration.interpolations(latents, labels)
    assert sheet.images.shape == (2, exploration.STEPS, 1, SIZE, SIZE) and sheet.columns[-1] == "100%"
    for column, end in ((0, "end 1"), (-1, "end 2")):
        image = latents.decode(latents.draw(labels, end), labels)
        assert torch.allclose(sheet.images[:, column], image, atol=1e-5)


def test_codes_are_interpolated_between_real_images_which_are_shown():
    class Mean(Latent):
        def encode(self, images):
            return images.flatten(1)[:, :4]

    dark, bright = (torch.full((2, 1, SIZE, SIZE), value) for value in (0.0, 1.0))
    sheet = exploration.interpolations(of(Mean(), True), torch.zeros(2, dtype=torch.long), (dark, bright))
    assert torch.equal(sheet.images[:, 0], dark) and torch.equal(sheet.images[:, -1], bright)
    middle = torch.sigmoid(torch.tensor(sum(WEIGHTS) / 2))
    assert sheet.images[0, 1 + exploration.STEPS // 2].mean() == pytest.approx(float(middle))
    assert sheet.columns[0] == "from" and sheet.columns[-1] == "to"


def test_the_latents_that_change_the_image_most_come_first():
    sheet = exploration.traversals(of(Latent()), 1)
    assert sheet.rows == ["latent 1", "latent 2", "latent 0", "latent 3"]
    assert sheet.columns == ["-3 sd", "-2 sd", "-1 sd", "mean", "+1 sd", "+2 sd", "+3 sd"]
    brightness = sheet.images.flatten(2).mean(2)
    assert (brightness[0].diff() > 0).all() and torch.equal(brightness[3], brightness[3][:1].expand(7))


def test_mixed_styles_pass_from_the_first_image_to_the_second():
    latents, labels = of(Styled()), torch.tensor([0, 1])
    sheet = exploration.mixing(latents, labels)
    assert sheet.columns == ["first", "from 3", "from 2", "from 1", "second"]
    first, second = (latents.draw(labels, f"style {end}") for end in (1, 2))
    assert torch.equal(sheet.images[:, 2], latents.task.mix(first, second, 2, labels))
    assert torch.equal(sheet.images[:, -1], latents.decode(second, labels))
    assert exploration.mixing(of(Latent()), labels) is None


def test_truncation_moves_latents_to_the_mean_of_their_class_or_styles_to_theirs():
    latents, labels = of(Latent()), torch.tensor([0, 0])
    draws, means = latents.draw(labels, "x"), latents.means(labels)
    assert torch.allclose(latents.truncated(draws, means, labels, 0.0), latents.decode(means, labels))
    assert torch.allclose(latents.truncated(draws, means, labels, 1.0), latents.decode(draws, labels))
    styled = of(Styled())
    expected = styled.task.decode(draws, labels, truncation=0.5)
    assert torch.equal(styled.truncated(draws, means, labels, 0.5), expected)


def test_an_evaluation_draws_the_latents_and_trades_diversity_for_fidelity(tasks, tmp_path):
    dataset = world()
    assert Ability.DECODE in abilities(Striped()) and Ability.DECODE not in abilities(Conditional())
    run(dataset, {"cnn": tasks["cnn"].__class__(), "gan": Striped()}, tmp_path)
    for kind in ("interpolation", "traversal", "truncation", "nearest"):
        with Image.open(tmp_path / f"plots/pictures/gan-{kind}.png") as picture:
            assert min(picture.size) > 100, kind
    table = pd.read_csv(tmp_path / "plots/tables/gan-truncation.csv")
    assert table["truncation"].tolist() == [0.4, 0.6, 0.8, 1.0, 1.2]
    assert table["recall"].iloc[0] < table["recall"].iloc[-1]
    assert table["precision"].iloc[0] >= table["precision"].iloc[-1]
