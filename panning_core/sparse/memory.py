"""The memory of a network's activations and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .kernels import STEP
from .layout import Signal
from .levels import Level


class Memory:
    """Gives signals their arrays, as large as the largest batch so far wants them.

    Attributes:
        capacity: samples of that batch.
    """

    def __init__(self, signals: Sequence[Signal], levels: Sequence[Level]):
        self.signals, self.levels, self.capacity = signals, levels, 0
        self.part = max(level.part for level in levels)

    def room(self, samples: int) -> np.ndarray:
        """An array for a batch of so many samples; one, because the system hands out a large one
        in fewer and larger pages."""
        floats = sum(signal.floats(samples, self.part) for signal in self.signals)
        return np.zeros(floats + STEP, np.float32)

    def make_room(self, samples: int, room: np.ndarray | None = None) -> None:
        """Makes sure that a batch of so many samples has its arrays, in ``room`` if it is given."""
        if samples <= self.capacity:
            return
        self.capacity, room = samples, self.room(samples) if room is None else room
        for level in self.levels:
            level.forget()
        # A vector that begins in one cache line and ends in the next is slower.
        start = -room.ctypes.data // room.itemsize % STEP
        for signal in self.signals:
            end = start + signal.floats(samples, self.part)
            signal.occupy(room[start:end], samples, self.part)
            start = end

    def forget(self) -> None:
        """The next batch gets new arrays."""
        self.capacity = 0
