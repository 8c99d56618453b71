"""The sparse engine against plain PyTorch: dense layers, masked gradients, ``torch.optim.SGD``."""

import ast
import copy
import gc
import importlib.util
import inspect
import random
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("numba")

from panning_core import compaction, masks, metrics, models, pruning
from panning_core.errors import UserError
from panning_core.sparse import Engine, SparseNet, Together, kernels, unsupported


def random_mask(model, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(weight.shape, generator=generator) < density
        for name, weight in models.prunable(model).items()
    }


def batches(sizes, shape, classes=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        yield (
            torch.randn(size, *shape, generator=generator),
            torch.randint(classes, (size,), generator=generator),
        )


class Reference:
    """A dense copy of the network; pruned weights and their gradients are set to 0."""

    def __init__(self, model, mask, dtype=torch.float32):
        self.model = copy.deepcopy(model).to(dtype)
        self.masks = [
            (parameter, mask[name]) for name, parameter in models.prunable(self.model).items()
        ]
        for parameter, kept in self.masks:
            parameter.data[~kept] = 0
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=1.0)

    def step(self, x, y, lr, momentum, weight_decay, nesterov=False):
        self.optimiser.param_groups[0].update(
            lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
        )
        self.optimiser.zero_grad()
        loss = nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        for parameter, kept in self.masks:
            parameter.grad[~kept] = 0
        self.optimiser.step()
        return loss.item()


def compare(model, mask, sizes, lr=0.05, classes=10, **settings):
    """Trains both over batches of the given sizes, lr falling half-way; every tensor must agree,
    relative to its norm.
    """
    settings = {"momentum": 0.9, "weight_decay": 5e-4, **settings}
    reference, engine, shape = (
        Reference(model, mask),
        SparseNet(model, mask),
        models.input_shape(model),
    )
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


def distance(tensors, exact):
    """The largest relative distance of a tensor of one state dict to that of another."""
    return max(
        float((tensors[name].double() - there).norm() / there.norm())
        for name, there in exact.items()
        if there.is_floating_point() and there.norm() > 0
    )


def compare_normalised(model, mask, sizes, lr, classes=10, seeds=(0,)):
    """As ``compare``, with batch normalisation: float64 says what is right, because PyTorch's own
    float32 is no nearer to it.

    In a deep network rounding now and then switches a ReLU, in PyTorch's float32 too, and then one
        distance tells nothing: one of ``seeds`` must be near, and none is tried after it.
    """
    distances = []
    for seed in seeds:
        trained, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        for module in trained.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.5, generator=generator)
        exact, engine, shape = (
            Reference(trained, mask, torch.double),
            SparseNet(trained, mask),
            models.input_shape(trained),
        )
        for x, y in batches(sizes, shape, classes):
            expected = exact.step(x.double(), y, lr, momentum=0.9, weight_decay=5e-4)
            assert engine.step(x, y, lr, 0.9, 5e-4) == pytest.approx(expected, rel=1e-5)
        engine.store()
        distances.append(distance(trained.state_dict(), exact.model.state_dict()))
        for name, weight in models.prunable(trained).items():
            assert torch.all(weight[~mask[name]] == 0), name
        assert all(
            torch.equal(n, m)
            for n, m in zip(trained.buffers(), exact.model.buffers())
            if n.dtype == torch.int64
        )  # batches counted
        if distances[-1] <= 1e-5:
            x, _ = next(batches([75], shape, seed=2))
            with torch.no_grad():
                expected = exact.model.eval()(x.double())
                torch.testing.assert_close(
                    engine.logits(x).double(), expected, rtol=1e-4, atol=1e-5
                )
            return
    pytest.fail(f"no seed is near: {distances}")


@pytest.fixture(autouse=True)
def seeded():
    """Layers that a test hands to ``small`` exist before it is called."""
    torch.manual_seed(0)


