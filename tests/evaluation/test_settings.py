import pytest

from pipeline.errors import BadInput
from pipeline.evaluation.settings import EvaluationSettings


def test_few_samples_are_refused_with_key_and_remedy():
    with pytest.raises(
        BadInput, match=r"evaluate\.num_samples.*10 images are fewer than evaluate\.minimum_samples"
    ) as refusal:
        EvaluationSettings().check_samples(10, 4, "params.yaml: evaluate.num_samples", "images")
    assert "allow_few_samples" in refusal.value.remedy


def test_a_covariance_that_cannot_be_full_is_refused():
    with pytest.raises(BadInput, match="3000 images are too few for the covariance of 4096 features"):
        EvaluationSettings().check_samples(3000, 4096, "key", "images")


def test_few_samples_can_be_allowed_but_not_fewer_than_neighbours():
    allowed = EvaluationSettings(allow_few_samples=True)
    allowed.check_samples(10, 64, "key", "images")
    with pytest.raises(BadInput, match=r"6 images are too few for evaluate\.num_neighbours"):
        allowed.check_samples(6, 64, "key", "images")
