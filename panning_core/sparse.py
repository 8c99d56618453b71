"""Training of a masked network that touches only the surviving weights.

A masked dense layer multiplies by its zeros; here a pruned weight costs nothing. Samples lie side by side in memory, so
one surviving weight is one multiply-add of a whole run of samples, forward and in both gradients.

**Layout.** An activation is stored as ``[block][channel][height][width][lane]``: ``lane`` counts the samples of a block.
A convolution takes the smallest block for which a row of its output, width x lanes, is a multiple of ``RUN`` floats: the
fewer lanes, the more of an image stays in the cache. A ``Linear`` is a convolution of a 1x1 image, with 64 lanes.
Padding and stride are gone before the kernels run: a convolution with stride s is one with stride 1 over s*s times as
many channels, one for each phase of a pixel.

**Panels.** The weights of a layer are sorted by panel, then output, then input. A panel is a group of input channels
that fits into the first-level cache together with its gradient.
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
except ImportError:
    numba = None
    jit = intrinsic = lambda function: function

RUN = 64  # floats a kernel holds in registers: eight AVX registers, enough to hide the latency of a multiply-add
NARROW = 8  # lanes, the fewest of a block
PANEL, PER_ROW = 4096, 8  # floats of input in a panel, and weights it needs per output to be worth another pass over them
CHUNK = 2 ** 21  # floats of activations and gradients at a time
FLAGS = ("contract", "reassoc", "nsz")


# ------------------------------------------------------------------------------------------------- vectors in registers

if numba:
    class Vector(types.Type):
        """``lanes`` float32 in registers: numba alone keeps sums in memory, which halves the speed."""

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


@intrinsic(prefer_literal=True)
def load(typing, array, index, lanes):
    """``array[index:index + lanes]``."""
    def lower(context, builder, signature, values):
        return builder.load(_pointer(context, builder, array, values[0], values[1], lanes.literal_value), align=4)
    return Vector(lanes.literal_value)(array, types.intp, lanes), lower


@intrinsic
def store(typing, array, index, vector):
    """``array[index:index + lanes] = vector``."""
    def lower(context, builder, signature, values):
        builder.store(values[2], _pointer(context, builder, array, values[0], values[1], vector.lanes), align=4)
    return types.void(array, types.intp, vector), lower


@intrinsic(prefer_literal=True)
def fill(typing, number, lanes):
    """The vector whose every lane is ``number``."""
    def lower(context, builder, signature, values):
        return _splat(builder, values[0], signature.return_type)
    return Vector(lanes.literal_value)(types.float32, lanes), lower


@intrinsic
def madd(typing, vector, factor, other):
    """``vector + factor * other`` with a scalar ``factor``."""
    def lower(context, builder, signature, values):
        product = builder.fmul(_splat(builder, values[1], vector), values[2], flags=FLAGS)
        return builder.fadd(values[0], product, flags=FLAGS)
    return vector(vector, types.float32, other), lower


@intrinsic
def dot(typing, vector, other):
    """The sum over all lanes of ``vector * other``."""
    def lower(context, builder, signature, values):
        product = builder.fmul(*values, flags=FLAGS)
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), product.type])
        total = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{vector.lanes}f32")
        return builder.call(total, [ir.Constant(ir.FloatType(), -0.0), product], fastmath=FLAGS)
    return types.float32(vector, other), lower


@intrinsic
def larger(typing, vector, other):
    """The larger of two vectors, lane by lane; ``vector`` where either is nan."""
    def lower(context, builder, signature, values):
        return builder.select(builder.fcmp_ordered("<", *values), values[1], values[0])
    return vector(vector, other), lower


@intrinsic
def take(typing, vector, other, where):
    """``vector`` in the lanes where ``other`` equals ``where``, else 0."""
    def lower(context, builder, signature, values):
        zero = ir.Constant(values[0].type, None)
        return builder.select(builder.fcmp_ordered("==", values[1], values[2]), values[0], zero)
    return vector(vector, other, where), lower


# -------------------------------------------------------------------------------------------------------------- kernels
# Arrays are flat. ``n`` counts samples; the lanes of the last block beyond n hold old numbers, whose gradient is 0.

@jit
def forward(y, x, weights, biases, places, starts, rows, n, lanes, x_size, y_size, height, run, pitch):
    """``y = weights * x + bias``. Weight k reads x from ``places[k]`` on; row r of a panel owns weights ``starts[panel, r:r+2]``."""
    for block in range((n + lanes - 1) // lanes):
        for panel in range(len(starts)):
            for r in range(len(rows)):
                first, last = starts[panel, r], starts[panel, r + 1]
                if panel > 0 and first == last:
                    continue
                for i in range(height):
                    for t in range(0, run, RUN):
                        here = block * y_size + (rows[r] * height + i) * run + t
                        there = block * x_size + i * pitch + t
                        total = load(y, here, RUN) if panel > 0 else fill(biases[rows[r]], RUN)
                        for k in range(first, last):
                            total = madd(total, weights[k], load(x, there + places[k], RUN))
                        store(y, here, total)


@jit
def backward(dy, x, dx, weights, dweights, dbiases, places, starts, rows, n, lanes, x_size, y_size, height, run, pitch):
    """Adds to the gradients of weights and biases, and overwrites ``dx`` unless it is None; arguments as in ``forward``."""
    one = fill(np.float32(1), RUN)
    for block in range((n + lanes - 1) // lanes):
        if dx is not None:
            dx[block * x_size:(block + 1) * x_size] = 0
        for panel in range(len(starts)):
            for r in range(len(rows)):
                first, last = starts[panel, r], starts[panel, r + 1]
                if panel > 0 and first == last:
                    continue
                for i in range(height):
                    for t in range(0, run, RUN):
                        gradient = load(dy, block * y_size + (rows[r] * height + i) * run + t, RUN)
                        there = block * x_size + i * pitch + t
                        if panel == 0:
                            dbiases[rows[r]] += dot(gradient, one)
                        for k in range(first, last):
                            dweights[k] += dot(gradient, load(x, there + places[k], RUN))
                            if dx is not None:
                                store(dx, there + places[k], madd(load(dx, there + places[k], RUN), weights[k], gradient))


@jit
def relayout(y, x, y_index, x_index, n, y_lanes, x_lanes, y_size, x_size):
    """Copies feature ``x_index[f]`` of x to ``y_index[f]`` of y, for every f, while the lanes of a block change."""
    most, least = max(x_lanes, y_lanes), min(x_lanes, y_lanes)
    for start in range(0, n, most):
        for f in range(len(y_index)):
            for s in range(start, min(start + most, n), least):
                here = s // y_lanes * y_size + y_index[f] * y_lanes + s % y_lanes
                there = s // x_lanes * x_size + x_index[f] * x_lanes + s % x_lanes
                for lane in range(least):
                    y[here + lane] = x[there + lane]


@jit
def pool(y, x, window, corners, n, lanes, y_size, x_size):
    """The largest x of each window. Output f reads x at ``corners[f, 1] + window``; ``corners[f, 0]`` is its own place."""
    for block in range((n + lanes - 1) // lanes):
        for f in range(len(corners)):
            for lane in range(0, lanes, NARROW):
                there = block * x_size + corners[f, 1] * lanes + lane
                best = load(x, there, NARROW)
                for step in window:
                    best = larger(best, load(x, there + step * lanes, NARROW))
                store(y, block * y_size + corners[f, 0] * lanes + lane, best)


@jit
def unpool(dx, dy, x, y, window, corners, n, lanes, y_size, x_size):
    """Gives the gradient of each window to its first largest x, and 0 to the others."""
    for block in range((n + lanes - 1) // lanes):
        for f in range(len(corners)):
            for lane in range(0, lanes, NARROW):
                here = block * y_size + corners[f, 0] * lanes + lane
                there = block * x_size + corners[f, 1] * lanes + lane
                rest, best = load(dy, here, NARROW), load(y, here, NARROW)
                for step in window:
                    given = take(rest, load(x, there + step * lanes, NARROW), best)
                    store(dx, there + step * lanes, given)
                    rest = madd(rest, np.float32(-1), given)


@jit
def relu(y, size):
    for j in range(size):
        y[j] = max(y[j], np.float32(0))


@jit
def unrelu(dy, y, size):
    for j in range(size):
        dy[j] = dy[j] if y[j] > 0 else np.float32(0)


@jit
def descend(weights, gradients, velocity, lr, momentum, weight_decay, nesterov):
    """One step of ``torch.optim.SGD``."""
    lr, momentum, weight_decay = np.float32(lr), np.float32(momentum), np.float32(weight_decay)
    for k in range(len(weights)):
        gradient = gradients[k] + weight_decay * weights[k]
        velocity[k] = momentum * velocity[k] + gradient
        weights[k] -= lr * (gradient + momentum * velocity[k] if nesterov else velocity[k])


# --------------------------------------------------------------------------------------------------------------- layers

class Signal:
    """What flows between two layers: values and gradients of ``size`` features, in blocks of ``lanes`` samples."""

    def __init__(self, size: int, lanes: int):
        self.size, self.lanes = size, lanes

    def allocate(self, samples: int) -> None:
        self.value, self.gradient = (np.zeros(samples * self.size, np.float32) for _ in range(2))


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
        relayout(y.value, x.value, self.here, self.there, n, y.lanes, x.lanes, y.size, x.size)

    def backward(self, n: int) -> None:
        x, y = self.source, self.out
        relayout(x.gradient, y.gradient, self.there, self.here, n, x.lanes, y.lanes, x.size, y.size)


class Pool:
    """Max-pooling with windows that neither overlap nor reach over the edge."""

    def __init__(self, source: Signal, shape: Shape, kernel: tuple[int, int]):
        channels, height, width = shape
        self.shape = channels, height // kernel[0], width // kernel[1]
        self.source, self.out = source, Signal(prod(self.shape), source.lanes)
        self.window = tuple(i * width + j for i in range(kernel[0]) for j in range(kernel[1]))
        pixels = np.arange(source.size).reshape(shape)
        self.corners = pixels[:, :self.shape[1] * kernel[0]:kernel[0], :self.shape[2] * kernel[1]:kernel[1]].ravel()

    def trim(self, live: np.ndarray) -> np.ndarray:
        live = live.reshape(self.shape[0], -1).any(1)
        places = np.flatnonzero(live.repeat(prod(self.shape[1:])))
        self.pairs = np.stack([places, self.corners[places]], 1)
        return live.repeat(self.source.size // len(live))

    def forward(self, n: int) -> None:
        x, y = self.source, self.out
        pool(y.value, x.value, self.window, self.pairs, n, y.lanes, y.size, x.size)

    def backward(self, n: int) -> None:
        x, y = self.source, self.out
        unpool(x.gradient, y.gradient, x.value, y.value, self.window, self.pairs, n, y.lanes, y.size, x.size)


class Relu:
    """In place: a pool before it still finds its winners, because where a value has changed the gradient is 0."""

    def __init__(self, source: Signal):
        self.out = source

    def trim(self, live: np.ndarray) -> np.ndarray:
        return live

    def forward(self, n: int) -> None:
        relu(self.out.value, -(-n // self.out.lanes) * self.out.lanes * self.out.size)

    def backward(self, n: int) -> None:
        unrelu(self.out.gradient, self.out.value, -(-n // self.out.lanes) * self.out.lanes * self.out.size)


class Taps:
    """The surviving weights of a ``Linear`` or ``Conv2d``, as a convolution without padding and with stride 1."""

    def __init__(self, source: Signal, shape: Shape, out: Shape, module: nn.Module, mask: Tensor):
        self.source, self.out, self.module = source, Signal(prod(out), source.lanes), module
        self.in_shape, self.out_shape = shape, out
        self.where = np.flatnonzero(mask.cpu())
        kernel, (sh, sw), _ = window(module)
        self.row, channel, y, x = np.unravel_index(self.where, (*mask.shape[:2], *kernel))
        self.channel = (channel * sh + y % sh) * sw + x % sw
        self.place = np.ravel_multi_index((self.channel, y // sh, x // sw), shape)
        self.size = len(self.where) + (0 if module.bias is None else len(mask))

    def trim(self, live: np.ndarray) -> np.ndarray:
        """Sorts the weights by panel, output and input; those of a dead output come last and are never visited."""
        plane = prod(self.in_shape[1:])
        live = live.reshape(len(live) // prod(self.out_shape[1:]), -1).any(1)
        active, self.rows = live[self.row], np.flatnonzero(live)
        counts = np.bincount(self.channel[active], minlength=self.in_shape[0])
        panel_of, panel, floats, weights = np.zeros_like(counts), 0, 0, 0
        for channel in np.flatnonzero(counts):
            if floats >= PANEL and weights >= PER_ROW * len(self.rows):
                panel, floats, weights = panel + 1, 0, 0
            panel_of[channel] = panel
            floats, weights = floats + plane * self.source.lanes, weights + counts[channel]
        group = panel_of[self.channel] * len(live) + self.row
        order = np.lexsort((self.place, group, ~active))
        self.where, self.place = self.where[order], self.place[order] * self.source.lanes
        firsts = np.arange(panel + 1)[:, None] * len(live) + np.append(self.rows, len(live))
        self.starts = np.searchsorted(group[order][:active.sum()], firsts)
        return counts.repeat(plane) > 0

    def bind(self, values: np.ndarray, gradients: np.ndarray) -> None:
        """Takes its share of the flat arrays of all weights and biases, and the values of the model."""
        self.weights, self.biases = np.split(values, [len(self.where)])
        self.dweights, self.dbiases = np.split(gradients, [len(self.where)])
        self.weights[:] = self.module.weight.detach().cpu().numpy().ravel()[self.where]
        if self.module.bias is None:
            self.biases, self.dbiases = np.zeros((2, self.out_shape[0]), np.float32)
        else:
            self.biases[:] = self.module.bias.detach().cpu().numpy()

    def _geometry(self, n: int) -> tuple:
        x, y, lanes = self.source, self.out, self.source.lanes
        return (self.place, self.starts, self.rows, n, lanes, x.size * lanes, y.size * lanes,
                self.out_shape[1], self.out_shape[2] * lanes, self.in_shape[2] * lanes)

    def forward(self, n: int) -> None:
        forward(self.out.value, self.source.value, self.weights, self.biases, *self._geometry(n))

    def backward(self, n: int) -> None:
        backward(self.out.gradient, self.source.value, self.source.gradient, self.weights, self.dweights, self.dbiases,
                 *self._geometry(n))

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
    for name, module in model.named_children():
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
    for _, module in layers_of(model):
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
                    signal = self._add(Relayout(signal, np.arange(signal.size), NARROW))
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
            signal, shape = self._add(Relayout(signal, index.ravel(), lanes)), (shape[0] * prod(stride), *inside)
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
            loss += self._cross_entropy(self._forward(x[start:start + self.chunk]), labels, len(x))
            for layer in reversed(self.trained):
                layer.backward(len(labels))
        descend(self.values, self.gradients, self.velocity, lr, momentum, weight_decay, nesterov)
        return loss

    def logits(self, x: Tensor) -> Tensor:
        """[n, classes] for images [n, channels, height, width]."""
        parts = [self._forward(part).transpose(0, 2, 1).reshape(-1, self.output.size)[:len(part)].copy() for part in x.split(self.chunk)]
        return torch.from_numpy(np.concatenate(parts))

    def store(self) -> None:
        """Writes weights and biases into the model; a pruned weight becomes exactly 0."""
        for taps in self.taps:
            taps.store()

    def _forward(self, x: Tensor) -> np.ndarray:
        """The logits [block, class, lane] of at most ``chunk`` images; lanes beyond the last image are arbitrary."""
        self.input.value = x.detach().reshape(-1).numpy()
        for layer in self.layers:
            layer.forward(len(x))
        return self._blocks(self.output.value, len(x))

    def _blocks(self, flat: np.ndarray, n: int) -> np.ndarray:
        """The blocks of the first ``n`` samples of the output: [block, class, lane]."""
        lanes, classes = self.output.lanes, self.output.size
        blocks = -(-n // lanes)
        return flat[:blocks * classes * lanes].reshape(blocks, classes, lanes)

    def _cross_entropy(self, logits: np.ndarray, labels: np.ndarray, batch: int) -> float:
        """The loss of these samples / ``batch``; its gradient goes to the output."""
        n, (blocks, _, lanes) = len(labels), logits.shape
        block, lane = np.divmod(np.arange(n), lanes)
        with np.errstate(all="ignore"):
            shifted = logits - logits.max(1, keepdims=True)
            chances = np.exp(shifted)
            total = chances.sum(1, keepdims=True)
            chances /= total * np.float32(batch)
            loss = np.log(total)[block, 0, lane] - shifted[block, labels, lane]
        chances[block, labels, lane] -= np.float32(1 / batch)
        chances[-1, :, n - (blocks - 1) * lanes:] = 0
        self._blocks(self.output.gradient, n)[:] = chances
        return float(loss.sum()) / batch
