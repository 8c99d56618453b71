"""How much pre-training does greedy forward selection need to find a good sub-network?

The question of Wolfe et al. (arXiv 2108.00259, TMLR 2024), on a network of two layers and a squared
loss: train all neurons, stop again and again, and select a sub-network without training it. Widths,
rates and data sizes are ours; the paper's could not be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .. import data
from ..errors import UserError, is_number, unknown, whole
from ..methods.greedy_forward_selection import select, shares
from . import base

#: ways to choose neurons: greedily, at random, or by the product of the norms of their weights
ARMS = ("greedy", "random", "norm")
#: parts of the steps after which sub-networks are tested, and trained for the rest of the steps
LATER = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


@dataclass(frozen=True)
class ForwardSelection(base.Run):
    """One pre-training and the sub-networks along it.

    Attributes:
        seed: of the images, the initial weights, their order and the random choice.
        dataset: as in ``data.load``; each image is divided by its norm.
        samples: training images, drawn from its training split.
        width: neurons, N.
        chosen: additions of the selection, K.
        steps: of the pre-training.
        batch: images a step; 0 is all of them, as in the theorem.
        lr_in, lr_out: rates of the two layers, times N and divided by N: a network of mean-field
            scale needs rates that grow with its width.
    """

    kind: ClassVar[str] = "forward-selection"
    seed: int = 0
    dataset: str = "digits"
    samples: int = 320
    width: int = 400
    chosen: int = 100
    steps: int = 640
    batch: int = 32
    lr_in: float = 0.3
    lr_out: float = 3.0

    def __post_init__(self):
        for name, least in (
            ("seed", 0),
            ("samples", 1),
            ("width", 1),
            ("chosen", 1),
            ("steps", 1),
            ("batch", 0),
        ):
            whole(f"{name} of a forward selection", getattr(self, name), least)
        if self.batch > self.samples:
            raise UserError(f"a batch of {self.batch} images needs more than {self.samples} images")
        if self.dataset not in data.AUTHORS:
            raise unknown("data set of a forward selection", self.dataset, data.AUTHORS)
        for name in ("lr_in", "lr_out"):
            value = getattr(self, name)
            if not is_number(value) or not value > 0:
                raise UserError(f"{name} is {value!r}; it must be a number above 0")

    def execute(self, context: base.Context) -> dict:
        """Train, select and test.

        Returns:
            Lists, one value a checkpoint: ``step``; ``dense_loss``, ``greedy_loss``,
            ``random_loss`` and ``norm_loss`` on the training images; ``distinct`` neurons of the
            greedy sub-network. ``later``, a list of dicts: at such a ``step`` the accuracies on
            the test images (``dense_accuracy``, ``greedy_accuracy``, ...), and the loss and
            accuracy of sub-networks that were then trained for the rest of the steps
            (``greedy_trained_loss``, ...).
        """
        return trace(self)


class Network:
    """f(x) = ReLU(x A^T) B: ``inner`` A [N, d] from N(0, 1), ``outer`` B [N, C] from N(0, 1) / N,
    so that f is the mean of N neurons' functions."""

    def __init__(self, inner: Tensor, outer: Tensor):
        self.inner, self.outer = inner, outer

    @classmethod
    def drawn(cls, width: int, inputs: int, classes: int, generator: torch.Generator) -> Network:
        inner = torch.randn((width, inputs), generator=generator)
        return cls(inner, torch.randn((width, classes), generator=generator) / width)

    def hidden(self, x: Tensor) -> Tensor:
        return (x @ self.inner.T).relu()

    def __call__(self, x: Tensor) -> Tensor:
        return self.hidden(x) @ self.outer

    def step(self, x: Tensor, target: Tensor, lr_in: float, lr_out: float) -> None:
        """One step of descent on half the mean squared distance, at the rates of a run."""
        width, hidden = len(self.inner), self.hidden(x)
        slope = (hidden @ self.outer - target) / len(x)
        inner = ((slope @ self.outer.T) * (hidden > 0)).T @ x
        self.outer = self.outer - lr_out / width * (hidden.T @ slope)
        self.inner = self.inner - lr_in * width * inner

    def weighed(self, weights: Tensor) -> Tensor:
        """B [N, C] if neuron i has the share ``weights`` [N] of the mean instead of 1 / N."""
        return len(weights) * weights[:, None].to(self.outer.dtype) * self.outer

    def part(self, weights: Tensor) -> Network:
        """The sub-network of the neurons whose share of the mean is above 0."""
        kept = weights > 0
        return Network(self.inner[kept], self.weighed(weights)[kept])


