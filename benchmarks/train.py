"""Training: images a second of one SGD step, against plain PyTorch on the same mask; and the memory
it takes.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from math import nan
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from panning_core import compaction, data, masks, models, pruning, sparse, training
from panning_core.experiments import studies
from panning_core.masks import Mask
from panning_core.zoo import Shape

from .timing import PRODUCT_FLOPS, interleave, matrix_product, ratio


class Network(NamedTuple):
    shape: Shape
    recipe: str
    rounds: int  #: of the iterative methods where they make its masks
    all_from: float  #: from this sparsity on every method is measured, below it SNIP alone


NETWORKS = {
    "lenet300": Network((1, 28, 28), "mnist", 100, 0.5),
    "lenet5": Network((1, 28, 28), "mnist", 100, 0.5),
    "resnet20": Network((3, 32, 32), "cifar", 100, 0.9),
    "vgg16": Network(
        (3, 32, 32), "cifar", 10, 0.98
    ),  # each of their rounds takes seconds, and the speed asks for no better mask
}
METHODS = ("random", "snip", "synflow", "panning")
ITERATIVE = ("synflow", "panning")
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
HEADLINE = ("snip", 0.98)  #: the mask whose ratio stands for a network
RATE = 0.01


class Plain:
    """What public repositories do with a mask: hooks that multiply it into the weights,
    ``optim.SGD``, ``.item()`` at every step.
    """

    def __init__(self, model: nn.Module, mask: Mask, recipe: training.Recipe):
        def multiply(module: nn.Module, _, keep: Tensor) -> None:
            module.weight.data.mul_(keep)

        self.model = model
        for name, module in model.named_modules():
            if f"{name}.weight" in mask:
                module.register_forward_pre_hook(
                    partial(multiply, keep=mask[f"{name}.weight"].float())
                )
        self.optimiser = torch.optim.SGD(
            model.parameters(), RATE, recipe.momentum, weight_decay=recipe.weight_decay
        )

    def step(self, x: Tensor, y: Tensor) -> float:
        self.optimiser.zero_grad()
        loss = nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimiser.step()
        return loss.item()


class Ours(NamedTuple):
    """What ``training.train`` would train, and with what: the compacted network, its mask, the
    engine.
    """

    model: nn.Module
    mask: Mask
    engine: str


def ours(model: nn.Module, mask: Mask) -> Ours:
    small = compaction.compact(model, mask, fold=False)
    return Ours(small.model, small.mask, training.engines.choose(small.model, small.mask).engine)


def build(name: str) -> nn.Module:
    """The network as the studies of ``paper.yaml`` initialise it: with PyTorch's own, SNIP at 98 %
    leaves VGG-16 without a path on noise.
    """
    return models.build(name, NETWORKS[name].shape, 10, seed=0, init="panning")


def noise(shape: Shape, count: int = 1024) -> data.Split:
    """Images and labels without meaning: the speed does not depend on it."""
    return data.Split(
        torch.randn((count, *shape), generator=torch.Generator().manual_seed(0)),
        torch.arange(count) % 10,
        10,
    )


def mnist_is_here() -> bool:
    """A benchmark downloads nothing."""
    return (data.folder() / "MNIST" / "raw").exists()


def images(shape: Shape) -> data.Split:
    """MNIST's training images where they are here and fit, else ``noise``."""
    return data.load("mnist").train if shape == (1, 28, 28) and mnist_is_here() else noise(shape)


