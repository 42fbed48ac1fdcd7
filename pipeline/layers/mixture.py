"""A mixture of normal distributions for each class, fitted to codes by expectation-maximisation.

Dempster et al. 1977; Ghosh et al. 2020, who fit it to the codes of an autoencoder after its training.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.noise import Noise, generator

NUM_ITERATIONS = 50
MAX_CODES = 20_000  # of a class, evenly spaced, so that memory is bounded
CODES_PER_VALUE = 2  # a component for at least so many codes for each value of a code
RIDGE = 1e-4  # added to the variances, so that no covariance is singular
RELATIVE_RIDGE = 1e-9  # the same, as a fraction of the mean variance: float64 has 16 digits
MAX_SIZE = 512  # values of a code: each component has a covariance of that size

Mixture = tuple[Tensor, Tensor, Tensor]  # weights (K,), means (K, D), lower Cholesky factors (K, D, D)


class ClassMixture(nn.Module):
    """``num_components`` normal distributions of codes (N, D) for each class, with a covariance each."""

    cumulative: Tensor  # (classes, K), the cumulative weights
    means: Tensor  # (classes, K, D)
    factors: Tensor  # (classes, K, D, D), lower Cholesky factors of the covariances
    fitted: Tensor  # (), bool

    def __init__(self, num_components: int, size: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("cumulative", torch.ones(classes, num_components))
        self.register_buffer("means", torch.zeros(classes, num_components, size))
        self.register_buffer("factors", torch.zeros(classes, num_components, size, size))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, codes: Tensor, labels: Tensor) -> None:
        """Fit the mixtures to ``codes`` (N, D) of classes ``labels`` (N,).

        A class with few codes has fewer components; one with one code or none gets a mixture of all codes.
        """
        codes, labels = codes.cpu().double(), labels.cpu()  # mps has no float64
        classes, num_components, size = self.means.shape
        for label in range(classes):
            own = codes[labels == label]
            own = own if len(own) > 1 else codes
            own = own[:: -(-len(own) // MAX_CODES)]
            count = max(1, min(num_components, len(own) // (CODES_PER_VALUE * size)))
            weights, means, factors = fit_mixture(own, count)
            self.cumulative[label] = 1
            self.cumulative[label, : count - 1] = weights.cumsum(0)[:-1].to(self.cumulative)
            self.means[label, :count], self.factors[label, :count] = (
                means.to(self.means),
                factors.to(self.means),
            )
        self.fitted.fill_(True)

    def draw(self, labels: Tensor, noise: Noise, name: str, temperature: float = 1.0) -> Tensor:
        """Codes (N, D) of classes ``labels`` (N,); their normal numbers are the noise ``name``.

        Their deviations from the means of the components are multiplied by ``temperature``.
        """
        chance = noise.uniform("component")
        component = (chance[:, None] >= self.cumulative[labels]).sum(1)
        normal = temperature * noise.normal(name, self.means.shape[2])
        return self.means[labels, component] + (self.factors[labels, component] * normal[:, None]).sum(2)


def fit_mixture(codes: Tensor, num_components: int) -> Mixture:
    """Fit ``num_components`` components to ``codes`` (N, D), float64, in a fixed number of steps."""
    centres = _spread_out(codes, num_components)
    nearest = torch.cdist(codes, centres).argmin(1)
    for _ in range(NUM_ITERATIONS // 5):  # k-means
        centres = _maximise(codes, F.one_hot(nearest, num_components).double())[1]
        nearest = torch.cdist(codes, centres).argmin(1)
    mixture = _maximise(codes, F.one_hot(nearest, num_components).double())
    for _ in range(NUM_ITERATIONS):
        mixture = _maximise(codes, log_joint(codes, mixture).softmax(1))
    return mixture


def log_joint(codes: Tensor, mixture: Mixture) -> Tensor:
    """log p(z, k) of ``codes`` (N, D) and components, (N, K). Its logsumexp over K is log p(z)."""
    weights, means, factors = mixture
    centred = (codes - means[:, None]).mT  # (K, D, N)
    squares = torch.linalg.solve_triangular(factors, centred, upper=False).square().sum(1)
    log_determinant = factors.diagonal(dim1=1, dim2=2).log().sum(1)  # of the factor
    constant = weights.log() - log_determinant - codes.shape[1] / 2 * math.log(2 * math.pi)
    return (constant[:, None] - squares / 2).mT


def cholesky_factors(covariances: Tensor) -> Tensor:
    """Lower Cholesky factors of covariances (..., D, D), float64, to whose variances a ridge is added."""
    ridges = RIDGE + RELATIVE_RIDGE * covariances.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    return torch.linalg.cholesky(covariances + ridges.expand(covariances.shape[:-1]).diag_embed())


def _maximise(codes: Tensor, responsibilities: Tensor) -> Mixture:
    """The mixture of highest likelihood, given the share (N, K) of each component in each code."""
    counts = responsibilities.sum(0).clamp_min(1e-9)
    means = responsibilities.mT @ codes / counts[:, None]
    centred = codes - means[:, None]  # (K, N, D)
    covariances = (centred * responsibilities.mT[..., None]).mT @ centred / counts[:, None, None]
    return counts / counts.sum(), means, cholesky_factors(covariances)


def _spread_out(codes: Tensor, count: int) -> Tensor:
    """``count`` of the codes, far from each other (k-means++, Arthur & Vassilvitskii 2007)."""
    random = torch.rand(count, dtype=codes.dtype, generator=generator("k-means++"))
    chosen = codes[:1]
    for number in range(1, count):
        squares = torch.cdist(codes, chosen).square().amin(1).cumsum(0)
        chosen = torch.cat([chosen, codes[(squares < random[number] * squares[-1]).sum()][None]])
    return chosen
