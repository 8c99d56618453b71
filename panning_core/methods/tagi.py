"""TAGI: a network that learns by closed-form Gaussian conditioning, without a gradient or a rate.

Every weight and bias is an independent Gaussian. A batch is read once forward, which gives each
unit a mean and a variance, and once backward, which conditions all parameters on what was observed
(Goulet, Nguyen & Amiri 2021; Nguyen & Goulet 2021, 2103.05461). The formulas are those of the
authors' code, cuTAGI.

A pruned weight has mean 0 and variance 0: it is known to be 0, and no observation changes that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.special import ndtr

from ..errors import UserError
from ..masks import Mask, Scores

#: a variance that an update has made 0 or less becomes this
LEAST_VARIANCE = 1e-5
#: moments behind a unit with moment matching are at least this
LEAST_MOMENT = 1e-6
#: of a node of the tree, in P(node is +1) = Phi(mean / sqrt(SPREAD + variance))
SPREAD = 1 / 9
#: batches from this size on: the change of a parameter is at most its deviation over the number
CAPS = {1: 0.1, 2: 2.0, 256: 3.0}


@dataclass
class Layer:
    """Means and variances of a linear layer: ``weight`` [out, in] and ``bias`` [out]."""

    weight: Tensor
    weight_variance: Tensor
    bias: Tensor
    bias_variance: Tensor


Network = list[Layer]


class Moments(NamedTuple):
    """Means and variances [batch, units]."""

    mean: Tensor
    variance: Tensor


def network(sizes: Sequence[int], generator: torch.Generator, gain: float = 1.0) -> Network:
    """Means N(0, 1 / fan-in) and variances ``gain`` ** 2 / fan-in, of the biases too.

    Args:
        sizes: of the input, the hidden layers and the output.
    """
    made = []
    for inside, outside in zip(sizes, sizes[1:]):
        weight = torch.randn(outside, inside, generator=generator) / inside**0.5
        bias = torch.randn(outside, generator=generator) / inside**0.5
        variance = gain**2 / inside
        made.append(
            Layer(weight, torch.full_like(weight, variance), bias, torch.full_like(bias, variance))
        )
    return made


def linear(layer: Layer, a: Moments, known: bool = False) -> Moments:
    """What a linear layer makes of its inputs' moments; ``known``: their variances are 0."""
    mean = a.mean @ layer.weight.T + layer.bias
    variance = a.mean.square() @ layer.weight_variance.T + layer.bias_variance
    if not known:
        variance += a.variance @ (layer.weight.square() + layer.weight_variance).T
    return Moments(mean, variance)


def linearised_relu(z: Moments) -> tuple[Moments, Tensor]:
    """The moments behind a ReLU that is linear about the mean, and its slope there (Nguyen & Goulet
    2021): a unit with a mean of 0 or less is dead."""
    live = (z.mean > 0).to(z.mean.dtype)
    return Moments(z.mean * live, z.variance * live), live


def mixture_relu(z: Moments) -> tuple[Moments, Tensor]:
    """The moments of max(z, 0), z normal, and the share cov(z, max(z, 0)) / var(z) = Phi."""
    deviation = z.variance.sqrt()
    ratio = z.mean / deviation
    height = deviation * torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    share = ndtr(ratio)
    mean = (z.mean * share + height).clamp_min(LEAST_MOMENT)
    variance = (
        -mean.square()
        + 2 * mean * z.mean
        - z.mean * height
        + (z.variance - z.mean.square()) * share
    )
    return Moments(mean, variance.clamp_min(LEAST_MOMENT)), share


ACTIVATIONS: dict[str, Callable[[Moments], tuple[Moments, Tensor]]] = {
    "relu": linearised_relu,
    "mixture-relu": mixture_relu,
}


def forward(net: Network, x: Tensor, activation: str) -> tuple[Moments, list[Moments], list]:
    """The outputs' moments, and for each layer its input's moments and the slopes before it.

    Args:
        x: [batch, features], known without error.
        activation: a key of ``ACTIVATIONS``.
    """
    act = ACTIVATIONS[activation]
    a = Moments(x, torch.zeros_like(x))
    inputs, slopes = [a], [None]
    z = linear(net[0], a, known=True)
    for layer in net[1:]:
        a, slope = act(z)
        inputs.append(a)
        slopes.append(slope)
        z = linear(layer, a)
    return z, inputs, slopes


def predict(net: Network, x: Tensor, activation: str) -> Moments:
    """The outputs' moments, a thousand rows at a time."""
    parts = [forward(net, part, activation)[0] for part in x.split(1000)]
    return Moments(*(torch.cat(each) for each in zip(*parts)))


