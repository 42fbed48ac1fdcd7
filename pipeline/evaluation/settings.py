"""How the models are measured: the ``evaluate`` section of params.yaml."""

from typing import Literal

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.params import Section


class EvaluationSettings(Section):
    """One protocol for every model. ``num_samples`` 0 means as many generated images as the test split has."""

    seed: int = Field(0, ge=0, lt=2**31)
    classifier: str = Field("cnn", min_length=1)  # the model in whose feature space images are compared
    num_samples: int = Field(0, ge=0, le=1_000_000)
    minimum_samples: int = Field(2048, ge=3)  # the Fréchet distance of fewer is mostly bias
    allow_few_samples: bool = False
    reference_split: Literal["train", "test"] = "train"
    max_reference: int = Field(
        10_000, ge=3
    )  # a seeded subset of the reference, since some measures cost O(N^2)
    num_bootstrap: int = Field(200, ge=2, le=100_000)
    num_neighbours: int = Field(5, ge=1, le=100)  # k of precision, recall, density and coverage
    noise_sigma: float = Field(0.25, gt=0, le=1)  # what denoising has to remove; pixels lie in [0, 1]

    def check_samples(self, count: int, dimensions: int, key: str, what: str) -> None:
        """Refuse sets of images too small to be compared by mean and covariance, unless ``allow_few_samples`` says otherwise."""
        if count <= self.num_neighbours + 1:
            raise BadInput(
                f"{count} {what} are too few for evaluate.num_neighbours ({self.num_neighbours})",
                where=key,
                remedy="use more images",
            )
        if self.allow_few_samples:
            return
        remedy = (
            "use more images, or set evaluate.allow_few_samples: true and read each number beside its floor"
        )
        if count < self.minimum_samples:
            raise BadInput(
                f"{count} {what} are fewer than evaluate.minimum_samples ({self.minimum_samples})",
                where=key,
                remedy=remedy,
            )
        if count <= dimensions:
            raise BadInput(
                f"{count} {what} cannot fill the covariance of {dimensions} features",
                where=key,
                remedy=remedy,
            )
