"""A training taken apart into its first-order steps (Jeffares, Curth & van der Schaar 2024).

For any input x the *telescoping model* adds up what every step changes to first order, with the
gradient of the weights before that step,

    f~_T(x) = f_0(x) + sum_t grad f_{t-1}(x) . (theta_t - theta_{t-1}),

where the *lazy* model keeps the gradient of step 0 for all of them. With the loss (f - y)^2 / 2 the
model is a smoother, f~_T(x) = s_T(x) . y + c_T(x), because every step is linear in the labels:

    s_t(x) = s_{t-1}(x) + g/n K(x, X) (I - S_{t-1}),    c_t(x) = c_{t-1}(x) - g/n K(x, X) c_{t-1}(X)

with the rate g, the n training inputs X and the tangent kernel K of step t - 1. The *effective
parameters* on a set of inputs are the mean of n |s(x)|^2 over it: n for a network that remembers
every label, 1 for the mean of the labels. Full batches, float64.

The task (digits 3 against 5, a fifth of the labels wrong) is one of the paper's; its widths, rates
and numbers of points could not be read, and those here are ours. So is the question of the masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import data, masks, pruning
from ..errors import UserError, fraction, fraction_kept, is_number, pick, unknown, whole
from . import base

CLASSES = (3, 5)  #: the labels -1 and +1
SIDE = 8  #: images are pooled to at most so many pixels a side
TESTED = 200  #: test points, at most
LEVELS = (0.6, 0.3, 0.1, 0.03)  #: of the training error, at which networks are compared
DENSE = "dense"  #: the method that prunes nothing


class Activation(NamedTuple):
    """A non-linearity: its module, and (z) -> (value, derivative)."""

    module: type[nn.Module]
    both: Callable[[Tensor], tuple[Tensor, Tensor]]


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    gate = z.sigmoid()
    return z * gate, gate * (1 + z * (1 - gate))


ACTIVATIONS = {
    "relu": Activation(nn.ReLU, lambda z: (z.relu(), (z > 0).to(z))),
    "silu": Activation(nn.SiLU, _silu),
}


@dataclass(frozen=True)
class Telescope(base.Run):
    """One training by gradient descent, and its telescoping, lazy and smoother models.

    Attributes:
        seed: of the points, the wrong labels, the initial weights and the mask.
        dataset: images with the classes 3 and 5.
        points: n, training points.
        noise: share of training labels that are turned over.
        width: hidden units.
        activation: a key of ``ACTIVATIONS``.
        steps: at most; each on all points.
        until: training error, mean squared, at which it ends before.
        rate: of a step, in units of n / trace K, thus below 2 / the largest eigenvalue of K / n at
            every step, beyond which gradient descent diverges.
        method: ``"dense"``, or a name of ``pruning.methods()`` for the mask.
        density: share of weights kept.
    """

    kind: ClassVar[str] = "telescope"
    seed: int = 0
    dataset: str = "mnist"
    points: int = 100
    noise: float = 0.2
    width: int = 64
    activation: str = "silu"
    steps: int = 10_000
    until: float = 0.0
    rate: float = 1.0
    method: str = DENSE
    density: float = 1.0

    def __post_init__(self):
        for name, least in (("seed", 0), ("points", 2), ("width", 1), ("steps", 1)):
            whole(f"{name} of a telescope", getattr(self, name), least)
        fraction("noise of a telescope", self.noise)
        fraction_kept(self.density)
        if not is_number(self.until) or self.until < 0:
            raise UserError(f"until of a telescope is {self.until!r}; it must be a number from 0")
        pick("activation", self.activation, ACTIVATIONS)
        if not is_number(self.rate) or not 0 < self.rate < 2:
            raise UserError(f"rate of a telescope is {self.rate!r}; it must be between 0 and 2")
        if self.method not in (DENSE, *pruning.methods()):
            raise unknown("pruner", self.method, (DENSE, *pruning.methods()))
        if (self.method == DENSE) != (self.density == 1):
            raise UserError(
                f"method {self.method} with density {self.density}; the method dense, and it "
                "alone, has density 1"
            )

    def execute(self, context: base.Context) -> dict:
        return run(self, context)


# --- the network and its tangent ------------------------------------------------------------------


class Tangent(NamedTuple):
    """f(x) = a . phi(W x) to first order around its weights, at ``inputs``; the first are trained.

    Attributes:
        x: [inputs, pixels].
        hidden: [inputs, units], phi(W x).
        slope: [inputs, units], a phi'(W x).
        first: [units, pixels] and ``last`` [units]: which weights are kept.
    """

    x: Tensor
    hidden: Tensor
    slope: Tensor
    first: Tensor
    last: Tensor

    def kernel(self, n: int) -> Tensor:
        """K [inputs, n]: gradients of f at every input times those at the first n, kept weights."""
        last = (self.hidden * self.last) @ self.hidden[:n].T
        if bool(self.first.all()):
            return last + (self.slope @ self.slope[:n].T) * (self.x @ self.x[:n].T)
        # A unit without its last weight has slope 0.
        units, pixels = (self.first & self.last[:, None]).nonzero(as_tuple=True)
        jacobian = self.slope[:, units] * self.x[:, pixels]
        return last + jacobian @ jacobian[:n].T

    def gradient(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """sum_i residual_i grad f(x_i) over the first inputs: of W and of a, 0 where pruned."""
        n = len(residual)
        of_first = (self.slope[:n] * residual[:, None]).T @ self.x[:n]
        return of_first * self.first, (self.hidden[:n].T @ residual) * self.last

    def change(self, of_first: Tensor, of_last: Tensor) -> Tensor:
        """[inputs]: what changes of W and a do to f, to first order."""
        return (self.x @ of_first.T * self.slope).sum(1) + self.hidden @ of_last


class Network(NamedTuple):
    """f(x) = a . phi(W x): ``w`` [units, pixels], ``a`` [units], and which of them are kept."""

    w: Tensor
    a: Tensor
    first: Tensor
    last: Tensor
    activation: str

    def tangent(self, x: Tensor) -> Tangent:
        hidden, slope = ACTIVATIONS[self.activation].both(x @ self.w.T)
        return Tangent(x, hidden, slope * self.a, self.first, self.last)

    def moved(self, of_first: Tensor, of_last: Tensor) -> Network:
        return self._replace(w=self.w + of_first, a=self.a + of_last)


class Points(NamedTuple):
    """Training points ``x`` [n, pixels] with labels ``y`` [n] of -1 and +1, and test points."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def draw_points(splits: data.Splits, n: int, noise: float, generator: torch.Generator) -> Points:
    """``n`` training and at most ``TESTED`` test images of the two classes, pooled; training pixels
    have mean 0 each and variance 1 together.

    Raises:
        UserError: fewer images than asked for.
    """
    x, y = _of_classes(splits.train, n, generator)
    if len(y) < n:
        raise UserError(f"{splits.title} has {len(y)} training images of {CLASSES}; {n} are wanted")
    x_test, y_test = _of_classes(splits.test, TESTED, generator)
    turned = torch.randperm(n, generator=generator)[: round(noise * n)]
    y[turned] *= -1
    mean, deviation = x.mean(0), (x - x.mean(0)).square().mean().sqrt()
    return Points((x - mean) / deviation, y, (x_test - mean) / deviation, y_test)


