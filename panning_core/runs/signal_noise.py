"""Random pruning at initialisation of a two-layer network: it may learn a signal or noise.

The setting of Yang et al., "Theoretical characterization of how neural network pruning affects its
generalization" (arXiv 2301.00335; JMLR 26(84), 2025), from memory and its abstract: the theorems'
pages could not be read. An input is a signal on one coordinate a class plus Gaussian noise on all
of them,

    x = signal * e_y + xi,   xi ~ N(0, noise^2 I),

and output j of the network is the sum of ReLU(<w_jr * m_jr, x>) over the neurons r of class j, with
fixed masks m whose entries are 1 with probability ``kept``. Full-batch gradient descent on the
cross-entropy trains w. A class *is covered* if a neuron of its own still sees its coordinate.
As a control, which is ours, a signal may be spread over several coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import UserError, is_number, unknown, whole
from . import base

TESTED = 2000  #: fresh samples to test on
#: what a mask may be: independent entries; the same with all signals' coordinates kept, or removed;
#: one row of entries for all neurons, so that inputs are removed
MASKS = ("random", "signal-kept", "signal-removed", "inputs")


@dataclass(frozen=True)
class SignalNoise(base.Run):
    """One training. Runs that differ in ``kept`` alone share data, initial weights and, in nested
    masks, the order in which weights are removed.

    Attributes:
        seed: of the data, the initial weights and the mask.
        kept: probability that a weight is kept, in (0, 1].
        mask: one of ``MASKS``.
        classes, inputs, width: outputs, coordinates of an input, and neurons a class.
        samples: to train on.
        spread: coordinates that share the signal of a class, whose norm stays the same.
        signal, noise, scale: strength of the signal, and the standard deviations of the noise and
            of the initial weights.
        lr: rate of descent; divided by ``kept`` if ``rescaled``, as a sparser neuron learns more
            slowly at the same rate.
        stop: the training loss at which the descent ends, so that all are compared at the same.
        steps: at most so many.
    """

    kind: ClassVar[str] = "signal-noise"
    seed: int = 0
    kept: float = 1.0
    mask: str = "random"
    classes: int = 5
    inputs: int = 4000
    width: int = 25
    samples: int = 50
    spread: int = 1
    signal: float = 2.0
    noise: float = 0.2
    scale: float = 0.005
    lr: float = 0.01
    rescaled: bool = True
    stop: float = 0.01
    steps: int = 3000

    def __post_init__(self):
        for name, least in (
            ("seed", 0),
            ("classes", 2),
            ("inputs", 2),
            ("width", 1),
            ("samples", 1),
            ("spread", 1),
            ("steps", 1),
        ):
            whole(f"{name} of a signal-noise run", getattr(self, name), least)
        if self.inputs < self.classes * self.spread:
            raise UserError(
                f"{self.inputs} inputs can not hold the signals of {self.classes} classes; "
                f"each class needs {self.spread} of its own"
            )
        if not is_number(self.kept) or not 0 < self.kept <= 1:
            raise UserError(f"kept is {self.kept!r}; it must be a probability above 0 and up to 1")
        for name in ("signal", "scale", "lr", "stop"):
            value = getattr(self, name)
            if not is_number(value) or not value > 0:
                raise UserError(f"{name} is {value!r}; it must be a number above 0")
        if not is_number(self.noise) or not self.noise >= 0:
            raise UserError(f"noise is {self.noise!r}; it must be a number from 0")
        if self.mask not in MASKS:
            raise unknown("mask of a signal-noise run", self.mask, MASKS)
        if not isinstance(self.rescaled, bool):
            raise UserError(f"rescaled is {self.rescaled!r}; it must be true or false")

    def execute(self, context: base.Context) -> dict:
        """Train and test.

        Returns:
            ``train_loss`` and ``train_accuracy`` at the end, after ``steps_taken``, and whether the
            loss has ``reached`` the stop before the last step; ``test_loss`` and
            ``test_accuracy`` there; ``covered`` classes; ``kept_weights``; ``signal_learned`` and
            ``noise_learned`` (``learned``).
        """
        generator = torch.Generator().manual_seed(self.seed)
        x, y = draw(self, self.samples, generator)
        weights, mask = initial(self, generator), masked(self, generator)
        trained, taken = descend(self, x, y, weights, mask)
        loss, accuracy = measure(self, trained, x, y)
        test_loss, test_accuracy = measure(self, trained, *draw(self, TESTED, generator))
        signal, noise = learned(self, trained)
        numbers = {
            "train_loss": loss,
            "train_accuracy": accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "signal_learned": signal,
            "noise_learned": noise,
        }
        return {
            **{name: float(f"{value:.6g}") for name, value in numbers.items()},
            "steps_taken": taken,
            "reached": taken < self.steps,
            "covered": int(covered(self, mask).sum()),
            "kept_weights": int(mask.sum()),
        }


def draw(run: SignalNoise, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` samples: x [count, inputs], y [count]."""
    y = torch.randint(run.classes, (count,), generator=generator)
    x = run.noise * torch.randn((count, run.inputs), generator=generator)
    return x + run.signal * directions(run)[y], y


