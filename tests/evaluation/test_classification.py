import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from pipeline.evaluation import glossary
from pipeline.evaluation.evaluators import classification

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, 0])
LOGITS = np.log(np.eye(3)[PREDICTED] * 0.7 + 0.1)  # 80 % for the predicted class, 10 % for each other


def test_measures_match_closed_forms():
    measured = classification.measures(LOGITS, LABELS)
    assert measured["accuracy"].value == pytest.approx(4 / 6)
    assert measured["accuracy"].floor == 0.5
    assert measured["cross_entropy"].value == pytest.approx(-(4 * np.log(0.8) + 2 * np.log(0.1)) / 6)
    assert measured["cross_entropy"].floor == pytest.approx(
        -(np.log(1 / 2) / 2 + np.log(1 / 3) / 3 + np.log(1 / 6) / 6)
    )
    assert measured["calibration_error"].value == pytest.approx(0.8 - 4 / 6)


def test_a_calibrated_classifier_has_no_calibration_error():
    probabilities = np.tile([0.75, 0.25], (4, 1))
    assert classification.calibration_error(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(0)
    assert classification.calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == pytest.approx(0)


def test_confusion_and_class_table_agree():
    table = classification.confusion(LOGITS, LABELS)
    assert table.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    by_class = classification.by_class(LOGITS, LABELS, ["a", "b", "c"]).set_index("class")
    assert by_class.loc["a"].tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 3])
    assert by_class.loc["b"].tolist() == pytest.approx([2 / 3, 1, 0.8, 2])
    assert by_class.loc["c"].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("classes", [2, 10])
def test_confusion_and_class_table_agree_with_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    logits, labels = rng.normal(size=(500, classes + 1)), rng.integers(0, classes, size=500)
    predicted, every = logits.argmax(axis=1), np.arange(classes + 1)
    expected = confusion_matrix(labels, predicted, labels=every)
    assert classification.confusion(logits, labels).tolist() == expected.tolist()
    columns = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    table = classification.by_class(logits, labels, [str(index) for index in every])
    for name, column in zip(("precision", "recall", "f1", "support"), columns):
        assert table[name].tolist() == pytest.approx(column.tolist(), rel=1e-12)


def logits_of(predicted, classes):
    return np.log(np.eye(classes)[predicted] * 0.7 + 0.1)


@pytest.mark.parametrize(("counts", "uneven"), [((10, 15), False), ((10, 16), True), ((0, 10, 15), False)])
def test_balanced_accuracy_is_measured_where_the_largest_class_is_half_again_the_smallest(counts, uneven):
    labels = np.repeat(np.arange(len(counts)), counts)
    measured = classification.measures(logits_of(labels, len(counts)), labels)
    assert ("balanced_accuracy" in measured) == uneven
    assert glossary.MEASURES["balanced_accuracy"].headline


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_are_there():
    labels = np.repeat([0, 1, 3], [60, 30, 10])
    predicted = np.random.default_rng(0).integers(0, 4, 100)
    predicted[:50], predicted[60:75] = 0, 1
    measured = classification.measures(logits_of(predicted, 4), labels)["balanced_accuracy"]
    assert measured.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert measured.floor == pytest.approx(1 / 3)
    always = classification.measures(logits_of(np.zeros(100, int), 4), labels)
    assert always["accuracy"].value == 0.6 and always["balanced_accuracy"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize("recalls", [(0.9, 0.6, 0.5), (0.97, 0.9, 0.95)])
def test_the_interval_of_balanced_accuracy_covers_it_95_times_in_100(recalls):
    random, labels = np.random.default_rng(2), np.repeat(np.arange(3), [200, 60, 25])
    covered = 0
    for _ in range(400):
        correct = random.random(len(labels)) < np.array(recalls)[labels]
        estimate = classification.balanced_accuracy(correct, labels)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        covered += estimate.low <= np.mean(recalls) <= estimate.high
    assert 0.92 <= covered / 400 <= 0.985
    perfect = classification.balanced_accuracy(np.ones(285, bool), labels)
    assert perfect.high == 1 and perfect.low < 1
