"""What a classifier is worth. Calibration: Guo et al. 2017, "On Calibration of Modern Neural Networks".

Throughout, ``logits`` are (N, classes) and ``labels`` (N,).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from pipeline.evaluation import averages
from pipeline.evaluation.averages import Estimate


def measures(logits: np.ndarray, labels: np.ndarray) -> dict[str, Estimate | float]:
    """Accuracy beside always answering the most frequent class, cross-entropy (nats) beside answering the class
    frequencies, and calibration error."""
    shares = np.bincount(labels, minlength=logits.shape[1]) / len(labels)
    present = shares[shares > 0]
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    surprise = -log_probabilities[np.arange(len(labels)), labels]  # -log p(y | x)
    return {
        "accuracy": averages.proportion(logits.argmax(axis=1) == labels).beside(shares.max()),
        "cross_entropy": averages.mean([surprise], least=0.0).beside(
            -(present * np.log(present)).sum()
        ),  # H(y)
        "calibration_error": calibration_error(np.exp(log_probabilities), labels),
    }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: the gap between confidence and accuracy, averaged over ``bins`` of equal width by their examples."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))  # sum_b n_b/N |confidence_b - accuracy_b|


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (classes, classes): rows are what the image shows, columns what the classifier says."""
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes**2).reshape(
        classes, classes
    )


def by_class(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support (test images) of each class. A share of nothing counts as 0."""
    table = confusion(logits, labels)
    hits, said, there = np.diag(table), table.sum(axis=0), table.sum(axis=1)
    return pd.DataFrame(
        {
            "class": list(names),
            "precision": hits / np.maximum(said, 1),
            "recall": hits / np.maximum(there, 1),
            "f1": 2 * hits / np.maximum(said + there, 1),
            "support": there,
        }
    )
