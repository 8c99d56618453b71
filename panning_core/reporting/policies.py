"""Drawings and tables of policies that mix metrics: how they learn, what they mix, and how they
prune beside their rivals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..analysis import statistics
from ..methods import panning
from . import figures, names, sweeps
from .names import percent
from .tables import MARKED

#: of a measure: title, what a difference is in, factor; errors are compared as ratios
MEASURES = {
    "return": ("return of an episode", "return", 1),
    "share": ("effective in per cent of kept weights", "points of effective weights", 100),
    "test_accuracy": ("test accuracy, last epoch (%)", "errors, times the rival's", 100),
}


def learning(curves: pd.DataFrame) -> plt.Figure:
    """Return against steps for each ``sparsity``, a panel an ``agent``: mean, and a band from the
    worst to the best seed.
    """
    agents = list(dict.fromkeys(curves.agent))
    size = {"figsize": (6.2 * len(agents), 4.2), "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(1, len(agents), **size)
    levels = sorted(curves.sparsity.unique())
    shades = plt.get_cmap("viridis")(np.linspace(0.9, 0, len(levels)))
    for panel, name in zip(axes[0], agents):
        part = curves[curves.agent == name]
        for level, shade in zip(levels, shades):
            by_step = part[part.sparsity == level].groupby("steps")["return"]
            panel.plot(by_step.mean(), label=percent(level), color=shade)
            low, high = by_step.min(), by_step.max()
            panel.fill_between(low.index, low, high, alpha=0.2, color=shade)
        seeds = part.seed.nunique()
        title = f"agent ({name}), {seeds} seed{'s' * (seeds > 1)}"
        panel.set(title=title, xlabel="steps of the environment")
        panel.xaxis.set_major_locator(MaxNLocator(5))
    axes[0, 0].set_ylabel("return of an episode")
    axes[0, -1].legend(title="target", loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure


def trainings(agents: Sequence[Mapping]) -> pd.DataFrame:
    """A row a training: what it was trained on, for how long, and what it returned."""
    rows = []
    for agent in agents:
        ends = pd.DataFrame(agent["evaluations"]).groupby("steps")["return"].mean()
        rows.append(
            {
                "agent": agent["name"],
                "seed": agent["seed"],
                "networks": ", ".join(agent["networks"]),
                "departures": ", ".join(agent["departures"]),
                "steps (published: 50,000)": f"{ends.index[-1]:,}",
                "minutes": f"{agent['learn_seconds'] / 60:.1f}",
                "return before": f"{ends.iloc[0]:.1f}",
                "return after": f"{ends.iloc[-1]:.1f}",
                "best on the way": f"{ends.max():.1f}",
            }
        )
    return pd.DataFrame(rows)


def mixes(chosen: Mapping[str, Sequence], target: float) -> plt.Figure:
    """Shares of the three metrics until ``target`` is pruned, a panel a policy, whose mixes are
    [rounds, 3] arrays, a run each: thick the mean, thin each run. Last the paper's stage table.
    """
    size = (4.6 * (len(chosen) + 1), 3.9)
    figure, axes = plt.subplots(1, len(chosen) + 1, figsize=size, sharey=True, sharex=True)
    for panel, (name, runs) in zip(axes, chosen.items()):
        drawn = np.array([mix / np.sum(mix, 1, keepdims=True) for mix in runs])
        kept = (1 - target) ** (np.arange(1, drawn.shape[1] + 1) / drawn.shape[1])
        for k, metric in enumerate(panning.MIXED):
            colour, label = names.COLOURS[metric], sweeps.short(metric)
            panel.plot(kept, drawn.mean(0)[:, k], color=colour, linewidth=2.5, label=label)
            panel.plot(kept, drawn[:, :, k].T, color=colour, alpha=0.35, linewidth=0.8)
        panel.set_title(f"{name}, {len(runs)} runs", fontsize=11)
    _stages(axes[-1], target)
    axes[0].set(xscale="log", ylabel="share of the mix")
    axes[0].invert_xaxis()
    for panel in axes:
        panel.set_xlabel("density asked for, logarithmic")
    lines = axes[0].get_legend_handles_labels()
    axes[-1].legend(*lines, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure


def _stages(panel: plt.Axes, target: float) -> None:
    stages, before = [], 1.0
    for limit, mix in panning.SUM_STAGES:
        if before > 1 - target:
            stages += [(before, mix), (max(1 - limit, 1 - target), mix)]
            before = max(1 - limit, 1 - target)
    for k, metric in enumerate(panning.MIXED):
        part = [mix[k] / sum(mix) for _, mix in stages]
        # Shares are equal in places: each line is narrower than those below it.
        look = {"color": names.COLOURS[metric], "linewidth": 5 - 2 * k}
        panel.plot([at for at, _ in stages], part, **look)
    panel.set_title("the paper's stage table", fontsize=11)


def spread(values: Sequence[float]) -> statistics.Estimate:
    """Over networks: Student's interval, or of fewer than five the lowest and the highest."""
    e = statistics.interval(values)
    return e if e.n >= statistics.LEAST else e._replace(low=min(values), high=max(values))


