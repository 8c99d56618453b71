"""Drawings of the order of methods, where their accuracies can not be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import figures, names, sweeps
from .names import percent


def places(panels: Mapping[str, pd.DataFrame], methods: Sequence[str]) -> plt.Figure:
    """The place of each method by accuracy, at each sparsity where all of them are, a panel for
    each frame of method, sparsity and accuracy; those that are equal share their places' mean.
    """
    size = (6.2 * len(panels), 0.42 * len(methods) + 2)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    figure.subplots_adjust(wspace=0.42)
    for panel, (title, frame) in zip(axes[0], panels.items()):
        table = frame.pivot(index="sparsity", columns="method", values="accuracy")[[*methods]]
        ranked, ends = table.dropna().rank(axis=1, ascending=False), []
        for method in methods:
            line, colour = ranked[method], names.COLOURS.get(method)
            marker = names.MARKERS.get(method, "o")
            panel.plot(range(len(line)), line, color=colour, marker=marker, linewidth=2.4)
            ends.append((sweeps.short(method), len(line) - 1, line.iloc[-1], colour))
        panel.set_xticks(range(len(ranked)), [percent(level) for level in ranked.index], fontsize=9)
        panel.tick_params(axis="x", rotation=45)
        panel.set_yticks(range(1, len(methods) + 1))
        panel.set(ylim=(len(methods) + 0.3, 0.7), title=title, xlabel="sparsity")
        figures.name_ends(panel, ends)
    axes[0][0].set_ylabel("place by accuracy; 1 is best")
    return figure


def agreement(pairs: Sequence[Mapping]) -> plt.Figure:
    """The mean accuracies of methods (``means``, indexed by method) after a short and after a
    longer training, a panel a pair with its ``title`` and the names of both (``short``,
    ``longer``).
    """
    columns, down = min(len(pairs), 3), -(-len(pairs) // 3)
    size = (7 * columns, 4.6 * down)
    figure, axes = plt.subplots(down, columns, figsize=size, squeeze=False)
    figure.subplots_adjust(wspace=0.6, hspace=0.35)
    for spare in axes.flat[len(pairs) :]:
        spare.axis("off")
    for panel, pair in zip(axes.flat, pairs):
        ends = []
        for method, before, after in pair["means"].itertuples():
            colour, marker = names.COLOURS.get(method), names.MARKERS.get(method, "o")
            panel.scatter(before, after, s=70, color=colour, marker=marker)
            ends.append((sweeps.short(method), before, after, colour))
        panel.set(
            xlabel=f"test accuracy, {pair['short']} (%)",
            ylabel=f"test accuracy, {pair['longer']} (%)",
            title=pair["title"],
        )
        figures.name_ends(panel, ends)
    return figure


def interpolated(curves: pd.DataFrame, sparsity: float) -> dict[str, float]:
    """The published accuracy of each method at this sparsity, in the logarithm of the density."""
    return {
        method: np.interp(-np.log(1 - sparsity), -np.log(1 - curve.sparsity), curve.accuracy)
        for method, curve in curves.groupby("method")
        if curve.sparsity.min() <= sparsity <= curve.sparsity.max()
    }
