"""What each operation costs as networks grow: seconds and memory, from 10^5 to 10^8 weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from math import prod, sqrt
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from panning_core import masks, metrics, models, pruning, training
from panning_core.data import Split
from panning_core.masks import Mask

from . import train

BATCH = 32  #: images of a scoring batch and of a step
DENSITY = 0.02
ROUNDS = 4  #: of staged Panning, on one batch, as most of its rounds cost the same
SECONDS = 0.3  #: so long is every operation repeated
WEIGHTS = (10**5, 10**6, 10**7, 10**8)  #: of the wide networks, each weight of which is used once
FITTED_FROM = 10**6  #: below it what is fixed costs more than the weights do
COPIES = 6  #: of the weights in float32; what takes more is named
LINEAR = 1.15  #: a slope up to this is linear; from one cache to the next it is never exactly 1


def wide(weights: int) -> nn.Module:
    """784 - w - w - 10 with ReLU, of about so many weights."""
    width = round((sqrt(794**2 + 4 * weights) - 794) / 2)
    layers = nn.Linear(784, width), nn.Linear(width, width), nn.Linear(width, 10)
    model = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    model.input_shape = (1, 28, 28)
    return model


#: name -> a function that gives the network
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"wide-1e{len(str(n)) - 1}": partial(wide, n) for n in WEIGHTS},
    "lenet300": partial(models.build, "lenet300", (1, 28, 28), 10, 0),
    "lenet5": partial(models.build, "lenet5", (1, 28, 28), 10, 0),
    "vgg19": partial(models.build, "vgg19", (3, 32, 32), 10, 0),
}


# --- the operations -------------------------------------------------------------------------------


def scored(metric: Callable, model: nn.Module, split: Split) -> Callable[[], object]:
    return lambda: metric(model, masks.ones(model), (split.x, split.y))


def selected(model: nn.Module, split: Split) -> Callable[[], object]:
    noise = {name: torch.rand(w.shape, dtype=torch.double) for name, w in weights(model).items()}
    return lambda: masks.keep_top(noise, DENSITY)


def panned(model: nn.Module, split: Split) -> Callable[[], object]:
    return lambda: pruning.prune(model, "panning", DENSITY, (split.x, split.y), ROUNDS)


def stepped(engine: str, model: nn.Module, split: Split) -> Callable[[], object]:
    """The first call makes the trainer, as ``training.train`` does, and takes a step too."""
    recipe, mask = replace(training.RECIPES["mnist"], batch_size=BATCH), random_mask(model)

    @cache
    def step() -> Callable[[], float]:
        small = train.ours(model, mask)._replace(engine=engine)
        return train.our_step(small, split, recipe)

    return lambda: step()()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: w.detach() for name, w in models.prunable(model).items()}


def random_mask(model: nn.Module) -> Mask:
    """About ``DENSITY`` of every layer, on paths."""
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.rand(w.shape, generator=generator) < DENSITY
        for name, w in weights(model).items()
    }
    return masks.effective(model, drawn)


#: name -> a function of the network and ``BATCH`` images that gives the work, and how many rounds
#: that is
OPERATIONS: dict[str, tuple[Callable[[nn.Module, Split], Callable[[], object]], int]] = {
    "SNIP": (partial(scored, metrics.snip), 1),
    "GraSP": (partial(scored, metrics.grasp), 1),
    "SynFlow": (partial(scored, metrics.synflow), 1),
    "keep_top": (selected, 1),
    "Panning, a round": (panned, ROUNDS),
    "dense step": (partial(stepped, "dense"), 1),
    "sparse step": (partial(stepped, "sparse"), 1),
}


# --- measuring ------------------------------------------------------------------------------------


def held() -> int:
    """KiB that this process holds now; ``train.high_water`` is the most from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return train.high_water()


def cost(network: str, operation: str) -> dict[str, float]:
    """Seconds of one round, and MiB that the process holds at most beyond one that has loaded the
    libraries: the network itself, images, mask and activations are among them. In a process of its
    own.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prepare, rounds = OPERATIONS[operation]
    prepare(wide(10**4), train.noise((1, 28, 28), BATCH))()  # loads the libraries' own code
    idle = held()
    model = NETWORKS[network]()
    work = prepare(model, train.noise(model.input_shape, BATCH))
    held()
    work()
    most, times = train.high_water() - idle, []
    while sum(times) < SECONDS:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return {"seconds": float(np.median(times)) / rounds, "mib": most / 1024}


def size(quick: bool) -> pd.DataFrame:
    """One row for each network x operation. Nothing in the quick run and outside Linux."""
    rows = []
    here = not quick and Path("/proc/self/clear_refs").exists()
    context = get_context("forkserver")
    # A process begins with what this command imports.
    context.set_forkserver_preload([f"{__package__}.__main__"])
    for name in NETWORKS if here else ():
        with torch.device("meta"):
            count = sum(prod(w.shape) for w in weights(NETWORKS[name]()).values())
        for operation in OPERATIONS:
            with ProcessPoolExecutor(1, mp_context=context) as fresh:
                found = fresh.submit(cost, name, operation).result()
            copies = found["mib"] * 2**20 / 4 / count
            rows.append(
                {
                    "network": name,
                    "weights": count,
                    "operation": operation,
                    **found,
                    "copies": copies,
                }
            )
    return pd.DataFrame(rows)


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """One row an operation: the slopes of seconds and memory against weights, both logarithmic,
    over the wide networks from ``FITTED_FROM`` on; and the copies of the weights that the largest
    takes.
    """
    rows = []
    large = frame[frame.network.str.startswith("wide") & (frame.weights > 0.9 * FITTED_FROM)]
    for operation, part in large.groupby("operation", sort=False):
        logs = np.log(part[["weights", "seconds", "mib"]])
        rows.append(
            {
                "operation": operation,
                "slope_of_seconds": np.polyfit(logs.weights, logs.seconds, 1)[0],
                "slope_of_memory": np.polyfit(logs.weights, logs.mib, 1)[0],
                "copies": part.copies[part.weights.idxmax()],
            }
        )
    return pd.DataFrame(rows)


def verdict(fitted: pd.DataFrame) -> str:
    """What grows faster than the network, and what takes many copies of it."""
    steepest = fitted[["slope_of_seconds", "slope_of_memory"]].max(axis=1)
    worse = [
        f"{operation} ({slope:.2f})"
        for operation, slope in zip(fitted.operation, steepest)
        if slope > LINEAR
    ]
    many = fitted[fitted.copies > COPIES]
    named = [f"{row.operation} ({row.copies:.1f})" for row in many.itertuples()]
    return (
        f"Steeper than {LINEAR}, where 1 is linear in the weights, 2 quadratic, and leaving the"
        f" caches costs some: {', '.join(worse) or 'nothing'}."
        f" More than {COPIES} copies of the weights: {', '.join(named) or 'nothing'}."
    )
