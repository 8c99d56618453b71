"""Which layers are pruned: names, whole layers, floors, and how layers share what is kept."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panning_core import data, layers, masks, models, pruning
from panning_core.errors import UserError
from panning_core.experiments import studies

LENET300 = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
LENET5 = {
    "conv1.weight": (20, 1, 5, 5),
    "conv2.weight": (50, 20, 5, 5),
    "fc1.weight": (500, 800),
    "fc2.weight": (10, 500),
}


def scores_of(shapes, seed=0, tied=False):
    generator = torch.Generator().manual_seed(seed)
    draw = (
        (lambda shape: torch.randint(4, shape, generator=generator).float())
        if tied
        else (lambda shape: torch.rand(shape, generator=generator))
    )
    return {name: draw(shape) for name, shape in shapes.items()}


def counts(mask):
    return [int(m.sum()) for m in mask.values()]


# --- ERK and uniform densities ---


@pytest.mark.parametrize(
    "shapes, density, kept",
    [
        # 26,620 weights for shares 1084 : 400 : 110; the last layer is full, and 25,620 go to the
        # others as 1084 : 400
        (LENET300, 0.1, [18714, 6906, 1000]),
        # 1,331 = 905.1 + 334.0 + 91.8
        (LENET300, 0.005, [905, 334, 92]),
        # 21,525 for shares 31 : 80 : 1300 : 510; fc2 is full, which leaves 16,525 = 363.1 + 936.9 +
        # 15,225.0
        (LENET5, 0.05, [363, 937, 15225, 5000]),
        # 86,100: fc2 is full, then conv1, which leaves 80,600 = 4,672.5 + 75,927.5, of which the
        # second is a little more
        (LENET5, 0.2, [500, 4672, 75928, 5000]),
        # 430 = 6.9 + 17.9 + 291.0 + 114.2
        (LENET5, 0.001, [7, 18, 291, 114]),
        (
            {"a.weight": (2, 2), "b.weight": (2, 2)},
            0.625,
            [3, 2],
        ),  # 5 of 8: the earlier layer comes first
        ({"a.weight": (1, 1), "b.weight": (10, 10)}, 1.0, [1, 100]),
    ],
)
def test_erk_gives_these_numbers(shapes, density, kept):
    assert counts(masks.keep_top(scores_of(shapes), density, "erk")) == kept


@pytest.mark.parametrize(
    "shapes, density, kept",
    [
        (LENET300, 0.1, [23520, 3000, 100]),
        (
            LENET300,
            0.0151,
            [3552, 453, 15],
        ),  # 4,020 of 3551.5, 453 and 15.1; the first takes what is over
        (
            {"a.weight": (1, 3), "b.weight": (1, 3), "c.weight": (1, 4)},
            0.5,
            [2, 1, 2],
        ),  # 1.5, 1.5 and 2: the earlier layer comes first
    ],
)
def test_uniform_gives_these_numbers(shapes, density, kept):
    assert counts(masks.keep_top(scores_of(shapes), density, "uniform")) == kept


def slow_share_out(total, shares, least, sizes):
    """One weight at a time to the layer whose share is furthest behind."""
    found = list(least)
    while sum(found) < total:
        turn = [
            ((n + 0.5) / share, place)
            for place, (n, share, size) in enumerate(zip(found, shares, sizes))
            if n < size
        ]
        found[min(turn)[1]] += 1
    return found


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(0, 30)),
        min_size=1,
        max_size=6,
    ),
    st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_layers_share_exactly_and_fairly(rows, where):
    shares, sizes, least = (
        [share for share, _, _ in rows],
        [size for _, size, _ in rows],
        [min(least, size) for _, size, least in rows],
    )
    total = sum(least) + round(where * (sum(sizes) - sum(least)))
    found = layers.share_out(total, shares, least, sizes)
    assert found == slow_share_out(total, shares, least, sizes)
    if total < sum(sizes):
        assert all(
            a <= b for a, b in zip(found, layers.share_out(total + 1, shares, least, sizes))
        )  # no layer loses by a larger total


# --- whole layers and floors ---


shapes = st.lists(
    st.sampled_from([(3, 4), (5, 3), (2, 2, 3, 3), (1, 6), (4, 1)]), min_size=1, max_size=4
)


@given(
    shapes,
    st.floats(0, 1),
    st.sampled_from(["global", "layerwise", "uniform", "erk"]),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.booleans(),
    st.integers(0, 10),
)
@settings(max_examples=300, deadline=None)
def test_counts_are_exact_and_floors_hold(made, density, scope, fractions, tied, seed):
    ranked = scores_of({f"{k}.weight": shape for k, shape in enumerate(made)}, seed, tied)
    least = {
        name: round(fraction * s.numel()) for (name, s), fraction in zip(ranked.items(), fractions)
    }
    total = masks.size(ranked)
    if sum(least.values()) > round(density * total):
        with pytest.raises(UserError, match="layers that stay whole and floors take"):
            masks.keep_top(ranked, density, scope, least)
        return
    mask = masks.keep_top(ranked, density, scope, least)
    assert masks.count(mask) == round(density * total)
    for name, m in mask.items():
        assert m.sum() >= least[name]
        best = (
            ranked[name].flatten().argsort(descending=True, stable=True)[: int(m.sum())]
        )  # ties go to the earlier weight
        assert torch.equal(m.flatten().nonzero().flatten(), best.sort().values)


def test_a_global_floor_takes_from_the_weakest():
    """Layers of 4: the best six are four of a and two of b; c keeps its best one instead of the
    weakest of the six."""
    ranked = {
        name: torch.tensor(values)[None]
        for name, values in {
            "a": [9.0, 8, 7, 3],
            "b": [6.0, 5, 1, 0],
            "c": [0.5, 0.4, 0.3, 0.2],
        }.items()
    }
    least = {"a": 0, "b": 0, "c": 1}
    mask = masks.keep_top(ranked, 0.5, least=least)
    assert {name: m.flatten().tolist() for name, m in mask.items()} == {
        "a": [True, True, True, False],
        "b": [True, True, False, False],
        "c": [True, False, False, False],
    }
    assert counts(masks.keep_top(ranked, 0.5)) == [4, 2, 0]
    infinite = {
        **ranked,
        "a": torch.full((1, 4), torch.inf),
    }  # what is forced comes before infinity
    assert counts(masks.keep_top(infinite, 1 / 3, least=least)) == [3, 0, 1]


def make(*widths):
    model = nn.Sequential()
    for k, (a, b) in enumerate(zip(widths, widths[1:]), 1):
        model.add_module(f"fc{k}", nn.Linear(a, b))
        model.add_module(f"relu{k}", nn.ReLU())
    return model[:-1]


BATCH = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


@pytest.mark.parametrize("method", pruning.methods())
@pytest.mark.parametrize(
    "how",
    [
        {"exclude": ["first", "last"]},
        {"include": "fc2", "scope": "erk"},
        {"exclude": "fc3", "floor": 0.2, "scope": "uniform"},
    ],
)
def test_every_method_leaves_layers_whole(method, how):
    torch.manual_seed(0)
    model, seen = make(6, 10, 8, 3), []
    mask, trace = pruning.prune(
        model,
        method,
        0.7,
        BATCH,
        rounds=3,
        observe=lambda t, old, new, batch: seen.append(new),
        **how,
    )
    least = layers.limits(model, how.get("include"), how.get("exclude"), how.get("floor", 0.0))
    assert least is not None and masks.count(mask) == round(0.7 * 164) and len(trace) == 3
    for each in seen:
        assert all(m.sum() >= least[name] for name, m in each.items())
    whole = {"fc2.weight"} ^ set(mask) if "floor" not in how else {"fc3.weight"}
    assert all(mask[name].all() for name in whole) and not all(m.all() for m in mask.values())


def test_units_keep_excluded_layers_whole():
    torch.manual_seed(0)
    model = make(6, 10, 8, 3)
    mask, _ = pruning.prune(model, "magnitude", 0.8, BATCH, scope="units", exclude="first")
    assert (
        mask["fc1.weight"].all()
        and mask["fc3.weight"].all()
        and 0 < mask["fc2.weight"].any(1).sum() < 8
    )
    with pytest.raises(
        UserError, match="a floor counts weights, and the scope 'units' keeps whole units"
    ):
        pruning.prune(model, "magnitude", 0.8, BATCH, scope="units", floor=0.1)


class Own(nn.Linear):
    """A subclass keeps the name of its class's parents."""


