"""Pruned or frozen: both train the same weights; what is frozen stays, bit for bit."""

import json

import pytest
import torch
from torch import nn

from panning_core import data, masks, models, training
from panning_core.errors import UserError
from panning_core.methods.partial_updates import PartialSGD
from panning_core.runs import base, freeze
from panning_core.runs.freeze import Freeze

RECIPE = training.Recipe(2, 50, weight_decay=0)


@pytest.fixture(scope="module")
def splits():
    return data.load("digits").first(train=300)


def built(splits):
    return models.build("lenet300", splits.input_shape, splits.classes, seed=0)


def some(model, share=0.05):
    generator = torch.Generator().manual_seed(1)
    noise = {n: torch.rand(w.shape, generator=generator) for n, w in models.prunable(model).items()}
    return masks.keep_top(noise, share)


# --- a step of a part, against one written out ---


def slow_steps(weight, gradients, parts, lr, momentum, decay):
    """Every number by itself."""
    weight, speed = list(weight), [0.0] * len(weight)
    for gradient, moves in zip(gradients, parts):
        for i, g in enumerate(gradient):
            if moves[i]:
                speed[i] = momentum * speed[i] + g + decay * weight[i]
                weight[i] -= lr * speed[i]
    return weight


@pytest.mark.parametrize("momentum, decay", [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
def test_a_step_of_a_part_leaves_the_rest_and_its_momentum(momentum, decay):
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(6, generator=generator), torch.randn(5, 6, generator=generator)
    some, every = [True, False, True, True, False, False], [True] * 6
    parts = [some, every, some, some, every]
    weight = nn.Parameter(start.clone())
    optimiser = PartialSGD([weight], lr=0.1, momentum=momentum, weight_decay=decay)
    for gradient, moves in zip(gradients, parts):
        before = weight.detach().clone()
        optimiser.part = {weight: torch.tensor(moves)}
        weight.grad = gradient.clone()
        optimiser.step()
        assert torch.equal(weight[~torch.tensor(moves)], before[~torch.tensor(moves)])
    wanted = slow_steps(start.tolist(), gradients.tolist(), parts, 0.1, momentum, decay)
    assert weight.tolist() == pytest.approx(wanted, abs=1e-6)


# --- the oracles of freezing ---


def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(splits):
    model = built(splits)
    mask, before = some(model), {n: w.clone() for n, w in models.prunable(model).items()}
    freeze.train(model, mask, splits, RECIPE, "frozen")
    for name, weight in models.prunable(model).items():
        assert torch.equal(weight[~mask[name]], before[name][~mask[name]])
        assert (weight[mask[name]] != before[name][mask[name]]).double().mean() > 0.5


def test_with_every_weight_trained_both_are_dense_training(splits):
    found = []
    for others in ("frozen", "pruned", None):
        model = built(splits)
        mask = masks.ones(model)
        if others:
            freeze.train(model, mask, splits, RECIPE, others)
        else:
            training.train(model, mask, splits, RECIPE)
        found.append(masks.flatten(models.prunable(model)))
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[2])


def test_where_the_initial_values_are_0_both_are_the_same_run(splits):
    found = []
    for others in ("frozen", "pruned"):
        model = built(splits)
        mask = some(model, 0.3)
        with torch.no_grad():
            for name, weight in models.prunable(model).items():
                weight.mul_(mask[name])
        freeze.train(model, mask, splits, RECIPE, others)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*found, atol=1e-4)


def test_without_trained_weights_and_biases_the_initial_network_stays(splits):
    model = built(splits)
    before = model(splits.test.x)
    freeze.stand_still(model, {n: torch.zeros_like(m) for n, m in masks.ones(model).items()})
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(model(splits.test.x), before)


def test_before_the_first_step_the_frozen_network_has_the_dense_gradient(splits):
    model, mask = built(splits), some(built(splits))
    x, y = splits.train.x[:50], splits.train.y[:50]
    nn.functional.cross_entropy(model(x), y).backward()
    dense = {n: w.grad.clone() for n, w in models.prunable(model).items()}
    wanted = sum(float(dense[n][m].square().sum()) for n, m in mask.items())
    assert freeze.flow(model, mask, (x, y), "frozen") == pytest.approx(wanted, rel=1e-5)
    with torch.no_grad():
        for name, weight in models.prunable(model).items():
            weight.mul_(mask[name])
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    cut = sum(float(w.grad[mask[n]].square().sum()) for n, w in models.prunable(model).items())
    assert freeze.flow(built(splits), mask, (x, y), "pruned") == pytest.approx(cut, rel=1e-5)


