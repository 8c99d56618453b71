"""What a pruning run can record besides: one named object for each, in ``RECORDERS``.

A recorder is made before the pruning; where it watches, it is called after each round as
``pruning.prune``'s ``observe`` is. Afterwards it gives its part of the ledger line's ``metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import nn

from ..agent import observations, policies
from ..analysis import networks, transfer
from ..metrics import Batch
from .base import short

if TYPE_CHECKING:
    from .prune import Pruned, Run

#: seed -> batches that no pruner sees
Batches = Callable[[int], Iterator[Batch]]


class Recorder:
    """What a run records; by itself it watches nothing."""

    def __init__(self, run: Run, model: nn.Module, batches: Batches):
        self.run = run

    def __call__(self, *seen) -> None:
        """After a round: (round, mask before, mask after, batch)."""

    def metrics(self, pruned: Pruned) -> dict:
        raise NotImplementedError


class Network(Recorder):
    """The trained network, as ``networks.describe`` writes it."""

    def metrics(self, pruned: Pruned) -> dict:
        run = pruned.run
        return {
            "network": networks.describe(pruned.model, pruned.live, run.model, run.dataset),
        }


class Returns(Recorder):
    """What the agent's environment pays for the masks of every round."""

    def __init__(self, run: Run, model: nn.Module, batches: Batches):
        super().__init__(run, model, batches)
        departures = observations.DEFAULT if run.returns == "authors" else observations.FIRST
        rounds = run.rounds or run.record().rounds
        self.rewards = observations.Rewards(
            model, batches(30_000), 1 - run.sparsity, rounds, departures
        )

    def __call__(self, *seen) -> None:
        self.rewards(*seen)

    def metrics(self, pruned: Pruned) -> dict:
        return {
            "return": short(sum(self.rewards)),
            "rewards": [short(value) for value in self.rewards],
        }


class Policy(Recorder):
    """Which mixes the agent chose, and which agent it was."""

    def metrics(self, pruned: Pruned) -> dict:
        policy = self.run.policy
        return {
            "mixes": [[short(value) for value in row["mix"]] for row in pruned.trace],
            "policy_digest": None if policy == "random" else policies.load(policy).digest(),
        }


class Transfer(Recorder):
    """The expressive force transfer of every round."""

    def __init__(self, run: Run, model: nn.Module, batches: Batches):
        super().__init__(run, model, batches)
        self.meter = transfer.Transfer(model, next(batches(10_000)))

    def __call__(self, *seen) -> None:
        self.meter(*seen)

    def metrics(self, pruned: Pruned) -> dict:
        follow = self.meter.follow
        return {
            "transfer": [_short(row) for row in self.meter.whole()],
            "follow": {
                "sparsity_now": [0.0, *(short(row["sparsity"]) for row in pruned.trace)],
                **{column: [short(row[column]) for row in follow] for column in follow[0]},
            },
            "transfer_rounds": _columns(
                [row for row in self.meter.rows if row["layer"] == "total"]
            ),
        }


#: field of a run -> what it records where that is set
RECORDERS: dict[str, type[Recorder]] = {
    "network": Network,
    "returns": Returns,
    "policy": Policy,
    "transfer": Transfer,
}


def of(run: Run, model: nn.Module, batches: Batches) -> list[Recorder]:
    """The recorders that ``run`` asks for."""
    wanted = (recorder for field, recorder in RECORDERS.items() if getattr(run, field))
    return [recorder(run, model, batches) for recorder in wanted]


def _short(row: dict) -> dict:
    return {k: short(v) if isinstance(v, float) else v for k, v in row.items()}


def _columns(rows: list[dict]) -> dict[str, list]:
    """Transfer rows of the whole network as {"metric/part": [a value a round]}."""
    columns: dict[str, list] = {}
    for row in rows:
        for part in transfer.PARTS:
            columns.setdefault(f"{row['metric']}/{part}", []).append(short(row[part]))
    return columns
