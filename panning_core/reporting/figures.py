"""Drawings that several studies share."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from ..analysis.statistics import intervals
from . import names
from .names import method_name, percent


def bars(
    panel: plt.Axes,
    at: Sequence[float],
    found: pd.DataFrame,
    across: bool = False,
    **look: object,
) -> None:
    """The rows of ``found`` (mean, low, high) as markers with bars, at these places.

    Args:
        across: bars lie along x, and the places are on y.
        look: of matplotlib's ``errorbar``.
    """
    mean = found["mean"]
    # An interval that ends where values do may leave out the mean of a few.
    ends = [(mean - found.low).clip(lower=0), (found.high - mean).clip(lower=0)]
    look = {"marker": "o", "capsize": 3} | look
    if across:
        panel.errorbar(mean, at, xerr=ends, **look)
    else:
        panel.errorbar(at, mean, yerr=ends, **look)


def band(panel: plt.Axes, at: Sequence[float], found: pd.DataFrame, **look: object) -> None:
    """The same as a line, which ``look`` is of, in a shade from low to high."""
    (line,) = panel.plot(at, found["mean"], **look)
    shade = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
    panel.fill_between(at, found.low, found.high, **shade)


# One piece: a drawing from back to front, and each branch is one more thing to draw.
def accuracy_axes(
    axes: plt.Axes,
    runs: pd.DataFrame,
    dense: pd.DataFrame,
    methods: Sequence[str],
    x: str = "sparsity",
) -> None:
    """Accuracy against sparsity (even steps) or against effective density (log) for each method,
    with intervals and a dense line.
    """
    levels = sorted(runs.sparsity.unique())
    for place, method in enumerate(methods):
        groups = [group for _, group in runs[runs.method == method].groupby("sparsity")]
        if not groups:
            continue
        # Side by side, so that intervals do not hide each other.
        shift = min(0.05, 0.5 / len(methods)) * (place - (len(methods) - 1) / 2)
        at = (
            [levels.index(g.sparsity.iloc[0]) + shift for g in groups]
            if x == "sparsity"
            else [g.effective_density.mean() for g in groups]
        )
        points = intervals([100 * group.test_accuracy for group in groups], 0, 100).assign(at=at)
        # On no line: between them and the live ones lies nothing that was measured.
        dead = (points["at"] == 0) & (x != "sparsity")
        for part, line in ((points[~dead], "-"), (points[dead], "")):
            bars(
                axes,
                part["at"],
                part,
                label=method_name(method) if line else None,
                color=names.COLOURS.get(method),
                marker=names.MARKERS.get(method, "o"),
                markersize=5,
                linestyle=line,
                linewidth=1.4,
                capsize=2,
            )
    if len(dense):
        axes.axhline(
            100 * dense.test_accuracy.mean(),
            color="black",
            linestyle="--",
            linewidth=1.2,
            label="dense",
        )
    if x == "sparsity":
        axes.set_xticks(range(len(levels)), [percent(level) for level in levels])
        axes.set_xlabel("sparsity (nominal)")
    else:
        # A dead network has effective density 0, which a logarithm has no place for: linear below
        # the least live one.
        live = runs.effective_density[runs.effective_density > 0]
        least = 10.0 ** int(np.floor(np.log10(live.min())))
        axes.set_xscale("symlog", linthresh=least, linscale=0.4)
        axes.set_xlim(live.max() * 1.3, -least * 0.15)
        ticks = [10.0**p for p in range(int(np.log10(least)), 0) if 10.0**p < live.max() * 1.3]
        axes.set_xticks([0, *ticks], ["0", *(f"{100 * t:g} %" for t in ticks)], minor=False)
        axes.set_xlabel("effective density (kept weights on a path / all), logarithmic")
    axes.set_ylabel("test accuracy, last epoch (%)")


def estimates(frame: pd.DataFrame, labels: Sequence[str], column: str = "variant") -> plt.Figure:
    """Test error of each of ``labels`` (values of ``column``), a row each and a panel for each
    sparsity: mean and interval, the first in red.

    Logarithmic, because a control that kills the network would squeeze all others together.
    """
    levels = sorted(frame.sparsity.unique())
    size = (5.2 * len(levels) + 2, 0.32 * len(labels) + 1.4)
    figure, axes = plt.subplots(1, len(levels), figsize=size, sharey=True, squeeze=False)
    for panel, level in zip(axes[0], levels):
        for place, label in enumerate(labels):
            part = frame[(frame[column] == label) & (frame.sparsity == level)]
            if not len(part):
                continue
            found = intervals([100 * (1 - part.test_accuracy)], 0.1, 100)
            colour = "#d62728" if place == 0 else "#1f77b4"
            bars(panel, [place], found, across=True, linestyle="", color=colour)
        panel.set(
            yticks=range(len(labels)),
            yticklabels=labels,
            ylim=(len(labels) - 0.5, -0.5),
            xscale="log",
        )
        panel.set(
            title=f"sparsity {percent(level)}",
            xlabel="test error, last epoch (%), logarithmic; left is better",
        )
        wide = panel.get_xlim()[1] > 3 * panel.get_xlim()[0]
        panel.xaxis.set_major_locator(
            LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=12) if wide else MaxNLocator(5)
        )
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(NullLocator())
    return figure


def apart(heights: Sequence[float], least: float) -> np.ndarray:
    """``heights`` moved as little as needed (in least squares) so that they keep their order and
    are ``least`` apart.
    """
    heights = np.asarray(heights, dtype=float)
    order = np.argsort(heights, kind="stable")
    steps = least * np.arange(len(heights))
    moved = np.empty_like(heights)
    moved[order] = isotonic_regression(heights[order] - steps).x + steps
    return moved


def name_ends(
    panel: plt.Axes, ends: Sequence[tuple[str, float, float, str]], size: float = 9
) -> None:
    """Names at the right of a finished panel beside the ends of its lines: name, x, y, colour."""
    if not ends:
        return
    to_panel = panel.transData + panel.transAxes.inverted()
    at = [to_panel.transform((x, y))[1] for _, x, y, _ in ends]
    height = panel.figure.get_figheight() * panel.get_position().height
    at = apart(at, 1.3 * size / 72 / height)
    line = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
    for (name, x, y, colour), place in zip(ends, at):
        panel.annotate(
            name,
            (x, y),
            (1.04, place),
            textcoords="axes fraction",
            color=colour,
            verticalalignment="center",
            fontsize=size,
            arrowprops=line | {"color": colour},
            annotation_clip=False,
        )


# One piece: a drawing from left to right, and each branch is one more thing to draw.
def network_axes(
    axes: plt.Axes,
    weights: Sequence[np.ndarray],
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> None:
    """Draw a network of linear layers, weights [out, in] each with 0 for what is pruned: units that
    have weights, and these as lines.

    A unit stands at the mean height of the units that it reads; lines are red for positive weights
    and blue for negative ones, thick for large ones.
    """
    columns = [
        np.flatnonzero(np.abs(weights[0]).any(0)) if inputs is None else np.arange(len(inputs))
    ]
    columns += [np.flatnonzero(np.abs(after).any(0)) for after in weights[1:]]
    columns.append(np.arange(len(weights[-1])))
    heights = {0: dict(zip(columns[0], np.linspace(1, 0, len(columns[0]))))}
    for place, layer in enumerate(weights, 1):
        reads = {
            unit: np.mean([heights[place - 1].get(i, 0.5) for i in np.flatnonzero(layer[unit])])
            if layer[unit].any()
            else 0.5
            for unit in columns[place]
        }
        order = (
            list(columns[place])
            if place == len(weights)
            else sorted(reads, key=reads.get, reverse=True)
        )
        heights[place] = dict(
            zip(order, np.linspace(1, 0, len(order)) if len(order) > 1 else [0.5])
        )
    for place, layer in enumerate(weights):
        largest = np.abs(layer).max(initial=1e-12)
        for unit, source in np.argwhere(layer):
            if unit in heights[place + 1] and source in heights[place]:
                size = abs(layer[unit, source]) / largest
                axes.plot(
                    [place, place + 1],
                    [heights[place][source], heights[place + 1][unit]],
                    color="#b2182b" if layer[unit, source] > 0 else "#2166ac",
                    linewidth=0.3 + 2.2 * size,
                    alpha=0.35 + 0.6 * size,
                    zorder=1,
                )
    for place, column in heights.items():
        axes.scatter(
            [place] * len(column),
            list(column.values()),
            s=60 if len(column) <= 20 else 14,
            color="white",
            edgecolors="black",
            linewidths=0.8,
            zorder=2,
        )
    for labels, place, side in ((inputs, 0, "right"), (outputs, len(weights), "left")):
        for unit, name in enumerate(labels or []):
            axes.text(
                place + (-0.06 if side == "right" else 0.06),
                heights[place][unit],
                name,
                ha=side,
                va="center",
            )
    axes.axis("off")
