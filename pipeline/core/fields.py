"""The named fields of an example, and how each kind of field is stored.

Without PyTorch: preprocessing does not need it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.errors import BadInput

PROCESSED = Path("data/processed")  # the data set <name> is the folder data/processed/<name>


@dataclass(frozen=True)
class Field:
    """One array of each example.

    =========== ============ ======================== ========================
    kind        shape        stored as                tensor in a batch
    =========== ============ ======================== ========================
    image       (C, H, W)    uint8                    float32 in [0, 1]
    clip        (T, C, H, W) uint8                    float32 in [0, 1]
    label       ()           int64                    int64
    label_map   (H, W)       uint8, int32 if it needs int64
    tokens      (L,)         uint8, int32 if it needs int64
    =========== ============ ======================== ========================

    Labels, label maps and tokens have integer values in [0, ``num_values``); label maps also 255 (ignored).
    """

    kind: Literal["image", "clip", "label", "label_map", "tokens"]
    shape: tuple[int, ...]
    num_values: int = 256

    @property
    def dtype(self) -> np.dtype:
        """The type of the stored values."""
        if self.kind == "label":
            return np.dtype(np.int64)
        return np.dtype(np.uint8 if self.num_values <= 256 else np.int32)


@dataclass(frozen=True)
class DataSpec:
    """The fields of the examples of a data set, by name."""

    fields: Mapping[str, Field]

    @classmethod
    def labelled_images(cls, channels: int, size: int, classes: int) -> "DataSpec":
        """Square images with a label: the fields ``image`` and ``label``."""
        image = Field("image", (channels, size, size))
        return cls({"image": image, "label": Field("label", (), classes)})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DataSpec":
        """The inverse of :meth:`to_json`. Also reads the form of version 0.1: channels, size and classes."""
        if "size" in values:
            return cls.labelled_images(values["channels"], values["size"], values["classes"])
        fields = {name: Field(**{**field, "shape": tuple(field["shape"])}) for name, field in values.items()}
        return cls(fields)

    def to_json(self) -> dict[str, Any]:
        """Kind, shape and number of values of each field."""
        return {name: {**asdict(field), "shape": list(field.shape)} for name, field in self.fields.items()}

    def __getitem__(self, name: str) -> Field:
        if name not in self.fields:
            what = f"the data has no field '{name}', only {', '.join(self.fields)}"
            raise BadInput(what, where="data", remedy="train this model on other data")
        return self.fields[name]

    @property
    def channels(self) -> int:
        """Of the field ``image``."""
        return self["image"].shape[0]

    @property
    def size(self) -> int:
        """Height and width of the field ``image``, in pixels."""
        return self["image"].shape[-1]

    @property
    def classes(self) -> int:
        """The number of values of the field ``label``."""
        return self["label"].num_values


def chunks(count: int, size: int) -> Iterator[np.ndarray]:
    """The indices 0 to ``count`` - 1, ``size`` at a time; the last chunk may be smaller."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))
