"""Metrics of classifiers. ``logits`` are (N, classes), ``labels`` (N,).

Calibration: Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from pipeline.evaluation import averages
from pipeline.evaluation.averages import Estimate


def measures(logits: np.ndarray, labels: np.ndarray) -> dict[str, Estimate | float]:
    """Accuracy, cross-entropy (nats) and calibration error.

    The floor of accuracy is that of the most frequent class, the floor of cross-entropy that of the class
    frequencies.
    """
    shares = np.bincount(labels, minlength=logits.shape[1]) / len(labels)
    present = shares[shares > 0]
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    negative_log_likelihood = -log_probabilities[np.arange(len(labels)), labels]  # -log p(y | x)
    entropy = -(present * np.log(present)).sum()  # H(y)
    return {
        "accuracy": averages.proportion(logits.argmax(axis=1) == labels).with_floor(shares.max()),
        "cross_entropy": averages.mean([negative_log_likelihood], least=0.0).with_floor(entropy),
        "calibration_error": calibration_error(np.exp(log_probabilities), labels),
    }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy in ``bins`` of equal width."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))  # sum_b n_b/N |confidence_b - accuracy_b|


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (classes, classes): a row for each true class, a column for each predicted class."""
    classes = logits.shape[1]
    cells = labels * classes + logits.argmax(axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def by_class(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support (test images) of each class. 0 / 0 counts as 0."""
    table = confusion(logits, labels)
    hits, predicted, support = np.diag(table), table.sum(axis=0), table.sum(axis=1)
    return pd.DataFrame(
        {
            "class": list(names),
            "precision": hits / np.maximum(predicted, 1),
            "recall": hits / np.maximum(support, 1),
            "f1": 2 * hits / np.maximum(predicted + support, 1),
            "support": support,
        }
    )