NAMED = nn.Sequential()
NAMED.add_module("stem", nn.Conv2d(1, 2, 3))
NAMED.add_module("blocks", nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)))
NAMED.add_module("flatten", nn.Flatten())
NAMED.add_module("head", Own(3, 2))


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("stem", ["stem"]),
        ("stem.weight", ["stem"]),
        ("blocks.*", ["blocks.0", "blocks.2"]),
        ("*.2", ["blocks.2"]),
        ("first", ["stem"]),
        ("last", ["head"]),
        ("Conv2d", ["stem", "blocks.0", "blocks.2"]),
        (nn.Conv2d, ["stem", "blocks.0", "blocks.2"]),
        ("Linear", ["head"]),
        (nn.Linear, ["head"]),
        ("Own", ["head"]),
        (Own, ["head"]),
        ("*", ["stem", "blocks.0", "blocks.2", "head"]),
    ],
)
def test_patterns(pattern, found):
    assert layers.matching(NAMED, pattern) == [f"{name}.weight" for name in found]


@pytest.mark.parametrize(
    "how, least",
    [
        ({}, None),
        ({"include": "*"}, None),
        ({"include": [], "exclude": None, "floor": 0}, None),
        ({"exclude": "stem"}, [18, 0, 0, 0]),
        ({"include": ["blocks.0", "head"]}, [18, 0, 6, 0]),
        ({"include": "Conv2d", "exclude": "first"}, [18, 0, 0, 6]),
        ({"floor": 0.1}, [2, 1, 1, 1]),
        ({"floor": {"*": 0.1, "Linear": 0.5}}, [2, 1, 1, 3]),
        ({"floor": {"Linear": 0.5, "*": 0.1}}, [2, 1, 1, 3]),
        ({"exclude": "stem", "floor": 0.1}, [18, 1, 1, 1]),
        ({"exclude": nn.Linear, "floor": {"stem": 1.0}}, [18, 0, 0, 6]),
    ],
)
def test_limits(how, least):
    found = layers.limits(NAMED, **how)
    assert found == (
        least
        and dict(zip(("stem.weight", "blocks.0.weight", "blocks.2.weight", "head.weight"), least))
    )


