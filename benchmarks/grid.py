"""A small whole grid, from the YAML's values to the ledger's lines: what a study costs."""

from __future__ import annotations

import os
import tempfile
import time
from unittest.mock import patch

import pandas as pd

from panning_core import data
from panning_core.experiments import profiles, studies

from .train import mnist_is_here

GRID = {
    "dataset": "mnist",
    "model": "lenet300",
    "init": "panning",
    "epochs": 20,
    "seed": [0, 1, 2],
    "method": ["random", "magnitude", "snip", "synflow", "panning"],
    "sparsity": [0.9, 0.95, 0.98, 0.99],
}
JOBS = 2


def grid(quick: bool) -> pd.DataFrame:
    """Seconds that ``studies.sweep`` takes for 60 runs: pruning, training, testing and recording.
    Nothing in the quick run and without MNIST.
    """
    if quick or not mnist_is_here():
        return pd.DataFrame()
    # No profile holds this grid, and its ledger is thrown away; all else is the way that every
    # study takes.
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, PANNING_RESULTS=folder),
        patch.object(profiles, "section", lambda *_: {"grid": [GRID]}),
    ):
        start = time.perf_counter()
        lines = studies.sweep("grid", "benchmarks", jobs=JOBS)
        seconds = time.perf_counter() - start
    metrics = pd.DataFrame([line["metrics"] for line in lines])
    return pd.DataFrame(
        [
            {
                "runs": len(lines),
                "epochs": GRID["epochs"],
                "images": len(data.load(GRID["dataset"]).train),
                "workers": JOBS,
                "seconds": seconds,
                "prune_seconds": metrics.prune_seconds.sum(),
                "train_seconds": metrics.train_seconds.sum(),
                "engines": ", ".join(sorted(metrics.engine.unique())),
                "test_accuracy": metrics.test_accuracy.mean(),
            }
        ]
    )
