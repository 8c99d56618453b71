"""Noise of a network: a function of the seed, another one in every round, and the global random
state stays.
"""

import copy
import dataclasses
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from panning_core import data, masks, metrics, models, pruning, training
from panning_core.inspection import noise
from panning_core.methods import gumbel_softmax
from panning_core.training import stacked

CPU = torch.device("cpu")
RECIPE = training.Recipe(epochs=3, batch_size=16, lr=0.05)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Recorder(nn.Dropout):
    """Dropout that remembers what it kept in train mode, of ones instead of what came."""

    def __init__(self, rate=0.5):
        super().__init__(rate)
        self.seen = []

    def forward(self, x):
        kept = super().forward(torch.ones_like(x))
        if self.training:
            self.seen.append(kept.detach().clone())
        return x * kept


def network(seed=0, recorder=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drop = Recorder() if recorder else nn.Dropout(0.5)
        layers = nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), drop, nn.Linear(12, 3)
    model = nn.Sequential(*layers)
    model.input_shape = (1, 4, 4)
    return model


@pytest.fixture(scope="module")
def splits():
    draw, y = np.random.default_rng(0), np.arange(84) % 3
    x = draw.normal(size=(84, 4, 4)) + y[:, None, None]
    return data.from_arrays(x[:60], y[:60], x[60:], y[60:])


@pytest.fixture
def batch(splits):
    return data.balanced_batch(splits.train, 4, generator())


@contextmanager
def still(seed=5):
    """With this global random state; fails if it is not as before afterwards."""
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    try:
        yield
    finally:
        assert torch.equal(torch.get_rng_state(), before)


def kept(model, density=0.5):
    return masks.keep_top({n: w.detach().abs() for n, w in models.prunable(model).items()}, density)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- drawn_from ---


def test_draws_follow_from_the_generator_which_moves_on_only_then():
    one, two, drawn = generator(3), generator(3), []
    for seed, each in enumerate((one, two, one, two)):
        with still(seed), noise.drawn_from(each, CPU):
            drawn.append(torch.rand(4))
        with still(seed), noise.drawn_from(each, CPU):
            pass
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])
    untouched = generator(3)
    with noise.drawn_from(untouched, CPU):
        torch.rand(2, generator=generator())
    assert torch.equal(untouched.get_state(), generator(3).get_state())


def test_an_error_inside_leaves_the_global_state_too():
    with pytest.raises(KeyError), still(), noise.drawn_from(generator(), CPU):
        torch.rand(1)
        raise KeyError


# --- training ---


def trained(splits, before, recipe=RECIPE):
    model = network()
    with still(before):
        training.train(model, kept(model), splits, recipe, engine="dense")
    return weights(model)


def test_a_seed_gives_one_training_whatever_the_global_state(splits):
    one = trained(splits, 1)
    assert torch.equal(one, trained(splits, 2))
    order = dataclasses.replace(RECIPE, seed=1)
    assert not torch.equal(one, trained(splits, 1, order))


def test_an_observer_that_draws_changes_nothing(splits):
    model, drawn = network(), []
    observe = lambda row: drawn.append(float(torch.rand(1)))  # noqa: E731
    training.train(model, kept(model), splits, RECIPE, "dense", observe)
    assert torch.equal(weights(model), trained(splits, 1)) and len(set(drawn)) == 3


def test_every_step_of_a_training_drops_other_units(splits):
    model = network(recorder=True)
    model[3].seen.clear()
    training.train(model, kept(model), splits, RECIPE, "dense")
    steps = [seen for seen in model[3].seen if len(seen) == 16]
    assert len(steps) == len({tuple(seen.flatten().tolist()) for seen in steps}) >= 9


def test_networks_trained_together_drop_what_they_drop_alone(splits):
    together = [network(seed) for seed in (0, 1)]
    alone = copy.deepcopy(together)
    with pytest.warns(UserWarning, match="Dropout is not supported"):
        training.train_together(together, [kept(m) for m in together], splits, RECIPE)
        for model in alone:
            training.train(model, kept(model), splits, RECIPE)
    for one, two in zip(together, alone):
        assert torch.equal(weights(one), weights(two))


def test_a_stack_of_one_and_gates_follow_from_the_seed_too(splits):
    found = []
    for before in (1, 2):
        one, two = network(), network()
        with still(before):
            stacked.train([one], [kept(one)], splits, [RECIPE])
            mask, _ = gumbel_softmax.learn(two, splits, 0.5, 0, epochs=2, batch_size=16)
        found.append((weights(one), weights(two), masks.flatten(mask)))
    assert all(map(torch.equal, *found))


# --- scores ---

DATA = ("snip", "force", "grasp", "grasp-abs", "prospr", "ntk-sap")


@pytest.mark.parametrize("name", DATA)
def test_a_score_is_a_function_of_the_generator(name, batch):
    model, score = network(), metrics.METRICS[name]
    mask = masks.ones(model)

    def flat(source, before):
        with still(before):
            return masks.flatten(score(model, mask, batch, source))

    source = generator(4)
    one, again = flat(source, 1), flat(source, 1)
    assert torch.equal(one, flat(generator(4), 2)) and not torch.equal(one, again)
    assert torch.equal(flat(None, 1), flat(generator(0), 2))


@pytest.mark.parametrize("name", [name for name in DATA if name != "ntk-sap"])
def test_a_network_without_noise_leaves_the_generator_where_it_is(name, batch):
    model, source = network(), generator(4)
    model[3].p = 0.0
    metrics.METRICS[name](model.eval(), masks.ones(model), batch, source)
    assert torch.equal(source.get_state(), generator(4).get_state())


@pytest.mark.parametrize("method", ["iterative-snip", "force", "panning", "panning-product"])
def test_every_round_drops_other_units(method, batch):
    rounds = []
    for seed, before in ((0, 1), (0, 2), (1, 1)):
        model = network(recorder=True)
        with still(before):
            pruning.prune(model, method, 0.3, batch, rounds=4, seed=seed)
        rounds.append([tuple(seen.flatten().tolist()) for seen in model[3].seen])
    assert rounds[0] == rounds[1] != rounds[2]
    assert len(rounds[0]) >= 4 and len(set(rounds[0])) == len(rounds[0])


def test_a_batch_that_comes_again_still_costs_panning_nothing_without_noise(batch, monkeypatch):
    calls, products = [], metrics.products
    monkeypatch.setattr(metrics, "products", lambda *a, **k: calls.append(1) or products(*a, **k))
    for noisy, count in ((False, 1), (True, 4)):
        model = network()
        model[3].p = 0.5 if noisy else 0.0
        calls.clear()
        pruning.prune(model, "panning", 0.3, [batch], rounds=4)
        assert len(calls) == count
