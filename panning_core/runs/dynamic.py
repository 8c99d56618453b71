"""Sparse training and gradual pruning beside masks that were found before training, in one loop.

Every run ends with the same number of weights, was trained by the same recipe, and records the
FLOPs of its whole training: those of finding a mask before it, and of each step under the mask of
that step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from .. import data, masks, models, pruning, training
from ..data import Splits
from ..errors import UserError, fraction, unknown, whole
from ..masks import Mask
from ..methods import registry
from ..methods.dynamic import Plan, Update, begin
from . import base
from .base import short

#: images a step, and of each class in a batch that a mask is found with
BATCH, PER_CLASS = 100, 10
#: images that are looked at after each epoch
GLANCE = 100
#: masks that stay as they are: all weights, and random ones with ERK's share for each layer
DENSE, RANDOM = "dense", "random-erk"
#: masks that stay and are found before the training: gradients that a round takes, of each image of
#: its batch and of an image of ones; the product of the Hessian with one counts as two
FOUND = {
    "snip": (1, 0),
    "iterative-snip": (1, 0),
    "grasp": (3, 0),
    "synflow": (0, 1),
    "panning": (3, 1),
}


@dataclass(frozen=True)
class Dynamic(base.Run):
    """One network, trained once: SGD with Nesterov momentum 0.9, weight decay 5e-4, and a cosine to
    0. GraNet's authors have two steps of a tenth instead, in 160 epochs of CIFAR.

    Attributes:
        seed: of the initial weights, the first mask, random growth and the order of the images.
        dataset, images: a name of ``data.load``, and how many of its first training images; None
            are all.
        model: a key of ``models.MODELS``.
        method: a name of ``registry.moving()``; or, for a mask that stays, ``DENSE``, ``RANDOM`` or
            a key of ``FOUND``.
        sparsity: in the end; 0 for the dense network.
        epochs, lr: of the training, and its rate in the first step.
        updates, until, death: as in ``methods.dynamic.Plan``, of methods whose mask moves.
    """

    kind: ClassVar[str] = "dynamic"
    on_cuda: ClassVar[bool] = True
    seed: int = 0
    dataset: str = "digits"
    images: int | None = None
    model: str = "lenet300"
    method: str = "granet"
    sparsity: float = 0.95
    epochs: int = 30
    lr: float = 0.1
    updates: int = 40
    until: float = 0.5
    death: float = 0.5

    def __post_init__(self):
        for what, value, known in (
            ("data set", self.dataset, data.names()),
            ("model", self.model, models.MODELS),
            ("method", self.method, [*registry.moving(), DENSE, RANDOM, *FOUND]),
        ):
            if value not in list(known):
                raise unknown(what, value, known)
        for name, least in (("seed", 0), ("epochs", 1)):
            whole(f"{name} of a dynamic run", getattr(self, name), least)
        if self.images is not None:
            whole("images of a dynamic run", self.images, 1)
        fraction("sparsity of a dynamic run", self.sparsity)
        self.recipe()  # refuses what is no rate
        if self.method == DENSE and self.sparsity:
            raise UserError(f"a dense network has sparsity 0, not {self.sparsity}; name a method")
        if self.method in registry.moving():
            # of one step for each update, the fewest that it can be given
            self._hook(max(whole("updates", self.updates, 2), 2))
        elif moved := {"updates", "until", "death"} & self.canonical().keys():
            raise UserError(
                f"the mask of {self.method} stays as it is; leave out {', '.join(sorted(moved))}"
            )

    def _hook(self, steps: int) -> Update | None:
        """What changes the mask in a training of so many steps; None where it stays."""
        make = registry.method(self.method).update if self.method in registry.moving() else None
        if make is None:
            return None
        plan = Plan(steps, self.updates, self.until, self.death)
        return make(plan, 1 - self.sparsity, self.seed)

    def recipe(self) -> training.Recipe:
        """How it is trained."""
        return training.Recipe(
            self.epochs, BATCH, self.lr, weight_decay=5e-4, nesterov=True, seed=self.seed
        )

    def update(self, images: int) -> Update | None:
        """What changes the mask in a training on so many images; None where it stays.

        Raises:
            UserError: a training that is too short for its updates.
        """
        return self._hook(self.epochs * -(-images // BATCH))

    def execute(self, context: base.Context) -> dict:
        """Find the first mask, train, and measure.

        Returns:
            ``test_accuracy`` (last epoch) and ``validation_accuracy``; ``density`` and
            ``effective_density`` at the end, ``kept_weights``; ``inference_flops`` an image;
            ``training_flops`` and ``pruning_flops`` (of the whole training, and before it),
            ``dense_flops`` (of the training of the dense network over as many epochs),
            ``train_seconds``, ``prune_seconds`` and the ``engine``.
        """
        splits = data.load(self.dataset).first(train=self.images).to(context.device)
        model = models.build(self.model, splits.input_shape, splits.classes, self.seed)
        model = model.to(context.device)
        update, start = self.update(len(splits.train)), time.perf_counter()
        mask = first_mask(self, model, splits, update)
        seconds = time.perf_counter() - start
        # What is measured after each epoch is not recorded, and would take as long as the training.
        seen = splits.first(validation=GLANCE, test=GLANCE)
        log = training.train(model, mask, seen, self.recipe(), update=update)
        return {
            **measured(model, log.attrs.get("mask", mask)),
            "test_accuracy": training.tested(model, splits.test),
            "validation_accuracy": training.tested(model, splits.validation),
            "training_flops": log.attrs["training_flops"],
            "pruning_flops": spent_before(self.method, model, splits.classes),
            "dense_flops": self.epochs * len(splits.train) * dense_step(model),
            "prune_seconds": short(seconds),
            "train_seconds": short(log.attrs["seconds"]),
            "engine": log.attrs["engine"],
        }


def first_mask(run: Dynamic, model: nn.Module, splits: Splits, update: Update | None) -> Mask:
    """The mask with which the training begins."""
    density = 1 - run.sparsity
    if update is not None:
        return registry.method(run.method).find(model, splits, update.start, run.seed)[0]
    if run.method not in FOUND:
        return begin(model, density, run.seed)
    batches = data.balanced_batches(
        splits.train, PER_CLASS, torch.Generator().manual_seed(run.seed)
    )
    return pruning.prune(model, run.method, density, batches, seed=run.seed)[0]


def spent_before(method: str, model: nn.Module, classes: int) -> int:
    """FLOPs of finding a mask before the training, all weights counted in every round."""
    if method not in FOUND:
        return 0
    of_batch, of_ones = FOUND[method]
    gradients = of_batch * PER_CLASS * classes + of_ones
    return registry.method(method).rounds * gradients * dense_step(model)


def dense_step(model: nn.Module) -> int:
    """FLOPs of the dense network's gradients of an image, a third of them forward."""
    return 3 * masks.flops(model, masks.ones(model))


def measured(model: nn.Module, mask: Mask) -> dict:
    """What is left of the weights, and what it costs to use them."""
    return {
        "kept_weights": masks.count(mask),
        "density": short(masks.density(mask)),
        "effective_density": short(masks.density(masks.effective(model, mask))),
        "inference_flops": masks.flops(model, mask),
    }
