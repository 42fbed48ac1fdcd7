"""Adversarial losses, as functions of the logits of real and of generated images.

Both are (N,), and so are the losses of discriminator and generator. Row i of both has the same class.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus


class AdversarialLoss(NamedTuple):
    """The losses of both networks.

    A logit above ``threshold`` means a real image; with None only differences of logits have a meaning.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    threshold: float | None = 0.0


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-real) + softplus(fake)  # -log D(x) - log(1 - D(G(z))), D the logistic function


LOSSES = {
    # Goodfellow et al. 2014: both play for the same value ...
    "minimax": AdversarialLoss(_cross_entropy, lambda real, fake: -softplus(fake)),
    # ... or the generator minimises -log D(G(z)), which does not saturate.
    "non_saturating": AdversarialLoss(_cross_entropy, lambda real, fake: softplus(-fake)),
    # Lim & Ye 2017.
    "hinge": AdversarialLoss(
        lambda real, fake: relu(1 - real) + relu(1 + fake),
        lambda real, fake: -fake,
    ),
    # Mao et al. 2017, with a = 0 and b = c = 1.
    "least_squares": AdversarialLoss(
        lambda real, fake: ((real - 1).square() + fake.square()) / 2,
        lambda real, fake: (fake - 1).square() / 2,
        threshold=0.5,
    ),
    # Arjovsky et al. 2017: the discriminator is a critic with a bounded slope.
    "wasserstein": AdversarialLoss(
        lambda real, fake: fake - real,
        lambda real, fake: -fake,
        threshold=None,
    ),
    # Jolicoeur-Martineau 2019; RpGAN of Huang et al. 2024: is this real image more real than this other one?
    "relativistic": AdversarialLoss(
        lambda real, fake: softplus(fake - real),
        lambda real, fake: softplus(real - fake),
        threshold=None,
    ),
}