def learn(
    net: Network,
    x: Tensor,
    y: Tensor,
    noise: float,
    activation: str,
    observed: Tensor | None = None,
) -> None:
    """Condition the network, in place, on one batch of observations.

    The rows of a batch are summed as if they were independent, so a large batch is over-confident;
    ``CAPS`` bounds what it can do.

    Args:
        y: [batch, outputs].
        noise: deviation of the observations.
        observed: of which outputs ``y`` tells, boolean; None is all.
    """
    z, inputs, slopes = forward(net, x, activation)
    total = z.variance + noise**2
    mean, variance = (y - z.mean) / total, -1 / total
    if observed is not None:
        mean, variance = mean * observed, variance * observed
    cap = next(value for least, value in reversed(CAPS.items()) if len(x) >= least)
    for layer, a, slope in zip(reversed(net), reversed(inputs), reversed(slopes)):
        below = None
        if slope is not None:
            below = (
                slope * (mean @ layer.weight),
                slope.square() * (variance @ layer.weight.square()),
            )
        _condition(
            layer.weight, layer.weight_variance, mean.T @ a.mean, variance.T @ a.mean.square(), cap
        )
        _condition(layer.bias, layer.bias_variance, mean.sum(0), variance.sum(0), cap)
        if below is not None:
            mean, variance = below


def _condition(mean: Tensor, variance: Tensor, change: Tensor, shrink: Tensor, cap: float) -> None:
    """Move ``mean`` by variance * change and ``variance`` by variance ** 2 * shrink, in place.

    Both are cut at the deviation over ``cap``, the variance's too, as in the authors' code.
    """
    most = variance.sqrt() / cap
    mean += (variance * change).clamp(-most, most)
    moved = variance + (variance.square() * shrink).clamp(-most, most)
    # What is known, such as a pruned weight, stays known.
    moved = torch.where((moved <= 0) & (variance > 0), LEAST_VARIANCE, moved)
    variance.copy_(moved)


# --- Classification by a binary tree ---


class Tree(NamedTuple):
    """Classes as leaves of a binary tree; L = ceil(log2 classes) levels.

    Attributes:
        nodes: [classes, L], the outputs on the path to each class.
        signs: [classes, L], +1 or -1: the branch that the path takes at each.
        outputs: how many there are.
    """

    nodes: Tensor
    signs: Tensor
    outputs: int


def tree(classes: int) -> Tree:
    """Class r turns by the bits of r, the most significant first; 0 is +1.

    Raises:
        UserError: fewer than two classes.
    """
    if classes < 2:
        raise UserError(f"a tree has at least 2 classes, got {classes}")
    levels = (classes - 1).bit_length()
    widths = [-(-classes // 2 ** (levels - level)) for level in range(levels)]
    first = [sum(widths[:level]) for level in range(levels)]
    labels = torch.arange(classes)[:, None]
    place = torch.arange(levels)
    nodes = (labels >> (levels - place)) + torch.tensor(first)
    bits = (labels >> (levels - 1 - place)) & 1
    return Tree(nodes, 1 - 2 * bits, sum(widths))


def observations(labels: Tensor, of: Tree) -> tuple[Tensor, Tensor]:
    """The values (+1 or -1) [n, outputs] of the nodes on each label's path, and which these are."""
    shape = (len(labels), of.outputs)
    values = torch.zeros(shape).scatter_(1, of.nodes[labels], of.signs[labels].float())
    return values, values != 0


def probabilities(z: Moments, of: Tree) -> Tensor:
    """[n, classes], each row made to sum to 1: an incomplete tree loses some to absent leaves."""
    score = z.mean.double() / (SPREAD + z.variance.double()).sqrt()
    paths = ndtr(score[:, of.nodes] * of.signs).prod(2)
    return paths / paths.sum(1, keepdim=True)


# --- Pruning ---


def weights(net: Network) -> dict[str, Tensor]:
    """The means by the names that masks have."""
    return {f"{place}.weight": layer.weight for place, layer in enumerate(net)}


def magnitude(net: Network, generator: torch.Generator) -> Scores:
    """|mean|."""
    return {name: mean.abs() for name, mean in weights(net).items()}


def signal_to_noise(net: Network, generator: torch.Generator) -> Scores:
    """|mean| / deviation, the classical rule of Bayesian networks (Graves 2011); pruned ones: 0."""
    tiny = torch.finfo(torch.float32).tiny
    return {
        name: layer.weight.abs() / layer.weight_variance.sqrt().clamp_min(tiny)
        for name, layer in zip(weights(net), net)
    }


def certainty(net: Network, generator: torch.Generator) -> Scores:
    """-variance: keep what the data have said most about."""
    return {name: -layer.weight_variance for name, layer in zip(weights(net), net)}


def chance(net: Network, generator: torch.Generator) -> Scores:
    """Uniform noise: the control."""
    return {
        name: torch.rand(mean.shape, generator=generator) for name, mean in weights(net).items()
    }


SCORES: dict[str, Callable[[Network, torch.Generator], Scores]] = {
    "magnitude": magnitude,
    "signal-to-noise": signal_to_noise,
    "certainty": certainty,
    "random": chance,
}


def pruned(net: Network, mask: Mask) -> Network:
    """A copy of the network in which what ``mask`` removes is known to be 0; biases stay."""
    return [
        Layer(
            layer.weight * kept,
            layer.weight_variance * kept,
            layer.bias.clone(),
            layer.bias_variance.clone(),
        )
        for layer, kept in zip(net, mask.values())
    ]
