"""When and how much: one-shot, iterative and staged Panning. Every pruner returns a mask and a trace.

A round asks for a density, scores the current sub-network, and keeps the top. Rounds, schedule, revival and scope are
separate from the scores and combine freely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle, repeat

import torch
from torch import Tensor, nn

from . import masks, metrics
from .errors import UserError, pick, unknown
from .masks import Mask, Scores
from .metrics import Batch
from .models import prunable

#: density after round t of ``rounds``; both end exactly at the density asked for
SCHEDULES: dict[str, Callable[[float, int, int], float]] = {
    "exponential": lambda density, t, rounds: density ** (t / rounds),
    "linear": lambda density, t, rounds: 1 - (1 - density) * t / rounds,
}

#: one round: (mask, batch, density asked for) -> scores [weights], the metrics they were made of with their masses, and the events worth reporting
Scorer = Callable[[Mask, Batch, float], tuple[Tensor, dict[str, tuple[Tensor, float]], list[str]]]


def _stream(batches: Batch | Sequence[Batch] | Iterable[Batch]) -> Iterator[Batch]:
    """One batch is used in every round, a list of batches in turn, an iterator gives a fresh one each round."""
    if isinstance(batches, tuple) and len(batches) == 2 and isinstance(batches[0], Tensor):
        return repeat(batches)
    return cycle(batches) if isinstance(batches, Sequence) else iter(batches)


def _mass(scores: Tensor) -> float:
    """Sum of |score|."""
    return float(scores.abs().sum(dtype=torch.double))


def _run(model: nn.Module, scorer: Scorer, density: float, batches, *, rounds: int, schedule: str, revive: bool, scope: str,
         inverted: bool, observe) -> tuple[Mask, list[dict]]:
    """The loop that every pruner shares. Inside it all weights are one vector."""
    asked_for, keep = pick("schedule", schedule, SCHEDULES), pick("scope", scope, masks.SCOPES)
    mask, trace, stream = masks.ones(model), [], _stream(batches)
    kept, transparent = masks.places(masks.flatten(mask)), metrics.sees_every_path(model)
    total = len(kept)

    def effective(parts: dict[str, tuple[Tensor, float]]) -> float:
        """The effective sparsity of ``mask``. SynFlow's pass on it, if there is one, has followed the paths already."""
        if transparent and "synflow" in parts:
            return 1 - int(parts["synflow"][0].index_select(0, kept).count_nonzero()) / total
        return 1 - masks.count(masks.effective(model, mask)) / total

    for t in range(1, rounds + 1):
        try:
            batch = next(stream)
        except StopIteration:
            raise UserError(f"the batches ended before round {t} of {rounds}; pass a list to use them in turn") from None
        asked = asked_for(density, t, rounds)
        scores, parts, events = scorer(mask, batch, asked)
        if trace:
            trace[-1]["effective_sparsity"] = effective(parts)
        ranked = -scores if inverted else scores
        if not revive:
            ranked = torch.full_like(ranked, -torch.inf).index_copy_(0, kept, ranked.index_select(0, kept))
        new = keep(ranked, mask, asked)
        stayed, before = masks.count({name: mask[name] & m for name, m in new.items()}), len(kept)
        kept = masks.places(masks.flatten(new))
        kept_mass = {name: _mass(part.index_select(0, kept)) for name, (part, _) in parts.items()}
        trace.append({
            "round": t, "sparsity_asked": 1 - asked, "sparsity": 1 - len(kept) / total,
            "layer_density": {name: masks.density({name: m}) for name, m in new.items()}, "removed": before - stayed, "revived": len(kept) - stayed,
            "kept_mass": kept_mass, "removed_mass": {name: max(0.0, mass - kept_mass[name]) for name, (_, mass) in parts.items()}, "events": events})
        if observe is not None:
            observe(t, mask, new, batch)
        mask = new
    trace[-1]["effective_sparsity"] = effective({})
    return mask, trace


def _with_metric(metric: str, model: nn.Module, density: float, batches, *, generator: torch.Generator, **how):
    """Rounds of one metric of ``metrics.METRICS``, on the sub-network of the round before."""
    score = pick("metric", metric, metrics.METRICS)

    def scorer(mask: Mask, batch: Batch, asked: float):
        scores = masks.flatten(score(model, mask, batch, generator))
        return scores, {metric: (scores, _mass(scores))}, []

    return _run(model, scorer, density, batches, **how)


