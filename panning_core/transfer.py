"""Expressive force transfer, measured: what the kept weights gain when others are removed.

Panning's idea (Kang et al. 2022, section 3) is that pruning hands the expressive force of the removed weights to the
kept ones. Here a weight's force under a metric is its mass on the sub-network, \\|theta_i d/dtheta_i\\|, before and after
one round M -> M'::

    lost      mass, before, of the weights that the round removes        (M without M')
    gained    mass, after minus before, of the weights that stay         (M and M')
    transfer  gained / lost: 1 if the kept weights took over everything, 0 if they did not change, below 0 if they faded too

SynFlow carries a check of the arithmetic: in every layer its mass sums to the same R, the sum of the linearised network's
outputs (Tanaka et al. 2020, theorem 1). So removing weights of one layer only leaves the mass of its other weights alone,
and no network gains: SynFlow's transfer is never positive.
"""

from __future__ import annotations

import torch
from torch import nn

from . import metrics
from .masks import Mask, Scores
from .metrics import Batch

METRICS = ("snip", "grasp", "synflow")


def forces(model: nn.Module, mask: Mask, batch: Batch) -> tuple[dict[str, Scores], dict[str, float]]:
    """The three masses of every kept weight of the sub-network, and its loss, gtg (logits / 200) and R."""
    products = metrics.products(model, mask, batch, metrics.TEMPERATURE, hessian=True)
    synflow, total = metrics.synflow_products(model, mask, batch)
    signed = {"snip": products.snip, "grasp": products.grasp, "synflow": synflow}
    masses = {metric: {name: s.abs().double() * mask[name] for name, s in scores.items()} for metric, scores in signed.items()}
    return masses, {"loss": products.loss, "gtg": products.gtg, "R": total}


class Transfer:
    """Collects one row a round and layer; pass an instance as ``prune(..., observe=transfer)``.

    All rounds are measured on ``batch``, whatever batch scored them, so that the rows can be compared.
    ``rows`` holds dicts with round, layer ("total" for the network), metric, lost, gained; ``follow`` one dict a round
    with loss, gtg and R of the sub-network and ``conservation``, the largest relative difference between a layer's
    SynFlow mass and R.
    """

    def __init__(self, model: nn.Module, batch: Batch):
        self.model, self.batch = model, batch
        self.rows: list[dict] = []
        self.follow: list[dict] = []
        self._last: tuple[Mask, dict[str, Scores]] | None = None

    def __call__(self, t: int, old: Mask, new: Mask, batch: Batch) -> None:
        if self._last is None or self._last[0] is not old:
            self._last = old, self._measure(t - 1, old)
        before, after = self._last[1], self._measure(t, new)
        for metric in METRICS:
            sums = {"total": [0.0, 0.0]}
            for name in new:
                gone, stays = old[name] & ~new[name], old[name] & new[name]
                lost = float(before[metric][name][gone].sum())
                gained = float((after[metric][name] - before[metric][name])[stays].sum())
                sums[name.removesuffix(".weight")] = [lost, gained]
                sums["total"] = [sums["total"][0] + lost, sums["total"][1] + gained]
            self.rows += [{"round": t, "layer": layer, "metric": metric, "lost": lost, "gained": gained} for layer, (lost, gained) in sums.items()]
        self._last = new, after

    def _measure(self, t: int, mask: Mask) -> dict[str, Scores]:
        masses, values = forces(self.model, mask, self.batch)
        totals = torch.stack([s.sum() for s in masses["synflow"].values()])
        drift = float((totals - values["R"]).abs().max()) / values["R"] if values["R"] > 0 else 0.0
        self.follow.append({"round": t, **values, "conservation": drift})
        return masses

    def total(self, metric: str) -> float | None:
        """Transfer over all rounds of the whole network, gained / lost; None if nothing was lost."""
        rows = [row for row in self.rows if row["metric"] == metric and row["layer"] == "total"]
        lost = sum(row["lost"] for row in rows)
        return sum(row["gained"] for row in rows) / lost if lost > 0 else None
