"""The Transformer: attention and sampling compared with plain versions, and what a completion keeps."""

import math

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.noise import Noise
from pipeline.core.task import DataSpec
from pipeline.errors import BadInput
from pipeline.models.transformer.network import Attention, Cache, rotary_angles, rotated
from pipeline.models.transformer.sampling import draw, probabilities

SPEC = DataSpec.labelled_images(1, 8, 3)
COLOUR = DataSpec.labelled_images(3, 4, 3)
SMALL = {"width": 16, "depth": 2, "heads": 2}
PIXELS = SMALL | {"tokens": "pixels", "levels": 5}


def build(spec=SPEC, **settings):
    """A Transformer with initial weights that are not small, so that no two logits are nearly equal."""
    vqvae = model_files.build("vqvae", {"num_codes": 8, "code_size": 4, "width": 8}, spec, 0)
    vqvae.codebook.sums.data = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 1e-7
    task = model_files.build("transformer", SMALL | settings, spec, 0, {"vqvae": vqvae}).eval()
    for parameter in task.network.parameters():
        parameter.data *= 3
    return task.requires_grad_(False)


def images(count=4, spec=SPEC):
    random = torch.Generator().manual_seed(1)
    return torch.rand(count, spec.channels, spec.size, spec.size, generator=random)


def test_attention_is_that_of_the_formula():
    """softmax(Q K^T / sqrt(D)) V of each head, for the positions up to one's own."""
    torch.manual_seed(0)
    attention, values, size = Attention(8, 2), torch.randn(2, 5, 8), 4
    query, key, value = attention.input(values).chunk(3, -1)
    expected = torch.zeros_like(values)
    for head in (slice(0, size), slice(size, 2 * size)):
        for place in range(5):
            scores = query[:, place, None, head] * key[:, : place + 1, head]
            shares = (scores.sum(-1) / math.sqrt(size)).softmax(-1)
            expected[:, place, head] = (shares[..., None] * value[:, : place + 1, head]).sum(1)
    found, _ = attention(values, None, None)
    assert torch.allclose(found, attention.output(expected), atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"positions": "rotary"}, PIXELS, PIXELS | {"positions": "rotary"}])
