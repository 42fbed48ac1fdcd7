"""Batches: examples as tensors on one device."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.core.fields import DataSpec, Field


@dataclass(frozen=True)
class Batch:
    """Examples on one device: a tensor (N, ...) for each field, see :class:`Field`."""

    fields: Mapping[str, Tensor]

    @classmethod
    def load(
        cls, rows: Mapping[str, np.ndarray | Tensor], spec: DataSpec, device: torch.device | str = "cpu"
    ) -> "Batch":
        """Examples as they are stored: an array (N, *shape) for each field."""
        return cls({name: _load(values, spec[name], device) for name, values in rows.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    @property
    def images(self) -> Tensor:
        """The field ``image``, (N, C, H, W)."""
        return self.fields["image"]

    @property
    def labels(self) -> Tensor:
        """The field ``label``, (N,)."""
        return self.fields["label"]

    def rows(self, start: int, stop: int) -> "Batch":
        """Some of the examples."""
        return Batch({name: values[start:stop] for name, values in self.fields.items()})

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy to ``device``; to a CUDA device through pinned memory, so that nothing waits for it."""
    kind = torch.device(device).type
    if kind == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=kind != "mps")  # there, memory might be freed before it is copied


def _load(stored: np.ndarray | Tensor, field: Field, device: torch.device | str) -> Tensor:
    values = to_device(torch.as_tensor(stored), device)
    if field.kind not in ("image", "clip"):
        return values.long()
    pixels = values.float().div_(255)
    is_channels_last = field.kind == "image" and values.device.type != "mps"  # as in Loop
    return pixels.contiguous(memory_format=torch.channels_last) if is_channels_last else pixels
