"""Runs, grids and sweeps: a run is done once, a bad one is named early, and no failure or kill -9
costs another run's result.
"""

import dataclasses
import json
import os
import signal
import subprocess
import time
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch

import panning_core
from panning_core import models, training
from panning_core.__main__ import command_line as obey
from panning_core.__main__ import main
from panning_core.analysis import networks
from panning_core.errors import UserError
from panning_core.experiments import profiles, provenance, studies, sweep, words
from panning_core.experiments.ledger import Ledger
from panning_core.experiments.studies import Run, expand
from panning_core.methods import registry
from panning_core.reporting import names, sources
from panning_core.reporting.tables import accuracy_table, tidy
from panning_core.runs import base, prune, toy
from tests.checkout import PARAMETERS, Checkout
from tests.conftest import same

TINY = {"dataset": "digits", "model": "lenet300", "epochs": 2}
RUN = Run(**TINY, method="magnitude", sparsity=0.5)
STUDY = "01_tiny"


# --- a run and its key ---


def test_the_key_of_a_run_never_changes():
    """If this fails, every result that anyone has recorded is computed again."""
    run = Run("digits", "lenet300", "panning", 0.95, seed=3, mix=(1, 0.5, 0))
    assert (
        json.dumps(run.canonical(), sort_keys=True)
        == '{"dataset": "digits", "method": "panning", "mix": [1, 0.5, 0], "model": "lenet300",'
        ' "seed": 3, "sparsity": 0.95}'
    )
    assert run.key() == "18e05f87d9d7b77b81b5f0a0a1296834850f38840cff724571573717471111c5"


def test_defaults_and_order_do_not_matter_to_the_key():
    defaults = {
        f.name: f.default for f in dataclasses.fields(Run) if f.default is not dataclasses.MISSING
    }
    assert Run(**{**defaults, **TINY, "method": "magnitude", "sparsity": 0.5}).key() == RUN.key()
    assert (
        Run(sparsity=0.5, method="magnitude", epochs=2, model="lenet300", dataset="digits").key()
        == RUN.key()
    )
    recorded = json.loads(
        json.dumps(dataclasses.replace(RUN, method="panning", mix=[1, 0, 0]).canonical())
    )
    assert Run(**recorded) == dataclasses.replace(RUN, method="panning", mix=(1, 0, 0)) and Run(
        **recorded
    ).canonical()["mix"] == (1, 0, 0)


CHANGES = {
    "dataset": "mnist",
    "model": "lenet5",
    "method": "snip",
    "sparsity": 0.6,
    "seed": 1,
    "init": "panning",
    "rounds": 1,
    "schedule": "linear",
    "scope": "layerwise",
    "revive": False,
    "mix": (1, 0, 0),
    "control": "shuffle",
    "per_class": 5,
    "fixed_batch": True,
    "recipe": "cifar",
    "epochs": 3,
    "transfer": True,
    "precision": "bf16",
    "policy": "random",
    "returns": True,
    "options": {"steps": 1},
    "effective": True,
    "network": True,
    "normalisation": "authors",
    "order": 1,
    "scoring": 1,
    "engine": "dense",
    "include": ("fc1", "fc2"),
    "exclude": "last",
    "floor": 0.1,
}


def test_every_field_changes_the_key():
    assert CHANGES.keys() == {f.name for f in dataclasses.fields(Run)}
    run, agent, prospr = (
        dataclasses.replace(RUN, method=method) for method in ("panning", "panning-agent", "prospr")
    )  # take every field, but each one its own
    own = {"policy": agent, "options": prospr}
    keys = {
        dataclasses.replace(own.get(name, run), **{name: value}).key()
        for name, value in CHANGES.items()
        if name != "method"
    }
    assert len(keys | {run.key(), agent.key(), prospr.key()}) == len(CHANGES) + 2


def test_options_are_names_and_values_in_any_form():
    run = dataclasses.replace(RUN, method="prospr", options={"momentum": 0.9, "lr": 0.5})
    assert run.options == (("lr", 0.5), ("momentum", 0.9)) and run.canonical()["options"] == {
        "lr": 0.5,
        "momentum": 0.9,
    }
    for each in (
        (("momentum", 0.9), ("lr", 0.5)),
        [["lr", 0.5], ["momentum", 0.9]],
        {"lr": 0.5, "momentum": 0.9, "steps": 3, "units": False},
    ):
        other = dataclasses.replace(RUN, method="prospr", options=each)
        assert other == run and other.key() == run.key() and hash(other) == hash(run)
    recorded = json.loads(json.dumps(run.canonical()))
    assert (
        Run(**recorded) == run
        and Run(**recorded).key() == run.key()
        and Run(**Run(**recorded).canonical()).key() == run.key()
    )
    assert (
        json.dumps(run.canonical(), sort_keys=True)
        == '{"dataset": "digits", "epochs": 2, "method": "prospr", "model": "lenet300", '
        '"options": {"lr": 0.5, "momentum": 0.9}, "sparsity": 0.5}'
    )


@pytest.mark.parametrize(
    "method, options",
    [
        ("prospr", {}),
        ("prospr", ()),
        ("prospr", {"steps": 3, "lr": 0.1, "first_order": False}),
        ("snip", {}),
        ("gumbel-softmax", {"structure": "weights", "penalty": 0}),
        ("iterative-magnitude", [("rewind", False)]),
    ],
)
def test_options_at_their_default_are_not_in_the_key(method, options):
    run = dataclasses.replace(RUN, method=method)
    assert (
        dataclasses.replace(run, options=options) == run
        and "options" not in run.canonical()
        and dataclasses.replace(run, options=options).key() == run.key()
    )


def test_numbers_of_options_have_one_key():
    whole, decimal = (
        dataclasses.replace(RUN, method="prospr", options={"lr": lr}).key() for lr in (1, 1.0)
    )
    assert whole == decimal


def test_options_of_a_run_are_those_of_its_method():
    """A grid can cross them, and the metric gets them."""
    found = expand(
        [
            {
                **TINY,
                "method": "prospr",
                "sparsity": 0.9,
                "options": [{}, {"steps": 1}, {"steps": 1, "lr": 0.5}],
            }
        ]
    )
    assert [dict(run.options) for run in found] == [{}, {"steps": 1}, {"steps": 1, "lr": 0.5}]
    snip, of_no_steps, plain = (
        studies.execute(Run(**{**TINY, "epochs": 0}, method=method, sparsity=0.9, options=options))
        for method, options in (("snip", {}), ("prospr", {"steps": 0}), ("prospr", {}))
    )
    assert of_no_steps["layers"] == snip["layers"] != plain["layers"]


def test_an_effective_run_keeps_what_is_on_a_path():
    plain, found = (
        studies.execute(
            dataclasses.replace(RUN, method="snip", sparsity=0.99, epochs=0, effective=effective)
        )
        for effective in (False, True)
    )
    assert plain["kept_weights"] == 502 > plain["effective_weights"]
    assert plain["effective_weights"] < found["effective_weights"] == found["kept_weights"] <= 502


def test_a_policy_is_named_in_the_key():
    """So that results of the policy that comes with the package are not taken for those of its
    successor.
    """
    run = dataclasses.replace(RUN, method="panning-agent")
    assert (
        run.canonical()["policy"] == prune.policies.SHIPPED
        and run.key() == dataclasses.replace(run, policy=prune.policies.SHIPPED).key()
    )


