"""Training of a masked network that touches only the surviving weights.

A masked dense layer multiplies by its zeros; here a pruned weight costs nothing. Samples lie side by side in memory, so
one surviving weight is one multiply-add of a whole run of samples, forward and in both gradients.

**Layout.** An activation is stored as ``[block][channel][height][width][lane]``: ``lane`` counts the samples of a block.
A convolution takes the smallest block for which a row of its output, width x lanes, is a multiple of ``RUN`` floats: the
fewer lanes, the more of an image stays in the cache. A ``Linear`` is a convolution of a 1x1 image, with 64 lanes.
Padding and stride are gone before the kernels run: a convolution with stride s is one with stride 1 over s*s times as
many channels, one for each phase of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, prod

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UserError
from .models import Shape, input_shape

try:
    import numba
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic, models, register_model
    jit = numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
    primitive = intrinsic(prefer_literal=True)
except ImportError:
    numba = None
    jit = primitive = lambda function: function

RUN = 64  # floats a kernel holds in registers: eight AVX registers, enough to hide the latency of a multiply-add
NARROW = 8  # lanes, the fewest of a block
CHUNK = 2 ** 21  # floats of activations and gradients at a time
FLAGS = ("contract", "reassoc", "nsz")


# ------------------------------------------------------------------------------------------------- vectors in registers

if numba:
    class Vector(types.Type):
        """``lanes`` float32 in registers; numba has no such type, and would keep a sum over many samples in memory."""

        def __init__(self, lanes: int):
            self.lanes = lanes
            super().__init__(f"Vector({lanes})")

    @register_model(Vector)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager, kind):
            super().__init__(manager, kind, ir.VectorType(ir.FloatType(), kind.lanes))


def _pointer(context, builder, kind, array, index, lanes):
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(ir.FloatType(), lanes).as_pointer())


def _splat(builder, number, kind):
    vector = ir.VectorType(ir.FloatType(), kind.lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined),
                                  ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), [0] * kind.lanes))


@primitive
def load(typing, array, index, lanes):
    """``array[index:index + lanes]``."""
    def lower(context, builder, signature, values):
        return builder.load(_pointer(context, builder, array, values[0], values[1], lanes.literal_value), align=4)
    return Vector(lanes.literal_value)(array, types.intp, lanes), lower


@primitive
def store(typing, array, index, vector):
    """``array[index:index + lanes] = vector``."""
    def lower(context, builder, signature, values):
        builder.store(values[2], _pointer(context, builder, array, values[0], values[1], vector.lanes), align=4)
    return types.void(array, types.intp, vector), lower


@primitive
def fill(typing, number, lanes):
    """The vector whose every lane is ``number``."""
    def lower(context, builder, signature, values):
        return _splat(builder, values[0], signature.return_type)
    return Vector(lanes.literal_value)(types.float32, lanes), lower


@primitive
def madd(typing, vector, factor, other):
    """``vector + factor * other`` with a scalar ``factor``."""
    def lower(context, builder, signature, values):
        product = builder.fmul(_splat(builder, values[1], vector), values[2], flags=FLAGS)
        return builder.fadd(values[0], product, flags=FLAGS)
    return vector(vector, types.float32, other), lower


@primitive
def dot(typing, vector, other):
    """The sum over all lanes of ``vector * other``."""
    def lower(context, builder, signature, values):
        product = builder.fmul(*values, flags=FLAGS)
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), product.type])
        total = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{vector.lanes}f32")
        return builder.call(total, [ir.Constant(ir.FloatType(), -0.0), product], fastmath=FLAGS)
    return types.float32(vector, other), lower


@primitive
def larger(typing, vector, other):
    """The larger of two vectors, lane by lane; ``vector`` where either is nan."""
    def lower(context, builder, signature, values):
        return builder.select(builder.fcmp_ordered("<", *values), values[1], values[0])
    return vector(vector, other), lower


@primitive
def take(typing, vector, other, where):
    """``vector`` in the lanes where ``other`` equals ``where``, else 0."""
    def lower(context, builder, signature, values):
        zero = ir.Constant(values[0].type, None)
        return builder.select(builder.fcmp_ordered("==", values[1], values[2]), values[0], zero)
    return vector(vector, other, where), lower


@primitive
def transpose(typing, target, here, down, source, there, step):
    """``target[here + i * down + j] = source[there + j * step + i]`` for i, j < ``NARROW``."""
    def lower(context, builder, signature, values):
        def place(array, kind, start, stride, number):
            offset = builder.mul(stride, ir.Constant(stride.type, number))
            return _pointer(context, builder, kind, array, builder.add(start, offset), NARROW)

        rows = [builder.load(place(values[3], source, values[4], values[5], i), align=4) for i in range(NARROW)]
        for distance in (1, 2, 4):  # swaps the off-diagonal squares of this size
            low = [lane + NARROW - distance if lane & distance else lane for lane in range(NARROW)]
            for i in range(NARROW):
                if not i & distance:
                    pair = rows[i], rows[i + distance]
                    lanes = ([lane + shift for lane in low] for shift in (0, distance))
                    masks = (ir.Constant(ir.VectorType(ir.IntType(32), NARROW), mask) for mask in lanes)
                    rows[i], rows[i + distance] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        for i, row in enumerate(rows):
            builder.store(row, place(values[0], target, values[1], values[2], i), align=4)
    return types.void(target, types.intp, types.intp, source, types.intp, types.intp), lower


# -------------------------------------------------------------------------------------------------------------- kernels
# x and y are [block, floats of a block], dx and dy their gradients. Lanes of the last block that hold no sample contain
# old numbers; their gradient is 0.

@jit
def forward(y, x, weights, biases, places, starts, rows, height, run, pitch):
    """``y = weights * x + bias``.

    Output ``rows[r]`` has weights ``starts[r]`` to ``starts[r + 1]``; weight k reads x from ``places[k]`` on.
    ``height`` counts rows of pixels; ``run`` and ``pitch`` are the floats of one of y and of x.
    """
    for block in range(len(y)):
        for r in range(len(rows)):
            for i in range(height):
                for t in range(0, run, RUN):
                    there = block * x.shape[1] + i * pitch + t
                    total = fill(biases[rows[r]], RUN)
                    for k in range(starts[r], starts[r + 1]):
                        total = madd(total, weights[k], load(x, there + places[k], RUN))
                    store(y, block * y.shape[1] + (rows[r] * height + i) * run + t, total)


@jit
def backward(dy, x, dx, weights, dweights, dbiases, places, starts, rows, height, run, pitch):
    """Adds to the gradients of weights and biases, and overwrites ``dx`` unless it is None; arguments as in ``forward``."""
    one = fill(np.float32(1), RUN)
    for block in range(len(dy)):
        if dx is not None:
            dx[block] = 0
        for r in range(len(rows)):
            for i in range(height):
                for t in range(0, run, RUN):
                    there = block * x.shape[1] + i * pitch + t
                    gradient = load(dy, block * dy.shape[1] + (rows[r] * height + i) * run + t, RUN)
                    dbiases[rows[r]] += dot(gradient, one)
                    for k in range(starts[r], starts[r + 1]):
                        dweights[k] += dot(gradient, load(x, there + places[k], RUN))
                        if dx is not None:
                            store(dx, there + places[k], madd(load(dx, there + places[k], RUN), weights[k], gradient))


@jit
def fetch(y, x, y_index, x_index, grouped, lanes):
    """Images x [n, pixels] into blocks: pixel ``x_index[f]`` to feature ``y_index[f]``; for f < ``grouped`` also the next 7."""
    for block in range(len(y)):
        samples = min(len(x) - block * lanes, lanes)
        for f in range(len(y_index)):
            here = block * y.shape[1] + y_index[f] * lanes
            there = block * lanes * x.shape[1] + x_index[f]
            width, done = (NARROW, samples // NARROW * NARROW) if f < grouped else (1, 0)
            for sample in range(0, done, NARROW):
                transpose(y, here + sample, lanes, x, there + sample * x.shape[1], x.shape[1])
            for sample in range(done, samples):
                for i in range(width):
                    y[block, (y_index[f] + i) * lanes + sample] = x[block * lanes + sample, x_index[f] + i]


@jit
def relayout(y, x, y_index, x_index, y_lanes, x_lanes, n):
    """Copies feature ``x_index[f]`` of ``n`` samples of x to ``y_index[f]`` of y, for every f; the other lanes become 0."""
    lanes, end, zero = max(y_lanes, x_lanes), (n + y_lanes - 1) // y_lanes * y_lanes, fill(np.float32(0), NARROW)
    for start in range(0, n, lanes):
        for f in range(len(y_index)):
            for sample in range(start, min(start + lanes, end), NARROW):
                here = sample // y_lanes * y.shape[1] + y_index[f] * y_lanes + sample % y_lanes
                there = sample // x_lanes * x.shape[1] + x_index[f] * x_lanes + sample % x_lanes
                store(y, here, load(x, there, NARROW) if sample < n else zero)


@jit
def pool(y, x, window, corners, lanes):
    """The largest x of each window: feature ``corners[f, 0]`` of y reads features ``corners[f, 1] + window`` of x."""
    for block in range(len(y)):
        for f in range(len(corners)):
            for lane in range(0, lanes, NARROW):
                there = block * x.shape[1] + corners[f, 1] * lanes + lane
                best = load(x, there, NARROW)
                for step in window:
                    best = larger(best, load(x, there + step * lanes, NARROW))
                store(y, block * y.shape[1] + corners[f, 0] * lanes + lane, best)


@jit
def unpool(dx, dy, x, y, window, corners, lanes):
    """Gives the gradient of each window to its first largest x, and 0 to the others."""
    for block in range(len(y)):
        for f in range(len(corners)):
            for lane in range(0, lanes, NARROW):
                here = block * y.shape[1] + corners[f, 0] * lanes + lane
                there = block * x.shape[1] + corners[f, 1] * lanes + lane
                rest, best = load(dy, here, NARROW), load(y, here, NARROW)
                for step in window:
                    given = take(rest, load(x, there + step * lanes, NARROW), best)
                    store(dx, there + step * lanes, given)
                    rest = madd(rest, np.float32(-1), given)


@jit
def relu(y):
    for j in range(y.size):
        y[j] = np.float32(0.5) * (y[j] + abs(y[j]))  # exact; a comparison would become slow masked stores


@jit
def unrelu(dy, y):
    for j in range(y.size):
        dy[j] = dy[j] if y[j] > 0 else np.float32(0)


@jit
def cross_entropy(dy, y, labels, batch):
    """The summed loss for scores y [block, class, lane]; dy becomes the gradient of the mean over ``batch``."""
    loss, scale = 0.0, np.float32(1 / batch)
    for sample in range(len(y) * y.shape[2]):
        block, lane = divmod(sample, y.shape[2])
        scores, gradient = y[block, :, lane], dy[block, :, lane]
        if sample >= len(labels):
            gradient[:] = 0
            continue
        if not 0 <= labels[sample] < len(scores):
            raise ValueError("a label is outside the classes of the network")
        top, total = scores.max(), np.float32(0)
        for c in range(len(scores)):
            gradient[c] = np.exp(scores[c] - top)
            total += gradient[c]
        for c in range(len(scores)):
            gradient[c] *= scale / total
        gradient[labels[sample]] -= scale
        loss += np.log(total) + top - scores[labels[sample]]
    return loss


@jit
def descend(weights, gradients, velocity, lr, momentum, weight_decay, nesterov):
    """One step of ``torch.optim.SGD``."""
    lr, momentum, weight_decay = np.float32(lr), np.float32(momentum), np.float32(weight_decay)
    for k in range(len(weights)):
        gradient = gradients[k] + weight_decay * weights[k]
        velocity[k] = step = momentum * velocity[k] + gradient
        weights[k] -= lr * (gradient + momentum * step if nesterov else step)


# --------------------------------------------------------------------------------------------------------------- layers
# A layer computes ``out`` from ``source``. ``trim(live)`` tells it which features of ``out`` anyone reads, and returns
# which features of ``source`` it reads itself; the others cost nothing from then on.

class Signal:
    """Values and gradients of ``size`` features, in blocks of ``lanes`` samples."""

    def __init__(self, size: int, lanes: int):
        self.size, self.lanes = size, lanes

    def allocate(self, samples: int) -> None:
        self.value, self.gradient = np.zeros((2, samples // self.lanes, self.size * self.lanes), np.float32)

    def blocks(self, n: int) -> slice:
        """Those of the first ``n`` samples."""
        return slice(-(-n // self.lanes))


class Relayout:
    """Another order of features and other lanes; ``index`` [features of the output] is the source of each, or -1 for a 0."""

    def __init__(self, source: Signal, index: np.ndarray, lanes: int):
        self.source, self.index, self.out = source, index, Signal(index.size, lanes)

    def trim(self, live: np.ndarray) -> np.ndarray:
        self.here = np.flatnonzero(live & (self.index >= 0))
        self.there = self.index[self.here]
        return np.isin(np.arange(self.source.size), self.there)

    def forward(self, n: int) -> None:
        x, y = self.source, self.out
        relayout(y.value, x.value, self.here, self.there, y.lanes, x.lanes, n)

    def backward(self, n: int) -> None:
        x, y = self.source, self.out
        relayout(x.gradient, y.gradient, self.there, self.here, x.lanes, y.lanes, n)


class Fetch(Relayout):
    """A relayout of the images, [n, pixels]."""

    def trim(self, live: np.ndarray) -> np.ndarray:
        """Finds the groups of ``NARROW`` features that are neighbours in the image too, and can be transposed together."""
        read = super().trim(live)
        groups = self.index[:self.index.size // NARROW * NARROW].reshape(-1, NARROW)
        neighbours = (groups[:, 0] >= 0) & (np.diff(groups) == 1).all(1)
        grouped = np.append(neighbours.repeat(NARROW), np.zeros(self.index.size % NARROW, bool))[self.here]
        firsts = np.unique(self.here[grouped] // NARROW * NARROW)
        self.grouped, self.here = len(firsts), np.append(firsts, self.here[~grouped])
        self.there = self.index[self.here]
        return read

    def forward(self, n: int) -> None:
        fetch(self.out.value[self.out.blocks(n)], self.source.value, self.here, self.there, self.grouped, self.out.lanes)


class Pool:
    """Max-pooling with windows that neither overlap nor reach over the edge."""

    def __init__(self, source: Signal, shape: Shape, kernel: tuple[int, int]):
        (channels, height, width), (kh, kw) = shape, kernel
        self.shape = channels, height // kh, width // kw
        self.source, self.out = source, Signal(prod(self.shape), source.lanes)
        self.window = tuple(i * width + j for i in range(kh) for j in range(kw))
        self.corner = np.arange(source.size).reshape(shape)[:, :height // kh * kh:kh, :width // kw * kw:kw].ravel()

    def trim(self, live: np.ndarray) -> np.ndarray:
        live = live.reshape(self.shape[0], -1).any(1)
        places = np.flatnonzero(live.repeat(prod(self.shape[1:])))
        self.corners = np.stack([places, self.corner[places]], 1)
        return live.repeat(self.source.size // len(live))

    def forward(self, n: int) -> None:
        x, y, part = self.source, self.out, self.out.blocks(n)
        pool(y.value[part], x.value[part], self.window, self.corners, y.lanes)

    def backward(self, n: int) -> None:
        x, y, part = self.source, self.out, self.out.blocks(n)
        unpool(x.gradient[part], y.gradient[part], x.value[part], y.value[part], self.window, self.corners, y.lanes)


class Relu:
    """In place: a pool before it still finds its winners, because where a value has changed the gradient is 0."""

    def __init__(self, source: Signal):
        self.out = source

    def trim(self, live: np.ndarray) -> np.ndarray:
        return live

    def forward(self, n: int) -> None:
        relu(self.out.value[self.out.blocks(n)].reshape(-1))

    def backward(self, n: int) -> None:
        part = self.out.blocks(n)
        unrelu(self.out.gradient[part].reshape(-1), self.out.value[part].reshape(-1))


class Taps:
    """The surviving weights of a ``Linear`` or ``Conv2d``, as a convolution without padding and with stride 1."""

    def __init__(self, source: Signal, shape: Shape, out: Shape, module: nn.Module, mask: Tensor):
        self.source, self.out, self.module = source, Signal(prod(out), source.lanes), module
        self.in_shape, self.out_shape = shape, out
        self.where = np.flatnonzero(mask.cpu())
        kernel, (sh, sw), _ = window(module)
        self.row, channel, y, x = np.unravel_index(self.where, (*mask.shape[:2], *kernel))
        self.place = np.ravel_multi_index(((channel * sh + y % sh) * sw + x % sw, y // sh, x // sw), shape)
        self.size = len(self.where) + (0 if module.bias is None else len(mask))

    def trim(self, live: np.ndarray) -> np.ndarray:
        """Sorts the weights by output, then input; those of a dead output come last and are never visited."""
        live = live.reshape(self.out_shape[0], -1).any(1)
        order = np.lexsort((self.place, self.row, ~live[self.row]))
        starts = np.append(0, np.bincount(self.row, minlength=len(live))[live].cumsum())
        read = np.zeros(self.in_shape, bool)
        read.reshape(len(read), -1)[self.place[order[:starts[-1]]] // prod(self.in_shape[1:])] = True
        self.where = self.where[order]
        lanes = self.source.lanes
        self.geometry = ((self.place[order] * lanes).astype(np.int32), starts, np.flatnonzero(live),
                         self.out_shape[1], self.out_shape[2] * lanes, self.in_shape[2] * lanes)
        return read.ravel()

    def bind(self, values: np.ndarray, gradients: np.ndarray) -> None:
        """Takes its share of the flat arrays of all weights and biases, and the values of the model."""
        self.weights, self.biases = np.split(values, [len(self.where)])
        self.dweights, self.dbiases = np.split(gradients, [len(self.where)])
        self.weights[:] = self.module.weight.detach().cpu().numpy().ravel()[self.where]
        if self.module.bias is None:
            self.biases, self.dbiases = np.zeros((2, self.out_shape[0]), np.float32)
        else:
            self.biases[:] = self.module.bias.detach().cpu().numpy()

    def forward(self, n: int) -> None:
        x, y, part = self.source, self.out, self.out.blocks(n)
        forward(y.value[part], x.value[part], self.weights, self.biases, *self.geometry)

    def backward(self, n: int) -> None:
        x, y, part = self.source, self.out, self.out.blocks(n)
        dx = None if x.gradient is None else x.gradient[part]
        backward(y.gradient[part], x.value[part], dx, self.weights, self.dweights, self.dbiases, *self.geometry)

    def store(self) -> None:
        dense = np.zeros(self.module.weight.numel(), np.float32)
        dense[self.where] = self.weights
        with torch.no_grad():
            self.module.weight.copy_(torch.from_numpy(dense).view_as(self.module.weight))
            if self.module.bias is not None:
                self.module.bias.copy_(torch.from_numpy(self.biases))


# ------------------------------------------------------------------------------------------------------------- networks

#: What the engine can train: the attributes that matter and the values it knows.
KNOWN = {
    nn.Flatten: {"start_dim": [1], "end_dim": [-1]},
    nn.Linear: {},
    nn.ReLU: {},
    nn.Conv2d: {"groups": [1], "dilation": [(1, 1)], "padding_mode": ["zeros"]},
    nn.MaxPool2d: {"padding": [0, (0, 0)], "dilation": [1, (1, 1)], "ceil_mode": [False], "return_indices": [False]},
}


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def window(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """(kernel, stride, padding), each (height, width); a ``Linear`` is a 1x1 convolution of a 1x1 image."""
    return (module.kernel_size, module.stride, module.padding) if isinstance(module, nn.Conv2d) else ((1, 1), (1, 1), (0, 0))


def layers_of(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of a network in order, those of nested ``Sequential`` too, with their names."""
    for name, module in model._modules.items():  # named_children() would leave out the second use of a layer
        if type(module) is nn.Sequential:
            yield from layers_of(module, f"{prefix}{name}.")
        else:
            yield prefix + name, module


