"""The command for a machine with a GPU, rehearsed on the CPU."""

import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import cuda
from panning_core import ROOT, masks
from panning_core.errors import UserError
from panning_core.experiments import studies
from panning_core.experiments.ledger import Ledger
from panning_core.runs import prune
from tests.house.test_house import AGENT, CLUSTER, LAB

#: two runs of study 08 on the digits
TINY = "quick,epochs=2,method=snip,sparsity=0.9,seed=0,control=none"
RUN = prune.Run("digits", "resnet20", epochs=2, recipe="cifar-short")


def test_a_rehearsal_without_the_laboratory_leaves_a_ledger_that_merges(tmp_path, monkeypatch):
    """Nor is numba there."""
    (tmp_path / "bare.py").write_text(f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {[*AGENT, *LAB, *CLUSTER, "numba"]}:
            raise ModuleNotFoundError(name + " is not installed")

sys.meta_path.insert(0, Absent())
from benchmarks import cuda
from panning_core import metrics
cuda.STACKS, cuda.METHODS = (1, 2), ("snip",)
metrics.METRICS = {{name: metrics.METRICS[name] for name in ("snip", "grasp", "synflow")}}
sys.exit(cuda.main())
""")
    there, home = tmp_path / "there", tmp_path / "home"
    words = [str(there), "--device", "cpu", "--profile", TINY, "--minutes", "30"]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bare.py"), *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ledger = there / TINY / "08_cifar10" / "runs.jsonl"
    assert f"3 of 3 runs are in {ledger}" in done.stdout
    assert [row["metrics"]["epochs"] for row in Ledger(ledger).rows()] == [2, 2, 2]
    told = json.loads((there / "parity.json").read_text())
    assert len(told) == 5 + 3 + 1 and all(check["holds"] for check in told)
    monkeypatch.setenv("PANNING_RESULTS", str(home))
    assert studies.merge("08_cifar10", TINY, ledger) == 3


def test_a_device_that_is_too_far_off_is_named_and_no_run_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("PANNING_RESULTS", "")
    found = [cuda.Check("dense training", 0.001, 0.02), cuda.Check("scores of snip", math.nan, 1)]
    monkeypatch.setattr(cuda, "checks", lambda device, splits: iter(found))
    with pytest.raises(UserError, match="cpu is too far from the CPU in scores of snip$"):
        cuda.main([str(tmp_path), "--device", "cpu", "--profile", TINY])
    assert [path.name for path in tmp_path.iterdir()] == ["parity.json"]


def test_scores_and_masks_that_differ_are_seen(monkeypatch, digits):
    calls = []

    def drifting(model, mask, batch):
        calls.append(batch)
        ones = masks.ones(model).items()
        return {name: m.double() + (m.numel() > 1000) * 0.1 * len(calls) for name, m in ones}

    monkeypatch.setattr(cuda, "trained", lambda *_: iter(()))
    known = {name: cuda.metrics.METRICS[name] for name in ("snip", "random")}
    monkeypatch.setattr(cuda.metrics, "METRICS", known | {"drifting": drifting})
    monkeypatch.setattr(cuda, "METHODS", ("random",))
    wanted = cuda.pruning.prune
    seeds = iter(range(9))
    monkeypatch.setattr(
        cuda.pruning, "prune", lambda *how: wanted(*how, seed=next(seeds) if len(calls) else 0)
    )
    held = [(check.what, check.holds()) for check in cuda.checks("cpu", digits)]
    assert held == [
        ("scores of snip", True),
        ("scores of random", True),
        ("scores of drifting", False),
        ("weights of random's mask that are others", False),
    ]


def test_two_networks_are_apart_in_units_of_the_way_that_training_took():
    before, own, found = (torch.nn.Linear(2, 1) for _ in range(3))
    for network, weights in ((before, [0.0, 0.0]), (own, [3.0, 4.0]), (found, [3.0, 3.0])):
        network.weight.data = torch.tensor([weights])
    assert cuda.apart(before, own, found) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    "minutes, best",
    [
        (1.0, 1),  # 21 steps in 2 epochs: 48.3 s alone, and two would take longer than a minute
        (2.0, 4),  # two alone, one after the other, or four together in 109 s
        (100.0, 4),  # 8 at once are slower than 4 twice
    ],
)
def test_as_many_at_once_as_get_most_done(minutes, best, monkeypatch):
    taken = {1: 1.0, 2: 1.5, 4: 2.26, 8: 6.0}

    def step_seconds(run, splits, count, clock):
        if count > 8:
            raise torch.OutOfMemoryError
        return taken[count]

    monkeypatch.setattr(cuda, "step_seconds", step_seconds)
    assert cuda.plan(RUN, "cpu", 60 * minutes) == best


def test_too_little_time_for_one_network_is_one_sentence(monkeypatch):
    monkeypatch.setattr(cuda, "step_seconds", lambda *_: 60.0)
    with pytest.raises(UserError, match="1.0 minutes are left and a single network takes 48.3"):
        cuda.plan(RUN, "cpu", 60)


def test_a_step_is_timed_by_the_clock(digits):
    ticks = iter([10.0, 15.0])
    assert cuda.step_seconds(RUN, digits.first(train=900), 2, lambda: next(ticks)) == 0.5


def test_when_the_time_is_up_the_work_ends(capsys):
    start = time.perf_counter()
    with cuda.at_most(0.1):
        time.sleep(60)
    assert time.perf_counter() - start < 30 and "the time is up" in capsys.readouterr().out
    with cuda.at_most(60):
        pass
