"""Expressive force transfer, measured: what the kept weights gain when others are removed.

Panning's idea (Kang et al. 2022, section 3) is that pruning hands the expressive force of the
removed weights to the kept ones. Here a weight's force under a metric is its mass on the
sub-network, |theta_i d/dtheta_i|. From a mask M to a mask M'::

    lost      mass, before, of the weights that go                (M without M')
    stayed    mass, before, of the weights that stay              (M and M')
    gained    mass, after minus before, of the weights that stay  (M and M')
    returned  mass, after, of the weights that come back          (M' without M)
    transfer  gained / lost: 1 if the kept weights took over everything, 0 if
              they did not change, below 0 if they faded too

so that mass before = lost + stayed, and mass after = stayed + gained + returned. The transfer of a
whole pruning compares the dense network with the final mask: what went and came back in between has
not been lost.

SynFlow carries a check of the arithmetic: in every layer of a network without branches its mass
sums to the same R, the sum of the linearised network's outputs (Tanaka et al. 2020, theorem 1). And
a weight's share of the paths can only shrink when others go: SynFlow's transfer is never positive.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import nn

from .. import metrics
from ..masks import Mask, Scores, numbers
from ..metrics import Batch

METRICS = ("snip", "grasp", "synflow")
PARTS = ("lost", "stayed", "gained", "returned")


def forces(
    model: nn.Module, mask: Mask, batch: Batch
) -> tuple[dict[str, Scores], dict[str, float]]:
    """The three masses of every kept weight of the sub-network (SNIP's and GraSP's with logits /
    200), and its loss, gtg and R.
    """
    products = metrics.products(model, mask, batch, metrics.TEMPERATURE, hessian=True)
    loss = metrics.loss(model, mask, batch)  # as trained: logits / 200 all but hide a difference
    synflow, total = metrics.synflow_products(model, mask, batch)
    signed = {"snip": products.snip, "grasp": products.grasp, "synflow": synflow}
    masses = {
        metric: {name: s.abs().double() * numbers(mask[name]) for name, s in scores.items()}
        for metric, scores in signed.items()
    }
    return masses, {"loss": loss, "gtg": products.gtg, "R": total}


def handed_on(
    old: Mask, before: dict[str, Scores], new: Mask, after: dict[str, Scores]
) -> list[dict]:
    """One row a metric and layer ("total" is the network): lost, stayed, gained and returned from
    one mask to another.
    """
    where = {
        name: [
            numbers(places).flatten() for places in (old[name] & ~m, old[name] & m, m & ~old[name])
        ]
        for name, m in new.items()
    }
    rows = []
    for metric in METRICS:
        layers = []
        for name, (gone, both, back) in where.items():
            a, b = before[metric][name].flatten(), after[metric][name].flatten()
            layers.append(
                {
                    "metric": metric,
                    "layer": name.removesuffix(".weight"),
                    "lost": float(a @ gone),
                    "stayed": float(a @ both),
                    "gained": float((b - a) @ both),
                    "returned": float(b @ back),
                }
            )
        total = {part: sum(row[part] for row in layers) for part in PARTS}
        rows += [{"metric": metric, "layer": "total", **total}, *layers]
    return rows


class Transfer:
    """Collects what each round handed on; pass an instance as ``prune(..., observe=transfer)``.

    All rounds are measured on ``batch``, whatever batch scored them, so that they can be compared.

    Attributes:
        rows: ``handed_on`` of each round, with its ``round``.
        follow: a dict for each round, from 0 (dense), with loss, gtg and R of the sub-network, the
            mass of each metric, and ``conservation``, the largest relative difference between a
            layer's SynFlow mass and R (0 up to rounding where the network has no branches).
    """

    def __init__(self, model: nn.Module, batch: Batch):
        self.model, self.batch = model, batch
        self.rows: list[dict] = []
        self.follow: list[dict] = []
        self._first: tuple[Mask, dict[str, Scores]] | None = None
        self._last: tuple[Mask, dict[str, Scores]] | None = None

    def __call__(self, t: int, old: Mask, new: Mask, batch: Batch) -> None:
        if t == 1:
            self._first = self._last = old, self._measure(t - 1, old)
        after = self._measure(t, new)
        self.rows += [{"round": t, **row} for row in handed_on(*self._last, new, after)]
        self._last = new, after

    def _measure(self, t: int, mask: Mask) -> dict[str, Scores]:
        masses, values = forces(self.model, mask, self.batch)
        totals = torch.stack([s.sum() for s in masses["synflow"].values()])
        drift = float((totals - values["R"]).abs().max()) / values["R"] if values["R"] > 0 else 0.0
        sums = {
            f"mass_{metric}": sum(float(s.sum()) for s in scores.values())
            for metric, scores in masses.items()
        }
        self.follow.append({"round": t, **values, **sums, "conservation": drift})
        return masses

    def whole(self) -> list[dict]:
        """``handed_on`` from the first mask (dense) to the last, with ``transfer``, None where
        nothing was lost.
        """
        return [
            {**row, "transfer": row["gained"] / row["lost"] if row["lost"] > 0 else None}
            for row in handed_on(*self._first, *self._last)
        ]


def whole(lines: list[dict]) -> pd.DataFrame:
    """From ledger lines with ``transfer``: one row a run, metric and layer, from the dense network
    to the final mask.
    """
    return pd.concat(
        [pd.DataFrame(line["metrics"]["transfer"]).assign(key=line["key"]) for line in lines],
        ignore_index=True,
    )


def follow(lines: list[dict]) -> pd.DataFrame:
    """From ledger lines with ``transfer``: one row a run and round (0 is dense) with the sparsity
    reached and ``Transfer.follow``.
    """
    return pd.concat(
        [pd.DataFrame(line["metrics"]["follow"]).assign(key=line["key"]) for line in lines],
        ignore_index=True,
    )
