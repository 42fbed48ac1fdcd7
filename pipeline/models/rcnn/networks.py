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
    """

    def __init__(self, config: RcnnConfig, channels: int, outputs: int) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.patch_values = channels * config.patch_size**2
        kind = ConvLSTMCell if config.cell == "lstm" else ConvGRUCell
        counts = [self.patch_values, *[width] * (config.num_layers - 1)]
        self.cells = nn.ModuleList(kind(count, width, config.kernel_size) for count in counts)
        self.output = nn.Conv2d(width * config.num_layers, outputs, 1)

    def start(self, frame: Tensor) -> list[State]:
        """The states before the first frame."""
        height, width = (-(-side // self.config.patch_size) for side in frame.shape[-2:])
        zeros = frame.new_zeros(len(frame), self.config.width, height, width)
        return [(zeros,) * cell.num_maps for cell in self.cells]

    def forward(
        self, frame: Tensor, states: list[State], noise: Noise | None = None, number: int = 0
    ) -> tuple[Tensor, list[State]]:
        """The hidden maps (N, layers * width, h, w) after frame ``number``, and the states.

        ``noise`` is for dropout, that is for the training.
        """
        size, (height, width) = self.config.patch_size, frame.shape[-2:]
        values = F.pixel_unshuffle(F.pad(frame, (0, -width % size, 0, -height % size)), size)
        after = []
        for layer, (cell, state) in enumerate(zip(self.cells, states, strict=True)):
            hidden, *rest = cell(values, state)
            values = dropout(hidden, self.config.dropout, noise, f"frame {number}, layer {layer}")
            after.append((values, *rest))
        return torch.cat([state[0] for state in after], 1), after

    def next_frame(self, hidden: Tensor, frame: Tensor) -> Tensor:
        """Logits of the next frame, like ``frame``."""
        values = F.pixel_shuffle(self.output(hidden).float(), self.config.patch_size)
        return values[..., : frame.shape[-2], : frame.shape[-1]]
