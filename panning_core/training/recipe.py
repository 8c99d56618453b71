"""How to train: a ``Recipe``, the published ones, and the batches that follow from its seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import data
from ..data import Split
from ..errors import UserError, is_number, pick, unknown, whole
from ..names import Table

#: a step's images, labels and learning rate
Step = tuple[Tensor, Tensor, float]

#: learning-rate factor at step t of ``steps``
DECAYS: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda t, steps: 0.5 * (1 + math.cos(math.pi * t / steps)),
    # at epochs 60 and 120 of 160
    "steps": lambda t, steps: 0.1 ** ((t >= steps * 3 // 8) + (t >= steps * 3 // 4)),
    # Smith 2018: up for three tenths, then down
    "one-cycle": lambda t, steps: min((t + 1) / (0.3 * steps), (steps - t) / (0.7 * steps)),
    "constant": lambda t, steps: 1.0,
}
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum on the mean cross-entropy, unless ``train`` is told another
    optimiser or loss.

    Attributes:
        epochs, batch_size: passes over the training split, images a step (the last step of an epoch
            takes what is left).
        lr, momentum, weight_decay, nesterov: as in ``torch.optim.SGD``; BatchNorm and biases decay
            too, as in the papers' code.
        decay: ``"cosine"`` to 0; ``"steps"``, a tenth after 3/8 and after 3/4 of the steps;
            ``"one-cycle"``, in a line up to ``lr`` and down to 0; or ``"constant"``.
        warm_up: epochs in which the rate rises in a line to what ``decay`` asks for.
        augment: random crop (4 pixels) and flip.
        precision: ``"fp32"``, or ``"bf16"`` for autocast: weights stay float32, products are of
            bfloat16 numbers.
        seed: of the order of the images and of the augmentation.
    """

    epochs: int = 80
    batch_size: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    decay: str = "cosine"
    augment: bool = False
    precision: str = "fp32"
    seed: int = 0
    warm_up: int = 0

    def __post_init__(self):
        pick("decay", self.decay, DECAYS)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        for name in ("epochs", "batch_size"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed)
        if whole("warm_up", self.warm_up) > self.epochs:
            raise UserError(
                f"warm_up is {self.warm_up} of {self.epochs} epochs; "
                "it must end with the training at the latest"
            )
        for name in ("lr", "momentum", "weight_decay"):
            if not is_number(value := getattr(self, name)) or value < 0:
                raise UserError(f"{name} is {value!r}; it must be a number of at least 0")
        if self.nesterov and not self.momentum:
            raise UserError("nesterov needs a momentum above 0")


#: Published recipes (Kang et al. 2022's code; Tanaka et al. 2020, figure 6), and a short one for
#: processors; its rate and batch are the best of a few on the validation images, with SNIP's and
#: SynFlow's masks of ResNet-20 at 98 %, seed 0. A study says how it departs from a recipe.
RECIPES = Table(
    "panning_core.training.RECIPES",
    {
        "mnist": Recipe(),
        "mnist-warm-up": Recipe(warm_up=5),
        "fashion-mnist": Recipe(augment=True),
        "cifar": Recipe(epochs=180, batch_size=128, weight_decay=5e-4, augment=True),
        "synflow-cifar": Recipe(
            epochs=160, batch_size=128, nesterov=True, decay="steps", augment=True
        ),
        "cifar-short": Recipe(
            epochs=1, batch_size=64, lr=0.4, weight_decay=5e-4, nesterov=True, decay="one-cycle"
        ),
    },
)


def epochs(
    split: Split, recipe: Recipe, drawn: torch.Generator | None = None, done: int = 0
) -> Iterator[Iterator[Step]]:
    """For each epoch its steps. Everything that depends on the seed of ``recipe`` happens here.

    Args:
        drawn: where the order of the images and the augmentation come from, epoch after epoch; None
            is a new generator of the recipe's seed.
        done: epochs to leave out, those that ``drawn`` has seen already.
    """
    generator = torch.Generator().manual_seed(recipe.seed) if drawn is None else drawn
    per_epoch = math.ceil(len(split) / recipe.batch_size)

    def steps(epoch: int) -> Iterator[Step]:
        order = torch.randperm(len(split), generator=generator).to(split.x.device)
        for step, index in enumerate(order.split(recipe.batch_size), epoch * per_epoch):
            # several times faster than split.x[index]
            x = split.x.index_select(0, index)
            x = data.crop_and_flip(x, generator) if recipe.augment else x
            rising = min(1.0, (step + 1) / (per_epoch * recipe.warm_up)) if recipe.warm_up else 1.0
            factor = DECAYS[recipe.decay](step, per_epoch * recipe.epochs)
            yield x, split.y[index], rising * recipe.lr * factor

    return map(steps, range(done, recipe.epochs))
