"""The engine for one network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..inspection import faithful
from ..models import prunable
from . import kernels
from .inlet import Inlet
from .layout import Signal
from .levels import Level, Passes
from .memory import Memory
from .normalisation import Norm
from .reading import Kept, read
from .steps import Learner
from .taps import Taps
from .tracing import REFUSED, refuse


def unsupported(model: nn.Module) -> str | None:
    """Why the engine cannot train ``model``, or None if it can."""
    weights = prunable(model).items()
    nothing = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights}
    try:
        SparseNet(model, nothing)
    except UserError as error:
        return str(error).removeprefix(REFUSED)
    return None


class SparseNet:
    """An ``Engine``: trains ``model`` with its pruned weights at 0.

    Args:
        model: a network for which ``unsupported`` returns None.
        mask: name of each weight -> bool of its shape, True where the weight survives.

    Raises:
        UserError: a network that the engine can not train; the message says which of its layers is
            unknown.
    """

    # One piece: no branch but the first, and each line makes one part from those before.
    def __init__(self, model: nn.Module, mask: Kept):
        if kernels.numba is None:
            refuse("numba is not installed")
        plan, output, called = read(model, mask)
        levels = [
            Level([step for step in plan.steps if step.level == level])
            for level in range(output.level + 1)
        ]
        self.inlet, self.passes = Inlet(plan), Passes(levels, output)
        self.memory = Memory(plan.signals, levels)
        self.parameters = dict(model.named_parameters())
        self.idle = [(self.parameters[name], ~m) for name, m in mask.items() if name not in called]
        self.trained = [step for step in plan.steps if isinstance(step, Learner)]
        self.norms = [step for step in self.trained if isinstance(step, Norm)]
        ends = np.cumsum([step.size for step in self.trained])
        self.values, self.gradients, self.velocity = np.zeros((3, ends[-1]), np.float32)
        shares = np.split(self.values, ends), np.split(self.gradients, ends)
        for step, values, gradients in zip(self.trained, *shares):
            step.bind(values, gradients)

    # --- use; what it does is said by ``Engine``

    def pixels(self, x: Tensor) -> Tensor:
        return self.inlet.pixels(x)

    def reads_pixels(self) -> bool:
        return self.inlet.reads_pixels()

    def step(
        self,
        x: Tensor,
        y: Tensor,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool = False,
    ) -> float:
        self._take(x)
        return self.learn(y.numpy(), lr, momentum, weight_decay, nesterov)

    def learn(self, labels: np.ndarray, *how: float) -> float:
        """``step`` with the images that were taken last."""
        loss = self._differentiate(labels)
        for norm in self.norms:
            norm.remember()
        kernels.descend(self.values, self.gradients, self.velocity, *how)
        return loss / len(labels)

    def logits(self, x: Tensor) -> Tensor:
        parts = []
        for images in x.split(max(self.capacity, 256)):
            self._take(images)
            parts.append(self.scores(len(images)))
        return torch.cat(parts)

    def scores(self, n: int) -> Tensor:
        """``logits`` of the n images that were taken last."""
        return self.passes.scores(n)

    def flow(self, x: Tensor, y: Tensor, temperature: float) -> tuple[Tensor, float]:
        logits = self._look(x, y, temperature)
        taps = (step for step in self.trained if isinstance(step, Taps))
        gradients = [step.dweights.astype(np.float64) for step in taps]
        return logits, sum(float(gradient @ gradient) for gradient in gradients) / temperature**2

    def answer(self, x: Tensor, y: Tensor) -> faithful.Answer:
        logits = self._look(x, y, 1.0)
        told = {p: gradient for step in self.trained for p, gradient in step.told().items()}
        gradients = {
            n: told[p] if p in told else torch.zeros_like(p) for n, p in self.parameters.items()
        }
        return faithful.Answer(logits, self.logits(x), gradients)

    def _look(self, x: Tensor, y: Tensor, temperature: float) -> Tensor:
        """The logits of ``flow``, whose gradients are ``temperature`` times those of the loss."""
        self._take(x)
        scores: list[np.ndarray] = []
        self._differentiate(y.numpy(), temperature, scores)
        return torch.from_numpy(np.concatenate(scores)).mT.flatten(0, 1)[: len(x)]

    def _differentiate(
        self, labels: np.ndarray, temperature: float = 1.0, told: list[np.ndarray] | None = None
    ) -> float:
        """As ``Passes.differentiate``; ``gradients`` is what it adds to."""
        self.gradients[:] = 0
        return self.passes.differentiate(labels, temperature, told)

    # --- what was learned

    def store(self) -> None:
        for step in self.trained:
            step.store()
        with torch.no_grad():
            for weight, gone in self.idle:
                weight[gone] = 0.0

    def state(self) -> dict[str, Tensor]:
        state = {"values": torch.tensor(self.values), "velocity": torch.tensor(self.velocity)}
        for k, norm in enumerate(self.norms):
            state |= {f"norm {k} {name}": each for name, each in norm.state().items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.values[:], self.velocity[:] = state["values"].numpy(), state["velocity"].numpy()
        for k, norm in enumerate(self.norms):
            own = f"norm {k} "
            norm.load_state({n.removeprefix(own): t for n, t in state.items() if own in n})

    # --- memory and images

    @property
    def capacity(self) -> int:
        """Samples of a batch that have memory."""
        return self.memory.capacity

    def _take(self, x: Tensor) -> None:
        self.inlet.take(x)
        self.memory.make_room(len(x))

    def share(self, images: Signal) -> None:
        """From now on another network fetches the images, to this signal."""
        self.passes.levels[0].drop(self.inlet.fetch_step)
        self.inlet.read_from(images)
        self.memory.forget()