def told(values: pd.Series, factor: float) -> str:
    """A cell of the tables; shares and accuracies end at 0 and at 1."""
    e = spread(values)
    if factor != 1:
        e = e._replace(low=max(e.low, 0), high=min(e.high, 1))
    mean, low, high = factor * e.mean, factor * e.low, factor * e.high
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if e.n > 1 else f"{mean:.2f}"


def compared(runs: pd.DataFrame, subject: str, rivals: Sequence[str]) -> plt.Figure:
    """``subject`` minus each rival on the same network, a row a rival, a marker a sparsity and a
    panel a measure; right is better. ``runs`` has variant, sparsity, seed and ``MEASURES``.
    """
    table = runs.assign(gain=statistics.gain(runs.test_accuracy)).set_index(["sparsity", "seed"])
    ours = table[table.variant == subject]
    levels = sorted(ours.index.levels[0])
    shades = plt.get_cmap("viridis")(np.linspace(0.9, 0, len(levels)))
    size = (5.4 * len(MEASURES), 0.62 * len(rivals) + 1.5)
    figure, axes = plt.subplots(1, len(MEASURES), figsize=size, sharey=True)
    for panel, (measure, (_, unit, factor)) in zip(axes, MEASURES.items()):
        column = "gain" if measure == "test_accuracy" else measure
        for row, rival in enumerate(rivals):
            pairs = factor ** (column != "gain") * (
                ours[column] - table[table.variant == rival][column]
            )
            for k, (level, shade) in enumerate(zip(levels, shades)):
                place = row + 0.13 * (k - (len(levels) - 1) / 2)
                _difference(panel, place, pairs.dropna(), level, shade, column == "gain")
        panel.axvline(int(column == "gain"), color="black", linewidth=1.2)
        panel.set(xlabel=f"{unit}; right is better")
    _ratio_axis(axes[-1])
    axes[0].set_yticks(range(len(rivals)), [f"minus {rival}" for rival in rivals])
    axes[0].set_ylim(len(rivals) - 0.45, -0.55)
    axes[-1].legend(title="sparsity", loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure


def _difference(
    panel: plt.Axes, place: float, pairs: pd.Series, level: float, shade: object, ratio: bool
) -> None:
    values = pairs[pairs.index.get_level_values("sparsity") == level]
    if not len(values):
        return
    e = spread(values)
    e = tuple(np.exp([-e.mean, -e.high, -e.low])) if ratio else e[:3]
    found = pd.DataFrame([e], columns=["mean", "low", "high"])
    labelled = panel.get_legend_handles_labels()[1]
    label = None if percent(level) in labelled else percent(level)
    style = {"color": shade, "capsize": 2, "markersize": 6, "label": label, "linestyle": ""}
    figures.bars(panel, [place], found, across=True, **style)


def _ratio_axis(panel: plt.Axes) -> None:
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.set_xlim(max(high, 1.5), min(low, 0.67))
    subs = (1, 3) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)
    panel.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    panel.xaxis.set_major_formatter("{x:g}×")
    panel.xaxis.set_minor_locator(NullLocator())


def differences(cells: pd.DataFrame, network: str, factor: float) -> list[dict]:
    """Rows of cells of ``statistics.compare``, one a rival: in points of accuracy, where ``factor``
    is 100, or in return.
    """
    return [
        {
            "network": network,
            "agent": group["subject"].iloc[0],
            "minus": rival,
            "in": "points" if factor == 100 else "return",
            **{
                percent(r.sparsity): f"{factor * r.difference:+.2f} "
                + MARKED[r.outcome] * (factor == 100)
                for r in group.itertuples()
            },
            "agents": group.n.min(),
        }
        for rival, group in cells.groupby("rival", sort=False)
    ]
