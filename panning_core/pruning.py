"""When and how much: one-shot, iterative and staged Panning. Every pruner returns a mask and a trace.

A round asks for a density, scores the current sub-network, and keeps the top. Rounds, schedule, revival and scope are
separate from the scores and combine freely.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, repeat
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import data, graph, layers, masks, metrics
from .agent import observations, policies
from .agent.observations import MIXED, Look, Sight, coefficients, deviations, one_path, resampled
from .agent.policies import Policy
from .errors import UserError, fraction_kept, is_number, keywords, pick, settle, unknown, whole
from .layers import Least, Pattern
from .masks import Mask
from .methods import topologies
from .metrics import Batch
from .models import prunable
from .plugins import Table

#: density after round t of ``rounds``; both end exactly at the density asked for
SCHEDULES: dict[str, Callable[[float, int, int], float]] = Table(
    __name__ + ".SCHEDULES",
    {
        "exponential": lambda density, t, rounds: density ** (t / rounds),
        "linear": lambda density, t, rounds: 1 - (1 - density) * t / rounds,
    },
)

#: metric -> its scores [weights] and their mass
Parts = dict[str, tuple[Tensor, float]]
#: one round: (mask, batch, density asked for) -> scores [weights], what they were made of, and what else the trace shall tell: events, coefficients
Scorer = Callable[[Mask, Batch, float], tuple[Tensor, Parts, dict]]


def _stream(batches: Batch | Sequence[Batch] | Iterable[Batch]) -> Iterator[Batch]:
    """One batch is used in every round, a list of batches in turn, an iterator gives a fresh one each round."""
    if isinstance(batches, tuple) and len(batches) == 2 and isinstance(batches[0], Tensor):
        return repeat(batches)
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | Mapping | str):
        raise UserError(
            f"batches are a pair (images, labels), a list of such pairs or an iterator of them, not {type(batches).__name__}"
        )
    return cycle(batches) if isinstance(batches, Sequence) else iter(batches)


def _mass(scores: Tensor) -> float:
    """Sum of |score|."""
    return float(scores.abs().sum(dtype=torch.double))


def _run(
    model: nn.Module,
    scorer: Scorer,
    density: float,
    batches,
    *,
    rounds: int,
    schedule: str,
    revive: bool,
    scope: str,
    inverted: bool,
    observe,
    effective: bool,
    least: Least | None = None,
    guard: Callable[..., tuple[Mask, list[str]]] | None = None,
) -> tuple[Mask, list[dict]]:
    """The loop that every pruner shares. Inside it all weights are one vector. ``guard`` may replace a round's mask."""
    asked_for, keep = pick("schedule", schedule, SCHEDULES), pick("scope", scope, masks.SCOPES)
    keep = partial(keep, least=least) if least else keep
    mask, trace, stream, sight = masks.ones(model), [], _stream(batches), Sight(model)
    kept, batch = masks.places(masks.flatten(mask)), None
    total = len(kept)

    for t in range(1, rounds + 1):
        try:
            last, batch = batch, next(stream)
        except StopIteration:
            raise UserError(
                f"the batches ended before round {t} of {rounds}; pass a list to use them in turn"
            ) from None
        if batch is not last:
            metrics.check(model, mask, batch)
        asked = asked_for(density, t, rounds)
        scores, parts, told = scorer(mask, batch, asked)
        if trace:
            flow, _ = parts.get("synflow", (None, None))
            trace[-1]["effective_sparsity"] = sight.known_sparsity(mask, flow, kept)
        ranked = -scores if inverted else scores
        if not revive:
            ranked = torch.full_like(ranked, -torch.inf).index_copy_(
                0, kept, ranked.index_select(0, kept)
            )
        new = (
            masks.keep_effective(model, masks.unflatten(ranked, mask), asked, scope)
            if effective and t == rounds
            else keep(ranked, mask, asked)
        )
        if guard is not None:
            new, events = guard(new, mask, batch, ranked, lambda scores: keep(scores, mask, asked))
            told["events"] = told["events"] + events
        stayed, before = masks.count({name: mask[name] & m for name, m in new.items()}), len(kept)
        kept = masks.places(masks.flatten(new))
        kept_mass = {name: _mass(part.index_select(0, kept)) for name, (part, _) in parts.items()}
        trace.append(
            {
                "round": t,
                "sparsity_asked": 1 - asked,
                "sparsity": 1 - len(kept) / total,
                "layer_density": {name: masks.density({name: m}) for name, m in new.items()},
                "removed": before - stayed,
                "revived": len(kept) - stayed,
                "kept_mass": kept_mass,
                "removed_mass": {
                    name: max(0.0, mass - kept_mass[name]) for name, (_, mass) in parts.items()
                },
                **told,
            }
        )
        if observe is not None:
            observe(t, mask, new, batch)
        mask = new
    trace[-1]["effective_sparsity"] = sight.known_sparsity(mask)
    return mask, trace