def test_equal_mixes_have_one_key():
    whole, decimal = (
        dataclasses.replace(RUN, method="panning", mix=mix).key()
        for mix in ((1, 0, 0), [1.0, 0.0, 0.0])
    )
    assert whole == decimal


# --- expand ---


def test_lists_are_crossed_and_the_last_varies_fastest():
    found = [
        (run.method, run.sparsity, run.seed)
        for run in expand(
            [{**TINY, "method": ["snip", "grasp"], "sparsity": [0.5, 0.9], "seed": [0, 1]}]
        )
    ]
    assert found == [(m, s, seed) for m in ("snip", "grasp") for s in (0.5, 0.9) for seed in (0, 1)]


@pytest.mark.parametrize("learner", registry.learners())
@pytest.mark.parametrize(
    "field, value",
    [
        ("rounds", 3),
        ("schedule", "linear"),
        ("scope", "layerwise"),
        ("revive", True),
        ("per_class", 5),
        ("fixed_batch", True),
        ("transfer", True),
        ("returns", True),
        ("effective", True),
        ("control", "invert"),
        ("control", "shuffle"),
    ],
)
def test_a_learner_has_no_fields_of_pruning_before_training(learner, field, value):
    with pytest.raises(UserError) as error:
        Run(**TINY, method=learner, sparsity=0.9, **{field: value})
    assert (
        str(error.value)
        == f"{learner} learns weights and mask together; {field} {value!r} belongs to pruning"
        " before training"
    )


@pytest.mark.parametrize("learner", registry.learners())
def test_a_learner_takes_the_other_fields(learner):
    for field, value in (
        ("control", "reinitialise"),
        ("seed", 3),
        ("init", "panning"),
        ("recipe", "cifar"),
        ("epochs", 0),
        ("network", True),
        ("options", {"epochs": 1}),
        ("precision", "bf16"),
    ):
        run = Run(**{**TINY, "method": learner, "sparsity": 0.9, field: value})
        assert Run(**json.loads(json.dumps(run.canonical()))) == run


def test_the_options_of_learners():
    known = {name: set(registry.method(name).options) for name in registry.learners()}
    assert known["trained-magnitude"] == {"epochs"} and known["iterative-magnitude"] == {
        "rounds",
        "epochs",
        "rewind",
    }
    assert known["gumbel-softmax"] >= {
        "epochs",
        "batch_size",
        "temperature",
        "penalty",
        "structure",
    }
    assert not set(registry.learners()) & set(registry.pruners()) and set(studies.PRUNING) <= {
        f.name for f in dataclasses.fields(Run)
    }


def test_method_all_is_every_pruner():
    assert [
        run.method for run in expand([{**TINY, "method": "all", "sparsity": 0.9}])
    ] == registry.pruners()


def test_a_run_of_two_entries_is_done_once():
    grid = [
        {**TINY, "method": ["snip", "random"], "sparsity": 0.9},
        {**TINY, "method": ["random", "grasp"], "sparsity": [0.9, 0.9], "seed": 0},
    ]
    assert [run.method for run in expand(grid)] == ["snip", "random", "grasp"] and expand([]) == []


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"sparsitty": 0.9}, "unknown field of a run 'sparsitty'; did you mean 'sparsity'?"),
        ({"method": ["snip", "synflo"]}, "unknown method 'synflo'; did you mean 'synflow'"),
        ({"model": "lenet30"}, "unknown model 'lenet30'; did you mean 'lenet300'"),
        ({"dataset": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
        ({"recipe": "cifa"}, "unknown recipe 'cifa'; did you mean 'cifar'"),
        ({"scope": "globl"}, "unknown scope 'globl'; did you mean 'global'"),
        ({"control": "shufle"}, "unknown control 'shufle'; did you mean 'shuffle'"),
        ({"schedule": "linea"}, "unknown schedule 'linea'; did you mean 'linear'"),
        ({"init": "pyturch"}, "unknown initialisation 'pyturch'; did you mean 'pytorch'"),
        ({"method": "snip", "sparsity": 1.0}, "sparsity is 1.0; it must be a fraction in [0, 1)"),
        ({"method": "snip", "sparsity": -0.1}, "sparsity is -0.1"),
        ({"method": "snip", "sparsity": "90 %"}, "sparsity is '90 %'"),
        ({"method": "dense", "sparsity": 0.5}, "a dense run has sparsity 0, nothing to transfer"),
        ({"transfer": True}, "a dense run has sparsity 0, nothing to transfer"),
        ({"rounds": 3}, "a dense run is not pruned; leave out rounds, or name a method"),
        ({"control": "shuffle"}, "a dense run is not pruned; leave out control"),
        ({"method": "gumbel-softmax", "scoring": 7}, "weights and mask together; scoring 7"),
        ({"recipe": "mnist-warm-up", "epochs": 2}, "warm_up is 5 of 2 epochs"),
        ({"method": "panning", "mix": 3}, "mix is 3; it needs three coefficients of at least 0"),
        (
            {"method": "snip", "mix": [[1, 0, 0]]},
            "a mix belongs to panning or panning-product or panning-masked, not to snip",
        ),
        ({"seed": -1}, "seed is -1; it must be a whole number from 0"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"rounds": 0}, "rounds is 0; it must be a whole number from 1"),
        ({"per_class": 2.5}, "per_class is 2.5"),
        ({"epochs": -1}, "epochs is -1; it must be a whole number from 0"),
        ({"epochs": "5"}, "epochs is '5'"),
        ({"revive": "no"}, "revive is 'no'; it must be true or false"),
        ({"transfer": "no"}, "transfer is 'no'"),
        ({"fixed_batch": 3}, "fixed_batch is 3"),
        ({"precision": "bf1"}, "unknown precision 'bf1'; did you mean 'bf16'?"),
        ({"effective": 1}, "effective is 1; it must be true or false"),
        ({"network": "yes"}, "network is 'yes'; it must be true or false"),
        ({"effective": True}, "a dense run has sparsity 0, nothing to transfer"),
        (
            {"method": "gumbel-softmx"},
            "unknown method 'gumbel-softmx'; did you mean 'gumbel-softmax'",
        ),
        (
            {"method": "prospr", "options": 3},
            "options are 3; they must be names and values, like {steps: 3}",
        ),
        (
            {"method": "prospr", "options": "steps"},
            "options are 'steps'; they must be names and values",
        ),
        (
            {"method": "prospr", "options": None},
            "options are None; they must be names and values",
        ),
        (
            {"method": "prospr", "options": {"step": 1}},
            "unknown option of prospr 'step'; did you mean 'steps'",
        ),
        (
            {"method": "prospr", "options": {"steps": "1"}},
            "option steps of prospr is '1'; it must be int, like 3",
        ),
        ({"method": "prospr", "options": {"steps": 1.5}}, "option steps of prospr is 1.5"),
        (
            {"method": "prospr", "options": {3: 1}},
            "options of prospr are {3: 1}; they must be names and values",
        ),
        ({"options": {"steps": 1}}, "dense has no options, got 'steps'"),
        ({"method": "snip", "options": {"steps": 1}}, "snip has no options, got 'steps'"),
        (
            {"method": "gumbel-softmax", "options": {"steps": 1}},
            "unknown option of gumbel-softmax 'steps'",
        ),
        (
            {"method": "gumbel-softmax", "options": {"epochs": True}},
            "option epochs of gumbel-softmax is True; it must be int",
        ),
        (
            {"method": "gumbel-softmax", "rounds": 5},
            (
                "gumbel-softmax learns weights and mask together; rounds 5 belongs to pruning"
                " before training"
            ),
        ),
        (
            {"method": "gumbel-softmax", "mix": (1, 0, 0)},
            (
                "a mix belongs to panning or panning-product or panning-masked, not to"
                " gumbel-softmax"
            ),
        ),
    ],
)
def test_bad_input_is_named_with_what_is_near(entry, message):
    with pytest.raises(UserError) as error:
        expand([{**TINY, **entry}])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("grid", [{"dataset": "digits"}, ["text"], [None], None, 3])
