"""Trainings of panning agents: the result is a policy, a file that pruning runs name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tqdm import tqdm

from .. import data
from ..agent import learning, observations
from ..errors import UserError
from . import base


@dataclass(frozen=True)
class Agent(learning.Training, base.Run):
    """One training of one agent. Its policy lies in the folder ``policies`` of the study.

    An interrupted training goes on from its last checkpoint.
    """

    kind: ClassVar[str] = "agent"
    needs: ClassVar[tuple[str, ...]] = ("gymnasium", "stable_baselines3")

    @classmethod
    def recorded(cls, run: dict) -> Agent:
        return cls(**{"departures": observations.FIRST, **run})

    @classmethod
    def prepare(cls, runs: Sequence[Agent]) -> None:
        for dataset, normalisation in {
            (network.partition("/")[2], run.normalisation)
            for run in runs
            for network in run.networks
        }:
            data.load(dataset, normalisation)

    def files(self, folder: Path) -> list[Path]:
        return [folder / "policies" / f"{self.name()}.npz"]

    def clean(self, folder: Path) -> None:
        learning.checkpoint(self, folder / "policies").unlink(missing_ok=True)

    def execute(self, context: base.Context) -> dict:
        if context.folder is None:
            raise UserError(
                "an agent leaves its policy beside a ledger; name it in the profile of a study"
            )
        (policy,) = self.files(context.folder)
        policy.parent.mkdir(parents=True, exist_ok=True)
        every = 0.5 if sys.stderr.isatty() else 60
        with tqdm(total=self.steps, desc=self.name(), unit="step", mininterval=every) as bar:
            actor, told = learning.learn(
                self, policy.parent, lambda steps: bar.update(steps - bar.n)
            )
        actor.save(policy)
        columns = ("steps", "sparsity", "return", "effective_sparsity", "rounds")
        return {
            "policy": self.name(),
            "digest": actor.digest(),
            "episodes": {
                name: [base.short(value) for value in column]
                for name, column in zip(columns, zip(*told["episodes"]))
            },
            "evaluations": told["evaluations"],
            "learn_seconds": round(told["seconds"], 3),
        }