# --- staged Panning -------------------------------------------------------------------------------------------------

#: (up to this sparsity, coefficients of SynFlow, SNIP, GraSP); Kang et al. 2022, their code's multi-index tables
SUM_STAGES = ((0.80, (0.2, 0.5, 0.3)), (0.90, (0.2, 0.4, 0.4)), (0.98, (0.2, 0.3, 0.5)), (0.99, (0.4, 0.2, 0.4)), (1.0, (0.5, 0.0, 0.5)))
PRODUCT_STAGES = ((0.80, (0.3, 1.0, 0.2)), (0.90, (0.3, 1.0, 0.4)), (0.98, (0.5, 0.5, 0.6)), (0.99, (0.8, 0.0, 1.0)), (1.0, (1.0, 0.0, 1.0)))
MIXED = ("synflow", "snip", "grasp")


def deviations(scores: Tensor) -> tuple[Tensor, float]:
    """|s - mean| of a vector, and the standard deviation as their unit (unbiased, float64); 0 if there is no finite spread."""
    centred = scores.double() - scores.mean(dtype=torch.double)
    unit = (float(centred @ centred) / max(len(scores) - 1, 1)) ** 0.5
    return centred.abs_(), unit if unit < torch.inf else 0.0


def _panning(form: str, model: nn.Module, density: float, batches, *, generator: torch.Generator,
             mix: tuple[float, float, float] | None = None, **how):
    """Staged Panning (Kang et al. 2022): a mix of three signed metrics that changes with the sparsity of the round.

    SNIP and GraSP are those of the *dense* network, logits / 200, so a batch that comes again costs nothing the second
    time; only SynFlow sees the mask. Masks are rebuilt from the dense weights each round, so a pruned weight can
    return. ``mix`` replaces the stage table by constant coefficients of (SynFlow, SNIP, GraSP); a metric that no stage
    uses is not computed. A metric without spread contributes zeros (a factor 1 in the product) and is named in the
    trace; the authors' code divides 0 by 0 there and returns an empty mask.
    """
    stages = ((1.0, tuple(mix)),) if mix is not None else SUM_STAGES if form == "sum" else PRODUCT_STAGES
    used = [name for name, column in zip(MIXED, zip(*(coefficients for _, coefficients in stages))) if any(column)]
    dense_mask, stage, dense, flow = masks.ones(model), 0, {}, metrics.synflow_of(model)
    neutral = torch.tensor(0.0 if form == "sum" else 1.0, dtype=torch.double, device=next(model.parameters()).device)

    def of_data(batch: Batch) -> dict[str, tuple[Tensor, float]]:
        if used == ["synflow"]:
            return {}
        products = metrics.products(model, dense_mask, batch, metrics.TEMPERATURE, hessian="grasp" in used)
        parts = {name: masks.flatten(getattr(products, name)) for name in used if name != "synflow"}
        return {name: (part, _mass(part)) for name, part in parts.items()}

    def mixed(start: Tensor, parts: dict[str, tuple[Tensor, float]]) -> tuple[Tensor, list[str]]:
        """start + a * s + b * t + ..., or start * s^a * t^b * ..., of the normalised parts that the stage uses; and the events."""
        events = []
        for name, (part, _) in parts.items():
            if weight := stages[stage][1][MIXED.index(name)]:
                distance, unit = deviations(part)
                if not unit:
                    events.append(f"{name} has no spread")
                elif form == "sum":
                    start = torch.add(start, distance, alpha=weight / unit, out=distance)
                else:
                    start = start * distance.div_(unit).pow_(weight)
        return start, events

    def scorer(mask: Mask, batch: Batch, asked: float):
        nonlocal stage
        if 1 - asked > stages[stage][0]:  # at most one stage a round, as in the authors' code
            stage += 1
        key = id(batch) if isinstance(batches, Sequence) else None  # of an iterator no batch is known to come again
        if key is None or key not in dense:
            dense[key] = of_data(batch), {}
        parts, of_stage = dense[key]
        if stage not in of_stage:
            of_stage.clear()
            of_stage[stage] = mixed(neutral.expand(masks.size(mask)), parts)
        scores, events = of_stage[stage]
        if "synflow" in used:
            products, _ = flow(mask, batch)
            synflow = {"synflow": (products, _mass(products))}
            scores, more = mixed(scores, synflow)
            parts, events = {**synflow, **parts}, more + events
        return scores, parts, events

    return _run(model, scorer, density, batches, **how)


