"""The section ``evaluate`` of params.yaml."""

from typing import Literal

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.params import Section


class EvaluationSettings(Section):
    """The protocol, which is the same for all models."""

    seed: int = Field(0, ge=0, lt=2**31)
    classifier: str = Field("cnn", min_length=1)  # the model in whose feature space images are compared
    # What images are compared by instead: "pixels", a folder of a trained classifier, or an ONNX file.
    feature_network: str = ""
    models: tuple[str, ...] = ()  # what is measured; none: all models
    num_samples: int = Field(0, ge=0, le=1_000_000)  # generated images; 0: as many as test images
    minimum_samples: int = Field(2048, ge=3)  # with fewer, the Fréchet distance is mostly bias
    allow_few_samples: bool = False
    reference_split: Literal["train", "test"] = "train"
    max_reference: int = Field(10_000, ge=3)  # images drawn from the reference split; some metrics are O(N^2)
    num_bootstrap: int = Field(200, ge=2, le=100_000)
    num_neighbours: int = Field(5, ge=1, le=100)  # k of precision, recall, density and coverage
    noise_sigma: float = Field(0.25, gt=0, le=1)  # of the noise that is removed; pixels are in [0, 1]

    def check_samples(self, count: int, dimensions: int, key: str, what: str) -> None:
        """Raise ``BadInput`` if there are too few images for the metrics, see ``allow_few_samples``."""
        if count <= self.num_neighbours + 1:
            problem = f"{count} {what} are too few for evaluate.num_neighbours ({self.num_neighbours})"
            raise BadInput(problem, where=key, remedy="use more images")
        if self.allow_few_samples:
            return
        remedy = (
            "use more images, or set evaluate.allow_few_samples: true and compare each value with its floor"
        )
        if count < self.minimum_samples:
            problem = f"{count} {what} are fewer than evaluate.minimum_samples ({self.minimum_samples})"
            raise BadInput(problem, where=key, remedy=remedy)
        if count <= dimensions:
            problem = f"{count} {what} are too few for the covariance of {dimensions} features"
            raise BadInput(problem, where=key, remedy=remedy)