def _with_metric(
    metric: str,
    model: nn.Module,
    density: float,
    batches,
    *,
    generator: torch.Generator,
    options: dict,
    **how,
):
    """Rounds of one metric of ``metrics.METRICS``, on the sub-network of the round before."""
    score = pick("metric", metric, metrics.METRICS)

    def scorer(mask: Mask, batch: Batch, asked: float):
        scores = masks.flatten(score(model, mask, batch, generator, **options))
        return scores, {metric: (scores, _mass(scores))}, {"events": []}

    return _run(model, scorer, density, batches, **how)


def _with_topology(
    topology: Callable,
    model: nn.Module,
    density: float,
    batches,
    *,
    generator: torch.Generator,
    options: dict,
    **how,
):
    """A function of ``topologies``: what it scores is the places for so many weights, not the weights."""

    def scorer(mask: Mask, batch: Batch, asked: float):
        return (
            masks.flatten(topology(model, round(asked * masks.size(mask)), generator)),
            {},
            {"events": []},
        )

    return _run(model, scorer, density, batches, **how)


# --- staged Panning -------------------------------------------------------------------------------------------------

#: (up to this sparsity, coefficients of SynFlow, SNIP, GraSP); Kang et al. 2022, their code's multi-index tables
SUM_STAGES = (
    (0.80, (0.2, 0.5, 0.3)),
    (0.90, (0.2, 0.4, 0.4)),
    (0.98, (0.2, 0.3, 0.5)),
    (0.99, (0.4, 0.2, 0.4)),
    (1.0, (0.5, 0.0, 0.5)),
)
#: exponents of the masked form, the same in every round: chosen on validation images (study 02)
POWERS = ((1.0, (1.0, 2.0, 0.0)),)
PRODUCT_STAGES = (
    (0.80, (0.3, 1.0, 0.2)),
    (0.90, (0.3, 1.0, 0.4)),
    (0.98, (0.5, 0.5, 0.6)),
    (0.99, (0.8, 0.0, 1.0)),
    (1.0, (1.0, 0.0, 1.0)),
)
#: form of Panning -> its stage table
STAGES = {"sum": SUM_STAGES, "product": PRODUCT_STAGES, "masked": POWERS}


def _by_stage(table: Sequence[tuple[float, tuple[float, ...]]]):
    """The coefficients of a stage table: a function of the sparsities asked for alone."""
    stage = 0

    def choose(asked: float, *seen) -> tuple[float, ...]:
        nonlocal stage
        if 1 - asked > table[stage][0]:  # at most one stage a round, as in the authors' code
            stage += 1
        return table[stage][1]

    return choose


def _by_policy(model: nn.Module, policy: Policy, rounds: int):
    """The coefficients that a policy chooses from what it sees of the sub-network, in the units that it was trained in."""
    departures = getattr(policy, "departures", observations.DEFAULT)
    known = policy.known(model) if hasattr(policy, "known") else []
    sight, extremes, t, scheduled = Sight(model, departures), None, 0, 0.0

    def choose(
        asked: float, mask: Mask, batch: Batch, dense: Look, synflow: Tensor
    ) -> tuple[float, ...]:
        nonlocal extremes, t, scheduled
        extremes = extremes or resampled(sight, batch, known, "extremes" in departures)
        dense = sight.seen(*dense)
        sub = sight.look(mask, batch) if t else dense
        effective = sight.effective_sparsity(mask, synflow) if t else 0.0
        observation = extremes.observe(dense, sub, effective, scheduled, t / rounds)
        t, scheduled = t + 1, 1 - asked
        return coefficients(policy(observation))

    return choose


