"""The steps between two batch normalisations, and the passes over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import kernels
from .layout import Signal
from .normalisation import Moments, Norm
from .steps import Calls, Step

#: floats of a level's activations and gradients that are worked on at a time
PART = 2**20
#: samples of them at most
MOST = 256


class Level:
    """The steps of a level, a few samples at a time, so that what one step writes is in the cache
    for the next.

    Attributes:
        part: how many samples at a time.
    """

    def __init__(self, steps: Sequence[Step]):
        self.steps = list(steps)
        self.calls: dict[tuple[str, int, int], Calls] = {}
        self.norms = [step for step in steps if isinstance(step, Norm)]
        self.moments = [step for step in steps if isinstance(step, Moments)]
        signals = {step.out for step in steps}
        granule = max(signal.lanes for signal in signals)
        floats = sum(2 * signal.size // signal.lanes for signal in signals)
        self.part = granule * min(max(PART // (floats * granule), 1), MOST // granule)

    def parts(self, n: int) -> list[tuple[int, int]]:
        """(first, last + 1) sample of each part of a batch."""
        return [(a, min(a + self.part, n)) for a in range(0, n, self.part)]

    def begin(self, samples: int | None) -> None:
        """Called before it, with the size of the batch in training."""
        for step in self.norms:
            step.begin(samples)

    def finish(self) -> None:
        """Called on the way back, before its gradients."""
        for step in self.moments:
            step.finish()

    def drop(self, step: Step) -> None:
        """Another network makes this step from now on."""
        self.steps.remove(step)
        self.forget()

    def forget(self) -> None:
        """The signals have other arrays now."""
        self.calls.clear()

    def run(self, way: str, a: int, b: int) -> None:
        """Makes the calls for the samples a to b, ``"forward"`` in training, to ``"predict"``, to
        ``"repeat"`` what was not kept, or ``"backward"``."""
        if (way, a, b) not in self.calls:
            self.calls[way, a, b] = self._calls(way, a, b)
        for function, arguments in self.calls[way, a, b]:
            function(*arguments)

    def _calls(self, way: str, a: int, b: int) -> Calls:
        if way == "backward":
            back = [step for step in reversed(self.steps) if step.goes_back]
            return [call for step in back for call in step.backward(a, b)]
        steps = {
            "forward": self.steps,
            "predict": [step for step in self.steps if not step.ends_level],
            "repeat": [step for step in self.steps if step.out.is_local],
        }[way]
        return [call for step in steps for call in step.forward(a, b)]


class Passes:
    """Forward and back through all levels, for the images that were taken last.

    Args:
        output: the signal of the logits.
    """

    def __init__(self, levels: Sequence[Level], output: Signal):
        self.levels, self.output = levels, output

    def scores(self, n: int) -> Tensor:
        """The logits [n, classes], batch normalisation with its running statistics."""
        found = []
        for level in self.levels:
            level.begin(None)
            for a, b in level.parts(n):
                level.run("predict", a, b)
                if level is self.levels[-1]:
                    part = torch.from_numpy(self.output.values(a, b))
                    part = part.unflatten(1, (-1, self.output.lanes))
                    found.append(part.mT.flatten(0, 1)[: b - a].clone())
        return torch.cat(found)

    def differentiate(
        self, labels: np.ndarray, temperature: float, told: list[np.ndarray] | None
    ) -> float:
        """Adds to the steps' gradients ``temperature`` times that of the mean loss of scores /
        temperature, not to be small for its sake.

        Args:
            told: is given the scores [blocks, classes, lanes] of one part of the batch after
                another.

        Returns:
            The summed loss.
        """
        n, loss = len(labels), 0.0
        for level in self.levels:
            level.begin(n)
            for a, b in level.parts(n):
                level.run("forward", a, b)
                if level is self.levels[-1]:
                    loss += self._lose(labels, a, b, temperature, told)
                    level.run("backward", a, b)
        for level in reversed(self.levels[:-1]):
            level.finish()
            for a, b in level.parts(n):
                level.run("repeat", a, b)
                level.run("backward", a, b)
        return loss

    def _lose(
        self,
        labels: np.ndarray,
        a: int,
        b: int,
        temperature: float,
        told: list[np.ndarray] | None,
    ) -> float:
        """The summed loss of the samples a to b, and its gradient in place."""
        output = self.output
        arrays = output.gradients(a, b), output.values(a, b)
        gradient, scores = (array.reshape(len(array), -1, output.lanes) for array in arrays)
        if told is not None:
            told.append(scores.copy())
        return kernels.cross_entropy(gradient, scores, labels[a:b], len(labels), temperature)
