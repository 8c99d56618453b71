"""Differentiable sparsification beside four rivals of the same size and as many steps.

LeNet-300-100 learns its own size first (``methods.differentiable_sparsification``). Then Gumbel
gates learn a network with as many units or weights, a trained network is cut to as many by
magnitude, and the mask that was found is trained from the start.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from .. import data, masks, models, training
from ..data import Splits
from ..errors import UserError, is_number, pick, unknown, whole
from ..masks import Mask
from ..methods import differentiable_sparsification as ours
from ..methods import gumbel_softmax
from ..models import prunable
from . import base
from .base import short

#: what Gumbel gates call the same structure
GUMBEL = {"units": "outputs", "weights": "weights"}
#: learning rate of SGD with momentum 0.9, of all trainings under a mask that stays
RATE = 0.05
#: after as many epochs, of the same size: test accuracies
RIVALS = ("gumbel", "magnitude", "scratch")


@dataclass(frozen=True)
class DifferentiableSparsification(base.Run):
    """One network of each kind.

    Attributes:
        seed: of initial weights, gates and the order of the images.
        dataset, images: a name of ``data.load``, and how many of its first training images; None
            are all.
        structure: what becomes 0, hidden ``"units"`` or single ``"weights"``.
        penalty: lambda; the larger, the fewer stay.
        epochs, batch_size: of the first part of the training.
        finish: epochs of the second part, under a mask that stays.
    """

    kind: ClassVar[str] = "differentiable-sparsification"
    on_cuda: ClassVar[bool] = True
    seed: int = 0
    dataset: str = "digits"
    images: int | None = None
    structure: str = "units"
    penalty: float = 0.3
    epochs: int = 20
    finish: int = 5
    batch_size: int = 50

    def __post_init__(self):
        if self.dataset not in list(data.names()):
            raise unknown("data set", self.dataset, data.names())
        pick("structure", self.structure, ours.STRUCTURES)
        least = {"seed": 0, "epochs": 1, "finish": 1, "batch_size": 2}
        for name, at_least in least.items():
            whole(f"{name} of {self.kind}", getattr(self, name), at_least)
        if self.images is not None:
            whole(f"images of {self.kind}", self.images, 2)
        if not is_number(self.penalty) or self.penalty < 0:
            raise UserError(f"penalty is {self.penalty!r}; it must be a number of at least 0")

    def execute(self, context: base.Context) -> dict:
        """Train all of them.

        Returns:
            ``single_stage``, the test accuracy when the first part has ended, and
            ``test_accuracy`` when the second has; those of ``dense`` and of ``RIVALS`` after both,
            None where nothing is left of the network; ``alive``, ``died``, ``revived`` and
            ``curve`` as of ``Learned``; ``size``, the sum of ``alive``; effective ``kept_weights``
            of ``weights``, and ``gumbel_kept_weights``.
        """
        splits = data.load(self.dataset).first(train=self.images).to(context.device)
        start = models.build("lenet300", splits.input_shape, splits.classes, self.seed)
        start = start.to(context.device)
        model = copy.deepcopy(start)
        found = ours.learn(
            model, splits, self.structure, self.penalty, self.seed,
            epochs=self.epochs, batch_size=self.batch_size,
        )  # fmt: skip
        metrics = {
            "single_stage": training.tested(model, splits.test),
            "alive": found.alive,
            "size": sum(found.alive),
            "kept_weights": masks.count(found.mask),
            "weights": masks.size(found.mask),
            "died": found.died,
            "revived": found.revived,
            "curve": [short(value) for value in found.curve],
            **dict.fromkeys(("test_accuracy", *RIVALS)),
            "dense": self._trained(start, masks.ones(start), splits, self.epochs + self.finish),
        }
        if metrics["kept_weights"]:
            metrics["test_accuracy"] = self._trained(model, found.mask, splits, self.finish)
            metrics |= self._rivals(start, splits, found)
        return metrics

    def _rivals(self, start: nn.Module, splits: Splits, found: ours.Learned) -> dict:
        """Of the same size, after as many epochs."""
        size = sum(found.alive)
        scratch, cut, gated = (copy.deepcopy(start) for _ in range(3))
        self._trained(cut, masks.ones(cut), splits, self.epochs)
        cuts = largest(cut, found.alive if self.structure == "units" else size)
        mask, _ = gumbel_softmax.learn(
            gated, splits, size / _gates(start, self.structure), self.seed,
            epochs=self.epochs, batch_size=self.batch_size, structure=GUMBEL[self.structure],
        )  # fmt: skip
        return {
            "gumbel": self._trained(gated, mask, splits, self.finish),
            "gumbel_kept_weights": masks.count(mask),
            "magnitude": self._trained(cut, cuts, splits, self.finish),
            "scratch": self._trained(scratch, found.mask, splits, self.epochs + self.finish),
        }

    def _trained(self, model: nn.Module, mask: Mask, splits: Splits, epochs: int) -> float:
        """``model`` is trained under ``mask``; the test accuracy afterwards."""
        recipe = training.Recipe(epochs, self.batch_size, RATE, weight_decay=0.0, seed=self.seed)
        return float(training.train(model, mask, splits, recipe).test_accuracy.iloc[-1])


def _gates(model: nn.Module, structure: str) -> int:
    """How many Gumbel gates a network has, as many as there are units or weights that may go."""
    weights = list(prunable(model).values())
    each = [len(w) for w in weights[:-1]] if structure == "units" else map(torch.numel, weights)
    return sum(each)


def largest(model: nn.Module, kept: int | Sequence[int]) -> Mask:
    """The effective ones of the largest weights of all layers together, so many; or of each hidden
    layer so many units with the largest norms."""
    weights = {name: w.detach() for name, w in prunable(model).items()}
    if isinstance(kept, int):
        scores = {name: w.abs() for name, w in weights.items()}
        return masks.effective(model, masks.keep_top(scores, kept / masks.size(scores)))
    mask = masks.ones(model)
    for name, count in zip(weights, kept):
        norms = weights[name].norm(dim=1)
        units = masks.keep_top({"": norms}, count / len(norms))[""]
        mask[name] = units[:, None].expand_as(mask[name]).clone()
    return masks.effective(model, mask)