def _panning(
    form: str,
    model: nn.Module,
    density: float,
    batches,
    *,
    generator: torch.Generator,
    options: dict,
    rounds: int,
    mix: tuple[float, float, float] | None = None,
    policy: Policy | None = None,
    **how,
):
    """Panning (Kang et al. 2022): a mix of three signed metrics that changes from round to round, by a stage table or by an agent's ``policy``.

    SNIP and GraSP are those of the *dense* network, logits / 200, so a batch that comes again costs nothing the second
    time; only SynFlow sees the mask. Masks are rebuilt from the dense weights each round, so a pruned weight can
    return. ``mix`` replaces the stage table by constant coefficients of (SynFlow, SNIP, GraSP); a metric that no stage
    uses is not computed. A metric without spread contributes zeros (a factor 1 in the product) and is named in the
    trace; the authors' code divides 0 by 0 there and returns an empty mask.

    Not the paper's but ours: with the option ``masked`` SNIP and GraSP are those of the sub-network, theta * g(theta M) and
    theta * Hg(theta M) with the dense weights theta, as in FORCE; and the form ``"masked"`` multiplies their absolute values
    and SynFlow's, each to the power of its coefficient: what is ranked is a weighted sum of logarithms.

    With a policy no round leaves a dead network, unless the option ``guard`` is false, as in the authors' code: where the mix would, SynFlow decides, and where that would too, the
    mix with one path kept whatever its scores. The trace names both. (A stage table is left to die: that is its finding.)
    """
    table = ((1.0, tuple(mix)),) if mix is not None else STAGES[form]
    masked = form == "masked" or options.get("masked", False)
    guarded = policy is not None and options.get("guard", True)
    used = [name for name, column in zip(MIXED, zip(*(row for _, row in table))) if any(column)]
    choose = _by_stage(table)
    if policy is not None:
        used, choose = list(MIXED), _by_policy(model, policy, rounds)
        count = round(density * sum(w.numel() for w in prunable(model).values()))
        if (
            guarded
            and count < len(prunable(model))
            and count < (least := masks.count(one_path(model)))
        ):
            raise UserError(
                f"density {density} keeps {count} weights and a path through this network takes {least}: none could live"
            )
    dense_mask, dense, synflow_of, flow = (
        masks.ones(model),
        {},
        metrics.synflow_of(model),
        (None, None),
    )
    draws = False  # noise of its own, such as dropout's: the same batch then has other products every time
    neutral = torch.tensor(
        0.0 if form == "sum" else 1.0, dtype=torch.double, device=next(model.parameters()).device
    )

    def of_flow(mask: Mask, batch: Batch) -> tuple[Tensor, float]:
        """SynFlow's products and R; a guarded mask has had its pass already."""
        nonlocal flow
        if flow[0] is not mask:
            flow = mask, synflow_of(mask, batch)
        return flow[1]

    def of_data(mask: Mask, batch: Batch) -> tuple[Parts, Look | None]:
        if used == ["synflow"]:
            return {}, None
        nonlocal draws
        state = generator.get_state()
        products = metrics.products(
            model, mask, batch, metrics.TEMPERATURE, hessian="grasp" in used, generator=generator
        )
        draws = draws or not torch.equal(state, generator.get_state())
        parts = {name: masks.flatten(getattr(products, name)) for name in used if name != "synflow"}
        return {name: (part, _mass(part)) for name, part in parts.items()}, Look(
            products.loss, products.gtg
        )

    def mixed(
        start: Tensor, parts: dict[str, Tensor], mix: tuple[float, ...]
    ) -> tuple[Tensor, list[str]]:
        """start + a * s + b * t + ..., or start * s^a * t^b * ..., of the normalised parts with a coefficient; and the events."""
        events = []
        for name, part in parts.items():
            if weight := mix[MIXED.index(name)]:
                if form == "masked":
                    distance, unit = part.double().abs_(), float(part.abs().max())
                else:
                    distance, unit = deviations(part)
                if not unit:
                    events.append(f"{name} has no spread")
                elif form == "sum":
                    start = torch.add(start, distance, alpha=weight / unit, out=distance)
                else:
                    start = start * distance.div_(unit).pow_(weight)
        return start, events

    def scorer(mask: Mask, batch: Batch, asked: float):
        # Of an iterator no batch is known to come again, and a sub-network is another one in every round.
        key = id(batch) if isinstance(batches, Sequence) and not masked else None
        if key is None or key not in dense or draws:
            dense[key] = of_data(mask if masked else dense_mask, batch), {}
        (parts, look), of_mix = dense[key]
        synflow = of_flow(mask, batch)[0] if "synflow" in used else None
        mix = choose(asked, mask, batch, look, synflow)
        if mix not in of_mix:
            of_mix.clear()
            of_mix[mix] = mixed(
                neutral.expand(masks.size(mask)),
                {name: part for name, (part, _) in parts.items()},
                mix,
            )
        scores, events = of_mix[mix]
        if synflow is not None:
            scores, more = mixed(scores, {"synflow": synflow}, mix)
            # In place, as nobody asks for its sign any more: other memory would not be in the cache, and takes longer than the sum.
            parts, events = (
                {"synflow": (synflow, float(synflow.abs_().sum())), **parts},
                more + events,
            )
        return scores, parts, {"mix": mix, "events": events}

    def guard(
        new: Mask, old: Mask, batch: Batch, scores: Tensor, keep: Callable[[Tensor], Mask]
    ) -> tuple[Mask, list[str]]:
        along = of_flow(old, batch)[0].abs() * masks.numbers(masks.flatten(old))
        if of_flow(new, batch)[1]:
            return new, []
        new = keep(
            torch.where(along > 0, along, scores - scores.max() - 1)
        )  # the mix still orders what SynFlow has no score for
        if of_flow(new, batch)[1]:
            return new, ["the mix would have left no path: SynFlow decided"]
        new = keep(
            scores.masked_fill(
                masks.flatten(one_path(model, None if how["revive"] else old)), torch.inf
            )
        )
        if of_flow(new, batch)[1]:
            return new, ["neither the mix nor SynFlow would have left a path: one was kept"]
        raise UserError(
            f"no mask with a path keeps {masks.count(new)} weights here; use scope 'global', allow weights to return, or a larger density"
        )

    return _run(
        model, scorer, density, batches, rounds=rounds, guard=guard if guarded else None, **how
    )


