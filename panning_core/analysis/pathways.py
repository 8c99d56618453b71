"""What a sparse network shows of itself: which inputs matter, and which weights lead to which
output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import compaction, masks
from ..data import Split
from ..inspection import threads
from ..masks import Mask
from ..models import input_shape, modes, prunable
from ..paths import linearised, on_paths

BATCH = 1000  #: images that a network answers to at a time


@contextmanager
def _linear(model: nn.Module, weights: dict[str, Tensor], signed: bool = False) -> Iterator[Tensor]:
    """Inside, ``model`` is a linear function of the yielded input [1, ...] of ones: no biases,
    every ReLU open, pooling averages.
    """
    device = next(iter(weights.values())).device
    x = torch.ones((1, *input_shape(model)), dtype=torch.double, device=device)
    linear = linearised(model, weights, paths=True, signed=signed)
    with threads.fitting(model, 1), torch.enable_grad(), linear:
        yield x.requires_grad_()


def contributions(model: nn.Module, mask: Mask) -> Tensor:
    """[classes, *input shape]: the sum over all kept paths from an input to an output of the
    product of their weights, with its sign, float64.

    What an input does to an output while every ReLU is open; an explanation read from the weights
    alone.
    """
    weights = {
        name: w.detach().double() * masks.numbers(mask[name]) for name, w in prunable(model).items()
    }
    with _linear(model, weights, signed=True) as x:
        return torch.stack(
            [torch.autograd.grad(out, x, retain_graph=True)[0][0] for out in model(x)[0]]
        )


def importance(model: nn.Module, mask: Mask) -> Tensor:
    """[*input shape]: the sum over all kept paths from an input to any output of the product of
    |weights|, float64; 0 for an input that is not read.
    """
    weights = {
        name: w.detach().double().abs() * masks.numbers(mask[name])
        for name, w in prunable(model).items()
    }
    with _linear(model, weights) as x:
        return torch.autograd.grad(model(x).sum(), x)[0][0]


def direct_importance(model: nn.Module, mask: Mask) -> Tensor:
    """[*input shape]: the sum of |weights| by which the first layer, a ``Linear``, reads an input,
    float64.
    """
    name, weight = next(iter(prunable(model).items()))
    return (
        (weight.detach().double().abs() * masks.numbers(mask[name])).sum(0).view(input_shape(model))
    )


def permutation_importance(
    model: nn.Module, mask: Mask, split: Split, repeats: int, seed: int
) -> np.ndarray:
    """[inputs]: how much the accuracy falls, from 0 to 1, when an input's values are exchanged
    between images; mean over ``repeats``.

    By scikit-learn's ``permutation_importance``, on the inputs that are read; for the others it is
    0.
    """
    from sklearn.inspection import permutation_importance as permute

    reads = (importance(model, mask).flatten() > 0).numpy()
    images = split.x.flatten(1).clone()
    small = compaction.compact(model, mask, fold=False).model.eval()

    @torch.no_grad()
    def score(_, columns: np.ndarray, y: np.ndarray) -> float:
        images[:, reads] = torch.from_numpy(columns)
        return float((small(images.view(split.x.shape)).argmax(1).numpy() == y).mean())

    class Network:  # scikit-learn wants to see that it could be fitted; the score does the rest
        def fit(self, x, y): ...

    found = np.zeros(len(reads))
    if not reads.any():
        return found
    with threads.fitting(small, len(images)):
        found[reads] = permute(
            Network(),
            images[:, reads].numpy(),
            split.y.numpy(),
            scoring=score,
            n_repeats=repeats,
            random_state=seed,
        ).importances_mean
    return found


def pathway(model: nn.Module, mask: Mask, output: int) -> Mask:
    """The kept weights that lie on a path from an input to this output."""
    with threads.fitting(model, 1):
        return {name: mask[name] & p for name, p in on_paths(model, mask, output).items()}


def without(model: nn.Module, mask: Mask, output: int, shared: bool = False) -> Mask:
    """``mask`` without the pathway to one output; what lies on another output's path as well stays
    unless ``shared``.
    """
    gone = pathway(model, mask, output)
    if not shared:
        for other in range(next(reversed(mask.values())).shape[0]):
            if other != output:
                lasting = pathway(model, mask, other)
                gone = {name: g & ~lasting[name] for name, g in gone.items()}
    return {name: m & ~gone[name] for name, m in mask.items()}


@torch.no_grad()
def recalls(model: nn.Module, mask: Mask, split: Split) -> Tensor:
    """[classes]: the fraction of each class's images that the network under ``mask`` gives to that
    class.
    """
    state = {
        **dict(model.named_parameters()),
        **{name: w * mask[name] for name, w in prunable(model).items()},
    }
    with modes(model, training=False), threads.fitting(model, BATCH):
        # Copies: a layer may write into what it reads.
        parts = (x.clone() for x in split.x.split(BATCH))
        found = torch.cat([functional_call(model, state, x).argmax(1) for x in parts])
    return torch.stack([(found[split.y == c] == c).double().mean() for c in range(split.classes)])
