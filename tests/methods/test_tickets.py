"""Masks of trained networks: exact counts, nested rounds, and weights that go back to exactly what
they were.
"""

import copy
import dataclasses

import pytest
import torch

from panning_core import masks, models, training
from panning_core.errors import UserError
from panning_core.methods import iterative_magnitude

TOTAL = 50_200


def fresh(digits):
    return models.build("lenet300", digits.input_shape, digits.classes, seed=0)


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def largest_on_paths(model, weights, among, room):
    """The effective ones of the largest weights of the mask ``among``: ever more of them, until
    more than ``room`` are effective or there are no more.
    """
    flat, allowed = (
        masks.flatten({name: weights[name].abs() for name in among}),
        masks.flatten(among),
    )
    order = flat.masked_fill(~allowed, -1).argsort(descending=True, stable=True)[
        : int(allowed.sum())
    ]

    def live(n):
        kept = torch.zeros(TOTAL, dtype=torch.bool)
        kept[order[:n]] = True
        return masks.effective(model, masks.unflatten(kept, among))

    n, step = 0, 2**16
    while step:  # the counts grow with n
        while n + step <= len(order) and masks.count(live(n + step)) <= room:
            n += step
        step //= 2
    return live(n), n


@pytest.fixture
def trainings(monkeypatch):
    """(weights before, mask, recipe, weights after) of every training."""
    made, train = [], training.train

    def watched(model, mask, splits, recipe, *rest):
        before = state(model)
        log = train(model, mask, splits, recipe, *rest)
        made.append((before, {name: m.clone() for name, m in mask.items()}, recipe, state(model)))
        return log

    monkeypatch.setattr(iterative_magnitude.training, "train", watched)
    return made


@pytest.mark.parametrize("density", [0.3, 0.02, 0.002])
def test_magnitude_after_training_is_the_largest_weights_of_the_dense_training(density, digits):
    """Trained a second time here; then as many of the largest weights as leave so many on a
    path.
    """
    dense = fresh(digits)
    log = training.train(
        dense,
        masks.ones(dense),
        digits,
        dataclasses.replace(training.RECIPES["mnist"], seed=3, epochs=3),
    )
    room = round(density * TOTAL)
    expected, n = largest_on_paths(dense, state(dense), masks.ones(dense), room)
    assert density > 0.1 or n > room

    model = fresh(digits)
    mask, trace = iterative_magnitude.trained_magnitude(model, digits, density, seed=3, epochs=3)
    assert equal(mask, expected) and equal(
        state(model), state(dense)
    )  # left as they were trained, pruned weights too
    assert (
        len(trace) == 1
        and trace[0]["events"] == []
        and trace[0]["sparsity"] == 1 - masks.density(mask)
        and trace[0]["loss"] == log.loss.iloc[-1]
    )
    assert equal(mask, masks.effective(model, mask)) and 0 < masks.count(mask) <= room


@pytest.mark.parametrize("rewind", [False, True])
def test_iterative_magnitude_round_by_round(rewind, digits, trainings):
    model = fresh(digits)
    initial, quiet = state(model), torch.get_rng_state()
    mask, trace = iterative_magnitude.iterative_magnitude(
        model, digits, 0.05, seed=2, rounds=4, epochs=2, rewind=rewind
    )
    assert torch.equal(torch.get_rng_state(), quiet)
    assert [(recipe.epochs, recipe.seed) for _, _, recipe, _ in trainings] == [(2, 2)] * 4
    assert [masks.count(trained) for _, trained, _, _ in trainings] == [
        round(TOTAL * 0.05 ** (t / 4)) for t in range(4)
    ]
    rounds = [trained for _, trained, _, _ in trainings] + [mask]
    for t, (_, trained, _, after) in enumerate(trainings):
        assert all(
            (trained[name] | ~m).all() for name, m in rounds[t + 1].items()
        )  # nested, the last one too
        kept, gone = (
            torch.cat(
                [after[name].abs()[trained[name] & which(rounds[t + 1][name])] for name in trained]
            )
            for which in (lambda m: m, lambda m: ~m)
        )
        if t < 3:
            assert (
                kept.min() >= gone.max() and len(gone) > 100
            )  # the smallest that were still there
    assert (
        equal(
            mask,
            largest_on_paths(model, trainings[-1][3], trainings[-1][1], round(0.05 * TOTAL))[0],
        )
        and masks.count(mask) > 0
    )

    for t, (before, *_) in enumerate(trainings):
        assert equal(before, initial if rewind or t == 0 else trainings[t - 1][3])
    assert equal(state(model), initial if rewind else trainings[-1][3])
    assert [row["round"] for row in trace] == [1, 2, 3, 4] and trace[-1][
        "sparsity"
    ] == 1 - masks.density(mask)
    assert [row["sparsity"] for row in trace[:3]] == [
        1 - masks.density(trained) for trained in rounds[1:4]
    ]
    assert all(0 < row["loss"] < 3 and row["events"] == [] for row in trace)


def test_learning_is_a_function_of_its_seed(digits):
    def found(seed):
        model = fresh(digits)
        return iterative_magnitude.iterative_magnitude(
            model, digits, 0.1, seed, rounds=2, epochs=1
        ), state(model)

    ((mask, trace), weights), ((again, told), same), ((other, _), _) = (
        found(0),
        found(0),
        found(1),
    )
    assert equal(mask, again) and trace == told and equal(weights, same) and not equal(mask, other)


def test_one_round_is_magnitude_after_training(digits):
    one, other = fresh(digits), fresh(digits)
    assert equal(
        iterative_magnitude.iterative_magnitude(one, digits, 0.1, 0, rounds=1, epochs=2)[0],
        iterative_magnitude.trained_magnitude(other, digits, 0.1, 0, epochs=2)[0],
    )
    assert equal(state(one), state(other))


def test_a_found_mask_trains_to_more_than_its_shuffle(digits):
    accuracies = []
    for shuffled in (False, True):
        model = fresh(digits)
        mask, _ = iterative_magnitude.iterative_magnitude(
            model, digits, 0.02, seed=0, rounds=3, epochs=4, rewind=True
        )
        log = training.train(
            model,
            masks.shuffle(mask, 0) if shuffled else mask,
            digits,
            training.Recipe(epochs=6, batch_size=32),
        )
        accuracies.append(log.test_accuracy.iloc[-1])
    assert accuracies[0] > accuracies[1] + 0.02 and accuracies[0] > 0.8


@pytest.mark.parametrize(
    "how, says",
    [
        ({"rounds": 0}, "rounds is 0; it must be a whole number from 1"),
        ({"rounds": -2}, "rounds is -2"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number from 1"),
        (
            {"density": 1e-9, "rounds": 1, "epochs": 1},
            "leaves 0 of 50,200 weights, too few for a path",
        ),
    ],
)
def test_bad_input_is_named(how, says, digits):
    model = fresh(digits)
    before = copy.deepcopy(state(model))
    with pytest.raises(UserError, match=says):
        iterative_magnitude.iterative_magnitude(model, digits, **{"density": 0.1, "seed": 0, **how})
    assert "density" in how or equal(state(model), before)
