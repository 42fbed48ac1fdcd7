"""The optimizers are PyTorch's own, without the import of its compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn, optim

from pipeline.core.optimizers import OptimizerSettings
from tests.project import ROOT

STOCK = {
    "sgd": lambda weights: optim.SGD(weights, 0.1, weight_decay=0.01),
    "momentum": lambda weights: optim.SGD(weights, 0.1, momentum=0.9, weight_decay=0.01),
    "rmsprop": lambda weights: optim.RMSprop(weights, 0.1, alpha=0.999, weight_decay=0.01),
    "adam": lambda weights: optim.Adam(weights, 0.1, weight_decay=0.01, foreach=True),
    "adamw": lambda weights: optim.AdamW(weights, 0.1, weight_decay=0.01, foreach=True),
}


def train(build):
    """The weights after four steps; the optimizer is made again from its state after two."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    examples, optimizer = torch.randn(8, 3), build(network.parameters())
    for step in range(4):
        if step == 2:
            state, optimizer = optimizer.state_dict(), build(network.parameters())
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        network(examples).square().mean().backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(network.parameters())


@pytest.mark.parametrize("kind", STOCK)
def test_each_optimizer_gives_the_bits_of_pytorchs(kind):
    settings = OptimizerSettings(kind=kind, learning_rate=0.1, weight_decay=0.01)
    assert torch.equal(train(settings.build), train(STOCK[kind]))
    assert isinstance(settings.build([nn.Parameter(torch.ones(1))]), optim.Optimizer)


def test_no_optimizer_imports_pytorchs_compiler():
    """Its import takes over a second, at each start of a training."""
    code = (
        "import sys\n"
        "from pipeline.core.optimizers import OptimizerSettings\n"
        "from tests.core.test_optimizers import STOCK, train\n"
        "for kind in STOCK: train(OptimizerSettings(kind=kind).build)\n"
        "print('torch._dynamo' in sys.modules)\n"
        "train(STOCK['adam'])\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "False\nTrue\n", ended.stderr