def small(*layers, shape):
    model = nn.Sequential(*layers)
    model.input_shape = shape
    return model


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
@pytest.mark.parametrize(
    "name, sizes", [("lenet300", [64] * 48 + [300, 37]), ("lenet5", [24] * 49 + [13])]
)
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
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Sequential(
            nn.Conv2d(8, 6, (3, 2), stride=(1, 3), padding=(2, 0), bias=False),
            nn.MaxPool2d(2),
            nn.ReLU(),
        ),
        nn.Flatten(),
        nn.Linear(48, 20),
        nn.ReLU(),
        nn.Linear(20, 7),
        shape=(3, 13, 25),
    )
    compare(model, random_mask(model, density), [40] * 49 + [9], lr=0.02, classes=7)


def test_starts_with_a_pool_and_ends_with_a_convolution():
    relu = nn.ReLU()
    model = small(
        nn.MaxPool2d((3, 2)),
        relu,
        nn.Conv2d(2, 6, 3),
        relu,
        nn.Conv2d(6, 5, (3, 2)),
        nn.Flatten(),
        shape=(2, 15, 9),
    )
    compare(model, random_mask(model, 0.6), [70] * 50, classes=5)


def test_pools_on_either_side_of_a_relu():
    """A pool's gradient may take the place of what it read, but not where a ReLU or another pool
    still needs that.
    """
    model = small(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.MaxPool2d(2),
        nn.MaxPool2d((1, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(30, 7),
        shape=(2, 14, 26),
    )
    for density in (1.0, 0.3):
        compare(model, random_mask(model, density), [40] * 49 + [9], lr=0.02, classes=7)


class Forked(nn.Module):
    """Two convolutions read what one has written."""

    input_shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.left, self.right = (nn.Conv2d(8, 6, 3, padding=1, bias=False) for _ in range(2))
        self.left_norm, self.right_norm = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.fc(
            self.flatten(self.pool(self.left_norm(self.left(x)) + self.right_norm(self.right(x))))
        )


class Narrowed(nn.Module):
    """A pool leaves an image so narrow that what it adds to another lies there in another
    layout.
    """

    input_shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem, self.pool, self.conv, self.norm = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.MaxPool2d(4),
            nn.Conv2d(6, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
        )
        self.relu, self.flatten, self.fc = nn.ReLU(), nn.Flatten(), nn.Linear(24, 10)

    def forward(self, x):
        x = self.pool(self.stem(x))
        return self.fc(self.flatten(self.relu(self.norm(self.conv(x)) + x)))


@pytest.mark.parametrize("network", [Forked, Narrowed])
def test_forks_that_meet_again(network):
    torch.manual_seed(0)
    model = network()
    for density in (1.0, 0.3):
        compare_normalised(model, random_mask(model, density), [64] * 48 + [37, 5], lr=0.01)


class Drawn(nn.Module):
    """A network put together at random of what the engine knows: odd sizes, strides, pools, and
    forks that meet again.
    """

    def __init__(self, draw):
        super().__init__()
        self.draw, self.layers, self.plan = draw, nn.ModuleList(), []
        self.input_shape = draw.choice([1, 2, 3]), draw.randint(5, 14), draw.randint(5, 14)
        self.shapes = [self.input_shape]  # of every value so far; the input is the first
        end = self.conv(0)
        for _ in range(draw.randint(1, 5)):
            end = draw.choice([self.conv, self.normalised, self.relu, self.pool, self.fork])(end)
        end = self.add(nn.Flatten(), end)
        for width in draw.choice([[5], [12, 5]]):
            end = self.relu(end) if len(self.layers) > 1 and draw.random() < 0.5 else end
            end = self.add(nn.Linear(self.shapes[end][0], width), end)

    def add(self, layer, source):
        self.layers.append(layer.eval())
        self.plan.append((len(self.layers) - 1, source))
        with torch.no_grad():
            self.shapes.append(tuple(layer(torch.zeros(1, *self.shapes[source])).shape[1:]))
        layer.train()
        return len(self.plan)

    def conv(self, source, outputs=None):
        kernel = [self.draw.randint(1, min(3, size)) for size in self.shapes[source][1:]]
        if outputs:  # keeps the size of the image
            kernel = [
                2 * (k // 2) + 1 if 2 * (k // 2) + 1 <= size else 1
                for k, size in zip(kernel, self.shapes[source][1:])
            ]
        stride, padding = (
            ((1, 1), [k // 2 for k in kernel])
            if outputs
            else (
                [self.draw.choice([1, 1, 2]) for _ in kernel],
                [self.draw.randrange(k) for k in kernel],
            )
        )
        return self.add(
            nn.Conv2d(
                self.shapes[source][0],
                outputs or self.draw.randint(2, 9),
                kernel,
                stride,
                padding,
                bias=self.draw.random() < 0.5,
            ),
            source,
        )

    def normalised(self, source, outputs=None):
        source = self.conv(source, outputs)
        return self.add(nn.BatchNorm2d(self.shapes[source][0]), source)

    def relu(self, source):
        return source if isinstance(self.layers[-1], nn.ReLU) else self.add(nn.ReLU(), source)

    def pool(self, source):
        return self.add(
            nn.MaxPool2d([self.draw.randint(1, min(3, size)) for size in self.shapes[source][1:]]),
            source,
        )

    def fork(self, source):
        outputs = self.draw.choice([self.shapes[source][0], 6])
        one, two = (
            self.normalised(source, outputs),
            self.draw.choice([self.normalised, self.conv, lambda source, _: source])(
                source, outputs
            ),
        )
        two = two if self.shapes[two] == self.shapes[one] else self.conv(source, outputs)
        self.plan.append(("+", self.draw.sample([one, two], 2)))
        self.shapes.append(self.shapes[one])
        return len(self.plan)

    def forward(self, x):
        values = [x]
        for layer, source in self.plan:
            values.append(
                values[source[0]] + values[source[1]]
                if layer == "+"
                else self.layers[layer](values[source])
            )
        return values[-1]


@pytest.mark.parametrize("seed", range(60))
def test_networks_put_together_at_random(seed):
    torch.manual_seed(seed)
    draw = random.Random(seed)
    model = Drawn(draw)
    mask = random_mask(model, draw.choice([2.0, 0.5, 0.2]), seed)
    exact, engine = Reference(model, mask, torch.double), SparseNet(model, mask)
    for x, y in batches([draw.randint(9, 70) for _ in range(3)], model.input_shape, 5):
        assert engine.step(x, y, 0.01, 0.9, 5e-4) == pytest.approx(
            exact.step(x.double(), y, 0.01, 0.9, 5e-4), rel=1e-4
        )
    engine.store()
    for (
        name,
        there,
    ) in (
        exact.model.state_dict().items()
    ):  # a bias before a batch normalisation learns from rounding alone
        torch.testing.assert_close(
            model.state_dict()[name].double(), there.double(), rtol=1e-3, atol=1e-3, msg=name
        )


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_batch_normalisation_agrees_with_autograd(density):
    model = small(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12, eps=1e-3, momentum=0.3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
        shape=(3, 16, 16),
    )
    compare_normalised(model, random_mask(model, density), [64] * 48 + [37, 5], lr=0.01)


@pytest.mark.parametrize("widths, blocks, size", [([8, 12], 2, 12), ([4, 6, 8, 10], 1, 32)])
def test_residual_blocks_agree_with_autograd(widths, blocks, size):
    torch.manual_seed(0)
    model = models.resnet(widths, blocks)(
        (3, size, size), 10
    )  # blocks with a convolution as their shortcut, and without
    model.input_shape = (3, size, size)
    # few steps, because a ReLU that rounding switches shows in any float32 training after a while
    compare_normalised(model, random_mask(model, 0.2), [21] * 10, lr=1e-3)


@pytest.mark.parametrize("name, size", [("resnet20", 24), ("vgg11", 12)])
def test_whole_networks_for_two_steps(name, size):
    model = models.build(name, (3, 32, 32), 10, seed=0)
    compare_normalised(model, random_mask(model, 0.1), [size, size - 3], lr=0.01, seeds=range(5))


def test_compacted_network():
    model = models.build("vgg11", (3, 32, 32), 10, seed=0, init="panning")
    batch = next(batches([20], (3, 32, 32)))
    mask = masks.effective(model, pruning.prune(model, "snip", 0.02, batch)[0])
    small_one = compaction.compact(model, mask, fold=False)
    assert masks.size(small_one.mask) < masks.size(mask)
    compare_normalised(small_one.model, small_one.mask, [20, 20], lr=0.01)


def test_a_layer_without_weights_between_normalisations():
    model = small(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 10),
        shape=(3, 9, 11),
    )
    mask = random_mask(model, 0.5)
    mask["2.weight"][:] = False
    compare_normalised(model, mask, [30] * 20, lr=0.01)


@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_empty_mask_trains_only_the_last_bias(name):
    model = models.build(name, (1, 28, 28), 10, seed=0)
    compare(model, random_mask(model, 0.0), [20] * 10)


def test_ties_of_a_pool_go_to_the_first_pixel():
    model = small(
        nn.Conv2d(1, 1, 3, padding=1),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(9, 4),
        shape=(1, 9, 9),
    )
    model[0].weight.data.zero_()[0, 0, 1, 1] = (
        1  # the convolution copies its input, and its gradient says which pixel won
    )
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


NETWORKS = {
    "lenet300": (models.lenet300, (1, 28, 28)),
    "lenet5": (models.lenet5, (1, 28, 28)),
    "vgg": (
        models.vgg([8, "pool", 12, "pool", 16, 16, "pool", 24, "pool", 24, "pool"]),
        (3, 32, 32),
    ),
    "resnet": (models.resnet([6, 8, 12], 2), (3, 16, 16)),
}


def network(name, init="pytorch"):
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build(shape, 10)
    models.INITS[init](model)
    model.input_shape = shape
    return model


@pytest.mark.parametrize("init, temperature", [("pytorch", 1.0), ("panning", metrics.TEMPERATURE)])
@pytest.mark.parametrize("density", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("name", NETWORKS)
def test_flow_agrees_with_the_metrics(name, density, init, temperature):
    model = network(name, init)
    mask = random_mask(model, density)
    x, y = next(batches([100], model.input_shape))
    engine = SparseNet(model, mask)
    logits, gtg = engine.flow(engine.pixels(x), y, temperature)
    assert gtg == pytest.approx(metrics.products(model, mask, (x, y), temperature).gtg, rel=1e-5)
    with torch.no_grad():
        expected = Reference(model, mask).model(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_flow_leaves_no_trace(name):
    states = []
    for looks in (0, 2):
        model = network(name)
        engine = SparseNet(model, random_mask(model, 0.3))
        for x, y in batches([40, 70], model.input_shape):
            found = [engine.flow(x, y, 200.0)[1] for _ in range(looks)]
            assert found == found[:1] * looks
            engine.step(x, y, 0.05, 0.9, 5e-4)
        engine.store()
        states.append({**model.state_dict(), "logits": engine.logits(x)})
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_forward_is_traced_anew_when_it_is_another():
    layers = [nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16)]
    assert unsupported(small(*layers, shape=(1, 4, 4))) is None
    assert "occurs twice" in unsupported(
        small(*layers[:2], layers[1], shape=(1, 4, 4))
    )  # the same names and types
    assert unsupported(Forward(lambda m, x: m.two(m.one(x)))) is None
    assert "occurs twice" in unsupported(Forward(lambda m, x: m.one(m.one(x))))


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
    with pytest.raises(UserError, match=r"\(1, 27, 27\); the network takes \(1, 28, 28\)"):
        engine.logits(torch.zeros(20, 1, 27, 27))


def test_only_the_pixels_that_are_read_need_be_there():
    model = models.build("lenet300", (1, 28, 28), 10, seed=0)
    small_one = compaction.compact(
        model, masks.effective(model, random_mask(model, 0.005)), fold=False
    )
    whole, part = (SparseNet(small_one.model, small_one.mask) for _ in range(2))
    for x, y in batches([20, 70], (1, 28, 28)):
        assert part.pixels(x).shape[1] < 784
        assert part.step(part.pixels(x), y, 0.1, 0.9, 5e-4) == whole.step(x, y, 0.1, 0.9, 5e-4)
    assert torch.equal(part.logits(part.pixels(x)), whole.logits(x))


def test_a_label_outside_the_classes_is_an_error():
    model = models.build("lenet300", (1, 4, 4), 10, seed=0)
    engine = SparseNet(model, random_mask(model, 0.1))
    with pytest.raises(ValueError, match="label"):
        engine.step(torch.zeros(2, 1, 4, 4), torch.tensor([0, 10]), 0.1, 0.9, 0.0)


def test_nothing_is_left_of_a_network_that_is_no_longer_needed():
    gc.disable()
    try:
        engine = SparseNet(
            model := models.build("resnet20", (3, 8, 8), 10, 0), random_mask(model, 0.1)
        )
        signals = [weakref.ref(signal) for signal in engine.memory.signals]
        del engine
        assert not any(signal() for signal in signals)
    finally:
        gc.enable()


def test_networks_together_learn_the_same_bits_as_alone():
    def nets():
        # the first reads fewer pixels than the second
        for density, seed in ((0.01, 1), (0.3, 0), (0.002, 2)):
            model = models.build("lenet300", (1, 28, 28), 10, seed)
            small_one = compaction.compact(
                model, masks.effective(model, random_mask(model, density, seed)), fold=False
            )
            yield SparseNet(small_one.model, small_one.mask)

    alone, together = list(nets()), Together(list(nets()))
    for x, y in batches([256, 37, 256], (1, 28, 28)):
        losses = together.step(together.pixels(x), y, 0.1, 0.9, 5e-4, False)
        assert losses.tolist() == [net.step(x, y, 0.1, 0.9, 5e-4) for net in alone]
    assert torch.equal(together.logits(x), torch.stack([net.logits(x) for net in alone], 1))
    assert all(
        one.values.tobytes() == other.values.tobytes() for one, other in zip(alone, together.nets)
    )
    convolutional = models.build("lenet5", (1, 28, 28), 10, 0)
    with pytest.raises(UserError, match="begin with a Linear"):
        Together([SparseNet(convolutional, random_mask(convolutional, 0.1))])


def test_a_network_that_diverges_harms_no_other():
    """They work in the same memory, and of a batch that fills no whole block old numbers remain
    beside the samples.
    """

    def nets():
        for seed in range(4):
            model = models.build("lenet300", (1, 28, 28), 10, seed)
            with torch.no_grad():
                model.fc1.weight.mul_(float("nan") if seed == 2 else 1)
            yield SparseNet(model, random_mask(model, 0.02, seed))

    alone, together = list(nets()), Together(list(nets()))
    for x, y in batches([128, 37, 5], (1, 28, 28)):
        losses = together.step(together.pixels(x), y, 0.1, 0.9, 5e-4, False)
        assert np.array_equal(
            losses, [net.step(x, y, 0.1, 0.9, 5e-4) for net in alone], equal_nan=True
        )
    assert np.isnan(losses).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "layers, reason",
    [
        (
            [nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2)],
            "BatchNorm2d before the first weights",
        ),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, momentum=None)], "momentum=None"),
        (
            [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)],
            "track_running_stats=False",
        ),
        ([nn.Conv2d(1, 2, 1, padding=1)], "padding as large as its kernel"),
        ([nn.Conv2d(1, 2, 3)], "one number for each class"),
        ([nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(2)], "output_size=2"),
        ([nn.Conv2d(1, 2, 1), nn.Sequential(nn.Dropout())], "Dropout is not supported"),
        ([nn.Conv2d(2, 2, 3, groups=2)], "groups=2"),
        ([nn.Conv2d(1, 2, 3, dilation=2)], "dilation=(2, 2)"),
        ([nn.Conv2d(1, 2, 3, padding="same")], "padding='same'"),
        ([nn.Conv2d(1, 2, 1), nn.MaxPool2d(3, stride=2)], "stride"),
        ([nn.Conv2d(1, 2, 1), nn.MaxPool2d(2, ceil_mode=True)], "ceil_mode=True"),
        ([nn.Linear(8, 2)], "without Flatten"),
        ([nn.Flatten(), nn.Linear(64, 2).double()], "float32"),
        ([nn.Flatten(), *[nn.Linear(64, 64)] * 2], "occurs twice"),
    ],
)
def test_unsupported_says_why(layers, reason):
    model = small(*layers, shape=(1, 8, 8))
    assert reason in unsupported(model)
    with pytest.raises(UserError, match="sparse engine"):
        SparseNet(model, masks.ones(model))


