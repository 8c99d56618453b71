"""Local fields from non-Gaussian inputs (Ingrosso & Goldt 2022, arXiv 2202.00565), and pruning.

Which of two translation-invariant processes on a ring is it, the one with short or the one with
long correlations? A fully connected network with one hidden layer learns it from fresh samples. In
the paper its units become local on the non-linear Gaussian process (NLGP), and not on the Gaussian
process (GP) of the same covariance; a convolutional network learns such fields as its filters. The
formulas are those of the authors' code; which values its figures used is not in it, so that sizes
and lengths here are ours.

To this we add what pruning makes of it: the trained network, pruned; and networks trained once
more from the same initial weights with masks of four kinds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from .. import masks
from ..analysis import locality
from ..errors import UserError, fraction_kept, is_number, pick, whole
from . import base

BATCH = 10  #: samples a step, half of them of each process
CHUNK = 250  #: steps whose samples are drawn together
TEST = 20_000  #: samples that accuracies and areas under the curve are measured on
SCORING = 2_000  #: samples that SNIP sees
DENSITIES = (1.0, 0.5, 0.2, 0.1)  #: kept of the trained network
JITTER = 1e-3  #: on the diagonal of a covariance, as in the authors' code
ROWS = 50_000  #: inputs, or shifted copies of them, whose hidden layer is held at once
INPUTS = {"nlgp": True, "gp": False}  #: whether they are non-Gaussian
NETWORKS = {"full": False, "convolution": True}  #: whether units see all shifts of an input


@dataclass(frozen=True)
class EmergentConvolution(base.Run):
    """One training on one kind of inputs, and what pruning makes of it.

    Attributes:
        seed: of samples, initial weights and masks.
        inputs: ``"nlgp"``, or ``"gp"`` with the same covariance.
        network: ``"full"``, or ``"convolution"``, whose units are averaged over all shifts of the
            input on the ring; that one is not pruned.
        gain: g of the NLGP: small is almost Gaussian, large almost binary with sharp edges.
        short, long: correlation lengths of both processes, in sites.
        sites: D, of the ring.
        units: K, an even number.
        steps: of ``BATCH`` fresh samples.
        rate: learning rate of the weights over K, and that of the biases over K / D.
        density: kept by the masks that a network is trained with once more.
    """

    kind: ClassVar[str] = "emergent-convolution"
    seed: int = 0
    inputs: str = "nlgp"
    network: str = "full"
    gain: float = 3.0
    short: float = 1.0
    long: float = 5.0
    sites: int = 100
    units: int = 8
    steps: int = 8000
    rate: float = 0.5
    density: float = 0.2

    def __post_init__(self):
        for name, least in (("seed", 0), ("sites", 3), ("units", 2), ("steps", 1)):
            whole(f"{name} of an emergent convolution", getattr(self, name), least)
        if self.units % 2:
            raise UserError(
                f"units of an emergent convolution is {self.units}; it must be even, because half "
                "of the biases start at +1 and half at -1"
            )
        pick("inputs of an emergent convolution", self.inputs, INPUTS)
        pick("network of an emergent convolution", self.network, NETWORKS)
        for name in ("gain", "short", "long", "rate"):
            value = getattr(self, name)
            if not is_number(value) or not value > 0:
                raise UserError(
                    f"{name} of an emergent convolution is {value!r}; it must be a number above 0"
                )
        fraction_kept(self.density)

    def execute(self, context: base.Context) -> dict:
        """Train, prune, and train once more with masks.

        Returns:
            ``weights`` [units][sites] and ``biases`` [units] of the trained network;
            ``participation``, a unit's participation ratio over the sites (``locality``);
            ``peaks``, the site of its largest weight; ``accuracy`` at the threshold 0; and what
            ``after_pruning`` says of a full network.
        """
        process = Process(self)
        generator = torch.Generator().manual_seed(self.seed)
        test = process.sample(TEST, generator)
        scoring = process.sample(SCORING, generator)
        first = initial(self, generator)
        dense = train(self, process, first, torch.ones_like(first.weight[None]), generator)[0]
        right = (output(self, dense, test[0]) > 0) == (test[1] > 0)
        spread = locality.participation(dense.weight) / self.sites
        found = {
            "weights": [[_digits(w, 3) for w in unit] for unit in dense.weight.tolist()],
            "biases": [_digits(b) for b in dense.bias.tolist()],
            "participation": [_digits(p) for p in spread.tolist()],
            "peaks": dense.weight.abs().argmax(1).tolist(),
            "accuracy": float(right.double().mean()),
        }
        if NETWORKS[self.network]:
            return found
        return found | after_pruning(self, process, first, dense, scoring, test, generator)


# --- inputs ---


def covariance(sites: int, length: float) -> Tensor:
    """exp(-distance^2 / length^2) on a ring [sites, sites], float64, without the jitter."""
    at = torch.arange(sites)
    apart = (at[:, None] - at).abs()
    apart = torch.minimum(apart, sites - apart).double()
    return (-((apart / length) ** 2)).exp()


def variance(gain: float) -> float:
    """gamma(g): the variance of erf(g x / sqrt 2) for a standard normal x."""
    return 2 / math.pi * math.asin(gain**2 / (1 + gain**2))


def nlgp_covariance(gaussian: Tensor, gain: float) -> Tensor:
    """The covariance of erf(g x / sqrt 2) / sqrt(gamma(g)) for x ~ N(0, ``gaussian``)."""
    # With the jitter the argument exceeds 1 for g > 31; the authors' code stops there.
    arguments = (gain**2 / (1 + gain**2) * gaussian).clamp(-1, 1)
    return 2 / (math.pi * variance(gain)) * arguments.asin()


class Process:
    """Both processes of a run: the one with short correlations has the label +1, the other -1."""

    def __init__(self, run: EmergentConvolution):
        self.gain = run.gain if INPUTS[run.inputs] else None
        self.roots = []
        for length in (run.short, run.long):
            inner = covariance(run.sites, length) + JITTER * torch.eye(run.sites)
            wanted = inner if self.gain else nlgp_covariance(inner, run.gain)
            self.roots.append(_root(wanted).float())

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n samples [n, sites], of both processes in turn, and their labels [n]."""
        noise = torch.randn((2, n // 2, len(self.roots[0])), generator=generator)
        x = torch.stack([part @ root for part, root in zip(noise, self.roots)], 1).flatten(0, 1)
        if self.gain:
            x = torch.erf(self.gain / 2**0.5 * x) / variance(self.gain) ** 0.5
        return x, torch.tensor([1.0, -1.0]).repeat(n // 2)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


# --- networks ---


class Net(NamedTuple):
    """phi(x) = mean over units of erf((w . x / sqrt D + b) / sqrt 2)."""

    weight: Tensor  #: [units, sites]
    bias: Tensor  #: [units]


def initial(run: EmergentConvolution, generator: torch.Generator) -> Net:
    """Weights N(0, 0.01); the biases of the first half of the units are +1, the others -1."""
    weight = 0.1 * torch.randn((run.units, run.sites), generator=generator)
    return Net(weight, torch.tensor([1.0, -1.0]).repeat_interleave(run.units // 2))


def views(run: EmergentConvolution, x: Tensor) -> Tensor:
    """What a unit sees of inputs [n, sites] and is averaged over: [n, 1 or sites, sites]."""
    if not NETWORKS[run.network]:
        return x[:, None]
    at = torch.arange(run.sites)
    return x[:, (at[:, None] + at) % run.sites]


def output(run: EmergentConvolution, net: Net, x: Tensor) -> Tensor:
    """phi [n] for inputs [n, sites]."""
    parts = []
    for part in x.split(ROWS // run.sites):
        inner = views(run, part) @ net.weight.T * run.sites**-0.5 + net.bias
        parts.append(torch.erf(inner / 2**0.5).mean((1, 2)))
    return torch.cat(parts)


def train(
    run: EmergentConvolution, process: Process, first: Net, kept: Tensor, generator: torch.Generator
) -> list[Net]:
    """Train one network for each mask ``kept`` [masks, units, sites] (0 or 1), all from the weights
    ``first`` and on the same samples: SGD on the mean squared error.

    The rates of weights and biases are ``rate`` times K and K / D, the authors' mean-field scaling.
    """
    count, units, sites = kept.shape
    kept = kept.reshape(-1, sites)
    weight, bias = first.weight.repeat(count, 1) * kept, first.bias.repeat(count)
    for start in range(0, run.steps, CHUNK):
        steps = min(CHUNK, run.steps - start)
        x, y = process.sample(steps * BATCH, generator)
        for x, y in zip(x.split(BATCH), y.split(BATCH)):
            by_weight, by_bias = gradients(weight, bias, views(run, x), y, units)
            weight -= run.rate * run.units * by_weight * kept
            bias -= run.rate * run.units / sites * by_bias
    return [Net(w, b) for w, b in zip(weight.split(units), bias.split(units))]


def gradients(
    weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, units: int
) -> tuple[Tensor, Tensor]:
    """Of the mean of (phi(x) - y)^2, for several networks at once.

    Args:
        weight, bias: of all networks, one below the other: [networks * units, sites], [...].
        x, y: a batch as ``views`` gives it [n, shifts, sites], and its labels [n].
    """
    n, shifts, sites = x.shape
    rows = x.flatten(0, 1)
    inner = torch.addmm(bias, rows, weight.T, alpha=sites**-0.5)
    outputs = torch.erf(inner / 2**0.5).view(n, shifts, -1, units).mean((1, 3))
    residuals = (outputs - y[:, None]).repeat_interleave(shifts, 0).repeat_interleave(units, 1)
    slopes = (2 / math.pi) ** 0.5 * (-inner.square() / 2).exp()
    inward = 2 / (n * shifts * units) * residuals * slopes
    return sites**-0.5 * (inward.T @ rows), inward.sum(0)


# --- pruning ---


def after_pruning(
    run: EmergentConvolution,
    process: Process,
    first: Net,
    dense: Net,
    scoring: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> dict:
    """What pruning makes of a full network.

    Returns:
        ``auc``, the area under the ROC curve of the trained network pruned by magnitude and not
        trained again, for each of ``DENSITIES``; by mask ``kept``, weights in the units whose
        biases start at +1 and in the others, ``excess``, kept neighbours of these two halves beyond
        those of a mask with as many weights in each unit, and ``retrained``, the area under the
        curve after training with the mask.
    """
    found = candidate_masks(run, first, dense, scoring, generator)
    trained = train(run, process, first, torch.stack(list(found.values())).float(), generator)
    halves = {name: mask.split(run.units // 2) for name, mask in found.items()}
    return {
        "auc": [area(run, pruned(dense, density), test) for density in DENSITIES],
        "kept": {name: [int(half.sum()) for half in each] for name, each in halves.items()},
        "excess": {name: [excess(half) for half in each] for name, each in halves.items()},
        "retrained": {name: area(run, net, test) for name, net in zip(found, trained)},
    }


def candidate_masks(
    run: EmergentConvolution,
    first: Net,
    dense: Net,
    scoring: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Four masks [units, sites] of one density: ``trained``, the largest weights after training;
    ``shuffled``, with as many in each unit at random sites; ``snip``, the largest |w dL/dw| before
    training; ``random``."""
    slope, _ = gradients(first.weight, first.bias, views(run, scoring[0]), scoring[1], run.units)
    trained = keep(dense.weight.abs(), run.density)
    order = torch.rand(trained.shape, generator=generator).argsort(1)
    return {
        "trained": trained,
        "shuffled": trained.gather(1, order),
        "snip": keep((first.weight * slope).abs(), run.density),
        "random": keep(torch.rand(trained.shape, generator=generator), run.density),
    }


def keep(scores: Tensor, density: float) -> Tensor:
    """The mask of the largest scores."""
    return masks.keep_top({"hidden": scores}, density)["hidden"]


def pruned(net: Net, density: float) -> Net:
    """The network without its smallest weights."""
    return net._replace(weight=net.weight * keep(net.weight.abs(), density))


def excess(mask: Tensor) -> float:
    """Kept neighbours on the ring beyond those of a mask with as many weights in each unit."""
    pairs = locality.ring(mask.shape[1])
    return _digits(locality.kept_neighbours(mask, pairs) - locality.shuffled(mask))


def area(run: EmergentConvolution, net: Net, test: tuple[Tensor, Tensor]) -> float:
    """Under the ROC curve: it does not hang on a threshold, which the kept biases would shift."""
    x, y = test
    return _digits(roc_auc_score(y.numpy() > 0, output(run, net, x).numpy()))


def _digits(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")
