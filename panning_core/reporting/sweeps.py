"""Drawings of a sweep over sparsities: the forms of Panning in colour, their rivals grey, and every
name at the end of its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from ..analysis import statistics
from . import figures, names, tables
from .names import method_name, percent

#: what "available methods" of Kang et al. 2022 are at least: the metrics that Panning mixes
AVAILABLE = ("snip", "grasp", "synflow")
WORST = 4.0  #: times the errors of the best available method, where a panel ends
TICKS = (0.1, 0.2, 0.33, 0.5, 0.7, 1, 1.4, 2, 3, 4)
GREY = "#757575"  #: of a rival


def own(methods: Sequence[str]) -> list[str]:
    """The forms of Panning among ``methods``."""
    return [method for method in methods if method.startswith("panning")]


def references(runs: pd.DataFrame, rivals: Sequence[str] = AVAILABLE) -> dict[float, str]:
    """Sparsity -> the rival with the least mean log error there."""
    of_rivals = runs[runs.method.isin(rivals)]
    of_rivals = of_rivals.assign(gain=statistics.gain(of_rivals.test_accuracy))
    means = of_rivals.groupby(["sparsity", "method"]).gain.mean().unstack()
    return means.idxmax(axis=1).to_dict()


def ratios(
    runs: pd.DataFrame, methods: Sequence[str], rivals: Sequence[str] = AVAILABLE
) -> pd.DataFrame:
    """Cells of ``statistics.compare`` in mean log error, of each of ``methods`` against the best of
    ``rivals`` at each sparsity; one family.
    """
    runs, cells = runs.assign(gain=statistics.gain(runs.test_accuracy)), []
    for sparsity, best in references(runs, rivals).items():
        part = runs[runs.sparsity == sparsity]
        for method in methods:
            if method != best:
                cells.append(
                    statistics.compare(
                        part, method, [best], value="gain", margin=lambda _: statistics.TENTH
                    )
                )
    cells = [each for each in cells if len(each)]
    return statistics.judged(pd.concat(cells)) if cells else pd.DataFrame()


def plain(method: str) -> str:
    """A method's name without its rounds, which a study may set."""
    return method_name(method).removesuffix("-100")


def short(method: str) -> str:
    """A method's name without its form too, where it has a usual one."""
    return plain(method).removesuffix(" (signed)").removesuffix(" (staged, sum)")


def _look(method: str) -> dict:
    if own([method]):
        return {"color": names.COLOURS.get(method), "linewidth": 2.2, "zorder": 3}
    return {"color": GREY, "linewidth": 0.9, "zorder": 1}


def _sparsities(panel: plt.Axes, runs: pd.DataFrame, below: dict[float, str]) -> list[float]:
    """Even steps, each with its number of seeds and the words ``below``; returns the sparsities."""
    counts = runs.groupby(["sparsity", "method"]).seed.nunique().groupby("sparsity")
    words = []
    for level, n in counts:
        seeds = f"{n.min()}–{n.max()}" if n.min() < n.max() else n.max()
        words.append(f"{percent(level)}\nn = {seeds}\n{below.get(level, '')}")
    panel.set_xticks(range(len(words)), words, fontsize=9)
    panel.set_xlim(-0.3, len(words) - 0.85)
    return list(counts.groups)


