"""Classifiers: accuracy, also balanced, cross-entropy, calibration, and how classes are confused.

Calibration: Guo et al. 2017, "On Calibration of Modern Neural Networks". The temperature is fitted on the
validation split, the errors are measured on the test split. ``logits`` are (N, classes),
``labels`` (N,).
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.core.abilities import Ability
from pipeline.core.batch import Batch
from pipeline.estimate import Estimate
from pipeline.evaluation import averages, figures
from pipeline.evaluation.context import Context, made
from pipeline.evaluation.distances import BATCH, subset
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.measure import Measure
from pipeline.files import write_text
from pipeline.layers.calibration import fit_temperature

if TYPE_CHECKING:
    import pandas as pd

MANY = 20  # classes, from which on it also counts if the class is among the five most probable ones
MOST_TRAINING_IMAGES = 2000
UNEVEN = 1.5  # classes are uneven if the largest has over so many times the test images of the smallest


def evaluate(model: Context) -> dict[str, Estimate]:
    """The measures of a classifier. Also writes its confusion matrix and the table of its classes."""
    logits = logits_of(model)
    labels, names = np.asarray(model.dataset.test.labels), list(model.dataset.class_names)
    write_text(model.table("classes"), by_class(logits, labels, names).to_csv(index=False))
    figures.draw_confusion(confusion(logits, labels), names, model.picture("confusion"))
    if model.name == model.settings.classifier:
        import pandas as pd

        rows = pd.DataFrame({"actual": labels, "predicted": logits.argmax(axis=1)})
        rows = rows.map(lambda label: names[label])
        write_text(model.plots / "confusion.csv", rows.to_csv(index=False))
    training = {"training_accuracy": training_accuracy(model)}
    return measures(logits, labels) | calibration(model, logits, labels) | training


def training_accuracy(model: Context) -> Estimate:
    """The accuracy on at most ``MOST_TRAINING_IMAGES`` training images."""
    split = model.dataset.train
    rows = subset(len(split), MOST_TRAINING_IMAGES, model.settings.seed, "training accuracy")
    batches = (split.batch(part, model.task.device) for part in np.array_split(rows, -(-len(rows) // BATCH)))
    answers = [made(model.task.classify(batch.images)).argmax(1) == batch.labels for batch in batches]
    frequent = np.bincount(split.labels).max() / len(split)
    return averages.proportion(torch.cat(answers).cpu().numpy()).with_floor(frequent)


def logits_of(model: Context) -> np.ndarray:
    """The logits of the test split, float64, computed once for each classifier."""
    compute = lambda: _logits(model, model.batches("classification"))
    return model.once("logits", model.name, compute)


def _logits(model: Context, batches: Iterable[Batch]) -> np.ndarray:
    answers = [made(model.task.classify(batch.images)) for batch in batches]
    return torch.cat(answers).double().cpu().numpy()


def calibration(model: Context, logits: np.ndarray, labels: np.ndarray) -> dict[str, Estimate]:
    """The temperature of the network's logits, and the calibration error without it and with it.

    The ``logits`` of a model that was calibrated in its training are already divided by one.
    """
    split, used = model.dataset.validation, float(getattr(model.task, "temperature", 1.0))
    validation = _logits(model, split.batches(BATCH, model.task.device))
    needed = fit_temperature(torch.from_numpy(validation), torch.from_numpy(np.asarray(split.labels)))
    error = lambda scale: calibration_error(softmax(logits * scale), labels)
    return {
        "temperature": Estimate(used * needed),
        "uncalibrated_error": Estimate(error(used)),
        "calibrated_error": Estimate(error(1 / needed)),
    }


def measures(logits: np.ndarray, labels: np.ndarray) -> dict[str, Estimate]:
    """Accuracy, cross-entropy (nats) and calibration error; balanced accuracy if the classes are uneven.

    The floor of accuracy is that of the most frequent class, the floor of cross-entropy that of the class
    frequencies.
    """
    shares = np.bincount(labels, minlength=logits.shape[1]) / len(labels)
    present = shares[shares > 0]
    log_probabilities = torch.from_numpy(logits).double().log_softmax(dim=1).numpy()
    negative_log_likelihood = -log_probabilities[np.arange(len(labels)), labels]  # -log p(y | x)
    entropy = -(present * np.log(present)).sum()  # H(y)
    correct = logits.argmax(axis=1) == labels
    return {
        "accuracy": averages.proportion(correct).with_floor(shares.max()),
        **({"top_5_accuracy": top_5_accuracy(logits, labels)} if len(shares) >= MANY else {}),
        **({"balanced_accuracy": balanced_accuracy(correct, labels)} if uneven(labels) else {}),
        "cross_entropy": averages.mean([negative_log_likelihood], least=0.0).with_floor(entropy),
        "calibration_error": Estimate(calibration_error(np.exp(log_probabilities), labels)),
    }


def top_5_accuracy(logits: np.ndarray, labels: np.ndarray) -> Estimate:
    """The share of images whose class has one of the five largest logits; ties count as mistakes.

    Its floor is that of always naming the five most frequent classes.
    """
    true = logits[np.arange(len(labels)), labels]
    hits = (logits >= true[:, None]).sum(axis=1) <= 5
    frequent = np.sort(np.bincount(labels))[-5:]
    return averages.proportion(hits).with_floor(float(frequent.sum() / len(labels)))


def uneven(labels: np.ndarray) -> bool:
    """Whether the largest class is much larger than the smallest."""
    counts = np.unique(labels, return_counts=True)[1]
    return bool(counts.max() > UNEVEN * counts.min())


def balanced_accuracy(correct: np.ndarray, labels: np.ndarray) -> Estimate:
    """The mean recall of the classes, over those with test images.

    Its interval follows from Wilson's intervals of the recalls (Zou & Donner 2008), so it stays in [0, 1].
    """
    recalls = [averages.proportion(correct[labels == label]) for label in np.unique(labels)]
    value, low, high = np.array([(each.value, each.low, each.high) for each in recalls], float).T
    mean, count = value.mean(), len(recalls)
    below, above = np.linalg.norm(value - low) / count, np.linalg.norm(high - value) / count
    return Estimate(float(mean), float(mean - below), float(mean + above), floor=1 / count)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of the classes."""
    return torch.from_numpy(logits).double().softmax(dim=1).numpy()


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy in ``bins`` of equal width."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))  # sum_b n_b/N |confidence_b - accuracy_b|


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (classes, classes): a row for each true class, a column for each predicted class."""
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def by_class(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> "pd.DataFrame":
    """Precision, recall, F1 and support (test images) of each class. 0 / 0 counts as 0."""
    import pandas as pd

    table = confusion(logits, labels)
    hits, predicted, support = table.diagonal(), table.sum(axis=0), table.sum(axis=1)
    columns = {
        "class": list(names),
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(predicted + support, 1),
        "support": support,
    }
    return pd.DataFrame(columns)


# fmt: off
EVALUATOR = Evaluator(Ability.CLASSIFY, evaluate, {
    "accuracy": Measure("Accuracy", "higher", "always answering the most frequent class scores {}",
        "The share of test images whose class is recognised.", percent=True, headline=True),
    "top_5_accuracy": Measure("Top-5 accuracy", "higher", "naming the five most frequent classes scores {}",
        "The share of test images whose class is among the five most probable ones. Measured with "
        f"{MANY} classes or more.", percent=True, headline=True),
    "training_accuracy": Measure("Accuracy on training images", "", "always answering one class scores {}",
        "The share of training images whose class is recognised, of at most 2,000, without augmentation. Far "
        "above the accuracy on test images, the classifier knows them by heart.", percent=True),
    "balanced_accuracy": Measure("Balanced accuracy", "higher", "always answering one class scores {}",
        "The share of the test images of a class that is recognised, averaged over the classes: all classes "
        f"count the same. Measured if the largest class has over {UNEVEN} times the test images of "
        "the smallest.", percent=True, headline=True),
    "cross_entropy": Measure("Cross-entropy", "lower", "answering the class frequencies scores {}",
        "-log p(y | x) of the true class, averaged over images. Confident mistakes raise it most.", "nats"),
    "calibration_error": Measure("Calibration error", "lower", "",
        "The difference between confidence and accuracy, averaged over 15 bins of confidence. At 0, "
        "predictions with a confidence of 90 % are right nine times in ten.", percent=True),
    "temperature": Measure("Temperature", "", "",
        "What the network's logits are to be divided by for the best probabilities on the validation images. "
        "Above 1 the network is too confident. With cnn.model.calibrate it is part of the model."),
    "uncalibrated_error": Measure("Calibration error without the temperature", "lower", "", "", percent=True,
        explained_by="calibration_error"),
    "calibrated_error": Measure("Calibration error with the temperature", "lower", "", "", percent=True,
        explained_by="calibration_error"),
}, pictures={
    "confusion": "Predicted class of the test images of each class. Red: mistakes.",
}, tables={
    "classes": "By class, on the test images. Precision: the share of the images classified as this class "
        "that belong to it. Recall: the share of its images that are classified as it. F1: their harmonic "
        "mean. Support: its number of test images.",
})
