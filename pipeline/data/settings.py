"""The section ``data`` of params.yaml: the data source and its preprocessing."""

from typing import Literal

from pydantic import Field

from pipeline.params import Section

Fit = Literal["crop", "pad", "stretch"]


class DataSettings(Section):
    """The stage ``download`` depends only on ``source`` and ``folder``, ``preprocess`` on all settings."""

    source: str = "digits"  # a name in the catalogue pipeline/data/sources.py
    # For source 'folder': a folder or zip with a sub-folder for each class, relative to the project's root.
    folder: str = ""
    image_size: int = Field(0, ge=0, le=1024)  # side of the square images, in pixels; 0: that of the source
    # What is done with images that are not square. crop: the largest central square is taken; pad: black bars
    # are added; stretch: the proportions change.
    fit: Fit = "crop"
    color: Literal["source", "grey", "rgb"] = "source"  # for a folder 'source' means rgb
    validation_fraction: float = Field(0.1, gt=0, le=0.5)  # of the training images
    test_fraction: float = Field(0.2, gt=0, le=0.5)  # of all images, if the source has no test split
    seed: int = Field(0, ge=0, lt=2**31)  # of the random splits
    # Fraction of images that may be broken. They are left out and listed in the manifest.
    max_bad_fraction: float = Field(0.0, ge=0, le=0.5)