def ratio_table(runs: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Errors by method and sparsity, times those of the best available method, which has 1."""
    found = cells.pivot(index="subject", columns="sparsity", values="difference")
    for sparsity, best in references(runs).items():
        found.loc[best, sparsity] = 0.0
    return np.exp(-found)


def ordered(methods: Iterable[str]) -> list[str]:
    """Each once, in the order of all figures; those without a record, as metrics of the user's own,
    last.
    """
    given = dict.fromkeys(methods)
    known = [method for method in names.METHODS if method in given]
    return known + [method for method in given if method not in known]


def beyond(runs: pd.DataFrame) -> list[str]:
    """The rivals that make more than ``WORST`` times the errors somewhere, and are not drawn."""
    rivals = [method for method in dict.fromkeys(runs.method) if not own([method])]
    table = ratio_table(runs, ratios(runs, rivals))
    far = (table > WORST).any(axis=1)
    return ordered(far.index[far])


def against_available(panel: plt.Axes, runs: pd.DataFrame, methods: Sequence[str]) -> None:
    """The errors of each method, times those of the best available one at that sparsity; up is
    better. Filled markers: better or worse beyond chance.
    """
    best = references(runs)
    levels = _sparsities(panel, runs, {level: short(method) for level, method in best.items()})
    judged = ratios(runs, own(methods))
    rivals = ratios(runs, [method for method in methods if not own([method])])
    table = ratio_table(runs, pd.concat([judged, rivals]))
    gone = beyond(runs)
    table = table.reindex([method for method in methods if method not in gone]).dropna(how="all")
    shifts = dict(zip(own(methods), 0.06 * (np.arange(9) - (len(own(methods)) - 1) / 2)))
    ends = []
    for method, line in table.iterrows():
        line, look = line.dropna(), _look(method)
        at = [levels.index(level) + shifts.get(method, 0) for level in line.index]
        panel.plot(at, line, **look)
        ends.append((plain(method), at[-1], line.iloc[-1], look["color"]))
        if method in shifts:
            _verdicts(panel, at, judged[judged.subject == method])
    most = min(WORST, max(1.5, 1.1 * table.max().max()))
    _errors_upwards(panel, min(0.67, 0.9 * table.min().min()), most)
    panel.set_xlabel("sparsity, seeds, best available method")
    figures.name_ends(panel, ends)


def _errors_upwards(panel: plt.Axes, least: float, most: float) -> None:
    """A logarithmic axis of error ratios from ``most`` up to ``least``, with a line at 1."""
    panel.axhline(1, color="black", linewidth=1.2, zorder=2)
    panel.set_yscale("log")
    panel.set_ylim(most, least)
    panel.yaxis.set_major_locator(FixedLocator([t for t in TICKS if least <= t <= most]))
    panel.yaxis.set_major_formatter("{x:g}×")
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylabel("errors, times those of the best of\nSNIP, GraSP, SynFlow; up is better")


def _verdicts(panel: plt.Axes, at: list[float], cells: pd.DataFrame) -> None:
    found = np.exp(-cells[["difference", "high", "low"]]).set_axis(["mean", "low", "high"], axis=1)
    for k, (place, cell) in enumerate(zip(at, cells.itertuples())):
        colour, sure = names.COLOURS.get(cell.subject), cell.p_holm <= statistics.LEVEL
        style = {"color": colour, "markerfacecolor": colour if sure else "white", "markersize": 7}
        style |= {"marker": names.MARKERS.get(cell.subject, "o"), "elinewidth": 1, "capsize": 2}
        figures.bars(panel, [place], found.iloc[[k]], zorder=4, **style)


def effective(panel: plt.Axes, runs: pd.DataFrame, methods: Sequence[str]) -> None:
    """How much of what each method keeps lies on a path."""
    levels, ends = _sparsities(panel, runs, {}), []
    share = runs.assign(share=100 * runs.effective_weights / runs.kept_weights)
    means = share.groupby(["method", "sparsity"]).share.mean()
    for method in [method for method in methods if method in means]:
        line, look = means[method], _look(method)
        at = [levels.index(level) for level in line.index]
        panel.plot(at, line, marker=names.MARKERS.get(method, "o"), markersize=4, **look)
        ends.append((plain(method), at[-1], line.iloc[-1], look["color"]))
    panel.set_ylim(-3, 103)
    panel.set_xlabel("sparsity, seeds")
    panel.set_ylabel("kept weights that lie on a path (%)")
    figures.name_ends(panel, ends)


def accuracy(runs: pd.DataFrame, methods: Sequence[str]) -> plt.Figure:
    """``against_available``, and ``effective`` beside it, of pruned networks."""
    methods = [method for method in methods if method in set(runs.method)]
    figure, axes = plt.subplots(1, 2, figsize=(14.5, 5), gridspec_kw={"wspace": 0.62})
    against_available(axes[0], runs, methods)
    effective(axes[1], runs, methods)
    axes[0].set_title("Does it beat the available methods?")
    axes[1].set_title("Does it waste weights?")
    return figure


def front(panels: Mapping[str, pd.DataFrame]) -> plt.Figure:
    """``against_available`` of the runs of each network and input, by their names, side by side;
    one with fewer sparsities is narrower.
    """
    panels = {name: runs[runs.method != "dense"] for name, runs in panels.items()}
    widths = [1 + runs.sparsity.nunique() for runs in panels.values()]
    # In inches: half of one a sparsity, and beside each panel the names of its lines.
    drawn, beside = 0.5 * sum(widths), 2.5
    size = (drawn + beside * (len(panels) - 1), 3)
    figure, axes = plt.subplots(1, len(panels), figsize=size, width_ratios=widths, squeeze=False)
    figure.subplots_adjust(0, 0, 1, 1, wspace=beside * len(panels) / drawn)
    for panel, (name, runs) in zip(axes[0], panels.items()):
        methods = ordered(runs.method)
        against_available(panel, runs, methods)
        panel.set_title(name, fontweight="bold", fontsize=11)
        panel.set(xlabel="")
    for panel in axes[0, 1:]:
        panel.set(ylabel="")
    return figure


def words(runs: pd.DataFrame) -> str:
    """What ``against_available`` shows of ``runs``, and what it leaves out."""
    gone = ", ".join(map(plain, beyond(runs)))
    return (
        "Errors of each method, times those of the best of SNIP, GraSP and SynFlow at that sparsity"
        " (its name stands there): above the black line Panning makes fewer errors. Mean of the log"
        " error, paired over seeds, with 95 % interval; a filled marker: not by chance (Holm over"
        " the coloured markers)."
        + f" Not drawn, more than {WORST:g} times the errors somewhere: {gone}."
        * bool(gone)
    )


def at_each(cells: pd.DataFrame) -> str:
    """The verdicts at each sparsity, to stand beside one on their mean."""
    levels = ", ".join(percent(level) for level in sorted(cells.sparsity.unique()))
    found = [f"{short(rival)} {tables.marks(part)}" for rival, part in cells.groupby("rival")]
    return f" Accuracy at {levels} alone, against {', '.join(found)} (·: open)."


def rank_words(found: statistics.Ranks) -> str:
    """What ``ranks`` shows of ``found``."""
    return (
        f"ranks by accuracy, 1 is best; blue: better than the middle. Right: mean over all"
        f" sparsities, 95 % interval over seeds; grey: not told apart from the best (Nemenyi's"
        f" critical difference {found.critical:.1f} over {found.blocks} blocks, each a seed at a"
        f" sparsity; Friedman's p = {found.p:.2g})."
    )


def ranks(found: statistics.Ranks, colours: Mapping[str, str] | None = None) -> plt.Figure:
    """``found`` as a map of mean ranks, and the mean over all beside it with the critical
    difference from the best; ``colours`` of the names that stand out, else the forms of Panning.
    """
    if colours is None:
        colours = {method: names.COLOURS[method] for method in own(list(names.METHODS))}
    rows, columns = found.means.shape
    figure, (chart, mean) = plt.subplots(
        1, 2, figsize=(3.2 + 0.75 * columns + 4, 0.33 * rows + 1.5), sharey=True,
        gridspec_kw={"width_ratios": [0.75 * columns, 4], "wspace": 0.04},
    )  # fmt: skip
    middle = TwoSlopeNorm((rows + 1) / 2, 1, rows)
    chart.imshow(found.means, cmap="RdBu_r", norm=middle, aspect="auto", alpha=0.75)
    for (row, column), rank in np.ndenumerate(found.means.to_numpy()):
        chart.text(column, row, f"{rank:.1f}", ha="center", va="center", fontsize=9)
    chart.set_xticks(range(columns), [percent(level) for level in found.means])
    chart.set_yticks(range(rows), [method_name(name) for name in found.means.index])
    for text, name in zip(chart.get_yticklabels(), found.means.index):
        text.set(color=colours.get(name, "black"))
    chart.grid(False)
    chart.set(title="mean rank at each sparsity", xlabel="sparsity")
    overall = found.overall
    mean.axvspan(overall["mean"].min(), overall["mean"].min() + found.critical, color="#e4e4e4")
    for place, name in enumerate(overall.index):
        style = {"color": colours.get(name, "#555555"), "linestyle": "", "capsize": 2}
        figures.bars(mean, [place], overall.iloc[[place]], across=True, **style)
    mean.tick_params(labelleft=False)
    mean.set(title="mean over all", xlabel="mean rank; 1 is best", xlim=(0.5, rows + 0.5))
    return figure


def rounds(frame: pd.DataFrame) -> plt.Figure:
    """Test error against the number of rounds, ``took``, a line a method and a panel for each
    sparsity that has several (for all, where none has). Errors more than ``WORST`` times the least
    stand at the upper edge, as numbers.
    """
    several = frame.groupby("sparsity").took.nunique() > 1
    levels = sorted(several[several].index) or sorted(several.index)
    size = (5.4 * len(levels), 4)
    figure, axes = plt.subplots(1, len(levels), figsize=size, squeeze=False)
    figure.subplots_adjust(wspace=0.45)
    for panel, level in zip(axes[0], levels):
        _rounds(panel, frame[frame.sparsity == level])
        panel.set(title=f"sparsity {percent(level)}", xlabel="rounds")
    axes[0][0].set_ylabel("test error (%), logarithmic; down is better")
    return figure


def _rounds(panel: plt.Axes, runs: pd.DataFrame) -> None:
    means = 100 * (1 - runs.groupby(["method", "took"]).test_accuracy.mean())
    edge, high = means.min() * WORST, means[means <= means.min() * WORST].max() * 1.25
    ends, off = [], []
    for method, line in means.groupby(level="method", sort=False):
        line, colour = line[method], names.COLOURS.get(method)
        for took, mean in line.items():
            same = runs[(runs.method == method) & (runs.took == took)]
            marker = names.MARKERS.get(method, "o")
            if mean <= edge:
                found = statistics.intervals([100 * (1 - same.test_accuracy)], 0.1, 100)
                figures.bars(panel, [took], found, color=colour, marker=marker)
            else:
                off.append((took, f"{short(method)}: {mean:.0f} % ↑", colour))
        drawn = line[line <= edge]
        panel.plot(drawn.index, drawn, color=colour, linewidth=2)
        if len(drawn):
            ends.append((short(method), drawn.index[-1], drawn.iloc[-1], colour))
    panel.set(xscale="log", yscale="log", ylim=(0.85 * means.min(), high), xlim=(0.7, 140))
    for k, (took, word, colour) in enumerate(off):
        place = (took, 0.97 - 0.07 * k)
        kind = ("data", "axes fraction")
        panel.annotate(word, place, xycoords=kind, color=colour, fontsize=9, va="top")
    panel.set_xticks([1, 10, 100], ["1", "10", "100"])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8), numticks=12))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_locator(NullLocator())
    figures.name_ends(panel, ends)