def _of_classes(split: data.Split, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(x [n, pixels], y [n]) in float64, at random, fewer where there are no more."""
    if split.classes <= max(CLASSES) or split.x.dim() != 4:
        raise UserError(f"a telescope needs images of the classes {CLASSES[0]} and {CLASSES[1]}")
    members = ((split.y == CLASSES[0]) | (split.y == CLASSES[1])).nonzero().flatten()
    chosen = members[torch.randperm(len(members), generator=generator)[:n]]
    side = math.ceil(max(split.x.shape[2:]) / SIDE)
    x = nn.functional.avg_pool2d(split.x[chosen].double(), side).flatten(1)
    return x, torch.where(split.y[chosen] == CLASSES[1], 1.0, -1.0).double()


def build(points: Points, run: Telescope, generator: torch.Generator) -> Network:
    """The initial network, W ~ N(0, 2 / pixels) and a ~ N(0, 1 / units), pruned.

    A mask is found as for any network of two classes: the logits are 0 and f, so that
    cross-entropy is the logistic loss of f, and the batch is all training points.
    """
    pixels = points.x.shape[1]
    w = torch.randn((run.width, pixels), generator=generator).double() * (2 / pixels) ** 0.5
    a = torch.randn(run.width, generator=generator).double() / run.width**0.5
    if run.method == DENSE:
        kept = torch.ones_like(w, dtype=torch.bool), torch.ones_like(a, dtype=torch.bool)
        return Network(w, a, *kept, run.activation)
    model = as_module(w, a, run.activation)
    batch = points.x.float(), (points.y > 0).long()
    mask, _ = pruning.prune(model, run.method, run.density, batch, seed=run.seed)
    first, last = mask.values()
    return Network(w * first, a * last[0], first, last[0], run.activation)


def as_module(w: Tensor, a: Tensor, activation: str) -> nn.Module:
    """The same network for ``pruning``: logits (0, f), float32."""
    units, pixels = w.shape
    model = nn.Sequential(
        nn.Linear(pixels, units, bias=False),
        ACTIVATIONS[activation].module(),
        nn.Linear(units, 1, bias=False),
        nn.ConstantPad1d((1, 0), 0.0),
    )
    with torch.no_grad():
        model[0].weight.copy_(w)
        model[2].weight.copy_(a[None])
    model.input_shape = (pixels,)
    return model


# --- the smoother ---------------------------------------------------------------------------------


class Smoother:
    """f~(x) = s(x) . y + c(x), closed loop: its own residuals drive it.

    Attributes:
        s: [inputs, n]; the first n inputs are the training points.
        c: [inputs], at first the untrained network.
    """

    def __init__(self, outputs: Tensor, n: int):
        self.s = outputs.new_zeros((len(outputs), n))
        self.c = outputs.clone()

    def step(self, kernel: Tensor, rate: float) -> None:
        """One step of gradient descent on the mean loss with this kernel [inputs, n]."""
        n = kernel.shape[1]
        rest = -self.s[:n]
        rest.diagonal().add_(1)
        self.s, self.c = (
            self.s + kernel @ rest * (rate / n),
            self.c - kernel @ self.c[:n] * (rate / n),
        )

    def outputs(self, y: Tensor) -> Tensor:
        """[inputs]: f~ for the training labels y [n]."""
        return self.s @ y + self.c


def effective_parameters(s: Tensor) -> float:
    """The mean of n |s(x)|^2 over the rows s(x) [n] (Curth et al. 2023; Jeffares et al. 2024)."""
    return float(s.square().sum(1).mean()) * s.shape[1]


# --- the training ---------------------------------------------------------------------------------


class Path:
    """A training and the three models that follow it, step by step.

    Attributes:
        network: as it is now.
        outputs: [inputs] of it, training points first.
        telescoped: f~ open loop: the true steps, to first order each.
        lazy: the same with the gradient of the untrained network.
        smoother: f~ closed loop.
    """

    def __init__(self, network: Network, points: Points, rate: float):
        self.network, self.points, self.rate = network, points, rate
        self.n, self.x = len(points.y), torch.cat([points.x, points.x_test])
        self._start = self._tangent = network.tangent(self.x)
        self.outputs = self._tangent.hidden @ network.a
        self.telescoped, self.lazy = self.outputs.clone(), self.outputs.clone()
        self.smoother = Smoother(self.outputs, self.n)

    def step(self) -> None:
        tangent, n = self._tangent, self.n
        kernel = tangent.kernel(n)
        rate = self.rate * n / float(kernel[:n].trace())
        residual = self.outputs[:n] - self.points.y
        change = [-rate / n * part for part in tangent.gradient(residual)]
        self.telescoped += tangent.change(*change)
        self.lazy += self._start.change(*change)
        self.smoother.step(kernel, rate)
        self.network = self.network.moved(*change)
        self._tangent = self.network.tangent(self.x)
        self.outputs = self._tangent.hidden @ self.network.a

    def train_mse(self) -> float:
        return float((self.outputs[: self.n] - self.points.y).square().mean())

    def look(self) -> dict[str, float]:
        """Errors and effective parameters now; what f~ misses is relative to the mean of |f|, on
        the test points."""
        test, y = self.outputs[self.n :], self.points.y_test
        size = float(test.abs().mean())

        def missed(model: Tensor) -> float:
            return float((model[self.n :] - test).abs().mean()) / size

        return {
            "train_mse": self.train_mse(),
            "test_mse": float((test - y).square().mean()),
            "test_error": float((test * y <= 0).double().mean()),
            "p_train": effective_parameters(self.smoother.s[: self.n]),
            "p_test": effective_parameters(self.smoother.s[self.n :]),
            "telescope_error": missed(self.telescoped),
            "smoother_error": missed(self.smoother.outputs(self.points.y)),
            "lazy_error": missed(self.lazy),
        }


def run(telescope: Telescope, context: base.Context) -> dict:
    """Train, and look at the three models on the way.

    Returns:
        ``step`` at the end and what ``Path.look`` says there; ``curve``, the same on the way, a
        list for each; ``at``, the same where the training error first fell to each of ``LEVELS``,
        by level as text, without those it never reached; ``kept_weights``, ``units`` that are left
        with weights on both sides, ``points_test``.

    Raises:
        UserError: the training diverged.
    """
    generator = torch.Generator().manual_seed(telescope.seed)
    splits = data.load(telescope.dataset)
    points = draw_points(splits, telescope.points, telescope.noise, generator)
    path = Path(build(points, telescope, generator), points, telescope.rate)
    curve, at = [], {}
    for step in range(telescope.steps + 1):
        error = path.train_mse()
        if not math.isfinite(error):
            raise UserError(f"the training diverged at step {step}; a smaller rate may not")
        passed = [level for level in LEVELS if error <= level and str(level) not in at]
        ends = step == telescope.steps or error <= telescope.until
        if passed or ends or _is_shown(step):
            seen = rounded({"step": step, **path.look()})
            at |= {str(level): seen for level in passed}
            curve.append(seen)
        if ends:
            break
        path.step()
        context.progress(step + 1)
    network = path.network
    return {
        **curve[-1],
        "curve": {name: [seen[name] for seen in curve] for name in curve[0]},
        "at": at,
        "kept_weights": masks.count({"w": network.first, "a": network.last}),
        "units": int((network.first.any(1) & network.last).sum()),
        "points_test": len(points.y_test),
    }


def _is_shown(step: int) -> bool:
    """Whether the curve has this step: five in a doubling."""
    return step == 0 or math.floor(5 * math.log2(step)) < math.floor(5 * math.log2(step + 1))


def rounded(record: Mapping[str, float]) -> dict[str, float]:
    """Six significant digits."""
    return {name: float(f"{value:.6g}") for name, value in record.items()}
