"""Batch normalisation, which needs all of a batch: a level ends before it, and the next begins with
it."""

from __future__ import annotations

import weakref
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from . import kernels
from .layout import EMPTY, NOWHERE, Signal
from .steps import Calls, Learner, Step


class Moments(Step):
    """The end of a level: collects the statistics of a convolution's output; backward, the gradient
    through them."""

    ends_level = True

    def __init__(self, source: Signal, norm: Norm):
        super().__init__(source, source, source.level)
        # no circle of references, which would keep the arrays alive
        self.norm = weakref.proxy(norm)
        self.sums, self.squares = np.zeros((2, source.shape[0]))

    def forward(self, a: int, b: int) -> Calls:
        z = self.source
        values = z.values(a, b)
        arrays = self.sums, self.squares, values
        return [
            *self._clear(values, a, b),
            (kernels.moments, (*arrays, z.height, z.run, *z.geometry)),
        ]

    def collected(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance [channel] of ``count`` numbers of each channel; it begins anew."""
        mean = self.sums / count
        variance = np.maximum(self.squares / count - mean**2, 0)
        self.sums[:], self.squares[:] = 0, 0
        return mean, variance

    def finish(self) -> None:
        """Called on the way back, before the gradients of its level."""
        self.norm.finish()

    def backward(self, a: int, b: int) -> Calls:
        z, y = self.source, self.norm.out
        dz = z.gradients(a, b)
        arrays = dz, y.gradients(a, b), z.values(a, b), *self.norm.slopes
        return [
            (kernels.centre, (*arrays, z.height, z.run, z.geometry, y.geometry)),
            *self._clear(dz, a, b),
        ]

    def _clear(self, array: np.ndarray, a: int, b: int) -> Calls:
        """Only samples may count, so the lanes that hold none become 0."""
        empty = array[-1].reshape(-1, self.source.lanes)[:, (b - a) % self.source.lanes :]
        return [(empty.fill, (0,))] if (b - a) % self.source.lanes else []


class Norm(Learner):
    """Batch normalisation, together with the addition of ``other`` and the ReLU that may follow it.

    Attributes:
        moments: the step before it, at the end of its source's level.
    """

    def __init__(self, z: Signal, module: nn.BatchNorm2d):
        out = Signal(z.shape, z.lanes, z.level + 1, True, gradient_is_local=False)
        super().__init__(z, out, z.level + 1)
        self.module, self.positive = module, False
        self.other: Signal | None = None
        self.moments, self.size = Moments(z, self), 2 * z.shape[0]
        self.running = [module.running_mean.numpy().copy(), module.running_var.numpy().copy()]
        self.sums, self.products = np.zeros((2, z.shape[0]))
        self.mean, *self.factors = np.zeros((3, z.shape[0]), np.float32)
        self.slopes = np.zeros((3, z.shape[0]), np.float32)
        self.batches = 0

    def plus(self, other: Signal) -> None:
        """Adds another signal to what it writes."""
        self.other = other
        self.level = max(self.level, other.level)
        self.out.rise(self.level)

    def rectify(self) -> None:
        """Ends with a ReLU."""
        self.positive = True

    @property
    def can_add(self) -> bool:
        """Whether an addition may still be left to it."""
        return self.other is None and not self.positive

    def reads(self, signal: Signal) -> bool:
        return signal is self.source or signal is self.other

    @property
    def target(self) -> Signal | None:
        """The gradient of its source is the moments' to write."""
        return self.other

    def bind(self, values: np.ndarray, gradients: np.ndarray) -> None:
        self.gamma, self.beta = np.split(values, 2)
        self.dgamma, self.dbeta = np.split(gradients, 2)
        self.gamma[:] = self.module.weight.detach().numpy()
        self.beta[:] = self.module.bias.detach().numpy()

    def begin(self, samples: int | None) -> None:
        """Called before its level, with the size of the batch in training."""
        if samples is None:
            mean, variance = self.running
        else:
            count = samples * prod(self.out.shape[1:])
            mean, variance = self.moments.collected(count)
            self.seen = mean, variance * count / max(count - 1, 1)
            self.count, self.sums[:], self.products[:] = count, 0, 0
        self.inverse = 1 / np.sqrt(variance + self.module.eps)
        scale = self.gamma * self.inverse
        self.mean[:], self.factors[0][:], self.factors[1][:] = mean, scale, self.beta - mean * scale

    def remember(self) -> None:
        """Lets the running statistics follow those of the batch."""
        for kept, new in zip(self.running, self.seen):
            kept += np.float32(self.module.momentum) * (new - kept).astype(np.float32)
        self.batches += 1

    def finish(self) -> None:
        """Called on the way back, when the sums over the batch are known."""
        self.dgamma[:], self.dbeta[:] = self.products * self.inverse, self.sums
        scale = self.gamma * self.inverse
        slope = -scale * self.inverse**2 * self.products / self.count
        self.slopes[:] = scale, slope, -scale * self.sums / self.count - slope * self.seen[0]

    def forward(self, a: int, b: int) -> Calls:
        z, y, other = self.source, self.out, self.other
        more, where = (EMPTY, NOWHERE) if other is None else (other.values(a, b), other.geometry)
        arrays = y.values(a, b), z.values(a, b), more, *self.factors
        geometry = y.height, y.run, y.geometry, z.geometry, where
        return [(kernels.normalise, (*arrays, self.positive, *geometry))]

    def backward(self, a: int, b: int) -> Calls:
        z, y, other = self.source, self.out, self.other
        more, where = (EMPTY, NOWHERE) if other is None else (other.gradients(a, b), other.geometry)
        arrays = y.gradients(a, b), y.values(a, b), z.values(a, b), more
        sums = self.mean, self.sums, self.products
        geometry = y.height, y.run, y.geometry, z.geometry, where
        return [(kernels.unnormalise, (*arrays, *sums, self.positive, self.adds, *geometry))]

    def told(self) -> dict[nn.Parameter, Tensor]:
        gamma, beta = torch.tensor(self.dgamma), torch.tensor(self.dbeta)
        return {self.module.weight: gamma, self.module.bias: beta}

    @torch.no_grad()
    def store(self) -> None:
        module, learned = self.module, (self.gamma, self.beta, *self.running)
        tensors = module.weight, module.bias, module.running_mean, module.running_var
        for target, values in zip(tensors, learned):
            target.copy_(torch.from_numpy(values))
        module.num_batches_tracked += self.batches
        self.batches = 0

    def state(self) -> dict[str, Tensor]:
        """What it remembers of the batches so far."""
        mean, variance = map(torch.tensor, self.running)
        return {"mean": mean, "variance": variance, "batches": torch.tensor(self.batches)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from what ``state`` gave."""
        self.running[0][:], self.running[1][:] = state["mean"].numpy(), state["variance"].numpy()
        self.batches = int(state["batches"])
