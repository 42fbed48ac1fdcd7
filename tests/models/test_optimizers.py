"""The optimizers are PyTorch's own, without the import of its compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn, optim

from pipeline.layers.optimizers import OptimizerSettings
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
        "from pipeline.layers.optimizers import OptimizerSettings\n"
        "from tests.models.test_optimizers import STOCK, train\n"
        "for kind in STOCK: train(OptimizerSettings(kind=kind).build)\n"
        "print('torch._dynamo' in sys.modules)\n"
        "train(STOCK['adam'])\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "False\nTrue\n", ended.stderr


def test_muon_moves_matrices_as_pytorchs_muon_and_vectors_as_its_adamw():
    """Filters are matrices with a row for each filter, whatever their memory format; gains are vectors."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (4, 6), (6, 2, 3, 3), (4, 1, 1, 1), (3,)]
    ours = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    flat = [nn.Parameter(one.detach().flatten(1) if one.dim() > 1 else one.detach().clone()) for one in ours]
    ours[2].data = ours[2].data.to(memory_format=torch.channels_last)
    muon = OptimizerSettings(kind="muon", learning_rate=0.1, beta2=0.9, weight_decay=0.01).build(ours)
    stock = [
        optim.Muon(flat[:3], 0.1, 0.01, adjust_lr_fn="match_rms_adamw"),
        optim.AdamW(flat[3:], 0.1, (0.9, 0.9), weight_decay=0.01),
    ]
    for _ in range(4):
        for one, other in zip(ours, flat, strict=True):
            one.grad = torch.randn(one.shape, generator=draw)
            other.grad = one.grad.reshape(other.shape)
        for optimizer in (muon, *stock):
            optimizer.step()
    for one, other in zip(ours, flat, strict=True):
        assert torch.allclose(one.reshape(other.shape), other, atol=1e-5)


def test_muon_continues_from_its_state_bit_for_bit():
    build = OptimizerSettings(kind="muon", learning_rate=0.1).build
    torch.manual_seed(0)
    network, examples = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(8, 3)
    optimizer = build(network.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        network(examples).square().mean().backward()
        optimizer.step()
    assert torch.equal(train(build), nn.utils.parameters_to_vector(network.parameters()).detach())
