"""Golden masks, trainings and runs: a result that changes without a new version is red.

``python -m tests.experiments.test_versions`` writes what today's code gives for versions that
``golden.json`` does not have yet; it never changes an entry.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from panning_core import ROOT, data, masks, pruning, training
from panning_core.experiments import provenance
from panning_core.methods import dynamic, registry
from panning_core.reporting import sources
from panning_core.runs import base, versions

GOLDEN = Path(__file__).with_name("golden.json")
RECIPE = training.Recipe(epochs=5, batch_size=50, lr=0.5)


def splits(dtype=torch.float64):
    """Rows of four classes that can be told apart."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 4
    x = rng.normal(size=(400, 9)) + 1.5 * np.eye(4, 9)[y]
    found = data.from_arrays(x[:300], y[:300], x[300:], y[300:])
    parts = {
        part: dataclasses.replace(getattr(found, part), x=getattr(found, part).x.to(dtype))
        for part in ("train", "validation", "test")
    }
    return dataclasses.replace(found, **parts)


def network(dtype=torch.float64):
    """Float64, so that no processor's rounding decides which weight is kept."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)
        return nn.Sequential(*layers).to(dtype)


def mask_of(name):
    """A digest of the mask that a method finds."""
    method, model, own = registry.METHODS[name], network(), splits()
    if method.kind == registry.PRUNER:
        batch = data.balanced_batch(own.train, 5, torch.Generator().manual_seed(0))
        mask, _ = pruning.prune(model, name, 0.2, batch, rounds=min(method.rounds, 10), seed=1)
    else:
        change = method.update and method.update(dynamic.Plan(25, updates=5), 0.2, 1)
        mask, _ = method.find(model, own, change.start if change else 0.2, 1)
    if method.update:
        mask = training.train(model, mask, own, RECIPE, update=change).attrs["mask"]
    bits = np.packbits(masks.flatten(mask).numpy())
    return hashlib.sha256(bits.tobytes()).hexdigest()[:16]


def trained(engine):
    """The losses of a training under a fixed mask, four digits."""
    dtype = torch.float32 if engine == "sparse" else torch.float64
    model, own = network(dtype), splits(dtype)
    weights = {name: w.detach().abs() for name, w in masks.prunable(model).items()}
    log = training.train(model, masks.keep_top(weights, 0.3), own, RECIPE, engine)
    return [float(f"{loss:.4g}") for loss in log["loss"]]


#: of kinds that train no network of the laboratory's by its trainer, one run in well under a second
RUNS = {
    "ball-indicator": {"dimension": 3, "width": 20, "steps": 20},
    "quantise": {"images": 200, "epochs": 2},
    "signal-noise": {"classes": 3, "inputs": 200, "width": 4, "samples": 12, "steps": 50},
    "tagi": {"dataset": "digits", "images": 100, "epochs": 1, "width": 10},
    "telescope": {"dataset": "digits", "points": 20, "width": 4, "steps": 30},
    "toy": {"steps": 40},
}


def found(kind):
    """Every metric of a run that is one number, but for what the clock says and shares of a few
    images, of which one more is too many."""
    metrics = base.kind(kind)(**RUNS[kind]).execute(base.Context())
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, float | int) and not name.endswith(("seconds", "accuracy"))
    }


def today():
    """name -> (version, result) of every method, of the trainer, and of some kinds of run."""
    made = {f"method {name}": (method.version, mask_of(name)) for name, method in METHODS.items()}
    losses = {engine: trained(engine) for engine in training.ENGINES}
    made |= {f"kind {kind}": (base.kind(kind).version, found(kind)) for kind in RUNS}
    return made | {"trainer": (training.VERSION, losses)}


METHODS = {
    name: method
    for name, method in registry.METHODS.items()
    if method.find.__module__.startswith("panning_core.")
}


def compare(name, version, result):
    golden = json.loads(GOLDEN.read_text())
    assert str(version) in golden[name], (
        f"version {version} of {name} is new; python -m tests.experiments.test_versions records it"
    )
    assert golden[name][str(version)] == result, (
        f"the results of {name} have changed: raise its version, so that recorded rows do not pass "
        "as rows of this code, then python -m tests.experiments.test_versions"
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:training on the dense engine")
def test_a_method_finds_the_mask_of_its_version(name):
    compare(f"method {name}", METHODS[name].version, mask_of(name))


def test_the_trainer_trains_as_its_version():
    losses = {engine: trained(engine) for engine in training.ENGINES}
    compare("trainer", training.VERSION, losses)


@pytest.mark.parametrize("kind", RUNS)
def test_a_kind_finds_what_its_version_found(kind):
    """To 1 %, as a training magnifies a processor's rounding; later code may measure more."""
    name, version = f"kind {kind}", base.kind(kind).version
    known = json.loads(GOLDEN.read_text()).get(name, {}).get(str(version), {})
    result = {metric: value for metric, value in found(kind).items() if metric in known}
    compare(name, version, pytest.approx(result, rel=0.01))


# --- and what becomes of a row of an earlier one --------------------------------------------------


def line(method="snip"):
    run = base.kind("prune")(dataset="digits", model="lenet300", method=method, sparsity=0.5)
    return provenance.line(run, {"test_accuracy": 0.5}, 1.0)


def test_a_row_says_by_which_versions_it_was_made_and_its_key_does_not():
    row = line()
    assert row["provenance"]["made_by"] == {"trainer": 1, "kind prune": 1, "method snip": 1}
    assert "made_by" not in row["run"] and row["key"] == base.read(row).key()


def test_rows_of_an_earlier_version_are_told_everywhere_and_not_done_again(monkeypatch, tmp_path):
    old, new = line(), line("grasp")
    del old["provenance"]["made_by"]  # as all rows before there were versions
    assert not versions.told([old, new])
    monkeypatch.setitem(
        registry.METHODS, "snip", dataclasses.replace(registry.METHODS["snip"], version=2)
    )
    words = "1 of 2 by an earlier version (method snip 1, now 2)"
    assert versions.told([old, new]) == words and versions.older(line()) == []
    assert sources.ledger(tmp_path, [old, new]).line.endswith(words)
    monkeypatch.setattr(versions, "VERSION", 3)
    monkeypatch.setattr(base.kind("prune"), "version", 4)
    assert versions.older(new) == ["trainer 1, now 3", "kind prune 1, now 4"]
    assert len(versions.older(old)) == 3


def test_no_recorded_row_is_of_an_earlier_version():
    for path in (ROOT / "results" / "paper").glob("*/*.jsonl"):
        assert not versions.told([json.loads(row) for row in path.read_text().splitlines()])


if __name__ == "__main__":
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for name, (version, result) in today().items():
        golden.setdefault(name, {}).setdefault(str(version), result)
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
