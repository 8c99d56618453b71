"""Ball indicators: what a second layer of sigmoids is worth (Safran & Lee 2022, arXiv 2112.02393).

The target is y(x) = 1 inside a ball and 0 outside, on data whose directions are uniform. Of one
width r, and with w_j and b_j drawn alike, three networks learn it by the squared error:

- ``"two-layers"``: sigmoid(sum_j v_j sigmoid(w_j . x + b_j) + c); only v and c are trained;
- ``"features"``: sum_j v_j sigmoid(w_j . x + b_j) + c; only v and c are trained;
- ``"one-layer"``: the same function, and everything is trained.

The theorems could not be read beyond the abstract. Widths, scales, radial laws and rates are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import masks
from ..errors import UserError, fraction_kept, is_number, pick, whole
from . import base

SCALE = 3.0  #: w_j ~ SCALE * N(0, I / d), and b_j is uniform in (-SCALE, 0)
BATCH = 256  #: fresh points a step
TEST, VALIDATION = 20_000, 5_000  #: points
RAREST = 1e-3  #: heavy tails are cut at this probability, or squared errors have no mean
CHUNK = 4_000  #: points whose hidden layer is held at once


def uniform(u: Tensor) -> Tensor:
    """Radii uniform in (0, 2); their median is 1."""
    return 2 * u


def heavy(u: Tensor) -> Tensor:
    """Radii with P(radius > t) = 1 / (2 t^2) from the least one, 1 / sqrt(2); their median is 1."""
    return (2 * u.clamp(min=RAREST)) ** -0.5


#: radial law: uniform numbers in [0, 1) -> radii with median 1
RADII: dict[str, Callable[[Tensor], Tensor]] = {"uniform": uniform, "heavy": heavy}
#: network: (has it a sigmoid on top, are the hidden weights trained)
NETWORKS = {"two-layers": (True, False), "features": (False, False), "one-layer": (False, True)}
OPTIMISERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class BallIndicator(base.Run):
    """One training of one network.

    Attributes:
        seed: of points, weights and mask; networks with one seed share points and first weights.
        dimension: d, of the points.
        radii: a key of ``RADII``.
        network: a key of ``NETWORKS``.
        width: r, hidden units.
        density: of hidden weights that are kept, at random places; the rest is 0 from the start.
        optimiser, rate: a key of ``OPTIMISERS``, and its learning rate.
        steps: of ``BATCH`` fresh points each.
    """

    kind: ClassVar[str] = "ball-indicator"
    seed: int = 0
    dimension: int = 10
    radii: str = "uniform"
    network: str = "two-layers"
    width: int = 300
    density: float = 1.0
    optimiser: str = "adam"
    rate: float = 0.02
    steps: int = 1500

    def __post_init__(self):
        for name, least in (("seed", 0), ("dimension", 1), ("width", 1), ("steps", 1)):
            whole(f"{name} of a ball indicator", getattr(self, name), least)
        for name, known in (("radii", RADII), ("network", NETWORKS), ("optimiser", OPTIMISERS)):
            pick(f"{name} of a ball indicator", getattr(self, name), known)
        fraction_kept(self.density)
        if not round(self.density * self.width * self.dimension):
            raise UserError(
                f"density {self.density} keeps none of the {self.width * self.dimension} hidden "
                "weights of a ball indicator; it must keep one"
            )
        if not is_number(self.rate) or not self.rate > 0:
            raise UserError(
                f"rate of a ball indicator is {self.rate!r}; it must be a number above 0"
            )

    def execute(self, context: base.Context) -> dict:
        """Train, and measure on other points.

        Returns:
            ``squared_error`` and ``misclassified`` (a fraction, at the threshold 1/2) on ``TEST``
            points; ``validation_error``, the squared error on ``VALIDATION`` others;
            ``trained``, the number of trained parameters; ``kept``, of hidden weights.
        """
        generator = torch.Generator().manual_seed(self.seed)
        test = sample(self, TEST, generator)
        validation = sample(self, VALIDATION, generator)
        net = Network(self, generator)
        optimiser = OPTIMISERS[self.optimiser](net.trained, lr=self.rate)
        for _ in range(self.steps):
            x, y = sample(self, BATCH, generator)
            optimiser.zero_grad()
            (net(x) - y).square().mean().backward()
            optimiser.step()
        outputs = evaluate(net, test[0])
        wrong = (outputs > 0.5) != (test[1] > 0.5)
        return {
            "squared_error": _mean_square(outputs - test[1]),
            "misclassified": float(wrong.double().mean()),
            "validation_error": _mean_square(evaluate(net, validation[0]) - validation[1]),
            "trained": net.trained_count,
            "kept": int(net.mask.sum()),
        }


class Network:
    """One of ``NETWORKS``; all numbers that it is made of are drawn in the same order for each.

    Attributes:
        weight [r, d], mask [r, d], bias [r], v [r], c []: the parts of the function.
        trained: those of them that an optimiser may change.
    """

    def __init__(self, run: BallIndicator, generator: torch.Generator):
        shape = (run.width, run.dimension)
        scale = SCALE * (run.dimension * run.density) ** -0.5
        self.weight = scale * torch.randn(shape, generator=generator)
        self.bias = -SCALE * torch.rand(run.width, generator=generator)
        places = {"hidden": torch.rand(shape, generator=generator)}
        self.mask = masks.keep_top(places, run.density)["hidden"]
        self.weight *= self.mask
        self.v, self.c = torch.zeros(run.width), torch.zeros(())
        self.top, hidden = NETWORKS[run.network]
        self.trained = [self.v, self.c, *([self.weight, self.bias] if hidden else [])]
        self.trained_count = 1 + run.width + hidden * (int(self.mask.sum()) + run.width)
        for part in self.trained:
            part.requires_grad_()

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs [n] for points [n, d]."""
        # Masked in every pass, so that a removed weight gets no gradient and stays 0.
        hidden = torch.sigmoid(torch.addmm(self.bias, x, (self.weight * self.mask).T))
        out = hidden @ self.v + self.c
        return torch.sigmoid(out) if self.top else out


def sample(run: BallIndicator, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [n, d] = sqrt(d) * radius * direction, and labels [n]: 1 where the radius is <= 1."""
    direction = torch.randn((n, run.dimension), generator=generator)
    direction /= direction.norm(dim=1, keepdim=True)
    radius = RADII[run.radii](torch.rand(n, generator=generator))
    return run.dimension**0.5 * radius[:, None] * direction, (radius <= 1).float()


def evaluate(net: Network, x: Tensor) -> Tensor:
    """Outputs [n], a chunk of points at a time."""
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(CHUNK)])


def _mean_square(differences: Tensor) -> float:
    return float(f"{differences.double().square().mean():.6g}")
