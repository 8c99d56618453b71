"""Early structural pruning, and an indicator that says when (Shen et al. 2022, arXiv 2110.12007).

A small convolutional network is trained for a while, loses whole channels at once and for good, and
what is left, a smaller network, is trained for the rest of the same schedule.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import data, masks, training
from ..errors import UserError, fraction, is_number, pick, whole
from ..methods import early_pruning
from . import base

WIDTHS = (16, 32, 32)  #: channels of the three convolutions
WARM_UP = 2  #: epochs in which the rate grows to its full size
MOMENTUM, DECAY = 0.9, 5e-4


@dataclass(frozen=True)
class EarlyStructure(base.Run):
    """One network, pruned once.

    Attributes:
        dataset: a key of ``data.names()`` whose inputs are images.
        criterion: a key of ``early_pruning.CRITERIA``.
        ratio: share of all channels that goes; 0 is the dense network.
        at: epochs that are trained before; None leaves it to the indicator, and if that never
            fires the network stays whole.
        epochs: in all.
        lr, batch_size: of SGD with momentum; the rate grows for ``WARM_UP`` epochs and then falls
            as a cosine.
        images: of the training part, so many of the first; None is all.
        seed: of the initialisation, the order of the images and a random choice.
    """

    kind: ClassVar[str] = "early-structure"
    version: ClassVar[int] = 2
    dataset: str = "digits"
    criterion: str = "magnitude"
    ratio: float = 0.5
    at: int | None = 0
    epochs: int = 24
    lr: float = 0.1
    batch_size: int = 64
    images: int | None = None
    seed: int = 0

    def __post_init__(self):
        pick("data set", self.dataset, dict.fromkeys(data.names()))
        pick("criterion", self.criterion, dict.fromkeys(early_pruning.CRITERIA))
        fraction("ratio", self.ratio)
        for name, least in (("seed", 0), ("epochs", WARM_UP + 1), ("batch_size", 2)):
            whole(name, getattr(self, name), least)
        for name, least in (("at", 0), ("images", 1)):
            if (value := getattr(self, name)) is not None:
                whole(name, value, least)
        if self.at is not None and self.at > self.epochs:
            raise UserError(f"at is {self.at} of {self.epochs} epochs; it must be at most as many")
        if self.at is None and self.criterion not in early_pruning.THRESHOLDS:
            raise UserError(f"the indicator has no threshold for {self.criterion}; say at")
        if not is_number(self.lr) or not self.lr > 0:
            raise UserError(f"lr is {self.lr!r}; it must be a number above 0")

    def splits(self) -> data.Splits:
        return data.load(self.dataset)

    def execute(self, context: base.Context) -> dict:
        return Training(self).result()


def network(shape: Sequence[int], classes: int, seed: int) -> nn.Sequential:
    """Three 3x3 convolutions with BatchNorm, ReLU and pooling, and one Linear."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inside = shape[0]
        for i, width in enumerate(WIDTHS, 1):
            layers[f"conv{i}"] = nn.Conv2d(inside, width, 3, padding=1, bias=False)
            layers[f"bn{i}"] = nn.BatchNorm2d(width)
            layers[f"relu{i}"] = nn.ReLU()
            if i < len(WIDTHS):
                layers[f"pool{i}"] = nn.MaxPool2d(2)
            inside = width
        layers["mean"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(inside, classes)
    model = nn.Sequential(layers)
    model.input_shape = tuple(shape)
    return model


class Training:
    """A training that is cut once."""

    def __init__(self, run: EarlyStructure):
        self.run, self.splits = run, run.splits()
        seen = self.splits.train.first(run.images)
        self.x, self.y = seen.x, seen.y
        self.model: nn.Module = network(self.splits.input_shape, self.splits.classes, run.seed)
        self.generator = torch.Generator().manual_seed(run.seed)
        # Of its own, so that looking at the units changes no order of images.
        self.noise = torch.Generator().manual_seed(10_000 + run.seed)
        self.dense_macs = self.macs = _macs(self.model)
        self.history: list[list[int]] = []
        self.indicators: list[float | None] = []
        self.cut_at: int | None = None
        self.seconds: list[float] = []
        self.cost = 0.0

    def result(self) -> dict:
        run = self.run
        for epoch in range(run.epochs):
            self._look(epoch)
            start = time.perf_counter()
            self._train(epoch)
            self.seconds.append(time.perf_counter() - start)
            self.cost += self.macs / self.dense_macs / run.epochs
        self._look(run.epochs)
        test, validation = (
            training.accuracy(self._answers(part.x), part.y)
            for part in (self.splits.test, self.splits.validation)
        )
        before = self.seconds[: self.cut_at]
        return {
            "test_accuracy": test,
            "validation_accuracy": validation,
            "cut_at": self.cut_at,
            "widths": [m.out_channels for m in self.model.modules() if isinstance(m, nn.Conv2d)],
            "macs_share": base.short(self.macs / self.dense_macs),
            "cost": base.short(self.cost),
            "indicators": [None if v is None else base.short(v) for v in self.indicators],
            "history": self.history,
            "train_seconds": base.short(sum(self.seconds)),
            "dense_epoch_seconds": base.short(sum(before) / len(before)) if before else None,
        }

    def _look(self, epoch: int) -> None:
        """After so many epochs: which channels would stay? Cut if it is time."""
        run = self.run
        if self.cut_at is not None or run.ratio == 0:
            return
        if run.at is not None and epoch != run.at:
            return
        found = early_pruning.scores(
            self.model, run.criterion, self._batches(self.noise), self.noise
        )
        channels = early_pruning.kept(found, run.ratio)
        self.history.append([int(each.sum()) for each in channels])
        self.indicators.append(early_pruning.indicator(self.history))
        settled = run.at is None and early_pruning.has_settled(
            self.indicators, early_pruning.THRESHOLDS[run.criterion]
        )
        if settled or epoch == run.at:
            self.model, self.cut_at = early_pruning.cut(self.model, channels), epoch
            self.macs = _macs(self.model)

    def _batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch; a last batch of one image, which BatchNorm cannot read, is left out."""
        for places in torch.randperm(len(self.y), generator=generator).split(self.run.batch_size):
            if len(places) > 1:
                yield self.x[places], self.y[places]

    def _train(self, epoch: int) -> None:
        run, model = self.run, self.model
        model.train()
        if epoch == (self.cut_at or 0):
            # The momentum of what is gone is of no use to the rest; all of it begins anew.
            self.optimiser = torch.optim.SGD(
                model.parameters(), lr=run.lr, momentum=MOMENTUM, weight_decay=DECAY
            )
        for group in self.optimiser.param_groups:
            group["lr"] = run.lr * factor(epoch, run.epochs)
        for x, y in self._batches(self.generator):
            self.optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            self.optimiser.step()

    @torch.no_grad()
    def _answers(self, x: Tensor) -> Tensor:
        self.model.eval()
        return torch.cat([self.model(part) for part in x.split(1000)])


def factor(epoch: int, epochs: int) -> float:
    """Of the rate: growing for ``WARM_UP`` epochs, then a cosine to 0."""
    if epoch < WARM_UP:
        return (epoch + 1) / (WARM_UP + 1)
    return (1 + math.cos(math.pi * (epoch - WARM_UP) / (epochs - WARM_UP))) / 2


def _macs(model: nn.Module) -> float:
    """Multiply-adds of one image's forward pass."""
    return masks.flops(model, masks.ones(model)) / 2
