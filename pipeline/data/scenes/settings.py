"""The section ``scenes`` of params.yaml: images with a label map."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.data.settings import Fit
from pipeline.params import Section

MAX_SIZE = 1024


class SceneSettings(Section):
    """``composed``: pictures of data/processed/images on a background. ``folder``: the user's own masks."""

    source: Literal["composed", "folder"] = "composed"
    size: int = Field(0, ge=0, le=MAX_SIZE)  # side of a scene, in pixels; 0: twice that of the pictures
    seed: int = Field(0, ge=0, lt=2**31)
    # Composed scenes.
    num_train: int = Field(2000, ge=1)
    num_validation: int = Field(200, ge=1)
    num_test: int = Field(400, ge=1)
    num_objects: tuple[int, int] = (1, 3)  # least and most pictures in a scene
    threshold: int = Field(64, ge=0, le=254)  # brighter pixels of a picture, of 255, belong to the object
    outline: int = Field(0, ge=0, le=16)  # pixels around an object that hide what is behind it, too
    background: Literal["black", "brightness", "noise"] = "black"  # a random brightness; of each pixel
    background_level: float = Field(0.25, gt=0, le=1)  # largest value of the background, of 1
    # A folder with images/ and masks/, relative to the project's root.
    folder: str = ""
    colors: str = ""  # a file in this folder with the colour of each class, for masks in colours
    classes: tuple[str, ...] = ()  # names, the background first; none: as many as the masks have
    color: Literal["grey", "rgb"] = "rgb"
    fit: Fit = "crop"
    validation_fraction: float = Field(
        0.1, gt=0, le=0.5
    )  # of the training images, without a validation split
    test_fraction: float = Field(0.2, gt=0, le=0.5)  # of all images, without a test split

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        least, most = self.num_objects
        is_folder = self.source == "folder"
        wrong = {
            "num_objects are the least and the most, from 1 to 100": not 1 <= least <= most <= 100,
            "source: folder needs folder: a path with images/ and masks/": is_folder and not self.folder,
            "source: folder needs size: the side of the scenes, in pixels": is_folder and not self.size,
            "classes are 2 to 254 names, the background first": len(self.classes) not in (0, *range(2, 255)),
            "colors and classes both name the classes": bool(self.colors and self.classes),
        }
        own = ("folder", "colors", "classes", "color", "fit", "validation_fraction", "test_fraction")
        self.refuse(wrong, dict.fromkeys(own, "source: folder"))
        return self
