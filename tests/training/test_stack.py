"""A stack of networks trains as each of them would alone."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from panning_core import data, masks, models, training
from panning_core.errors import UserError
from panning_core.training import Recipe, stacked
from tests.conftest import make_residual

#: A step of 4 images is left over; seeds give every network its own order.
RECIPE = Recipe(epochs=4, batch_size=20, lr=0.05, weight_decay=1e-3, nesterov=True)
DENSITIES = (0.1, 0.5, 1.0)


def recipes(**change):
    return [dataclasses.replace(RECIPE, seed=seed, **change) for seed in (3, 0, 5)]


def images(shape, dtype=torch.float32):
    """104 training images of 10 classes that can be told apart."""
    y = np.arange(150) % 10
    x = np.random.default_rng(0).normal(size=(150, *shape)) + np.sin(
        np.arange(np.prod(shape)) * (1 + y[:, None])
    ).reshape(150, *shape)
    splits = data.from_arrays(x[:115], y[:115], x[115:], y[115:])
    return dataclasses.replace(
        splits,
        **{
            part: dataclasses.replace(getattr(splits, part), x=getattr(splits, part).x.to(dtype))
            for part in ("train", "validation", "test")
        },
    )


def random_mask(model, density, seed):
    generator = torch.Generator().manual_seed(seed)
    return masks.keep_top(
        {
            name: torch.rand(w.shape, generator=generator)
            for name, w in models.prunable(model).items()
        },
        density,
    )


def networks(name, shape, dtype=torch.float32):
    found = [models.build(name, shape, 10, seed).to(dtype) for seed in range(3)]
    return found, [
        random_mask(model, density, seed)
        for seed, (model, density) in enumerate(zip(found, DENSITIES))
    ]


def alone(found, pruned, splits, wanted):
    """Copies of the networks, each trained by ``training.train``, and their tables."""
    found = copy.deepcopy(found)
    return found, [
        training.train(*each, engine="dense")
        for each in zip(found, pruned, [splits] * len(found), wanted)
    ]


def distance(one, two, mask):
    """The largest difference of a tensor of weights, relative to its norm. What is on no path
    decays in one and stays in the other.
    """
    pairs = zip(
        masks.effective(one, mask).values(),
        models.prunable(one).values(),
        models.prunable(two).values(),
    )
    return max(float(((a - b)[live].norm() / b[live].norm()).detach()) for live, a, b in pairs)


# --- side by side ---


def test_side_by_side_each_network_sees_its_own_channels_and_none_is_changed(unchanged, residual):
    found = [residual, make_residual(1), make_residual(2)]
    x = torch.randn((5, 3, 2, 6, 6), dtype=torch.double, generator=torch.Generator().manual_seed(0))
    with unchanged(residual):
        model = stacked.side_by_side(found)
    right = torch.stack([network.eval()(x[:, k]) for k, network in enumerate(found)], 1)
    torch.testing.assert_close(
        model.eval()(x.flatten(1, 2)).unflatten(1, (3, 3)), right, rtol=1e-12, atol=1e-12
    )
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for network in found for p in network.parameters()
    )
    assert models.prunable(model).keys() == models.prunable(residual).keys()


def test_a_linear_layer_without_bias():
    found = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)) for _ in range(2)]
    for network in found:
        network.input_shape = (1, 2, 2)
    x = torch.randn(5, 2, 1, 2, 2)
    torch.testing.assert_close(
        stacked.side_by_side(found)(x.flatten(1, 2)),
        torch.cat([found[k](x[:, k]) for k in (0, 1)], 1),
    )


# --- training ---


@pytest.mark.parametrize("name, shape", [("lenet300", (1, 6, 6)), ("lenet5", (1, 16, 16))])
@pytest.mark.parametrize("augment", [False, True])
def test_a_stack_trains_as_each_network_alone(name, shape, augment):
    splits, (found, pruned) = images(shape), networks(name, shape)
    right, tables = alone(found, pruned, splits, recipes(augment=augment))
    logs = stacked.train(found, pruned, splits, recipes(augment=augment))
    for network, other, mask, log, table in zip(found, right, pruned, logs, tables):
        assert distance(network, other, mask) < 1e-5
        torch.testing.assert_close(
            network(splits.test.x), other(splits.test.x), rtol=1e-4, atol=1e-4
        )
        assert (
            log.columns.tolist() == table.columns.tolist()
            and log.epoch.tolist() == [1, 2, 3, 4]
            and log.attrs["engine"] == table.attrs["engine"]
        )
        np.testing.assert_allclose(log, table, rtol=1e-5)
    assert len({log.loss[0] for log in logs}) == 3


def test_the_same_with_batchnorm_and_shortcuts():
    """In float64, because 20 layers of BatchNorm make of any rounding a difference that can be
    seen. In eval mode its statistics count.
    """
    splits, (found, pruned) = (
        images((3, 8, 8), torch.double),
        networks("resnet20", (3, 8, 8), torch.double),
    )
    wanted = recipes(epochs=2, lr=0.01)
    right, tables = alone(found, pruned, splits, wanted)
    for network, other, mask, log, table in zip(
        found, right, pruned, stacked.train(found, pruned, splits, wanted), tables
    ):
        assert distance(network, other, mask) < 1e-8
        torch.testing.assert_close(
            network.eval()(splits.test.x), other.eval()(splits.test.x), rtol=1e-8, atol=1e-8
        )
        np.testing.assert_allclose(log, table, rtol=1e-8)
        assert network.bn.num_batches_tracked == 12


def test_pruned_weights_and_their_momentum_are_0_after_every_step(monkeypatch):
    seen = []

    class Watch(stacked.Stack):
        def step(self, x, y, lr):
            loss = super().step(x, y, lr)
            seen.extend(
                float(tensor[gone].abs().sum())
                for weight, gone in self.pruned
                for tensor in (weight.detach(), self.optimiser.state[weight]["momentum_buffer"])
            )
            return loss

    monkeypatch.setattr(stacked, "Stack", Watch)
    found, pruned = networks("lenet5", (1, 16, 16))
    start = copy.deepcopy(found)
    stacked.train(found, pruned, images((1, 16, 16)), recipes(epochs=2))
    assert seen == [0.0] * (2 * 6 * 4 * 2)
    for network, mask, before in zip(found, pruned, start):
        for name, weight in models.prunable(network).items():
            assert not weight[~mask[name]].any() and weight.is_contiguous()
            assert not torch.equal(weight[mask[name]], models.prunable(before)[name][mask[name]])


def test_a_network_that_diverges_disturbs_no_other_and_its_table_ends():
    splits, (found, pruned) = images((1, 16, 16)), networks("lenet5", (1, 16, 16))
    with torch.no_grad():
        found[1].fc2.weight *= 1e38
    right, tables = alone(found, pruned, splits, recipes())
    logs = stacked.train(found, pruned, splits, recipes())
    assert [len(log) for log in logs] == [len(table) for table in tables] == [
        4,
        1,
        4,
    ] and not math.isfinite(logs[1].loss[0])
    assert all(distance(found[k], right[k], pruned[k]) < 1e-5 for k in (0, 2))
    assert not any(
        weight[~pruned[1][name]].any() for name, weight in models.prunable(found[1]).items()
    )
    assert not found[1].fc2.weight.isfinite().all()


def test_a_stack_that_has_diverged_ends(monkeypatch):
    splits, (found, pruned) = images((1, 6, 6)), networks("lenet300", (1, 6, 6))
    epochs = []
    monkeypatch.setattr(
        stacked.Stack,
        "logits",
        lambda self, x, logits=stacked.Stack.logits: epochs.append(len(x)) or logits(self, x),
    )
    logs = stacked.train(found, pruned, splits, recipes(lr=1e30, epochs=9))
    assert max(map(len, logs)) < 9 and epochs == [len(splits.validation), len(splits.test)] * max(
        map(len, logs)
    )


def test_bf16_learns_as_well_and_keeps_its_weights_in_float32():
    splits, (found, pruned) = images((1, 16, 16)), networks("lenet5", (1, 16, 16))
    exact = [log.loss for log in stacked.train(copy.deepcopy(found), pruned, splits, recipes())]
    logs = stacked.train(found, pruned, splits, recipes(precision="bf16"))
    for k, log in enumerate(logs):
        assert not np.allclose(log.loss, exact[k], rtol=1e-6) and np.allclose(
            log.loss, exact[k], rtol=0.1
        )
    assert all(
        tensor.dtype == torch.float32 for network in found for tensor in network.parameters()
    )


# --- bad input ---


class Mixed(nn.Module):
    """ReLU and then a softmax over all features."""

    def forward(self, x):
        return x.relu().softmax(1)


def test_a_network_that_mixes_channels_in_its_own_way_is_found():
    found = [
        nn.Sequential(nn.Flatten(), nn.Linear(36, 20), Mixed(), nn.Linear(20, 10)) for _ in range(2)
    ]
    for network in found:
        network.input_shape = (1, 6, 6)
    with pytest.raises(UserError, match="besides Conv2d and Linear mixes their channels"):
        stacked.train(
            found, [masks.ones(network) for network in found], images((1, 6, 6)), recipes()[:2]
        )


def test_networks_of_different_shapes_and_recipes_are_named():
    splits, (found, pruned) = images((1, 16, 16)), networks("lenet300", (1, 16, 16))
    other = models.build("lenet5", (1, 16, 16), 10, 0)
    with pytest.raises(UserError, match="can not be trained as one"):
        stacked.train([found[0], other], [pruned[0], masks.ones(other)], splits, recipes()[:2])
    with pytest.raises(UserError, match="the mask is of another network"):
        stacked.train(found, [masks.ones(other)] * 3, splits, recipes())
    with pytest.raises(UserError, match="differ in more than their seeds"):
        stacked.train(found[:2], pruned[:2], splits, [RECIPE, dataclasses.replace(RECIPE, lr=1.0)])


@pytest.mark.parametrize(
    "change, says",
    [
        (
            lambda m: m.relu1.register_forward_hook(lambda _, x, out: out),
            "relu1 has a forward hook",
        ),
        (lambda m: m.fc2.weight.register_hook(lambda g: 0.5 * g), "fc2.weight has a hook"),
        (lambda m: m.fc2.bias.requires_grad_(False), "fc2.bias is frozen"),
        (lambda m: setattr(m, "relu2", nn.Dropout(0.5)), "mixes their channels, or draws noise"),
    ],
)
def test_what_only_a_network_itself_does_is_named(change, says):
    splits, (found, pruned) = images((1, 6, 6)), networks("lenet300", (1, 6, 6))
    change(found[1])
    change(found[0])
    with pytest.raises(UserError, match=f"^these networks can not be trained as one: .*{says}"):
        stacked.train(found[:2], pruned[:2], splits, recipes()[:2])


class Detached(nn.Module):
    """Answers alike and passes no gradient on."""

    def forward(self, x):
        return x if isinstance(x, torch.Tensor) and x.shape[1] == 300 else x.detach()


def test_a_gradient_that_only_a_stack_loses_is_found():
    splits, (found, pruned) = images((1, 6, 6)), networks("lenet300", (1, 6, 6))
    for network in found:
        network.relu1 = Detached()
    with pytest.raises(UserError, match="can not be trained as one: a layer besides"):
        stacked.train(found, pruned, splits, recipes())
