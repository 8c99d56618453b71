"""The agent's environment: steps a second against a straightforward implementation, and what its
differences to the authors' code do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from panning_core import masks, metrics
from panning_core.agent import learning, observations
from panning_core.agent.environment import PanningEnv, episode
from panning_core.inspection import threads
from panning_core.metrics import Batch

from . import straightforward
from .timing import PRODUCT_FLOPS, interleave, matrix_product, ratio
from .train import build, images

TARGET = 0.99
ROUNDS = 100
MEASURED = 5  #: rounds of the straightforward environment that are run; each costs the same


class Straightforward:
    """The environment as public code has it: in every step everything about the dense and the
    sub-network is computed anew.
    """

    def __init__(self, model: nn.Module, batches: list[Batch]):
        self.model, self.double, self.batches = model, straightforward.linear_copy(model), batches
        self.mask = masks.ones(model)
        self.look(0)

    def look(self, t: int) -> tuple[float, ...]:
        """Scores on batch t, and loss and gTg of the dense and of the sub-network, the effective
        sparsity.
        """
        batch = self.batches[t % len(self.batches)]
        snip, grasp, loss, gtg = straightforward.data_products(
            self.model, batch, metrics.TEMPERATURE
        )
        synflow = straightforward.synflow_products(self.model, self.double, self.mask, batch)
        self.scores = [straightforward.normalise(scores) for scores in (synflow, snip, grasp)]
        effective = 1 - sum(
            int(((s != 0) & self.mask[name]).sum()) for name, s in synflow.items()
        ) / masks.size(self.mask)
        weights = {
            name: (w * self.mask[name]).detach().requires_grad_()
            for name, w in self.model.named_parameters()
            if name in self.mask
        }
        sub = nn.functional.cross_entropy(
            torch.func.functional_call(self.model, weights, batch[0]) / metrics.TEMPERATURE,
            batch[1],
        )
        gradient = torch.autograd.grad(sub, list(weights.values()))
        return loss, gtg, sub.item(), sum(g.square().sum() for g in gradient).item(), effective

    def step(self, action: np.ndarray, t: int, density: float) -> tuple[float, ...]:
        mix = action + 1
        scores = {
            name: sum(float(c) * s[name] for c, s in zip(mix, self.scores)) for name in self.mask
        }
        self.mask = straightforward.select(scores, density)
        return self.look(t)


def speed(quick: bool) -> pd.DataFrame:
    """One row a network: milliseconds a step, over a whole episode of ours and ``MEASURED`` of its
    steps of the straightforward environment. Of ours, what the look at the sub-network takes, whose
    gradient is over all weights as the authors'; at the speed of a matrix product, 6 operations a
    multiply-add; and the ratio if it took no more.
    """
    rows = []
    for name in ("lenet5",) if quick else ("lenet300", "lenet5"):
        split, model, action = (
            images((1, 28, 28)),
            build(name),
            np.zeros(len(observations.MIXED), np.float32),
        )
        env = PanningEnv(lambda draw: (model, split))
        env.reset(seed=0)
        plain = Straightforward(build(name), [dense.batch for dense in env._pool])

        def ours() -> None:
            env.reset(options={"sparsity": TARGET})
            for _ in range(ROUNDS):
                env.step(action)

        def theirs() -> None:
            for t in range(ROUNDS // MEASURED, ROUNDS + 1, ROUNDS // MEASURED):
                plain.step(action, t, (1 - TARGET) ** (t / ROUNDS))

        work = {"straightforward": theirs, "ours": ours, "product": matrix_product}
        work["look"] = lambda env=env: env.sight.look(env.mask, env.batch)
        times = interleave(work, rounds=3)
        times["straightforward"] /= MEASURED
        times["ours"] /= ROUNDS
        plain, mine, product, look = times.median()
        operations = 6 * threads.multiply_adds(model) * len(env.batch[1])
        least = operations * product / PRODUCT_FLOPS
        rows.append(
            {
                "network": name,
                "target": TARGET,
                "rounds_measured": MEASURED,
                "straightforward_ms": 1000 * plain,
                "ours_ms": 1000 * mine,
                "look_ms": 1000 * look,
                "look_at_least_ms": 1000 * least,
                "at_most": plain / (mine - look + least),
                **ratio(times, "straightforward", "ours")._asdict(),
            }
        )
    return pd.DataFrame(rows)


def fixes(quick: bool) -> pd.DataFrame:
    """One row for each departure from the authors' environment, and for what the learner makes of
    its end, measured with and without it.
    """
    if quick:
        return pd.DataFrame()
    split, model = images((1, 28, 28)), build("lenet300")

    def environment(*departures: str) -> PanningEnv:
        return PanningEnv(lambda draw: (model, split), pool=32, departures=departures)

    def synflow(observation: np.ndarray) -> np.ndarray:
        return np.array([1.0, -1.0, -1.0])

    def nothing(observation: np.ndarray) -> np.ndarray:
        return -np.ones(len(observations.MIXED))

    def returns(*departures: str) -> str:
        """Of SynFlow alone, in the first episode and in the eighth."""
        env = environment(*departures)
        found = [episode(env, synflow, TARGET, seed=None if k else 0)["return"] for k in range(8)]
        return f"{found[0]:.1f}, {found[-1]:.1f}"

    env = environment("loss")
    env.reset(seed=0)
    losses = np.array([dense.look.loss for dense in env._pool])
    single = losses.astype(np.float32)
    lived = [
        episode(environment(*departures), nothing, TARGET, seed=0)["rounds"]
        for departures in (("shares",), ())
    ]
    ends = [_returns_learned(bootstrap) for bootstrap in (False, True)]
    alone = (
        f"return of SynFlow alone at {100 * TARGET:g} % in the first and in the eighth episode,"
        " LeNet-300-100"
    )
    return pd.DataFrame(
        [
            {
                "departure": "loss",
                "measured": (
                    "distinct losses of 32 dense batches of LeNet-300-100; range in steps of a"
                    " float32"
                ),
                "with it": f"{len(set(losses))}",
                "authors": (
                    f"{len(set(single))}, {np.ptp(single) / np.spacing(single[0]):.0f} steps"
                ),
            },
            {
                "departure": "extremes",
                "measured": alone,
                "with it": returns("extremes"),
                "authors": returns(),
            },
            {
                "departure": "kept",
                "measured": alone,
                "with it": returns("kept"),
                "authors": returns(),
            },
            {
                "departure": "extremes and kept, as until 2026-11",
                "measured": alone,
                "with it": returns(*observations.FIRST),
                "authors": returns(),
            },
            {
                "departure": "shares",
                "measured": (
                    "rounds that a network lives if the agent always answers -1, -1, -1; target"
                    " 99 %"
                ),
                "with it": f"{lived[0]} of {ROUNDS}",
                "authors": f"{lived[1]} of {ROUNDS}",
            },
            {
                "departure": "end",
                "measured": (
                    "mean return after 2,500 steps on the digits, 20 rounds, 3 seeds; with it: a"
                    " truncated episode has a value beyond (`bootstrap`)"
                ),
                "with it": f"{ends[1]:.2f}",
                "authors": f"{ends[0]:.2f}",
            },
        ]
    )


def _returns_learned(bootstrap: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        trainings = [
            learning.Training(
                "lenet300/digits",
                seed=seed,
                steps=2_500,
                random_steps=500,
                rounds=20,
                pool=10,
                bootstrap=bootstrap,
            )
            for seed in range(3)
        ]
        told = [learning.learn(training, Path(folder))[1] for training in trainings]
    return float(
        np.mean(
            [
                row["return"]
                for each in told
                for row in each["evaluations"][-len(learning.TARGETS) :]
            ]
        )
    )
