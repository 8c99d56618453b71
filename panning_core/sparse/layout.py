"""Where the numbers of an activation lie."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..models import Shape
from .kernels import STEP

if TYPE_CHECKING:
    from .steps import Step

#: for the kernels: no array, and where nothing lies
EMPTY, NOWHERE = np.zeros((0, 0), np.float32), (0, 0, 0)


def lanes_for(vectors: int, *widths: int) -> int:
    """The fewest lanes, a power of 2, for which rows of these widths are whole vectors, and one of
    the first width is at least so many."""
    lanes = STEP
    while widths[0] * lanes < vectors * STEP or any(width * lanes % STEP for width in widths):
        lanes *= 2
    return lanes


class Signal:
    """The values and gradients of an image with ``shape`` (channels, height, width) between two
    steps.

    It is put together in three phases. While the network is read its steps ``widen``, ``rise`` and
    ``rectify`` it; ``lay_out`` fixes its places; ``occupy`` gives it memory.

    Args:
        lanes: samples of a block.
        level: of the step that writes it.
        trains: whether a gradient goes back through it.
        gradient_is_local: whether its gradient is needed within its level alone; None: as the
            values.
    """

    def __init__(
        self,
        shape: Shape,
        lanes: int,
        level: int,
        trains: bool,
        gradient_is_local: bool | None = None,
    ):
        self.shape, self.lanes, self.level, self.trains = shape, lanes, level, trains
        self.gradient_is_local = gradient_is_local
        #: rows, columns
        self.margin = (0, 0)
        #: its step ends, and the gradient of its readers begins, with a ReLU
        self.positive = False
        #: the gradient takes the place of the values
        self.in_place = False

    # --- while the network is read

    def widen(self, margin: tuple[int, int]) -> None:
        """The margin is at least this wide."""
        self.margin = tuple(map(max, self.margin, margin))

    def rise(self, level: int) -> None:
        """It is written at this level."""
        self.level = level

    def rectify(self) -> None:
        """A ReLU is left to the step that writes it and to those that read it."""
        self.positive = True

    # --- once all of its readers are known

    def lay_out(self, readers: Iterable[Step]) -> None:
        """Fixes the places of all numbers."""
        (rows, columns), (channels, self.height, width) = self.margin, self.shape
        self.run, self.pitch = width * self.lanes, (width + 2 * columns) * self.lanes
        self.plane = (self.height + 2 * rows) * self.pitch
        # An odd number of cache lines, or the rows of many channels compete for the same places in
        # the nearest cache.
        if self.height > 1 < self.lanes:
            unit = max(self.lanes, STEP)
            self.plane = (-(-self.plane // unit) | 1) * unit
        self.origin = rows * self.pitch + columns * self.lanes
        self.size = -(-channels * self.plane // STEP) * STEP
        self.is_local = all(reader.level == self.level for reader in readers)
        if any(reader.ends_level for reader in readers):
            self.gradient_is_local = True
        elif self.gradient_is_local is None:
            self.gradient_is_local = self.is_local

    def overwrite(self) -> None:
        """Spares the gradient its memory, where nobody needs the values any more once its reader
        writes it."""
        self.in_place = True

    def keep_whole(self) -> None:
        """From now on the values of a whole batch are kept."""
        self.is_local = False

    @property
    def geometry(self) -> tuple[int, int, int]:
        """Origin, plane and pitch, as the kernels take them."""
        return self.origin, self.plane, self.pitch

    def places(self) -> np.ndarray:
        """Of each number of the image [channels * height * width], for the first sample of a
        block."""
        c, i, j = np.indices(self.shape)
        return (self.origin + c * self.plane + i * self.pitch + j * self.lanes).ravel()

    # --- memory

    def _arrays(self, samples: int, part: int) -> dict[str, tuple[int, int]]:
        """The shapes of its arrays for a batch of so many samples, ``part`` of them at a time."""

        def shape(local: bool) -> tuple[int, int]:
            return -(-(min(part, samples) if local else samples) // self.lanes), self.size

        wanted = {"value": shape(self.is_local)}
        if self.trains and not self.in_place:
            wanted["gradient"] = shape(self.gradient_is_local)
        return wanted

    def floats(self, samples: int, part: int) -> int:
        """How much memory it wants for such a batch."""
        return sum(map(prod, self._arrays(samples, part).values()))

    def occupy(self, room: np.ndarray, samples: int, part: int) -> None:
        """Takes its memory, a flat array of so many ``floats``."""
        start = 0
        for name, shape in self._arrays(samples, part).items():
            setattr(self, name, room[start : start + prod(shape)].reshape(shape))
            start += prod(shape)

    def hold(self, value: np.ndarray) -> None:
        """Takes an array of the user's as its values, such as a batch of images."""
        self.value = value

    def values(self, a: int, b: int) -> np.ndarray:
        """Those of the samples a to b, [blocks, floats]; lanes that hold no sample contain old
        numbers."""
        return self._cut(self.value, self.is_local, a, b)

    def gradients(self, a: int, b: int) -> np.ndarray:
        """As ``values``."""
        if self.in_place:
            return self.values(a, b)
        return self._cut(self.gradient, self.gradient_is_local, a, b)

    def _cut(self, array: np.ndarray, local: bool, a: int, b: int) -> np.ndarray:
        blocks = -(-(b - a) // self.lanes)
        return array[:blocks] if local else array[a // self.lanes : -(-b // self.lanes)]
