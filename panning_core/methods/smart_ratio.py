"""Random places, with a share for each layer that falls with depth: the smart ratio (Su et al.
2020).

No data, no gradients, no rounds. Unlike a metric it knows how many weights shall be kept:
``masks.keep_top(scores, count / N)`` keeps exactly those that it chose.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..errors import UserError
from ..masks import Scores
from ..models import prunable
from ..zoo import Block


def smart_ratio(model: nn.Module, count: int, generator: torch.Generator) -> Scores:
    """Random places, with a ratio for each layer that falls with depth: the "random tickets" of Su
    et al. 2020.

    Layer l of L keeps a ratio proportional to k^2 + k with k = L - l + 1, and in a VGG
    (convolutions and BatchNorm without residual blocks) to (k^2 + k) / l^2. The last layer keeps
    0.3, and counts in L as in the authors' code. What is beyond a ratio of 1 goes to the next
    layers. Ours, because the paper has no such small budgets: the last layer takes at most half of
    ``count``.

    Args:
        count: how many weights are kept.
        generator: on the CPU.

    Returns:
        float64; noise, uniform in [0, 1), for what is removed, and 1 more for what is kept.

    Raises:
        UserError: ``count`` is not in 1..N.
    """
    weights, kinds = prunable(model), {type(module) for module in model.modules()}
    sizes = np.array([w.numel() for w in weights.values()])
    if not 1 <= count <= sizes.sum():
        raise UserError(f"cannot keep {count:,} weights of a network that has {sizes.sum():,}")
    layer = np.arange(1, len(sizes))
    k = len(sizes) - layer + 1
    vgg = {nn.Conv2d, nn.BatchNorm2d} <= kinds and Block not in kinds
    share = (k**2 + k) / layer ** (2 if vgg else 0) * sizes[:-1]
    last = min(round(0.3 * sizes[-1]), count // 2)
    # A rounded running sum loses no weight.
    running = np.rint((count - last) * share.cumsum() / share.sum())
    kept = np.diff(running, prepend=0).astype(int)
    over, scores = count - last - kept.sum(), {}
    for (name, w), wanted in zip(weights.items(), [*kept, last]):
        keep = min(wanted + over, w.numel())
        # Ratios fall with depth: every layer before one that overflows is full.
        over += wanted - keep
        noise = torch.rand(w.numel(), generator=generator, dtype=torch.double)
        noise[noise.topk(keep).indices] += 1
        scores[name] = noise.view(w.shape).to(w.device)
    return scores
