"""Panning: three metrics are mixed, and the mix changes from round to round (Kang et al. 2022).

Gold panners shake the pan one way and then another until the light sand is gone; Panning prunes in
many small rounds, and each round weighs three metrics differently. A round, after which
density^(t / 100) of the weights are left, is

1. **score**: SNIP theta * g and GraSP theta * Hg of the *dense* network on a batch, logits / 200,
   and SynFlow theta * dR/d|theta| of the *sub-network*; all three are signed products with the
   dense weights theta;
2. **normalise** each over all weights together: |s - mean(s)| / std(s);
3. **mix** them: a * SynFlow + b * SNIP + c * GraSP, or the product SynFlow^a * SNIP^b * GraSP^c;
4. **keep** the largest of *all* weights, those of earlier rounds and those that were removed.

(a, b, c) comes from a table of stages, by the sparsity that the round asks for (``staged_sum``,
``staged_product``), or from a trained agent that looks at the sub-network (``agent``). Stages,
normalisation and temperature are those of the authors' code. Where it divides 0 by 0, for a metric
without spread, and returns an empty mask, such a metric contributes nothing here and the trace
names it.

Not the paper's but ours are the *masked* forms: SNIP and GraSP are those of the sub-network,
theta * g(theta M) with the dense theta, as in FORCE (``masked_product``, the option ``masked``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import masks, metrics
from ..agent import observations, policies
from ..agent.observations import (
    MIXED,
    Extremes,
    Look,
    Sight,
    coefficients,
    deviations,
    resampled,
)
from ..agent.policies import Policy
from ..errors import UserError, is_number
from ..masks import Mask
from ..metrics import TEMPERATURE, Batch
from ..models import input_shape, prunable
from ..pruning import Batches, Rounds, Scored, in_rounds, mass_of

Mix = tuple[float, ...]  #: coefficients of (SynFlow, SNIP, GraSP)
Stage = tuple[float, Mix]  #: up to this sparsity, this mix

# --- which mix: stages --------------------------------------------------------------------------

SUM_STAGES: tuple[Stage, ...] = (
    (0.80, (0.2, 0.5, 0.3)),
    (0.90, (0.2, 0.4, 0.4)),
    (0.98, (0.2, 0.3, 0.5)),
    (0.99, (0.4, 0.2, 0.4)),
    (1.0, (0.5, 0.0, 0.5)),
)
PRODUCT_STAGES: tuple[Stage, ...] = (
    (0.80, (0.3, 1.0, 0.2)),
    (0.90, (0.3, 1.0, 0.4)),
    (0.98, (0.5, 0.5, 0.6)),
    (0.99, (0.8, 0.0, 1.0)),
    (1.0, (1.0, 0.0, 1.0)),
)
#: exponents of the masked form, the same in every round: chosen on validation images (study 02)
POWERS: tuple[Stage, ...] = ((1.0, (1.0, 2.0, 0.0)),)


class Stages:
    """The mix of a stage table, by nothing but the sparsity that a round asks for."""

    def __init__(self, table: Sequence[Stage]):
        self.table, self.stage = table, 0
        columns = zip(*(mix for _, mix in table))
        self.used = [name for name, column in zip(MIXED, columns) if any(column)]

    def __call__(self, asked: float, *seen) -> Mix:
        # At most one stage a round, as in the authors' code.
        if 1 - asked > self.table[self.stage][0]:
            self.stage += 1
        return self.table[self.stage][1]


def check_mix(mix: Sequence[float]) -> Mix:
    """``mix`` if it is coefficients for Panning, else a ``UserError``."""
    if (
        not isinstance(mix, tuple | list)
        or len(mix) != len(MIXED)
        or not all(is_number(each) and each >= 0 for each in mix)
        or not any(mix)
    ):
        raise UserError(
            f"mix is {mix!r}; it needs three coefficients of at least 0, not all 0, for "
            f"{', '.join(MIXED)}, such as [0.2, 0.5, 0.3]"
        )
    return tuple(mix)


# --- which mix: an agent ------------------------------------------------------------------------


class Chosen:
    """The mix that a policy chooses from what it sees of the sub-network, in the units that it was
    trained in (the paper's agent; ``observations`` describes the seven numbers)."""

    used = list(MIXED)

    def __init__(self, model: nn.Module, policy: Policy, rounds: int):
        self.policy, self.rounds = policy, rounds
        self.departures = getattr(policy, "departures", observations.DEFAULT)
        self.known = policy.known(model) if hasattr(policy, "known") else []
        self.sight, self.t, self.scheduled = Sight(model, self.departures), 0, 0.0
        self.extremes: Extremes | None = None

    def __call__(
        self, asked: float, mask: Mask, batch: Batch, dense: Look | None, synflow: Tensor | None
    ) -> Mix:
        # It uses all three metrics, and so the batch was looked at.
        assert dense is not None
        if self.extremes is None:
            fixed = "extremes" in self.departures
            self.extremes = resampled(self.sight, batch, self.known, fixed)
        dense = self.sight.seen(*dense)
        sub = self.sight.look(mask, batch) if self.t else dense
        effective = self.sight.effective_sparsity(mask, synflow) if self.t else 0.0
        observation = self.extremes.observe(
            dense, sub, effective, self.scheduled, self.t / self.rounds
        )
        self.t, self.scheduled = self.t + 1, 1 - asked
        return coefficients(self.policy(observation))


# --- how three metrics become one score ---------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How the mix is made.

    Attributes:
        stages: the coefficients that belong to it.
        neutral: the score before a metric has come in.
        normalise: a metric's scores -> float64 of its own, and their unit, 0 where all are equal.
        mix: (score, normalised, unit, coefficient) -> score; it may use the memory of the second.
    """

    stages: tuple[Stage, ...]
    neutral: float
    normalise: Callable[[Tensor], tuple[Tensor, float]]
    mix: Callable[[Tensor, Tensor, float, float], Tensor]


def _sizes(scores: Tensor) -> tuple[Tensor, float]:
    """|s|, and the largest as their unit."""
    return scores.to(torch.double, copy=True).abs_(), float(scores.abs().max())


def _sum(score: Tensor, part: Tensor, unit: float, weight: float) -> Tensor:
    return torch.add(score, part, alpha=weight / unit, out=part)


def _product(score: Tensor, part: Tensor, unit: float, weight: float) -> Tensor:
    return score * part.div_(unit).pow_(weight)


SUM = Form(SUM_STAGES, 0.0, deviations, _sum)
PRODUCT = Form(PRODUCT_STAGES, 1.0, deviations, _product)
#: ours: what is ranked is a weighted sum of logarithms, as a product of plain absolute scores
MASKED = Form(POWERS, 1.0, _sizes, _product)


@dataclass
class _Seen:
    """What a batch showed: scores of SNIP and GraSP, how the network did, and the last mix."""

    parts: dict[str, tuple[Tensor, float]]
    look: Look | None
    mixed: dict[Mix, tuple[Tensor, list[str]]] = field(default_factory=dict)


class Panner:
    """Scores for ``pruning.in_rounds``: steps 1 to 3 of a round.

    SNIP and GraSP of the dense network depend on the batch alone, so one that comes again costs
    nothing the second time. A metric that no stage uses is not computed.

    Args:
        choose: the mix of a round, a ``Stages`` or a ``Chosen``.
        seed: of noise that the network itself draws, such as dropout's.
        masked: SNIP and GraSP are those of the sub-network.
    """

    def __init__(
        self,
        model: nn.Module,
        form: Form,
        choose: Stages | Chosen,
        batches: Batches,
        seed: int,
        masked: bool = False,
    ):
        self.model, self.form, self.choose, self.masked = model, form, choose, masked
        self.dense = masks.ones(model)
        self.generator = torch.Generator().manual_seed(seed)
        # Of an iterator no batch is known to come again, and every round has another sub-network.
        self.remembers = isinstance(batches, Sequence) and not masked
        self.seen: dict[int | None, _Seen] = {}
        # With noise of its own, such as dropout's, one batch has other products every time.
        self.draws = False
        self.synflow_of = metrics.synflow_of(model)
        neutral = torch.tensor(
            form.neutral, dtype=torch.double, device=next(model.parameters()).device
        )
        self.neutral = neutral.expand(masks.size(self.dense))
        # The mask that SynFlow saw last, its products and R.
        self.flow: tuple[Mask | None, tuple[Tensor, float]] = (None, (self.neutral, 0.0))

    def __call__(self, mask: Mask, batch: Batch, asked: float) -> Scored:
        seen = self._look(mask, batch)
        synflow = self.carried(mask, batch)[0] if "synflow" in self.choose.used else None
        mix = self.choose(asked, mask, batch, seen.look, synflow)
        if mix not in seen.mixed:
            seen.mixed.clear()  # before another takes as much memory
            of_data = {name: scores for name, (scores, _) in seen.parts.items()}
            seen.mixed[mix] = self._mixed(self.neutral, of_data, mix)
        scores, events = seen.mixed[mix]
        parts = seen.parts
        if synflow is not None:
            scores, more = self._mixed(scores, {"synflow": synflow}, mix)
            # In place, as nobody asks for its sign any more: other memory would not be in the
            # cache, and takes longer than the sum.
            parts = {"synflow": (synflow, float(synflow.abs_().sum())), **parts}
            events = more + events
        return Scored(scores, parts, list(events), {"mix": mix})

    def _look(self, mask: Mask, batch: Batch) -> _Seen:
        """SNIP and GraSP on a batch."""
        key = id(batch) if self.remembers else None
        if key is None or key not in self.seen or self.draws:
            self.seen[key] = self._look_again(mask if self.masked else self.dense, batch)
        return self.seen[key]

    def _look_again(self, mask: Mask, batch: Batch) -> _Seen:
        of_data = [name for name in self.choose.used if name != "synflow"]
        if not of_data:
            return _Seen({}, None)
        state = self.generator.get_state()
        products = metrics.products(
            self.model,
            mask,
            batch,
            TEMPERATURE,
            hessian="grasp" in of_data,
            generator=self.generator,
        )
        self.draws = self.draws or not torch.equal(state, self.generator.get_state())
        scores = {name: masks.flatten(getattr(products, name)) for name in of_data}
        parts = {name: (part, mass_of(part)) for name, part in scores.items()}
        return _Seen(parts, Look(products.loss, products.gtg))

    def carried(self, mask: Mask, batch: Batch) -> tuple[Tensor, float]:
        """SynFlow's products and R, which is 0 for a dead network; a mask that was just asked about
        has had its pass already."""
        if self.flow[0] is not mask:
            self.flow = None, (self.neutral, 0.0)  # makes room for the next
            self.flow = mask, self.synflow_of(mask, batch)
        return self.flow[1]

    def _mixed(self, score: Tensor, parts: dict[str, Tensor], mix: Mix) -> tuple[Tensor, list[str]]:
        """``score`` with these metrics mixed in; and the events."""
        events = []
        for name, part in parts.items():
            if weight := mix[MIXED.index(name)]:
                normalised, unit = self.form.normalise(part)
                if unit:
                    score = self.form.mix(score, normalised, unit, weight)
                else:
                    events.append(f"{name} has no spread")
        return score, events


# --- the methods --------------------------------------------------------------------------------


def _by_stages(
    form: Form,
    model: nn.Module,
    batches: Batches,
    density: float,
    seed: int,
    how: Rounds,
    mix: Mix | None,
    masked: bool,
) -> tuple[Mask, list[dict]]:
    choose = Stages(form.stages if mix is None else ((1.0, check_mix(mix)),))
    panner = Panner(model, form, choose, batches, seed, masked)
    return in_rounds(model, panner, density, batches, how)


def staged_sum(
    model: nn.Module,
    batches: Batches,
    density: float,
    seed: int,
    how: Rounds,
    mix: Mix | None = None,
    *,
    masked: bool = False,
) -> tuple[Mask, list[dict]]:
    """a * SynFlow + b * SNIP + c * GraSP by ``SUM_STAGES``, or with a constant ``mix``.

    A network that dies on the way is left dead: that is a finding about the table.
    """
    return _by_stages(SUM, model, batches, density, seed, how, mix, masked)


def staged_product(
    model: nn.Module,
    batches: Batches,
    density: float,
    seed: int,
    how: Rounds,
    mix: Mix | None = None,
    *,
    masked: bool = False,
) -> tuple[Mask, list[dict]]:
    """SynFlow^a * SNIP^b * GraSP^c by ``PRODUCT_STAGES``, or with a constant ``mix``."""
    return _by_stages(PRODUCT, model, batches, density, seed, how, mix, masked)


def masked_product(
    model: nn.Module,
    batches: Batches,
    density: float,
    seed: int,
    how: Rounds,
    mix: Mix | None = None,
) -> tuple[Mask, list[dict]]:
    """Ours: |SynFlow|^a * |SNIP|^b * |GraSP|^c of the sub-network, by ``POWERS``."""
    return _by_stages(MASKED, model, batches, density, seed, how, mix, True)


def agent(
    model: nn.Module,
    batches: Batches,
    density: float,
    seed: int,
    how: Rounds,
    policy: Policy | str | Path | None = None,
    *,
    guard: bool = True,
) -> tuple[Mask, list[dict]]:
    """The sum, with the coefficients that ``policy`` chooses in every round.

    Args:
        policy: a name or a file for ``policies.load``, or any function of an observation; None is
            the one that comes with the package.
        guard: no round leaves a dead network, see ``Guarded``; the authors' code has none.

    Raises:
        UserError: with a guard, ``density`` keeps fewer weights than a path has.
    """
    policy = policies.SHIPPED if policy is None else policy
    policy = policy if callable(policy) else policies.load(policy)
    if guard:
        _check_room(model, density)
    panner = Panner(model, SUM, Chosen(model, policy, how.count), batches, seed)
    keep_alive = Guarded(panner, how.revive) if guard else None
    return in_rounds(model, panner, density, batches, how, keep_alive)


# --- no dead network ----------------------------------------------------------------------------


class Guarded:
    """A guard for ``pruning.in_rounds``, ours: where a mix would leave no path, SynFlow decides,
    and where that would leave none either, the mix does with one path kept whatever its scores."""

    def __init__(self, panner: Panner, revive: bool):
        self.panner, self.revive = panner, revive

    def __call__(
        self, new: Mask, old: Mask, batch: Batch, scores: Tensor, keep: Callable[[Tensor], Mask]
    ) -> tuple[Mask, list[str]]:
        carried = partial(self.panner.carried, batch=batch)
        along = carried(old)[0].abs() * masks.numbers(masks.flatten(old))
        if carried(new)[1]:
            return new, []
        # The mix still orders what SynFlow has no score for.
        new = keep(torch.where(along > 0, along, scores - scores.max() - 1))
        if carried(new)[1]:
            return new, ["the mix would have left no path: SynFlow decided"]
        path = masks.flatten(one_path(self.panner.model, None if self.revive else old))
        new = keep(scores.masked_fill(path, torch.inf))
        if carried(new)[1]:
            return new, ["neither the mix nor SynFlow would have left a path: one was kept"]
        raise UserError(
            f"no mask with a path keeps {masks.count(new)} weights here; use scope 'global', allow "
            "weights to return, or a larger density"
        )


def _check_room(model: nn.Module, density: float) -> None:
    """Raise a ``UserError`` for a density that keeps less than one path."""
    weights = prunable(model)
    count = round(density * sum(w.numel() for w in weights.values()))
    if count < len(weights) and count < (least := masks.count(one_path(model))):
        raise UserError(
            f"density {density} keeps {count} weights and a path through this network takes "
            f"{least}: none could live"
        )


def one_path(model: nn.Module, mask: Mask | None = None) -> Mask:
    """The fewest of the kept weights that lead from an input to an output, each the one that
    carries most of SynFlow's R among its layer's.

    Layer by layer: if paths remain without the layer, as past the convolutions of a residual block,
    it keeps nothing, and one weight otherwise.

    Raises:
        UserError: there is no path to begin with.
    """
    flow, path = metrics.synflow_of(model), dict(mask or masks.ones(model))
    device = next(model.parameters()).device
    # No image and no label: SynFlow asks for the shape alone.
    shape = torch.empty((1, *input_shape(model)), device=device), torch.empty(0)
    for name in path:
        products, total = flow(path, shape)
        if not total:
            raise UserError(
                "no path leads from the input to the output of this network; a whole layer of its "
                "weights is pruned or 0"
            )
        best = (masks.unflatten(products, path)[name].abs() * masks.numbers(path[name])).argmax()
        path[name] = torch.zeros_like(path[name])
        if not flow(path, shape)[1]:
            path[name].view(-1)[best] = True
    return path
