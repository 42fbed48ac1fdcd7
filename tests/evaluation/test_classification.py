import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

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
