"""The settings of the Transformer."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.layers.optimizers import OptimizerSettings
from pipeline.params import Section


class TransformerConfig(Section):
    """``tokens``: codes of the model ``vqvae``, or pixels in ``levels`` grey levels.

    ``width``: values of each position, divided among the heads. ``positions``: learned vectors that are
    added, or rotary (the queries and keys are rotated by row and column).
    """

    tokens: Literal["codes", "pixels"] = "codes"
    levels: int = Field(8, ge=2, le=256)  # of pixels
    conditional: bool = True  # on the class; false: for pictures without classes
    label_dropout: float = Field(0.1, ge=0, lt=1)  # share of training images shown without their class
    width: int = Field(96, ge=8, le=4096)
    depth: int = Field(3, ge=1, le=64)  # layers
    heads: int = Field(4, ge=1, le=64)
    positions: Literal["learned", "rotary"] = "learned"
    tied: bool = False  # whether the output layer has the weights of the embedding
    dropout: float = Field(0.1, ge=0, lt=1)
    temperature: float = Field(1.0, gt=0, le=10)  # of the tokens that are drawn; below 1 less diverse
    top_k: int = Field(0, ge=0)  # draw from the most likely tokens only; 0: from all
    top_p: float = Field(1.0, gt=0, le=1)  # draw from the fewest tokens that have this probability
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=2e-3, weight_decay=0.01)

    @model_validator(mode="after")
    def _check(self) -> Self:
        per_head = self.width // self.heads
        wrong = {
            f"width: {self.width} is not a multiple of heads: {self.heads}": self.width % self.heads,
            f"positions: rotary needs a multiple of 4 values for each head, not {per_head}": (
                self.positions == "rotary" and per_head % 4
            ),
        }
        self.refuse(wrong, {"levels": "tokens: pixels", "label_dropout": "conditional"})
        return self
