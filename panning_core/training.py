"""Train one masked network. A pruned weight and its momentum are exactly 0 after every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from . import data, masks, sparse
from .data import Split, Splits
from .errors import UserError, pick
from .masks import Mask
from .models import prunable

#: learning-rate factor at step t of ``steps``
DECAYS: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda t, steps: 0.5 * (1 + math.cos(math.pi * t / steps)),
    "steps": lambda t, steps: 0.1 ** ((t >= steps * 3 // 8) + (t >= steps * 3 // 4)),  # at epochs 60 and 120 of 160
}


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum on the mean cross-entropy.

    Attributes:
        epochs, batch_size: passes over the training split, images a step (the last step of an epoch takes what is left).
        lr, momentum, weight_decay, nesterov: as in ``torch.optim.SGD``; BatchNorm and biases decay too, as in the papers' code.
        decay: ``"cosine"`` to 0, or ``"steps"``, a tenth after 3/8 and after 3/4 of the steps.
        augment: random crop (4 pixels) and flip.
        precision: ``"fp32"``, or ``"bf16"`` for autocast (meant for CUDA).
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

    def __post_init__(self):
        pick("decay", self.decay, DECAYS)
        pick("precision", self.precision, {"fp32": 0, "bf16": 0})
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be a number of at least 0")
        if self.nesterov and not self.momentum:
            raise UserError("nesterov needs a momentum above 0")


#: Published recipes (algorithms: Kang et al. 2022's code; SynFlow's figure 6). A study says how it departs from one.
RECIPES = {
    "mnist": Recipe(),
    "fashion-mnist": Recipe(augment=True),
    "cifar": Recipe(epochs=180, batch_size=128, weight_decay=5e-4, augment=True),
    "synflow-cifar": Recipe(epochs=160, batch_size=128, nesterov=True, decay="steps", augment=True),
}


class Dense:
    """The reference engine: PyTorch's modules and optimiser on the whole weight tensors."""

    name = "dense"

    def __init__(self, model: nn.Module, mask: Mask, recipe: Recipe):
        self.model, self.recipe = model, recipe
        weights = prunable(model)
        self.pruned = [(weights[name], ~m) for name, m in mask.items() if not m.all()]
        with torch.no_grad():
            for weight, gone in self.pruned:
                weight[gone] = 0.0
        self.device = next(model.parameters()).device
        self.optimiser = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov)

    def _forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            return self.model(x).float()

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        self.model.train()
        self.optimiser.param_groups[0]["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self._forward(x), y)
        loss.backward()
        # A pruned weight starts at 0 and gets no gradient: then decay, momentum and step leave it at exactly 0.
        # Filled rather than multiplied, because 0 * inf of a diverging run would bring it back as NaN.
        for weight, gone in self.pruned:
            weight.grad.masked_fill_(gone, 0.0)
        self.optimiser.step()
        return loss.detach()

    def logits(self, x: Tensor) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self._forward(part) for part in x.split(1000)])

    def store(self) -> None:
        """Nothing to do: the model's own weights were trained."""


class Sparse:
    """The engine that touches surviving weights only (``sparse.SparseNet``): the same steps, many times faster."""

    name = "sparse"

    def __init__(self, model: nn.Module, mask: Mask, recipe: Recipe):
        self.net, self.recipe = sparse.SparseNet(model, mask), recipe
        self.logits, self.store = self.net.logits, self.net.store

    def step(self, x: Tensor, y: Tensor, lr: float) -> float:
        return self.net.step(x, y, lr, self.recipe.momentum, self.recipe.weight_decay, self.recipe.nesterov)


ENGINES = {"dense": Dense, "sparse": Sparse}
SPARSE_BELOW = 0.35  #: density under which the sparse engine is used; about where both cost the same


def choose_engine(model: nn.Module, mask: Mask, recipe: Recipe) -> str:
    """``"sparse"`` where it can train the network and pays, else ``"dense"``."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    pays = on_cpu and recipe.precision == "fp32" and masks.density(mask) < SPARSE_BELOW
    return "sparse" if pays and sparse.unsupported(model) is None else "dense"


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Fraction of rows of ``logits`` [n, classes] whose largest entry is the label."""
    return float((logits.argmax(1) == y).double().mean())


def train(model: nn.Module, mask: Mask, splits: Splits, recipe: Recipe, engine: str | None = None) -> pd.DataFrame:
    """Train ``model`` in place under ``mask``; afterwards every pruned weight is exactly 0.

    The same seed, device, thread count and engine give the same bits.

    Args:
        splits: on the model's device. Test accuracy is recorded at every epoch and decides nothing.
        engine: a key of ``ENGINES``; None is ``choose_engine``'s.

    Returns:
        One row an epoch: epoch (from 1), loss (mean over the training images), validation_accuracy, test_accuracy.
        A run whose loss stops being finite ends with that epoch's row; its loss says so.

    Raises:
        UserError: a mask of another network, an unknown engine, or a network the sparse engine can not train.
    """
    masks.check(model, mask)
    engine = engine or choose_engine(model, mask, recipe)
    if engine == "sparse" and (reason := sparse.unsupported(model)):
        raise UserError(f"the sparse engine can not train this network: {reason}; use engine='dense'")
    trainer = pick("engine", engine, ENGINES)(model, mask, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    x, y = splits.train.x, splits.train.y
    per_epoch = math.ceil(len(y) / recipe.batch_size)
    rows, step = [], 0
    for epoch in range(1, recipe.epochs + 1):
        total = torch.zeros((), dtype=torch.double, device=x.device)
        for index in torch.randperm(len(y), generator=generator).to(x.device).split(recipe.batch_size):
            inputs = data.crop_and_flip(x[index], generator) if recipe.augment else x[index]
            lr = recipe.lr * DECAYS[recipe.decay](step, per_epoch * recipe.epochs)
            total += trainer.step(inputs, y[index], lr) * len(index)
            step += 1
        rows.append({"epoch": epoch, "loss": float(total) / len(y), **{
            f"{part}_accuracy": _score(trainer, getattr(splits, part)) for part in ("validation", "test")}})
        if not math.isfinite(rows[-1]["loss"]):
            break
    trainer.store()
    log = pd.DataFrame(rows)
    log.attrs["engine"] = trainer.name
    return log


def _score(trainer: Dense | Sparse, split: Split) -> float:
    return accuracy(trainer.logits(split.x), split.y)
