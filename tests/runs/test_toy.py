"""The toy task: its formulas, its published network, and what counts as the truth."""

import dataclasses
import json
import math

import pytest
import torch

from panning_core import masks
from panning_core.errors import UserError
from panning_core.methods.gumbel_softmax import Gates
from panning_core.runs import toy
from panning_core.runs.toy import Toy


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_points_are_those_of_the_formulas():
    x, y = toy.points(seeded(0))
    assert x.shape == (1000, 4) and y.shape == (1000, 2) and x.dtype == torch.float32
    for (a, b, c, d), (one, two) in zip(x.tolist(), y.tolist()):
        assert one == pytest.approx(3 * math.sin((a - b) ** 2), abs=1e-5) and two == pytest.approx(
            (c + d) ** 3, abs=1e-5
        )
    assert (
        (x.abs() < 1).all()
        and (x.mean(0).abs() < 5 * (1 / 3 / 1000) ** 0.5).all()
        and ((x.var(0) - 1 / 3).abs() < 0.05).all()
    )  # uniform in (-1, 1)
    assert x.T.corrcoef().triu(1).abs().max() < 5 / 1000**0.5
    generator = seeded(0)
    assert torch.equal(toy.points(generator)[0], x) and not torch.equal(toy.points(generator)[0], x)


def test_the_network_is_the_published_one():
    model = toy.network(seeded(0))
    assert [type(module).__name__ for module in model] == [
        "Linear",
        "SiLU",
        "Linear",
        "SiLU",
        "Linear",
    ]
    assert [tuple(layer.weight.shape) for layer in model[::2]] == [(10, 4), (10, 10), (2, 10)]
    assert Gates(model).count == 160 and masks.size(masks.ones(toy.network(seeded(0)))) == 160
    weights = [
        torch.cat(
            [toy.network(seeded(seed))[layer].weight.detach().flatten() for seed in range(200)]
        )
        for layer in (0, 2, 4)
    ]
    for w, inside in zip(weights, (4, 10, 10)):
        assert abs(w.mean()) < 5 * 2 / inside / len(w) ** 0.5 and float(w.std()) == pytest.approx(
            2 / inside, rel=5 / (2 * len(w)) ** 0.5
        )
        assert ((w.abs() > 2 * 2 / inside).double().mean() - 0.0455).abs() < 5 * (
            0.0455 / len(w)
        ) ** 0.5  # normal
    assert [set(layer.bias.tolist()) for layer in toy.network(seeded(1))[::2]] == [
        {0.5},
        {float(torch.tensor(0.2))},
        {float(torch.tensor(0.2))},
    ]


