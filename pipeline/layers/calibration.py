"""Calibration of a classifier by temperature scaling (Guo et al. 2017)."""

import math

from torch import Tensor

LARGEST = 100.0  # temperature; the smallest is its inverse
HALVINGS = 40  # of the interval of log T


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T for which softmax(logits / T) gives the labels the largest likelihood.

    ``logits`` are (N, classes), ``labels`` (N,). The order of the classes does not change. If all labels have
    the largest logit, the likelihood grows without limit as T falls. So a label counts as true with
    (N + 1) / (N + 2), as in Platt's calibration (1999).
    """
    logits, labels = logits.cpu().double(), labels.cpu()  # mps has no float64
    doubt = 1 / (len(logits) + 2)
    true = logits.gather(1, labels[:, None])[:, 0]
    others = (logits.sum(1) - true) / max(1, logits.shape[1] - 1)
    target = ((1 - doubt) * true + doubt * others).mean()
    low, high = -math.log(LARGEST), math.log(LARGEST)  # of log 1/T
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        probabilities = (logits * math.exp(middle)).softmax(1)
        mean = (probabilities * logits).sum(1).mean()
        if mean < target:  # the sign of the derivative by 1/T; the likelihood is concave
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)
