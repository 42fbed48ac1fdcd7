"""The next frame, from the hidden maps (N, D, h, w) of the layers and the last frame (N, C, H, W) in [0, 1].

H = h * patch_size, and W likewise.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_SQUARE = 0.1  # of a patch, so that nearly black ones do not count
MOTION_WEIGHT = 8.0  # of the correlation in the logits of the filters, at first


def motion(frame: Tensor, previous: Tensor, patch_size: int, filter_size: int) -> Tensor:
    """How well the surroundings of each patch of ``frame`` fit those in ``previous``, by offset.

    The correlation (FlowNet: Dosovitskiy et al. 2015), divided by the square of what is around the patch:
    (N, filter_size ** 2, h, w), in the order of the filters of :class:`FilterOutput`.
    """
    count, channels, height, width = frame.shape
    own = F.unfold(frame, patch_size, stride=patch_size).transpose(1, 2).flatten(0, 1)
    side = patch_size + filter_size - 1
    around = F.unfold(previous, side, stride=patch_size, padding=filter_size // 2).transpose(1, 2)
    found = F.conv2d(
        around.reshape(1, len(own) * channels, side, side),
        own.view(-1, channels, patch_size, patch_size),
        groups=len(own),
    )
    sums = torch.cat([found.view(len(own), -1), own.square().sum(1, keepdim=True)], 1)
    sums = sums.view(count, height // patch_size, width // patch_size, -1).permute(0, 3, 1, 2)
    sums = F.avg_pool2d(
        sums, 3, stride=1, padding=1
    )  # a patch that is black now is moved like those next to it
    return sums[:, :-1] / (sums[:, -1:] + SMALLEST_SQUARE)


class PixelOutput(nn.Module):
    """Each pixel from the hidden maps alone (Shi et al. 2015)."""

    def __init__(self, inputs: int, channels: int, patch_size: int, filter_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.pixels = nn.Conv2d(inputs, channels * patch_size**2, 1)

    def forward(self, hidden: Tensor, frame: Tensor) -> Tensor:
        return F.pixel_shuffle(self.pixels(hidden).float(), self.patch_size).sigmoid()


class FilterOutput(PixelOutput):
    """The last frame, moved by filters that the network predicts for each patch, and new pixels.

    Dynamic filters: De Brabandere et al. 2016; several, and a mask that chooses for each pixel: Finn et al.
    2016. A filter is a distribution over the pixels around, so motion need not be learned for each shape.
    """

    NUM_FILTERS = 2  # of each patch: for two things that move in different directions

    def __init__(self, inputs: int, channels: int, patch_size: int, filter_size: int) -> None:
        super().__init__(inputs, channels, patch_size, filter_size)
        self.filter_size = filter_size
        self.filters = nn.Conv2d(inputs, self.NUM_FILTERS * filter_size**2, 1)
        self.mask = nn.Conv2d(inputs, (self.NUM_FILTERS + 1) * patch_size**2, 1)
        # At first what moves goes on, and pixels are new only where that explains nothing.
        motions = slice(channels * patch_size**2, channels * patch_size**2 + filter_size**2)
        repeated = torch.eye(filter_size**2).repeat(self.NUM_FILTERS, 1)
        with torch.no_grad():
            self.filters.weight[:, motions, 0, 0] += MOTION_WEIGHT * repeated
            assert self.mask.bias is not None
            self.mask.bias[self.NUM_FILTERS * patch_size**2 :] -= 2

    def forward(self, hidden: Tensor, frame: Tensor) -> Tensor:
        moved = self._moved(self.filters(hidden).float(), frame)
        mask = F.pixel_shuffle(self.mask(hidden).float(), self.patch_size).softmax(1)
        return (mask[:, :, None] * torch.cat([moved, super().forward(hidden, frame)[:, None]], 1)).sum(1)

    def _moved(self, logits: Tensor, frame: Tensor) -> Tensor:
        """The frame after each filter, (N, filters, C, H, W): a convolution with weights of each patch.

        The patches are the groups of one convolution.
        """
        count, channels, (height, width) = len(frame), frame.shape[1], logits.shape[-2:]
        size, patch = self.filter_size, self.patch_size
        side, num_patches = patch + size - 1, count * height * width
        weights = logits.permute(0, 2, 3, 1).reshape(num_patches * self.NUM_FILTERS, size**2).softmax(1)
        around = F.unfold(frame.float(), side, stride=patch, padding=size // 2)
        around = around.view(count, channels, side, side, -1).permute(1, 0, 4, 2, 3)
        moved = F.conv2d(
            around.reshape(channels, num_patches, side, side),
            weights.view(-1, 1, size, size),
            groups=num_patches,
        )
        # (C, N, h, w, filters, patch, patch) -> (N, filters, C, h, patch, w, patch)
        moved = moved.view(channels, count, height, width, self.NUM_FILTERS, patch, patch)
        return moved.permute(1, 4, 0, 2, 5, 3, 6).reshape(count, self.NUM_FILTERS, *frame.shape[1:])
