"""Differentiable sparsification: competing gates, shrunk weights, and what a run compares."""

import json
import math

import pytest
import torch
from torch import nn

from panning_core import data, masks, models
from panning_core.errors import UserError
from panning_core.methods import differentiable_sparsification as ds
from panning_core.models import prunable
from panning_core.runs import base
from panning_core.runs import differentiable_sparsification as runs
from panning_core.runs.differentiable_sparsification import DifferentiableSparsification

ALPHA = torch.tensor([0.0, 0.5, -1.0, 1.0], dtype=torch.float64)
FAST = {
    "units": {"epochs": 6, "batch_size": 20, "gate_lr": 0.1},
    "weights": {"epochs": 6, "batch_size": 20},
}


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def network(seed=0):
    splits = data.load("digits").first(train=200)
    return models.build("lenet300", splits.input_shape, splits.classes, seed=seed), splits


# --- the formulas ---


@pytest.mark.parametrize(
    "beta, wanted",
    [
        (-2.0, [0.095407, 0.291031, 0, 0.613561]),
        (-1.5, [0, 0.264893, 0, 0.735107]),
        (-0.5, [0, 0, 0, 1]),
        (-100.0, torch.softmax(ALPHA, 0).tolist()),
    ],
)
def test_shares_by_hand(beta, wanted):
    found = ds.shares(ALPHA, number(beta))
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    z = [math.exp(a) for a in ALPHA.tolist()]
    left = [max(each - sum(z) / (1 + math.exp(-beta)), 0) for each in z]
    assert found.tolist() == pytest.approx([each / sum(left) for each in left], rel=1e-9)
    assert [each == 0 for each in found.tolist()] == [each == 0 for each in left]


def test_a_gate_that_is_0_still_has_a_gradient_through_the_sum():
    alpha, beta = ALPHA.clone().requires_grad_(), number(-2.0).requires_grad_()
    (ds.shares(alpha, beta) * torch.arange(1, 5)).sum().backward()
    wanted = [-0.556731, -0.420716, 0.031673, 0.945773]
    assert alpha.grad.tolist() == pytest.approx(wanted, abs=1e-6)
    assert beta.grad.item() == pytest.approx(0.434895, abs=1e-6)


def test_equal_gates_are_even_until_all_die_at_once():
    equal = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    bound = math.log(1 / 4)
    assert ds.shares(equal, number(bound - 0.01)).tolist() == pytest.approx([0.2] * 5)
    dead = ds.shares(equal, number(bound + 0.01))
    assert not dead.any()
    (dead.sum() + ds.breadth(dead)).backward()
    assert torch.equal(equal.grad, torch.zeros(5, dtype=torch.float64))


def test_the_norm_and_the_breadth_by_hand():
    found = ds.shares(ALPHA, number(-2.0))
    assert float(ds.norm(found)) == pytest.approx(2.662299, abs=1e-6)
    assert float(ds.breadth(found)) == pytest.approx(2.662299 / 4, abs=1e-6)
    for scale in (0.1, 7.0):
        assert float(ds.breadth(scale * number([1.0, 0, 1, 0, 0]))) == pytest.approx(0.4)
    assert float(ds.breadth(torch.zeros(3))) == 0


def test_weights_are_shrunk_by_a_part_of_their_sum():
    weight = number([[3.0, -1.0], [0.5, -5.5]])
    found = ds.shrunk(weight, number(math.log(0.1 / 0.9)))
    assert found.flatten().tolist() == pytest.approx([2.0, 0.0, 0.0, -4.5], abs=1e-12)
    assert torch.equal(found != 0, number([[1.0, 0], [0, 1]]).bool())


def test_gradients_are_those_of_finite_differences():
    weight = number([[3.0, -1.0], [0.5, -5.5]]).requires_grad_()
    beta = number(-2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, b: ds.breadth(ds.shrunk(w, b).abs()), (weight, beta))
    alpha = ALPHA.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ds.breadth(ds.shares(a, b)), (alpha, beta))


