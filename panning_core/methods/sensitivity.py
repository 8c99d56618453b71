"""How much a loss feels a layer's number format: HAWQ-v2's sensitivity (Dong et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def quantised(weight: Tensor, bits: int) -> Tensor:
    """s clip(round(w / s)) with s = max|w| / (2^(b-1) - 1): symmetric, one scale a tensor.

    Halves go to the even level. PyTorch's fake quantisation multiplies by 1 / s instead, which can
    move a half by one level. Two bits are three levels.
    """
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().max() / most
    return scale * (weight / scale).round().clamp(-most, most)


def traces(
    loss: Tensor, weights: Sequence[Tensor], generator: torch.Generator, draws: int
) -> list[float]:
    """Trace of each tensor's block of the Hessian of ``loss``, by Hutchinson's estimate.

    E[v_l . (H v)_l] is the trace of the block H_ll for a vector v of independent +1 and -1; where
    H is diagonal one draw is exact.
    """
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    totals = [0.0] * len(weights)
    for _ in range(draws):
        signs = [2.0 * torch.randint(2, w.shape, generator=generator) - 1 for w in weights]
        along = sum((g * v).sum() for g, v in zip(gradients, signs))
        products = torch.autograd.grad(along, weights, retain_graph=True)
        totals = [t + float((v * h).sum()) for t, v, h in zip(totals, signs, products)]
    return [total / draws for total in totals]


def sensitivity(weight: Tensor, trace: float, bits: int) -> float:
    """Mean trace, a weight, times the squared error of so many bits."""
    weight = weight.detach()
    return trace / weight.numel() * float((quantised(weight, bits) - weight).square().sum())