# --- names ----------------------------------------------------------------------------------------------------------


def one_shot(metric: str) -> Callable:
    """The pruner that scores the dense network once with ``metric``."""
    return partial(_with_metric, metric, rounds=1, revive=False)


MIXING = ("panning", "panning-product", "panning-masked")  #: take coefficients
AGENT = "panning-agent"  #: takes a policy
#: of Panning's forms, and their defaults
OPTIONS = {
    "panning": {"masked": False},
    "panning-product": {"masked": False},
    AGENT: {"guard": True},
}

#: name -> pruner; the iterative ones take 100 rounds, SynFlow's and Panning's published number, NTK-SAP its 20; ``prune`` also takes any other metric's
#: name, one-shot
PRUNERS = Table(
    __name__ + ".PRUNERS",
    {
        **{
            name: one_shot(name)
            for name in ("random", "magnitude", "snip", "grasp", "grasp-abs", "prospr")
        },
        "smart-ratio": partial(_with_topology, topologies.smart_ratio, rounds=1, revive=False),
        "phew": partial(_with_topology, topologies.phew, rounds=1, revive=False),
        "ntk-sap": partial(_with_metric, "ntk-sap", rounds=20, revive=False),
        "synflow": partial(_with_metric, "synflow", rounds=100, revive=False),
        "iterative-snip": partial(_with_metric, "snip", rounds=100, revive=False),
        "force": partial(_with_metric, "force", rounds=100, revive=True),
        "panning": partial(_panning, "sum", rounds=100, revive=True),
        "panning-product": partial(_panning, "product", rounds=100, revive=True),
        "panning-masked": partial(_panning, "masked", rounds=100, revive=True),
        AGENT: partial(_panning, "sum", rounds=100, revive=True),
    },
)


def rounds_of(method: str) -> int:
    """The number of rounds that a method takes by itself."""
    return (PRUNERS.get(method) or one_shot(method)).keywords["rounds"]


def options_of(method: str) -> dict[str, object]:
    """The options of a method and their defaults: those of its metric, and Panning's own."""
    if method in OPTIONS:
        return OPTIONS[method]
    pruner = PRUNERS.get(method) or one_shot(method)
    return keywords(metrics.METRICS[pruner.args[0]]) if pruner.func is _with_metric else {}


def methods() -> list[str]:
    """Every name that ``prune`` takes: ``PRUNERS``, and the metrics that are not there by name."""
    return [*PRUNERS, *(name for name in metrics.METRICS if name not in PRUNERS)]


def check_mix(mix: Sequence[float]) -> tuple[float, float, float]:
    """``mix`` if it is coefficients for Panning, else a ``UserError``."""
    if (
        not isinstance(mix, tuple | list)
        or len(mix) != len(MIXED)
        or not all(is_number(each) and each >= 0 for each in mix)
        or not any(mix)
    ):
        raise UserError(
            f"mix is {mix!r}; it needs three coefficients of at least 0, not all 0, for {', '.join(MIXED)}, such as [0.2, 0.5, 0.3]"
        )
    return tuple(mix)