def unsupported(model: nn.Module) -> str | None:
    """Why the engine cannot train ``model``, or None if it can."""
    if numba is None:
        return "numba is not installed"
    if type(model) is not nn.Sequential:
        return f"{type(model).__name__} is not supported"
    try:
        flat = len(input_shape(model)) == 1
    except UserError as error:
        return str(error)
    layers = [module for _, module in layers_of(model)]
    for module in layers:
        kind = type(module).__name__
        if type(module) not in KNOWN:
            return f"{kind} is not supported"
        for attribute, values in KNOWN[type(module)].items():
            if getattr(module, attribute) not in values:
                return f"{kind} with {attribute}={getattr(module, attribute)!r} is not supported"
        if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
            return f"Conv2d with padding={module.padding!r} is not supported"
        if isinstance(module, nn.MaxPool2d) and pair(module.kernel_size) != pair(module.stride):
            return "MaxPool2d whose stride is not its kernel size is not supported"
        if isinstance(module, nn.Linear) and not flat:
            return "Linear without Flatten before it is not supported"
        if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
            return "only float32 is supported"
        if isinstance(module, (nn.Linear, nn.Conv2d)) and layers.count(module) > 1:
            return f"a {kind} that occurs twice is not supported"
        flat = flat or isinstance(module, nn.Flatten)
    return None


