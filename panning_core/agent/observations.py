"""What the staged schedule and the agent of Panning share: three metrics added up, and what an
agent sees (Kang et al. 2022).

An agent sees seven numbers after every round, and each round earns a reward; both follow from the
loss and the gradient flow gTg of the dense and of the sub-network on the same batch (logits / 200,
train mode), and from how much is pruned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import masks, metrics, sparse
from ..errors import UserError, shown
from ..inspection import faithful
from ..masks import Mask
from ..metrics import TEMPERATURE, Batch
from ..models import uses
from ..pruning import Paths

MIXED = ("synflow", "snip", "grasp")  #: the order of coefficients and actions
OBSERVED = (
    "dense loss",
    "dense gtg",
    "r_loss",
    "r_gtg",
    "effective sparsity",
    "scheduled sparsity",
    "progress",
)
#: how an environment may depart from the authors'; ``python -m benchmarks --only fixes`` measures
#: what each does
DEPARTURES = {
    "end": "the last round truncates an episode; theirs terminates it",
    "extremes": "units are those of a fixed pool of dense batches; theirs grow with every look at "
    "a dense or sub-network",
    "kept": "gTg of a sub-network is over its kept weights; theirs over all prunable ones",
    "loss": "the loss is a float64; theirs a float32, whose steps are coarse against the "
    "differences that are observed",
    "shares": "three coefficients of 0 mean equal shares; theirs tie all weights and keep the "
    "first ones in order, which kills the network",
}
DEFAULT = ("end", "loss", "shares")  #: what an agent sees and earns is the authors'
FIRST = tuple(
    DEPARTURES
)  #: of the policy general-1 and of all else that was recorded before departures had names
WARM_UP = 10  #: dense batches whose extremes are the units of loss and gTg
#: share of the multiply-adds that survive under which the sparse engine looks at a sub-network, its
#: construction included
SPARSE_BELOW = 0.75


def deviations(scores: Tensor) -> tuple[Tensor, float]:
    """|s - mean| of a vector, and the standard deviation as their unit (unbiased, float64); 0 if
    there is no finite spread.
    """
    mean = scores.mean(dtype=torch.double)
    centred = scores.to(torch.double, copy=True).sub_(mean)
    unit = (float(centred @ centred) / max(len(scores) - 1, 1)) ** 0.5
    return centred.abs_(), unit if unit < torch.inf else 0.0


def coefficients(action: np.ndarray) -> tuple[float, ...]:
    """Of ``MIXED``: action + 1, each in [0, 2]. Three zeros would tie all weights, and the first
    ones in order would stay: they mean equal shares.
    """
    try:
        numbers = np.asarray(action, dtype=float)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (len(MIXED),) or not np.isfinite(numbers).all():
        raise UserError(f"a policy answers with three numbers in [-1, 1], not {shown(action)}")
    found = tuple((np.clip(numbers, -1, 1) + 1).tolist())
    return found if any(found) else (1.0, 1.0, 1.0)


class Look(NamedTuple):
    """What a network does on a batch."""

    loss: float  #: cross-entropy of logits / 200, float64
    gtg: float  #: squared norm of its gradient with respect to the kept weights, or to all


class Sight(Paths):
    """Looks at the sub-networks theta * M of one network; its weights are not to change meanwhile.
    ``departures`` as in ``DEPARTURES``.
    """

    def __init__(self, model: nn.Module, departures: Collection[str] = FIRST):
        super().__init__(model)
        self.kept_only, self.exact = "kept" in departures, "loss" in departures
        self._stands_in: bool | None = (
            None  # whether the sparse engine does what the network itself does, once that was asked
        )

    @cached_property
    def _times(self) -> dict[str, float] | None:
        """How often each weight is used, None where the sparse engine can not look."""
        like = next(self.model.parameters())
        fits = (
            like.device.type == "cpu"
            and like.dtype == torch.float32
            and sparse.unsupported(self.model) is None
        )
        return uses(self.model) if fits else None

    def _is_sparse(self, mask: Mask) -> bool:
        times = self._times
        return times is not None and (
            sum(times[name] * masks.count({name: m}) for name, m in mask.items())
            < SPARSE_BELOW * sum(times[name] * m.numel() for name, m in mask.items())
        )

    def look(self, mask: Mask, batch: Batch) -> Look:
        """The sub-network on a batch. The loss is that of float32 logits in float64: batches differ
        by 1e-5, fifty steps of a float32.
        """
        x, y = batch
        usable = self.kept_only and self._stands_in is not False and self._is_sparse(mask)
        net = sparse.SparseNet(self.model, mask) if usable else None
        if net and self._stands_in is None:
            self._stands_in = faithful.departure(self.model, mask, x, y, net.answer) is None
        if net and self._stands_in:
            logits, gtg = net.flow(net.pixels(x), y, TEMPERATURE)
        else:
            logits, gtg = metrics.gradient_flow(
                self.model, mask, batch, TEMPERATURE, self.kept_only
            )
        return self.seen(float(nn.functional.cross_entropy(logits.double() / TEMPERATURE, y)), gtg)

    def seen(self, loss: float, gtg: float) -> Look:
        """A look with its loss in the precision of this sight."""
        return Look(loss if self.exact else float(np.float32(loss)), gtg)


class Extremes:
    """The least and the largest loss and gTg that were seen; their distance is the unit of what an
    agent sees.

    As in the authors' code they take in every look at a dense or a sub-network, so that the unit
    never stops growing, unless ``fixed``.
    """

    def __init__(self, looks: Iterable[Look], fixed: bool = True):
        looks, self.fixed = list(looks), fixed
        self.low, self.high = Look(*map(min, zip(*looks))), Look(*map(max, zip(*looks)))

    def observe(
        self, dense: Look, sub: Look, effective: float, scheduled: float, progress: float
    ) -> np.ndarray:
        """What an agent sees [7], in the order of ``OBSERVED``: numbers of at most 1, but where
        fixed extremes are left.
        """
        if not self.fixed:
            self.low, self.high = (
                Look(*map(min, self.low, dense, sub)),
                Look(*map(max, self.high, dense, sub)),
            )
        loss, gtg = (
            (high - low) or 1.0 for low, high in zip(self.low, self.high)
        )  # one image has no spread
        return np.array(
            [
                (dense.loss - self.low.loss) / loss,
                (dense.gtg - self.low.gtg) / gtg,
                abs(sub.loss - dense.loss) / loss,
                abs(sub.gtg - dense.gtg) / gtg / 5,
                effective,
                scheduled,
                progress,
            ]
        )


def resampled(
    sight: Sight, batch: Batch, known: Iterable[Look] = (), fixed: bool = True
) -> Extremes:
    """Extremes where one batch is all there is: of as many batches drawn from its images with
    replacement, always the same ones, and of what is known.

    As many of each class as before: batches that are not balanced differ several times as much, and
    an agent has learned in the other unit.
    """
    generator, (x, y) = torch.Generator().manual_seed(0), batch
    classes = [(y == label).nonzero().flatten() for label in y.unique()]
    looks = []
    for _ in range(WARM_UP):
        draw = torch.cat(
            [
                members[
                    torch.randint(len(members), (len(members),), generator=generator).to(y.device)
                ]
                for members in classes
            ]
        )
        looks.append(sight.look(masks.ones(sight.model), (x[draw], y[draw])))
    return Extremes([*known, *looks], fixed)


def reward(observation: np.ndarray) -> float:
    """-100 |scheduled - effective sparsity| - r_loss - r_gtg."""
    _, _, loss, gtg, effective, scheduled, _ = observation
    return float(-100 * abs(scheduled - effective) - loss - gtg)


class Rewards(list[float]):
    """An observer for ``pruning.prune``: what the agent's environment would pay in each round for
    the masks of any pruner.

    It looks at the masks on batches of its own. A network without a path costs a point for every
    round left, and nothing follows.

    Args:
        batches: gives the batches; the first ``WARM_UP`` of them are used in turn.
        density: the fraction kept in the end; scheduled is density^(t / rounds) after round t.
        rounds: of the pruner.
        departures: of the environment, as in ``DEPARTURES``.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterator[Batch],
        density: float,
        rounds: int,
        departures: Collection[str] = FIRST,
    ):
        super().__init__()
        self.sight, self.density, self.rounds = Sight(model, departures), density, rounds
        self.batches = [next(batches) for _ in range(WARM_UP)]
        self.looks = [self.sight.look(masks.ones(model), batch) for batch in self.batches]
        self.extremes, self.over = Extremes(self.looks, "extremes" in departures), False

    def __call__(self, t: int, old: Mask, new: Mask, batch: Batch) -> None:
        if self.over:
            return
        effective = self.sight.effective_sparsity(new)
        sub = self.sight.look(new, self.batches[t % WARM_UP])
        observation = self.extremes.observe(
            self.looks[t % WARM_UP],
            sub,
            effective,
            1 - self.density ** (t / self.rounds),
            t / self.rounds,
        )
        self.over = effective == 1
        self.append(reward(observation) - (self.rounds - (t - 1) if self.over else 0))
