"""Models of tokens: how likely they find those of test images, and how a codebook is used.

Such a task has ``num_tokens``, and ``tokens(images)`` gives the tokens of images (N, C, H, W).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.core.noise import generator
from pipeline.estimate import Estimate
from pipeline.evaluation import averages
from pipeline.evaluation.context import Context
from pipeline.evaluation.distances import BATCH
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.measure import Measure

NATS, BITS = "nats_per_token", "bits_per_dimension"
USE = ("perplexity", "used_codes")  # of a codebook, which has no likelihood


def evaluate(model: Context) -> dict[str, Estimate]:
    """The likelihood of the tokens with that of a histogram; or the perplexity of a codebook."""
    tokens_of: Callable[[Tensor], Tensor] | None = getattr(model.task, "tokens", None)
    if tokens_of is None:
        return {}
    num_tokens: int = model.task.num_tokens  # type: ignore[assignment]
    nats: list[np.ndarray] = []
    tokens = []
    for index, batch in enumerate(model.batches("tokens")):
        tokens.append(tokens_of(batch.images).flatten(1).cpu().numpy())
        values = model.task.evaluate(batch, model.noise(len(batch), "test", index))
        if NATS in values:
            nats.append(torch.as_tensor(values[NATS]).double().cpu().numpy())
    test = np.concatenate(tokens)
    if not nats:
        return _use(model, test, num_tokens)
    counts = np.zeros((test.shape[1], num_tokens))
    for batch in model.dataset.train.batches(BATCH, model.task.device):
        counts += token_counts(tokens_of(batch.images).flatten(1).cpu().numpy(), num_tokens)
    floor = histogram_nats(counts, test)
    measured = {NATS: averages.mean(nats).with_floor(floor)}
    if BITS in values:
        bits = [each / math.log(2) for each in nats]
        measured[BITS] = averages.mean(bits).with_floor(floor / math.log(2))
    return measured


def token_counts(tokens: np.ndarray, num_tokens: int) -> np.ndarray:
    """How often each token is at each place, (L, V), in ``tokens`` (N, L)."""
    return np.stack([np.bincount(column, minlength=num_tokens) for column in tokens.T]).astype(np.float64)


def histogram_nats(counts: np.ndarray, tokens: np.ndarray) -> float:
    """-log p of each of ``tokens`` (N, L), on average, if places are independent.

    ``counts`` (L, V) are those of training images. Half is added to each (Krichevsky & Trofimov 1981).
    """
    shares = (counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True)
    return float(-np.log(shares[np.arange(tokens.shape[1]), tokens]).mean())


def perplexity(counts: np.ndarray) -> float:
    """exp(H) of the shares of ``counts`` (V,)."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _use(model: Context, tokens: np.ndarray, num_tokens: int) -> dict[str, Estimate]:
    used, places = np.unique(tokens, return_inverse=True)
    places = places.reshape(tokens.shape)
    of_images = np.stack([np.bincount(image, minlength=len(used)) for image in places])  # (N, used codes)
    total, random = of_images.sum(axis=0), generator(model.settings.seed, "bootstrap")
    count, rounds = len(tokens), model.settings.num_bootstrap
    drawn = [perplexity(averages.resampled(count, random) @ of_images) for _ in range(rounds)]
    estimate = averages.normal(perplexity(total), float(np.std(drawn, ddof=1)), least=1.0)
    return {
        "perplexity": estimate.with_floor(num_tokens),
        "used_codes": Estimate(len(used) / num_tokens),
    }


# fmt: off
HISTOGRAM = "a histogram of each place needs {}"
EVALUATOR = Evaluator(None, evaluate, {
    NATS: Measure("Negative log-likelihood of a token", "lower", HISTOGRAM,
        "-log p(token | earlier tokens, class), on average over the tokens of test images. The histograms "
        "are those of the training images' tokens at each place.", "nats", headline=True),
    BITS: Measure("Bits per dimension", "lower", HISTOGRAM,
        "The same in bits. A dimension is one channel of one pixel, in the grey levels of the model: with "
        "fewer than 256 levels it is less than the bits per dimension of papers.", "bits"),
    "perplexity": Measure("Perplexity of the codebook", "higher", "the codebook has {} codes",
        "exp(H), where H is the entropy of the codes of all test images: the number of equally frequent "
        "codes that would have it."),
    "used_codes": Measure("Used codes", "higher", "",
        "The share of codes that test images have.", percent=True),
})
