"""Mixtures of normal distributions, compared with scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from pipeline.core.noise import Noise, generator
from pipeline.layers.mixture import RIDGE, ClassMixture, fit_mixture, log_joint

CENTRES = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 1.0], [0.0, 5.0, -2.0], [-4.0, -4.0, 3.0]]).double()


def codes(count=900, seed=0):
    """From four correlated normal distributions of different weights."""
    random = generator("codes", seed)
    shapes = torch.randn(4, 3, 3, dtype=torch.float64, generator=random) * 0.8
    chosen = torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), count, True, generator=random)
    normal = torch.randn(count, 3, 1, dtype=torch.float64, generator=random)
    return CENTRES[chosen] + (shapes[chosen] @ normal)[..., 0]


@pytest.mark.parametrize("num_components", [1, 2, 4, 7])
def test_the_likelihood_is_that_of_scikit_learn(num_components):
    given = codes()
    mixture = fit_mixture(given, num_components)
    found = log_joint(given, mixture).logsumexp(1).mean().item()
    fits = [
        GaussianMixture(num_components, reg_covar=RIDGE, max_iter=500, tol=1e-5, random_state=seed).fit(given)
        for seed in range(5)
    ]
    assert found > min(fit.score(given) for fit in fits) - 0.01  # both find local optima
    reference = fits[0]
    reference.weights_, reference.means_ = mixture[0].numpy(), mixture[1].numpy()
    reference.precisions_cholesky_ = torch.linalg.inv(mixture[2]).mT.numpy()
    assert np.allclose(reference.score_samples(given), log_joint(given, mixture).logsumexp(1).numpy())


def test_fitting_is_repeatable_to_the_last_bit():
    first, second = (fit_mixture(codes(), 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_drawn_codes_have_the_distribution_of_their_class():
    mixture, labels = ClassMixture(4, 3, 2), torch.arange(1800) % 2
    given = torch.empty(1800, 3, dtype=torch.float64)
    given[0::2], given[1::2] = codes(seed=0), codes(seed=1) + 10
    mixture.fit(given, labels)
    for label in range(2):
        drawn = mixture.draw(torch.full((20_000,), label), Noise.whole(0, 20_000), "code")
        own = given[label::2].float()
        assert torch.allclose(drawn.mean(0), own.mean(0), atol=0.15)
        assert torch.allclose(drawn.T.cov(), own.T.cov(), rtol=0.05, atol=0.3)
        # also the modes: as many codes are near each centre
        near = [(values - 10 * label - CENTRES.float()[3]).norm(dim=1) < 2 for values in (drawn, own)]
        assert abs(near[0].float().mean() - near[1].float().mean()) < 0.03


def test_a_class_of_few_codes_has_fewer_components_and_one_of_none_is_drawn_from_all():
    mixture = ClassMixture(6, 3, 3)
    few = codes(13)  # enough for two components
    mixture.fit(torch.cat([codes(), few]), torch.tensor([0] * 900 + [1] * 13))
    used = (mixture.factors.diagonal(dim1=2, dim2=3) > 0).all(2).sum(1)
    assert used.tolist() == [6, 2, 6]
    for label in range(3):
        drawn = mixture.draw(torch.full((5000,), label), Noise.whole(0, 5000), "code")
        assert drawn.isfinite().all() and (drawn.norm(dim=1) > 0).all()
    assert abs(drawn.mean(0) - codes().float().mean(0)).max() < 0.3


def test_equal_codes_and_a_single_code_can_be_fitted():
    mixture = ClassMixture(3, 2, 2)
    mixture.fit(torch.ones(31, 2), torch.tensor([0] * 30 + [1]))
    drawn = mixture.draw(torch.arange(2), Noise.whole(0, 2), "code")
    assert torch.allclose(drawn, torch.ones(2, 2), atol=0.1)


def test_codes_of_a_large_scale_and_rank_one_can_be_fitted():
    line = torch.arange(400.0)[:, None] * torch.tensor([[1.0, 2.0, -3.0, 0.5]])
    mixture = ClassMixture(3, 4, 1)
    mixture.fit(1e6 * line, torch.zeros(400, dtype=torch.long))
    assert mixture.factors.isfinite().all()
