"""The weights on random walks between inputs and outputs: PHEW (Patil & Dovrolis 2021).

No data, no gradients, no rounds. Unlike a metric it knows how many weights shall be kept:
``masks.keep_top(scores, count / N)`` keeps exactly those that it chose.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .. import compaction, masks
from ..errors import UserError
from ..masks import Scores, flatten, unflatten
from ..models import prunable

# drawn at a time, half of them forward
_WALKS = 4096
# a batch of walks that brings less than this part of what is missing is the last
_WORTH = 100
# before a count is given up
_TRIES = 100
# the strength of a weight of 0: it is taken where there is no other
_ALMOST_ZERO = 1e-300


def phew(model: nn.Module, count: int, generator: torch.Generator) -> Scores:
    """The weights on random walks between inputs and outputs that prefer large weights: PHEW (Patil
    & Dovrolis 2021).

    Forward walks from a random input and backward walks from a random output take turns. A step
    goes to a unit or channel in proportion to the L1 norm of the kernel between the two, and takes
    one weight of the kernel in proportion to |w|; behind a ``Flatten`` the features of a channel
    are the kernel. A walk crosses a residual block by the branch or, equally often, by the shortcut
    if that is a convolution, and never by an identity. A walk that would bring more than is missing
    is passed over. What no walk brings is filled with weights that each complete a path of weights
    already kept, drawn in proportion to |w|. The authors' code begins at the units in order, and
    behind a ``Flatten`` takes a feature of the channel without regard to |w|.

    Every kept weight is effective: where maps are tiny, a walk over channels may lead no pixel
    through, and its weights go before others walk on.

    Args:
        count: how many weights are kept.
        generator: on the CPU; one number is drawn, the seed of all that is random here.

    Returns:
        float64; from 2 down to above 1 in the order in which the weights were reached, and noise,
        uniform in [0, 1), for the rest.

    Raises:
        UserError: ``count`` is less than a path or more than all paths, no such weights were found,
            or ``compaction`` cannot read the network.
    """
    weights = prunable(model)
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    usable = flatten(masks.effective(model, masks.ones(model))).cpu().numpy()
    strength = np.maximum(flatten(weights).double().abs().cpu().numpy() * usable, _ALMOST_ZERO)
    stages = _stages(model, strength)
    least, most = sum(min(map(len, ways)) for ways in stages), np.count_nonzero(usable)
    if not least <= count <= most:
        raise UserError(
            f"PHEW keeps whole paths, which in this network are from {least:,} to {most:,} "
            f"weights; got {count:,}"
        )
    order = _chosen(model, count, strength, _both_ways(stages), rng)
    scores = rng.random(len(strength))
    scores[order] = 2 - np.arange(count) / count
    return {
        name: s.to(weights[name].device)
        for name, s in unflatten(torch.from_numpy(scores), weights).items()
    }


def _chosen(
    model: nn.Module,
    count: int,
    strength: np.ndarray,
    both: tuple[Stages, Stages],
    rng: np.random.Generator,
) -> np.ndarray:
    """The places of the weights that are kept, in the order in which they were reached."""
    order = np.empty(0, dtype=int)
    for _ in range(_TRIES):
        order = _visit(order, count, len(strength), both, rng)
        completing = _completing(model, order)
        if not completing[order].all():
            order = order[completing[order]]
            continue
        completing[order] = False
        others = np.flatnonzero(completing)
        # Who comes first is drawn in proportion to strength.
        arrival = rng.exponential(size=len(others)) / strength[others]
        order = np.concatenate([order, others[np.argsort(arrival)[: count - len(order)]]])
        if len(order) == count:
            return order
        # A narrow network: these walks leave no room for exactly so many.
        order = order[:0]
    raise UserError(
        f"PHEW found no {count:,} weights of this network that all lie on paths; ask for some "
        "more or less"
    )


class _Step(NamedTuple):
    """A layer in the direction in which walks cross it; its weight [from, to, tap] has the place
    ``start + strides . (from, to, tap)``."""

    start: int
    shape: tuple[int, int, int]
    strides: tuple[int, ...]
    #: [from * to * taps] running sums of strength, scaled so that the weights of unit u share
    #: (u, u + 1] out
    ends: np.ndarray


# one behind the other; the ways through each; a way's layers
Stages = list[list[list[_Step]]]


def _step(start: int, kernels: np.ndarray) -> _Step:
    """``kernels`` [from, to, taps] hold strengths."""
    sums = kernels.reshape(len(kernels), -1).cumsum(1)
    ends = sums / sums[:, -1:] + np.arange(len(sums))[:, None]
    return _Step(
        start,
        kernels.shape,
        tuple(stride // kernels.itemsize for stride in kernels.strides),
        ends.ravel(),
    )


def _both_ways(stages: list[list[list[tuple[int, np.ndarray]]]]) -> tuple[Stages, Stages]:
    """Forward and backward."""
    return (
        [
            [[_step(start, kernels.transpose(1, 0, 2)) for start, kernels in way] for way in ways]
            for ways in stages
        ],
        [
            [[_step(start, kernels) for start, kernels in reversed(way)] for way in ways]
            for ways in reversed(stages)
        ],
    )


def _stages(model: nn.Module, strength: np.ndarray) -> list[list[list[tuple[int, np.ndarray]]]]:
    """The network as stages one behind the other, each with one or two ways through; a way is
    layers (place of the first weight, [to, from, taps])."""
    if any(isinstance(module, compaction.Select) for module in model.modules()):
        raise UserError(
            "PHEW cannot walk through a Select; prune the network before it is made smaller"
        )
    parts = unflatten(torch.from_numpy(strength), prunable(model))
    stages: list[list[list[tuple[int, np.ndarray]]]] = []
    widths: dict[object, int | None] = {}
    before = None
    for chain, *streams in compaction.chains(model):
        source, target = streams
        way, units = [], widths.get(source)
        for part in (
            parts[f"{name}.weight"]
            for name, module in chain
            if isinstance(module, compaction.WEIGHTED)
        ):
            way.append(
                (
                    int(part.storage_offset()),
                    part.reshape(len(part), units or part.shape[1], -1).numpy(),
                )
            )
            units = len(part)
        widths[target] = units
        # The shortcut beside a branch.
        if way and streams == before and source != target:
            stages[-1].append(way)
        elif way:
            stages.append([way])
        before = streams
    return stages


def _visit(
    order: np.ndarray, count: int, size: int, both: tuple[Stages, Stages], rng: np.random.Generator
) -> np.ndarray:
    """``order`` and behind it the places that walks reach besides, ``count`` together or less, out
    of ``size``."""
    seen = np.zeros(size + 1, dtype=bool)
    # -1 stands for a layer that a walk did not cross.
    seen[order] = seen[-1] = True
    found, missing = [order], count - len(order)
    while missing:
        # Forward and backward in turn.
        walks = np.stack([_walk(stages, rng) for stages in both], 1).reshape(_WALKS, -1)
        fresh = ~seen[walks]
        fits = fresh.sum(1) <= missing
        walks, fresh = walks[fits], fresh[fits]
        first = np.sort(np.unique(walks[fresh], return_index=True)[1])
        # New places up to and with each walk; no walk is cut.
        ends = np.bincount(np.nonzero(fresh)[0][first], minlength=len(walks)).cumsum()
        brought = ends[ends <= missing].max(initial=0)
        found.append(walks[fresh][first[:brought]])
        seen[found[-1]] = True
        if brought * _WORTH < min(missing, _WALKS):
            break
        missing -= brought
    return np.concatenate(found)


def _walk(stages: Stages, rng: np.random.Generator) -> np.ndarray:
    """Walks in one direction: the places of their weights [walks, layers], -1 for a layer that a
    walk does not cross."""
    units = rng.integers(stages[0][0][0].shape[0], size=_WALKS // 2)
    columns = []
    for ways in stages:
        chosen = rng.integers(len(ways), size=len(units))
        for number, way in enumerate(ways):
            walkers = np.flatnonzero(chosen == number)
            for start, shape, strides, ends in way:
                # A weight in proportion to |w| among all of a unit's is a neighbour by its
                # kernel's L1 norm, and then a weight of the kernel.
                drawn = units[walkers] + (1 - rng.random(len(walkers)))
                index = np.unravel_index(np.searchsorted(ends, drawn), shape)
                units[walkers] = index[1]
                columns.append(np.full(len(units), -1))
                columns[-1][walkers] = start + sum(i * stride for i, stride in zip(index, strides))
    return np.stack(columns, 1)


def _completing(model: nn.Module, places: np.ndarray) -> np.ndarray:
    """Whether a path leads through a weight [weights] whose other weights are all among ``places``.

    Those among ``places`` are then effective, and any others would be.
    """
    like = prunable(model)
    kept = torch.zeros(sum(w.numel() for w in like.values()), dtype=torch.bool)
    kept[torch.from_numpy(places)] = True
    paths = masks.paths(model, unflatten(kept.to(next(iter(like.values())).device), like))
    return flatten(paths).cpu().numpy()
