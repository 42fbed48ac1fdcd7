"""Recurrent cells whose products are convolutions. Maps are (N, channels, H, W).

The first map of a state is the hidden one, the cell's output. The state before the first frame is zero.
"""

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class ConvLSTMCell(nn.Module):
    """Shi et al. 2015, without connections from the memory to the gates. The state: hidden map and memory."""

    num_maps = 2

    def __init__(self, inputs: int, width: int, kernel_size: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(inputs + width, 4 * width, kernel_size, padding=kernel_size // 2)
        assert self.gates.bias is not None
        nn.init.ones_(self.gates.bias[width : 2 * width])  # at first it forgets slowly

    def forward(self, inputs: Tensor, state: State) -> State:
        hidden, memory = state
        gates = self.gates(torch.cat([inputs, hidden], 1)).float()
        inward, forget, outward, content = gates.chunk(4, 1)
        memory = forget.sigmoid() * memory + inward.sigmoid() * content.tanh()
        return outward.sigmoid() * memory.tanh(), memory


class ConvGRUCell(nn.Module):
    """Ballas et al. 2016. The state is the hidden map."""

    num_maps = 1

    def __init__(self, inputs: int, width: int, kernel_size: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(inputs + width, 2 * width, kernel_size, padding=kernel_size // 2)
        self.content = nn.Conv2d(inputs + width, width, kernel_size, padding=kernel_size // 2)

    def forward(self, inputs: Tensor, state: State) -> State:
        (hidden,) = state
        update, reset = self.gates(torch.cat([inputs, hidden], 1)).float().sigmoid().chunk(2, 1)
        content = self.content(torch.cat([inputs, reset * hidden], 1)).float().tanh()
        return ((1 - update) * hidden + update * content,)
