"""What data is used and how it is prepared: the section ``data`` of params.yaml."""

from typing import Literal

from pydantic import Field

from pipeline.params import Section


class DataSettings(Section):
    """The data. ``download`` depends on ``source`` and ``folder`` only, ``preprocess`` on all of it."""

    source: str = "digits"  # a name of the catalogue in pipeline/data/sources.py
    folder: str = ""  # for source 'folder': a folder or zip with a sub-folder for each class, relative to the project's root
    image_size: int = Field(0, ge=0, le=1024)  # pixels of the square's side; 0: as the source has it
    color: Literal["source", "grey", "rgb"] = "source"  # 'source' is rgb for a folder
    validation_fraction: float = Field(0.1, gt=0, le=0.5)  # of the training images
    test_fraction: float = Field(
        0.2, gt=0, le=0.5
    )  # of all images, where the source has no test split of its own
    seed: int = Field(0, ge=0, lt=2**31)  # of the splits
    max_bad_fraction: float = Field(
        0.0, ge=0, le=0.5
    )  # of images that cannot be decoded; up to it they are left out and listed