def images(run: ForwardSelection, generator: torch.Generator) -> tuple[data.Split, data.Split]:
    """Training and test images [n, d] of norm 1; the first ``samples`` of one order by seed, so
    that a smaller set is part of a larger one.

    Raises:
        UserError: the data set has fewer training images.
    """
    splits = data.load(run.dataset, "authors")
    if run.samples > len(splits.train):
        raise UserError(f"{run.dataset} has {len(splits.train)} training images, not {run.samples}")
    mean, deviation = data.authors_scale(run.dataset)

    def unit(split: data.Split, rows: Tensor) -> data.Split:
        pixels = (split.x[rows] * deviation + mean).flatten(1)
        return data.Split(functional.normalize(pixels), split.y[rows], split.classes)

    order = torch.randperm(len(splits.train), generator=generator)[: run.samples]
    return unit(splits.train, order), unit(splits.test, torch.arange(len(splits.test)))


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows for each step, for ever: shuffled anew when fewer than ``size`` are left; 0 is all."""
    while True:
        order = torch.randperm(count, generator=generator)
        step = size or count
        yield from (order[i : i + step] for i in range(0, count - step + 1, step))


def checkpoints(steps: int) -> list[int]:
    """0, 1, 2, ... and later a fifth more each time, up to ``steps``."""
    found = [0]
    while found[-1] < steps:
        found.append(min(steps, max(found[-1] + 1, round(found[-1] * 1.2))))
    return found


def chosen(
    run: ForwardSelection, network: Network, hidden: Tensor, train: data.Split
) -> dict[str, Tensor]:
    """Each arm's share of every neuron [N]: ``run.chosen`` additions of the greedy one, and for the
    others as many different neurons, or all of a smaller network, with equal shares.

    Args:
        hidden: ``network.hidden(train.x)``.
    """
    target = functional.one_hot(train.y, train.classes)
    generator = torch.Generator().manual_seed(run.seed)
    count = min(run.chosen, run.width)
    size = network.inner.norm(dim=1) * network.outer.norm(dim=1)
    found = {
        "greedy": select(hidden, network.outer, target, run.chosen),
        "random": torch.randperm(run.width, generator=generator)[:count],
        "norm": size.argsort(descending=True, stable=True)[:count],
    }
    return {arm: shares(found[arm], run.width) for arm in ARMS}


def trace(run: ForwardSelection) -> dict:
    """What ``ForwardSelection.execute`` returns."""
    generator = torch.Generator().manual_seed(run.seed)
    train, test = images(run, generator)
    target = functional.one_hot(train.y, train.classes).float()
    network = Network.drawn(run.width, train.x.shape[1], train.classes, generator)
    at, tested = set(checkpoints(run.steps)), {round(part * run.steps) for part in LATER}
    supply, rows, later = batches(len(train), run.batch, generator), [], []
    for step in range(run.steps + 1):
        if step in at | tested:
            hidden = network.hidden(train.x)
            found = chosen(run, network, hidden, train)
            outer = {"dense": network.outer, **{a: network.weighed(found[a]) for a in ARMS}}
        if step in at:
            losses = {f"{arm}_loss": loss(hidden @ w, target) for arm, w in outer.items()}
            rows.append({"step": step, "distinct": int((found["greedy"] > 0).sum()), **losses})
        if step in tested:
            seen = network.hidden(test.x)
            right = {f"{arm}_accuracy": accuracy(seen @ w, test.y) for arm, w in outer.items()}
            rest = trained(run, network, found, train, test, run.steps - step)
            later.append({"step": step, **right, **rest})
        if step < run.steps:
            picked = next(supply)
            network.step(train.x[picked], target[picked], run.lr_in, run.lr_out)
    return {**{name: [row[name] for row in rows] for name in rows[0]}, "later": later}


def trained(
    run: ForwardSelection,
    network: Network,
    found: dict[str, Tensor],
    train: data.Split,
    test: data.Split,
    steps: int,
) -> dict[str, float]:
    """Loss and accuracy of the sub-networks of ``found`` after ``steps`` of their own, at the rates
    of their own width and all on the same batches."""
    target, row = functional.one_hot(train.y, train.classes).float(), {}
    for arm in ("greedy", "random"):
        part, generator = network.part(found[arm]), torch.Generator().manual_seed(run.seed)
        for rows, _ in zip(batches(len(train), run.batch, generator), range(steps)):
            part.step(train.x[rows], target[rows], run.lr_in, run.lr_out)
        row[f"{arm}_trained_loss"] = loss(part(train.x), target)
        row[f"{arm}_trained_accuracy"] = accuracy(part(test.x), test.y)
    return row


def loss(outputs: Tensor, target: Tensor) -> float:
    """Half the mean squared distance to the targets, in six digits."""
    return float(f"{(outputs - target).square().sum() / (2 * len(target)):.6g}")


def accuracy(outputs: Tensor, y: Tensor) -> float:
    """The share of the largest outputs that are right, in six digits."""
    return float(f"{(outputs.argmax(1) == y).float().mean():.6g}")
