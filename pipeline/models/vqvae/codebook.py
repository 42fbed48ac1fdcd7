"""A codebook that follows the encodings by exponential moving averages (van den Oord et al. 2017)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from pipeline.core.noise import Noise
from pipeline.layers.optimizers import OptimizerSettings

SCALE = 0.01  # of the loss: its gradient is then too small to be clipped by training.clip_norm
REVIVED = 0.5  # the use of a code after its revival, as a fraction of the mean use
UNUSED = 1e-6  # the same before the first step


class Codebook(nn.Module):
    """``num_codes`` vectors of ``size`` values: for each, the mean of the encodings to which it is nearest.

    The moving averages are parameters, and :meth:`loss` a loss of which a step of gradient descent is their
    update. So the averages are over all workers, and part of checkpoints. A code that is hardly used is
    replaced by an encoding of a random image (Dhariwal et al. 2020).
    """

    def __init__(self, num_codes: int, size: int, decay: float, revive_below: float) -> None:
        super().__init__()
        self.rate, self.revive_below = 1 - decay, revive_below / num_codes
        # One dimension each: training.l1 and l2 are for weights, which have more.
        self.usage = nn.Parameter(torch.full((num_codes,), UNUSED / num_codes))  # shares of the encodings
        self.sums = nn.Parameter(torch.randn(num_codes * size) * UNUSED / num_codes)

    @property
    def codes(self) -> Tensor:
        """The vectors, (K, D)."""
        return (self.sums.unflatten(0, (len(self.usage), -1)) / self.usage[:, None].clamp_min(1e-12)).detach()

    @property
    def perplexity(self) -> Tensor:
        """exp(H) of the shares of the codes, a scalar: how many are in use, at most K."""
        return torch.special.entr(self.usage / self.usage.sum()).sum().exp().detach()

    def nearest(self, encodings: Tensor) -> Tensor:
        """The numbers (..., ) of the codes that are nearest to ``encodings`` (..., D)."""
        with torch.no_grad(), _float32(encodings.device):
            codes, encodings = self.codes, encodings.float()
            return (codes.square().sum(1) - 2 * encodings @ codes.T).argmin(-1)

    def optimizer(self) -> Optimizer:
        """The optimizer whose steps on :meth:`loss` update the moving averages."""
        return OptimizerSettings(kind="sgd", learning_rate=self.rate / SCALE).build(self.parameters())

    def loss(self, encodings: Tensor, noise: Noise) -> Tensor:
        """Its gradient is that of the averages less the values of a batch; ``encodings`` are (N, P, D).

        For the revival each image offers one of its encodings to one code, or to none if there are more
        images than codes; both are drawn. A code that gets several offers becomes their mean.
        """
        count, num_codes = len(encodings), len(self.usage)
        encodings = encodings.detach().float()
        with _float32(encodings.device):
            chosen = F.one_hot(self.nearest(encodings), num_codes).float()  # (N, P, K)
            usage, sums = chosen.mean(1), torch.einsum("npk,npd->nkd", chosen, encodings).mean(0)
            place = F.one_hot(noise.integers("place", encodings.shape[1]), encodings.shape[1])
            offered = (encodings * place[..., None]).sum(1)  # (N, D)
            code = noise.integers("code", max(num_codes, noise.total))  # one image for each code, on average
            taken = (code[:, None] == torch.arange(num_codes, device=code.device)).float()
            taken = taken * (self.usage < self.revive_below) * noise.total * REVIVED / num_codes / self.rate
            usage = (usage + taken).mean(0)
            sums = sums / encodings.shape[1] + taken.T @ offered / count
            pairs = ((self.usage, usage), (self.sums, sums.flatten()))
            losses = [average.square().sum() / 2 - (average * value).sum() for average, value in pairs]
        return SCALE * (losses[0] + losses[1])


def _float32(device: torch.device) -> AbstractContextManager[object]:
    """Within it matrix products are not rounded to 16 bits."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
