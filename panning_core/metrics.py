"""One short pure function per metric: (model, mask, batch) -> one score for each prunable weight; larger = keep.

Pure: afterwards the weights, the mode, BatchNorm's statistics, every ``.grad`` and the global random state are as before.
Each function takes

- ``model``: its current weights are the *dense* weights theta;
- ``mask``: the sub-network theta * M that is scored;
- ``batch``: (x [n, c, h, w], y [n]); a metric that needs no data takes shape and device from it;
- ``generator``: source of noise for a metric that draws some.

A new metric is one function and one entry in ``METRICS``; every study, the test battery and the benchmarks then see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .masks import Mask, Scores
from .models import linearised, modes, prunable

Batch = tuple[Tensor, Tensor]
TEMPERATURE = 200.0  #: divides the logits in the GraSP family and inside Panning (the authors' code)


@contextmanager
def _subnetwork(model: nn.Module, mask: Mask) -> Iterator[tuple[Callable[[Tensor], Tensor], list[Tensor]]]:
    """The network theta * M as (forward, leaves): a function and the masked weights to differentiate by; train mode, own BN buffers."""
    leaves = {name: (w.detach() * mask[name]).requires_grad_() for name, w in prunable(model).items()}
    state = {**{name: p.detach() for name, p in model.named_parameters()}, **{name: b.clone() for name, b in model.named_buffers()}, **leaves}
    with modes(model, training=True), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        yield lambda x: functional_call(model, state, x), list(leaves.values())


class Products(NamedTuple):
    """Signed products with the dense weights, and what they come from."""

    snip: Scores  #: theta * g
    grasp: Scores  #: theta * Hg; empty unless asked for
    loss: float  #: cross-entropy on the batch
    gtg: float  #: g . g over the kept weights: the sub-network's gradient flow


def products(model: nn.Module, mask: Mask, batch: Batch, temperature: float = 1.0, hessian: bool = False) -> Products:
    """theta * g and, with ``hessian``, theta * Hg, of the sub-network theta * M, logits divided by ``temperature``.

    g is the gradient of the mean cross-entropy with respect to every prunable weight, kept or not; Hg is the Hessian
    times the kept weights' part of g, by double backward: the derivative of g . stop(g M).
    """
    x, y = batch
    theta = {name: w.detach() for name, w in prunable(model).items()}
    with _subnetwork(model, mask) as (forward, leaves):
        loss = nn.functional.cross_entropy(forward(x) / temperature, y)
        gradient = torch.autograd.grad(loss, leaves, create_graph=hessian)
        flow = [g.detach() * m for g, m in zip(gradient, mask.values())]
        curvature = torch.autograd.grad(sum((g * f).sum() for g, f in zip(gradient, flow)), leaves) if hessian else ()
    return Products({name: theta[name] * g.detach() for name, g in zip(theta, gradient)},
                    {name: theta[name] * h for name, h in zip(theta, curvature)},
                    float(loss.detach()), float(sum((f.double() ** 2).sum() for f in flow)))


def synflow_products(model: nn.Module, mask: Mask, batch: Batch) -> tuple[Scores, float]:
    """Signed theta * dR/d|w| at |theta * M|, and R: the sum of the linearised network's outputs on an all-ones input.

    float64, because a product over many layers leaves float32 on both sides: R overflows on ResNet-32 and live paths
    of VGG-19 underflow to dead ones.
    """
    theta = {name: w.detach().double() for name, w in prunable(model).items()}
    weights = {name: (w.abs() * mask[name]).requires_grad_() for name, w in theta.items()}
    rest = {name: torch.zeros_like(p, dtype=torch.double) for name, p in model.named_parameters() if name not in weights}
    x = torch.ones_like(batch[0][:1], dtype=torch.double)
    with torch.enable_grad(), linearised(model):
        total = functional_call(model, {**weights, **rest}, x).sum()
        gradient = torch.autograd.grad(total, list(weights.values()))
    return {name: theta[name] * g for name, g in zip(theta, gradient)}, float(total.detach())


def _absolute(scores: Scores, mask: Mask | None = None) -> Scores:
    return {name: s.abs() if mask is None else s.abs() * mask[name] for name, s in scores.items()}


def random(model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None) -> Scores:
    """Uniform noise in [0, 1); the control every metric has to beat."""
    generator = generator or torch.Generator().manual_seed(0)
    return {name: torch.rand(w.shape, generator=generator).to(w.device) for name, w in prunable(model).items()}


def magnitude(model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None) -> Scores:
    """|theta|."""
    return _absolute({name: w.detach() for name, w in prunable(model).items()})


def snip(model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None) -> Scores:
    """|theta M g(theta M)|: how much the loss moves when the weight goes (Lee et al. 2019, eq. 6); in rounds, Iterative SNIP."""
    return _absolute(products(model, mask, batch).snip, mask)


def force(model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None) -> Scores:
    """|theta g(theta M)|: the gradient of the pruned network, the weight of the dense one (de Jorge et al. 2021, section 4)."""
    return _absolute(products(model, mask, batch).snip)


def grasp(model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None) -> Scores:
    """theta Hg, signed: goes first what lowers the gradient flow g.g least, or raises it (Wang et al. 2020, eq. 8)."""
    return products(model, mask, batch, TEMPERATURE, hessian=True).grasp


def grasp_abs(model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None) -> Scores:
    """|theta Hg|: the absolute form of GraSP that Panning's code also has."""
    return _absolute(grasp(model, mask, batch))


def synflow(model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None) -> Scores:
    """|theta M dR/d|w||, data-free: the weight's share of all paths (Tanaka et al. 2020, section 6). float64."""
    return _absolute(synflow_products(model, mask, batch)[0], mask)


METRICS = {"random": random, "magnitude": magnitude, "snip": snip, "grasp": grasp, "grasp-abs": grasp_abs, "synflow": synflow, "force": force}
