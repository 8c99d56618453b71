"""Training of a masked network that touches only the surviving weights.

A masked dense layer multiplies by its zeros; here a pruned weight costs nothing. Samples lie side by side in memory, so
one surviving weight is one multiply-add of a whole run of samples, forward and in both gradients (``kernels``).

**Layout.** An activation is stored in blocks of ``lanes`` samples, [channel][row][column][lane], with the fewest lanes for
which a row is whole cache lines and fills the registers: the fewer, the more of an image stays in the cache. A ``Linear`` is a convolution of a
1x1 image. Padding is a margin of zeros around the image, also around its gradient: the gradient of a convolution's input
is then a convolution too, with the weights sorted by input. A convolution with stride s is one with stride 1 over s*s
times as many channels, one for each phase of a pixel.

**Order.** Batch normalisation needs all of a batch before it can go on. The network is cut into levels at that point;
within a level few samples at a time go through all its steps, so that what one step writes is in the cache for the next.
What only its own level reads is kept for those few samples, and computed again on the way back.
"""

from __future__ import annotations

import operator
import time
import weakref
from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..compaction import Select
from ..errors import UserError
from ..inspection import faithful
from ..models import Block, Shape, input_shape, prunable
from ..sparse import kernels
from ..sparse.kernels import NARROW, STEP

PART = 2**20  # floats of a level's activations and gradients that are worked on at a time
TILE = 2**12  # floats that a run of a convolution reads: half of the nearest cache
FEW = 16  # weights of one output in a tile of the inputs that pay for writing the output once more


