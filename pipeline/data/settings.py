"""The section ``data`` of params.yaml: the data source and its preprocessing."""

import re
from typing import Literal

from pydantic import Field, field_validator

from pipeline.params import Section

Fit = Literal["crop", "pad", "stretch"]
COLORS = {"grey": 1, "rgb": 3}  # channels by the setting color
MIN_SIZE = 4  # pixels


class DataSettings(Section):
    """``preprocess`` depends on all settings, ``download`` on those that decide which files are copied.

    These are ``source``, ``folder``, ``labels``, ``group`` and ``min_images_per_class``.
    """

    source: str = "digits"  # a name in the catalogue pipeline/data/sources.py
    # For source 'folder': a folder, zip, tar or .npz of pictures, relative to the project's root.
    folder: str = ""
    # A table (.csv, .tsv, .jsonl) of the pictures' paths and classes, in or next to the folder; '': the
    # sub-folders are the classes.
    labels: str = ""
    # Pictures of one group, such as a patient, stay in one split. A regular expression with one group in
    # parentheses that is searched in the path of each picture, or 'column:<name>' of the table of labels.
    group: str = ""
    min_images_per_class: int = Field(0, ge=0)  # classes with fewer pictures are left out; 0: none is
    image_size: int = Field(0, le=1024)  # side of the square images, in pixels; 0: that of the source
    # What is done with images that are not square. crop: the largest central square is taken; pad: black bars
    # are added; stretch: the proportions change.
    fit: Fit = "crop"
    color: Literal["source", "grey", "rgb"] = "source"  # for a folder 'source' means rgb
    validation_fraction: float = Field(0.1, gt=0, le=0.5)  # of the training images
    test_fraction: float = Field(0.2, gt=0, le=0.5)  # of all images, if the source has no test split
    seed: int = Field(0, ge=0, lt=2**31)  # of the random splits
    # Bits of the values in images with 16 bits for each pixel. auto: as many as the largest value needs.
    bit_depth: Literal["auto", 8, 12, 16] = "auto"
    # Images of different splits that look the same, also resized, encoded again or mirrored, if the source is
    # a folder. report: they are listed; keep_together: drawn splits are changed so that there are none.
    near_duplicates: Literal["report", "keep_together", "off"] = "report"
    # Fraction of images that may be broken. They are left out and listed in the manifest.
    max_bad_fraction: float = Field(0.0, ge=0, le=0.5)

    @field_validator("image_size")
    @classmethod
    def _has_shapes(cls, size: int) -> int:
        if size and size < MIN_SIZE:
            raise ValueError(f"is not 0 (that of the source) or at least {MIN_SIZE}")
        return size

    @field_validator("near_duplicates", mode="before")
    @classmethod
    def _is_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML and `dvc exp run -S` read off as false

    @field_validator("group")
    @classmethod
    def _has_one_group(cls, text: str) -> str:
        if not text.startswith("column:"):
            try:
                groups = re.compile(text).groups
            except re.error as error:
                raise ValueError(f"is not a regular expression ({error})") from None
            if text and groups != 1:
                raise ValueError(f"has {groups} groups in parentheses, not one")
        return text
