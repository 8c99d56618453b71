"""A method is added from outside the package: one file with a function and a record.

Nothing of the package is opened, and yet every sweep, table, figure and battery has it.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from panning_core import ROOT, plugins
from panning_core.errors import UserError
from panning_core.experiments import studies
from panning_core.methods import registry
from panning_core.methods.registry import Method
from tests.checkout import PARAMETERS, Checkout

PLUGIN = '''
"""Two methods of a user's own."""

import torch

from panning_core import masks, models
from panning_core.errors import UserError
from panning_core.methods.registry import MOVING, Method, add
from panning_core.pruning import Scored, in_rounds


def powers(model, batches, density, seed, how, *, power: float = 1.0):
    """The size of a weight by the spread of its layer, to a power."""
    if power < 0:
        raise UserError(f"power is {power}; it must be at least 0")
    scores = masks.flatten({name: w.detach().abs() / w.detach().std() ** power
                            for name, w in models.prunable(model).items()})
    return in_rounds(model, lambda mask, batch, asked: Scored(scores), density, batches, how)


def first(model, splits, density, seed):
    noise = {name: torch.rand(w.shape, generator=torch.Generator().manual_seed(seed))
             for name, w in models.prunable(model).items()}
    return masks.keep_top(noise, density, "layerwise"), []


class Wanders:
    """Now and then each layer gives its smallest weight for one at a place drawn at random."""

    def __init__(self, plan, density, seed):
        self.plan, self.start = plan, density
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, step, model, mask):
        return {name: self.moved(w.detach(), mask[name]) if self.plan.due(step) else mask[name]
                for name, w in models.prunable(model).items()}

    def moved(self, weight, kept):
        new, free = kept.flatten().clone(), (~kept).flatten().nonzero().flatten()
        smallest = weight.abs().masked_fill(~kept, torch.inf).argmin()
        new[free[torch.randint(len(free), (1,), generator=self.generator)]] = True
        new[smallest] = False
        return new.view_as(kept)


add(Method("powers", "Powers of layers", powers, paper="Somebody 2020", colour="#123456",
           marker="8", rounds=3, regrows=True))
add(Method("wandering", "Wandering masks", first, MOVING, colour="#654321", update=Wanders))
'''
GRID = {"dataset": "digits", "model": "lenet300", "sparsity": 0.9, "epochs": 2}
MOVED = {"kind": "dynamic", "method": "wandering", "sparsity": 0.9, "epochs": 2, "updates": 4}
STUDY = {
    "grid": [
        {**GRID, "method": ["powers", "snip"], "seed": [0, 1], "per_class": 3},
        {**GRID, "method": "powers", "options": {"power": 0}},
        MOVED,
    ]
}
NOTEBOOK = """
import matplotlib.pyplot as plt
from panning_core import reporting
study = reporting.Study("01_powers", profile, jobs, device)
runs = study.runs[study.runs.options.map(len) == 0]
methods = [method for method in reporting.METHODS if method in set(runs.method)]
figure, axes = plt.subplots()
reporting.accuracy_axes(axes, runs, runs.head(0), methods)
drawn = {line.get_label(): line for line in axes.containers}
assert drawn["Powers of layers"].lines[0].get_color() == "#123456"
assert drawn["Powers of layers"].lines[0].get_marker() == "8"
study.figure(figure, "accuracy", "Two methods.")
study.table(reporting.accuracy_table(runs), "accuracies", "Two methods.")
"""
LOADED = "--plugin", "powers.py"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    made = Checkout(tmp_path_factory.mktemp("method")).core()
    made.notebook("01_powers", PARAMETERS, NOTEBOOK)
    (made.root / "notebooks" / "01_powers.yaml").write_text(json.dumps({"mine": STUDY}))
    (made.root / "powers.py").write_text(PLUGIN)
    return made


def run(checkout, *words):
    done = checkout.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_method_from_outside_is_swept_drawn_and_tabled(checkout):
    run(checkout, "-m", "panning_core", "run", "mine", "--jobs", "2", *LOADED)
    folder = checkout.root / "results" / "mine" / "01_powers"
    rows = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and {row["metrics"]["kept_weights"] for row in rows} == {5_020}
    assert {plugin for row in rows for plugin in row["provenance"]["plugins"]} == {"powers.py"}
    methods = [row["run"]["method"] for row in rows]
    assert sorted(methods) == ["powers"] * 3 + ["snip"] * 2 + ["wandering"]
    layers = [str(row["metrics"]["layers"]) for row in rows if "layers" in row["metrics"]]
    # The seeds of snip, those of powers, and another power.
    assert len(set(layers)) == 5
    assert "Powers of layers" in (folder / "accuracies.csv").read_text()


def test_the_battery_of_all_methods_has_it_too(tmp_path):
    """By the variable that every process reads; the record is there before tests are collected."""
    (tmp_path / "powers.py").write_text(PLUGIN)
    words = "-p", "no:cacheprovider", "-k", "powers"
    files = [
        str(ROOT / "tests" / name)
        for name in ("contract/test_every_method.py", "contract/test_rows.py")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *files],
        cwd=ROOT,
        env={**os.environ, plugins.VARIABLE: str(tmp_path / "powers.py")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 10


@pytest.fixture
def mine(monkeypatch):
    """``mine(record)`` adds it for one test."""
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    return registry.add


def test_the_options_of_a_method_are_the_keywords_of_its_function(mine):
    def find(model, batches, density, seed, how, *, power: float = 1.0):
        """Never called."""

    mine(Method("mine", "My method", find))
    record = registry.method("mine")
    assert record.options == {"power": 1.0} and record.settled({"power": 2}) == {"power": 2.0}
    run = studies.Run("digits", "lenet300", "mine", 0.9, options={"power": 2})
    assert run.key() != studies.Run("digits", "lenet300", "mine", 0.9, options={"power": 1}).key()
    with pytest.raises(UserError, match="option power of mine is 'a'; it must be float, like 1.0"):
        studies.Run("digits", "lenet300", "mine", 0.9, options={"power": "a"})


def test_a_record_that_can_not_be_right_is_one_sentence(mine):
    find = registry.method("snip").find
    with pytest.raises(UserError, match="there is a method 'snip' already; give yours another"):
        mine(Method("snip", "mine", find))
    with pytest.raises(UserError, match="unknown kind of method 'prune'; did you mean 'pruner'"):
        Method("mine", "mine", find, kind="prune")
    with pytest.raises(UserError, match="unknown method 'snap'; did you mean 'snip'"):
        registry.method("snap")
