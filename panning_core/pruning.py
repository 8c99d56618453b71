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

#: one round: (mask, batch, density asked for) -> scores, the metrics they were made of, and the events worth reporting
Scorer = Callable[[Mask, Batch, float], tuple[Scores, dict[str, Scores], list[str]]]


def _stream(batches: Batch | Sequence[Batch] | Iterable[Batch]) -> Iterator[Batch]:
    """One batch is used in every round, a list of batches in turn, an iterator gives a fresh one each round."""
    if isinstance(batches, tuple) and len(batches) == 2 and isinstance(batches[0], Tensor):
        return repeat(batches)
    return cycle(batches) if isinstance(batches, Sequence) else iter(batches)


def _mass(scores: Scores, where: Mask) -> float:
    """Sum of |score| over the weights of a mask."""
    return sum(float(s[where[name]].abs().sum(dtype=torch.double)) for name, s in scores.items())


def _run(model: nn.Module, scorer: Scorer, density: float, batches, *, rounds: int, schedule: str, revive: bool, scope: str,
         inverted: bool, observe) -> tuple[Mask, list[dict]]:
    """The loop that every pruner shares."""
    asked_for = pick("schedule", schedule, SCHEDULES)
    mask, trace, stream = masks.ones(model), [], _stream(batches)
    for t in range(1, rounds + 1):
        try:
            batch = next(stream)
        except StopIteration:
            raise UserError(f"the batches ended before round {t} of {rounds}; pass a list to use them in turn") from None
        asked = asked_for(density, t, rounds)
        scores, parts, events = scorer(mask, batch, asked)
        ranked = masks.invert(scores) if inverted else scores
        if not revive:
            ranked = {name: s.masked_fill(~mask[name], -torch.inf) for name, s in ranked.items()}
        new = masks.keep_top(ranked, asked, scope)
        gone = {name: ~m for name, m in new.items()}
        trace.append({
            "round": t, "sparsity_asked": 1 - asked, "sparsity": 1 - masks.density(new),
            "effective_sparsity": 1 - masks.count(masks.effective(model, new)) / masks.size(new),
            "layer_density": {name: float(m.double().mean()) for name, m in new.items()},
            "removed": sum(int((mask[n] & gone[n]).sum()) for n in new), "revived": sum(int((new[n] & ~mask[n]).sum()) for n in new),
            "kept_mass": {name: _mass(part, new) for name, part in parts.items()},
            "removed_mass": {name: _mass(part, gone) for name, part in parts.items()}, "events": events})
        if observe is not None:
            observe(t, mask, new, batch)
        mask = new
    return mask, trace


def _with_metric(metric: str, model: nn.Module, density: float, batches, *, generator: torch.Generator, **how):
    """Rounds of one metric of ``metrics.METRICS``, on the sub-network of the round before."""
    score = pick("metric", metric, metrics.METRICS)

    def scorer(mask: Mask, batch: Batch, asked: float):
        scores = score(model, mask, batch, generator)
        return scores, {metric: scores}, []

    return _run(model, scorer, density, batches, **how)


# --- staged Panning -------------------------------------------------------------------------------------------------

#: (up to this sparsity, coefficients of SynFlow, SNIP, GraSP); Kang et al. 2022, their code's multi-index tables
SUM_STAGES = ((0.80, (0.2, 0.5, 0.3)), (0.90, (0.2, 0.4, 0.4)), (0.98, (0.2, 0.3, 0.5)), (0.99, (0.4, 0.2, 0.4)), (1.0, (0.5, 0.0, 0.5)))
PRODUCT_STAGES = ((0.80, (0.3, 1.0, 0.2)), (0.90, (0.3, 1.0, 0.4)), (0.98, (0.5, 0.5, 0.6)), (0.99, (0.8, 0.0, 1.0)), (1.0, (1.0, 0.0, 1.0)))
MIXED = ("synflow", "snip", "grasp")


def normalise(scores: Scores) -> Scores | None:
    """|s - mean| / std over all weights together (unbiased std, float64); None if the scores have no finite spread."""
    flat = torch.cat([s.double().flatten() for s in scores.values()])
    mean, deviation = flat.mean(), flat.std()
    if not (torch.isfinite(deviation) and deviation > 0):
        return None
    return {name: (s.double() - mean).abs() / deviation for name, s in scores.items()}


def _panning(form: str, model: nn.Module, density: float, batches, *, generator: torch.Generator,
             mix: tuple[float, float, float] | None = None, **how):
    """Staged Panning (Kang et al. 2022): a mix of three signed metrics that changes with the sparsity of the round.

    SNIP and GraSP are those of the *dense* network, logits / 200, so a batch that comes again costs nothing the second
    time; only SynFlow sees the mask. Masks are rebuilt from the dense weights each round, so a pruned weight can
    return. ``mix`` replaces the stage table by constant coefficients of (SynFlow, SNIP, GraSP). A metric without
    spread contributes zeros (a factor 1 in the product) and is named in the trace; the authors' code divides 0 by 0
    there and returns an empty mask.
    """
    stages = ((1.0, tuple(mix)),) if mix is not None else SUM_STAGES if form == "sum" else PRODUCT_STAGES
    dense_mask, stage, dense = masks.ones(model), 0, {}

    def scorer(mask: Mask, batch: Batch, asked: float):
        nonlocal stage
        if 1 - asked > stages[stage][0]:  # at most one stage a round, as in the authors' code
            stage += 1
        weights = dict(zip(MIXED, stages[stage][1]))
        key = id(batch) if isinstance(batches, Sequence) else None  # of an iterator no batch is known to come again
        if key is None or key not in dense:
            products = metrics.products(model, dense_mask, batch, metrics.TEMPERATURE, hessian=True)
            raw = {"snip": products.snip, "grasp": products.grasp}
            dense[key] = raw, {name: normalise(scores) for name, scores in raw.items()}
        raw, normalised = dense[key]
        synflow = metrics.synflow_products(model, mask, batch)[0]
        parts = {"synflow": normalise(synflow), **normalised}
        used = {name: (parts[name], weights[name]) for name in MIXED if weights[name] != 0}
        events = [f"{name} has no spread" for name, (part, _) in used.items() if part is None]
        live = [(part, weight) for part, weight in used.values() if part is not None]
        mixed = {name: _combine(form, [(part[name], weight) for part, weight in live], like=m) for name, m in dense_mask.items()}
        return mixed, {"synflow": synflow, **raw}, events

    return _run(model, scorer, density, batches, **how)


def _combine(form: str, parts: list[tuple[Tensor, float]], like: Tensor) -> Tensor:
    """a * s + b * t + ... (sum), or s^a * t^b * ... (product), of one layer."""
    result = torch.full(like.shape, 0.0 if form == "sum" else 1.0, dtype=torch.double, device=like.device)
    for part, weight in parts:
        result = result + weight * part if form == "sum" else result * part ** weight
    return result


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
        every layer's density, how many weights were removed and revived, each metric's mass (sum of absolute scores)
        on kept and on removed weights, and events.

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
