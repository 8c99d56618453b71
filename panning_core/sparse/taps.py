"""The step of a layer with weights: the surviving ones in the order in which kernels use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..models import Shape
from . import kernels
from .kernels import STEP
from .layout import EMPTY, Signal
from .steps import Calls, Learner

if TYPE_CHECKING:
    from .plan import Plan

#: floats that a run of a convolution reads: half of the nearest cache
TILE = 2**12
#: weights of one output in a tile of the inputs that pay for writing the output once more
FEW = 16


class Survivors:
    """The surviving weights of a matrix [outputs, columns]; a column is an input of an output.

    Attributes:
        column, y, x: [columns] channel, row and column of the image that a column reads, as a
            convolution with stride 1 of the phases of the image.
        found: [weights] where they are in the matrix, its columns sorted by what they read.
        where: [weights] int32, where they are in the flat weight tensor.
        bounds: row r of the matrix has the weights ``bounds[r]`` to ``bounds[r + 1]``.
        used: [columns] whether any weight survives.
    """

    def __init__(self, mask: Tensor, phases: tuple[int, int], inputs: np.ndarray | None):
        kept, (sh, sw) = mask.cpu().numpy().reshape(len(mask), -1), phases
        taps = mask.shape[1], *(*mask.shape, 1, 1)[2:4]
        channel, y, x = np.indices(taps).reshape(3, -1)
        channel = channel if inputs is None else inputs[channel]
        self.column, self.y, self.x = (channel * sh + y % sh) * sw + x % sw, y // sh, x // sw
        if phases == (1, 1):
            self.found = np.flatnonzero(kept)
            self.where = self.found.astype(np.int32)
        else:  # columns in the order of the places that they read
            order = np.lexsort((self.x, self.y, self.column))
            self.column, self.y, self.x = self.column[order], self.y[order], self.x[order]
            kept = kept[:, order]
            self.found = np.flatnonzero(kept)
            moved = (order - np.arange(len(order)))[self.found % len(order)]
            self.where = (self.found + moved).astype(np.int32)
        self.bounds = np.searchsorted(self.found, kept.shape[1] * np.arange(len(kept) + 1))
        self.used = kept.any(0)


class Order(NamedTuple):
    """Weights in the order of ``kernels.gather``, which explains the first four."""

    places: np.ndarray
    starts: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    #: [weights] int32: of each weight in this order, what was given for it
    values: np.ndarray

    @property
    def wiring(self) -> tuple[np.ndarray, ...]:
        return self[:4]


class View(NamedTuple):
    """A convolution, forward or back, as one of y that reads x. What comes in two parts is the sum
    of one for each row of the matrix [outputs, columns] and one for each of its columns.

    Attributes:
        out, inside: two parts; channel of y and of x.
        down: [columns] the row of x less the row of y that reads it.
        places: two parts; where the weight reads x, less where that row of y begins within its
            channel.
        falling: whether the places of a row fall from column to column, where ``down`` is the same.
    """

    y: Signal
    x: Signal
    out: tuple
    inside: tuple
    down: np.ndarray
    places: tuple
    falling: bool


def arrange(kept: Survivors, view: View, values: np.ndarray) -> Order:
    """Brings the weights into the order of ``kernels.gather``.

    Args:
        values: [weights] int32, one for each weight; afterwards the new place of each.
    """
    y, x, down = view.y, view.x, view.down
    low, high = (down[kept.used].min(), down[kept.used].max()) if len(values) else (0, 0)
    rows = high - low + 1
    # So many input channels at a time that what a run of y reads stays in the nearest cache, if
    # each channel of y has enough weights there.
    tile = max(TILE // (8 * STEP * rows), FEW * x.shape[0] * y.shape[0] // max(len(values), 1), 1)
    groups = -(-x.shape[0] // tile) * y.shape[0]
    of_row, of_column = ((i // tile * y.shape[0] + o) * rows for o, i in zip(view.out, view.inside))
    keys = of_row, of_column + down - low
    values, places, starts = kernels.arrange(
        kept.found, kept.bounds, *keys, *view.places, values, groups * rows, view.falling
    )
    starts = starts[np.arange(groups)[:, None] * rows + np.arange(rows + 1)]
    i = np.arange(y.height)
    lows, highs = np.clip(-i - low, 0, rows), np.clip(x.height - i - low, 0, rows)
    starts = starts.reshape(-1, y.shape[0], rows + 1)
    return Order(places, starts, lows, np.maximum(lows, highs), values)


class Taps(Learner):
    """The surviving weights of a ``Linear`` or ``Conv2d`` with stride 1.

    Args:
        shape: of the output.
        phases: the stride that a relayout before it has spared it.
        inputs: [inputs of a ``Linear``] which pixel each reads; None: all, in their order.
    """

    def __init__(
        self,
        source: Signal,
        shape: Shape,
        module: nn.Linear | nn.Conv2d,
        mask: Tensor,
        phases: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        inputs: np.ndarray | None = None,
    ):
        super().__init__(source, Signal(shape, source.lanes, source.level, True), source.level)
        self.module, self.padding, self.biased = module, padding, module.bias is not None
        self.kept = Survivors(mask, phases, inputs)
        self.size = len(self.kept.where) + self.biased * len(mask)
        source.widen(padding)
        # The gradient of the input reads this far over the edge of the output.
        if source.trains:
            kernel = (*mask.shape, 1, 1)[2:4]
            self.out.widen(tuple((k - 1) // s - p for k, s, p in zip(kernel, phases, padding)))

    @property
    def goes_back(self) -> bool:
        return True

    def columns_read(self) -> np.ndarray:
        """Which features of the source the surviving weights read."""
        return np.unique(self.kept.column[self.kept.used])

    def prepare(self, plan: Plan) -> None:
        super().prepare(plan)
        x, y, kept = self.source, self.out, self.kept
        row, down, right = np.arange(y.shape[0]), kept.y - self.padding[0], kept.x - self.padding[1]
        places = x.origin + kept.column * x.plane + down * x.pitch + right * x.lanes
        places = np.zeros_like(row), places
        # where each weight is; afterwards its place ahead
        ranks = kept.where.copy()
        ahead = View(y, x, (row, 0), (0, kept.column), down, places, falling=False)
        self.ahead = arrange(kept, ahead, ranks)
        if x.trains:
            places = y.origin + row * y.plane, -down * y.pitch - right * y.lanes
            back = View(x, y, (0, kept.column), (row, 0), -down, places, falling=True)
            self.back = arrange(kept, back, ranks)
            # In one tile it reads the gate where it then writes.
            one_tile = len(self.back.starts) == 1
            if x.positive and one_tile and plan.readers(x) == [self]:
                x.overwrite()
            self.no_biases = np.zeros(x.shape[0], np.float32)
            self.turned = np.empty(len(ranks), np.float32)
        # Rows are counted within a block; those of images of one row over the blocks, because more
        # rows at a time are faster.
        self.flat = y.height == 1
        self.steps = ((0, y.size), (0, x.size))
        if not self.flat:
            self.steps = ((y.size, y.pitch), (x.size, x.pitch))

    def bind(self, values: np.ndarray, gradients: np.ndarray) -> None:
        where, module = self.ahead.values, self.module
        self.weights, self.biases = np.split(values, [len(where)])
        self.dweights, self.dbiases = np.split(gradients, [len(where)])
        kernels.pick(self.weights, module.weight.detach().cpu().numpy().ravel(), where)
        if self.biased:
            self.biases[:] = module.bias.detach().cpu().numpy()
        else:
            self.biases = np.zeros(self.out.shape[0], np.float32)

    def forward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        arrays = y.values(a, b), x.values(a, b), EMPTY, self.weights, self.biases
        geometry = y.run, *y.geometry, x.pitch
        return [(kernels.gather, (*arrays, *self.ahead.wiring, *geometry, y.positive, False))]

    def backward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        dy = y.gradients(a, b)
        outer, inner = (1, len(dy)) if self.flat else (len(dy), y.height)
        arrays = self.dweights, self.dbiases, dy, x.values(a, b), *self.ahead.wiring[:2]
        geometry = outer, inner, y.run, y.plane, y.origin, *self.steps
        calls: Calls = [(kernels.correlate, (*arrays, *geometry))]
        if x.trains:
            # for the whole batch
            if a == 0:
                calls.append((kernels.pick, (self.turned, self.weights, self.back.values)))
            gate = x.values(a, b) if x.positive else EMPTY
            arrays = x.gradients(a, b), dy, gate, self.turned, self.no_biases
            geometry = x.run, *x.geometry, y.pitch
            wiring = self.back.wiring
            calls.append((kernels.gather, (*arrays, *wiring, *geometry, False, self.adds)))
        return calls

    def _whole(self, values: np.ndarray) -> Tensor:
        """The weight tensor that has these values where weights survive."""
        dense = np.zeros(self.module.weight.numel(), np.float32)
        dense[self.ahead.values] = values
        return torch.from_numpy(dense).view_as(self.module.weight)

    def told(self) -> dict[nn.Parameter, Tensor]:
        told = {self.module.weight: self._whole(self.dweights)}
        return told | ({self.module.bias: torch.tensor(self.dbiases)} if self.biased else {})

    @torch.no_grad()
    def store(self) -> None:
        self.module.weight.copy_(self._whole(self.weights))
        if self.biased:
            self.module.bias.copy_(torch.from_numpy(self.biases))