def test_supported_networks():
    assert unsupported(models.build("lenet5", (1, 28, 28), 10, seed=0)) is None
    assert unsupported(nn.Sequential(nn.Linear(3, 2))) is None
    assert all(
        unsupported(models.build(name, (3, 32, 32), 10, seed=0)) is None for name in models.MODELS
    )
    assert "input_shape" in unsupported(nn.Sequential(nn.Conv2d(1, 1, 1)))


class Forward(nn.Module):
    """Two convolutions and a batch normalisation, put together by ``way``."""

    def __init__(self, way):
        super().__init__()
        self.one, self.two, self.norm, self.way = (
            nn.Conv2d(1, 1, 1),
            nn.Conv2d(1, 1, 1),
            nn.BatchNorm2d(1),
            way,
        )
        self.relu, self.input_shape = nn.ReLU(), (1, 1, 1)

    def forward(self, x):
        return self.way(self, x)


@pytest.mark.parametrize(
    "way, reason",
    [
        (lambda m, x: m.two(m.one(x)) + m.one(x), "occurs twice"),
        (lambda m, x: m.two(x) + m.one(x), "an addition that does not follow a BatchNorm2d"),
        (lambda m, x: m.two(torch.sigmoid(m.one(x))), "sigmoid is not supported"),
        (
            lambda m, x: (m.two(z := m.one(x)), m.norm(z)),
            "BatchNorm2d of a value that is read elsewhere too",
        ),
        (lambda m, x: m.one(x) if x.sum() > 0 else m.two(x), "can not be traced"),
    ],
)
def test_unsupported_forwards(way, reason):
    assert reason in unsupported(Forward(way))


