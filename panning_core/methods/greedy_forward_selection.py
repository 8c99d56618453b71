"""Greedy forward selection: a sub-network of a two-layer network, built up from no neuron at all.

Ye et al. 2020, as Wolfe et al. (arXiv 2108.00259, TMLR 2024) use it. The network is the mean of its
neurons' functions, f = (1 / N) sum_i s_i with s_i(x) = N * hidden_i(x) * outputs_i. Step k + 1 adds
the neuron that makes the mean of all that were added nearest to the target; a neuron may be added
again. Nothing is trained. Every step must add a neuron, so the loss may also rise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError, whole


def select(hidden: Tensor, outputs: Tensor, target: Tensor, count: int) -> Tensor:
    """Add ``count`` neurons, one after the other.

    The squared distance to (k + 1) * target changes by |s_i|^2 + 2 <R, s_i> if neuron i joins k
    others whose residual is R. All products with the images are taken once, before the first step.

    Args:
        hidden: [n, N], each neuron's activation on n images.
        outputs: [N, C], each neuron's weights to the C outputs.
        target: [n, C].

    Returns:
        [count]: the neurons in the order in which they were added; of equals, the first one.

    Raises:
        UserError: ``count`` is no whole number from 1, or the shapes do not fit together.
    """
    whole("the number of neurons to select", count, 1)
    n, width = hidden.shape
    if outputs.shape != (width, target.shape[1]) or len(target) != n:
        raise UserError(
            f"hidden {tuple(hidden.shape)}, outputs {tuple(outputs.shape)} and target "
            f"{tuple(target.shape)} do not fit together; they are [n, N], [N, C] and [n, C]"
        )
    hidden, outputs, target = hidden.double(), outputs.double(), target.double()
    gram, wanted = hidden.T @ hidden, hidden.T @ target
    square = width**2 * gram.diagonal() * outputs.square().sum(1)
    # products of the neurons' activations with the sum of all functions that were added
    added = torch.zeros_like(wanted)
    chosen = []
    for k in range(count):
        products = ((added - (k + 1) * wanted) * outputs).sum(1)
        best = int((square + 2 * width * products).argmin())
        chosen.append(best)
        added += width * torch.outer(gram[:, best], outputs[best])
    return torch.tensor(chosen)


def shares(chosen: Tensor, width: int) -> Tensor:
    """[width]: how often each neuron was added, as a share of all additions; they sum to 1."""
    return torch.bincount(chosen, minlength=width).double() / len(chosen)
