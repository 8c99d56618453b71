"""Pruning and quantising weights and activations of one network while it trains.

Zhang, Colbert, Kreutz-Delgado & Das 2021 (arXiv 2110.08271); details from the authors' library
``qsparse`` and their ``qsparse-examples``, read at the paper's state. An operator stands on a
tensor and computes quantise(prune(x)); the training loop tells it when to cut and when to fix its
scale.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError

CUTS = 4  #: prunings on the way to the final sparsity
DECIMALS = range(20)  #: numbers of binary digits after the point that are tried
WINDOW = 2048  #: samples over which an activation is looked at


def cubic(sparsity: float, cut: int) -> float:
    """The sparsity after cut 1 to ``CUTS``: s (1 - (1 - k / 4)^3), as in Zhu & Gupta 2017."""
    return sparsity * (1 - (1 - cut / CUTS) ** 3)


def keep_above(saliency: Tensor, sparsity: float) -> Tensor:
    """True for what is kept: at least the sorted value at index max(int(s n - 1), 0).

    The value at the threshold stays, so one weight fewer than s n is removed, and of many equal
    ones all stay; as in the authors' code.
    """
    ordered = saliency.flatten().sort().values
    return saliency >= ordered[max(int(sparsity * len(ordered) - 1), 0)]


def truncate(x: Tensor, decimals: int, bits: int) -> Tensor:
    """clamp(trunc(x 2^n), -2^(b-1), 2^(b-1) - 1) 2^-n: toward zero, the scale a power of two."""
    half = 2 ** (bits - 1)
    return (x * 2.0**decimals).trunc().clamp(-half, half - 1) * 2.0**-decimals


def nearest(x: Tensor, decimals: int, bits: int) -> Tensor:
    """The same number format with rounding to the nearest, PyTorch's fake quantisation."""
    half = 2 ** (bits - 1)
    return torch.fake_quantize_per_tensor_affine(x, 2.0**-decimals, 0, -half, half - 1)


class _Straight(torch.autograd.Function):
    """``truncate``; the gradient passes, its *value* clamped to the numbers of the format."""

    @staticmethod
    def forward(ctx, x: Tensor, decimals: int, bits: int) -> Tensor:
        ctx.format = decimals, bits
        return truncate(x, decimals, bits)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        decimals, bits = ctx.format
        half = 2 ** (bits - 1)
        return gradient.clamp(-half * 2.0**-decimals, (half - 1) * 2.0**-decimals), None, None


#: how a number becomes one of the format: to measure the error with, and to train with
ROUNDINGS = {"truncate": (truncate, _Straight.apply), "nearest": (nearest, nearest)}


def best_decimals(x: Tensor, bits: int, rounding: str = "truncate") -> int:
    """The number of ``DECIMALS`` with the least sum of squared errors; of equal ones the least."""
    quantise = ROUNDINGS[rounding][0]
    errors = [
        float((x - quantise(x, decimals, bits)).double().square().sum()) for decimals in DECIMALS
    ]
    return errors.index(min(errors))


class Operator(nn.Module):
    """quantise(prune(x)) of a layer's weight, or of an activation [n, ...]; at first the identity.

    Attributes:
        mask: of the weight's shape, or of one sample's: an activation loses the same places for
            all inputs.
        decimals, bits: of the number format; None until ``fix``.
    """

    def __init__(self, shape: Sequence[int], rounding: str = "truncate", activation: bool = False):
        super().__init__()
        self.register_buffer("mask", torch.ones(*shape, dtype=torch.bool))
        self.rounding, self.activation = rounding, activation
        self.decimals: int | None = None
        self.bits: int | None = None
        self.seen: deque[Tensor] = deque()

    def forward(self, x: Tensor) -> Tensor:
        if self.activation and self.training:
            self._remember(x)
        x = x * self.mask
        if self.decimals is None:
            return x
        return ROUNDINGS[self.rounding][1](x, self.decimals, self.bits)

    def _remember(self, x: Tensor) -> None:
        """Keep |x| of the last batches: as few as hold ``WINDOW`` samples."""
        self.seen.append(x.detach().abs())
        while sum(map(len, self.seen)) - len(self.seen[0]) >= WINDOW:
            self.seen.popleft()

    def _window(self) -> Tensor:
        if not self.seen:
            raise UserError(
                "activations are cut or quantised before any was seen; let that begin later"
            )
        return torch.cat([*self.seen])

    def cut(self, sparsity: float, weight: Tensor | None = None) -> None:
        """Choose the mask anew: by |weight|, or by the mean |x| of the activations seen."""
        saliency = self._window().mean(0) if weight is None else weight.detach().abs()
        self.mask = keep_above(saliency, sparsity)

    def fix(self, bits: int, weight: Tensor | None = None) -> None:
        """Choose the scale, once, for what the mask leaves of the weight or the activations seen.

        For activations of the absolute values, as in the authors' code.
        """
        x = self._window() if weight is None else weight.detach()
        self.bits, self.decimals = bits, best_decimals(x * self.mask, bits, self.rounding)


def entropy(share: Tensor) -> Tensor:
    """Bits of a choice with these probabilities, which sum to 1 along the last dimension."""
    return -torch.special.xlogy(share, share).sum(-1) / torch.log(torch.tensor(2.0))


def stored_bits(mask: Tensor, bits: int) -> float:
    """Bits of a layer: those of its kept weights, and the entropy of which they are.

    No code for the mask is shorter on average than n H(density) bits; one bit a place is more.
    """
    density = mask.double().mean()
    place = entropy(torch.stack([density, 1 - density]))
    return float(mask.sum() * bits + mask.numel() * place)


def coded_bits(weight: Tensor) -> float:
    """Bits of a layer whose values, zero too, have a code of their own: n times their entropy."""
    _, counts = weight.unique(return_counts=True)
    return float(weight.numel() * entropy(counts.double() / weight.numel()))
