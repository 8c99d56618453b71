"""The environment of the panning agent, for gymnasium; it follows the code of Kang et al. (2022).

An episode prunes one network from dense to a target sparsity. In every round the agent sees seven
numbers and answers with the coefficients of SynFlow, SNIP and GraSP.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import nn

from .. import data, masks, metrics
from ..agent import observations
from ..agent.observations import MIXED, OBSERVED, Extremes, Look
from ..data import Split
from ..errors import UserError, pick, unknown, whole

#: draws a network to prune and the images to score it on
Source = Callable[[np.random.Generator], tuple[nn.Module, Split]]

#: steps with targets from [0.8, 1]; later half from [0.9, 1] and half from [0.98, 1]
EXPLORING = 10_000


class PanningEnv(gymnasium.Env):
    """One episode prunes one network from dense to a target sparsity, in up to ``rounds`` steps.

    - **Action** [3] in [-1, 1]: the coefficients of SynFlow, SNIP and GraSP are action + 1.
    - **Step** i from 0: the mask is made of the scores that the step before ended with, and keeps
      (1 - target)^((i + 1) / rounds) of the weights; then comes a new batch, on which the dense
      network and the sub-network are looked at and all is scored again.
    - **Observation** [7], float64: ``observations.OBSERVED``; the first one has zeros from the
      third number on.
    - **Reward**: ``observations.reward``; a network without a path ends the episode and costs
      ``rounds`` - i more.

    The dense network never changes, so whatever depends on a batch alone is computed once for each
    batch of a pool.

    What it observes and pays is the authors'. ``departures``, keys of ``observations.DEPARTURES``,
    name the things in which it is nevertheless another environment; with none, and no pool, it is
    theirs.

    Args:
        source: draws the network and its images, in ``reset``. As long as it returns the same
            network, its pool is kept.
        rounds: of an episode at most, K.
        per_class: images of each class in a batch.
        pool: batches, drawn for each network (and again in a reset with a seed); 0 draws a fresh
            one for every step, as the authors do.

    Raises:
        UserError: numbers out of range, or an unknown departure.
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        source: Source,
        rounds: int = 100,
        per_class: int = 10,
        pool: int = observations.WARM_UP,
        departures: Collection[str] = observations.DEFAULT,
    ):
        for name, value, least in (
            ("rounds", rounds, 1),
            ("per_class", per_class, 1),
            ("pool", pool, 0),
        ):
            whole(name, value, least)
        for name in departures:
            pick("departure", name, observations.DEPARTURES)
        self.source, self.departures = source, frozenset(departures)
        self.rounds, self.per_class, self.pool = rounds, per_class, pool
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(MIXED),), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(OBSERVED),), np.float64)
        self.steps, self.model = 0, None
        # What an earlier environment of this network has seen, for extremes that never stop
        # growing.
        self.known: list[Look] = []

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """Begin an episode; ``options={"sparsity": ...}`` sets its target, which is drawn
        otherwise.

        Raises:
            UserError: an unknown option, or a target outside (0, 1).
        """
        super().reset(seed=seed)
        for name in (options or {}).keys() - {"sparsity"}:
            raise unknown("option", name, ["sparsity"])
        self.target = options["sparsity"] if options else self._draw_target()
        if type(self.target) not in (int, float) or not 0 < self.target < 1:
            raise UserError(f"sparsity is {self.target!r}; a target is a fraction between 0 and 1")
        model, split = self.source(self.np_random)
        if model is not self.model or seed is not None:
            self._take(model, split)
        self.t, self.mask, self.scheduled = 0, masks.ones(model), 0.0
        self._score()
        return self._observe(self.dense.look, 0.0), self._info(0.0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        if np.shape(action) != self.action_space.shape:
            raise UserError(
                f"an action has {len(MIXED)} numbers, for {', '.join(MIXED)}; got {action!r}"
            )
        mix = (
            observations.coefficients(action)
            if "shares" in self.departures
            else np.clip(np.asarray(action, dtype=float), -1, 1) + 1
        )
        distance, unit = observations.deviations(self.synflow)
        scores = distance.mul_(float(mix[0]) / unit) if unit else torch.zeros_like(distance)
        for weight, normal in zip(mix[1:], self.dense.normal):
            scores.add_(normal, alpha=float(weight))
        i, self.t = self.t, self.t + 1
        density = (1 - self.target) ** (self.t / self.rounds)
        self.scheduled = 1 - density
        self.mask = masks.SCOPES["global"](scores, self.mask, max(density, 1 / len(scores)))
        self._score()
        effective = self.sight.effective_sparsity(self.mask, self.synflow)
        observation = self._observe(self.sight.look(self.mask, self.batch), effective)
        dead, last = effective == 1, self.t == self.rounds
        reward = observations.reward(observation) - (self.rounds - i if dead else 0)
        self.steps += 1
        truncates = "end" in self.departures
        return (
            observation,
            reward,
            dead or last and not truncates,
            last and not dead and truncates,
            self._info(effective),
        )

    def _draw_target(self) -> float:
        low = 0.8 if self.steps < EXPLORING else self.np_random.choice([0.9, 0.98])
        return float(self.np_random.uniform(low, 1))

    def _take(self, model: nn.Module, split: Split) -> None:
        """Another network: everything that depends on it and a batch alone."""
        generator = torch.Generator().manual_seed(int(self.np_random.integers(2**31)))
        self.model, self.ones = model, masks.ones(model)
        self.sight = observations.Sight(model, self.departures)
        self.flow = metrics.synflow_of(model)
        self._fresh = data.balanced_batches(split, self.per_class, generator)
        self._pool = [
            self._prepare(batch)
            for _, batch in zip(range(self.pool or observations.WARM_UP), self._fresh)
        ]
        self.extremes = Extremes(
            [*self.known, *(dense.look for dense in self._pool)], "extremes" in self.departures
        )

    def _prepare(self, batch: metrics.Batch) -> _Dense:
        products = metrics.products(self.model, self.ones, batch, metrics.TEMPERATURE, hessian=True)
        normal = []
        for scores in (products.snip, products.grasp):
            distance, unit = observations.deviations(masks.flatten(scores))
            normal.append(distance.div_(unit) if unit else torch.zeros_like(distance))
        return _Dense(batch, normal, self.sight.seen(products.loss, products.gtg))

    def _score(self) -> None:
        """A new batch, and SynFlow on the mask."""
        self.dense = (
            self._pool[self.np_random.integers(self.pool)]
            if self.pool
            else self._prepare(next(self._fresh))
        )
        self.batch = self.dense.batch
        self.synflow = self.flow(self.mask, self.batch)[0]

    def _observe(self, sub: Look, effective: float) -> np.ndarray:
        return self.extremes.observe(
            self.dense.look, sub, effective, self.scheduled, self.t / self.rounds
        )

    def _info(self, effective: float) -> dict:
        return {
            "target": self.target,
            "sparsity": 1 - masks.density(self.mask),
            "effective_sparsity": effective,
        }


@dataclass(frozen=True)
class _Dense:
    """What the dense network does on a batch."""

    batch: metrics.Batch
    normal: list[torch.Tensor]  #: |z-score| of SNIP and of GraSP [weights], float64
    look: Look


def episode(
    env: PanningEnv,
    act: Callable[[np.ndarray], np.ndarray],
    sparsity: float,
    seed: int | None = None,
) -> dict:
    """One episode: sparsity asked for, effective_sparsity reached, return (sum of rewards), and
    rounds lived.
    """
    observation, info = env.reset(seed=seed, options={"sparsity": sparsity})
    total, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, info = env.step(act(observation))
        total, over = total + reward, terminated or truncated
    return {
        "sparsity": sparsity,
        "effective_sparsity": info["effective_sparsity"],
        "return": total,
        "rounds": env.t,
    }
