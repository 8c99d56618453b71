"""Rows of features [n, d] and networks without a ``Flatten`` in every entry point, as images
are."""

import numpy as np
import pytest
import torch
from torch import nn

from panning_core import data, masks, metrics, models, pruning, training
from panning_core.agent import observations
from panning_core.analysis import networks, transfer
from panning_core.errors import UserError
from panning_core.experiments import studies
from panning_core.methods import gumbel_softmax, iterative_magnitude
from panning_core.training import stacked

RECIPE = training.Recipe(epochs=8, batch_size=32)


def arrays():
    rng = np.random.default_rng(0)
    y = np.arange(260) % 4
    x = rng.normal(size=(260, 9)) + 2 * np.eye(4, 9)[y]
    return x[:200], y[:200], x[200:], y[200:]


SPLITS = data.from_arrays(*arrays())
BATCH = data.balanced_batch(SPLITS.train, 6, torch.Generator().manual_seed(0))


def make(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(9, 14), nn.ReLU(), nn.Linear(14, 11), nn.ReLU(), nn.Linear(11, 4)
        )


@pytest.mark.parametrize("method", pruning.methods())
def test_every_method_prunes_it(method):
    model = make()
    mask, trace = pruning.prune(model, method, 0.4, BATCH, rounds=2)
    assert masks.count(mask) == round(0.4 * 324) and 0 <= trace[-1]["effective_sparsity"] < 1
    assert masks.flops(model, mask) == 2 * masks.count(mask) and len(masks.table(model, mask)) == 3


def test_both_engines_learn_the_same():
    scores, weights, logs = metrics.snip(make(), masks.ones(make()), BATCH), {}, {}
    mask = masks.effective(make(), masks.keep_top(scores, 0.3))
    for engine in ("dense", "sparse"):
        model = make()
        logs[engine] = training.train(model, mask, SPLITS, RECIPE, engine)
        weights[engine] = masks.flatten(models.prunable(model))
    assert (weights["dense"] - weights["sparse"]).abs().max() < 1e-5 and logs[
        "sparse"
    ].test_accuracy.iloc[-1] > 0.4
    several = [make() for _ in range(2)]
    training.train_together(several, [mask, mask], SPLITS, RECIPE)
    assert torch.equal(masks.flatten(models.prunable(several[1])), weights["sparse"])
    pair = [make() for _ in range(2)]
    stacked.train(pair, [mask, mask], SPLITS, [RECIPE] * 2)
    assert (masks.flatten(models.prunable(pair[0])) - weights["dense"]).abs().max() < 1e-5


def test_learners_transfer_and_rewards_take_it():
    mask, _ = gumbel_softmax.learn(make(), SPLITS, 0.2, 0, epochs=2)
    assert 0 < masks.count(mask) <= round(0.2 * 324)
    for learner in (iterative_magnitude.trained_magnitude, iterative_magnitude.iterative_magnitude):
        mask, _ = learner(make(), SPLITS, 0.3, 0, epochs=1)
        assert 0 < masks.count(mask) <= round(0.3 * 324)
    model = make()
    meter, rewards = (
        transfer.Transfer(model, BATCH),
        observations.Rewards(
            model, data.balanced_batches(SPLITS.train, 5, torch.Generator().manual_seed(1)), 0.3, 2
        ),
    )

    def watch(*seen):
        meter(*seen)
        rewards(*seen)

    pruning.prune(model, "panning", 0.3, BATCH, 2, observe=watch)
    assert len(rewards) == 2 and len(meter.whole())


def test_a_study_of_rows(monkeypatch):
    """A registered data set of rows and LeNet-300-100, recorded weight by weight and rebuilt."""
    monkeypatch.setitem(data.DATASETS, "rows", arrays)
    run = studies.Run(
        "rows",
        "lenet300",
        "panning",
        0.9,
        rounds=2,
        epochs=30,
        per_class=5,
        transfer=True,
        returns=True,
        network=True,
        exclude="last",
    )
    found = studies.execute(run)
    assert (
        found["kept_weights"] == round(0.1 * (2700 + 30000 + 400))
        and found["layers"]["fc3"][0] == 400
        and found["test_accuracy"] > 0.4
    )
    model, mask = networks.rebuild(found["network"])
    assert model.input_shape == (9,) and masks.count(mask) == found["effective_weights"]
    assert f"test accuracy {100 * found['test_accuracy']:.2f} %" in networks.evaluate(
        found["network"]
    )


def test_what_rows_can_not_have_is_one_sentence():
    with pytest.raises(UserError, match=r"crop and flip are for images"):
        training.train(make(), masks.ones(make()), SPLITS, training.Recipe(epochs=1, augment=True))
    with pytest.raises(UserError, match=r"the network .* can not read images \[9\]"):
        training.train(
            nn.Sequential(nn.Linear(8, 4)), {"0.weight": torch.ones(4, 8).bool()}, SPLITS, RECIPE
        )
    with pytest.raises(
        UserError,
        match="drawn from a Split, .*; data.from_loaders makes splits of loaders",
    ):
        data.balanced_batch(torch.utils.data.DataLoader([1]), 1, torch.Generator())
