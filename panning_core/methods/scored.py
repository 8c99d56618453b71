"""Pruners that know the network by scores alone: one metric, or places chosen for a given number of
weights, in one round or in many.

Each function here returns a ``find`` for a record of ``registry``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .. import masks, metrics
from ..errors import pick
from ..masks import Mask, Scores
from ..metrics import Batch
from ..pruning import Batches, Rounds, Scored, in_rounds, mass_of

#: (model, batches, density, seed, rounds, **options) -> mask, trace
Pruner = Callable[..., tuple[Mask, list[dict]]]


def by_metric(metric: str) -> Pruner:
    """Rounds of one metric of ``metrics.METRICS``, on the sub-network of the round before; its
    options are those of the metric."""

    def find(
        model: nn.Module, batches: Batches, density: float, seed: int, how: Rounds, **options
    ) -> tuple[Mask, list[dict]]:
        score = pick("metric", metric, metrics.METRICS)
        generator = torch.Generator().manual_seed(seed)

        def scorer(mask: Mask, batch: Batch, asked: float) -> Scored:
            scores = masks.flatten(score(model, mask, batch, generator, **options))
            return Scored(scores, {metric: (scores, mass_of(scores))})

        return in_rounds(model, scorer, density, batches, how)

    return find


def by_count(choose: Callable[[nn.Module, int, torch.Generator], Scores]) -> Pruner:
    """What ``choose`` scores is the places for so many weights, not the weights: (model, how many
    weights are kept, generator) -> scores, of which the largest are those places."""

    def find(
        model: nn.Module, batches: Batches, density: float, seed: int, how: Rounds
    ) -> tuple[Mask, list[dict]]:
        generator = torch.Generator().manual_seed(seed)

        def scorer(mask: Mask, batch: Batch, asked: float) -> Scored:
            count = round(asked * masks.size(mask))
            return Scored(masks.flatten(choose(model, count, generator)))

        return in_rounds(model, scorer, density, batches, how)

    return find