def test_a_grid_is_a_list_of_entries(grid):
    with pytest.raises(UserError, match="a grid is a list of entries"):
        expand(grid)


def test_a_run_without_a_model_says_so():
    with pytest.raises(UserError, match="a run lacks model, got"):
        expand([{"dataset": "digits"}])


# --- execute ---


def test_the_recipe_takes_the_epochs_the_precision_and_the_seed_of_the_run():
    named = training.RECIPES["cifar"]
    assert Run(**{**TINY, "epochs": None}, recipe="cifar").training_recipe() == named
    assert dataclasses.replace(
        RUN, recipe="cifar", seed=7, precision="bf16"
    ).training_recipe() == dataclasses.replace(named, epochs=2, seed=7, precision="bf16")


def test_the_seed_of_the_scoring_may_be_0(digits):
    """What a mask depends on besides the network: that of ``scoring``, where it is given."""
    model = models.build("lenet300", digits.input_shape, digits.classes, seed=0)

    def mask(**seeds):
        run = Run(**TINY, method="random", sparsity=0.5, **seeds)
        return studies.find_mask(run, model, digits)[0]

    assert same(mask(seed=1, scoring=0), mask(seed=0))
    assert not same(mask(seed=1), mask(seed=0))


def test_a_result_has_every_metric_and_its_numbers_agree(digits):
    found = studies.execute(RUN)
    weights = 64 * 300 + 300 * 100 + 100 * 10
    assert (
        found["prunable_weights"] == weights
        and found["kept_weights"] == round(0.5 * weights)
        and found["density"] == 0.5
    )
    assert (
        0 < found["effective_weights"] <= found["kept_weights"]
        and found["effective_density"] == found["effective_weights"] / weights
    )
    assert (
        found["flops_dense"] == 2 * weights
        and found["flops_nonzero"] == 2 * found["effective_weights"]
    )
    assert (
        0.3 < found["test_accuracy"] <= found["best_test_accuracy"] <= 1
        and 0.3 < found["validation_accuracy"] <= 1
    )  # 0.1 is chance
    assert found["test_accuracy"] == pytest.approx(found["curve"]["test_accuracy"][-1], abs=1e-5)
    assert found["prune_seconds"] >= 0 and found["train_seconds"] >= 0
    assert found["epochs"] == len(found["curve"]["loss"]) == 2 and not found["diverged"]
    assert {name: kept for name, (kept, _) in found["layers"].items()}.keys() == {
        "fc1",
        "fc2",
        "fc3",
    }
    assert sum(kept for kept, _ in found["layers"].values()) == found["kept_weights"]


def test_what_is_on_no_path_is_counted_as_in_the_table_of_the_mask(digits):
    run = dataclasses.replace(RUN, sparsity=0.98, epochs=1)
    found, model = studies.execute(run), prune.models.build("lenet300", digits.input_shape, 10, 0)
    layers = prune.masks.table(model, studies.find_mask(run, model, digits)[0])
    assert (
        found["effective_weights"]
        == layers.effective.sum()
        < found["kept_weights"]
        == layers.kept.sum()
    )
    assert (
        found["flops_nonzero"]
        == layers.flops_nonzero.sum()
        < found["flops_dense"]
        == layers.flops_dense.sum()
    )
    assert found["effective_density"] == layers.effective.sum() / layers.weights.sum()
    assert found["layers"] == {row.layer: [row.kept, row.effective] for row in layers.itertuples()}


@pytest.mark.parametrize(
    "run",
    [Run(**TINY), dataclasses.replace(RUN, method="panning", rounds=3, transfer=True)],
    ids=["dense", "panning"],
)
def test_the_same_run_gives_the_same_numbers(run):
    first, second = studies.execute(run), studies.execute(run)
    assert json.loads(json.dumps(first, allow_nan=False))["test_accuracy"] == first["test_accuracy"]
    assert {k: v for k, v in first.items() if not k.endswith("_seconds")} == {
        k: v for k, v in second.items() if not k.endswith("_seconds")
    }
    other = studies.execute(dataclasses.replace(run, seed=1))
    assert other["curve"]["loss"] != first["curve"]["loss"]
    assert (
        "transfer" not in first
        or len(first["follow"]["loss"]) == len(first["follow"]["sparsity_now"]) == 4
    )


def test_a_run_of_no_epochs_is_only_pruned():
    found, trained = (studies.execute(dataclasses.replace(RUN, epochs=epochs)) for epochs in (0, 1))
    assert (found["epochs"], found["engine"], found["test_accuracy"], found["train_seconds"]) == (
        0,
        "none",
        None,
        0,
    ) and "curve" not in found
    assert all(
        found[name] == trained[name] for name in ("layers", "effective_weights", "flops_nonzero")
    )
    assert tidy([{"key": "", "run": RUN.canonical(), "metrics": found}]).test_accuracy.isna().all()


def test_returns_are_what_the_environment_pays_and_change_nothing_else():
    run = dataclasses.replace(RUN, method="panning-agent", policy="random", rounds=4, sparsity=0.9)
    plain, found = studies.execute(run), studies.execute(dataclasses.replace(run, returns=True))
    assert (
        found["return"] == pytest.approx(sum(found["rewards"]), rel=1e-5)
        and len(found["rewards"]) == 4
        and max(found["rewards"]) < 0
    )
    assert {
        k: v for k, v in found.items() if k not in ("return", "rewards") and "seconds" not in k
    } == {k: v for k, v in plain.items() if "seconds" not in k}
    assert (
        np.shape(found["mixes"]) == (4, 3)
        and 0 <= np.min(found["mixes"]) < np.max(found["mixes"]) <= 2
    )
    both = studies.execute(dataclasses.replace(run, returns=True, transfer=True))
    assert both["rewards"] == found["rewards"] and len(both["follow"]["loss"]) == 5


@pytest.mark.parametrize("control", ["shuffle", "reinitialise", "invert"])
def test_a_control_changes_what_it_says(control):
    plain, found = studies.execute(RUN), studies.execute(dataclasses.replace(RUN, control=control))
    assert (
        found["curve"]["loss"] != plain["curve"]["loss"]
        and found["kept_weights"] == plain["kept_weights"]
    )
    same_counts = [kept for kept, _ in found["layers"].values()] == [
        kept for kept, _ in plain["layers"].values()
    ]
    assert same_counts == (control != "invert")


LEARNING = {
    "gumbel-softmax": {"epochs": 3},
    "iterative-magnitude": {"epochs": 2, "rounds": 2},
    "trained-magnitude": {"epochs": 2},
}