def prune(
    model: nn.Module,
    method: str,
    density: float,
    batches,
    rounds: int | None = None,
    seed: int = 0,
    *,
    scope: str = "global",
    schedule: str = "exponential",
    revive: bool | None = None,
    mix: tuple[float, float, float] | None = None,
    policy: Policy | str | Path | None = None,
    options: Mapping[str, object] | None = None,
    inverted: bool = False,
    effective: bool = False,
    observe: Callable[[int, Mask, Mask, Batch], None] | None = None,
    include: Pattern | Sequence[Pattern] | None = None,
    exclude: Pattern | Sequence[Pattern] | None = None,
    floor: float | Mapping[str, float] = 0.0,
) -> tuple[Mask, list[dict]]:
    """Find a mask before training. ``model`` is only read; nothing about it or the global random state changes.

    Args:
        method: a name of ``methods()``.
        density: fraction kept of all prunable weights, those of layers that stay whole among them;
            the mask has exactly round(density * N) weights.
        batches: one batch (x, y), a list of batches used in turn, an iterator that gives a fresh
            one each round, or a ``DataLoader`` of such pairs, used epoch after epoch and, where it
            shuffles, by ``seed``.
        rounds: of scoring and pruning; None is the method's own number.
        seed: of the noise of a metric that draws some.
        scope: a key of ``masks.SCOPES``; ``keep_top`` describes them.
        schedule: ``"exponential"``, density^(t/rounds), or ``"linear"``.
        revive: whether a pruned weight may return; None is the method's own way. A weight returns only if its metric
            gives pruned weights a score: FORCE and Panning do, Iterative SNIP and SynFlow give them 0.
        mix: constant coefficients of (SynFlow, SNIP, GraSP) instead of Panning's stage table.
        policy: of ``"panning-agent"``: a name or a file for ``policies.load``, or any function of an observation; None is the one that comes
            with the package.
        options: of the method's metric, by name; ``options_of`` gives them and their defaults.
        inverted: control, keep the lowest scores.
        effective: ``density`` counts effective weights: the last round keeps as many of the best as leave at most so many, and those alone.
        observe: called after each round with (round, mask before, mask after, batch).
        include: patterns of ``layers``: only these layers are pruned, all others stay whole.
        exclude: these stay whole, such as ``["first", "last"]``.
        floor: fraction that every layer keeps at least, or a dict of one for each pattern.

    Returns:
        The mask, and the trace: a dict for each round with the sparsity asked for and reached, the
        effective sparsity (None where paths can not be followed),
        every layer's density, how many weights were removed and revived, the mass (sum of absolute scores) of each metric
        used on kept and on removed weights, the coefficients of a mix, and events.

    Raises:
        UserError: an unknown name, a density that keeps nothing, less than whole layers and floors
            take or, for the agent and PHEW, less than a path; rounds below 1, a mix, a policy or an
            option where there is none, a pattern without a layer.
    """
    if method not in methods():
        raise unknown("pruner", method, methods())
    pruner = PRUNERS.get(method) or one_shot(method)
    fraction_kept(density)
    total = sum(w.numel() for w in prunable(model).values())
    if round(density * total) < 1:
        raise UserError(
            f"density {density} keeps none of {total:,} weights; the least is {1 / total:.1e}"
        )
    if (least := layers.limits(model, include, exclude, floor)) is not None:
        layers.check_room(least, density, total)
        if effective:
            raise UserError(
                "effective keeps only what lies on a path, so no layer stays whole and no floor "
                "holds; leave out effective, or include, exclude and floor"
            )
    whole("rounds", 1 if rounds is None else rounds, 1)
    whole("seed", seed)
    if dense := graph.outside(model):
        warnings.warn(
            f"density {density} is of {total:,} weights; outside and never pruned are "
            f"{', '.join(f'{count:,} of {kind}' for kind, count in dense.items())}: "
            "model.also_prunable, a tuple of kinds of module, takes them in",
            stacklevel=2,
        )
    how = {
        key: value
        for key, value in {"rounds": rounds, "revive": revive}.items()
        if value is not None
    }
    if isinstance(batches, DataLoader):
        batches = data.loader_batches(batches, seed)
    if mix is not None:
        if method not in MIXING:
            raise UserError(f"a mix belongs to {' or '.join(MIXING)}, not to {method}")
        how["mix"] = check_mix(mix)
    if policy is not None and method != AGENT:
        raise UserError(f"a policy belongs to {AGENT}, not to {method}")
    if method == AGENT:
        policy = policies.SHIPPED if policy is None else policy
        how["policy"] = policy if callable(policy) else policies.load(policy)
    return pruner(
        model,
        density,
        batches,
        generator=torch.Generator().manual_seed(seed),
        options=settle(method, options_of(method), options or {}),
        scope=scope,
        schedule=schedule,
        inverted=inverted,
        observe=observe,
        effective=effective,
        least=least,
        **how,
    )
