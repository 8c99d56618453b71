"""Closed-form Gaussian learning (TAGI, 2103.05461) beside back-propagation, and its variances as a
score for pruning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import data, masks, training
from ..analysis import calibration
from ..errors import UserError, is_number, unknown, whole
from ..methods import tagi
from . import base

LEARNERS = ("tagi", "adam", "sgd")
SPARSITIES = (0.9, 0.95, 0.98)  #: after one shot
#: (score, scope) by which the trained network is pruned; the second scope takes away how a score
#: divides the weights over the layers
PRUNINGS = (
    ("magnitude", "global"),
    ("signal-to-noise", "global"),
    ("certainty", "global"),
    ("random", "global"),
    ("magnitude", "uniform"),
    ("signal-to-noise", "uniform"),
)


@dataclass(frozen=True)
class Tagi(base.Run):
    """One training of a network input-``width``-``width``-output.

    Attributes:
        seed: of the images drawn, the initial values and the order.
        dataset: a name of ``data.load``.
        images: of the training split, drawn at random; None is all of them.
        learner: ``"tagi"``, ``"adam"``, or ``"sgd"`` with momentum 0.9.
        noise: deviation of TAGI's observations.
        lr: of the other learners, constant.
        activation: of TAGI, a key of ``tagi.ACTIVATIONS``; the others have a ReLU.
        epochs, batch, width: as usual.
        prune: what TAGI has learned is pruned in every way of ``PRUNINGS`` too.
    """

    kind: ClassVar[str] = "tagi"
    seed: int = 0
    dataset: str = "mnist"
    images: int | None = None
    learner: str = "tagi"
    noise: float = 0.3
    lr: float = 0.001
    activation: str = "mixture-relu"
    epochs: int = 4
    batch: int = 32
    width: int = 100
    prune: bool = False

    def __post_init__(self):
        for name, least in (("seed", 0), ("epochs", 1), ("batch", 1), ("width", 1)):
            whole(f"{name} of tagi", getattr(self, name), least)
        if self.images is not None:
            whole("images of tagi", self.images, 1)
        if self.learner not in LEARNERS:
            raise unknown("learner", self.learner, LEARNERS)
        if self.activation not in tagi.ACTIVATIONS:
            raise unknown("activation of tagi", self.activation, tagi.ACTIVATIONS)
        for name in ("noise", "lr"):
            value = getattr(self, name)
            if not is_number(value) or not value > 0:
                raise UserError(f"{name} of tagi is {value!r}; it must be a number above 0")
        if self.prune and self.learner != "tagi":
            raise UserError(f"prune is for the learner tagi, not for {self.learner}")

    def execute(self, context: base.Context) -> dict:
        return execute(self)


class Task(NamedTuple):
    """What a run learns: images as rows, standardised."""

    train: data.Split
    validation: data.Split
    test: data.Split


def drawn(run: Tagi, generator: torch.Generator) -> Task:
    """The run's data set with as many training images as it asks for.

    Raises:
        UserError: there are fewer.
    """
    splits = data.load(run.dataset)
    count = len(splits.train)
    if run.images is not None and run.images > count:
        raise UserError(f"images of tagi are {run.images:,}; {splits.title} has {count:,}")
    rows = torch.randperm(count, generator=generator)[: run.images]
    train = data.Split(splits.train.x[rows], splits.train.y[rows], splits.classes)
    parts = (train, splits.validation, splits.test)
    return Task(*(data.Split(part.x.flatten(1), part.y, part.classes) for part in parts))


class Gaussian:
    """TAGI on the tree of classes."""

    def __init__(self, net: tagi.Network, classes: int, run: Tagi):
        self.net, self.run, self.tree = net, run, tagi.tree(classes)

    def step(self, x: Tensor, y: Tensor) -> None:
        values, observed = tagi.observations(y, self.tree)
        tagi.learn(self.net, x, values, self.run.noise, self.run.activation, observed)

    def probabilities(self, x: Tensor) -> Tensor:
        return tagi.probabilities(tagi.predict(self.net, x, self.run.activation), self.tree)


class Gradient:
    """Back-propagation of the cross-entropy, from TAGI's initial means of the first outputs."""

    def __init__(self, net: tagi.Network, classes: int, run: Tagi):
        modules: list[nn.Module] = []
        for place, layer in enumerate(net):
            rows = classes if place == len(net) - 1 else len(layer.bias)
            linear = nn.utils.skip_init(nn.Linear, layer.weight.shape[1], rows)
            with torch.no_grad():
                linear.weight.copy_(layer.weight[:rows])
                linear.bias.copy_(layer.bias[:rows])
            modules += [linear, nn.ReLU()]
        self.model = nn.Sequential(*modules[:-1])
        parameters = self.model.parameters()
        if run.learner == "adam":
            self.optimiser = torch.optim.Adam(parameters, run.lr)
        else:
            self.optimiser = torch.optim.SGD(parameters, run.lr, momentum=0.9)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimiser.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.optimiser.step()

    def probabilities(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x).double().softmax(1)


