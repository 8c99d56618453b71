"""Ensembles of sparse networks: milestones, the update between tickets, and what is measured."""

import math

import pytest
import torch
from torch import nn

from panning_core import data, masks
from panning_core.errors import UserError
from panning_core.methods import dynamic
from panning_core.methods.dynamic import Exchange
from panning_core.runs import base, tickets
from panning_core.runs.tickets import Tickets

SHORT = {"images": 300, "updates": 4}


def run(**fields):
    return Tickets(**{**SHORT, **fields}).execute(base.Context())


def members(**fields):
    made = Tickets(**{**SHORT, **fields})
    return tickets.trained(made, data.load("digits").first(train=300), made.seed)


def test_the_published_milestones():
    """450 epochs, 150 of them to explore, 3 tickets: restarts after 250 and 350, a lower rate after
    200, 300 and 400; a single training has 250."""
    ends, found = 0, []
    for phase in tickets.sequence(100, 3, 0.8):
        found.append((ends, phase.lr, phase.shake))
        ends += phase.epochs
    assert ends == 450
    assert found == [
        *((0, 0.1, None), (150, 0.01, None), (200, 0.001, None), (250, 0.01, 0.8)),
        *((300, 0.001, None), (350, 0.01, 0.8), (400, 0.001, None)),
    ]
    assert sum(phase.epochs for phase in tickets.single(8)) == 20
    assert [phase.epochs for phase in tickets.single(8)] == [10, 5, 5]
    assert sum(phase.ticket for phase in tickets.sequence(8, 3, None)) == 3


def test_a_weight_that_dies_and_grows_again_begins_at_0():
    model = nn.Sequential(nn.Linear(8, 1))
    weight = model[0].weight
    weight.data = torch.tensor([[0.9, -0.1, 0.4, 0, 0, -0.05, 0.3, 0]])
    weight.grad = torch.tensor([[0, 0.8, 0.1, 0.5, -0.9, 0.2, 0.3, 0.1]])
    mask = dynamic.exchange(model, {"0.weight": weight.detach() != 0}, 0.5, restart=True)
    assert mask["0.weight"].nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4]
    wanted = torch.tensor([[0.9, 0, 0.4, 0, 0, 0, 0, 0]])
    assert torch.equal(weight.detach(), wanted)


def test_when_weights_are_exchanged():
    model = nn.Sequential(nn.Linear(8, 6))
    weight = model[0].weight
    weight.grad = torch.zeros_like(weight)
    mask = dynamic.begin(model, 0.5, seed=0)
    hook, seen = Exchange(3, death=0.25, first=0.75), []
    for step in range(1, 8):
        weight.data = mask["0.weight"] * (1 + torch.rand(6, 8))
        weight.grad = 1 + torch.rand(6, 8)
        new = hook(step, model, mask)
        assert masks.count(new) == masks.count(mask)
        seen.append((hook.dense_gradients, int((weight == 0).sum()) - 24))
        mask = new
    # of 24 weights 18 and 6 have died, whether or not they grew again
    assert seen == [(True, 18), (False, 0), (True, 6), *[(False, 0)] * 2, (True, 6), (False, 0)]


def test_without_deaths_the_tickets_are_snapshots_of_one_static_network():
    moved = members(method="edst", death=0, shake=0)
    still = members(method="snapshots", death=0)
    first = moved[0].mask
    for a, b in zip(moved, still):
        assert all(torch.equal(a.mask[name], first[name]) for name in first)
        assert all(torch.equal(b.mask[name], first[name]) for name in first)
        # the engines differ, and so do their last bits
        assert torch.allclose(a.test, b.test, atol=1e-3)
    shaken = members(method="edst")
    assert len({t.mask["fc1.weight"].numpy().tobytes() for t in shaken}) == 3
    assert len({t.mask["fc1.weight"].numpy().tobytes() for t in members(method="snapshots")}) == 1


def test_the_first_ticket_is_the_same_with_and_without_others():
    (alone,), three = members(tickets=1), members(tickets=3)
    assert torch.equal(alone.test, three[0].test) and alone.flops == three[0].flops


def test_members_that_are_trained_apart_differ_from_the_start():
    made = Tickets(**SHORT, method="dst", tickets=2)
    splits = data.load("digits").first(train=300)
    (a,), (b,) = (tickets.trained(made, splits, seed) for seed in (0, tickets.MEMBER))
    found = run(method="dst", tickets=2)
    assert found["members"] == pytest.approx(
        [float((t.test.argmax(1) == splits.test.y).double().mean()) for t in (a, b)], abs=1e-6
    )
    assert found["first_test_accuracy"] == pytest.approx(found["members"][0], abs=1e-6)
    assert found["disagreement"] == pytest.approx(
        float((a.test.argmax(1) != b.test.argmax(1)).double().mean()), abs=1e-6
    )
    assert found["training_flops"] == a.flops + b.flops
    together = tickets.scores((a.test + b.test) / 2, splits.test.y)
    assert {name: found[name] for name in together} == pytest.approx(together, abs=1e-6)


def test_measures_by_hand():
    right = torch.tensor([0, 0, 1, 1])
    answers = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0.6, 0.4]], dtype=torch.double)
    found = tickets.scores(answers, right)
    assert found["test_accuracy"] == 0.5
    assert found["ece"] == pytest.approx(0.25)
    assert found["nll"] == pytest.approx(-sum(map(math.log, (0.9, 0.1, 0.6, 0.4))) / 4, abs=1e-6)
    assert tickets.disagreement([answers]) == tickets.disagreement([answers] * 3) == 0
    # Of three pairs two differ, each on every input.
    assert tickets.disagreement([answers, answers, 1 - answers]) == pytest.approx(2 / 3)


def test_flops_are_those_of_every_step():
    """300 images are three steps an epoch and 24 a unit, so every sixth step exchanges."""
    weights = 50_200
    sparse, dense = 6 * round(0.2 * weights), 6 * weights
    found = run(method="dense", sparsity=0, tickets=1)
    assert found["training_flops"] == found["dense_flops"] == 20 * 300 * dense
    grow = 100 * 2 * (weights - round(0.2 * weights))
    found = run(method="dst", tickets=2)
    # of 30, 15 and 15 steps
    assert found["first_training_flops"] == 20 * 300 * sparse + (5 + 2 + 2) * grow
    found = run(method="edst")
    # of 36 steps, then of 12 six times, twice with one more after the first
    assert found["training_flops"] == 36 * 300 * sparse + (6 + 6 * 2 + 2) * grow
    assert found["inference_flops"] == 3 * 2 * round(0.2 * weights)
    found = run(method="snapshots")
    assert found["training_flops"] == 36 * 300 * sparse + 6 * grow


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"method": "edts"}, "did you mean 'edst'"),
        ({"method": "dense"}, "dense networks have sparsity 0"),
        ({"unit": 12}, "multiple of 8"),
        ({"tickets": 0}, "tickets of an ensemble is 0"),
        ({"shake": 1.0}, "shake of an ensemble is 1.0"),
        ({"death": -1}, "death of an ensemble is -1"),
        ({"images": 0}, "images of an ensemble is 0"),
        ({"dataset": "digit"}, "unknown data set 'digit'"),
    ],
)
def test_bad_input_is_told_in_one_sentence(fields, said):
    with pytest.raises(UserError, match=said):
        Tickets(**fields)


def test_more_updates_than_steps_are_refused():
    with pytest.raises(UserError, match="updates of an ensemble is 500, and a unit has 104 steps"):
        Tickets(updates=500).execute(base.Context())
