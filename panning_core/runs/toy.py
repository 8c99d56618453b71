"""The toy task of Zhang, Tao & Zhang 2023: two functions of two inputs each, whose two separate
sub-graphs the gates should find.

Four inputs, uniform in (-1, 1), y1 = 3 sin((x1 - x2)^2) and y2 = (x3 + x4)^3; a network 4-10-10-2
with SiLU, the L1 loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import masks
from ..analysis import pathways
from ..errors import UserError, is_number, whole
from ..methods.gumbel_softmax import Gates, falling, fit_budget, fit_penalty
from ..models import prunable
from . import base

#: [output, input]: what each output may see
WANTED = torch.tensor([[True, True, False, False], [False, False, True, True]])
GATES = 160  #: weights of the network
POINTS = 1000  #: to train on, and as many to test on


@dataclass(frozen=True)
class Toy(base.Run):
    """One training; the defaults are the published settings.

    Attributes:
        seed: of the data, the initial values and the noise.
        steps: on all points at once.
        lr, penalty: as in ``gumbel_softmax.fit_penalty``, with the target 0.
        temperature: of the gates.
        budget, gate_lr: if there is a budget, ``gumbel_softmax.fit_budget`` instead.
    """

    kind: ClassVar[str] = "toy"
    seed: int = 0
    steps: int = 7500
    lr: float = 0.01
    penalty: float = 0.01
    temperature: float = 3.0
    budget: int | None = None
    gate_lr: float = 0.03

    def __post_init__(self):
        for name, least in (("seed", 0), ("steps", 1), ("budget", 1)):
            value = getattr(self, name)
            if name != "budget" or value is not None:
                whole(f"{name} of a toy", value, least)
        if self.budget is not None and self.budget > GATES:
            raise UserError(f"budget of a toy is {self.budget}; its network has {GATES} gates")
        for name in ("lr", "penalty", "temperature", "gate_lr"):
            value = getattr(self, name)
            if not is_number(value) or not value > 0:
                raise UserError(f"{name} of a toy is {value!r}; it must be a number above 0")

    def execute(self, context: base.Context) -> dict:
        return run(self)


def points(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(x [points, 4], y [points, 2])."""
    x = 2 * torch.rand((POINTS, 4), generator=generator) - 1
    return x, torch.stack([3 * torch.sin((x[:, 0] - x[:, 1]) ** 2), (x[:, 2] + x[:, 3]) ** 3], 1)


def network(generator: torch.Generator) -> nn.Module:
    """4-10-10-2 with SiLU; weights N(0, 1) * 2 / fan-in, biases 2 / fan-in, as in the authors'
    code.
    """
    model = nn.Sequential(
        nn.Linear(4, 10), nn.SiLU(), nn.Linear(10, 10), nn.SiLU(), nn.Linear(10, 2)
    )
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.copy_(
                torch.randn(layer.weight.shape, generator=generator) * 2 / layer.in_features
            )
            layer.bias.fill_(2 / layer.in_features)
    model.input_shape = (4,)
    return model


def run(toy: Toy) -> dict:
    """Train, and say what was found.

    Returns:
        ``test_error`` (mean absolute error of both outputs on the test points) and
        ``constant_error`` (that of the best constants); ``edges``, the effective weights; ``reach``
        [2][4], whether a path leads from an input to an output; ``recovered``, whether that is the
        truth; ``signs`` [2], the share of first-layer units read by both inputs of a function in
        which the two weights have opposite signs; ``weights`` and ``biases`` of the network that is
        left, a nested list for each layer.
    """
    generator = torch.Generator().manual_seed(toy.seed)
    (x, y), (x_test, y_test) = points(generator), points(generator)
    model = network(generator)
    initial = {
        name: torch.randn(w.shape, generator=generator) * 2**0.5 * 2 / w.shape[1]
        for name, w in prunable(model).items()
    }
    # ``initial`` is the difference of two logits N(0, 1) * 2 / fan-in.
    gates = Gates(model, temperature=toy.temperature, generator=generator, initial=initial)
    batches = repeat((x, y), toy.steps)
    if toy.budget:
        fit_budget(
            model,
            gates,
            batches,
            nn.functional.l1_loss,
            falling(gates.count, toy.budget, toy.steps),
            toy.lr,
            toy.gate_lr,
            0.0,
        )
    else:
        fit_penalty(model, gates, batches, nn.functional.l1_loss, toy.lr, toy.penalty)
    mask = gates.mask()
    gates.remove()
    live = masks.effective(model, mask)
    with torch.no_grad():
        for name, w in prunable(model).items():
            w.mul_(mask[name])
        error = float(nn.functional.l1_loss(model(x_test), y_test))
    reach = torch.stack([_reads(model, live, output) for output in range(2)])
    first = model[0].weight.detach() * live["0.weight"]
    signs = []
    for a, b in ((0, 1), (2, 3)):
        both = first[:, a] * first[:, b]
        signs.append(float((both < 0).sum() / (both != 0).sum()) if (both != 0).any() else None)
    return {
        "test_error": error,
        "constant_error": float((y_test - y.median(0).values).abs().mean()),
        "edges": masks.count(live),
        "reach": reach.int().tolist(),
        "recovered": bool((reach == WANTED).all()),
        "signs": signs,
        "weights": [(w.detach() * live[name]).tolist() for name, w in prunable(model).items()],
        "biases": [layer.bias.tolist() for layer in model[::2]],
    }


def _reads(model: nn.Module, live: masks.Mask, output: int) -> Tensor:
    """[4]: the inputs from which a path leads to the output."""
    return pathways.pathway(model, live, output)["0.weight"].any(0)
