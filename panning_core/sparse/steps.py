"""The steps of a network without weights: from one signal to the next, and back.

``forward`` and ``backward`` tell what is to be called for the samples a to b of a batch; they are
asked once, and the calls made again for every batch, because a small network is done before Python
has put them together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from ..models import Shape
from . import kernels
from .kernels import NARROW
from .layout import Signal

if TYPE_CHECKING:
    from .plan import Plan

Calls = list[tuple[Callable[..., object], tuple]]


class Step:
    """What all steps share: a step reads ``source`` and writes ``out``.

    Attributes:
        adds: another reader of ``target`` has written its gradient before; set by ``prepare``.
    """

    #: it is the last of its level
    ends_level = False

    def __init__(self, source: Signal, out: Signal, level: int):
        self.source, self.out, self.level = source, out, level

    def reads(self, signal: Signal) -> bool:
        return self.source is signal

    @property
    def target(self) -> Signal | None:
        """The signal to whose gradient ``backward`` adds."""
        return self.source

    @property
    def goes_back(self) -> bool:
        """Whether ``backward`` has anything to do."""
        return self.source.trains

    def prepare(self, plan: Plan) -> None:
        """Called once every signal is laid out."""
        self.adds = plan.adds(self)

    def read_from(self, source: Signal) -> None:
        """From now on it reads another signal of the same layout."""
        self.source = source

    def forward(self, a: int, b: int) -> Calls:
        raise NotImplementedError

    def backward(self, a: int, b: int) -> Calls:
        raise NotImplementedError


class Learner(Step):
    """A step with parameters.

    Attributes:
        size: how many numbers they are.
    """

    size: int

    def bind(self, values: np.ndarray, gradients: np.ndarray) -> None:
        """Takes its share of the flat arrays of all trainable numbers, and the values of the
        model."""
        raise NotImplementedError

    def told(self) -> dict[nn.Parameter, Tensor]:
        """The gradient of each parameter of its module."""
        raise NotImplementedError

    def store(self) -> None:
        """Writes what was learned into its module."""
        raise NotImplementedError


class Relayout(Step):
    """Another order of features and other lanes; ``index`` [features of ``shape``] is the source of
    each, or -1 for a 0."""

    def __init__(self, source: Signal, index: np.ndarray, shape: Shape, lanes: int):
        super().__init__(source, Signal(shape, lanes, source.level, source.trains), source.level)
        self.index = index

    def prepare(self, plan: Plan) -> None:
        super().prepare(plan)
        used = np.flatnonzero(self.index >= 0)
        self.here, self.there = self.out.places()[used], self.source.places()[self.index[used]]

    def forward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        lanes = y.lanes, x.lanes
        arrays = y.values(a, b), x.values(a, b)
        return [(kernels.relayout, (*arrays, self.here, self.there, *lanes, b - a, False))]

    def backward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        lanes = x.lanes, y.lanes
        arrays = x.gradients(a, b), y.gradients(a, b)
        return [(kernels.relayout, (*arrays, self.there, self.here, *lanes, b - a, self.adds))]


class Fetch(Relayout):
    """A relayout of the images, [n, pixels]."""

    def keep(self, features: np.ndarray) -> None:
        """Fetches no others."""
        self.here, self.there = self.out.places()[features], self.index[features]

    def narrow(self, pixels: np.ndarray) -> None:
        """From now on the images have these ``pixels`` alone."""
        self.there = np.searchsorted(pixels, self.there)
        last = max(len(pixels) - NARROW, 0)
        self.groups = np.unique(np.minimum(self.there // NARROW * NARROW, last))
        self.turned = np.zeros(len(pixels) * self.out.lanes, np.float32)

    def forward(self, a: int, b: int) -> Calls:
        return [(self.fetch, (self.out.values(a, b), a, b))]

    def fetch(self, values: np.ndarray, a: int, b: int) -> None:
        """From the images that are the source's value now."""
        places = self.groups, self.here, self.there
        kernels.fetch(values, self.source.value[a:b], self.turned, *places, self.out.lanes)


class Pool(Step):
    """Max-pooling with windows that neither overlap nor reach over the edge."""

    def __init__(self, source: Signal, kernel: tuple[int, int]):
        channels, height, width = source.shape
        self.kernel = kernel
        shape = (channels, height // kernel[0], width // kernel[1])
        out = Signal(shape, source.lanes, source.level, source.trains)
        super().__init__(source, out, source.level)

    def prepare(self, plan: Plan) -> None:
        super().prepare(plan)
        (kh, kw), x = self.kernel, self.source
        inside = slice(0, x.shape[1] // kh * kh, kh), slice(0, x.shape[2] // kw * kw, kw)
        corner = x.places().reshape(x.shape)[:, *inside]
        self.corners = np.stack([self.out.places(), corner.ravel()], 1)
        self.window = tuple(i * x.pitch + j * x.lanes for i in range(kh) for j in range(kw))
        if self._spares_values(plan):
            x.overwrite()

    def _spares_values(self, plan: Plan) -> bool:
        """Whether nobody needs what it reads once it, which tells winners from the others, writes
        every gradient."""
        whole = all(size % k == 0 for size, k in zip(self.source.shape[1:], self.kernel))
        return whole and plan.readers(self.source) == [self] and plan.is_of_weights(self.source)

    def forward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        places = self.window, self.corners, y.lanes
        return [(kernels.pool, (y.values(a, b), x.values(a, b), *places))]

    def backward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        arrays = x.gradients(a, b), y.gradients(a, b), x.values(a, b), y.values(a, b)
        return [(kernels.unpool, (*arrays, self.window, self.corners, y.lanes))]


class Average(Pool):
    """The mean of a whole image."""

    def prepare(self, plan: Plan) -> None:
        super().prepare(plan)
        self.window = np.array(self.window)

    def _spares_values(self, plan: Plan) -> bool:
        return False

    def forward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        places = self.window, self.corners, y.lanes
        return [(kernels.average, (y.values(a, b), x.values(a, b), *places))]

    def backward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        places = self.window, self.corners, y.lanes
        return [(kernels.unaverage, (x.gradients(a, b), y.gradients(a, b), *places))]


class Relu(Step):
    """In place: a pool before it still finds its winners, because where a value has changed the
    gradient is 0."""

    def __init__(self, source: Signal):
        super().__init__(source, source, source.level)

    def forward(self, a: int, b: int) -> Calls:
        return [(kernels.relu, (self.out.values(a, b).reshape(-1),))]

    def backward(self, a: int, b: int) -> Calls:
        flat = self.out.gradients(a, b).reshape(-1), self.out.values(a, b).reshape(-1)
        return [(kernels.unrelu, flat)]