@pytest.mark.parametrize("how", [{}, {"budget": 12}])
def test_a_short_training_says_what_was_found(how):
    found = toy.run(Toy(steps=30, **how))
    assert (
        toy.run(Toy(steps=30, **how)) == found
        and toy.run(Toy(steps=30, seed=1, **how))["test_error"] != found["test_error"]
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found.keys() == {
        "test_error",
        "constant_error",
        "edges",
        "reach",
        "recovered",
        "signs",
        "weights",
        "biases",
    }
    weights = [torch.tensor(w) for w in found["weights"]]
    assert [tuple(w.shape) for w in weights] == [(10, 4), (10, 10), (2, 10)] and [
        len(b) for b in found["biases"]
    ] == [10, 10, 2]
    assert (
        found["edges"] == sum(int((w != 0).sum()) for w in weights) and 0 < found["test_error"] < 3
    )
    if how:
        assert 0 < found["edges"] <= 12
    through = (weights[2] != 0).double() @ (weights[1] != 0).double() @ (weights[0] != 0).double()
    assert found["reach"] == (through > 0).int().tolist()


def test_the_constant_error_is_that_of_the_best_constants():
    generator = seeded(4)
    (_, y), (_, y_test) = toy.points(generator), toy.points(generator)
    found = toy.run(Toy(steps=1, seed=4))
    medians = torch.tensor([sorted(column)[500] for column in y.T.tolist()])
    assert found["constant_error"] == pytest.approx(
        float((y_test - medians).abs().mean()), rel=1e-2
    )
    assert found["constant_error"] < float((y_test - y_test.mean(0) - 0.3).abs().mean())


# --- what counts as recovered: networks made by hand instead of training ---


@pytest.fixture
def made(monkeypatch):
    """``made(first, second, last)``: run the toy, and training gives these weights; a gate is open
    where a weight is not 0.
    """

    def add(*tensors, biases=0.0):
        def fit(model, gates, batches, *how):
            for layer, gate, wanted in zip(model[::2], gates.gates.values(), tensors):
                gate.logits.data.copy_(torch.where(wanted != 0, 1.0, -1.0))
                layer.parametrizations.weight.original.data.copy_(
                    torch.where(wanted != 0, wanted, 7.0)
                )  # what is shut may be anything
                layer.bias.data.fill_(biases)
            gates.draw(0.0)

        monkeypatch.setattr(toy, "fit_penalty", fit)
        return toy.run(Toy(steps=1))

    return add


def edges(shape, entries):
    tensor = torch.zeros(shape)
    for (row, column), value in entries.items():
        tensor[row, column] = value
    return tensor


#: x1 and x2 over unit 0 to y1, x3 and x4 over unit 5 to y2
TRUTH = [
    edges((10, 4), {(0, 0): 1.0, (0, 1): -1.0, (5, 2): 2.0, (5, 3): 2.0}),
    edges((10, 10), {(3, 0): 1.0, (4, 5): 1.0}),
    edges((2, 10), {(0, 3): 1.0, (1, 4): -1.0}),
]


def test_two_separate_graphs_are_the_truth(made):
    found = made(*TRUTH)
    assert (
        found["recovered"]
        and found["reach"] == [[1, 1, 0, 0], [0, 0, 1, 1]]
        and found["edges"] == 8
        and found["signs"] == [1.0, 0.0]
    )
    assert found["weights"] == [tensor.tolist() for tensor in TRUTH] and found["biases"] == [
        [0.0] * 10,
        [0.0] * 10,
        [0.0] * 2,
    ]


@pytest.mark.parametrize(
    "layer, change, reach, signs",
    [
        (0, {(5, 0): 1.0}, [[1, 1, 0, 0], [1, 0, 1, 1]], [1.0, 0.0]),  # y2 sees x1 too
        (0, {(0, 1): 0.0}, [[1, 0, 0, 0], [0, 0, 1, 1]], [None, 0.0]),  # y1 does not see x2
        (1, {(3, 5): 0.5}, [[1, 1, 1, 1], [0, 0, 1, 1]], [1.0, 0.0]),
        (2, {(0, 4): -0.1}, [[1, 1, 1, 1], [0, 0, 1, 1]], [1.0, 0.0]),
        (
            2,
            {(1, 4): 0.0},
            [[1, 1, 0, 0], [0, 0, 0, 0]],
            [1.0, None],
        ),  # no path to y2: its weights are not effective
    ],
)
def test_anything_else_is_not(made, layer, change, reach, signs):
    tensors = [tensor.clone() for tensor in TRUTH]
    for entry, value in change.items():
        tensors[layer][entry] = value
    found = made(*tensors)
    assert not found["recovered"] and found["reach"] == reach and found["signs"] == signs


@pytest.mark.parametrize(
    "layer, change", [(0, {(9, 0): 1.0, (9, 2): 1.0}), (1, {(3, 8): 1.0}), (2, {(0, 7): 5.0})]
)
def test_what_is_on_no_path_is_not_counted(made, layer, change):
    """A unit that leads nowhere, one that nothing comes into."""
    tensors = [tensor.clone() for tensor in TRUTH]
    for entry, value in change.items():
        tensors[layer][entry] = value
    found = made(*tensors)
    assert (
        found["recovered"]
        and found["edges"] == 8
        and found["weights"] == [tensor.tolist() for tensor in TRUTH]
        and found["signs"] == [1.0, 0.0]
    )


def test_signs_are_the_share_of_units_that_both_inputs_enter(made):
    first = edges(
        (10, 4),
        {
            (0, 0): 1.0,
            (0, 1): -1.0,
            (1, 0): -2.0,
            (1, 1): 1.0,
            (2, 0): 1.0,
            (2, 1): 1.0,
            (3, 0): -1.0,
            (5, 2): -1.0,
            (5, 3): -1.0,
            (6, 2): 1.0,
            (6, 3): -0.1,
        },
    )
    second = edges(
        (10, 10), {**{(0, unit): 1.0 for unit in range(4)}, **{(9, unit): 1.0 for unit in (5, 6)}}
    )
    found = made(first, second, edges((2, 10), {(0, 0): 1.0, (1, 9): 1.0}))
    assert found["recovered"] and found["signs"] == [pytest.approx(2 / 3), 0.5]


def test_the_error_is_that_of_the_network_that_is_left(made):
    """SiLU written out; all biases are 0.1."""
    found = made(*TRUTH, biases=0.1)
    generator = seeded(0)
    toy.points(generator)
    x, y = toy.points(generator)

    def silu(t):
        return t / (1 + (-t).exp())

    out = silu(silu(x @ TRUTH[0].T + 0.1) @ TRUTH[1].T + 0.1) @ TRUTH[2].T + 0.1
    assert found["test_error"] == pytest.approx(float((out - y).abs().mean()), rel=1e-5)


# --- fields ---


def test_the_defaults_are_the_published_settings():
    published = dataclasses.asdict(Toy())
    published.pop("gate_lr")  # our own
    assert published == {
        "seed": 0,
        "steps": 7500,
        "lr": 0.01,
        "penalty": 0.01,
        "temperature": 3.0,
        "budget": None,
    }


def test_the_key_of_a_toy_leaves_out_defaults():
    assert Toy().canonical() == {} and Toy(seed=3).canonical() == {"seed": 3}
    assert (
        Toy(**dataclasses.asdict(Toy())).key()
        == Toy().key()
        == Toy(steps=7500, temperature=3).key()
    )
    changes = [
        {"seed": 1},
        {"steps": 7},
        {"lr": 0.02},
        {"penalty": 0.02},
        {"temperature": 1.0},
        {"budget": 18},
        {"gate_lr": 0.5},
    ]
    assert {name for change in changes for name in change} == {
        f.name for f in dataclasses.fields(Toy)
    }
    assert len({Toy(**change).key() for change in changes} | {Toy().key()}) == 8
    assert Toy(**json.loads(json.dumps(Toy(seed=2, budget=18).canonical()))) == Toy(
        seed=2, budget=18
    )


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("seed", -1, "seed of a toy is -1; it must be a whole number from 0"),
        ("seed", 1.0, "seed of a toy is 1.0"),
        ("seed", True, "seed of a toy is True"),
        ("seed", None, "seed of a toy is None"),
        ("steps", 0, "steps of a toy is 0; it must be a whole number from 1"),
        ("steps", "30", "steps of a toy is '30'"),
        ("steps", None, "steps of a toy is None"),
        ("budget", 0, "budget of a toy is 0; it must be a whole number from 1"),
        ("budget", 18.0, "budget of a toy is 18.0"),
        ("lr", 0, "lr of a toy is 0; it must be a number above 0"),
        ("lr", -0.1, "lr of a toy is -0.1"),
        ("penalty", "1", "penalty of a toy is '1'"),
        ("penalty", float("nan"), "penalty of a toy is nan"),
        ("temperature", True, "temperature of a toy is True"),
        ("gate_lr", None, "gate_lr of a toy is None"),
        ("lr", [0.1], r"lr of a toy is \[0.1\]"),
    ],
)
def test_bad_fields_are_named(field, value, says):
    with pytest.raises(UserError, match=says):
        Toy(**{field: value})


def test_a_budget_beyond_the_network_is_named():
    with pytest.raises(UserError, match="161"):
        toy.run(Toy(steps=20, budget=161))
