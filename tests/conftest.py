"""Small networks and batches that the tests share."""

import os
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from panning_core import data, models, plugins, zoo

# The suite itself uses every core; processes that a test starts have one thread each too.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# With PANNING_PLUGIN, what a plugin adds goes through the batteries like the package's own.
plugins.load_plugins()


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture
def lenet300(digits):
    """LeNet-300-100 on the digits, fresh for every test."""
    return models.build("lenet300", digits.input_shape, digits.classes, seed=0)


@pytest.fixture
def digits_batch(digits):
    """Two images of every digit."""
    return data.balanced_batch(digits.train, 2, torch.Generator().manual_seed(0))


def make_residual(seed: int = 0) -> nn.Module:
    """Convolution, BatchNorm, max-pooling and a residual block with a shortcut on 2x6x6 images, in
    float64.

    One BatchNorm is in eval mode and all hold statistics of their own, so that nothing can restore
    them by guessing.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            zoo.Block(4, 5, stride=2),
            nn.Flatten(),
            nn.Linear(5 * 2 * 2, 3),
        ).double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    model.input_shape = (2, 6, 6)
    return model


def half(model, seed=0):
    """A mask that keeps about half of every layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(w.shape, generator=generator) < 0.5
        for name, w in models.prunable(model).items()
    }


def same(one, two):
    """Whether two masks are."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def residual():
    return make_residual()


@pytest.fixture
def residual_batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn((9, 2, 6, 6), generator=generator, dtype=torch.double), torch.arange(9) % 3


@pytest.fixture(params=["lenet300", "residual"])
def case(request):
    """(network, batch): the digits' and the residual one."""
    batch = {"lenet300": "digits_batch", "residual": "residual_batch"}[request.param]
    return request.getfixturevalue(request.param), request.getfixturevalue(batch)


@contextmanager
def _unchanged(model: nn.Module):
    """Fails if weights, buffers, ``.grad``, requires_grad, a module's mode or forward, or the
    global random state are not as before.
    """
    for index, parameter in enumerate(
        model.parameters()
    ):  # half of the gradients stand, half are None
        parameter.grad = torch.full_like(parameter, 0.5) if index % 2 else None
    modules = list(model.modules())
    modules[1].eval()

    def snapshot():
        return (
            {name: t.clone() for name, t in model.state_dict().items()},
            [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            [p.requires_grad for p in model.parameters()],
            [m.training for m in modules],
            [set(vars(m)) for m in modules],
            torch.get_rng_state(),
        )

    before = snapshot()
    yield
    after = snapshot()
    assert all(torch.equal(before[0][name], t) for name, t in after[0].items())
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(before[1], after[1]))
    assert before[2:5] == after[2:5]
    assert torch.equal(before[5], after[5])


@pytest.fixture
def unchanged():
    return _unchanged