def batches(
    split: data.Split, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in a new order."""
    for places in torch.randperm(len(split), generator=generator).split(size):
        yield split.x[places], split.y[places]


def measured(probabilities: Callable[[Tensor], Tensor], split: data.Split) -> dict[str, float]:
    """``accuracy``, ``log_likelihood`` (nats an image) and ``calibration_error``."""
    found = probabilities(split.x)
    return {
        "accuracy": training.accuracy(found, split.y),
        "log_likelihood": calibration.log_likelihood(found, split.y),
        "calibration_error": calibration.calibration_error(found, split.y),
    }


def execute(run: Tagi) -> dict:
    """Train and measure.

    Returns:
        ``test_accuracy``, ``test_log_likelihood`` and ``test_calibration_error`` after the last
        epoch, the same of ``validation_``; ``curve``, the test accuracy after each epoch;
        ``train_seconds``; ``pruned``, a list with a dict for each pruning: score, scope, sparsity,
        shares kept of each layer, and test accuracy ``before`` and ``after`` one more epoch.
    """
    generator = torch.Generator().manual_seed(run.seed)
    task = drawn(run, generator)
    classes = task.train.classes
    sizes = [prod(task.train.x.shape[1:]), run.width, run.width, tagi.tree(classes).outputs]
    net = tagi.network(sizes, generator)
    learner = (Gaussian if run.learner == "tagi" else Gradient)(net, classes, run)
    curve, seconds = [], 0.0
    for _ in range(run.epochs):
        start = time.perf_counter()
        for x, y in batches(task.train, run.batch, generator):
            learner.step(x, y)
        seconds += time.perf_counter() - start
        curve.append(measured(learner.probabilities, task.test)["accuracy"])
    found = {}
    for name in ("test", "validation"):
        values = measured(learner.probabilities, getattr(task, name))
        found |= {f"{name}_{key}": float(f"{value:.6g}") for key, value in values.items()}
    pruned = _prune(run, net, task) if run.prune else []
    return {**found, "curve": curve, "train_seconds": round(seconds, 2), "pruned": pruned}


def _prune(run: Tagi, net: tagi.Network, task: Task) -> list[dict]:
    """One row for each way of ``PRUNINGS`` and sparsity, each from the same trained network."""
    rows = []
    for name, scope in PRUNINGS:
        scores = tagi.SCORES[name](net, torch.Generator().manual_seed(run.seed))
        for sparsity in SPARSITIES:
            mask = masks.keep_top(scores, 1 - sparsity, scope)
            learner = Gaussian(tagi.pruned(net, mask), task.train.classes, run)
            before = measured(learner.probabilities, task.test)["accuracy"]
            # The same order for all.
            for x, y in batches(task.train, run.batch, torch.Generator().manual_seed(run.seed)):
                learner.step(x, y)
            rows.append(
                {
                    "score": name,
                    "scope": scope,
                    "sparsity": sparsity,
                    "shares": [float(f"{m.double().mean():.4g}") for m in mask.values()],
                    "before": before,
                    "after": measured(learner.probabilities, task.test)["accuracy"],
                }
            )
    return rows