class Signal:
    """The values and gradients of an image with ``shape`` (channels, height, width) between two steps."""

    def __init__(self, shape: Shape, lanes: int, level: int, trains: bool):
        self.shape, self.lanes, self.level, self.trains = shape, lanes, level, trains
        self.margin = (0, 0)  # rows, columns
        self.readers: list = []  # the steps that read it, in their order
        self.positive = False  # its step ends, and the gradient of its readers begins, with a ReLU
        self.gradient_is_local: bool | None = None  # None: as the values
        self.in_place = False  # the gradient takes the place of the values

    def widen(self, margin: tuple[int, int]) -> None:
        self.margin = tuple(map(max, self.margin, margin))

    def lay_out(self) -> None:
        """Fixes the places of all numbers, once margins and readers are known."""
        (rows, columns), (channels, self.height, width) = self.margin, self.shape
        self.run, self.pitch = width * self.lanes, (width + 2 * columns) * self.lanes
        self.plane = (self.height + 2 * rows) * self.pitch
        if (
            self.height > 1 < self.lanes
        ):  # an odd number of cache lines, or the rows of many channels compete for the same places in the nearest cache
            unit = max(self.lanes, STEP)
            self.plane = (-(-self.plane // unit) | 1) * unit
        self.origin, self.size = (
            rows * self.pitch + columns * self.lanes,
            -(-channels * self.plane // STEP) * STEP,
        )
        self.is_local = all(reader.level == self.level for reader in self.readers)
        if self.gradient_is_local is None:
            self.gradient_is_local = self.is_local

    def places(self) -> np.ndarray:
        """Of each number of the image [channels * height * width], for the first sample of a block."""
        c, i, j = np.indices(self.shape)
        return (self.origin + c * self.plane + i * self.pitch + j * self.lanes).ravel()

    def arrays(self, samples: int, part: int) -> dict[str, tuple[int, int]]:
        """The shapes of its arrays for a batch of so many samples, ``part`` of them at a time."""

        def shape(local: bool) -> tuple[int, int]:
            return -(-(min(part, samples) if local else samples) // self.lanes), self.size

        return {"value": shape(self.is_local)} | (
            {"gradient": shape(self.gradient_is_local)} if self.trains and not self.in_place else {}
        )

    def _cut(self, array: np.ndarray, local: bool, a: int, b: int) -> np.ndarray:
        return (
            array[: -(-(b - a) // self.lanes)]
            if local
            else array[a // self.lanes : -(-b // self.lanes)]
        )

    def values(self, a: int, b: int) -> np.ndarray:
        """Those of the samples a to b, [blocks, floats]; lanes that hold no sample contain old numbers."""
        return self._cut(self.value, self.is_local, a, b)

    def gradients(self, a: int, b: int) -> np.ndarray:
        return (
            self.values(a, b)
            if self.in_place
            else self._cut(self.gradient, self.gradient_is_local, a, b)
        )

    @property
    def geometry(self) -> tuple[int, int, int]:
        return self.origin, self.plane, self.pitch


# ---------------------------------------------------------------------------------------------------------------- steps
# A step reads ``source`` and writes ``out``. ``forward`` and ``backward`` tell what is to be called for the samples a to b of a batch;
# they are asked once, and the calls made again for every batch, because a small network is done before Python has put them together.

Calls = list[tuple[Callable[..., object], tuple]]


class Step:
    """What all steps share. ``add`` says that another reader of ``source`` has written its gradient before."""

    def __init__(self, source: Signal, out: Signal, level: int):
        self.source, self.out, self.level = source, out, level
        source.readers.append(self)

    def prepare(self) -> None:
        """Called once every signal is laid out."""


class Relayout(Step):
    """Another order of features and other lanes; ``index`` [features of ``shape``] is the source of each, or -1 for a 0."""

    def __init__(self, source: Signal, index: np.ndarray, shape: Shape, lanes: int):
        super().__init__(source, Signal(shape, lanes, source.level, source.trains), source.level)
        self.index = index

    def prepare(self) -> None:
        used = np.flatnonzero(self.index >= 0)
        self.here, self.there = self.out.places()[used], self.source.places()[self.index[used]]

    def forward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        return [
            (
                kernels.relayout,
                (
                    y.values(a, b),
                    x.values(a, b),
                    self.here,
                    self.there,
                    y.lanes,
                    x.lanes,
                    b - a,
                    False,
                ),
            )
        ]

    def backward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        return [
            (
                kernels.relayout,
                (
                    x.gradients(a, b),
                    y.gradients(a, b),
                    self.there,
                    self.here,
                    x.lanes,
                    y.lanes,
                    b - a,
                    self.add,
                ),
            )
        ]


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
        kernels.fetch(
            values,
            self.source.value[a:b],
            self.turned,
            self.groups,
            self.here,
            self.there,
            self.out.lanes,
        )


class Pool(Step):
    """Max-pooling with windows that neither overlap nor reach over the edge."""

    def __init__(self, source: Signal, kernel: tuple[int, int]):
        channels, height, width = source.shape
        self.kernel = kernel
        super().__init__(
            source,
            Signal(
                (channels, height // kernel[0], width // kernel[1]),
                source.lanes,
                source.level,
                source.trains,
            ),
            source.level,
        )

    def prepare(self) -> None:
        (kh, kw), x = self.kernel, self.source
        corner = x.places().reshape(x.shape)[
            :, : x.shape[1] // kh * kh : kh, : x.shape[2] // kw * kw : kw
        ]
        self.corners = np.stack([self.out.places(), corner.ravel()], 1)
        self.window = tuple(i * x.pitch + j * x.lanes for i in range(kh) for j in range(kw))

    def forward(self, a: int, b: int) -> Calls:
        return [
            (
                kernels.pool,
                (
                    self.out.values(a, b),
                    self.source.values(a, b),
                    self.window,
                    self.corners,
                    self.out.lanes,
                ),
            )
        ]

    def backward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        return [
            (
                kernels.unpool,
                (
                    x.gradients(a, b),
                    y.gradients(a, b),
                    x.values(a, b),
                    y.values(a, b),
                    self.window,
                    self.corners,
                    y.lanes,
                ),
            )
        ]


class Average(Pool):
    """The mean of a whole image."""

    def prepare(self) -> None:
        super().prepare()
        self.window = np.array(self.window)

    def forward(self, a: int, b: int) -> Calls:
        return [
            (
                kernels.average,
                (
                    self.out.values(a, b),
                    self.source.values(a, b),
                    self.window,
                    self.corners,
                    self.out.lanes,
                ),
            )
        ]

    def backward(self, a: int, b: int) -> Calls:
        return [
            (
                kernels.unaverage,
                (
                    self.source.gradients(a, b),
                    self.out.gradients(a, b),
                    self.window,
                    self.corners,
                    self.out.lanes,
                ),
            )
        ]


class Relu(Step):
    """In place: a pool before it still finds its winners, because where a value has changed the gradient is 0."""

    def __init__(self, source: Signal):
        super().__init__(source, source, source.level)

    def forward(self, a: int, b: int) -> Calls:
        return [(kernels.relu, (self.out.values(a, b).reshape(-1),))]

    def backward(self, a: int, b: int) -> Calls:
        return [
            (
                kernels.unrelu,
                (self.out.gradients(a, b).reshape(-1), self.out.values(a, b).reshape(-1)),
            )
        ]


class Taps(Step):
    """The surviving weights of a ``Linear`` or ``Conv2d`` with stride 1."""

    def __init__(
        self,
        source: Signal,
        shape: Shape,
        module: nn.Module,
        mask: Tensor,
        phases: tuple[int, int],
        padding: tuple[int, int],
        inputs: np.ndarray | None,
    ):
        super().__init__(source, Signal(shape, source.lanes, source.level, True), source.level)
        self.module, self.padding = module, padding
        kept, (sh, sw), kernel = (
            mask.cpu().numpy().reshape(len(mask), -1),
            phases,
            (*mask.shape, 1, 1)[2:4],
        )
        channel, y, x = np.indices((mask.shape[1], *kernel)).reshape(
            3, -1
        )  # of each column of ``kept``
        channel = channel if inputs is None else inputs[channel]
        self.column, self.y, self.x = (channel * sh + y % sh) * sw + x % sw, y // sh, x // sw
        if phases == (1, 1):
            self.found = np.flatnonzero(kept)
            self.where = self.found.astype(np.int32)
        else:  # columns in the order of the places that they read
            order = np.lexsort((self.x, self.y, self.column))
            self.column, self.y, self.x, kept = (
                self.column[order],
                self.y[order],
                self.x[order],
                kept[:, order],
            )
            self.found = np.flatnonzero(kept)
            self.where = (
                self.found + (order - np.arange(len(order)))[self.found % len(order)]
            ).astype(np.int32)
        self.bounds, self.used = (
            np.searchsorted(self.found, kept.shape[1] * np.arange(len(kept) + 1)),
            kept.any(0),
        )
        self.biased = module.bias is not None
        self.size = len(self.where) + self.biased * len(mask)
        source.widen(padding)
        if source.trains:  # the gradient of the input reads this far over the edge of the output
            self.out.widen(tuple((k - 1) // s - p for k, s, p in zip(kernel, phases, padding)))

    def prepare(self) -> None:
        x, y = self.source, self.out
        row, down, right = np.arange(y.shape[0]), self.y - self.padding[0], self.x - self.padding[1]
        places = (
            np.zeros_like(row),
            x.origin + self.column * x.plane + down * x.pitch + right * x.lanes,
        )
        ranks = self.where
        self.ahead, self.where = self._arrange(
            y, x, (row, 0), (0, self.column), down, places, ranks, False
        )
        if x.trains:
            places = y.origin + row * y.plane, -down * y.pitch - right * y.lanes
            self.back, self.order = self._arrange(
                x, y, (0, self.column), (row, 0), -down, places, ranks, True
            )
            x.in_place = (
                x.positive and x.readers == [self] and len(self.back[1]) == 1
            )  # in one tile, which reads the gate where it then writes
            self.no_biases, self.turned = (
                np.zeros(x.shape[0], np.float32),
                np.empty(len(self.where), np.float32),
            )
        # Rows are counted within a block; those of images of one row over the blocks, because more rows at a time are faster.
        self.flat = y.height == 1
        self.steps = (
            ((0, y.size), (0, x.size)) if self.flat else ((y.size, y.pitch), (x.size, x.pitch))
        )

    def _arrange(
        self,
        y: Signal,
        x: Signal,
        out: tuple,
        inside: tuple,
        down: np.ndarray,
        places: tuple,
        values: np.ndarray,
        falling: bool,
    ) -> tuple:
        """The weights of a convolution y of x in the order of ``kernels.gather``.

        What comes in two parts is the sum of one for each row of the matrix [outputs, taps of an output] and one for each column.

        Args:
            out, inside: two parts; channel of y and of x.
            down: [columns] the row of x less the row of y that reads it.
            places: two parts; where the weight reads x, less where that row of y begins within its channel.
            values: [weights] int32, what is to be brought into this order; afterwards the new place of each.
            falling: whether the places of a row fall from column to column, where ``down`` is the same.

        Returns:
            What ``kernels.gather`` takes from ``places`` to ``highs``, and the values in the new order.
        """
        low, high = (down[self.used].min(), down[self.used].max()) if len(values) else (0, 0)
        rows = high - low + 1
        # So many input channels at a time that what a run of y reads stays in the nearest cache, if each channel of y has enough weights there.
        tile = max(
            TILE // (8 * STEP * rows), FEW * x.shape[0] * y.shape[0] // max(len(values), 1), 1
        )
        tiles = -(-x.shape[0] // tile)
        of_row, of_column = ((i // tile * y.shape[0] + o) * rows for o, i in zip(out, inside))
        keys = of_row, of_column + down - low
        values, places, starts = kernels.arrange(
            self.found, self.bounds, *keys, *places, values, tiles * y.shape[0] * rows, falling
        )
        starts = starts[
            np.arange(tiles * y.shape[0])[:, None] * rows + np.arange(rows + 1)
        ].reshape(tiles, y.shape[0], rows + 1)
        i = np.arange(y.height)
        lows, highs = np.clip(-i - low, 0, rows), np.clip(x.height - i - low, 0, rows)
        return (places, starts, lows, np.maximum(lows, highs)), values

    def bind(self, values: np.ndarray, gradients: np.ndarray) -> None:
        """Takes its share of the flat arrays of all trainable numbers, and the values of the model."""
        self.weights, self.biases = np.split(values, [len(self.where)])
        self.dweights, self.dbiases = np.split(gradients, [len(self.where)])
        kernels.pick(self.weights, self.module.weight.detach().cpu().numpy().ravel(), self.where)
        if self.biased:
            self.biases[:] = self.module.bias.detach().cpu().numpy()
        else:
            self.biases = np.zeros(self.out.shape[0], np.float32)

    def forward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        return [
            (
                kernels.gather,
                (
                    y.values(a, b),
                    x.values(a, b),
                    EMPTY,
                    self.weights,
                    self.biases,
                    *self.ahead,
                    y.run,
                    *y.geometry,
                    x.pitch,
                    y.positive,
                    False,
                ),
            )
        ]

    def backward(self, a: int, b: int) -> Calls:
        x, y = self.source, self.out
        dy = y.gradients(a, b)
        outer, inner = (1, len(dy)) if self.flat else (len(dy), y.height)
        calls = [
            (
                kernels.correlate,
                (
                    self.dweights,
                    self.dbiases,
                    dy,
                    x.values(a, b),
                    *self.ahead[:2],
                    outer,
                    inner,
                    y.run,
                    y.plane,
                    y.origin,
                    *self.steps,
                ),
            )
        ]
        if x.trains:
            if a == 0:  # for the whole batch
                calls.append((kernels.pick, (self.turned, self.weights, self.order)))
            gate = x.values(a, b) if x.positive else EMPTY
            calls.append(
                (
                    kernels.gather,
                    (
                        x.gradients(a, b),
                        dy,
                        gate,
                        self.turned,
                        self.no_biases,
                        *self.back,
                        x.run,
                        *x.geometry,
                        y.pitch,
                        False,
                        self.add,
                    ),
                )
            )
        return calls

    def _whole(self, values: np.ndarray) -> Tensor:
        """The weight tensor that has these values where weights survive."""
        dense = np.zeros(self.module.weight.numel(), np.float32)
        dense[self.where] = values
        return torch.from_numpy(dense).view_as(self.module.weight)

    def told(self) -> dict[nn.Parameter, Tensor]:
        """The gradient of each parameter of the module."""
        told = {self.module.weight: self._whole(self.dweights)}
        return told | ({self.module.bias: torch.tensor(self.dbiases)} if self.biased else {})

    def store(self) -> None:
        with torch.no_grad():
            self.module.weight.copy_(self._whole(self.weights))
            if self.biased:
                self.module.bias.copy_(torch.from_numpy(self.biases))


class Moments(Step):
    """The end of a level: collects the statistics of a convolution's output; backward, the gradient through them."""

    def __init__(self, source: Signal):
        super().__init__(source, source, source.level)
        source.gradient_is_local = True
        self.sums, self.squares = np.zeros((2, source.shape[0]))

    def forward(self, a: int, b: int) -> Calls:
        z = self.source
        values = z.values(a, b)
        return [
            *self._clear(values, a, b),
            (kernels.moments, (self.sums, self.squares, values, z.height, z.run, *z.geometry)),
        ]

    def backward(self, a: int, b: int) -> Calls:
        z, y = self.source, self.norm.out
        dz = z.gradients(a, b)
        return [
            (
                kernels.centre,
                (
                    dz,
                    y.gradients(a, b),
                    z.values(a, b),
                    *self.norm.slopes,
                    z.height,
                    z.run,
                    z.geometry,
                    y.geometry,
                ),
            ),
            *self._clear(dz, a, b),
        ]

    def _clear(self, array: np.ndarray, a: int, b: int) -> Calls:
        """Only samples may count, so the lanes that hold none become 0."""
        empty = array[-1].reshape(-1, self.source.lanes)[:, (b - a) % self.source.lanes :]
        return [(empty.fill, (0,))] if (b - a) % self.source.lanes else []


class Norm(Step):
    """Batch normalisation, together with the addition of ``other`` and the ReLU that may follow it."""

    def __init__(self, moments: Moments, module: nn.BatchNorm2d):
        z = moments.source
        super().__init__(z, Signal(z.shape, z.lanes, z.level + 1, True), z.level + 1)
        self.out.gradient_is_local = False
        self.moments, self.module, self.other, self.positive = moments, module, None, False
        moments.norm, self.size = weakref.proxy(self), 2 * z.shape[0]
        self.running = [module.running_mean.numpy().copy(), module.running_var.numpy().copy()]
        self.sums, self.products = np.zeros((2, z.shape[0]))
        self.mean, *self.factors = np.zeros((3, z.shape[0]), np.float32)
        self.slopes = np.zeros((3, z.shape[0]), np.float32)
        self.batches = 0

    def plus(self, other: Signal) -> None:
        self.other = other
        other.readers.append(self)
        self.level = self.out.level = max(self.level, other.level)

    def bind(self, values: np.ndarray, gradients: np.ndarray) -> None:
        (self.gamma, self.beta), (self.dgamma, self.dbeta) = (
            np.split(values, 2),
            np.split(gradients, 2),
        )
        self.gamma[:], self.beta[:] = (
            self.module.weight.detach().numpy(),
            self.module.bias.detach().numpy(),
        )

    def begin(self, samples: int | None) -> None:
        """Called before the level, with the size of the batch in training."""
        if samples is None:
            mean, variance = self.running
        else:
            count, m = samples * prod(self.out.shape[1:]), self.moments
            mean = m.sums / count
            variance = np.maximum(m.squares / count - mean**2, 0)
            self.seen = mean, variance * count / max(count - 1, 1)
            self.count, m.sums[:], m.squares[:], self.sums[:], self.products[:] = count, 0, 0, 0, 0
        self.inverse = 1 / np.sqrt(variance + self.module.eps)
        scale = self.gamma * self.inverse
        self.mean[:], self.factors[0][:], self.factors[1][:] = mean, scale, self.beta - mean * scale

    def remember(self) -> None:
        """Lets the running statistics follow those of the batch."""
        for kept, new in zip(self.running, self.seen):
            kept += np.float32(self.module.momentum) * (new - kept).astype(np.float32)
        self.batches += 1

    def told(self) -> dict[nn.Parameter, Tensor]:
        """The gradient of each parameter of the module."""
        return {
            self.module.weight: torch.tensor(self.dgamma),
            self.module.bias: torch.tensor(self.dbeta),
        }

    def finish(self) -> None:
        """Called on the way back, when the sums over the batch are known."""
        self.dgamma[:], self.dbeta[:] = self.products * self.inverse, self.sums
        scale = self.gamma * self.inverse
        slope = -scale * self.inverse**2 * self.products / self.count
        self.slopes[:] = scale, slope, -scale * self.sums / self.count - slope * self.seen[0]

    def forward(self, a: int, b: int) -> Calls:
        z, y, other = self.source, self.out, self.other
        more = (EMPTY, NOWHERE) if other is None else (other.values(a, b), other.geometry)
        return [
            (
                kernels.normalise,
                (
                    y.values(a, b),
                    z.values(a, b),
                    more[0],
                    *self.factors,
                    self.positive,
                    y.height,
                    y.run,
                    y.geometry,
                    z.geometry,
                    more[1],
                ),
            )
        ]

    def backward(self, a: int, b: int) -> Calls:
        z, y, other = self.source, self.out, self.other
        more = (EMPTY, NOWHERE) if other is None else (other.gradients(a, b), other.geometry)
        return [
            (
                kernels.unnormalise,
                (
                    y.gradients(a, b),
                    y.values(a, b),
                    z.values(a, b),
                    more[0],
                    self.mean,
                    self.sums,
                    self.products,
                    self.positive,
                    self.add,
                    y.height,
                    y.run,
                    y.geometry,
                    z.geometry,
                    more[1],
                ),
            )
        ]

    def store(self) -> None:
        with torch.no_grad():
            for target, values in zip(
                (
                    self.module.weight,
                    self.module.bias,
                    self.module.running_mean,
                    self.module.running_var,
                ),
                (self.gamma, self.beta, *self.running),
            ):
                target.copy_(torch.from_numpy(values))
            self.module.num_batches_tracked += self.batches
        self.batches = 0


EMPTY, NOWHERE = np.zeros((0, 0), np.float32), (0, 0, 0)


# ------------------------------------------------------------------------------------------------------------- networks

#: What the engine can train: the attributes that matter and the values it knows.
KNOWN = {
    nn.Flatten: {"start_dim": [1], "end_dim": [-1]},
    nn.Linear: {},
    nn.ReLU: {},
    nn.Conv2d: {"groups": [1], "dilation": [(1, 1)], "padding_mode": ["zeros"]},
    nn.MaxPool2d: {
        "padding": [0, (0, 0)],
        "dilation": [1, (1, 1)],
        "ceil_mode": [False],
        "return_indices": [False],
    },
    nn.AdaptiveAvgPool2d: {"output_size": [1, (1, 1)]},
    nn.BatchNorm2d: {"affine": [True], "track_running_stats": [True]},
    Select: {},
}


class Tracer(fx.Tracer):
    def create_args_for_root(
        self, root_fn: Callable, is_module: bool, concrete_args: object = None
    ) -> tuple[Callable, list]:
        """The images are all that a forward is given, as in ``model(x)``: other arguments have their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in KNOWN or super().is_leaf_module(module, name)


GRAPHS: dict[
    tuple, fx.Graph
] = {}  # of the networks seen so far; tracing takes longer than all else about a small one


def trace(model: nn.Module) -> fx.Graph:
    """What a forward calls. Networks put together alike share a graph if the names and types of their modules tell all of it."""
    first: dict[nn.Module, str] = {}
    made = tuple(
        (name, first.setdefault(module, name), type(module))
        for name, module in model.named_modules(remove_duplicate=False)
    )
    if not all(kind in KNOWN or kind in (nn.Sequential, Block) for _, _, kind in made):
        return Tracer().trace(model)
    if made not in GRAPHS:
        GRAPHS[made] = Tracer().trace(model)
    return GRAPHS[made]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def unsupported(model: nn.Module) -> str | None:
    """Why the engine cannot train ``model``, or None if it can."""
    try:
        SparseNet(
            model,
            {
                name: torch.zeros_like(weight, dtype=torch.bool)
                for name, weight in prunable(model).items()
            },
        )
    except UserError as error:
        return str(error).removeprefix(REFUSED)
    return None


REFUSED = "the sparse engine cannot train this network: "


def refuse(reason: str) -> None:
    raise UserError(REFUSED + reason)


def examine(node: fx.Node, module: nn.Module) -> None:
    """Refuses a layer that the engine does not know."""
    kind = type(module).__name__
    if type(module) not in KNOWN:
        refuse(f"{kind} is not supported")
    for attribute, values in KNOWN[type(module)].items():
        if getattr(module, attribute) not in values:
            refuse(f"{kind} with {attribute}={getattr(module, attribute)!r} is not supported")
    if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
        refuse(f"Conv2d with padding={module.padding!r} is not supported")
    if isinstance(module, nn.Conv2d) and any(
        p >= k for p, k in zip(module.padding, module.kernel_size)
    ):
        refuse("Conv2d with a padding as large as its kernel is not supported")
    if isinstance(module, nn.MaxPool2d) and pair(module.kernel_size) != pair(module.stride):
        refuse("MaxPool2d whose stride is not its kernel size is not supported")
    if isinstance(module, nn.BatchNorm2d) and module.momentum is None:
        refuse("BatchNorm2d with momentum=None is not supported")
    if any(not parameter.requires_grad for parameter in module.parameters()):
        refuse(f"{node.target} is frozen, and it trains every parameter")
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        refuse("only float32 is supported")
    if (
        any(True for _ in module.parameters())
        and sum(other.target == node.target for other in node.graph.nodes) > 1
    ):
        refuse(f"a {kind} that occurs twice is not supported")
    if (
        not isinstance(module, (nn.Conv2d, nn.Linear, Select, nn.Flatten))
        and len(node.all_input_nodes[0].users) > 1
    ):
        refuse(f"{kind} of a value that is read elsewhere too is not supported")


class SparseNet:
    """Trains ``model`` with its pruned weights at 0; the model itself changes only in ``store``.

    Args:
        model: a network for which ``unsupported`` returns None.
        mask: name of each weight -> bool of its shape, True where the weight survives.

    Raises:
        UserError: a network that the engine can not train; the message says which of its layers is unknown.
    """

    def __init__(self, model: nn.Module, mask: dict[str, Tensor]):
        if kernels.numba is None:
            refuse("numba is not installed")
        self.steps: list[Step] = []
        # Of a row: as many as fill the registers; twice as many without convolutions, where fewer samples at a time spare no cache.
        self.vectors = 4 if any(isinstance(module, nn.Conv2d) for module in model.modules()) else 8
        self.selected: np.ndarray | None = None  # the pixels that come out of a Select
        self.output = self._read(model, mask)
        self._fuse()
        self._overwrite()

        self.steps.sort(key=lambda step: step.level)
        self.signals = list(dict.fromkeys(step.out for step in self.steps))
        for signal in self.signals:
            signal.lay_out()
        written: set[Signal] = set()
        for step in reversed(
            self.steps
        ):  # as on the way back, where the first reader of a signal overwrites its gradient
            target = step.other if isinstance(step, Norm) else step.source
            step.add = target in written
            written.add(target)
        for step in self.steps:
            step.prepare()
        self.levels = [
            Level([step for step in self.steps if step.level == level])
            for level in range(self.output.level + 1)
        ]
        self.fetches = [step for step in self.steps if isinstance(step, Fetch)]
        self.first = [step for fetch in self.fetches for step in fetch.out.readers]
        for signal in [self.input, *self.signals]:
            signal.readers.clear()  # no circle of references keeps the arrays alive when the network is no longer needed
        if self.reads_pixels():
            self.fetches[0].keep(np.unique(self.first[0].column[self.first[0].used]))
        self._narrow(np.unique(np.concatenate([fetch.there for fetch in self.fetches])))
        self.capacity = 0

        self.trained = [step for step in self.steps if isinstance(step, Taps | Norm)]
        ends = np.cumsum([step.size for step in self.trained])
        self.values, self.gradients, self.velocity = np.zeros((3, ends[-1]), np.float32)
        for step, values, gradients in zip(
            self.trained, np.split(self.values, ends), np.split(self.gradients, ends)
        ):
            step.bind(values, gradients)

    # --- from a model to steps

    def _add(self, step: Step) -> Signal:
        self.steps.append(step)
        return step.out

    def _end(self, signal: Signal, kind: type[Step]) -> Step | None:
        """The step of this kind that writes a signal."""
        return next(
            (step for step in self.steps if step.out is signal and isinstance(step, kind)), None
        )

    def _read(self, model: nn.Module, mask: dict[str, Tensor]) -> Signal:
        """Adds the steps of a model, and returns the signal of its logits."""
        if reason := faithful.altered(model):
            refuse(reason)
        shape = (*input_shape(model), 1, 1)[:3]
        self.input = Signal(shape, 1, 0, False)
        self.input.lay_out()
        try:
            graph = trace(model)
        except Exception as error:
            refuse(f"its forward can not be traced ({error})")
        called = {f"{node.target}.weight" for node in graph.nodes if node.op == "call_module"}
        self.parameters = dict(model.named_parameters())
        self.idle = [(self.parameters[name], ~m) for name, m in mask.items() if name not in called]
        found: dict[fx.Node, tuple[Signal, Shape]] = {}
        for node in graph.nodes:
            sources = [found[source] for source in node.all_input_nodes]
            if node.op == "placeholder":
                found[node] = self.input, shape
            elif node.op == "call_module":
                module = model.get_submodule(node.target)
                examine(node, module)
                found[node] = self._layer(module, *sources[0], mask.get(f"{node.target}.weight"))
            elif (
                node.target in (operator.add, operator.iadd, torch.add)
                and len(sources) == 2
                and not node.kwargs
            ):
                found[node] = self._sum(*sources)
            elif node.op == "output" and len(sources) == 1:
                signal, shape = sources[0]
                if signal.shape != (shape[0], 1, 1) or not signal.trains:
                    refuse("its output is not one number for each class")
                return (
                    signal
                    if signal.margin == (0, 0)
                    else self._relayout(signal, np.arange(shape[0]), shape, signal.lanes)
                )
            elif node.op == "get_attr":
                owner = node.target.rpartition(".")[0]
                kind = type(model.get_submodule(owner)).__name__
                refuse(f"the forward of {owner or 'the network'}, a {kind}, is not supported")
            else:
                given = f" with {' and '.join(node.kwargs)}" if node.kwargs else ""
                refuse(f"{getattr(node.target, '__name__', node.target)}{given} is not supported")

    def _layer(
        self, module: nn.Module, signal: Signal, shape: Shape, mask: Tensor | None
    ) -> tuple[Signal, Shape]:
        if isinstance(module, nn.Flatten):
            return signal, (prod(shape), 1, 1)
        if isinstance(module, Select):
            shape = (len(module.index), 1, 1)
            if signal is self.input:
                self.selected = module.index.numpy()
                return signal, shape
            return self._relayout(
                signal, module.index.numpy(), shape, lanes_for(self.vectors, 1)
            ), shape
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if isinstance(module, nn.Linear) and shape[1:] != (1, 1):
                refuse("Linear without Flatten before it is not supported")
            out = self._taps(signal, shape, module, mask)
            return out, out.shape
        if signal is self.input:
            signal = self._relayout(
                signal,
                np.arange(prod(shape)) if self.selected is None else self.selected,
                shape,
                STEP,
            )
        norm = self._end(signal, Norm)
        if isinstance(module, nn.ReLU):
            if norm is None:
                self._add(Relu(signal))
            else:
                norm.positive = True
            return signal, shape
        if isinstance(module, nn.BatchNorm2d):
            if not signal.trains:
                refuse("BatchNorm2d before the first weights is not supported")
            moments = Moments(signal)
            self._add(moments)
            return self._add(Norm(moments, module)), shape
        out = self._add(
            Average(signal, signal.shape[1:])
            if isinstance(module, nn.AdaptiveAvgPool2d)
            else Pool(signal, pair(module.kernel_size))
        )
        return out, out.shape

    def _sum(self, one: tuple[Signal, Shape], two: tuple[Signal, Shape]) -> tuple[Signal, Shape]:
        """Leaves the addition to a batch normalisation just before it."""
        for (signal, shape), (other, _) in ((one, two), (two, one)):
            norm = self._end(signal, Norm)
            if (
                norm
                and norm.other is None
                and not norm.positive
                and not signal.readers
                and other.trains
                and other.shape == signal.shape
            ):
                norm.plus(
                    other
                    if other.lanes == signal.lanes
                    else self._relayout(other, np.arange(prod(shape)), shape, signal.lanes)
                )
                self.steps.append(
                    self.steps.pop(self.steps.index(norm))
                )  # what it adds is there before, also if it is of the same level
                return signal, shape
        refuse("an addition that does not follow a BatchNorm2d is not supported")

    def _fuse(self) -> None:
        """Leaves a ReLU between two convolutions to them."""
        for step in [step for step in self.steps if isinstance(step, Relu)]:
            signal, others = (
                step.source,
                [reader for reader in step.source.readers if reader is not step],
            )
            if (
                others
                and all(isinstance(other, Taps) for other in others)
                and self._end(signal, Taps)
            ):
                signal.positive, signal.readers = True, others
                self.steps.remove(step)

    def _overwrite(self) -> None:
        """Spares gradients their memory where nobody needs the values once a pool, which tells its winners from them, gives it all of them."""
        for step in self.steps:
            if (
                type(step) is Pool
                and step.source.readers == [step]
                and self._end(step.source, Taps)
            ):
                step.source.in_place = all(
                    size % k == 0 for size, k in zip(step.source.shape[1:], step.kernel)
                )

    def _relayout(self, signal: Signal, index: np.ndarray, shape: Shape, lanes: int) -> Signal:
        return self._add(
            (Fetch if signal is self.input else Relayout)(signal, index.ravel(), shape, lanes)
        )

    def _taps(self, signal: Signal, shape: Shape, module: nn.Module, mask: Tensor) -> Signal:
        """Adds a convolution, and the relayout that spares it its stride, a flattened input or the wrong number of lanes."""
        kernel, stride, padding = (
            (module.kernel_size, module.stride, module.padding)
            if isinstance(module, nn.Conv2d)
            else ((1, 1), (1, 1), (0, 0))
        )
        out = (
            len(mask),
            *(
                (size + 2 * p - k) // s + 1
                for size, k, s, p in zip(shape[1:], kernel, stride, padding)
            ),
        )
        inputs = None
        if signal is self.input and isinstance(
            module, nn.Linear
        ):  # reads single pixels of the whole image
            inputs, shape = self.selected, (prod(self.input.shape), 1, 1)
        if stride == (1, 1):
            lanes = lanes_for(self.vectors, out[2], shape[2])
            if signal is self.input or signal.shape != shape or signal.lanes != lanes:
                signal = self._relayout(signal, np.arange(prod(shape)), shape, lanes)
        else:
            inside = [size + (k - 1) // s for size, k, s in zip(out[1:], kernel, stride)]
            channel, phase_y, phase_x, y, x = np.indices((shape[0], *stride, *inside))
            y, x = y * stride[0] + phase_y - padding[0], x * stride[1] + phase_x - padding[1]
            index = np.where(
                (0 <= y) & (y < shape[1]) & (0 <= x) & (x < shape[2]),
                (channel * shape[1] + y) * shape[2] + x,
                -1,
            )
            signal = self._relayout(
                signal,
                index,
                (shape[0] * prod(stride), *inside),
                lanes_for(self.vectors, out[2], inside[1]),
            )
            padding = (0, 0)
        return self._add(Taps(signal, out, module, mask, stride, padding, inputs))

    def _narrow(self, pixels: np.ndarray) -> None:
        self.read = pixels
        for fetch in self.fetches:
            fetch.narrow(pixels)

    def reads_pixels(self) -> bool:
        """Whether it begins with a ``Linear``, which reads some pixels and not others."""
        return len(self.fetches) == 1 and [
            type(getattr(step, "module", None)) for step in self.first
        ] == [nn.Linear]

    # --- use

    def pixels(self, x: Tensor) -> Tensor:
        """[n, pixels]: of images [n, channels, height, width] what the network reads. Worth doing once for a whole data set."""
        if x.shape[1:].numel() != prod(self.input.shape):
            raise UserError(
                f"the images have the shape {tuple(x.shape[1:])}; the network takes {self.input.shape}"
            )
        x = x.detach().float().flatten(1)
        return x if len(self.read) == x.shape[1] else x[:, torch.from_numpy(self.read)]

    def step(
        self,
        x: Tensor,
        y: Tensor,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool = False,
    ) -> float:
        """One step of SGD on the mean cross-entropy, as ``torch.optim.SGD`` does it.

        Args:
            x: [batch, channels, height, width] float32, or what ``pixels`` made of it.
            y: [batch] int64 labels.

        Returns:
            The mean loss before the step.
        """
        self._take(x)
        return self._learn(y.numpy(), lr, momentum, weight_decay, nesterov)

    def _learn(self, labels: np.ndarray, *how: float) -> float:
        loss = self._differentiate(labels)
        for step in self.trained:
            if isinstance(step, Norm):
                step.remember()
        kernels.descend(self.values, self.gradients, self.velocity, *how)
        return loss / len(labels)

    def flow(self, x: Tensor, y: Tensor, temperature: float) -> tuple[Tensor, float]:
        """The gradient flow on a batch, in train mode; nothing is learned, and running statistics stay as they are.

        Args:
            x, y: as ``step`` takes them.
            temperature: divides the logits in the loss, the mean cross-entropy.

        Returns:
            The logits [batch, classes] float32, not divided, and the squared norm of the gradient of the loss with respect to the surviving
            weights, without biases and batch normalisation; summed in float64.
        """
        logits = self._look(x, y, temperature)
        gradients = [
            step.dweights.astype(np.float64) for step in self.trained if isinstance(step, Taps)
        ]
        return logits, sum(float(gradient @ gradient) for gradient in gradients) / temperature**2

    def _look(self, x: Tensor, y: Tensor, temperature: float) -> Tensor:
        """The logits of ``flow``, whose gradients are ``temperature`` times those of the loss."""
        self._take(x)
        scores: list[np.ndarray] = []
        self._differentiate(y.numpy(), temperature, scores)
        return torch.from_numpy(np.concatenate(scores)).mT.flatten(0, 1)[: len(x)]

    def answer(self, x: Tensor, y: Tensor) -> faithful.Answer:
        """What the network answers to images and labels as ``step`` takes them; nothing is learned."""
        logits = self._look(x, y, 1.0)
        told = {p: gradient for step in self.trained for p, gradient in step.told().items()}
        gradients = {
            n: told[p] if p in told else torch.zeros_like(p) for n, p in self.parameters.items()
        }
        return faithful.Answer(logits, self.logits(x), gradients)

    def _differentiate(
        self, labels: np.ndarray, temperature: float = 1.0, told: list[np.ndarray] | None = None
    ) -> float:
        """``gradients`` becomes ``temperature`` times that of the mean loss of scores / temperature, not to be small for its sake.

        ``told`` is given the scores [blocks, classes, lanes] of one part of the batch after another. Returns the summed loss.
        """
        n, loss = len(labels), 0.0
        self.gradients[:] = 0
        for level in self.levels:
            level.begin(n)
            for a, b in level.parts(n):
                level.run("forward", a, b)
                if level is self.levels[-1]:
                    scores, gradient = (
                        array.reshape(len(array), -1, self.output.lanes)
                        for array in (self.output.values(a, b), self.output.gradients(a, b))
                    )
                    if told is not None:
                        told.append(scores.copy())
                    loss += kernels.cross_entropy(gradient, scores, labels[a:b], n, temperature)
                    level.run("backward", a, b)
        for level in reversed(self.levels[:-1]):
            level.finish()
            for a, b in level.parts(n):
                level.run("repeat", a, b)
                level.run("backward", a, b)
        return loss

    def logits(self, x: Tensor) -> Tensor:
        """[n, classes] for images as ``step`` takes them; batch normalisation with its running statistics."""
        parts = []
        for images in x.split(max(self.capacity, 256)):
            self._take(images)
            parts.append(self._scores(len(images)))
        return torch.cat(parts)

    def _scores(self, n: int) -> Tensor:
        scores = []
        for level in self.levels:
            level.begin(None)
            for a, b in level.parts(n):
                level.run("predict", a, b)
                if level is self.levels[-1]:
                    part = torch.from_numpy(self.output.values(a, b)).unflatten(
                        1, (-1, self.output.lanes)
                    )
                    scores.append(part.mT.flatten(0, 1)[: b - a].clone())
        return torch.cat(scores)

    def store(self) -> None:
        """Writes everything learned into the model; a pruned weight becomes exactly 0."""
        for step in self.trained:
            step.store()
        with torch.no_grad():
            for weight, gone in self.idle:
                weight[gone] = 0.0

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, as copies."""
        norms = [step for step in self.trained if isinstance(step, Norm)]
        running = [values for step in norms for values in step.running]
        return {
            "values": torch.tensor(self.values),
            "velocity": torch.tensor(self.velocity),
            "running": torch.tensor(np.concatenate([np.zeros(0, np.float32), *running])),
            "batches": torch.tensor([step.batches for step in norms], dtype=torch.int64),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from what ``state`` gave."""
        self.values[:], self.velocity[:] = state["values"].numpy(), state["velocity"].numpy()
        norms, start = [step for step in self.trained if isinstance(step, Norm)], 0
        for step, batches in zip(norms, state["batches"].tolist()):
            step.batches = batches
            for values in step.running:
                values[:] = state["running"][start : start + len(values)].numpy()
                start += len(values)

    def _take(self, x: Tensor) -> None:
        samples = len(x)
        self.input.value = (
            (x if x.shape[1:] == self.read.shape else self.pixels(x)).contiguous().numpy()
        )
        self._allocate(samples)

    def _wanted(self, samples: int) -> list[tuple[Signal, str, tuple[int, int]]]:
        """The arrays for a batch of so many samples: of which signal, their names and shapes."""
        part = max(level.part for level in self.levels)
        return [
            (signal, name, shape)
            for signal in self.signals
            for name, shape in signal.arrays(samples, part).items()
        ]

    def room(self, samples: int) -> np.ndarray:
        """Memory for them; one array, because the system hands out a large one in fewer and larger pages."""
        return np.zeros(sum(prod(shape) for *_, shape in self._wanted(samples)) + STEP, np.float32)

    def _allocate(self, samples: int, room: np.ndarray | None = None) -> None:
        """Makes sure that a batch of so many samples has its arrays, in ``room`` if it is given."""
        if samples > self.capacity:
            self.capacity, room = samples, self.room(samples) if room is None else room
            for level in self.levels:
                level.calls.clear()
            start = (
                -room.ctypes.data // room.itemsize % STEP
            )  # a vector that begins in one cache line and ends in the next is slower
            for signal, name, shape in self._wanted(samples):
                setattr(signal, name, room[start : start + prod(shape)].reshape(shape))
                start += prod(shape)


class Together:
    """Networks that begin with a ``Linear`` and learn from the same batches: the images are brought into place once for all of them.

    Each learns the same, to the last bit, as alone; ``seconds`` [networks] is what each has taken for that, without the
    images. Other networks spend too little on their input for this to pay.

    Raises:
        UserError: a network that does not begin with a ``Linear``.
    """

    def __init__(self, nets: list[SparseNet]):
        if not all(net.reads_pixels() for net in nets):
            refuse("only networks that begin with a Linear share their input")
        self.nets, self.first, self.seconds = nets, nets[0], np.zeros(len(nets))
        fetch = self.first.fetches[0]
        read = np.unique(np.concatenate([net.read for net in nets]))
        fetch.keep(read)
        self.first._narrow(read)
        fetch.out.is_local = False
        for net in nets:
            net.levels[0].steps.remove(net.fetches[0])
            net.first[0].source = fetch.out
            net.capacity = 0  # it has read other arrays so far
        self.pixels = self.first.pixels

    def step(self, x: Tensor, y: Tensor, *how: float) -> np.ndarray:
        """As ``SparseNet.step``; the losses [networks]."""
        self._take(x)
        labels, losses = y.numpy(), np.empty(len(self.nets))
        for k, net in enumerate(self.nets):
            start = time.perf_counter()
            losses[k] = net._learn(labels, *how)
            self.seconds[k] += time.perf_counter() - start
        return losses

    def logits(self, x: Tensor) -> Tensor:
        """[n, networks, classes]."""
        parts = []
        for images in x.split(max(self.first.capacity, 256)):
            self._take(images)
            parts.append(torch.stack([net._scores(len(images)) for net in self.nets], 1))
        return torch.cat(parts)

    def store(self) -> None:
        for net in self.nets:
            net.store()

    def _take(self, x: Tensor) -> None:
        if (
            len(x) > self.first.capacity
        ):  # the others work in one room, which stays in the cache: none needs its arrays when another's turn has come
            room = max((net.room(len(x)) for net in self.nets[1:]), key=len, default=None)
            for net in self.nets[1:]:
                net._allocate(len(x), room)
        self.first._take(x)
        fetch = self.first.fetches[0]
        fetch.fetch(fetch.out.values(0, len(x)), 0, len(x))


class Level:
    """The steps between two batch normalisations, a few samples at a time."""

    def __init__(self, steps: list[Step]):
        self.steps, self.calls = steps, {}
        self.back = [
            step for step in reversed(steps) if step.source.trains or isinstance(step, Taps)
        ]
        signals = {step.out for step in steps}
        granule = max(signal.lanes for signal in signals)
        floats = sum(2 * signal.size // signal.lanes for signal in signals)
        self.part = granule * min(max(PART // (floats * granule), 1), 256 // granule)

    def parts(self, n: int) -> list[tuple[int, int]]:
        return [(a, min(a + self.part, n)) for a in range(0, n, self.part)]

    def begin(self, samples: int | None) -> None:
        for step in self.steps:
            if isinstance(step, Norm):
                step.begin(samples)

    def finish(self) -> None:
        for step in self.steps:
            if isinstance(step, Moments):
                step.norm.finish()

    def run(self, way: str, a: int, b: int) -> None:
        """Makes the calls for the samples a to b, ``"forward"`` in training, to ``"predict"``, to ``"repeat"`` what was not kept, or ``"backward"``."""
        if (way, a, b) not in self.calls:
            steps = {
                "forward": self.steps,
                "predict": [step for step in self.steps if not isinstance(step, Moments)],
                "repeat": [step for step in self.steps if step.out.is_local],
                "backward": self.back,
            }[way]
            self.calls[way, a, b] = [
                call
                for step in steps
                for call in (step.backward if way == "backward" else step.forward)(a, b)
            ]
        for function, arguments in self.calls[way, a, b]:
            function(*arguments)


def lanes_for(vectors: int, *widths: int) -> int:
    """The fewest lanes, a power of 2, for which rows of these widths are whole vectors, and one of the first width is at least so many."""
    lanes = STEP
    while widths[0] * lanes < vectors * STEP or any(width * lanes % STEP for width in widths):
        lanes *= 2
    return lanes
