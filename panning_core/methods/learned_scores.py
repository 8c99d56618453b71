"""Masks from learned scores, and a frame around the picture (Jin et al., AAAI 2025).

Every weight has a score; the largest are kept. The scores are trained while the weights stay, the
mask's gradient passing straight through (Ramanujan et al. 2020; Sehwag et al. 2020). As in the
published code of VPNs (visual prompting upgrades network sparsification, arXiv 2312.01397).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..masks import Mask
from ..models import prunable


class _Keep(torch.autograd.Function):
    """1 where |score| is above the threshold, else 0; its gradient is that of |score|."""

    @staticmethod
    def forward(ctx, score: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(score)
        return (score.abs() > threshold).to(score.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (score,) = ctx.saved_tensors
        return gradient * score.sign(), None


class Scores:
    """A score for each prunable weight of a network, which is only read.

    Attributes:
        values: name -> score, a leaf to train; at first sqrt(6 / fan-in) w / max |w| of the layer.
        density: fraction of the weights of all layers together that is kept.
    """

    def __init__(self, model: nn.Module, density: float):
        self.weights = {name: w.detach() for name, w in prunable(model).items()}
        self.density = density
        self.values = {
            name: ((6 / w[0].numel()) ** 0.5 * w / w.abs().max()).requires_grad_()
            for name, w in self.weights.items()
        }

    def threshold(self) -> Tensor:
        """The k-th smallest |score|, k = floor((1 - density) n); what is above it is kept."""
        flat = torch.cat([s.detach().abs().flatten() for s in self.values.values()])
        k = int((1 - self.density) * len(flat))
        return flat.kthvalue(k).values if k else flat.new_tensor(-1.0)

    def masked(self) -> dict[str, Tensor]:
        """Name -> weight times mask, differentiable by the scores."""
        t = self.threshold()
        return {name: w * _Keep.apply(self.values[name], t) for name, w in self.weights.items()}

    def mask(self) -> Mask:
        t = self.threshold()
        return {name: s.detach().abs() > t for name, s in self.values.items()}


def frame(shape: tuple[int, ...], width: int) -> Tensor:
    """1 on a frame of so many pixels inside the border of a picture [channels, height, width]."""
    inside = torch.zeros(shape)
    inside[:, width : shape[1] - width, width : shape[2] - width] = 1
    return 1 - inside


class Prompt:
    """Numbers that are added to the frame of every picture; the result stays between the darkest
    and the brightest pixel."""

    def __init__(self, shape: tuple[int, ...], width: int, low: float, high: float):
        self.frame, self.low, self.high = frame(shape, width), low, high
        self.delta = torch.zeros(shape, requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        return (x + self.delta * self.frame).clamp(self.low, self.high)
