"""When and how much: a mask is found in rounds, by whatever scores the weights.

A round asks for a density, scores the current sub-network and keeps the best weights. Schedule,
scope, revival and scores are separate and combine freely; every method that prunes before training
is a function that scores and calls ``in_rounds``.

The methods themselves stand above this module, one record each in ``methods.registry``. ``prune``
finds that table by its name when it is called, as ``runs.base`` finds a kind of run: nothing here
imports a method.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import chain, cycle, repeat
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import data, graph, layers, masks, metrics
from .errors import UserError, fraction_kept, pick, unknown, whole
from .inspection import threads
from .layers import Least, Pattern
from .masks import Mask
from .metrics import Batch
from .models import prunable
from .names import Table
from .paths.visible import sees_every_path

#: density after round t of ``rounds``; both end exactly at the density asked for
SCHEDULES: dict[str, Callable[[float, int, int], float]] = Table(
    __name__ + ".SCHEDULES",
    {
        "exponential": lambda density, t, rounds: density ** (t / rounds),
        "linear": lambda density, t, rounds: 1 - (1 - density) * t / rounds,
    },
)

#: (round, mask before, mask after, batch)
Observer = Callable[[int, Mask, Mask, Batch], None]
#: one batch, several that are used in turn, or an iterator that gives a fresh one each round
Batches = Batch | Sequence[Batch] | Iterable[Batch]


@dataclass(frozen=True)
class Scored:
    """What a method says in one round.

    Attributes:
        scores: of every weight [weights], the largest are kept.
        parts: metric -> its scores [weights] and their mass, for the trace.
        events: what was unusual, as sentences.
        told: further columns of the trace, such as the coefficients of a mix.
    """

    scores: Tensor
    parts: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    told: dict[str, object] = field(default_factory=dict)


#: (mask, batch, density asked for) -> the scores of a round
Scorer = Callable[[Mask, Batch, float], Scored]
#: (mask found, mask before, batch, scores ranked, scores -> mask) -> the mask to take, and events
Guard = Callable[[Mask, Mask, Batch, Tensor, Callable[[Tensor], Mask]], tuple[Mask, list[str]]]


@dataclass(frozen=True)
class Rounds:
    """How a mask is found, whatever scores the weights.

    Attributes:
        count: rounds of scoring and pruning.
        revive: whether a pruned weight may return. It does only if its metric gives pruned weights
            a score: FORCE and Panning do, Iterative SNIP and SynFlow give them 0.
        schedule: a key of ``SCHEDULES``.
        scope: a key of ``masks.SCOPES``; ``keep_top`` describes them.
        inverted: a control, the lowest scores are kept.
        effective: the density counts effective weights: the last round keeps as many of the best as
            leave at most so many, and those alone.
        least: how many weights each layer keeps at least, see ``layers.limits``.
        observe: called after each round with (round, mask before, mask after, batch).
    """

    count: int = 1
    revive: bool = False
    schedule: str = "exponential"
    scope: str = "global"
    inverted: bool = False
    effective: bool = False
    least: Least | None = None
    observe: Observer | None = None

    def ranked(self, scores: Tensor, kept: Tensor) -> Tensor:
        """The scores in the order that counts: what may not return comes last."""
        ranked = -scores if self.inverted else scores
        if self.revive:
            return ranked
        lowest = torch.full_like(ranked, -torch.inf)
        return lowest.index_copy_(0, kept, ranked.index_select(0, kept))


def in_rounds(
    model: nn.Module,
    scorer: Scorer,
    density: float,
    batches: Batches,
    how: Rounds,
    guard: Guard | None = None,
) -> tuple[Mask, list[dict]]:
    """The loop that every pruner shares. Inside it all weights are one vector.

    Args:
        scorer: scores the sub-network of the round before.
        density: after the last round.
        guard: may replace the mask of a round.

    Returns:
        The mask, and the trace: a dict for each round with the sparsity asked for and reached, the
        effective sparsity (None where paths can not be followed), every layer's density, how many
        weights were removed and revived, the mass (sum of absolute scores) of each metric used on
        kept and on removed weights, the coefficients of a mix, events, and PyTorch's threads.
    """
    stream = _stream(batches, how.count)
    first = next(stream)
    metrics.check(model, masks.ones(model), first)
    with threads.fitting(model, len(first[1])):
        return _in_rounds(model, scorer, density, first, stream, how, guard)


def _in_rounds(
    model: nn.Module,
    scorer: Scorer,
    density: float,
    first: Batch,
    rest: Iterator[Batch],
    how: Rounds,
    guard: Guard | None,
) -> tuple[Mask, list[dict]]:
    """``in_rounds``, whose ``first`` batch has been checked."""
    asked_for = pick("schedule", how.schedule, SCHEDULES)
    keep = pick("scope", how.scope, masks.SCOPES)
    keep = partial(keep, least=how.least) if how.least else keep
    mask, paths = masks.ones(model), Paths(model)
    kept = masks.places(masks.flatten(mask))
    batch, stream = first, chain([first], rest)
    trace: list[dict] = []

    for t in range(1, how.count + 1):
        last, batch = batch, next(stream)
        if batch is not last:
            metrics.check(model, mask, batch)
        asked = asked_for(density, t, how.count)
        found = scorer(mask, batch, asked)
        if trace:
            flow, _ = found.parts.get("synflow", (None, None))
            trace[-1]["effective_sparsity"] = paths.known_sparsity(mask, flow, kept)
        ranked = how.ranked(found.scores, kept)
        if how.effective and t == how.count:
            new = masks.keep_effective(model, masks.unflatten(ranked, mask), asked, how.scope)
        else:
            new = keep(ranked, mask, asked)
        if guard is not None:
            new, events = guard(new, mask, batch, ranked, lambda scores: keep(scores, mask, asked))
            found.events.extend(events)
        before, kept = len(kept), masks.places(masks.flatten(new))
        trace.append(
            {"round": t, "sparsity_asked": 1 - asked, **_row(mask, new, before, kept, found)}
        )
        del found, ranked  # the scores of the next round take as much memory
        if how.observe is not None:
            how.observe(t, mask, new, batch)
        mask = new
    trace[-1]["effective_sparsity"] = paths.known_sparsity(mask)
    return mask, trace


def _row(old: Mask, new: Mask, before: int, kept: Tensor, found: Scored) -> dict:
    """What the trace tells of a round that went from ``old`` with ``before`` weights to ``new``."""
    stayed = masks.count({name: old[name] & m for name, m in new.items()})
    kept_mass = {
        name: mass_of(part.index_select(0, kept)) for name, (part, _) in found.parts.items()
    }
    return {
        "sparsity": 1 - len(kept) / masks.size(new),
        "layer_density": {name: masks.density({name: m}) for name, m in new.items()},
        "removed": before - stayed,
        "revived": len(kept) - stayed,
        "kept_mass": kept_mass,
        "removed_mass": {
            name: max(0.0, mass - kept_mass[name]) for name, (_, mass) in found.parts.items()
        },
        **found.told,
        "events": found.events,
        "threads": torch.get_num_threads(),
    }


def mass_of(scores: Tensor) -> float:
    """The mass of scores: the sum of |score|."""
    return float(scores.abs().sum(dtype=torch.double))


def _stream(batches: Batches, rounds: int) -> Iterator[Batch]:
    """A batch for each of ``rounds``."""
    if isinstance(batches, tuple) and len(batches) == 2 and isinstance(batches[0], Tensor):
        yield from repeat(batches)
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | Mapping | str):
        raise UserError(
            "batches are a pair (images, labels), a list of such pairs or an iterator of them, "
            f"not {type(batches).__name__}"
        )
    given = 0
    for batch in cycle(batches) if isinstance(batches, Sequence) else batches:
        given += 1
        yield batch
    raise UserError(
        f"the batches ended before round {given + 1} of {rounds}; pass a list to use them in turn"
    )


class Paths:
    """How much of a sub-network of ``model`` lies on paths from an input to an output."""

    def __init__(self, model: nn.Module):
        self.model, self.transparent = model, sees_every_path(model)
        self._followed = True

    def effective_sparsity(
        self, mask: Mask, synflow: Tensor | None = None, kept: Tensor | None = None
    ) -> float:
        """1 - effective density.

        Args:
            synflow: the products of SynFlow's pass on this mask, if there was one: it has followed
                the paths already.
            kept: the mask's places, for who knows them.
        """
        if self.transparent and synflow is not None:
            kept = masks.places(masks.flatten(mask)) if kept is None else kept
            return 1 - int(synflow.index_select(0, kept).count_nonzero()) / len(synflow)
        return 1 - masks.count(masks.effective(self.model, mask)) / masks.size(mask)

    def known_sparsity(
        self, mask: Mask, synflow: Tensor | None = None, kept: Tensor | None = None
    ) -> float | None:
        """``effective_sparsity``; None for a network whose paths can not be followed."""
        try:
            return self.effective_sparsity(mask, synflow, kept) if self._followed else None
        except UserError:
            self._followed = False
            return None


# --- the front of all pruners ---------------------------------------------------------------------


def _registry() -> ModuleType:
    return import_module("panning_core.methods.registry")


def methods() -> list[str]:
    """Every name that ``prune`` takes: ``methods.registry.pruners()``."""
    return _registry().pruners()


def prune(
    model: nn.Module,
    method: str,
    density: float,
    batches: Batches,
    rounds: int | None = None,
    seed: int = 0,
    *,
    scope: str = "global",
    schedule: str = "exponential",
    revive: bool | None = None,
    mix: tuple[float, float, float] | None = None,
    policy: Callable | str | Path | None = None,
    options: Mapping[str, object] | None = None,
    inverted: bool = False,
    effective: bool = False,
    observe: Observer | None = None,
    include: Pattern | Sequence[Pattern] | None = None,
    exclude: Pattern | Sequence[Pattern] | None = None,
    floor: float | Mapping[str, float] = 0.0,
) -> tuple[Mask, list[dict]]:
    """Find a mask before training. ``model`` is only read; nothing about it or the global random
    state changes.

    Args:
        method: a name of ``methods()``; its ``options`` by name are those of its record.
        density: fraction kept of all prunable weights, those of layers that stay whole among them;
            the mask has exactly round(density * N) weights.
        batches: or a ``DataLoader``, used epoch after epoch and, where it shuffles, by ``seed``.
        rounds, revive: as in ``Rounds``; None is the method's own number, or its own way.
        seed: of the noise of a metric that draws some.
        scope, schedule, inverted, effective, observe: as in ``Rounds``.
        mix: constant coefficients of (SynFlow, SNIP, GraSP) instead of Panning's stage table.
        policy: of ``"panning-agent"``: for ``policies.load``, or any function of an observation.
        include, exclude, floor: as in ``layers.limits``.

    Returns:
        The mask, and the trace that ``in_rounds`` describes.

    Raises:
        UserError: an unknown name; a density of nothing, or of less than whole layers, floors or a
            path take; rounds below 1; a mix, policy or option where there is none; a bad pattern.
    """
    if method not in methods():
        raise unknown("pruner", method, methods())
    found, total = _registry().method(method), _check_density(model, density)
    least = layers.limits(model, include, exclude, floor)
    if least is not None:
        _check_least(least, density, total, effective)
    how = Rounds(
        found.rounds if rounds is None else whole("rounds", rounds, 1),
        found.regrows if revive is None else revive,
        schedule, scope, inverted, effective, least, observe,
    )  # fmt: skip
    whole("seed", seed)
    _warn_of_the_rest(model, density, total)
    if isinstance(batches, DataLoader):
        batches = data.loader_batches(batches, seed)
    own = found.taken(mix=mix, policy=policy) | found.settled(options or {})
    return found.find(model, batches, density, seed, how, **own)


def _check_density(model: nn.Module, density: float) -> int:
    """The number of prunable weights, once it is known that ``density`` keeps one of them."""
    fraction_kept(density)
    weights = prunable(model)
    if empty := [name for name, w in weights.items() if w.is_meta]:
        raise UserError(f"{empty[0]} has no numbers, only a shape; build the network on a device")
    total = sum(w.numel() for w in weights.values())
    if round(density * total) < 1:
        raise UserError(
            f"density {density} keeps none of {total:,} weights; the least is {1 / total:.1e}"
        )
    return total


def _check_least(least: Least, density: float, total: int, effective: bool) -> None:
    layers.check_room(least, density, total)
    if effective:
        raise UserError(
            "effective keeps only what lies on a path, so no layer stays whole and no floor "
            "holds; leave out effective, or include, exclude and floor"
        )


def _warn_of_the_rest(model: nn.Module, density: float, total: int) -> None:
    """Weights that no method prunes, such as those of an embedding."""
    if dense := graph.outside(model):
        warnings.warn(
            f"density {density} is of {total:,} weights; outside and never pruned are "
            f"{', '.join(f'{count:,} of {kind}' for kind, count in dense.items())}: "
            "model.also_prunable, a tuple of kinds of module, takes them in",
            stacklevel=3,
        )