def shuffled(split: data.Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        for index in torch.randperm(len(split)).split(batch_size):
            yield split.x[index], split.y[index]


def plain_step(
    model: nn.Module, mask: Mask, split: data.Split, recipe: training.Recipe
) -> Callable[[], float]:
    """A call is a step of ``Plain``: pick the next batch from the whole data and train on it."""
    trainer, batches = Plain(copy.deepcopy(model), mask, recipe), shuffled(split, recipe.batch_size)
    return lambda: trainer.step(*next(batches))


def our_batches(
    trainer: training.Dense | training.Sparse | training.Shared,
    split: data.Split,
    recipe: training.Recipe,
) -> Iterator[tuple]:
    """Steps without end, as ``training.train`` prepares them for ``trainer``."""
    own = replace(split, x=trainer.images(split.x))
    return chain.from_iterable(
        training.epochs(own, replace(recipe, lr=RATE, epochs=10**9, augment=False))
    )


def our_step(small: Ours, split: data.Split, recipe: training.Recipe) -> Callable[[], float]:
    """A call is a step of ``training.train``, its batch and its precision of products included."""
    trainer = training.ENGINES[small.engine](small.model, small.mask, recipe)
    batches = our_batches(trainer, split, recipe)

    def step() -> float:
        with training.fast_products(split.x.device):
            return float(trainer.step(*next(batches)))

    return step


def shared_step(
    name: str, sparsity: float, split: data.Split, recipe: training.Recipe
) -> Callable[[], object] | None:
    """A call is a step of ``studies.SHARE`` networks with the headline method's masks that learn
    from the same batch, as a sweep trains them; None where they do not share."""
    trainers = []
    for seed in range(studies.SHARE):
        model = models.build(name, NETWORKS[name].shape, 10, seed, init="panning")
        mask, _ = pruning.prune(
            model,
            HEADLINE[0],
            1 - sparsity,
            data.balanced_batch(split, 10, torch.Generator().manual_seed(seed)),
        )
        small = ours(model, masks.effective(model, mask))
        if (
            small.engine != "sparse"
            or not (trainer := training.Sparse(small.model, small.mask, recipe)).net.reads_pixels()
        ):
            return None
        trainers.append(trainer)
    shared = training.Shared(trainers, recipe)
    batches = our_batches(shared, split, recipe)
    return lambda: shared.step(*next(batches))


def measure(
    name: str, sparsity: float, methods: tuple[str, ...], rounds: int, seconds: float
) -> list[dict]:
    """One row a method: plain PyTorch, the compacted network trained densely, the sparse engine and
    a matrix product take turns.
    """
    network, rows, work = NETWORKS[name], [], {"product": matrix_product}
    recipe, split = training.RECIPES[network.recipe], images(network.shape)
    batch = data.balanced_batch(split, 10, torch.Generator().manual_seed(0))

    for method in methods:
        model = build(name)
        mask, _ = pruning.prune(
            model, method, 1 - sparsity, batch, network.rounds if method in ITERATIVE else None
        )
        layers, mask = masks.table(model, mask), masks.effective(model, mask)
        row = {
            "network": name,
            "method": method,
            "sparsity": sparsity,
            "batch": recipe.batch_size,
            "rounds": rounds,
            "effective_density": masks.density(mask),
            "macs_dense": int(layers.flops_dense.sum()) // 2,
            "macs": int(layers.flops_nonzero.sum()) // 2,
            # forward, and the gradients of weights and inputs; nobody needs the first layer's input
            # gradient
            "flops": int(3 * layers.flops_nonzero.sum() - layers.flops_nonzero.iloc[0]),
            **dict.fromkeys(
                [
                    "ratio",
                    "ratio_low",
                    "ratio_high",
                    *(f"{engine}_ratio" for engine in training.ENGINES),
                ],
                nan,
            ),
        }
        rows.append(row)
        work.setdefault("plain", plain_step(model, mask, split, recipe))
        if not masks.count(mask):
            row["engine"] = "none, no path is left"
            continue
        start = time.perf_counter()
        small = ours(model, mask)
        work[method, small.engine] = our_step(small, split, recipe)
        row |= {
            "engine": small.engine,
            "setup_seconds": time.perf_counter() - start,
            "live_share": training.live(small.model, small.mask),
        }
        for engine in training.ENGINES.keys() - {
            small.engine
        }:  # the one not chosen, for the crossover
            if engine == "dense" or sparse.unsupported(small.model) is None:
                work[method, engine] = our_step(
                    ours(model, mask)._replace(engine=engine), split, recipe
                )

    if (
        HEADLINE[0] in methods
        and name == "lenet300"
        and (step := shared_step(name, sparsity, split, recipe))
    ):
        work[HEADLINE[0], "shared"] = step
    times = interleave(work, rounds, seconds)
    for row in rows:
        if (key := (row["method"], "shared")) in times:
            row["shared_ratio"] = studies.SHARE * ratio(times, "plain", key).ratio
        row["plain_per_second"] = row["batch"] / times["plain"].median()
        row["matrix_peak"] = PRODUCT_FLOPS / times["product"].median()
        for engine in training.ENGINES:
            if (key := (row["method"], engine)) in times:
                row[f"{engine}_ratio"] = ratio(times, "plain", key).ratio
                if engine == row["engine"]:
                    row |= ratio(times, "plain", key)._asdict()
                    row["ours_per_second"] = row["batch"] / times[key].median()
                    row["useful_share"] = row["flops"] * row["ours_per_second"] / row["matrix_peak"]
    return rows


def speed(quick: bool) -> pd.DataFrame:
    """One row for each network x sparsity x method. Every ratio is against plain PyTorch: ``ratio``
    of what ``training.train`` does, ``dense_ratio`` of compaction alone, ``sparse_ratio`` of the
    sparse engine after compaction."""
    rows = []
    for name, network in NETWORKS.items():
        for sparsity in HEADLINE[1:] if quick else SPARSITIES:
            methods = METHODS if sparsity >= network.all_from and not quick else HEADLINE[:1]
            rows += measure(name, sparsity, methods, rounds=3 if quick else 5, seconds=0.5)
    return pd.DataFrame(rows)


def crossover(frame: pd.DataFrame) -> pd.DataFrame:
    """For each network the least sparsity measured from which on the sparse engine beats compaction
    alone, whatever the method, and the largest share of live multiply-adds there, which
    ``training.SPARSE_BELOW`` is about."""
    rows = []
    for name, part in frame.dropna(subset="sparse_ratio").groupby("network", sort=False):
        lost = part[part.sparse_ratio <= part.dense_ratio]
        won = part[part.sparsity > lost.sparsity.max()] if len(lost) else part
        rows.append(
            {
                "network": name,
                "sparse_engine_faster_from_sparsity": won.sparsity.min(),
                "live_share_there": won.live_share.max(),
            }
        )
    return pd.DataFrame(rows)


# --- memory ---------------------------------------------------------------------------------------


def high_water() -> int:
    """KiB that this process held at most since the last reset."""
    return int(
        next(
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        ).split()[1]
    )


def extra_memory(name: str, contender: str, path: Path) -> float:
    """MiB that two steps need at most, beyond the process that holds the network, the mask and the
    data. Linux; in a process of its own.
    """
    torch.set_num_threads(1)

    def two_steps(
        contender: str, model: nn.Module, mask: Mask, split: data.Split, recipe: training.Recipe
    ) -> None:
        step = (
            plain_step(model, mask, split, recipe)
            if contender == "plain"
            else our_step(ours(model, mask), split, recipe)
        )
        step(), step()

    network, tiny = NETWORKS[name], models.build("lenet5", (1, 16, 16), 10, seed=0)
    recipe, split, model = training.RECIPES[network.recipe], noise(network.shape), build(name)
    mask = masks.load(path, model)
    few = noise((1, 16, 16), 32)
    for one in ("plain", "ours"):  # loads the libraries' own code, which is not counted
        two_steps(
            one,
            tiny,
            pruning.prune(tiny, "magnitude", 0.05, (few.x, few.y))[0],
            few,
            replace(recipe, batch_size=16),
        )
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most so far
    before = high_water()
    two_steps(contender, model, mask, split, recipe)
    return (high_water() - before) / 1024


def memory(quick: bool) -> pd.DataFrame:
    """Peak memory of training the headline mask: MiB for plain PyTorch and for ours. Nothing in the
    quick run and outside Linux.
    """
    rows = []
    for name, network in (
        NETWORKS.items() if not quick and Path("/proc/self/clear_refs").exists() else ()
    ):
        model = build(name)
        batch = data.balanced_batch(noise(network.shape), 10, torch.Generator().manual_seed(0))
        mask = masks.effective(model, pruning.prune(model, HEADLINE[0], 1 - HEADLINE[1], batch)[0])
        row = {"network": name, "method": HEADLINE[0], "sparsity": HEADLINE[1]}
        with tempfile.TemporaryDirectory() as folder:
            masks.save(mask, path := Path(folder) / "mask.npz")
            for contender in ("plain", "ours"):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                    row[f"{contender}_mib"] = fresh.submit(
                        extra_memory, name, contender, path
                    ).result()
        rows.append(row)
    return pd.DataFrame(rows)
