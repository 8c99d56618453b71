"""Prune or freeze: the same weights are trained, and all others are 0 or stay at their random
initial values (Wimmer, Mehnert & Condurache 2020, FreezeNet, arXiv 2011.14087, and their survey of
2022, arXiv 2205.08099).

The network computes with w * S + z * w0 * (1 - S), with w0 the initial weights and z = 0 (pruned)
or 1 (frozen); S is chosen before training, and both train the same weights by the same recipe.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import nn
from torch.func import functional_call

from .. import data, masks, metrics, models, training
from ..data import Splits
from ..errors import UserError, is_number, pick, whole
from ..masks import Mask
from ..methods.partial_updates import PartialSGD
from ..metrics import Batch
from . import base
from .base import short

#: images of each class in the batch that chooses
PER_CLASS = 10
#: images that are looked at after each epoch
GLANCE = 100
#: bytes of a number, of an index and of a seed
BYTES = 4
#: what becomes of the weights that are not trained
OTHERS = ("frozen", "pruned")
#: who chooses; ``LAST`` takes the last layer, whatever the batch says
SCORES = {"snip": metrics.snip, "random": metrics.random}
LAST = "last-layer"


@dataclass(frozen=True)
class Freeze(base.Run):
    """One network, trained once: SGD with momentum 0.9, a cosine to 0, no weight decay; PyTorch's
    initial values.

    Attributes:
        seed: of the initial weights, the batch that chooses, and the order of the images.
        dataset, images: a name of ``data.load``, and how many of its first training images; None
            are all.
        others: ``"frozen"`` or ``"pruned"``.
        choice: ``"snip"`` (as FreezeNet), ``"random"``, or ``"last-layer"``.
        trained: share of the weights that are trained, in (0, 1]; biases are trained besides. None
            for the last layer, which says so itself.
        epochs, batch_size, lr: of the training.
    """

    kind: ClassVar[str] = "freeze"
    on_cuda: ClassVar[bool] = True
    seed: int = 0
    dataset: str = "digits"
    images: int | None = None
    others: str = "frozen"
    choice: str = "snip"
    trained: float | None = 0.05
    epochs: int = 20
    batch_size: int = 50
    lr: float = 0.1

    def __post_init__(self):
        pick("fate of the other weights", self.others, dict.fromkeys(OTHERS))
        pick("choice", self.choice, dict.fromkeys([*SCORES, LAST]))
        for name, least in (("seed", 0), ("epochs", 1), ("batch_size", 2)):
            whole(f"{name} of a frozen run", getattr(self, name), least)
        if self.images is not None:
            whole("images of a frozen run", self.images, 2)
        if not is_number(self.lr) or not self.lr > 0:
            raise UserError(f"lr of a frozen run is {self.lr!r}; it must be a number above 0")
        if self.choice == LAST:
            if self.trained is not None or self.others == "pruned":
                raise UserError(
                    "the last layer alone is trained on what is frozen before it; leave out "
                    "others and set trained to None"
                )
        elif not is_number(self.trained) or not 0 < self.trained <= 1:
            raise UserError(
                f"trained is {self.trained!r}; it is the share of weights that are trained, in "
                "(0, 1], for example 0.05"
            )

    def recipe(self) -> training.Recipe:
        """How it is trained."""
        return training.Recipe(
            self.epochs, self.batch_size, self.lr, weight_decay=0, seed=self.seed
        )

    def execute(self, context: base.Context) -> dict:
        """Choose, train and measure.

        Returns:
            ``test_accuracy`` (last epoch), ``validation_accuracy``; ``weights``,
            ``trained_weights``; ``stored_bytes``, ``training_bytes``, ``training_flops`` and
            ``inference_flops`` of an image, as ``costs`` counts them; ``flow``, the squared
            gradient of the trained weights before the first step over that in the dense network;
            ``cpu_seconds`` of the training and the ``engine``.
        """
        splits = data.load(self.dataset).first(train=self.images).to(context.device)
        model = models.build("lenet300", splits.input_shape, splits.classes, self.seed)
        model = model.to(context.device)
        generator = torch.Generator().manual_seed(self.seed)
        batch = data.balanced_batch(splits.train, PER_CLASS, generator=generator)
        mask = chosen(self, model, batch)
        moved = flow(model, mask, batch, self.others) / flow(model, mask, batch, "frozen")
        begun = time.process_time()
        log = train(model, mask, splits, self.recipe(), self.others)
        seconds = time.process_time() - begun
        return {
            "test_accuracy": training.tested(model, splits.test),
            "validation_accuracy": training.tested(model, splits.validation),
            **costs(model, mask, self.others),
            "flow": short(moved),
            "cpu_seconds": short(seconds),
            "engine": log.attrs["engine"],
        }


def chosen(run: Freeze, model: nn.Module, batch: Batch) -> Mask:
    """The weights that are trained."""
    everything = masks.ones(model)
    if run.choice == LAST:
        last = list(everything)[-1]
        return {name: m & (name == last) for name, m in everything.items()}
    generator = torch.Generator().manual_seed(run.seed)
    scores = SCORES[run.choice](model, everything, batch, generator)
    return masks.keep_top(scores, run.trained)


def train(
    model: nn.Module, mask: Mask, splits: Splits, recipe: training.Recipe, others: str
) -> pd.DataFrame:
    """Train the weights of ``mask`` in place; the others become 0 or stay as they are.

    A frozen layer without a trained weight stays entirely, with its bias. What is looked at after
    each epoch is not recorded and is cut to a few images.
    """
    seen = splits.first(validation=GLANCE, test=GLANCE)
    if others == "pruned":
        return training.train(model, mask, seen, recipe)
    stand_still(model, mask)
    part = {weight: mask[name] for name, weight in models.prunable(model).items()}

    def partial(parameters: list[nn.Parameter]) -> PartialSGD:
        return PartialSGD(
            parameters,
            {weight: m for weight, m in part.items() if weight.requires_grad and not m.all()},
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )

    return training.train(model, masks.ones(model), seen, recipe, optimiser=partial)


def stand_still(model: nn.Module, mask: Mask) -> None:
    """Freeze the layers without a trained weight, so that autograd leaves them out."""
    for name, m in mask.items():
        if not m.any():
            model.get_submodule(name.rpartition(".")[0]).requires_grad_(False)


def flow(model: nn.Module, mask: Mask, batch: Batch, others: str) -> float:
    """Squared gradient of the loss on the batch by the weights of ``mask``, the others frozen as
    they are or pruned to 0."""
    weights = models.prunable(model)
    used = {
        name: (w if others == "frozen" else w * mask[name]).detach().requires_grad_()
        for name, w in weights.items()
    }
    loss = nn.functional.cross_entropy(functional_call(model, used, batch[0]), batch[1])
    gradients = torch.autograd.grad(loss, list(used.values()))
    return sum(float((g * m).square().sum()) for g, m in zip(gradients, mask.values()))


def costs(model: nn.Module, mask: Mask, others: str) -> dict:
    """What must be stored and computed, for layers that are linear, biases left out.

    ``stored_bytes``: each trained weight with its index, and a seed for the frozen ones; a whole
    network needs no index. ``training_bytes``: the weights that the network computes with (pruned
    ones with their index), and gradient and momentum of the trained ones. FLOPs of an image: 2 a
    weight forward; in training 2 a weight again for the gradient by the inputs of every layer above
    the first with a trained weight, and 2 a trained weight for its own gradient.
    """
    count = {name: m.numel() for name, m in mask.items()}
    learned = {name: masks.count({name: m}) for name, m in mask.items()}
    used = count if others == "frozen" else learned
    names = list(mask)
    first = next(place for place, name in enumerate(names) if learned[name])
    through = sum(used[name] for name in names[first + 1 :])
    trained, weights = sum(learned.values()), sum(count.values())
    whole_layers = all(learned[name] in (0, count[name]) for name in names)
    index = 0 if whole_layers else trained
    seed = int(others == "frozen" and trained < weights)
    return {
        "weights": weights,
        "trained_weights": trained,
        "stored_bytes": BYTES * (trained + index + seed),
        "training_bytes": BYTES * (sum(used.values()) + index + 2 * trained),
        "training_flops": 2 * (sum(used.values()) + through + trained),
        "inference_flops": 2 * sum(used.values()),
    }
