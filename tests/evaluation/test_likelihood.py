"""The measures of models of tokens and of completions."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.core import model_files
from pipeline.evaluation.evaluators.likelihood import _use, histogram_nats, perplexity, token_counts
from pipeline.evaluation.settings import EvaluationSettings
from tests.evaluation.conftest import Classifier, run


def test_the_floor_is_the_likelihood_of_independent_places():
    train, test = np.array([[0, 2], [0, 2], [1, 2]]), np.array([[0, 2], [1, 0]])
    counts = token_counts(train, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 0, 3]]
    shares = [2.5 / 4.5, 3.5 / 4.5, 1.5 / 4.5, 0.5 / 4.5]
    assert histogram_nats(counts, test) == pytest.approx(-sum(map(math.log, shares)) / 4)


def test_perplexity_is_the_number_of_equally_frequent_codes():
    assert perplexity(np.array([5, 5, 0, 5, 5])) == pytest.approx(4)
    assert perplexity(np.array([0, 7])) == 1


def test_a_codebook_of_any_size_is_measured():
    tokens, model = np.array([[3, 10**12], [3, 3]]), SimpleNamespace(settings=EvaluationSettings())
    found = _use(model, tokens, 10**13)
    assert found["perplexity"].value == pytest.approx(perplexity(np.array([3, 1])))
    assert found["perplexity"].floor == 10**13 and found["used_codes"].value == 2 / 10**13


@pytest.fixture
def measured(dataset, tmp_path):
    """The results of a VQ-VAE, and of Transformers of pixels and of its codes, with their initial weights."""
    vqvae = model_files.build("vqvae", {"num_codes": 4, "width": 8}, dataset.spec, 0).eval()
    small = {"width": 8, "depth": 1, "heads": 1}
    build = lambda **settings: model_files.build(
        "transformer", small | settings, dataset.spec, 0, {"vqvae": vqvae}
    ).eval()
    tasks = {"vqvae": vqvae, "codes": build(), "pixels": build(tokens="pixels", levels=4)}
    return run(dataset, {"cnn": Classifier(dataset.spec.channels), **tasks}, tmp_path), tasks


def test_likelihoods_have_an_interval_and_the_floor_of_a_histogram(measured, dataset):
    results, tasks = measured
    found = results["pixels"]["bits_per_dimension"]
    assert found["low"] < found["value"] < found["high"]
    assert found["value"] == pytest.approx(2, abs=0.3)  # four levels, nearly equally likely at first
    tokens = lambda split: tasks["pixels"].tokens(split.batch(np.arange(len(split))).images).numpy()
    floor = histogram_nats(token_counts(tokens(dataset.train), 4), tokens(dataset.test))
    assert found["floor"] == pytest.approx(floor / math.log(2))
    assert results["pixels"]["nats_per_token"]["floor"] == pytest.approx(floor)
    assert "bits_per_dimension" not in results["codes"] and results["codes"]["nats_per_token"]["floor"] > 0


def test_a_codebook_is_measured_on_the_test_images(measured, dataset):
    results, tasks = measured
    images = dataset.test.batch(np.arange(len(dataset.test))).images
    counts = tasks["vqvae"].tokens(images).flatten().bincount(minlength=4)
    found = results["vqvae"]
    assert found["perplexity"]["value"] == pytest.approx(perplexity(counts.numpy()))
    assert found["perplexity"]["floor"] == 4
    assert found["used_codes"]["value"] == (counts > 0).sum() / 4
    assert "psnr" in found and "nats_per_token" not in found


def test_completions_are_measured_and_drawn(measured, tmp_path):
    results, _ = measured
    found = results["pixels"]["completion_agreement"]
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1 and 0 <= found["floor"] <= 1
    picture = Image.open(tmp_path / "plots/pictures/pixels-completions.png")
    assert picture.height > 6 * 60  # rows: the original, its upper half and four answers