def test_logits_do_not_depend_on_the_own_token_or_later_ones(settings):
    task = build(**settings)
    tokens = task.tokens(images())
    logits = task.network(tokens, torch.arange(4) % 3)
    for place in (0, tokens.shape[1] // 2):
        changed = tokens.clone()
        changed[:, place:] = (changed[:, place:] + 1) % task.num_tokens
        found = task.network(changed, torch.arange(4) % 3)
        assert torch.allclose(found[:, : place + 1], logits[:, : place + 1], atol=1e-5)
        assert not torch.allclose(found[:, place + 1 :], logits[:, place + 1 :], atol=1e-2)


@pytest.mark.parametrize(
    ("spec", "settings"),
    [(SPEC, {"positions": "rotary"}), (SPEC, {"tied": True}), (COLOUR, PIXELS | {"positions": "rotary"})],
)
def test_cached_logits_are_those_of_the_whole_sequence(spec, settings):
    task = build(spec, **settings)
    tokens, classes = task.tokens(images(4, spec)), torch.tensor([0, 1, 2, 3])
    expected, cache = task.network(tokens, classes), Cache()
    for number in range(tokens.shape[1]):
        before = tokens[:, number - 1] if number else torch.zeros(4, dtype=torch.int64)
        found = task.network.next(before, classes, number, cache)
        assert torch.allclose(found, expected[:, number], atol=1e-4)


def test_rotary_products_depend_on_the_distance_alone():
    torch.manual_seed(0)
    angles = rotary_angles((4, 4, 1), 8)
    query, key = torch.randn(2, 1, 8)
    products = rotated(query, angles) @ rotated(key, angles).T
    down, right = 4, 1  # places of the sequence
    assert torch.allclose(products[5, 0], products[5 + down + right, down + right], atol=1e-5)
    assert not torch.allclose(products[down, 0], products[right, 0], atol=1e-3)


def test_temperature_top_k_and_top_p_restrict_a_known_distribution():
    shares = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    find = lambda **settings: probabilities(shares.log(), **settings)[0].tolist()
    assert find() == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert find(temperature=0.5) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30])
    assert find(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert find(top_p=0.75) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    assert find(top_p=0.65) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert find(top_p=0.01) == [0, 1, 0, 0]
    assert find(top_k=1, top_p=0.9) == [0, 1, 0, 0]


def test_tokens_are_drawn_with_their_probabilities():
    shares, count = torch.tensor([0.0, 0.5, 0.2, 0.3, 0.0]), 1000
    chances = (torch.arange(count) + 0.5) / count
    drawn = draw(shares.expand(count, 5), chances)
    assert drawn.bincount(minlength=5).tolist() == [0, 500, 200, 300, 0]
    highest = torch.tensor([1 - 2**-24])  # the largest number of uniform()
    assert draw(shares[None] * 0.999999, highest).item() == 3


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_pixels_are_the_nearest_of_the_grey_levels(levels):
    task = build(COLOUR, **PIXELS | {"levels": levels})
    pictures = images(4, COLOUR)
    tokens = task.tokens(pictures)
    assert tokens.shape == (4, 48) and task.needs == () and task.vqvae is None
    assert tokens[0, 5] == (pictures[0, 2, 0, 1] * (levels - 1)).round()  # the second pixel's last channel
    assert (task.image_of(tokens) - pictures).abs().max() <= 0.5 / (levels - 1) + 1e-6


@pytest.mark.parametrize("settings", [{}, PIXELS])
def test_a_completion_keeps_the_known_pixels_and_depends_on_them_alone(settings):
    task, pictures = build(**settings), images()
    known = (torch.arange(8) < 4).float()[:, None].expand(1, 1, 8, 8)
    found = task.complete(pictures, known, Noise.whole(0, 4))
    assert torch.equal(found[:, :, :4], pictures[:, :, :4])
    other = torch.where(known > 0, pictures, 1 - pictures)
    assert torch.equal(found, task.complete(other, known, Noise.whole(0, 4)))
    assert not torch.equal(found, task.complete(pictures, known, Noise.whole(1, 4)))
    assert not torch.equal(found[:, :, 4:], pictures[:, :, 4:])


def test_a_completion_without_a_class_is_of_a_random_one_if_the_model_knows_no_image_without():
    pictures, known, noise = images(), torch.zeros(1, 1, 8, 8), Noise.whole(0, 4)
    for label_dropout in (0.0, 0.1):
        task = build(**PIXELS, label_dropout=label_dropout)
        drawn = task.complete(pictures, known, noise, noise.integers("label", 3))
        assert torch.equal(drawn, task.complete(pictures, known, noise)) == (label_dropout == 0)


def test_known_pixels_are_given_to_the_network_as_tokens():
    """With all but the last one known, it is drawn from p(token | all others)."""
    task, pictures = build(**PIXELS, top_k=1), images()
    pictures = task.image_of(task.tokens(pictures))
    known = torch.ones(1, 1, 8, 8)
    known[..., -1, -1] = 0
    logits = task.network(task.tokens(pictures), torch.full((4,), 3))
    completed = task.complete(pictures, known, Noise.whole(0, 4))
    assert torch.equal(task.tokens(completed)[:, -1], logits[:, -1].argmax(1))


def test_the_class_changes_what_is_drawn_unless_the_model_is_unconditional():
    for conditional in (True, False):
        task = build(**PIXELS, conditional=conditional)
        first, second = (task.generate(torch.full((4,), label), 4, Noise.whole(0, 4)) for label in (0, 1))
        assert torch.equal(first, second) != conditional


def test_the_likelihood_is_that_of_the_drawn_distribution():
    """Over all images of 2 x 2 pixels with two levels, the probabilities sum up to one."""
    task = build(DataSpec.labelled_images(1, 2, 3), **PIXELS | {"levels": 2})
    every = (torch.arange(16)[:, None] >> torch.arange(4) & 1).float().reshape(16, 1, 2, 2)
    nats = task._nats(every, torch.ones(16, dtype=torch.int64)).sum(1)
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 18, "heads": 4}, "is not a multiple of heads"),
        ({"width": 12, "heads": 2, "positions": "rotary"}, "needs a multiple of 4"),
        ({"levels": 16}, "levels is for tokens: pixels"),
        ({"conditional": False, "label_dropout": 0.3}, "label_dropout is for conditional"),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        model_files.build("transformer", settings, SPEC, 0)