# --- on a network ---


def test_gates_of_units_begin_near_1_and_leave_an_ordinary_network():
    model, splits = network()
    x = splits.test.x
    plain = model(x)
    sparse = ds.Sparse(model, "units")
    assert [len(v) for v in sparse.values()] == [300, 100]
    assert float((model(x) - plain).detach().abs().max()) < 0.2 * float(plain.detach().std())
    sparse.gates["fc2.weight"].alpha.data[:7] = -9
    gated = model(x)
    assert [int(a.sum()) for a in sparse.alive()] == [293, 100]
    sparse.remove()
    assert torch.equal(model(x), gated)
    assert not prunable(model)["fc2.weight"][:, :7].any()
    live = masks.effective(model, {n: w.detach() != 0 for n, w in prunable(model).items()})
    assert not live["fc1.weight"][:7].any() and live["fc1.weight"][7:].all()


@pytest.mark.parametrize("structure", ds.STRUCTURES)
def test_a_penalty_makes_exact_zeros_and_none_makes_few(structure):
    model, splits = network()
    found = ds.learn(model, splits, structure, 3.0, 0, **FAST[structure])
    free, _ = network()
    other = ds.learn(free, splits, structure, 0.0, 0, **FAST[structure])
    assert 0 < sum(found.alive) < 0.9 * sum(other.alive)
    total = 400 if structure == "units" else 50_200
    assert found.curve[-1] == sum(found.alive) / total
    # What was 0 once and is not at the end has come back.
    assert found.died - found.revived == total - sum(found.alive)
    again, _ = network()
    assert ds.learn(again, splits, structure, 3.0, 0, **FAST[structure]).curve == found.curve
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))


@pytest.mark.parametrize(
    "options", [{"penalty": -1}, {"structure": "layers"}, {"lr": 0}, {"gate_lr": -0.1}]
)
def test_bad_options_get_one_sentence(options):
    model, splits = network()
    with pytest.raises(UserError):
        ds.learn(model, splits, **{"structure": "units", "penalty": 0.1, "seed": 0, **options})


def test_a_network_has_gates_once():
    model, _ = network()
    ds.Sparse(model, "units")
    with pytest.raises(UserError):
        ds.Sparse(model, "weights")


# --- the run ---


def test_magnitude_keeps_the_units_with_the_largest_norms():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 4, 2, 3])[:, None].expand(4, 3))
    found = runs.largest(model, [2])
    assert found["0.weight"].all(1).tolist() == [False, True, False, True]
    assert found["2.weight"].all(0).tolist() == [False, True, False, True]
    assert masks.count(runs.largest(model, 9)) <= 9


@pytest.mark.parametrize("structure", ds.STRUCTURES)
def test_a_run_compares_networks_of_one_size(structure):
    run = DifferentiableSparsification(
        images=200, structure=structure, penalty=1.0, epochs=3, finish=1
    )
    found = run.execute(base.Context())
    assert json.loads(json.dumps(found)) == found
    assert all(0 < found[name] <= 1 for name in ("test_accuracy", "dense", *runs.RIVALS))
    if structure == "weights":
        assert found["gumbel_kept_weights"] <= found["size"]


def test_a_network_of_which_nothing_is_left_has_no_rivals(monkeypatch):
    monkeypatch.setattr(ds, "START", 5.0)
    run = DifferentiableSparsification(images=200, penalty=1.0, epochs=1, finish=1)
    found = run.execute(base.Context())
    assert found["kept_weights"] == found["size"] == 0 and found["gumbel"] is None
    assert found["test_accuracy"] is None and found["dense"] > 0


@pytest.mark.parametrize(
    "field", [{"structure": "x"}, {"penalty": -1}, {"finish": 0}, {"dataset": "no"}, {"images": 1}]
)
def test_bad_fields_get_one_sentence(field):
    with pytest.raises(UserError):
        DifferentiableSparsification(**field)
