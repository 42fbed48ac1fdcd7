"""A task of two scalars whose gradients can be computed by hand."""

import torch
from torch import nn

from pipeline.core.task import DataSpec, Phase, Task
from pipeline.params import Section


class Scalar(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([[value]]))


class TwoScalars(Task):
    """Phase `up` minimises up * mean(image); phase `down`, every second step, (down - up)^2 / 2."""

    class Config(Section):
        pass

    def __init__(self, up=1.0, down=5.0, classes=2):
        super().__init__(self.Config(), None)
        self.up, self.down = Scalar(up), Scalar(down)
        self.spec = DataSpec.labelled_images(1, 8, classes)

    def phases(self):
        return [
            Phase("up", self.up, torch.optim.SGD(self.up.parameters(), 0.1)),
            Phase("down", self.down, torch.optim.SGD(self.down.parameters(), 0.1), every=2),
        ]

    def loss(self, phase, batch, noise):
        if phase == "up":
            return (self.up.value * batch.images.mean()).sum(), {"mean": batch.images.mean()}
        return (self.down.value - self.up.value).square().sum() / 2, {}

    def evaluate(self, batch, noise):
        return {"label": batch.labels.float()}
