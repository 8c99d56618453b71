"""Does a training that is cut once by its indicator end sooner than that of the whole network?"""

from __future__ import annotations

import time

import pandas as pd

from panning_core.runs import base
from panning_core.runs.early_structure import EarlyStructure

SEEDS = 5
#: criterion and the share of channels that goes
WAYS = (("relative-magnitude", 0.5), ("relative-magnitude", 0.7), ("taylor", 0.3))


def early(quick: bool) -> pd.DataFrame:
    """A row for each seed and way: the epoch of the cut, and seconds of both whole runs, scores and
    tests included. The runs of a seed take turns. Nothing in the quick run."""
    if quick:
        return pd.DataFrame()
    timed(EarlyStructure(ratio=0.0))  # reads the data, fills the caches
    rows = []
    for seed in range(SEEDS):
        dense, _ = timed(EarlyStructure(ratio=0.0, seed=seed))
        for criterion, ratio in WAYS:
            run = EarlyStructure(criterion=criterion, ratio=ratio, at=None, seed=seed)
            seconds, found = timed(run)
            rows.append(
                {
                    "criterion": criterion,
                    "channels_that_go": ratio,
                    "seed": seed,
                    "cut_at": found["cut_at"],
                    "dense_seconds": dense,
                    "seconds": seconds,
                    "share": seconds / dense,
                }
            )
    return pd.DataFrame(rows)


def timed(run: EarlyStructure) -> tuple[float, dict]:
    """Seconds of a run, and what it found."""
    start = time.perf_counter()
    found = run.execute(base.Context())
    return time.perf_counter() - start, found
