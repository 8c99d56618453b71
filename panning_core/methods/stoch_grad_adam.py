"""Adam on randomly sampled gradients: StochGradAdam (Yun 2023, arXiv 2310.17042), which is said to
make networks that are easier to prune (Yun 2023, arXiv 2312.16020).

In every step each entry of the gradient is kept with probability s and else 0, for both moments of
Adam alike; nothing is divided by s, and Adam would not notice if it were, but for epsilon. An entry
that is dropped still moves, by its momentum. Where the gradient is constant the moments tend to
s g and s g^2, so the mean step is that of Adam times sqrt(s).

Both controls keep the expected gradient, or the expected step, and change one thing each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import UserError, is_number, pick, whole

#: tells the steps of one seed apart
STRIDE = 1_000_003


def _kept(like: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator) < keep


def _noise(like: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Mean and variance of ``_kept``, of a normal variable."""
    spread = math.sqrt(keep * (1 - keep))
    return keep + spread * torch.randn(like.shape, generator=generator)


#: What is sampled: the ``"gradient"``, as published; the gradient by normal ``"noise"`` of the same
#: mean and variance, which drops nothing; the ``"update"``, so that a dropped weight stays where it
#: is while the moments see the whole gradient.
SAMPLES = {"gradient": _kept, "noise": _noise, "update": _kept}


class StochGradAdam(torch.optim.Adam):
    """Adam on sampled gradients, which ``.grad`` holds afterwards.

    What is drawn follows from the seed and the number of steps done, so a training that goes on
    from ``state_dict`` draws what it would have drawn.

    Args:
        parameters: what is moved.
        lr: as of ``torch.optim.Adam``; its other options are PyTorch's defaults.
        keep: s, the probability of an entry to be kept, in (0, 1]; published: 0.8. At 1 it is Adam
            to the last bit.
        seed: of all draws.
        sample: a key of ``SAMPLES``.

    Raises:
        UserError: a number out of range, or an unknown sample.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float = 1e-3,
        keep: float = 0.8,
        seed: int = 0,
        sample: str = "gradient",
    ):
        if not is_number(keep) or not 0 < keep <= 1:
            raise UserError(
                f"keep is {keep!r}; it is the probability that an entry is kept, in (0, 1]"
            )
        self.keep, self.seed, self.sample = keep, whole("seed", seed), sample
        self.draw = pick("sample", sample, SAMPLES)
        super().__init__(parameters, lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step; returns what ``closure``, if there is one, gives before it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        generator = torch.Generator().manual_seed(STRIDE * self.seed + self._steps())
        factors = [self.draw(p, self.keep, generator).to(p.device) for p in every]
        if self.sample == "update":
            before = [p.clone() for p in every]
            super().step()
            for p, kept, old in zip(every, factors, before):
                p.copy_(torch.where(kept, p, old))
            return loss
        for p, factor in zip(every, factors):
            p.grad = p.grad * factor
        super().step()
        return loss

    def _steps(self) -> int:
        """How many were done."""
        return max((int(found["step"]) for found in self.state.values()), default=0)
