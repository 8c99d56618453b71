"""Drawings of expressive force: what is left of it, in which layer, and what it foretells.

``how`` names a way of pruning, and ``palette`` has its colour; a way of one round, which goes from
the dense network to the last mask in one step, has a hollow marker and no line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from . import figures

STEP = 2  #: rounds of what is pruned at once: the dense network, and the last mask
MARKS = ("o", "s", "D", "^", "v", "P", "X")  #: of the layers, from the first


def short(how: str) -> str:
    """Without what all forms here have in common."""
    for words in (" (staged, sum)", " (signed)", "-100"):
        how = how.replace(words, "")
    return how


def traces(panels: Mapping[str, str], follow: pd.DataFrame, palette: Mapping) -> plt.Figure:
    """What is left of each column, by the titles in ``panels``, while ``follow`` is pruned: in per
    cent of the dense network, mean over seeds, logarithmic. What has lost all of it is not drawn.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(6.1 * len(panels), 4.4))
    figure.subplots_adjust(wspace=0.62)
    for panel, (column, title) in zip(axes, panels.items()):
        left = follow.assign(left=follow[column] / follow.groupby("key")[column].transform("first"))
        _trace(panel, left, palette)
        panel.set(title=title, xlabel="weights kept")
    axes[0].set_ylabel("left, of the dense network")
    return figure


def _trace(panel: plt.Axes, left: pd.DataFrame, palette: Mapping) -> None:
    means = left.groupby(["how", "round"], sort=False)[["sparsity_now", "left"]].mean()
    ends, least = [], 1 - means.sparsity_now.max()
    for how, mean in means.groupby(level="how", sort=False):
        kept, colour = 1 - mean.sparsity_now, palette[how]
        if mean.left.iloc[-1] <= 0:
            continue
        if len(mean) > STEP:
            panel.plot(kept, mean.left, color=colour, linewidth=2)
        else:
            end = (kept.iloc[-1], mean.left.iloc[-1])
            panel.plot(*end, "o", color=colour, markerfacecolor="white", markeredgewidth=1.6)
        ends.append((short(how), kept.iloc[-1], mean.left.iloc[-1], colour))
    panel.axhline(1, color="black", linewidth=1.2)
    panel.plot([1, least], [1, least], color="black", linewidth=1, linestyle="--")
    low = min([least, *(end[2] for end in ends)])
    panel.set(xscale="log", yscale="log", xlim=(1.1, 0.85 * least), ylim=(0.6 * low, 1.9))
    panel.text(1, 1.12, "all taken over", fontsize=9)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator())
        axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    figures.name_ends(panel, [*ends, ("as their number", least, least, "black")])


def layers(growth: pd.DataFrame, hows: Sequence[str], metrics: Sequence[str]) -> plt.Figure:
    """What is left of the mass of each layer's kept weights, in per cent: a row a way of pruning, a
    marker a layer. ``growth`` has how, metric, layer and growth (gained / stayed).
    """
    size = (4.2 * len(metrics) + 2, 0.42 * len(hows) + 1.6)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, sharey=True)
    names = list(dict.fromkeys(growth.layer))
    for panel, metric in zip(axes, metrics):
        for k, layer in enumerate(names):
            part = growth[(growth.metric == metric) & (growth.layer == layer)].set_index("how")
            part = 100 * (1 + part.growth.reindex(hows))
            at = [place + 0.18 * (k - (len(names) - 1) / 2) for place in range(len(hows))]
            shade = plt.get_cmap("viridis")(0.9 * k / max(len(names) - 1, 1))
            marker = MARKS[k % len(MARKS)]
            panel.scatter(part, at, color=shade, marker=marker, s=46, label=layer, zorder=3)
        panel.axvline(100, color="black", linewidth=1.2)
        high = max(103, 105 * (1 + growth.growth.max()))
        panel.set(title=f"under {metric}", xlabel="mass left of the kept weights", xlim=(-3, high))
        panel.xaxis.set_major_formatter(PercentFormatter())
    axes[0].set_yticks(range(len(hows)), [short(how) for how in hows])
    axes[0].invert_yaxis()
    axes[-1].legend(title="layer", loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure


def prediction(
    scored: pd.DataFrame, told: Mapping[str, str], palette: Mapping, edge: float
) -> plt.Figure:
    """Test error against transfer, a panel for each metric of ``told``, which has the words on it:
    small markers are seeds, large ones their means with the name. Errors above ``edge`` stand at
    it, as crosses.
    """
    figure, axes = plt.subplots(1, len(told), figsize=(5.9 * len(told), 4.4), sharey=True)
    figure.subplots_adjust(wspace=0.62)
    for panel, (metric, words) in zip(axes, told.items()):
        ends = []
        for how, part in scored[scored.metric == metric].groupby("how", sort=False):
            error, colour = part.error.clip(upper=edge), palette[how]
            marker = "x" if (part.error > edge).all() else "o"
            panel.scatter(part.transfer, error, color=colour, s=16, alpha=0.55, marker=marker)
            face = "white" if how.endswith("1 round") else colour
            mean, beyond = (part.transfer.mean(), error.mean()), part.error.mean() > edge
            panel.scatter(*mean, s=90, edgecolors=colour, facecolors=face, zorder=3)
            name = f"{short(how)}, {part.error.mean():.0f} % ↑" if beyond else short(how)
            ends.append((name, *mean, colour))
        panel.set(title=f"under {metric}\n{words}", xlabel="transfer (gained / lost)")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        figures.name_ends(panel, ends)
    axes[0].set_ylabel("test error (%); down is better")
    return figure
