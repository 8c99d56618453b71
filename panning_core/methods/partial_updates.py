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
        """One step; ``.grad`` is 0 outside ``part`` afterwards."""
        before = []
        for weight, moves in self.part.items():
            if weight.grad is None:
                continue
            # Momentum that begins in this step begins at 0 outside.
            weight.grad.masked_fill_(~moves, 0.0)
            momentum = self.state.get(weight, {}).get("momentum_buffer")
            both = [weight] if momentum is None else [weight, momentum]
            before += [(tensor, moves, tensor.clone()) for tensor in both]
        super().step()
        for tensor, moves, old in before:
            tensor.copy_(torch.where(moves, tensor, old))