@pytest.mark.parametrize("method", registry.learners())
def test_a_learned_mask_is_trained_on_and_the_network_is_recorded(method, digits):
    run = Run(
        **{**TINY, "epochs": 3},
        method=method,
        sparsity=0.9,
        seed=1,
        options=LEARNING[method],
        network=True,
    )
    found = json.loads(json.dumps(studies.execute(run), allow_nan=False))
    assert (
        0 < found["kept_weights"] == found["effective_weights"] <= 5_020
        and found["events"] == []
        and found["prune_seconds"] > 0
    )
    assert found["epochs"] == 3 and not found["diverged"] and found["test_accuracy"] > 0.3
    model, mask = networks.rebuild(found["network"])
    assert (found["network"]["model"], found["network"]["dataset"]) == (
        "lenet300",
        "digits",
    ) and prune.masks.count(mask) == found["effective_weights"]
    assert training.accuracy(model.eval()(digits.test.x), digits.test.y) == found["test_accuracy"]
    again = studies.execute(dataclasses.replace(run, network=False))
    assert {k: v for k, v in again.items() if not k.endswith("_seconds")} == {
        k: v for k, v in found.items() if not k.endswith("_seconds") and k != "network"
    }


def test_new_weights_under_a_learned_mask(digits):
    """The same places, which begin at another loss."""
    run = Run(
        **TINY, method="trained-magnitude", sparsity=0.95, options={"epochs": 4}, network=True
    )
    plain, found = (
        studies.execute(run),
        studies.execute(dataclasses.replace(run, control="reinitialise")),
    )
    places = [
        {name: layer["places"] for name, layer in each["network"]["weights"].items()}
        for each in (plain, found)
    ]
    assert [kept for kept, _ in found["layers"].values()] == [
        kept for kept, _ in plain["layers"].values()
    ]
    assert places[0] == places[1] and found["curve"]["loss"][0] > plain["curve"]["loss"][0]


@pytest.mark.parametrize("method", ["dense", "snip"])
def test_the_network_of_any_run_is_recorded_if_asked_for(method, digits):
    run = Run(**TINY, method=method, sparsity=0.9 if method == "snip" else 0, network=True)
    found = studies.execute(run)
    model, mask = networks.rebuild(found["network"])
    assert (
        training.accuracy(model.eval()(digits.test.x), digits.test.y) == found["test_accuracy"]
        and prune.masks.count(mask) == found["effective_weights"]
    )
    assert "network" not in studies.execute(dataclasses.replace(run, network=False))
    assert tidy([{"key": run.key(), "run": run.canonical(), "metrics": found}]).method.tolist() == [
        method
    ]


def test_a_diverged_run_is_a_result_that_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(training.RECIPES, "mnist", training.Recipe(lr=1e12))
    found = studies.execute(dataclasses.replace(RUN, network=True))
    assert found["diverged"] and found["epochs"] <= 2 and found["curve"]["loss"][-1] is None
    assert found["test_accuracy"] == found["validation_accuracy"] == 0  # no answer is no luck
    line = provenance.line(RUN, found, 1.0)
    assert "1 of 2 diverged" in sources.ledger(tmp_path, [line, {**line, "metrics": {}}]).line
    assert "the training diverged" in words._told(RUN, found)


# --- many runs at once ---


def test_runs_with_an_engine_of_ones_choice_train_once_each(monkeypatch):
    """The second can not be trained, and the first must not learn twice for that."""
    runs = [dataclasses.replace(run, engine="dense") for run in TOGETHER[:2]]
    assert [len(task) for task in prune.tasks(runs, "cuda")] == [1, 1]
    train, begun = training.train, []

    def once(model, *rest):
        begun.append(model)
        if len(begun) == 2:
            raise UserError("no memory")
        return train(model, *rest)

    monkeypatch.setattr(training, "train", once)
    with pytest.raises(UserError, match="no memory"):
        studies.execute_together(runs, "cpu")
    assert len(begun) == len({id(model) for model in begun}) == 2


#: so few weights are gone that the dense engine trains them, alone too
TOGETHER = [
    dataclasses.replace(RUN, method=method, sparsity=0.1, seed=seed, rounds=1)
    for method in ("snip", "panning")
    for seed in (0, 3)
]


def test_runs_done_together_are_the_runs_done_alone():
    """On the CPU. The orders of the images, the tables and the accuracies are those of each run;
    the last has its transfer too.
    """
    runs = [*TOGETHER, dataclasses.replace(TOGETHER[-1], rounds=3, transfer=True)]
    for run, found in zip(runs, studies.execute_together(runs, "cpu"), strict=True):
        alone = studies.execute(run)
        assert alone.pop("stack") == 1 and found.pop("stack") == 5
        assert found["curve"].pop("loss") == pytest.approx(alone["curve"].pop("loss"), rel=1e-4)
        assert {k: v for k, v in found.items() if not k.endswith("_seconds")} == {
            k: v for k, v in alone.items() if not k.endswith("_seconds")
        }
        json.dumps(found, allow_nan=False)


@pytest.fixture
def refuse(monkeypatch):
    """``refuse(run)``: this one can not be pruned."""

    def add(bad, find=studies.find_mask):
        def find_mask(run, *others):
            if run == bad:
                raise RuntimeError("no mask for this one")
            return find(run, *others)

        monkeypatch.setattr(prune, "find_mask", find_mask)

    return add


def test_a_run_that_can_not_be_pruned_gives_its_error_and_the_others_go_on(refuse):
    refuse(TOGETHER[1])
    found = studies.execute_together(TOGETHER, "cpu")
    assert [isinstance(each, RuntimeError) for each in found] == [False, True, False, False]
    assert [found[k]["stack"] for k in (0, 2, 3)] == [3] * 3
    refuse(TOGETHER[0])
    (error,) = studies.execute_together(TOGETHER[:1], "cpu")
    assert str(error) == "no mask for this one"


def test_what_the_memory_does_not_hold_is_trained_in_halves(monkeypatch):
    def train(models, *others, train=prune.stacked.train):
        if len(models) > 3:
            raise torch.OutOfMemoryError("too much")
        return train(models, *others)

    monkeypatch.setattr(prune.stacked, "train", train)
    runs = [dataclasses.replace(RUN, seed=seed, sparsity=0.4) for seed in range(5)]
    found = studies.execute_together(runs, "cpu")
    assert [each["stack"] for each in found] == [2, 2, 3, 3, 3]
    assert [each["test_accuracy"] for each in found] == [
        studies.execute(run)["test_accuracy"] for run in runs
    ]


def test_networks_that_can_not_be_stacked_are_trained_one_after_another(monkeypatch):
    class Shifted(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x) - x.sum()  # over the whole stack

    build = prune.models.MODELS["lenet300"]
    monkeypatch.setitem(
        prune.models.MODELS,
        "lenet300",
        lambda shape, classes: Shifted(OrderedDict(build(shape, classes).named_children())),
    )
    found = studies.execute_together([Run(**TINY), Run(**TINY, seed=1)], "cpu")
    assert [(each["stack"], each["test_accuracy"] > 0.3) for each in found] == [(1, True)] * 2


def test_runs_of_one_seed_are_done_together_without_changing_a_bit():
    runs = [
        dataclasses.replace(RUN, method=method, sparsity=sparsity, rounds=1)
        for method, sparsity in (("snip", 0.1), ("panning", 0.9), ("random", 0.95))
    ]
    for run, found in zip(runs, studies.execute_together(runs, "cpu"), strict=True):
        alone = studies.execute(run)
        assert alone.pop("stack") == 1 and found.pop("stack") == 3
        assert {k: v for k, v in found.items() if not k.endswith("_seconds")} == {
            k: v for k, v in alone.items() if not k.endswith("_seconds")
        }


