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
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


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


class Points(NamedTuple):
    """Training points ``x`` [n, pixels] with labels ``y`` [n] of -1 and +1, and test points."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


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
