"""Masks that change while the network trains: gradual pruning, sparse training, and both at once.

A method is two decisions at every update of the mask. Does a global magnitude pruning follow the
cubic schedule (Zhu & Gupta 2018)? And do the weakest weights of each layer give their places to
others, at random or where the gradient is largest?

==========  =======  ============  =========================================
method      prunes   regrows       source
==========  =======  ============  =========================================
GMP         yes      nothing       Zhu & Gupta 2018, with a global threshold
SET         no       at random     Mocanu et al. 2018
RigL        no       by gradient   Evci et al. 2020
GraNet      yes      by gradient   Liu et al. 2021, arXiv 2106.10404
==========  =======  ============  =========================================

All four follow the code of GraNet's authors, also SET and RigL: an update comes after the step of
the optimiser instead of replacing it, death is annealed to ``LEAST_DEATH`` and goes on to the end.
Ours: counts are exact where theirs hang on ties and, for random growth, on Bernoulli draws; the
last pruning reaches the density that was asked for; and there is no update after the last step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import masks, metrics
from ..errors import UserError, fraction, fraction_kept, is_number, pick, whole
from ..masks import Mask
from ..models import prunable

#: of a layer's weights, at the end of the training; no more where it begins lower
LEAST_DEATH = 0.005
#: what tells the draws of one seed's updates apart
STRIDE = 1_000_003


class Way(NamedTuple):
    """What a method does at an update, and the density at which it begins."""

    prunes: bool
    #: ``"gradient"``, ``"random"`` or None, where nothing is exchanged
    growth: str | None
    #: None is the final density
    start: float | None = None


WAYS = {
    "gmp": Way(True, None, 1.0),
    "set": Way(False, "random"),
    "rigl": Way(False, "gradient"),
    "granet": Way(True, "gradient", 1.0),
    "granet-st": Way(True, "gradient", 0.5),
    # control: is it the gradient, or that weights are exchanged at all?
    "granet-random": Way(True, "random", 1.0),
}


def cubic(start: float, end: float, done: float) -> float:
    """Density after the part ``done`` in [0, 1] of a gradual pruning (Zhu & Gupta 2018, eq. 1)."""
    return end + (start - end) * (1 - done) ** 3


def annealed(rate: float, done: float) -> float:
    """Death rate after the part ``done`` in [0, 1] of the training: half a cosine from ``rate`` to
    ``LEAST_DEATH``."""
    least = min(rate, LEAST_DEATH)
    return least + (rate - least) * (1 + math.cos(math.pi * done)) / 2


def begin(model: nn.Module, density: float, seed: int) -> Mask:
    """The mask that a training begins with: round(density * N) weights at random places, ERK's
    share for each layer (Evci et al. 2020), or all of them."""
    generator = torch.Generator().manual_seed(seed)
    noise = metrics.random(model, masks.ones(model), None, generator)
    return masks.keep_top(noise, density, "erk")


def shrink(model: nn.Module, mask: Mask, density: float) -> Mask:
    """The round(density * N) largest kept weights of the whole network, or ``mask`` where it has
    no more."""
    if masks.count(mask) <= round(density * masks.size(mask)):
        return mask
    weights = prunable(model)
    return masks.keep_top({name: _sizes(weights[name], m) for name, m in mask.items()}, density)


def survivors(weight: Tensor, mask: Tensor, rate: float) -> Tensor:
    """``mask`` without the ceil(rate * n) smallest of its n weights."""
    kept = masks.count({"": mask})
    # 0.07 * 100 is 7.000000000000001
    return _largest(_sizes(weight, mask), kept - math.ceil(round(rate * kept, 9)))


def grown(mask: Tensor, scores: Tensor, count: int) -> Tensor:
    """``mask`` and the ``count`` largest scores outside it."""
    return mask | _largest(scores.masked_fill(mask, -torch.inf), count)


def exchange(
    model: nn.Module,
    mask: Mask,
    rate: float,
    generator: torch.Generator | None = None,
    restart: bool = False,
) -> Mask:
    """In each layer the part ``rate`` of the kept weights dies, the smallest first, and as many
    grow: where the gradient is largest, or at random places of ``generator`` if there is one.

    Gradients are read from ``.grad``. A weight that has just died may grow again; it then goes on
    as it was, or with ``restart`` from 0.
    """
    weights, found = prunable(model), {}
    for name, m in mask.items():
        weight = weights[name]
        stay = survivors(weight, m, rate)
        scores = _draw(m, generator) if generator else _gradient(weight).abs()
        if restart:
            weight.data.masked_fill_(m & ~stay, 0.0)
        found[name] = grown(stay, scores, masks.count({"": m}) - masks.count({"": stay}))
    return found


def _draw(mask: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(mask.shape, generator=generator).to(mask.device)


def _gradient(weight: Tensor) -> Tensor:
    """0 for a weight that is frozen, or of a layer that was not called."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _sizes(weight: Tensor, mask: Tensor) -> Tensor:
    return weight.detach().abs().masked_fill(~mask, -torch.inf)