def test_on_cuda_runs_of_one_kind_go_together_and_on_the_cpu_linear_networks_of_one_seed(
    monkeypatch,
):
    monkeypatch.setattr(prune, "STACK", 2)
    a, b = Run("digits", "lenet300"), Run("digits", "lenet300", epochs=3)
    runs = [
        a,
        b,
        dataclasses.replace(a, seed=1),
        dataclasses.replace(b, precision="bf16"),
        dataclasses.replace(a, method="snip", sparsity=0.5),
        dataclasses.replace(b, seed=2, init="panning"),
        dataclasses.replace(a, model="resnet20"),
        dataclasses.replace(a, recipe="cifar"),
    ]
    assert prune.tasks(runs, "cpu") == [
        [runs[0], runs[4]],
        *([runs[k]] for k in (1, 2, 3, 5, 6, 7)),
    ]
    assert prune.tasks(runs, "cuda:0") == [
        [runs[0], runs[2]],
        [runs[4]],
        [runs[1], runs[5]],
        [runs[3]],
        [runs[6]],
        [runs[7]],
    ]


def test_learners_are_done_one_at_a_time():
    """Each trains its network in a process of its own before what is left could be stacked."""
    a = Run("digits", "lenet300", "snip", 0.9)
    learners = [dataclasses.replace(a, method=method) for method in registry.learners()]
    runs = [a, *learners, dataclasses.replace(a, method="magnitude")]
    for device in ("cpu", "cuda:0"):
        assert prune.tasks(runs, device) == [[a, runs[-1]], *([run] for run in learners)]


