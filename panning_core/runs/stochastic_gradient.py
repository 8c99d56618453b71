"""Does an optimiser make networks that are easy to prune? StochGradAdam and its controls, pruned by
magnitude after the training and not trained again (Yun 2023, arXiv 2312.16020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import data, masks, models, training
from ..data import Split
from ..errors import UserError, fraction, is_number, unknown, whole
from ..methods.stoch_grad_adam import StochGradAdam
from ..models import modes, prunable
from . import base
from .base import short

#: what is removed after the training, of all weights together
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
#: method -> what is sampled, None for nothing, and the power of ``keep`` that Adam's rate is times
METHODS: dict[str, tuple[str | None, float]] = {
    "stochastic": ("gradient", 0.0),
    "adam": (None, 0.0),
    "slow-adam": (None, 0.5),
    "noise": ("noise", 0.0),
    "update-dropout": ("update", 0.0),
}


@dataclass(frozen=True)
class StochasticGradient(base.Run):
    """One network, trained once at a constant rate and then pruned to each of ``SPARSITIES``.

    Attributes:
        seed: of the initial weights, the order of the images and the samples.
        dataset, images: a name of ``data.load``, and how many of its first training images; None
            are all.
        model: a key of ``models.MODELS``.
        method: ``"stochastic"`` is the published one and ``"adam"`` its rival. Controls:
            ``"slow-adam"``, whose rate is times sqrt(``keep``), the mean step of sampled
            gradients; ``"noise"`` and ``"update-dropout"``, as in ``stoch_grad_adam.SAMPLES``.
        keep: s; Adam does without.
        epochs, batch_size, lr: of the training.
        target: the network is also pruned at the end of the first epoch after which this share of
            validation images is right, so that methods can be compared at equal accuracy.
    """

    kind: ClassVar[str] = "stochastic-gradient"
    on_cuda: ClassVar[bool] = True
    seed: int = 0
    dataset: str = "digits"
    images: int | None = None
    model: str = "lenet300"
    method: str = "stochastic"
    keep: float = 0.8
    epochs: int = 20
    batch_size: int = 50
    lr: float = 1e-3
    target: float = 0.95

    def __post_init__(self):
        for what, value, known in (
            ("data set", self.dataset, data.names()),
            ("model", self.model, models.MODELS),
            ("method of sampling gradients", self.method, METHODS),
        ):
            if value not in list(known):
                raise unknown(what, value, known)
        for name, least in (("seed", 0), ("epochs", 1), ("batch_size", 2)):
            whole(f"{name} of stochastic-gradient", getattr(self, name), least)
        if self.images is not None:
            whole("images of stochastic-gradient", self.images, 2)
        if not is_number(self.lr) or not self.lr > 0:
            raise UserError(f"lr of stochastic-gradient is {self.lr!r}; it must be above 0")
        fraction("target of stochastic-gradient", self.target)
        # It says what may be kept.
        StochGradAdam([nn.Parameter(torch.zeros(1))], keep=self.keep)

    def optimiser(self, parameters: list[nn.Parameter]) -> StochGradAdam:
        """The factory of ``training.train``."""
        sample, power = METHODS[self.method]
        keep = self.keep if sample else 1.0
        rate = self.lr * self.keep**power
        return StochGradAdam(parameters, rate, keep, self.seed, sample or "gradient")

    def execute(self, context: base.Context) -> dict:
        """Train and prune.

        Returns:
            ``test_accuracy`` and ``validation_accuracy`` of the whole network;
            ``pruned_test_accuracy``, one of each of ``SPARSITIES``; ``smaller_half``, the share of
            the squared norm that lies in the smaller half of the weights; and the same four at
            the end of ``matched_epoch``, with ``matched_`` before their names (all None where the
            target was not reached).
        """
        splits = data.load(self.dataset).first(train=self.images).to(context.device)
        model = models.build(self.model, splits.input_shape, splits.classes, self.seed)
        model = model.to(context.device)
        matched: dict = {}

        def observe(row: dict) -> None:
            if not matched and row["validation_accuracy"] >= self.target:
                matched.update(epoch=row["epoch"], **measured(model, splits.test, row))

        recipe = training.Recipe(
            self.epochs, self.batch_size, self.lr, decay="constant", seed=self.seed
        )
        log = training.train(
            model, masks.ones(model), splits, recipe, observe=observe, optimiser=self.optimiser
        )
        found = measured(model, splits.test, log.iloc[-1].to_dict())
        names = ("epoch", *found)
        return {**found, **{f"matched_{name}": matched.get(name) for name in names}}


def measured(model: nn.Module, split: Split, row: dict) -> dict:
    """What ``execute`` says of the network as it is after the epoch of ``row``."""
    return {
        "test_accuracy": row["test_accuracy"],
        "validation_accuracy": row["validation_accuracy"],
        "pruned_test_accuracy": [short(pruned_accuracy(model, s, split)) for s in SPARSITIES],
        "smaller_half": short(smaller_half(masks.flatten(prunable(model)))),
    }


@torch.no_grad()
def pruned_accuracy(model: nn.Module, sparsity: float, split: Split) -> float:
    """Of ``model`` without its smallest weights, all layers compared together; it stays as it
    is."""
    weights = {name: w.detach() for name, w in prunable(model).items()}
    mask = masks.keep_top({name: w.abs() for name, w in weights.items()}, 1 - sparsity)
    cut = {name: w * mask[name] for name, w in weights.items()}
    with modes(model, training=False):
        logits = training.logits(lambda x: functional_call(model, cut, (x,)), split.x)
    return training.accuracy(logits, split.y)


def smaller_half(weights: Tensor) -> float:
    """Share of the squared norm of ``weights`` [n] in the smaller half of them."""
    squares = weights.detach().double().square().sort().values
    return float(squares[: len(squares) // 2].sum() / squares.sum())
