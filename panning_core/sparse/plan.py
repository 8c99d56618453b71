"""The steps of a network while it is put together: added layer by layer, then joined, then laid
out."""

from __future__ import annotations

from math import prod
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor, nn

from ..models import Shape
from .layout import Signal, lanes_for
from .normalisation import Norm
from .steps import Fetch, Relayout, Relu, Step
from .taps import Taps
from .tracing import refuse

Kind = TypeVar("Kind", bound=Step)


class Image(NamedTuple):
    """A value of the network: its signal, and the shape that the next layer sees, which a
    ``Flatten`` changes."""

    signal: Signal
    shape: Shape


def phases(shape: Shape, module: nn.Conv2d, out: Shape) -> tuple[np.ndarray, Shape]:
    """An image of s * s times as many channels, one for each phase of a pixel: with stride 1 a
    convolution of it is one with stride s of the image itself. It has the padding already.

    Returns:
        Of each of its numbers the place in the image, or -1 for a 0, and its shape.
    """
    (sy, sx), (top, left) = module.stride, module.padding
    sizes = zip(out[1:], module.kernel_size, module.stride)
    inside = [size + (k - 1) // s for size, k, s in sizes]
    channel, phase_y, phase_x, y, x = np.indices((shape[0], sy, sx, *inside))
    y, x = y * sy + phase_y - top, x * sx + phase_x - left
    within = (0 <= y) & (y < shape[1]) & (0 <= x) & (x < shape[2])
    index = np.where(within, (channel * shape[1] + y) * shape[2] + x, -1)
    return index, (shape[0] * sy * sx, *inside)


class Plan:
    """Steps in their order.

    Args:
        shape: of an image.
        vectors: registers that a row of samples is to fill.

    Attributes:
        selected: the pixels that come out of a ``Select`` of the images; None: all.
        signals: once it is laid out, those that the steps write.
    """

    def __init__(self, shape: Shape, vectors: int):
        self.steps: list[Step] = []
        self.input, self.vectors = Signal(shape, 1, 0, False), vectors
        self.input.lay_out([])
        self.selected: np.ndarray | None = None

    # --- questions

    def end(self, signal: Signal, kind: type[Kind]) -> Kind | None:
        """The step of this kind that writes a signal."""
        return next((s for s in self.steps if s.out is signal and isinstance(s, kind)), None)

    def is_of_weights(self, signal: Signal) -> bool:
        """Whether a layer with weights writes it."""
        return self.end(signal, Taps) is not None

    def readers(self, signal: Signal) -> list[Step]:
        return [step for step in self.steps if step.reads(signal)]

    def adds(self, step: Step) -> bool:
        """Whether another step has written the gradient of its target before, on the way back."""
        return step in self._adding

    # --- layers

    def add(self, step: Step) -> Signal:
        self.steps.append(step)
        return step.out

    def select(self, pixels: np.ndarray) -> None:
        """Of the images the network reads these pixels."""
        self.selected = pixels

    def relayout(self, signal: Signal, index: np.ndarray, shape: Shape, lanes: int) -> Signal:
        kind = Fetch if signal is self.input else Relayout
        return self.add(kind(signal, index.ravel(), shape, lanes))

    def linear(self, image: Image, module: nn.Linear, mask: Tensor) -> Image:
        signal, shape = image
        if shape[1:] != (1, 1):
            refuse("Linear without Flatten before it is not supported")
        inputs = None
        # It reads single pixels of the whole image.
        if signal is self.input:
            inputs, shape = self.selected, (prod(signal.shape), 1, 1)
        out = len(mask), 1, 1
        signal = self._with_lanes(signal, shape, out)
        return Image(self.add(Taps(signal, out, module, mask, inputs=inputs)), out)

    def convolution(self, image: Image, module: nn.Conv2d, mask: Tensor) -> Image:
        signal, shape = image
        kernel, stride, padding = module.kernel_size, module.stride, module.padding
        sizes = zip(shape[1:], kernel, stride, padding)
        out = len(mask), *((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)
        if stride == (1, 1):
            signal = self._with_lanes(signal, shape, out)
        else:
            signal, padding = self._in_phases(signal, shape, module, out), (0, 0)
        return Image(self.add(Taps(signal, out, module, mask, stride, padding)), out)

    def _with_lanes(self, signal: Signal, shape: Shape, out: Shape) -> Signal:
        """The signal for a layer that reads images of this shape; a relayout where they are the
        network's, flattened, or of the wrong number of lanes."""
        lanes = lanes_for(self.vectors, out[2], shape[2])
        if signal is self.input or signal.shape != shape or signal.lanes != lanes:
            return self.relayout(signal, np.arange(prod(shape)), shape, lanes)
        return signal

    def _in_phases(self, signal: Signal, shape: Shape, module: nn.Conv2d, out: Shape) -> Signal:
        """A relayout that spares a convolution its stride and its padding."""
        index, shape = phases(shape, module, out)
        lanes = lanes_for(self.vectors, out[2], shape[2])
        return self.relayout(signal, index, shape, lanes)

    def relu(self, image: Image) -> Image:
        """Left to a batch normalisation just before it."""
        if norm := self.end(image.signal, Norm):
            norm.rectify()
        else:
            self.add(Relu(image.signal))
        return image

    def normalisation(self, image: Image, module: nn.BatchNorm2d) -> Image:
        if not image.signal.trains:
            refuse("BatchNorm2d before the first weights is not supported")
        norm = Norm(image.signal, module)
        self.add(norm.moments)
        return Image(self.add(norm), image.shape)

    def sum(self, one: Image, two: Image) -> Image:
        """Left to a batch normalisation just before it."""
        for (signal, shape), (other, _) in ((one, two), (two, one)):
            norm = self.end(signal, Norm)
            if not norm or not norm.can_add or self.readers(signal):
                continue
            if other.trains and other.shape == signal.shape:
                if other.lanes != signal.lanes:
                    other = self.relayout(other, np.arange(prod(shape)), shape, signal.lanes)
                norm.plus(other)
                # What it adds is there before, also if it is of the same level.
                self.steps.remove(norm)
                self.steps.append(norm)
                return Image(signal, shape)
        refuse("an addition that does not follow a BatchNorm2d is not supported")

    # --- once all are there

    def lay_out(self) -> None:
        """Fixes everything about signals and steps but their memory."""
        self._join_relus()
        self.steps.sort(key=lambda step: step.level)
        self.signals = list(dict.fromkeys(step.out for step in self.steps))
        for signal in self.signals:
            signal.lay_out(self.readers(signal))
        # As on the way back, where the first reader of a signal overwrites its gradient.
        written: set[Signal | None] = set()
        self._adding: set[Step] = set()
        for step in reversed(self.steps):
            if step.target in written:
                self._adding.add(step)
            written.add(step.target)
        for step in self.steps:
            step.prepare(self)

    def _join_relus(self) -> None:
        """Leaves a ReLU between two layers with weights to them."""
        for step in [step for step in self.steps if isinstance(step, Relu)]:
            others = [reader for reader in self.readers(step.source) if reader is not step]
            joined = others and all(isinstance(other, Taps) for other in others)
            if joined and self.is_of_weights(step.source):
                step.source.rectify()
                self.steps.remove(step)
