"""The sparse engine against plain PyTorch: dense layers, masked gradients, ``torch.optim.SGD``."""

import copy
import importlib.util
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("numba")

from panning_core import models
from panning_core.errors import UserError
from panning_core.sparse import SparseNet, unsupported


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


def compare(model, mask, sizes, lr=0.05, classes=10, **settings):
    """Trains both over batches of the given sizes, lr falling half-way; every tensor must agree, relative to its norm."""
    settings = {"momentum": 0.9, "weight_decay": 5e-4, **settings}
    reference, engine, shape = Reference(model, mask), SparseNet(model, mask), models.input_shape(model)
    for number, (x, y) in enumerate(batches(sizes, shape, classes)):
        rate = lr if 2 * number < len(sizes) else lr / 10
        expected = reference.step(x, y, rate, **settings)
        assert engine.step(x, y, rate, **settings) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    engine.store()
    for (name, ours), theirs in zip(model.named_parameters(), reference.model.parameters()):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm(), name
    for name, weight in models.prunable(model).items():
        assert torch.all(weight[~mask[name]] == 0), name
    x, _ = next(batches([300], shape, seed=2))
    with torch.no_grad():
        torch.testing.assert_close(engine.logits(x), reference.model(x), rtol=1e-4, atol=1e-5)


def small(*layers, shape):
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    model.input_shape = shape
    return model


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("name, sizes", [("lenet300", [64] * 48 + [300, 37]), ("lenet5", [24] * 49 + [13])])
def test_agrees_with_autograd(name, sizes, density):
    model = models.build(name, (1, 28, 28), 10, seed=0)
    compare(model, random_mask(model, density), sizes)


def test_all_weights_survive():
    model = models.build("lenet5", (1, 16, 16), 10, seed=0)
    compare(model, random_mask(model, 2.0), [20] * 20)


def test_nesterov_and_plain_gradient_descent():
    model = models.build("lenet300", (1, 28, 28), 10, seed=0)
    compare(model, random_mask(model, 0.05), [64] * 50, nesterov=True)
    compare(model, random_mask(model, 0.05), [1] * 50, momentum=0.0, weight_decay=0.0)


@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
def test_padding_stride_and_odd_sizes(density):
    model = small(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 6, (3, 2), stride=(1, 3), padding=(2, 0), bias=False), nn.MaxPool2d(2), nn.ReLU()),
        nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 7), shape=(3, 13, 25))
    compare(model, random_mask(model, density), [40] * 49 + [9], lr=0.02, classes=7)


def test_starts_with_a_pool_and_ends_with_a_convolution():
    relu = nn.ReLU()
    model = small(nn.MaxPool2d((3, 2)), relu, nn.Conv2d(2, 6, 3), relu, nn.Conv2d(6, 5, (3, 2)), nn.Flatten(), shape=(2, 15, 9))
    compare(model, random_mask(model, 0.6), [70] * 50, classes=5)


@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_empty_mask_trains_only_the_last_bias(name):
    model = models.build(name, (1, 28, 28), 10, seed=0)
    compare(model, random_mask(model, 0.0), [20] * 10)


def test_ties_of_a_pool_go_to_the_first_pixel():
    model = small(nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(9, 4), shape=(1, 9, 9))
    model[0].weight.data.zero_()[0, 0, 1, 1] = 1  # the convolution copies its input, and its gradient says which pixel won
    mask = random_mask(model, 2.0)
    reference, engine = Reference(model, mask), SparseNet(model, mask)
    x, y = torch.randint(2, (50, 1, 9, 9)).float(), torch.randint(4, (50,))
    reference.step(x, y, 1.0, 0.0, 0.0)
    engine.step(x, y, 1.0, 0.0, 0.0)
    engine.store()
    torch.testing.assert_close(model[0].weight, reference.model[0].weight)


def test_same_inputs_same_bits_and_the_model_waits_for_store():
    model = models.build("lenet5", (1, 28, 28), 10, seed=0)
    before, results = copy.deepcopy(model.state_dict()), []
    for _ in range(2):
        engine = SparseNet(model, random_mask(model, 0.1))
        losses = [engine.step(x, y, 0.1, 0.9, 5e-4) for x, y in batches([50, 20, 70], (1, 28, 28))]
        results.append((losses, engine.values.tobytes()))
    assert results[0] == results[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_divergence_does_not_crash(name):
    model = models.build(name, (1, 28, 28), 10, seed=0)
    engine = SparseNet(model, random_mask(model, 0.1))
    losses = [engine.step(x, y, 1e30, 0.9, 5e-4) for x, y in batches([30] * 6, (1, 28, 28))]
    engine.store()
    assert losses[0] < 3 and not torch.isfinite(torch.tensor(losses[-1]))


def test_images_of_any_memory_layout_and_type():
    model = models.build("lenet5", (1, 28, 28), 10, seed=0)
    engine = SparseNet(model, random_mask(model, 0.1))
    pair = torch.randn(20, 2, 28, 28)
    expected = engine.logits(pair[:, :1].clone())
    assert torch.equal(engine.logits(pair[:, :1]), expected)
    assert torch.equal(engine.logits(pair[:, :1].double()), expected)
    with pytest.raises(RuntimeError, match="shape"):
        engine.logits(torch.zeros(20, 1, 27, 27))


def test_a_label_outside_the_classes_is_an_error():
    model = models.build("lenet300", (1, 4, 4), 10, seed=0)
    engine = SparseNet(model, random_mask(model, 0.1))
    with pytest.raises(ValueError, match="label"):
        engine.step(torch.zeros(2, 1, 4, 4), torch.tensor([0, 10]), 0.1, 0.9, 0.0)


@pytest.mark.parametrize("layers, reason", [
    ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)], "BatchNorm2d is not supported"),
    ([nn.Sequential(nn.Dropout())], "Dropout is not supported"),
    ([nn.Conv2d(2, 2, 3, groups=2)], "groups=2"),
    ([nn.Conv2d(1, 2, 3, dilation=2)], "dilation=(2, 2)"),
    ([nn.Conv2d(1, 2, 3, padding="same")], "padding='same'"),
    ([nn.MaxPool2d(3, stride=2)], "stride"),
    ([nn.MaxPool2d(2, ceil_mode=True)], "ceil_mode=True"),
    ([nn.Linear(8, 2)], "without Flatten"),
    ([nn.Flatten(), nn.Linear(64, 2).double()], "float32"),
    ([nn.Flatten(), *[nn.Linear(64, 64)] * 2], "occurs twice"),
])
def test_unsupported_says_why(layers, reason):
    model = small(*layers, shape=(1, 8, 8))
    assert reason in unsupported(model)
    with pytest.raises(UserError, match="sparse engine"):
        SparseNet(model, {})


def test_supported_networks():
    assert unsupported(models.build("lenet5", (1, 28, 28), 10, seed=0)) is None
    assert unsupported(nn.Sequential(nn.Linear(3, 2))) is None
    assert unsupported(models.build("resnet20", (3, 32, 32), 10, seed=0)) == "BatchNorm2d is not supported"
    assert "input_shape" in unsupported(nn.Sequential(nn.Conv2d(1, 1, 1)))


def test_without_numba_only_the_engine_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    spec = importlib.util.find_spec("panning_core.sparse")
    bare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bare)
    assert bare.unsupported(nn.Sequential(nn.Linear(3, 2))) == "numba is not installed"