def test_a_floor_is_rounded_up_and_no_further():
    model = nn.Sequential(nn.Linear(100, 1), nn.Linear(1, 1))
    assert (
        layers.limits(model, floor={"first": 0.07})["0.weight"] == 7
        and layers.limits(model, floor={"first": 0.071})["0.weight"] == 8
    )


@pytest.mark.parametrize(
    "how, says",
    [
        ({"exclude": "fist"}, "unknown layer 'fist'; did you mean 'first'"),
        ({"include": nn.LSTM}, "unknown layer 'LSTM'"),
        ({"exclude": "*"}, "every layer stays whole, so nothing is left to prune"),
        ({"include": 3}, "include is 3; it must be a pattern"),
        ({"include": [3]}, "a layer is named by a pattern such as 'conv1'.*, not 3"),
        ({"floor": 1.5}, r"floor of '\*' is 1.5; it is the fraction that a layer keeps at least"),
        ({"floor": {"fc1": "much"}}, "floor of 'fc1' is 'much'"),
        ({"floor": {"conv": 0.5}}, "unknown layer 'conv'"),
        (
            {"exclude": "fc1"},
            r"density 0.3 keeps 49 of 164 weights, and layers that stay whole and floors take 60; "
            r"the least is 0.3659",
        ),
        ({"floor": 0.4}, "layers that stay whole and floors take 66"),
        (
            {"floor": 0.1, "effective": True},
            "effective keeps only what lies on a path, so no layer stays whole and no floor holds",
        ),
    ],
)
def test_bad_choices_of_layers_are_one_sentence(how, says):
    with pytest.raises(UserError, match=says):
        pruning.prune(make(6, 10, 8, 3), "magnitude", 0.3, BATCH, **how)


def test_least_of_other_layers_is_one_sentence():
    with pytest.raises(
        UserError,
        match="it must be a number for each layer of the scores, as layers.limits gives it",
    ):
        masks.keep_top({"a": torch.rand(2, 2)}, 0.5, least={"b": 1})


