"""Draws tokens from their logits, on the CPU: cumulative sums on a GPU depend on the order of threads."""

import torch
from torch import Tensor


def probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The probabilities (N, V) with which tokens of ``logits`` (N, V) are drawn.

    ``top_k``: of the most likely tokens only; 0: of all. ``top_p``: of the fewest tokens, the most likely
    first, whose probabilities sum up to this much (Holtzman et al. 2020).
    """
    every = (logits.float() / temperature).softmax(1)
    num_tokens = every.shape[1]
    shares, tokens = every.topk(min(top_k or num_tokens, num_tokens))  # the most likely ones first
    before = shares.cumsum(1) - shares  # the probability of the more likely tokens
    shares = shares * (before < top_p)
    return torch.zeros_like(every).scatter(1, tokens, shares / shares.sum(1, keepdim=True))


def draw(probabilities: Tensor, chance: Tensor) -> Tensor:
    """Tokens (N,) of ``probabilities`` (N, V); ``chance`` (N,) is uniform in [0, 1)."""
    cumulative = probabilities.cumsum(1)
    # Scaled by the last sum, which rounding keeps from being 1: else a token without probability is drawn.
    return (chance[:, None] * cumulative[:, -1:] >= cumulative).sum(1)
