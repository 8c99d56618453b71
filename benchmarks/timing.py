"""Ratios measured side by side: the contenders take turns, so that a slow moment of the machine
meets them all.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from panning_core import training
from panning_core.experiments import studies

SAMPLE = 0.02  #: seconds one sample lasts at least; a fast function is called many times for it
MATRIX = torch.rand(1024, 1024)
PRODUCT_FLOPS = 2 * 1024**3


class Ratio(NamedTuple):
    """How many times faster: the median over the rounds, and their quartiles."""

    ratio: float
    ratio_low: float
    ratio_high: float


def interleave(
    contenders: dict[str, Callable[[], object]],
    rounds: int = 5,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> pd.DataFrame:
    """Seconds a call of each contender takes, one row a round: in a round each has its turn (A B A
    B ...).

    Each is called once before, for compilers and caches, and from the second round on as often as
    makes a sample.

    Args:
        rounds, seconds: there are at least so many rounds, and they last at least so long together.
    """

    def duration(work: Callable[[], object], calls: int) -> float:
        start = clock()
        for _ in range(calls):
            work()
        return (clock() - start) / calls

    for work in contenders.values():
        work()
    rows, calls, start = [], dict.fromkeys(contenders, 1), clock()
    while len(rows) < rounds or clock() - start < seconds:
        rows.append({name: duration(work, calls[name]) for name, work in contenders.items()})
        calls = {
            name: math.ceil(SAMPLE / max(taken, SAMPLE / 10_000))
            for name, taken in rows[-1].items()
        }
    return pd.DataFrame(rows)


def ratio(times: pd.DataFrame, against: str, subject: str) -> Ratio:
    """How many times faster ``subject`` is than ``against``, compared within each round."""
    return Ratio(*(times[against] / times[subject]).quantile([0.5, 0.25, 0.75]))


def matrix_product() -> None:
    """Multiplies two float32 matrices [1024, 1024], ``PRODUCT_FLOPS``: as fast as this processor
    computes.
    """
    with training.fast_products(MATRIX.device):
        MATRIX @ MATRIX


def machine() -> dict:
    """What the numbers are of."""
    info = Path("/proc/cpuinfo")
    fields = (
        dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        if info.exists()
        else {}
    )
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    origin = studies.provenance("cpu")
    return {
        "processor": fields.get("model name") or origin["processor"],
        "flags": [flag for flag in ("avx2", "avx512f") if flag in fields.get("flags", "").split()],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "versions": {
            **origin["versions"],
            "numba": next((d.version for d in distributions(name="numba")), None),
        },
        "threads": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": origin["commit"],
        "dirty": origin["dirty"],
    }