def test_without_numba_only_the_engine_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    spec = importlib.util.find_spec("panning_core.sparse.kernels")
    bare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bare)  # the module itself can be had
    monkeypatch.setattr(kernels, "numba", bare.numba)
    assert unsupported(nn.Sequential(nn.Linear(3, 2))) == "numba is not installed"


# --- the wall around it ---


def test_the_engine_is_what_its_protocol_says():
    asked = {name for name in vars(Engine) if not name.startswith("_")}
    assert {"step", "logits", "flow", "answer", "store", "state", "load_state"} <= asked
    for name in asked:
        theirs, own = (inspect.signature(getattr(kind, name)) for kind in (Engine, SparseNet))
        assert theirs == own, name


def test_objects_complete_themselves():
    """No file of the engine sets an attribute of another object, but for numba's and PyTorch's."""
    found = []
    for file in Path(kernels.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                owner = ast.unparse(node.value)
                found += [] if owner == "self" else [(file.name, owner, node.attr)]
    assert sorted(found) == [
        ("cache.py", "compiled._cache._cache_file", "__class__"),
        ("normalisation.py", "module", "num_batches_tracked"),
    ]


@pytest.mark.parametrize("name, shape", [("lenet300", (1, 8, 8)), ("resnet20", (3, 8, 8))])
def test_what_one_engine_has_learned_another_goes_on_from(name, shape):
    def make():
        model = models.build(name, shape, 10, seed=0)
        return model, SparseNet(model, random_mask(model, 0.3))

    (model, engine), (other, later) = make(), make()
    steps = list(batches((13, 20, 7), shape))
    for x, y in steps[:2]:
        engine.step(x, y, 0.1, 0.9, 5e-4)
    state = engine.state()
    engine.step(*steps[2], 0.1, 0.9, 5e-4)
    later.load_state(state)
    later.step(*steps[2], 0.1, 0.9, 5e-4)
    engine.store(), later.store()
    for one, two in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(one, two)