# --- profiles ---


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout with one study; in this process ``studies`` takes it for its own."""
    made = Checkout(tmp_path / "checkout")
    made.notebook(STUDY, PARAMETERS)
    monkeypatch.setattr(panning_core, "ROOT", made.root)  # of panning_core.results
    monkeypatch.setattr(profiles, "ROOT", made.root)
    monkeypatch.delenv("PANNING_RESULTS", raising=False)
    return made


@pytest.mark.parametrize(
    "content, message",
    [
        ("a: [", "is not YAML"),
        ("- 1", "must map each study to its parameters and grid"),
        ("{}", "must map each study to its parameters and grid"),
        ("01_tiny: 3", "must map each study to its parameters and grid"),
        ("01_tine: {}", "unknown study in tiny.yaml '01_tine'; did you mean '01_tiny'"),
        (
            "01_tiny: {gird: []}",
            "unknown entry of 01_tiny in tiny.yaml 'gird'; did you mean 'grid'",
        ),
    ],
)
def test_a_bad_profile_is_one_sentence(checkout, content, message):
    checkout.profile(content)
    with pytest.raises(UserError) as error:
        studies.runs(STUDY, "tiny")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_profiles_and_studies_are_named(checkout):
    checkout.profile({STUDY: {}})
    with pytest.raises(UserError, match="unknown profile 'tinny'; did you mean 'tiny'"):
        studies.runs(STUDY, "tinny")
    with pytest.raises(
        UserError, match="unknown study in profile tiny '01_tin'; did you mean '01_tiny'"
    ):
        studies.runs("01_tin", "tiny")
    assert studies.runs(STUDY, "tiny") == []


def test_results_go_where_the_environment_says(checkout, monkeypatch, tmp_path):
    assert studies.folder(STUDY, "tiny") == checkout.root / "results" / "tiny" / STUDY
    monkeypatch.setenv("PANNING_RESULTS", str(tmp_path / "elsewhere"))
    assert studies.folder(STUDY, "tiny") == tmp_path / "elsewhere" / "tiny" / STUDY


# --- kinds of run ---


AGENT = {
    "kind": "agent",
    "name": "mine",
    "networks": "lenet300/digits",
    "init": "pytorch",
    "steps": 60,
    "random_steps": 20,
    "rounds": 5,
    "pool": 2,
    "per_class": 2,
    "width": 8,
    "seed": [0, 1],
}


def test_a_study_trains_its_agents_once_and_deploys_them(checkout):
    run = {**TINY, "method": "panning-agent", "sparsity": 0.9, "rounds": 3}
    checkout.profile({STUDY: {"grid": [AGENT, {**run, "policy": ["mine", "random"]}]}})
    first, second, *lines = studies.sweep(STUDY, "tiny", jobs=1)
    names = [line["metrics"]["policy"] for line in (first, second)]
    assert [line["run"]["policy"] for line in lines] == [*names, "random"] and len(set(names)) == 2
    assert [line["kind"] for line in (first, *lines)] == ["agent", *["prune"] * 3]
    assert set(studies.entry_names(STUDY, "tiny").items()) == {
        (line["key"], "mine") for line in (first, second)
    }
    assert len(first["metrics"]["episodes"]["return"]) == 12
    assert [row["steps"] for row in first["metrics"]["evaluations"]] == [0] * 4 + [60] * 4

    place = studies.folder(STUDY, "tiny")
    policy, ledger = place / "policies" / f"{names[0]}.npz", place / "runs.jsonl"
    assert prune.policies.load(names[0]).digest() == first["metrics"]["digest"]
    assert prune.policies.load(names[0]).card["steps"] == 60
    before, recorded = policy.stat().st_mtime_ns, ledger.read_text()
    assert studies.sweep(STUDY, "tiny", jobs=1) == [first, second, *lines]
    assert policy.stat().st_mtime_ns == before and ledger.read_text() == recorded
    assert {path.suffix for path in policy.parent.iterdir()} == {".npz", ".lock"}
    # What is lost is trained again, and is the same.
    policy.unlink()
    studies.sweep(STUDY, "tiny", jobs=1)
    assert prune.policies.load(names[0]).digest() == first["metrics"]["digest"]
    assert ledger.read_text() == recorded


def test_an_agent_that_another_sweep_trained_meanwhile_is_not_trained_again(checkout, monkeypatch):
    from panning_core.agent import learning

    checkout.profile({STUDY: {"grid": [{**AGENT, "seed": 0}]}})
    (run,), ledger = (
        studies.runs(STUDY, "tiny"),
        Ledger(studies.folder(STUDY, "tiny") / "runs.jsonl"),
    )
    (line,) = sweep.perform([run], "cpu", ledger)
    assert line in ledger.rows()
    assert not learning.checkpoint(run, ledger.path.parent / "policies").exists()
    monkeypatch.setattr(learning, "learn", lambda *_: 1 / 0)
    assert sweep.perform([run], "cpu", ledger) == [] and studies.sweep(STUDY, "tiny") == [line]


def test_an_agent_that_fails_is_recorded_and_stops_no_other(checkout, monkeypatch):
    from panning_core.agent import learning

    learn = learning.learn
    monkeypatch.setattr(
        learning,
        "learn",
        lambda training, *rest: learn(training, *rest) if training.seed else 1 / 0,
    )
    checkout.profile({STUDY: {"grid": [AGENT]}})
    with pytest.raises(UserError, match="1 of 2 runs of 01_tiny failed.*seed0.*ZeroDivisionError"):
        studies.sweep(STUDY, "tiny", jobs=1)
    ledger = Ledger(studies.folder(STUDY, "tiny") / "runs.jsonl")
    assert [row["run"].get("seed") for row in ledger.rows()] == [1] and len(ledger.failures()) == 1
    monkeypatch.undo()


TOY = {"kind": "toy", "seed": [0, 1], "steps": 20}


def test_a_study_trains_its_toys_once(checkout, monkeypatch):
    checkout.profile({STUDY: {"grid": [TOY, {"kind": "toy", "steps": 15, "budget": [30, 20]}]}})
    lines = studies.sweep(STUDY, "tiny", jobs=1)
    assert [line["run"] for line in lines] == [
        {"steps": 20},
        {"seed": 1, "steps": 20},
        {"steps": 15, "budget": 30},
        {"steps": 15, "budget": 20},
    ]
    for line in lines:
        again = toy.Toy(**line["run"]).execute(base.Context())
        assert line["metrics"] == json.loads(json.dumps(again))
    assert {"commit", "seconds", "finished", "versions"} <= lines[0]["provenance"].keys()
    ledger = studies.folder(STUDY, "tiny") / "runs.jsonl"
    before = ledger.read_bytes()
    assert before.count(b"\n") == 4
    monkeypatch.setattr(toy, "run", lambda toy: 1 / 0)
    assert studies.sweep(STUDY, "tiny", jobs=1) == lines and ledger.read_bytes() == before
    checkout.profile({STUDY: {"grid": [{"kind": "toy", "seed": 1, "steps": 20}]}})
    # What the ledger holds besides is left out.
    assert studies.sweep(STUDY, "tiny") == [lines[1]]


def test_a_toy_of_two_entries_is_done_once(checkout):
    checkout.profile({STUDY: {"grid": [TOY, {**TOY, "seed": [1, 1], "temperature": 3}]}})
    assert [line["run"].get("seed", 0) for line in studies.sweep(STUDY, "tiny", jobs=1)] == [0, 1]
    assert (studies.folder(STUDY, "tiny") / "runs.jsonl").read_bytes().count(b"\n") == 2


def test_a_run_that_fails_is_recorded_stops_no_other_and_is_tried_again(checkout, monkeypatch):
    run_toy = toy.run
    monkeypatch.setattr(toy, "run", lambda toy: run_toy(toy) if toy.seed else 1 / 0)
    # The kinds are done in the order of the grid, and the failure of one does not stop the next.
    checkout.profile({STUDY: {"grid": [TOY, {**TINY, "seed": 0}]}})
    with pytest.raises(UserError, match='1 of 3 runs of 01_tiny failed.*"steps": 20.*ZeroDiv'):
        studies.sweep(STUDY, "tiny", jobs=1)
    ledger = Ledger(studies.folder(STUDY, "tiny") / "runs.jsonl")
    assert [row["kind"] for row in ledger.rows()] == ["toy", "prune"]
    assert len(ledger.failures()) == 1 and "in _lines" in ledger.failures()[0]["traceback"]
    monkeypatch.undo()
    monkeypatch.setattr(panning_core, "ROOT", checkout.root)
    monkeypatch.setattr(profiles, "ROOT", checkout.root)
    assert len(studies.sweep(STUDY, "tiny", jobs=1)) == 3 and not ledger.failures()


def test_an_agent_is_named_by_its_entry_alone_or_with_its_seed():
    run = {**TINY, "method": "panning-agent", "sparsity": 0.9}

    def chosen(policy):
        runs = studies.expand([AGENT, {"name": "tiny", **TINY}, {**run, "policy": policy}])
        return [run.policy for run in runs if getattr(run, "policy", None)]

    first, second = chosen("mine")
    assert chosen("mine/0") == [first] and chosen(["mine/1", "random"]) == [second, "random"]
    for wrong in ("mine/2", "tiny", "tiny/0", ["mine"], 0):
        with pytest.raises(UserError, match="unknown policy"):
            chosen([wrong])


@pytest.mark.parametrize(
    "grid, message",
    [
        ([{"kind": "prun"}], "unknown kind of run 'prun'; did you mean 'prune'?"),
        ([{"kind": 3}], "unknown kind of run 3; known: "),
        (
            [{"kind": "toy", "sead": 1}],
            "unknown field of a run of the kind toy 'sead'; did you mean",
        ),
        ([{**TOY, "seed": [0, -1]}], "seed of a toy is -1; it must be a whole number from 0"),
        (
            [TOY, {"kind": "toy", "lr": "fast"}],
            "lr of a toy is 'fast'; it must be a number above 0",
        ),
        (
            [AGENT, AGENT],
            "the name of an entry of a grid is 'mine'; it must be a text, and no two",
        ),
        ([{**AGENT, "name": 3}], "the name of an entry of a grid is 3; it must be a text"),
        ([{**AGENT, "seed": []}], "seed of a run of the kind agent is an empty list"),
        ([{"kind": "agent", "name": "mine"}], "a run of the kind agent lacks networks, got"),
        (
            [{**AGENT, "step": 5}],
            "unknown field of a run of the kind agent 'step'; did you mean 'steps'",
        ),
        (
            [{**AGENT, "networks": "lenet/mnist"}],
            "networks has 'lenet/mnist'; a network is MODEL/DATA",
        ),
        (
            [AGENT, {**TINY, "method": "panning-agent", "sparsity": 0.9, "policy": "mien"}],
            "unknown policy 'mien'; did you mean 'mine'",
        ),
        (
            [AGENT, {**TINY, "method": "snip", "sparsity": 0.9, "policy": "mine"}],
            "a policy belongs to panning-agent, not to snip",
        ),
    ],
)
def test_a_bad_run_of_any_kind_is_named_before_any_is_done(checkout, grid, message):
    checkout.profile({STUDY: {"grid": grid}})
    with pytest.raises(UserError) as error:
        studies.sweep(STUDY, "tiny", jobs=1)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (studies.folder(STUDY, "tiny") / "runs.jsonl").exists()


def test_a_run_that_knows_no_gpu_is_recorded_where_it_was_done():
    (line,) = studies.perform([toy.Toy(steps=20)], "cuda")
    assert line["metrics"] and line["provenance"]["device"] == "cpu"


def test_a_kind_is_found_by_its_name_alone(monkeypatch):
    monkeypatch.setitem(base.KINDS, "odd", "panning_core.runs.toy.Toy")
    assert base.kind("odd") is toy.Toy
    monkeypatch.setitem(base.KINDS, "odd", "package_that_is_missing.Odd")
    with pytest.raises(UserError, match="the kind odd need the package package_that_is_missing"):
        base.kind("odd")


def test_an_older_ledger_of_one_kind_is_merged(checkout, tmp_path, capsys, monkeypatch):
    """Agents and toys once had ledgers of their own, whose lines did not say their kind."""
    checkout.profile({STUDY: {"grid": [TOY, {**TINY, "seed": [0, 1]}]}})
    lines = studies.sweep(STUDY, "tiny", jobs=1)
    ledger = studies.folder(STUDY, "tiny") / "runs.jsonl"
    ledger.unlink()
    for kind in ("toy", "prune"):
        old = [
            {k: v for k, v in line.items() if k != "kind"} for line in lines if line["kind"] == kind
        ]
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
        assert studies.merge(STUDY, "tiny", tmp_path / f"{kind}.jsonl") == 2
        assert studies.merge(STUDY, "tiny", tmp_path / f"{kind}.jsonl") == 0
    assert studies.sweep(STUDY, "tiny") == lines and len(Ledger(ledger).rows()) == 4


def test_a_study_may_say_its_runs_beside_its_notebook(checkout):
    place = checkout.root / "notebooks" / f"{STUDY}.yaml"
    place.write_text(json.dumps({"small": {"grid": [TOY]}, "none": {}}))
    assert [run.seed for run in studies.runs(STUDY, "small")] == [0, 1]
    assert studies.profile("none") == {STUDY: {}}
    with pytest.raises(UserError, match="unknown profile 'smal'; did you mean 'small'"):
        studies.profile("smal")
    checkout.profile({STUDY: {"grid": []}}, "small")
    with pytest.raises(
        UserError, match="01_tiny is in the profile small of notebooks/01_tiny.yaml"
    ):
        studies.profile("small")
    place.rename(place.with_stem("02_gone"))
    with pytest.raises(UserError, match="unknown study in 02_gone.yaml '02_gone'"):
        studies.profile("none")


# --- sweeps ---


@pytest.fixture
def counted(monkeypatch):
    """The runs that were executed, in their order; instant, and sparsity 0.66 fails. One job works
    in this process.
    """
    done = []

    def execute(run, device):
        done.append(run)
        if run.sparsity == 0.66:
            raise RuntimeError("this one fails")
        return {"test_accuracy": run.seed / 10}

    monkeypatch.setattr(prune, "execute", execute)
    return done


def grid(**fields):
    return {STUDY: {"grid": [{**TINY, "method": "random", "sparsity": 0.5, **fields}]}}


def test_nothing_is_done_twice_and_results_come_in_the_order_of_the_grid(checkout, counted):
    checkout.profile(grid(seed=[2, 0]))
    assert [row["metrics"]["test_accuracy"] for row in studies.sweep(STUDY, "tiny", 1)] == [
        0.2,
        0.0,
    ]
    checkout.profile(grid(seed=[3, 0, 2, 1]))
    rows = studies.sweep(STUDY, "tiny", 1)
    assert [row["run"].get("seed", 0) for row in rows] == [3, 0, 2, 1] and [
        run.seed for run in counted
    ] == [2, 0, 3, 1]
    before = checkout.ledger(STUDY).read_bytes()
    assert (
        studies.sweep(STUDY, "tiny", 1) == rows
        and len(counted) == 4
        and checkout.ledger(STUDY).read_bytes() == before
    )
    checkout.profile(grid(seed=[1]))
    assert [row["metrics"]["test_accuracy"] for row in studies.sweep(STUDY, "tiny", 1)] == [
        0.1
    ]  # what the ledger holds besides is left out


def test_what_another_sweep_has_finished_meanwhile_is_left_out(checkout, counted, monkeypatch):
    checkout.profile(grid(seed=[0, 1, 2, 3]))
    wanted, execute = studies.runs(STUDY, "tiny"), prune.execute

    def and_the_other_sweep(run, device):
        if run.seed == 0:
            Ledger(checkout.ledger(STUDY)).append(
                *(
                    {
                        "key": each.key(),
                        "run": each.canonical(),
                        "metrics": {"test_accuracy": 1.0},
                    }
                    for each in wanted[2:]
                )
            )
        return execute(run, device)

    monkeypatch.setattr(prune, "execute", and_the_other_sweep)
    assert [row["metrics"]["test_accuracy"] for row in studies.sweep(STUDY, "tiny", 1)] == [
        0.0,
        0.1,
        1.0,
        1.0,
    ] and [run.seed for run in counted] == [0, 1]


def test_a_run_that_kills_its_worker_is_recorded_and_stops_no_other(checkout, counted, monkeypatch):
    """What the workers really do is told in test_workers.py; here two jobs would be two processes
    that know no ``counted``.
    """

    def spread(work, tasks, jobs):
        for number, task in enumerate(tasks):
            yield task, sweep.WorkerDied("killed") if number == 1 else work(task)

    monkeypatch.setattr(sweep, "spread", spread)
    checkout.profile(grid(seed=[0, 1, 2]))
    with pytest.raises(
        UserError, match=r'1 of 3 runs of 01_tiny failed .*"seed": 1.*WorkerDied: killed'
    ):
        studies.sweep(STUDY, "tiny", 2)
    ledger = Ledger(checkout.ledger(STUDY))
    assert [row["run"].get("seed", 0) for row in ledger.rows()] == [0, 2] and ledger.failures()[0][
        "error"
    ].endswith("WorkerDied: killed")
    assert ledger.failures()[0]["provenance"].keys() == ledger.rows()[0]["provenance"].keys() - {
        "data"
    }
    monkeypatch.undo()


def test_a_line_says_what_produced_it(checkout):
    checkout.profile(grid())
    (row,) = studies.sweep(STUDY, "tiny", 1)
    origin = row["provenance"]
    assert row["key"] == expand(grid()[STUDY]["grid"])[0].key() and row["run"]["sparsity"] == 0.5
    assert (
        origin["device"] == "cpu"
        and origin["threads"] == 1
        and origin["versions"]["torch"] == torch.__version__
    )
    assert (
        origin["data"]["title"] == "scikit-learn digits"
        and origin["seconds"] > 0
        and {"commit", "dirty", "finished"} <= origin.keys()
    )


@pytest.mark.parametrize("share", [1, 8])
def test_a_failing_run_is_recorded_stops_no_other_and_is_tried_again(
    checkout, counted, monkeypatch, share
):
    def breaks(*_):
        raise RuntimeError("one of them fails")

    monkeypatch.setattr(prune, "SHARE", share)
    monkeypatch.setattr(prune, "execute_together", breaks)
    checkout.profile(grid(sparsity=[0.5, 0.66, 0.75], seed=[0, 1]))
    with pytest.raises(
        UserError, match=r'2 of 6 runs of 01_tiny failed .*"sparsity": 0.66.*this one fails'
    ):
        studies.sweep(STUDY, "tiny", 1)
    ledger = Ledger(checkout.ledger(STUDY))
    assert len(ledger.rows()) == 4 and len(counted) == 6
    assert [(row["run"]["sparsity"], row["error"]) for row in ledger.failures()] == [
        (0.66, "RuntimeError: this one fails")
    ] * 2
    assert all("in execute" in row["traceback"] for row in ledger.failures())
    monkeypatch.setattr(
        prune, "execute", lambda run, device: counted.append(run) or {"test_accuracy": 1.0}
    )
    assert len(studies.sweep(STUDY, "tiny", 1)) == 6
    assert Counter(run.sparsity for run in counted) == {0.5: 2, 0.66: 4, 0.75: 2}


def test_a_sweep_on_cuda_records_a_line_for_every_run_of_a_stack(checkout, monkeypatch, refuse):
    """The CPU stands in for the device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(
        prune,
        "execute_together",
        lambda runs, device, together=studies.execute_together: together(runs, "cpu"),
    )
    checkout.profile(grid(method=["random", "magnitude"], seed=[0, 1]))
    refuse(studies.runs(STUDY, "tiny")[2])
    with pytest.raises(UserError, match="1 of 4 runs of 01_tiny failed.*no mask for this one"):
        studies.sweep(STUDY, "tiny", device="cuda")
    rows = Ledger(checkout.ledger(STUDY)).rows()
    assert [
        (row["run"]["method"], row["run"].get("seed", 0), row["metrics"]["stack"]) for row in rows
    ] == [("random", 0, 3), ("random", 1, 3), ("magnitude", 1, 3)]
    assert all(
        row["provenance"]["device"] == "cuda"
        and row["provenance"]["data"]["title"] == "scikit-learn digits"
        for row in rows
    )
    (failure,) = Ledger(checkout.ledger(STUDY)).failures()
    assert (
        failure["error"] == "RuntimeError: no mask for this one"
        and "in find_mask" in failure["traceback"]
    )


