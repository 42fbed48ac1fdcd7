"""The section ``clips`` of params.yaml: short videos, composed of pictures or read from a folder."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.data.settings import Fit
from pipeline.params import Section

DIRECTIONS = ("right", "down", "left", "up")  # in which a picture starts, to the nearest quarter


class ClipSettings(Section):
    """Clips have ``num_frames`` square frames with sides of ``canvas`` pixels.

    ``moving``: ``num_objects`` pictures of data/processed/images bounce on a black canvas; where they
    overlap, the brighter one is seen. ``folder``: clips in the folder ``folder``.
    """

    source: Literal["moving", "folder"] = "moving"
    num_frames: int = Field(20, ge=2, le=1000)
    canvas: int = Field(0, ge=0, le=1024)  # 0: twice the side of the pictures
    num_train: int = Field(10_000, ge=1)  # clips of each split, if they are composed
    num_validation: int = Field(500, ge=1)
    num_test: int = Field(1_000, ge=1)
    num_objects: int = Field(2, ge=1, le=100)
    speed: float = Field(0.1, gt=0, lt=1)  # in each frame, as a fraction of the room to move
    # motion: the direction at the start; class: what moves. A folder has classes if it has sub-folders.
    labels: Literal["none", "motion", "class"] = "none"
    folder: str = ""  # in data/own
    fit: Fit = "crop"  # what is done with frames that are not square, see data.fit
    color: Literal["grey", "rgb"] = "rgb"  # of the clips of a folder
    validation_fraction: float = Field(0.1, gt=0, le=0.5)  # of a folder's clips without splits
    test_fraction: float = Field(0.2, gt=0, le=0.5)
    seed: int = Field(0, ge=0, lt=2**31)

    def count(self, split: str) -> int:
        """The number of composed clips of a split."""
        return int(getattr(self, f"num_{split}"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = {
            "labels need num_objects: 1": self.labels != "none" and self.num_objects > 1,
            "source: folder needs a folder, such as data/own/clips, and canvas": self.source == "folder"
            and not (self.folder and self.canvas),
        }
        moving = ("num_train", "num_validation", "num_test", "num_objects", "speed", "labels")
        folder = ("folder", "fit", "color", "validation_fraction", "test_fraction")
        needed = dict.fromkeys(moving, "source: moving") | dict.fromkeys(folder, "source: folder")
        self.refuse(wrong, needed)
        return self
