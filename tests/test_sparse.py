"""The sparse engine against plain PyTorch: dense layers, masked gradients, ``torch.optim.SGD``."""

import copy

import pytest
import torch
from torch import nn

from panning_core import models
from panning_core.errors import UserError
from panning_core.sparse import SparseNet, unsupported

pytest.importorskip("numba")


def random_mask(model, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) < density for name, weight in models.prunable(model).items()}


def batches(sizes, shape, classes=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        yield torch.randn(size, *shape, generator=generator), torch.randint(classes, (size,), generator=generator)


class Reference:
    """A dense copy of the network; pruned weights and their gradients are set to 0."""

    def __init__(self, model, mask):
        self.model = copy.deepcopy(model)
        self.masks = [(parameter, mask[name]) for name, parameter in models.prunable(self.model).items()]
        for parameter, kept in self.masks:
            parameter.data[~kept] = 0
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=1.0)

    def step(self, x, y, lr, momentum, weight_decay, nesterov=False):
        self.optimiser.param_groups[0].update(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
        self.optimiser.zero_grad()
        loss = nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        for parameter, kept in self.masks:
            parameter.grad[~kept] = 0
        self.optimiser.step()
        return loss.item()


def compare(model, mask, sizes, lr=0.05, tolerance=1e-5, **settings):
    """Trains both over batches of the given sizes, lr falling half-way; every tensor must agree, relative to its norm."""
    settings = {"momentum": 0.9, "weight_decay": 5e-4, **settings}
    reference, engine, shape = Reference(model, mask), SparseNet(model, mask), models.input_shape(model)
    for number, (x, y) in enumerate(batches(sizes, shape)):
        rate = lr if 2 * number < len(sizes) else lr / 10
        expected = reference.step(x, y, rate, **settings)
        assert engine.step(x, y, rate, **settings) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    engine.store()
    for (name, ours), theirs in zip(model.named_parameters(), reference.model.parameters()):
        assert (ours - theirs).norm() <= tolerance * theirs.norm(), name
    for name, weight in models.prunable(model).items():
        assert torch.all(weight[~mask[name]] == 0), name
    x, _ = next(batches([300], shape, seed=2))
    with torch.no_grad():
        torch.testing.assert_close(engine.logits(x), reference.model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("name, sizes", [("lenet300", [128] * 49 + [37]), ("lenet5", [32] * 49 + [13])])
def test_agrees_with_autograd(name, sizes, density):
    model = models.build(name, (1, 28, 28), 10, seed=0)
    compare(model, random_mask(model, density), sizes)