# --- in a run ---


RUN = studies.Run("digits", "lenet300", "magnitude", 0.5, epochs=0)


def test_equal_choices_have_one_key_and_defaults_have_none():
    def key(**how):
        return dataclasses.replace(RUN, **how).key()

    assert (
        RUN.key()
        == key(include=[], exclude=None, floor=0)
        == key(floor={})
        == key(floor={"fc1": 0})
    )
    assert (
        key(exclude="first")
        == key(exclude=["first"])
        == key(exclude=("first", "first"))
        != RUN.key()
    )
    assert key(exclude=["last", "first"]) == key(exclude=["first", "last"])
    assert key(floor=0.1) == key(floor={"*": 0.1}) != key(floor={"fc1": 0.1})
    assert key(floor={"fc1": 1, "fc2": 0.5}) == key(floor=[["fc2", 0.5], ["fc1", 1.0]])
    for how in (
        {"exclude": ["first", "last"]},
        {"include": "Linear", "floor": {"fc1": 0.1, "fc3": 1}},
        {"floor": 0.25},
    ):
        run = dataclasses.replace(RUN, **how)
        recorded = json.loads(json.dumps(run.canonical()))
        assert (
            studies.Run(**recorded) == run
            and studies.Run(**recorded).key() == run.key()
            and hash(run)
        )
    assert dataclasses.replace(RUN, exclude=["last", "first"]).canonical()["exclude"] == (
        "first",
        "last",
    )


def test_a_run_leaves_its_layers_whole():
    found = studies.execute(
        dataclasses.replace(RUN, exclude=("first", "last"), sparsity=0.3, floor={"fc2": 0.4})
    )
    kept = {name: numbers[0] for name, numbers in found["layers"].items()}
    assert (
        kept["fc1"] == 19200
        and kept["fc3"] == 1000
        and found["kept_weights"] == round(0.7 * 50200) == sum(kept.values())
    )


def test_a_grid_crosses_choices_of_layers():
    entry = {
        "dataset": "digits",
        "model": "lenet300",
        "method": "snip",
        "sparsity": 0.5,
        "exclude": ["first", ["first", "last"]],
        "floor": [0, {"fc2": 0.1}],
        "scope": ["erk", "uniform"],
    }
    found = studies.expand([entry])
    assert [run.exclude for run in found[::4]] == [("first",), ("first", "last")] and len(
        found
    ) == 8
    assert {run.floor for run in found} == {0.0, (("fc2", 0.1),)}


@pytest.mark.parametrize(
    "how, says",
    [
        ({"method": "dense", "sparsity": 0.0, "exclude": "first"}, "a dense run prunes no layer"),
        (
            {"method": "gumbel-softmax", "exclude": "first"},
            "learns weights and mask together; exclude",
        ),
        ({"method": "gumbel-softmax", "floor": 0.1}, "learns weights and mask together; floor"),
        ({"include": nn.Linear}, "a run names layers by patterns"),
        ({"exclude": [1]}, "a run names layers by patterns"),
        ({"exclude": {"first": 1}}, "exclude is .*; it must be a pattern"),
        ({"floor": "much"}, "floor"),
        ({"floor": [1, 2]}, "floor is .*; it must be a fraction, or patterns and fractions"),
        ({"floor": {3: 0.5}}, "its layers are patterns"),
        ({"floor": -0.1}, "floor of"),
        ({"floor": 0.1, "effective": True}, "effective keeps only what lies on a path"),
    ],
)
def test_bad_choices_in_a_run_are_one_sentence(how, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(RUN, **how)


def test_erk_on_the_networks_of_the_laboratory():
    """No layer of a network is over-full or lost, and the count is exact, at every density."""
    splits = data.load("digits")
    model = models.build("resnet20", splits.input_shape, splits.classes, seed=0)
    ranked = {name: w.detach().abs() for name, w in models.prunable(model).items()}
    for density in (1.0, 0.5, 0.1, 0.01, 0.001):
        mask = masks.keep_top(ranked, density, "erk")
        assert masks.count(mask) == round(density * masks.size(mask)) and (
            density < 0.01 or all(map(bool, counts(mask)))
        )