def directions(run: SignalNoise) -> Tensor:
    """[classes, inputs]: the signals, of norm 1. That of class c is on coordinate c, or equally on
    the ``spread`` coordinates from c * spread on."""
    blocks = torch.eye(run.classes).repeat_interleave(run.spread, 1) / run.spread**0.5
    return functional.pad(blocks, (0, run.inputs - blocks.shape[1]))


def initial(run: SignalNoise, generator: torch.Generator) -> Tensor:
    """Weights [classes * width, inputs] from N(0, scale^2); a class's neurons stand together."""
    shape = (run.classes * run.width, run.inputs)
    return run.scale * torch.randn(shape, generator=generator)


def masked(run: SignalNoise, generator: torch.Generator) -> Tensor:
    """The mask [classes * width, inputs]; all ones where everything is kept."""
    rows = run.classes * run.width
    dice = torch.rand((1 if run.mask == "inputs" else rows, run.inputs), generator=generator)
    mask = (dice < run.kept).expand(rows, -1).clone()
    if run.mask.startswith("signal"):
        mask[:, : run.classes * run.spread] = run.mask == "signal-kept"
    return mask


def outputs(run: SignalNoise, weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [n, classes], and what the neurons hear before their ReLU [n, classes * width]."""
    heard = x @ weights.T
    return summed(run, heard), heard


def summed(run: SignalNoise, heard: Tensor) -> Tensor:
    """Outputs [n, classes]: the sum over a class's neurons."""
    return heard.relu().view(len(heard), run.classes, run.width).sum(2)


def descend(
    run: SignalNoise, x: Tensor, y: Tensor, weights: Tensor, mask: Tensor
) -> tuple[Tensor, int]:
    """Gradient descent on the weights that are kept, until the loss is ``run.stop`` or less.

    Every step adds a mix of the samples, masked, to a neuron's weights. So it is done in the n
    numbers of that mix, with the products of the masked samples, many times faster than in the
    weights themselves.

    Returns:
        The weights, exactly 0 where the mask is, and the number of steps taken.
    """
    weights, target = weights * mask, functional.one_hot(y, run.classes).float()
    rate = run.lr / run.kept if run.rescaled else run.lr
    products = torch.stack([(x * row) @ x.T for row in mask])
    output, heard = outputs(run, weights, x)
    mix, taken = torch.zeros_like(heard), 0
    while functional.cross_entropy(output, y) > run.stop and taken < run.steps:
        slope = (output.softmax(1) - target) / len(x)
        change = rate * slope.repeat_interleave(run.width, 1) * (heard > 0)
        mix -= change
        heard -= torch.einsum("rij,jr->ir", products, change)
        output, taken = summed(run, heard), taken + 1
    return weights + mask * (mix.T @ x), taken


def measure(run: SignalNoise, weights: Tensor, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Cross-entropy and accuracy. Equal largest outputs share the point, so that a network that
    says nothing is at chance and not at the share of class 0."""
    output, _ = outputs(run, weights, x)
    best = output == output.max(1, keepdim=True).values
    right = best[torch.arange(len(y)), y] / best.sum(1)
    return float(functional.cross_entropy(output, y)), float(right.mean())


def covered(run: SignalNoise, mask: Tensor) -> Tensor:
    """[classes]: whether one of a class's own neurons keeps a coordinate of its signal."""
    own = mask.view(run.classes, run.width, run.inputs).any(1)
    return (own & (directions(run) > 0)).any(1)


def learned(run: SignalNoise, weights: Tensor) -> tuple[float, float]:
    """What the mean class has learned of its signal, the sum of ReLU(<w, signal>) over its own
    neurons, and of the noise: the norm of their sum outside all signals' coordinates."""
    own = weights.view(run.classes, run.width, run.inputs)
    signal = torch.einsum("cri,ci->cr", own, directions(run)).relu().sum(1)
    noise = own[:, :, run.classes * run.spread :].sum(1).norm(dim=1)
    return float(signal.mean()), float(noise.mean())


def coverage(kept: float, width: int) -> float:
    """The probability that independent masks cover a class whose signal is on one coordinate."""
    return 1 - (1 - kept) ** width


def mild(run: SignalNoise) -> float:
    """log(inputs) / width: the theorem's least ``kept`` of mild pruning, without its constant."""
    return math.log(run.inputs) / run.width


def excessive(run: SignalNoise) -> float:
    """1 / (classes * width * log(inputs)): over-pruning begins at this order of ``kept``."""
    return 1 / (run.classes * run.width * math.log(run.inputs))
