"""Gradient descent that moves a part of the parameters and leaves the rest as it was, bit for bit.

What is frozen (Wimmer et al. 2020) and what lies outside a core that is trained by itself
(Mohtashami et al. 2022) need the same step: x - lr m * g, with momentum and decay inside m too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

#: parameter -> boolean tensor of its shape, what may move; one that is absent moves as a whole
Part = Mapping[nn.Parameter, Tensor]


class PartialSGD(torch.optim.SGD):
    """``torch.optim.SGD`` inside ``part``; outside it a step changes neither weight nor momentum.

    Gradients of 0 would not do: momentum and weight decay move a weight without one.

    Attributes:
        part: what may move in the next steps; it may be set between them.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], part: Part | None = None, **options):
        super().__init__(parameters, **options)
        self.part: Part = {} if part is None else part

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step; momentum that begins in it begins at 0 outside ``part``."""
        before = {
            weight: (weight.clone(), self._momentum(weight, clone=True))
            for weight in self.part
            if weight.grad is not None
        }
        super().step()
        for weight, (old, speed) in before.items():
            moves, momentum = self.part[weight], self._momentum(weight)
            weight.copy_(torch.where(moves, weight, old))
            if momentum is not None:
                momentum.copy_(torch.where(moves, momentum, 0.0 if speed is None else speed))

    def _momentum(self, weight: nn.Parameter, clone: bool = False) -> Tensor | None:
        """None before it has begun, or where there is none."""
        momentum = self.state.get(weight, {}).get("momentum_buffer")
        return momentum.clone() if clone and momentum is not None else momentum