# --- what it costs, by hand ---


def test_costs_by_hand():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    mask = masks.ones(model)
    mask["0.weight"][:] = False
    mask["0.weight"][0, 0] = mask["0.weight"][1, 2] = True
    mask["2.weight"][0] = False
    # 18 weights, 5 of them trained: 2 of 12 in the first layer, 3 of 6 in the second
    assert freeze.costs(model, mask, "frozen") == {
        "weights": 18,
        "trained_weights": 5,
        "stored_bytes": 4 * (5 + 5 + 1),
        "training_bytes": 4 * (18 + 5 + 10),
        "training_flops": 2 * (18 + 6 + 5),
        "inference_flops": 36,
    }
    pruned = freeze.costs(model, mask, "pruned")
    assert pruned["stored_bytes"] == 40 and pruned["training_bytes"] == 80
    assert pruned["training_flops"] == 2 * (5 + 3 + 5) and pruned["inference_flops"] == 10
    mask["0.weight"][:], mask["2.weight"][:] = False, True
    last = freeze.costs(model, mask, "frozen")
    assert last["stored_bytes"] == 4 * (6 + 1) and last["training_flops"] == 2 * (18 + 6)
    dense = freeze.costs(model, masks.ones(model), "frozen")
    assert dense["stored_bytes"] == 72 and dense["training_flops"] == 2 * (18 + 6 + 18)


# --- the run ---


def test_a_run_is_plain_values_and_repeats():
    run = Freeze(images=300, epochs=2, trained=0.02)
    found = run.execute(base.Context())
    json.dumps(found, allow_nan=False)
    again = run.execute(base.Context())
    found.pop("cpu_seconds"), again.pop("cpu_seconds")
    assert found == again and found["trained_weights"] == round(0.02 * 50200) and found["flow"] == 1


def test_snip_chooses_what_changes_the_loss_most(splits):
    model, (x, y) = built(splits), (splits.train.x[:50], splits.train.y[:50])
    mask = freeze.chosen(Freeze(trained=0.02), model, (x, y))
    nn.functional.cross_entropy(model(x), y).backward()
    change = {n: (w * w.grad).abs().detach() for n, w in models.prunable(model).items()}
    least = masks.flatten(change).sort().values[-round(0.02 * 50200)]
    assert all(torch.equal(m, change[name] >= least) for name, m in mask.items())


def test_the_last_layer_alone(splits):
    run = Freeze(images=300, epochs=2, choice="last-layer", trained=None)
    assert run.execute(base.Context())["trained_weights"] == 1000
    model = built(splits)
    before = {n: p.clone() for n, p in model.named_parameters()}
    mask = freeze.chosen(run, model, (splits.train.x[:5], splits.train.y[:5]))
    freeze.train(model, mask, splits, RECIPE, "frozen")
    same = {n: torch.equal(p, before[n]) for n, p in model.named_parameters()}
    assert same == {n: not n.startswith("fc3") for n in same}


def test_freezing_beats_pruning_where_little_is_trained():
    arms = [Freeze(epochs=8, trained=0.005, others=others) for others in ("frozen", "pruned")]
    frozen, pruned = (arm.execute(base.Context())["test_accuracy"] for arm in arms)
    assert frozen > pruned + 0.2


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"others": "thawed"}, "thawed"),
        ({"choice": "magic"}, "magic"),
        ({"trained": 0}, r"\(0, 1\]"),
        ({"trained": 1.5}, r"\(0, 1\]"),
        ({"trained": None}, r"\(0, 1\]"),
        ({"choice": "last-layer"}, "last layer"),
        ({"choice": "last-layer", "trained": None, "others": "pruned"}, "last layer"),
        ({"epochs": 0}, "epochs"),
        ({"lr": 0}, "lr"),
        ({"images": 1}, "images"),
    ],
)
def test_bad_input_gets_one_sentence(fields, word):
    with pytest.raises(UserError, match=word):
        Freeze(**fields)