def test_a_grid_for_cuda_is_left_to_it_and_its_lines_are_read_everywhere(
    checkout, counted, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(
        prune,
        "execute_together",
        lambda runs, device: [studies.execute(run, device) for run in runs],
    )
    section = grid(seed=[0, 1])
    section[STUDY]["cuda"] = [
        {**TINY, "method": "snip", "sparsity": 0.5, "seed": [0, 1]},
        {**TINY, "method": "random", "sparsity": 0.5},
    ]
    checkout.profile(section)
    assert [(run.method, run.seed) for run in studies.runs(STUDY, "tiny")] == [
        ("random", 0),
        ("random", 1),
        ("snip", 0),
        ("snip", 1),
    ]
    assert len(studies.sweep(STUDY, "tiny", 1)) == 2 and {run.method for run in counted} == {
        "random"
    }
    assert len(studies.sweep(STUDY, "tiny", 1, "cuda")) == 4 and [
        run.method for run in counted[2:]
    ] == [
        "snip",
        "snip",
    ]  # random was done
    assert [row["run"]["method"] for row in studies.sweep(STUDY, "tiny", 1)] == [
        "random",
        "random",
        "snip",
        "snip",
    ] and len(counted) == 4
    del section[STUDY]["grid"]
    checkout.profile(section)
    assert not studies.runs(STUDY, "tiny", "cpu") and len(studies.runs(STUDY, "tiny", "cuda")) == 3
    section[STUDY]["cuda"] = [{**TINY, "metod": "snip"}]
    checkout.profile(section)
    with pytest.raises(UserError, match="unknown field of a run 'metod'"):
        studies.runs(STUDY, "tiny")


def command_line(monkeypatch, *arguments):
    with pytest.raises(SystemExit) as exit_:
        obey(lambda: main(["sweep", *arguments]))
    return exit_.value.code


def test_a_failing_run_of_its_own_making_exits_with_2(checkout, monkeypatch, capsys):
    """LeNet-5 wants 16x16 pixels; digits have 8x8. The other run, after it, is done."""
    checkout.profile(grid(model=["lenet5", "lenet300"]))
    assert command_line(monkeypatch, STUDY, "--profile", "tiny", "--jobs", "1") == 2
    told = capsys.readouterr().err
    assert (
        "error: 1 of 2 runs of 01_tiny failed" in told
        and "at least 16x16 pixels" in told
        and "Traceback" not in told
    )
    assert [row["run"]["model"] for row in Ledger(checkout.ledger(STUDY)).rows()] == ["lenet300"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("01_tin",), "did you mean '01_tiny'"),
        ((STUDY, "--profile", "tinny"), "did you mean 'tiny'"),
        ((STUDY, "--jobs", "0"), "'0' is no whole number from 1"),
        ((STUDY, "--device", "cuda"), "PyTorch sees no CUDA device"),
        ((STUDY, "--merge", "nowhere.jsonl"), "nowhere.jsonl: no such ledger"),
    ],
)
def test_bad_arguments_exit_with_2_before_any_work(
    checkout, counted, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkout.profile(grid())
    profile = () if "--profile" in arguments else ("--profile", "tiny")
    assert command_line(monkeypatch, *arguments, *profile) == 2
    told = capsys.readouterr().err
    assert message in told and told.startswith("error: ") and told.count("\n") == 1
    assert not counted and not checkout.ledger(STUDY).exists()


def test_a_results_folder_that_can_not_be_written_is_found_before_any_work(
    checkout, counted, monkeypatch, capsys
):
    (checkout.root / "file").write_text("not a folder")
    monkeypatch.setenv("PANNING_RESULTS", "file")
    checkout.profile(grid())
    assert command_line(monkeypatch, STUDY, "--profile", "tiny", "--jobs", "1") == 2
    assert "can not be written" in capsys.readouterr().err and not counted


def test_a_ledger_of_another_machine_is_merged_by_the_command(
    checkout, counted, monkeypatch, capsys, tmp_path
):
    checkout.profile(grid(seed=[0, 1, 2]))
    for run in studies.runs(STUDY, "tiny"):
        Ledger(tmp_path / "other.jsonl").append(
            {"key": run.key(), "run": run.canonical(), "metrics": {"test_accuracy": 0.5}}
        )
    assert (
        command_line(
            monkeypatch, STUDY, "--profile", "tiny", "--merge", str(tmp_path / "other.jsonl")
        )
        == 0
    )
    assert "3 new runs" in capsys.readouterr().out
    assert len(studies.sweep(STUDY, "tiny", 1)) == 3 and not counted


# --- kill -9 ---


def tables(rows):
    """Every number of a study as CSV, but for what the clock says."""
    runs = tidy(rows)
    return runs.drop(columns=[c for c in runs if c.endswith("_seconds")]).to_csv(
        index=False
    ), accuracy_table(runs).to_csv(index=False)


def test_after_kill_9_the_same_command_ends_as_if_nothing_had_happened(
    checkout, monkeypatch, tmp_path
):
    """Killed with its workers when some runs are recorded, and again as if in the middle of a
    line.
    """
    checkout.core().profile(grid(method=["random", "magnitude"], epochs=30, seed=[0, 1, 2, 3]))
    command = checkout.command(
        "-m", "panning_core", "sweep", STUDY, "--profile", "tiny", "--jobs", "2"
    )
    ledger = checkout.ledger(STUDY)
    process = subprocess.Popen(**command)
    try:
        deadline = time.monotonic() + 600
        while not (ledger.exists() and ledger.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    before = ledger.read_bytes()
    recorded = before[: before.rfind(b"\n") + 1]
    assert process.returncode == -signal.SIGKILL and 2 <= recorded.count(b"\n") < 8
    ledger.write_bytes(recorded + b'{"key": "half a li')

    again = subprocess.run(**command, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "8 runs" in again.stdout and "the last line is torn" in again.stderr
    assert ledger.read_bytes().startswith(recorded)
    lines = [json.loads(text) for text in ledger.read_text().splitlines()]
    assert Counter(line["key"] for line in lines) == Counter(
        run.key() for run in studies.runs(STUDY, "tiny")
    )

    def nothing_is_missing(*_):
        raise AssertionError("a run was repeated")

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "perform", nothing_is_missing)
        resumed = tables(studies.sweep(STUDY, "tiny"))
    monkeypatch.setenv("PANNING_RESULTS", str(tmp_path / "undisturbed"))
    assert tables(studies.sweep(STUDY, "tiny", 1)) == resumed


# --- how methods look ---


def test_every_method_has_a_name_and_looks_of_its_own():
    """Those of figures that are published keep theirs."""
    assert (
        registry.METHODS.keys()
        == names.METHODS.keys()
        == names.COLOURS.keys()
        == names.MARKERS.keys()
    )
    assert (
        len(set(names.METHODS.values()))
        == len({(names.COLOURS[name], names.MARKERS[name]) for name in names.METHODS})
        == len(names.METHODS)
    )
    before = dict(
        zip(
            (
                "dense",
                "panning-agent",
                "panning",
                "panning-product",
                "synflow",
                "iterative-snip",
                "force",
                "snip",
                "grasp",
                "grasp-abs",
                "magnitude",
                "random",
            ),
            zip(
                [
                    "black",
                    "#e377c2",
                    "#d62728",
                    "#ff9896",
                    "#1f77b4",
                    "#2ca02c",
                    "#98df8a",
                    "#9467bd",
                    "#8c564b",
                    "#c49c94",
                    "#7f7f7f",
                    "#bcbd22",
                ],
                "_*oosD^vPXs.",
            ),
        )
    )
    assert {name: (names.COLOURS[name], names.MARKERS[name]) for name in before} == before