def _largest(scores: Tensor, count: int) -> Tensor:
    return masks.keep_top({"": scores}, count / scores.numel())[""]


@dataclass(frozen=True)
class Plan:
    """When masks change in a training of ``steps`` steps.

    Attributes:
        updates: of the mask, one in every ``steps // updates`` steps before the last. Where that
            leaves a remainder there are more, at most twice as many.
        until: the part of the training in which gradual pruning reaches its end.
        death: the part of a layer's weights that is exchanged at first; see ``annealed``.

    Raises:
        UserError: no steps or updates, more updates than steps, an end of pruning outside (0, 1]
            or before the first update, or a death rate outside [0, 1).
    """

    steps: int
    updates: int = 40
    until: float = 0.5
    death: float = 0.5

    def __post_init__(self):
        whole("steps of a plan", self.steps, 1)
        if whole("updates of a plan", self.updates, 2) > self.steps:
            raise UserError(
                f"updates of a plan are {self.updates} in {self.steps} steps; there can be at most "
                "one a step"
            )
        if not is_number(self.until) or not 0 < self.until <= 1:
            raise UserError(
                f"until of a plan is {self.until!r}; it is the part of the training in which "
                "pruning ends, in (0, 1]"
            )
        fraction("death of a plan", self.death)
        if self.prunings < 1:
            raise UserError(
                f"until of a plan is {self.until!r}, and the first of {self.updates} updates comes "
                "after that; pruning would end before it begins"
            )

    @property
    def every(self) -> int:
        """Steps from update to update."""
        return self.steps // self.updates

    @property
    def prunings(self) -> int:
        """Updates up to the end of gradual pruning."""
        return min(int(self.until * self.steps), self.steps - 1) // self.every

    def due(self, step: int) -> bool:
        """Whether the mask changes after this step, counted from 1."""
        return step % self.every == 0 and step < self.steps

    def density(self, step: int, start: float, end: float) -> float:
        """That of gradual pruning after an update at this step."""
        return cubic(start, end, min(1.0, step // self.every / self.prunings))

    def rate(self, step: int) -> float:
        """The death rate at this step."""
        return annealed(self.death, step / self.steps)


class Update:
    """The ``update`` of ``training.train`` for a method of ``WAYS``, in a training that begins with
    a mask of the density ``start``.

    Random growth follows from the seed and the step alone, so a training that was interrupted goes
    on as if it had not been.

    Attributes:
        dense_gradients: whether the last step needed the gradients of pruned weights too.
    """

    def __init__(self, method: str, plan: Plan, density: float, seed: int = 0):
        self.way, self.plan = pick("method that changes its mask", method, WAYS), plan
        self.density, self.seed = fraction_kept(density), whole("seed", seed)
        self.dense_gradients = False
        if self.start < density:
            raise UserError(
                f"{method} begins at density {self.start:g} and can not end at {density:g}; "
                "choose a smaller one"
            )

    @property
    def start(self) -> float:
        """The density that its first mask must have."""
        return self.density if self.way.start is None else self.way.start

    def __call__(self, step: int, model: nn.Module, mask: Mask) -> list[Mask]:
        """What pruning leaves, and then the exchange: a weight that was pruned grows from 0, one
        that died in the exchange itself goes on as it was."""
        found, due = [mask], self.plan.due(step)
        self.dense_gradients = due and self.way.growth == "gradient"
        if due and self.way.prunes:
            density = self.plan.density(step, self.start, self.density)
            found.append(shrink(model, mask, density))
        if due and self.way.growth:
            found.append(exchange(model, found[-1], self.plan.rate(step), self._generator(step)))
        return found

    def _generator(self, step: int) -> torch.Generator | None:
        if self.way.growth == "gradient":
            return None
        return torch.Generator().manual_seed(STRIDE * self.seed + step)


class Exchange:
    """The ``update`` of FreeTickets (Liu et al. 2022, arXiv 2106.14568), in a phase of a training.

    Growth is by gradient, at a constant death rate: the authors' code computes an annealed one and
    does not use it.

    Unlike GraNet's a weight that dies and grows again begins at 0. The authors' momentum is not
    masked; here that of a weight that enters or leaves is 0, as in all trainings.

    Attributes:
        dense_gradients: whether the last step needed the gradients of pruned weights too.
    """

    def __init__(self, every: int, death: float, first: float | None = None):
        """An update after every so many steps; ``first`` is another death rate, of one after the
        first step of the phase."""
        self.every, self.death = whole("every of an exchange", every, 1), fraction("death", death)
        self.first = None if first is None else fraction("first", first)
        self.dense_gradients = False

    def __call__(self, step: int, model: nn.Module, mask: Mask) -> Mask:
        rate = self.death if step % self.every == 0 else None
        rate = self.first if step == 1 and self.first is not None else rate
        self.dense_gradients = rate is not None
        return mask if rate is None else exchange(model, mask, rate, restart=True)
