"""Masks of trained networks: the yardstick for pruning before training, which wants to do as well
without that training.

Both train ``model`` in place, by the recipe "mnist" with other epochs, and leave it with trained
weights; a run then trains what is left of it once more.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from .. import masks, training
from ..data import Splits
from ..errors import fraction_kept, whole
from ..masks import Mask
from ..models import prunable


def trained_magnitude(
    model: nn.Module, splits: Splits, density: float, seed: int, *, epochs: int = 20
) -> tuple[Mask, list[dict]]:
    """Train the dense network, then keep the largest weights (Han et al. 2015): round(density * N)
    of them, all effective.
    """
    return _iterate(model, splits, density, seed, 1, epochs, False)


def iterative_magnitude(
    model: nn.Module,
    splits: Splits,
    density: float,
    seed: int,
    *,
    rounds: int = 20,
    epochs: int = 5,
    rewind: bool = False,
) -> tuple[Mask, list[dict]]:
    """Train, remove the same fraction of the smallest weights, train what is left, and so on:
    iterative magnitude pruning.

    Args:
        density: after the last round, of effective weights.
        rounds, epochs: as many trainings of so many epochs, each before the weights are removed.
        rewind: each training starts from the initial weights (Frankle & Carbin 2019); otherwise
            from the last ones, and only the learning rate starts again (Renda et al. 2020).

    Raises:
        UserError: rounds or epochs below 1.
    """
    return _iterate(model, splits, density, seed, rounds, epochs, rewind)


def _iterate(
    model: nn.Module,
    splits: Splits,
    density: float,
    seed: int,
    rounds: int,
    epochs: int,
    rewind: bool,
) -> tuple[Mask, list[dict]]:
    whole("rounds", rounds, 1)
    fraction_kept(density)
    initial, mask, trace = copy.deepcopy(model.state_dict()), masks.ones(model), []
    recipe = replace(training.RECIPES["mnist"], seed=seed, epochs=epochs)
    for t in range(1, rounds + 1):
        if rewind:
            model.load_state_dict(initial)
        log = training.train(model, mask, splits, recipe)
        scores = {
            name: w.detach().abs().masked_fill(~mask[name], -torch.inf)
            for name, w in prunable(model).items()
        }
        mask = (
            masks.keep_top(scores, density ** (t / rounds))
            if t < rounds
            else masks.keep_effective(model, scores, density)
        )
        trace.append(
            {
                "round": t,
                "loss": log.loss.iloc[-1],
                "sparsity": 1 - masks.density(mask),
                "events": [],
            }
        )
    if rewind:
        model.load_state_dict(initial)
    return mask, trace
