"""Differentiable sparsification: exact zeros by gradient descent, without a step that thresholds
(Lee 2019, arXiv 1910.03201; single weights as in Lee 2020, arXiv 2006.13716).

The hidden units of a layer compete for shares of a whole. With one free number alpha a unit and one
beta a layer

    z = exp(alpha) - sigmoid(beta) * sum(exp(alpha)),   a = max(z, 0) / sum(max(z, 0))

and unit i is multiplied by n a_i, so that the mean is 1. A unit whose part of the sum is below
sigmoid(beta) is exactly 0, and comes back when its part or beta changes: through the sum it gets a
gradient even where it is 0. Single weights are shrunk by a part of the sum of their layer,

    w = sign(v) * max(|v| - sigmoid(beta) * sum(|v|), 0).

The formulas are from memory and the second is an inference, because no full text could be read. So
are: the backward pass through the maximum, which is that of ReLU; the penalty, ``breadth``, the
paper's p-norm with p < 1 over what it is at most; and Adam in place of SGD, which at one rate for
all layers jumps from no zeros to nothing but zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import masks, training
from ..data import Splits
from ..errors import UserError, is_number, pick
from ..masks import Mask
from ..models import prunable

#: sigmoid(beta) begins at this part of an even share: no unit is 0 at first, and of weights that
#: are drawn evenly a quarter
START = 0.5
#: spread of alpha at first; gates that are equal would all die at once
SPREAD = 0.01
#: below this a number has no influence on the gradient of the penalty, which would be infinite at 0
LEAST = 1e-12


def shares(alpha: Tensor, beta: Tensor) -> Tensor:
    """a [n], which sums to 1; all 0 where sigmoid(beta) exceeds the largest share."""
    left = torch.relu(torch.softmax(alpha, 0) - torch.sigmoid(beta))
    total = left.sum()
    return left / torch.where(total > 0, total, torch.ones_like(total))


def shrunk(weight: Tensor, beta: Tensor) -> Tensor:
    """Every weight nearer to 0 by the part sigmoid(beta) of the sum of all absolute values."""
    size = weight.abs()
    return weight.sign() * torch.relu(size - torch.sigmoid(beta) * size.sum())


def norm(values: Tensor, p: float = 0.5) -> Tensor:
    """(sum of values^p)^(1 / p) of values of at least 0; zeros have no part in it, nor a
    gradient."""
    alive = values[values > 0].clamp_min(LEAST)
    return alive.pow(p).sum().pow(1 / p)


def breadth(values: Tensor) -> Tensor:
    """Over how many of n values their sum is spread, as a part of n in [0, 1]: the 1/2-norm over n
    times the sum. k equal values and zeros give k / n, whatever the scale."""
    total = values.sum() * values.numel()
    return norm(values) / torch.where(total > 0, total, torch.ones_like(total))


class Competing(nn.Module):
    """Gates of the inputs of a layer, which are the units of the one before."""

    def __init__(self, weight: Tensor, generator: torch.Generator):
        super().__init__()
        count = weight.shape[1]
        start = SPREAD * torch.randn(count, generator=generator)
        self.alpha = nn.Parameter(start.to(weight))
        self.beta = nn.Parameter(_start(weight, count))

    def forward(self, weight: Tensor) -> Tensor:
        gates = len(self.alpha) * shares(self.alpha, self.beta)
        return weight * gates.view(1, -1, *[1] * (weight.dim() - 2))

    def values(self, weight: Tensor) -> Tensor:
        """What is 0 or alive, of at least 0."""
        return shares(self.alpha, self.beta)


class Shrinking(nn.Module):
    """The threshold of the single weights of a layer."""

    def __init__(self, weight: Tensor, generator: torch.Generator):
        super().__init__()
        self.beta = nn.Parameter(_start(weight, weight.numel()))

    def forward(self, weight: Tensor) -> Tensor:
        return shrunk(weight, self.beta)

    def values(self, weight: Tensor) -> Tensor:
        """What is 0 or alive, of at least 0."""
        return weight.abs()


def _start(like: Tensor, count: int) -> Tensor:
    return torch.tensor(math.log(START / count / (1 - START / count))).to(like)


#: structure -> what is put on a layer; hidden units have gates at the layers that read them
STRUCTURES: dict[str, Callable[[Tensor, torch.Generator], Competing | Shrinking]] = {
    "units": Competing,
    "weights": Shrinking,
}


class Sparse:
    """Puts gates on the hidden units, or thresholds on the weights, of ``model``.

    Attributes:
        gates: by the name of the weight.

    Raises:
        UserError: an unknown structure, or a network that has gates already.
    """

    def __init__(self, model: nn.Module, structure: str, seed: int = 0):
        make = pick("structure", structure, STRUCTURES)
        if any(parametrize.is_parametrized(layer) for layer in model.modules()):
            raise UserError("the network has gates already; remove them first")
        generator = torch.Generator().manual_seed(seed)
        names = list(prunable(model))[1 if structure == "units" else 0 :]
        self.layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
        self.gates: dict[str, Competing | Shrinking] = {}
        for name, layer in self.layers.items():
            self.gates[name] = make(layer.weight.detach(), generator)
            parametrize.register_parametrization(layer, "weight", self.gates[name])

    def values(self) -> list[Tensor]:
        """Of each layer what is exactly 0 or alive, of at least 0."""
        return [gate.values(self.layers[name].weight) for name, gate in self.gates.items()]

    def penalty(self) -> Tensor:
        """The ``breadth`` of each layer, weighted by how much it has: about the share alive."""
        values = self.values()
        return sum(v.numel() * breadth(v) for v in values) / sum(v.numel() for v in values)

    @torch.no_grad()
    def alive(self) -> list[Tensor]:
        """Of each layer what is not 0, without any tolerance."""
        return [v > 0 for v in self.values()]

    def remove(self) -> None:
        """An ordinary network again, whose weights hold the zeros."""
        for layer in self.layers.values():
            parametrize.remove_parametrizations(layer, "weight")


class Learned(NamedTuple):
    """What came of it.

    Attributes:
        mask: the effective weights.
        alive: units or weights that are not 0, of each layer that has gates.
        died, revived: how many were 0 after some step, and how many of them are not at the end.
        curve: share alive after each epoch.
    """

    mask: Mask
    alive: list[int]
    died: int
    revived: int
    curve: list[float]


def learn(
    model: nn.Module,
    splits: Splits,
    structure: str,
    penalty: float,
    seed: int,
    *,
    epochs: int = 20,
    batch_size: int = 50,
    lr: float = 2e-3,
    gate_lr: float = 0.02,
) -> Learned:
    """Train ``model`` in place on cross-entropy + ``penalty`` * ``Sparse.penalty``, by Adam with a
    cosine to 0; afterwards it is an ordinary network with exact zeros.

    Args:
        lr: of weights and biases.
        gate_lr: of gates and thresholds.

    Raises:
        UserError: a negative penalty, a rate that is not above 0, or bad input of ``Sparse``.
    """
    _check_rates(penalty, lr, gate_lr)
    training.check(model, splits, batch_size)
    sparse = Sparse(model, structure, seed)
    optimiser = _adam(model, sparse)
    recipe = training.Recipe(epochs, batch_size, lr, seed=seed)
    now, curve = torch.cat([a.flatten() for a in sparse.alive()]), []
    died = ~now
    model.train()
    for steps in training.epochs(splits.train, recipe):
        for x, y, rate in steps:
            for group, each in zip(optimiser.param_groups, (rate, rate * gate_lr / lr)):
                group["lr"] = each
            optimiser.zero_grad()
            with parametrize.cached():
                loss = nn.functional.cross_entropy(model(x), y) + penalty * sparse.penalty()
            loss.backward()
            optimiser.step()
            now = torch.cat([a.flatten() for a in sparse.alive()])
            died |= ~now
        curve.append(float(now.double().mean()))
    alive = [int(a.sum()) for a in sparse.alive()]
    sparse.remove()
    left = {name: w.detach() != 0 for name, w in prunable(model).items()}
    mask = masks.effective(model, left)
    return Learned(mask, alive, int(died.sum()), int((died & now).sum()), curve)


def _check_rates(penalty: float, lr: float, gate_lr: float) -> None:
    if not all(map(is_number, (penalty, lr, gate_lr))) or penalty < 0 or min(lr, gate_lr) <= 0:
        raise UserError(
            f"penalty {penalty!r}, lr {lr!r} and gate_lr {gate_lr!r} must be numbers, the first of "
            "at least 0 and the rates above 0"
        )


def _adam(model: nn.Module, sparse: Sparse) -> torch.optim.Adam:
    """Of two groups: weights and biases, then gates and thresholds."""
    own = {id(p) for gate in sparse.gates.values() for p in gate.parameters()}
    groups = [[p for p in model.parameters() if (id(p) in own) == of_gates] for of_gates in (0, 1)]
    return torch.optim.Adam([{"params": group} for group in groups])
