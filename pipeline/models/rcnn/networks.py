"""Layers of recurrent cells that read a clip frame by frame. Frames are (N, C, H, W) in [0, 1]."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.noise import Noise
from pipeline.layers.dropout import dropout
from pipeline.models.rcnn.cells import ConvGRUCell, ConvLSTMCell, State
from pipeline.models.rcnn.settings import RcnnConfig


class Network(nn.Module):
    """Cells one above the other; each reads the hidden map of the one below.

    Patches of pixels become channels (Shi et al. 2015). Sides that are no multiple of the patch are padded.
    ``classes``: the number of classes, or 0 for a network that predicts frames.
    """

    def __init__(self, config: RcnnConfig, channels: int, classes: int) -> None:
        super().__init__()
        self.config, width = config, config.width
        kind = ConvLSTMCell if config.cell == "lstm" else ConvGRUCell
        self.num_maps = kind.num_maps
        patch_values = channels * config.patch_size**2
        counts = [patch_values, *[width] * (config.num_layers - 1)]
        self.cells = nn.ModuleList(kind(count, width, config.kernel_size) for count in counts)
        total = width * config.num_layers
        self.output: nn.Linear | nn.Conv2d = (
            nn.Linear(total, classes) if classes else nn.Conv2d(patch_values + total, patch_values, 1)
        )

    def start(self, frame: Tensor) -> list[State]:
        """The states before the first frame."""
        height, width = (-(-side // self.config.patch_size) for side in frame.shape[-2:])
        zeros = frame.new_zeros(len(frame), self.config.width, height, width)
        return [(zeros,) * self.num_maps for _ in self.cells]

    def forward(
        self, frame: Tensor, states: list[State], noise: Noise | None = None, number: int = 0
    ) -> tuple[list[Tensor], list[State]]:
        """The patches and all hidden maps (N, ..., h, w) after frame ``number``, and the states.

        ``noise`` is for dropout, that is for the training.
        """
        values, after = F.pixel_unshuffle(self._padded(frame), self.config.patch_size), list[State]()
        maps = [values]
        for layer, (cell, state) in enumerate(zip(self.cells, states, strict=True)):
            hidden, *rest = cell(values, state)
            values = dropout(hidden, self.config.dropout, noise, f"frame {number}, layer {layer}")
            maps.append(values)
            after.append((values, *rest))
        return maps, after

    def next_frame(self, maps: list[Tensor], frame: Tensor) -> Tensor:
        """The logits of the frame after ``frame``, (N, C, H, W)."""
        logits = F.pixel_shuffle(self.output(torch.cat(maps, 1)).float(), self.config.patch_size)
        return logits[..., : frame.shape[-2], : frame.shape[-1]]

    def _padded(self, frame: Tensor) -> Tensor:
        height, width = (-side % self.config.patch_size for side in frame.shape[-2:])
        return F.pad(frame, (0, width, 0, height))