# --- names ----------------------------------------------------------------------------------------------------------


def one_shot(metric: str) -> Callable:
    """The pruner that scores the dense network once with ``metric``."""
    return partial(_with_metric, metric, rounds=1, revive=False)


#: name -> pruner; the iterative ones take 100 rounds, SynFlow's and Panning's published number; ``prune`` also takes any other metric's name, one-shot
PRUNERS = {
    **{name: one_shot(name) for name in ("random", "magnitude", "snip", "grasp", "grasp-abs")},
    "synflow": partial(_with_metric, "synflow", rounds=100, revive=False),
    "iterative-snip": partial(_with_metric, "snip", rounds=100, revive=False),
    "force": partial(_with_metric, "force", rounds=100, revive=True),
    "panning": partial(_panning, "sum", rounds=100, revive=True),
    "panning-product": partial(_panning, "product", rounds=100, revive=True),
}


def methods() -> list[str]:
    """Every name that ``prune`` takes: ``PRUNERS``, and the metrics that are not there by name."""
    return [*PRUNERS, *(name for name in metrics.METRICS if name not in PRUNERS)]


def prune(model: nn.Module, method: str, density: float, batches, rounds: int | None = None, seed: int = 0, *, scope: str = "global",
          schedule: str = "exponential", revive: bool | None = None, mix: tuple[float, float, float] | None = None,
          inverted: bool = False, observe: Callable[[int, Mask, Mask, Batch], None] | None = None) -> tuple[Mask, list[dict]]:
    """Find a mask before training. ``model`` is only read; nothing about it or the global random state changes.

    Args:
        method: a name of ``methods()``.
        density: fraction kept; the mask has exactly round(density * N) weights.
        batches: one batch (x, y), a list of batches used in turn, or an iterator that gives a fresh one each round.
        rounds: of scoring and pruning; None is the method's own number.
        seed: of the noise of a metric that draws some.
        scope: ``"global"`` or ``"layerwise"``.
        schedule: ``"exponential"``, density^(t/rounds), or ``"linear"``.
        revive: whether a pruned weight may return; None is the method's own way. A weight returns only if its metric
            gives pruned weights a score: FORCE and Panning do, Iterative SNIP and SynFlow give them 0.
        mix: constant coefficients of (SynFlow, SNIP, GraSP) instead of Panning's stage table.
        inverted: control, keep the lowest scores.
        observe: called after each round with (round, mask before, mask after, batch).

    Returns:
        The mask, and the trace: a dict for each round with the sparsity asked for and reached, the effective sparsity,
        every layer's density, how many weights were removed and revived, the mass (sum of absolute scores) of each metric
        used on kept and on removed weights, and events.

    Raises:
        UserError: an unknown name, a density that keeps nothing, rounds below 1, a mix where there is none.
    """
    if method not in PRUNERS and method not in metrics.METRICS:
        raise unknown("pruner", method, methods())
    pruner = PRUNERS.get(method) or one_shot(method)
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise UserError(f"density is {density!r}; it is the fraction kept, above 0 and at most 1")
    total = sum(w.numel() for w in prunable(model).values())
    if round(density * total) < 1:
        raise UserError(f"density {density} keeps none of {total:,} weights; the least is {1 / total:.1e}")
    if rounds is not None and rounds < 1:
        raise UserError(f"rounds is {rounds}; pruning needs at least 1")
    how = {key: value for key, value in {"rounds": rounds, "revive": revive}.items() if value is not None}
    if mix is not None:
        if not method.startswith("panning"):
            raise UserError(f"a mix belongs to panning or panning-product, not to {method}")
        if len(mix) != len(MIXED) or min(mix) < 0 or not any(mix):
            raise UserError(f"mix is {mix}; it needs three coefficients of at least 0, not all 0, for {', '.join(MIXED)}")
        how["mix"] = mix
    return pruner(model, density, batches, generator=torch.Generator().manual_seed(seed), scope=scope, schedule=schedule,
                  inverted=inverted, observe=observe, **how)
