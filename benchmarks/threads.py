"""Threads: a gradient on one thread against PyTorch's own number, alone and on a busy machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context

import pandas as pd
import torch
from torch import nn

from panning_core import data
from panning_core.inspection import threads

from .timing import interleave, ratio
from .train import NETWORKS, build, noise

PER_CLASS = 10  #: a batch of 100 images


def _spin() -> None:
    torch.set_num_threads(1)
    matrix = torch.rand(256, 256)
    while True:
        matrix @ matrix


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Inside, so many processes compute without end."""
    others = [get_context("spawn").Process(target=_spin, daemon=True) for _ in range(processes)]
    for each in others:
        each.start()
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.join()


def gradient_times(name: str) -> pd.DataFrame:
    """Seconds of a forward and backward pass with ``"one"`` thread and with ``"all"`` cores."""
    model = build(name)
    x, y = data.balanced_batch(noise(NETWORKS[name].shape), PER_CLASS, torch.Generator())

    def one() -> None:
        with threads.one():
            all_cores()

    def all_cores() -> None:
        nn.functional.cross_entropy(model(x), y).backward()

    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        return interleave({"one": one, "all": all_cores}, rounds=9)
    finally:
        torch.set_num_threads(before)


def speed(quick: bool) -> pd.DataFrame:
    """One row for each network and state of the machine, in the order of the work; ``ratio``: how
    many times faster one thread is than a thread a core."""
    rows = []
    for name in NETWORKS if not quick else ():
        work, cores = threads.multiply_adds(build(name)), os.cpu_count() or 1
        for others in (0, cores):
            with busy(others):
                times = gradient_times(name)
            rows.append(
                {
                    "network": name,
                    "multiply_adds": 10 * PER_CLASS * work,
                    "cores": cores,
                    "busy_processes": others,
                    "one_ms": 1000 * times["one"].median(),
                    "all_ms": 1000 * times["all"].median(),
                    **ratio(times, "all", "one")._asdict(),
                }
            )
    return pd.DataFrame(rows)
