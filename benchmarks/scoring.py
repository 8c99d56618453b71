"""Scoring and selection, against the straightforward implementation of the same methods."""

from __future__ import annotations

import pandas as pd
import torch

from panning_core import data, masks, pruning

from . import straightforward
from .timing import interleave, ratio
from .train import ITERATIVE, NETWORKS, build, images

DENSITY = 0.02
ROUNDS = 100
MEASURED = {
    "lenet5": 10,
    "resnet20": 3,
}  #: rounds of the straightforward implementation that are run; each costs the same
SIZES = (430_500, 1_900_000, 20_000_000)


def scoring(quick: bool) -> pd.DataFrame:
    """One row for each network x method: seconds to a mask of 2 % on one fixed batch of 100 images.
    Ours runs all its rounds; the straightforward implementation ``rounds_measured`` of them, scaled
    up."""
    rows = []
    for name in MEASURED:
        batch = data.balanced_batch(
            images(NETWORKS[name].shape), 10, torch.Generator().manual_seed(0)
        )
        for method, theirs in straightforward.METHODS.items():
            if quick and method != "panning":
                continue
            rounds, measured = (ROUNDS, MEASURED[name]) if method in ITERATIVE else (1, 1)
            model, other = build(name), build(name)  # theirs leaves its traces in BatchNorm
            times = interleave(
                {
                    "straightforward": lambda: theirs(other, DENSITY, batch, measured),
                    "ours": lambda: pruning.prune(model, method, DENSITY, batch, rounds),
                },
                rounds=3 if quick else 5,
            )
            times["straightforward"] *= rounds / measured
            rows.append(
                {
                    "network": name,
                    "method": method,
                    "rounds": rounds,
                    "rounds_measured": measured,
                    "straightforward_seconds": times["straightforward"].median(),
                    "ours_seconds": times["ours"].median(),
                    **ratio(times, "straightforward", "ours")._asdict(),
                }
            )
    return pd.DataFrame(rows)


def selection(quick: bool) -> pd.DataFrame:
    """One row a size: milliseconds to keep the top 2 % of so many scores."""
    rows = []
    for size in SIZES[:2] if quick else SIZES:
        scores = {
            "weight": torch.rand(
                size, generator=torch.Generator().manual_seed(0), dtype=torch.double
            )
        }
        times = interleave(
            {
                "sort": lambda: straightforward.select(scores, DENSITY),
                "ours": lambda: masks.keep_top(scores, DENSITY),
            }
        )
        rows.append(
            {
                "scores": size,
                "sort_ms": 1000 * times["sort"].median(),
                "ours_ms": 1000 * times["ours"].median(),
                **ratio(times, "sort", "ours")._asdict(),
            }
        )
    return pd.DataFrame(rows)
