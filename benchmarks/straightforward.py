"""What scoring is measured against: the same methods as public repositories write them, in plain
PyTorch.

Every round computes everything anew, also what did not change: SNIP and GraSP of the dense network
on the batch, SynFlow through a copy of the network whose weights are overwritten, a threshold from
a sort of all scores. No trace is kept. One
thing is not as they do it: SynFlow is in float64, because in float32 it loses and overflows paths
    and the masks could not be compared.

The networks are to be freshly initialised: BatchNorm in eval mode is then the identity but for its
    epsilon.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from panning_core.masks import Mask, Scores
from panning_core.methods.panning import SUM_STAGES
from panning_core.metrics import Batch
from panning_core.models import prunable


def data_products(
    model: nn.Module, batch: Batch, temperature: float = 1.0, hessian: bool = True
) -> tuple[Scores, Scores, float, float]:
    """theta * g and theta * Hg, the loss and g . g; the second is empty without ``hessian``."""
    weights = prunable(model)
    loss = nn.functional.cross_entropy(model(batch[0]) / temperature, batch[1])
    gradient = torch.autograd.grad(loss, list(weights.values()), create_graph=hessian)
    flow = sum((g * g.detach()).sum() for g in gradient)
    curvature = torch.autograd.grad(flow, list(weights.values())) if hessian else ()
    snip, grasp = (
        {name: (w * part).detach() for (name, w), part in zip(weights.items(), parts)}
        for parts in (gradient, curvature)
    )
    return snip, grasp, loss.item(), flow.item()


def linear_copy(model: nn.Module) -> nn.Module:
    """A copy for SynFlow: float64, eval mode, no biases, BatchNorm as at initialisation."""
    double = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for module in double.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
    return double


def synflow_products(model: nn.Module, double: nn.Module, mask: Mask, batch: Batch) -> Scores:
    """theta * dR/d|w| of the masked network; the weights of ``double``, a ``linear_copy``, are
    overwritten.
    """
    weights, own = prunable(model), prunable(double)
    with torch.no_grad():
        for name, w in weights.items():
            own[name].copy_(w.abs() * mask[name])
    gradient = torch.autograd.grad(
        double(torch.ones_like(batch[0][:1], dtype=torch.double)).sum(), list(own.values())
    )
    return {name: w.detach() * g for (name, w), g in zip(weights.items(), gradient)}


def select(scores: Scores, density: float) -> Mask:
    """Keep the scores that reach the threshold, which a sort of all of them finds."""
    ranked, _ = torch.sort(torch.cat([s.flatten() for s in scores.values()]), descending=True)
    threshold = ranked[max(round(density * len(ranked)), 1) - 1]
    return {name: s >= threshold for name, s in scores.items()}


def normalise(scores: Scores) -> Scores:
    """|s - mean| / std over all weights together."""
    every = torch.cat([s.flatten() for s in scores.values()])
    mean, deviation = every.mean(), every.std()
    return {name: (s - mean).abs() / deviation for name, s in scores.items()}


def panning(model: nn.Module, density: float, batch: Batch, rounds: int) -> Mask:
    """Staged Panning (Kang et al. 2022), the sum of three metrics; means ``prune(model, "panning",
    density, batch, rounds)``.
    """
    double, stage = linear_copy(model), 0
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(model).items()}
    for t in range(1, rounds + 1):
        asked = density ** (t / rounds)
        if 1 - asked > SUM_STAGES[stage][0]:
            stage += 1
        a, b, c = SUM_STAGES[stage][1]
        snip, grasp = (
            normalise(scores) for scores in data_products(model, batch, temperature=200.0)[:2]
        )
        synflow = normalise(synflow_products(model, double, mask, batch))
        mask = select(
            {name: a * synflow[name] + b * snip[name] + c * grasp[name] for name in mask}, asked
        )
    return mask


def synflow(model: nn.Module, density: float, batch: Batch, rounds: int) -> Mask:
    """SynFlow (Tanaka et al. 2020) in rounds."""
    double = linear_copy(model)
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(model).items()}
    for t in range(1, rounds + 1):
        scores = synflow_products(model, double, mask, batch)
        mask = select(
            {name: s.abs() * mask[name] for name, s in scores.items()}, density ** (t / rounds)
        )
    return mask


def snip(model: nn.Module, density: float, batch: Batch, rounds: int = 1) -> Mask:
    """SNIP (Lee et al. 2019), one-shot."""
    return select(
        {name: s.abs() for name, s in data_products(model, batch, hessian=False)[0].items()},
        density,
    )


def grasp(model: nn.Module, density: float, batch: Batch, rounds: int = 1) -> Mask:
    """GraSP (Wang et al. 2020), one-shot."""
    return select(data_products(model, batch, temperature=200.0)[1], density)


#: name of a method of ``pruning.prune`` -> the same, (model, density, batch, rounds) -> mask
METHODS = {"snip": snip, "grasp": grasp, "synflow": synflow, "panning": panning}
