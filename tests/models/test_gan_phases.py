"""The GAN's phases and styles in cases that are easy to get wrong."""

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.noise import Noise
from pipeline.core.task import DataSpec
from pipeline.errors import BadInput
from tests.arrays import batch_of

SPEC = DataSpec.labelled_images(1, 8, 3)
FREE = {"width": 8, "latent_size": 8, "spectral_normalisation": False, "shift": 0.0}
STYLE = {**FREE, "architecture": "style"}


def build(**settings):
    return model_files.build("gan", settings, SPEC, 0)


def batch():
    noise = Noise.whole(1, 5)
    return batch_of(noise.uniform("x", 1, 8, 8), noise.integers("y", 3))


def test_a_lazy_penalty_of_real_images_runs_no_generator(monkeypatch):
    task = build(**FREE, r1=1.0, penalty_every=2)
    monkeypatch.setattr(task.generator, "forward", None)
    assert task.loss("penalty", batch(), Noise.whole(0, 5, "penalty"))[0].isfinite()


def test_both_path_lengths_have_pixel_noise_of_their_own(monkeypatch):
    task, phases = build(**STYLE, path_length=2.0), []
    draw = task.generator.synthesis.forward
    monkeypatch.setattr(
        task.generator.synthesis,
        "forward",
        lambda codes, noise: phases.append(noise.phase) or draw(codes, noise),
    )
    task.loss("path_length", batch(), Noise.whole(0, 5, "path_length"))
    assert len(phases) == len(set(phases)) == 2


def test_without_mean_codes_nothing_is_truncated():
    task, noise, labels = build(**STYLE), Noise.whole(0, 5), batch().labels
    latents = task.latents(5, noise)
    assert torch.equal(task.decode(latents, labels, truncation=0.3), task.decode(latents, labels))
    task.on_train_end([])
    assert not torch.equal(task.decode(latents, labels, truncation=0.3), task.decode(latents, labels))


@pytest.mark.parametrize(("architecture", "width"), [("dcgan", 30), ("r3", 28), ("residual", 13)])
def test_a_width_that_is_no_multiple_of_eight_can_be_built(architecture, width):
    task = build(**{**FREE, "architecture": architecture, "width": width})
    assert task.generate(batch().labels, 5, Noise.whole(0, 5)).isfinite().all()


@pytest.mark.parametrize("name", ["path_length_every", "adaptive_step", "adaptive_every"])
def test_settings_without_effect_are_refused(name):
    with pytest.raises(BadInput, match=f"{name} is for"):
        build(**{name: 1})