class SparseNet:
    """Trains ``model`` with its pruned weights at 0; the model itself changes only in ``store``.

    Args:
        model: a network for which ``unsupported`` returns None.
        mask: name of each weight -> bool of its shape, True where the weight survives.
    """

    def __init__(self, model: nn.Sequential, mask: dict[str, Tensor]):
        if reason := unsupported(model):
            raise UserError(f"the sparse engine cannot train this network: {reason}")
        shape = (*input_shape(model), 1, 1)[:3]
        self.input = signal = Signal(prod(shape), lanes=1)
        self.layers: list[Relayout | Pool | Relu | Taps] = []
        for name, module in layers_of(model):
            if isinstance(module, nn.Flatten):
                shape = (prod(shape), 1, 1)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                signal, shape = self._taps(signal, shape, module, mask[f"{name}.weight"])
            else:
                if signal is self.input:
                    signal = self._add(Fetch(signal, np.arange(signal.size), NARROW))
                if isinstance(module, nn.ReLU):
                    self._add(Relu(signal))
                else:
                    signal = self._add(Pool(signal, shape, pair(module.kernel_size)))
                    shape = self.layers[-1].shape
        self.output = signal

        live = np.ones(signal.size, bool)
        for layer in reversed(self.layers):
            live = layer.trim(live)
        self.taps = [layer for layer in self.layers if isinstance(layer, Taps)]
        self.trained = self.layers[self.layers.index(self.taps[0]):]
        signals = {layer.out for layer in self.layers}
        self.chunk = RUN * min(max(CHUNK // (RUN * 2 * sum(signal.size for signal in signals)), 1), 4)
        for signal in signals:
            signal.allocate(self.chunk)
        self.taps[0].source.gradient = None

        ends = np.cumsum([taps.size for taps in self.taps])
        self.values, self.gradients, self.velocity = np.zeros((3, ends[-1]), np.float32)
        for taps, values, gradients in zip(self.taps, np.split(self.values, ends), np.split(self.gradients, ends)):
            taps.bind(values, gradients)

    def _add(self, layer: Relayout | Pool | Relu | Taps) -> Signal:
        self.layers.append(layer)
        return layer.out

    def _taps(self, signal: Signal, shape: Shape, module: nn.Module, mask: Tensor) -> tuple[Signal, Shape]:
        """Adds a convolution, and the relayout that spares it its padding, its stride or the wrong number of lanes."""
        kernel, stride, padding = window(module)
        out = (len(mask), *((size + 2 * p - k) // s + 1 for size, k, s, p in zip(shape[1:], kernel, stride, padding)))
        lanes = max(NARROW, RUN // gcd(out[2], RUN))
        if (lanes, stride, padding) != (signal.lanes, (1, 1), (0, 0)):
            inside = [size + (k - 1) // s for size, k, s in zip(out[1:], kernel, stride)]
            channel, phase_y, phase_x, y, x = np.indices((shape[0], *stride, *inside))
            y, x = y * stride[0] + phase_y - padding[0], x * stride[1] + phase_x - padding[1]
            index = np.where((0 <= y) & (y < shape[1]) & (0 <= x) & (x < shape[2]), (channel * shape[1] + y) * shape[2] + x, -1)
            change = Fetch if signal is self.input else Relayout
            signal, shape = self._add(change(signal, index.ravel(), lanes)), (shape[0] * prod(stride), *inside)
        return self._add(Taps(signal, shape, out, module, mask)), out

    def step(self, x: Tensor, y: Tensor, lr: float, momentum: float, weight_decay: float, nesterov: bool = False) -> float:
        """One step of SGD on the mean cross-entropy, as ``torch.optim.SGD`` does it.

        Args:
            x: [batch, channels, height, width] float32.
            y: [batch] int64 labels.

        Returns:
            The mean loss before the step.
        """
        self.gradients[:] = 0
        loss = 0.0
        for start in range(0, len(x), self.chunk):
            labels = y[start:start + self.chunk].numpy()
            scores = self._forward(x[start:start + self.chunk])
            gradient = self.output.gradient[:len(scores)].reshape(scores.shape)
            loss += cross_entropy(gradient, scores, labels, len(x))
            for layer in reversed(self.trained):
                layer.backward(len(labels))
        descend(self.values, self.gradients, self.velocity, lr, momentum, weight_decay, nesterov)
        return loss / len(x)

    def logits(self, x: Tensor) -> Tensor:
        """[n, classes] for images [n, channels, height, width]."""
        parts = [torch.from_numpy(self._forward(part)).mT.flatten(0, 1)[:len(part)].clone() for part in x.split(self.chunk)]
        return torch.cat(parts)

    def store(self) -> None:
        """Writes weights and biases into the model; a pruned weight becomes exactly 0."""
        for taps in self.taps:
            taps.store()

    def _forward(self, x: Tensor) -> np.ndarray:
        """The logits [block, class, lane] of at most ``chunk`` images, until the next call; lanes beyond them are arbitrary."""
        self.input.value = x.detach().float().reshape(len(x), self.input.size).contiguous().numpy()
        for layer in self.layers:
            layer.forward(len(x))
        return self.output.value[self.output.blocks(len(x))].reshape(-1, self.output.size, self.output.lanes)
