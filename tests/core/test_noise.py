"""Noise is a pure function of (seed, step, phase, name)."""

import itertools

import pytest
import torch

from pipeline.core import noise
from pipeline.core.noise import Noise, generator, initialisation


def _noise(start=0, stop=100, seed=1, step=2, phase="a"):
    return Noise(seed, step, phase, start, stop, 100)


@pytest.mark.parametrize(
    "draw", [lambda n: n.normal("x", 3, 2), lambda n: n.uniform("x", 3), lambda n: n.integers("x", 5, 2)]
)
def test_workers_rows_together_are_the_global_batchs_noise(draw):
    whole = draw(_noise())
    bounds = (0, 3, 31, 32, 65, 65, 96, 100)  # blocks of 32 rows are drawn together
    parts = torch.cat([draw(_noise(*piece)) for piece in itertools.pairwise(bounds)])
    assert len(whole) == 100 and torch.equal(whole, parts)


def test_a_worker_draws_only_the_blocks_that_contain_its_rows(monkeypatch):
    blocks = []
    monkeypatch.setattr(noise, "generator", lambda *key: blocks.append(key[-1]) or generator(*key))
    _noise(40, 70).normal("x")
    assert blocks == [1, 2]


def test_different_blocks_are_independent_noise():
    blocks = _noise(0, 64).normal("x", 50).view(2, -1)
    assert abs(torch.corrcoef(blocks)[0, 1]) < 0.1


@pytest.mark.parametrize("other", [_noise(seed=2), _noise(step=3), _noise(phase="b")])
def test_another_seed_step_or_phase_is_other_noise(other):
    assert not torch.equal(_noise().normal("x", 4), other.normal("x", 4))


def test_another_name_is_independent_noise():
    first, second = _noise().normal("x", 500).flatten(), _noise().normal("y", 500).flatten()
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.1


def test_the_same_name_twice_is_the_same_noise():
    assert torch.equal(_noise().normal("x", 4), _noise().normal("x", 4))


def test_numbers_have_the_distributions_they_claim():
    drawn = Noise.whole(0, 20_000)
    normal, uniform, integers = drawn.normal("n"), drawn.uniform("u"), drawn.integers("i", 4)
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    assert integers.unique().tolist() == [0, 1, 2, 3] and integers.dtype == torch.int64


def test_key_parts_do_not_run_together():
    assert generator(1, 23).initial_seed() != generator(12, 3).initial_seed()
    assert generator("1").initial_seed() != generator(1).initial_seed()


def test_initialisation_depends_on_its_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    with initialisation(3):
        first = torch.rand(4)
    with initialisation(3):
        second = torch.rand(4)
    with initialisation(4):
        other = torch.rand(4)
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
