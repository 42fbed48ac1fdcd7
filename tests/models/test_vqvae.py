"""The vector-quantised autoencoder: its codebook compared with plain versions."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.core import model_files
from pipeline.core.distributed import DistributedContext
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.core.task import DataSpec
from pipeline.errors import BadInput
from pipeline.models.vqvae.codebook import REVIVED, Codebook
from tests.arrays import ArrayDataset

SPEC = DataSpec.labelled_images(1, 8, 2)
SMALL = {"num_codes": 8, "code_size": 4, "width": 8}


def book(usage, codes, decay=0.9, revive_below=0.0):
    """A codebook with shares ``usage`` (K,) and vectors ``codes`` (K, D)."""
    made = Codebook(*codes.shape, decay, revive_below)
    made.usage.data, made.sums.data = usage.clone(), (usage[:, None] * codes).flatten()
    return made


def step(codebook, encodings, noise):
    """One step of its optimizer."""
    optimizer = codebook.optimizer()
    codebook.loss(encodings, noise).backward()
    optimizer.step()


def test_the_nearest_code_is_that_of_the_smallest_distance():
    torch.manual_seed(0)
    codes, encodings = torch.randn(8, 4), torch.randn(3, 5, 4)
    codebook = book(torch.full((8,), 1 / 8), codes)
    assert torch.allclose(codebook.codes, codes, atol=1e-6)
    assert torch.equal(codebook.nearest(encodings), torch.cdist(encodings, codes).argmin(-1))


def test_a_step_of_the_codebook_is_the_papers_moving_average():
    torch.manual_seed(0)
    codes, encodings, decay = torch.randn(4, 3), torch.randn(6, 5, 3), 0.9
    usage = torch.tensor([0.1, 0.2, 0.3, 0.4])
    codebook = book(usage, codes, decay)
    chosen = F.one_hot(torch.cdist(encodings, codes).argmin(-1), 4).flatten(0, 1).float()
    step(codebook, encodings, Noise.whole(0, 6))
    counts, sums = chosen.mean(0), chosen.T @ encodings.flatten(0, 1) / 30
    expected = decay * usage + (1 - decay) * counts
    assert torch.allclose(codebook.usage, expected, atol=1e-6)
    averages = (decay * usage[:, None] * codes + (1 - decay) * sums) / expected[:, None]
    assert torch.allclose(codebook.codes, averages, atol=1e-5)


def test_an_unused_code_becomes_the_mean_of_the_encodings_that_are_offered_to_it():
    encodings = torch.stack(
        [torch.full((2, 3), float(row)) for row in range(40)]
    )  # 40 images of 2 equal ones
    usage = torch.tensor([0.5, 0.5, 1e-9, 1e-9])
    codes = torch.tensor([[0.0] * 3, [39.0] * 3, [-500.0] * 3, [500.0] * 3])
    codebook, noise = book(usage, codes, revive_below=0.03), Noise.whole(15, 40)
    step(codebook, encodings, noise)
    offered = noise.integers("code", 40)  # to the two unused codes one and two
    assert sorted((offered == code).sum().item() for code in (2, 3)) == [1, 2]
    for code in (2, 3):
        images = encodings[offered == code, 0]
        assert torch.allclose(codebook.codes[code], images.mean(0), atol=1e-3)
        share = len(images) * REVIVED / 4
        assert codebook.usage[code].item() == pytest.approx(share, rel=1e-4)


def test_used_codes_are_not_replaced():
    torch.manual_seed(0)
    codes, encodings = torch.randn(4, 3), torch.randn(40, 2, 3)
    with_revival, without = (book(torch.full((4,), 0.25), codes, revive_below=below) for below in (0.03, 0.0))
    for codebook in (with_revival, without):
        step(codebook, encodings, Noise.whole(0, 40))
    assert torch.equal(with_revival.codes, without.codes)


@pytest.mark.parametrize(("usage", "expected"), [([0.25] * 4, 4.0), ([1, 0, 0, 0], 1.0), ([2, 2, 0, 0], 2.0)])
def test_perplexity_is_the_number_of_codes_in_use(usage, expected):
    codebook = book(torch.tensor(usage, dtype=torch.float32), torch.ones(4, 2))
    assert codebook.perplexity.item() == pytest.approx(expected)


def test_a_clipped_gradient_does_not_slow_the_codebook_down():
    """Its phase is clipped like every other, but its gradient is small."""
    data, ended = ArrayDataset(train=32), []
    for clip_norm in (None, 1.0):
        task = model_files.build("vqvae", SMALL, data.spec, 0)
        task.network.requires_grad_(False)
        phase = task.phases()[1]
        run = Step(task, [phase], TrainingSettings(clip_norm=clip_norm), DistributedContext())
        for number in (1, 2, 3):
            run.run(number, data.train.batch(range(32)), Noise.whole(0, 32, step=number))
        ended.append(task.codebook.codes)
    assert torch.equal(*ended)


def test_all_codes_are_soon_in_use_and_reconstructions_become_better():
    data = ArrayDataset(train=64)
    task = model_files.build("vqvae", SMALL | {"halvings": 1}, data.spec, 0)
    run, batch = (
        Step(task, task.phases(), TrainingSettings(), DistributedContext()),
        data.train.batch(range(64)),
    )
    metrics = [run.run(number, batch, Noise.whole(0, 64, step=number)) for number in range(1, 61)]
    assert metrics[-1]["codebook/perplexity"] > 3
    assert metrics[-1]["autoencoder/mse"] < metrics[0]["autoencoder/mse"] / 2


def test_an_image_is_reconstructed_from_its_tokens():
    task = model_files.build("vqvae", SMALL, SPEC, 0).eval()
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = task.tokens(images)
    assert tokens.shape == (3, 2, 2) and tokens.max() < 8 == task.num_tokens and task.side == 2
    assert torch.equal(task.reconstruct(images), task.image_of(tokens))


def test_a_setting_without_effect_is_refused():
    with pytest.raises(BadInput, match="huber_delta is for reconstruction_loss: huber"):
        model_files.build("vqvae", SMALL | {"huber_delta": 0.5}, SPEC, 0)
