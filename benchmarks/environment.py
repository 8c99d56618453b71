"""The agent's environment: steps a second against a straightforward implementation, and what its differences to the authors' code do."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from panning_core import agent, masks, metrics, panning
from panning_core.metrics import Batch

from . import straightforward
from .timing import interleave, ratio
from .train import build, images

TARGET = 0.99
ROUNDS = 100
MEASURED = 5  #: rounds of the straightforward environment that are run; each costs the same


class Straightforward:
    """The environment as public code has it: in every step everything about the dense and the sub-network is computed anew."""

    def __init__(self, model: nn.Module, batches: list[Batch]):
        self.model, self.double, self.batches = model, straightforward.linear_copy(model), batches
        self.mask = masks.ones(model)
        self.look(0)

    def look(self, t: int) -> tuple[float, ...]:
        """Scores on batch t, and loss and gTg of the dense and of the sub-network, the effective sparsity."""
        batch = self.batches[t % len(self.batches)]
        snip, grasp, loss, gtg = straightforward.data_products(self.model, batch, metrics.TEMPERATURE)
        synflow = straightforward.synflow_products(self.model, self.double, self.mask, batch)
        self.scores = [straightforward.normalise(scores) for scores in (synflow, snip, grasp)]
        effective = 1 - sum(int(((s != 0) & self.mask[name]).sum()) for name, s in synflow.items()) / masks.size(self.mask)
        weights = {name: (w * self.mask[name]).detach().requires_grad_() for name, w in self.model.named_parameters() if name in self.mask}
        sub = nn.functional.cross_entropy(torch.func.functional_call(self.model, weights, batch[0]) / metrics.TEMPERATURE, batch[1])
        gradient = torch.autograd.grad(sub, list(weights.values()))
        return loss, gtg, sub.item(), sum((g * self.mask[name]).square().sum() for name, g in zip(weights, gradient)).item(), effective

    def step(self, action: np.ndarray, t: int, density: float) -> tuple[float, ...]:
        mix = action + 1
        scores = {name: sum(float(c) * s[name] for c, s in zip(mix, self.scores)) for name in self.mask}
        self.mask = straightforward.select(scores, density)
        return self.look(t)


def speed(quick: bool) -> pd.DataFrame:
    """One row a network: milliseconds a step, over a whole episode of ours and ``MEASURED`` of its steps of the straightforward environment."""
    rows = []
    for name in ("lenet5",) if quick else ("lenet300", "lenet5"):
        split, model, action = images((1, 28, 28)), build(name), np.zeros(len(panning.MIXED), np.float32)
        env = agent.PanningEnv(lambda draw: (model, split))
        env.reset(seed=0)
        plain = Straightforward(build(name), [dense.batch for dense in env._pool])

        def ours() -> None:
            env.reset(options={"sparsity": TARGET})
            for _ in range(ROUNDS):
                env.step(action)

        def theirs() -> None:
            for t in range(ROUNDS // MEASURED, ROUNDS + 1, ROUNDS // MEASURED):
                plain.step(action, t, (1 - TARGET) ** (t / ROUNDS))

        times = interleave({"straightforward": theirs, "ours": ours}, rounds=3)
        times["straightforward"] /= MEASURED
        times["ours"] /= ROUNDS
        rows.append({"network": name, "target": TARGET, "rounds_measured": MEASURED, "straightforward_ms": 1000 * times["straightforward"].median(),
                     "ours_ms": 1000 * times["ours"].median(), **ratio(times, "straightforward", "ours")._asdict()})
    return pd.DataFrame(rows)


def fixes(quick: bool) -> pd.DataFrame:
    """One row for each thing in which the environment or the learner is not as in the authors' code, measured both ways."""
    if quick:
        return pd.DataFrame()
    split, model = images((1, 28, 28)), build("lenet300")
    ours, theirs = (agent.PanningEnv(lambda draw: (model, split), pool=pool, faithful=pool is None) for pool in (32, None))

    def equal(observation: np.ndarray) -> np.ndarray:
        return np.zeros(len(panning.MIXED))

    def nothing(observation: np.ndarray) -> np.ndarray:
        return -np.ones(len(panning.MIXED))

    ours.reset(seed=0)
    losses = np.array([dense.look.loss for dense in ours._pool])
    single = losses.astype(np.float32)
    units = []
    for k in range(8):
        agent.episode(theirs, equal, TARGET, seed=None if k else 0)
        units.append(theirs.extremes.high.loss - theirs.extremes.low.loss)
    ends = {}
    with tempfile.TemporaryDirectory() as folder:
        for bootstrap in (True, False):
            told = [agent.learn(agent.Training("lenet300/digits", seed=seed, steps=2_500, random_steps=500, rounds=20, pool=10, bootstrap=bootstrap), Path(folder))[1]
                    for seed in range(3)]
            ends[bootstrap] = np.mean([row["return"] for each in told for row in each["evaluations"][-len(agent.TARGETS):]])
    return pd.DataFrame([
        {"difference": "the loss is a float64", "measured": "distinct losses of 32 dense batches of LeNet-300-100; range in steps of a float32",
         "ours": f"{len(set(losses))}", "otherwise": f"{len(set(single))}, {np.ptp(single) / np.spacing(single[0]):.0f} steps"},
        {"difference": "extremes are those of the pool", "measured": "unit of r_loss after the eighth episode, over that after the first",
         "ours": "1", "otherwise": f"{units[-1] / units[0]:.2f}"},
        {"difference": "coefficients that are all 0 mean equal shares", "measured": "rounds that a network lives if the agent always answers -1, -1, -1; target 99 %",
         **{who: f"{agent.episode(env, nothing, TARGET, seed=0)['rounds']} of {ROUNDS}" for who, env in (("ours", ours), ("otherwise", theirs))}},
        {"difference": "nothing is worth anything beyond the last round (as theirs; a truncation says otherwise)",
         "measured": "mean return after 2,500 steps on the digits, 20 rounds, 3 seeds; in the last column with `bootstrap`", "ours": f"{ends[False]:.2f}", "otherwise": f"{ends[True]:.2f}"}])
