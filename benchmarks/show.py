"""The figure and the tables for people."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import LogLocator, NullLocator

from panning_core.experiments import studies
from panning_core.inspection import threads
from panning_core.reporting import figures, image, names

from . import roofline, size
from .train import NETWORKS, crossover


def figure(frame: pd.DataFrame, path: Path) -> None:
    """Speed-up of a training step against sparsity: a panel a network, a line a method; dashed is
    compaction alone.
    """
    sns.set_theme(context="notebook", style="whitegrid")
    networks = list(dict.fromkeys(frame.network))
    made, axes = plt.subplots(
        1, len(networks), figsize=(4.6 * len(networks), 4.4), sharey=True, squeeze=False
    )
    crossovers = crossover(frame).set_index("network").sparse_engine_faster_from_sparsity
    for panel, name in zip(axes[0], networks):
        part = frame[frame.network == name].dropna(subset="ratio")
        for method, rows in part.groupby("method", sort=False):
            style = {"color": names.COLOURS.get(method), "linewidth": 1.4}
            found = rows[["ratio", "ratio_low", "ratio_high"]].set_axis(
                ["mean", "low", "high"], axis=1
            )
            figures.bars(
                panel,
                1 - rows.sparsity,
                found,
                label=names.method_name(method),
                marker=names.MARKERS.get(method, "o"),
                markersize=5,
                capsize=2,
                **style,
            )
            panel.plot(1 - rows.sparsity, rows.dense_ratio, linestyle="--", alpha=0.6, **style)
        panel.axhline(1, color="black", linewidth=1.2)
        if np.isfinite(start := crossovers.get(name, np.nan)):
            panel.axvline(1 - start, color="grey", linestyle=":", linewidth=1.2)
            panel.annotate(
                f"sparse engine from {names.percent(start)}",
                (1 - start, 0.97),
                xycoords=("data", "axes fraction"),
                rotation=90,
                fontsize=8,
                xytext=(3, 0),
                textcoords="offset points",
                color="grey",
                verticalalignment="top",
            )
        panel.set(
            xscale="log",
            yscale="log",
            xlabel="sparsity (%)",
            title=names.MODELS.get(name, name),
            xlim=(0.6, 0.8 * (1 - frame.sparsity.max())),
        )
        shown = [s for s in (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999) if s <= frame.sparsity.max()]
        panel.set_xticks([1 - s for s in shown], [f"{100 * s:g}" for s in shown])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}×")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_locator(NullLocator())
    axes[0][0].set_ylabel("speed of a training step against plain PyTorch")
    axes[0][-1].plot([], [], color="grey", linestyle="--", label="compaction alone")
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    path.write_bytes(image.png(made))
    plt.close(made)


def size_figure(frame: pd.DataFrame, path: Path) -> None:
    """Seconds and copies of the weights against the number of weights: a line an operation through
    the wide networks, a marker for each of the others.
    """
    sns.set_theme(context="notebook", style="whitegrid")
    made, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    wide = frame.network.str.startswith("wide")
    for colour, (operation, part) in zip(
        sns.color_palette("colorblind"), frame.groupby("operation", sort=False)
    ):
        for axis, column in zip(axes, ("seconds", "copies")):
            line, others = part[wide[part.index]], part[~wide[part.index]]
            axis.plot(line.weights, line[column], color=colour, label=operation)
            axis.plot(others.weights, others[column], "o", color=colour, markersize=5)
    for axis, label in zip(axes, ("seconds", "memory in copies of the weights")):
        axis.set(xscale="log", yscale="log", xlabel="weights", ylabel=label)
    axes[1].axhline(size.COPIES, color="grey", linestyle=":", linewidth=1.2)
    axes[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    path.write_bytes(image.png(made))
    plt.close(made)


#: networks whose masks are made in few rounds
FEW_ROUNDS = [
    names.MODELS.get(name, name) for name, network in NETWORKS.items() if network.rounds < 100
]
CAPTIONS = {
    "training": (
        "Images a second of one SGD step on one thread. `ratio`: ours against plain PyTorch,"
        " median [quartiles] over the rounds of one run.\n"
        "`dense_ratio`: compaction alone, dense steps on the compacted network, against plain."
        " `sparse_ratio`: the sparse engine after compaction, against plain.\n"
        "`macs`: multiply-adds of live weights in one image's forward pass; `live_share`: their"
        " share of those of the compacted network.\n"
        "`shared_ratio`: so many networks on the same batches as a sweep trains together"
        f" ({studies.SHARE}), each counted once, against plain.\n"
        "`useful_share`: FLOP/s on live weights as a share of a matrix product's in the same"
        f" rounds.\nMasks of SynFlow and Panning on {', '.join(FEW_ROUNDS)} are of 10 rounds."
    ),
    "agreement": (
        "Do the engines agree? Distances to PyTorch in float64 (the largest relative one of a"
        " weight tensor) after so many steps of the sparse engine, and of PyTorch in float32;"
        " test accuracy of both over the same seeds, and the mean difference with its 95 %"
        " interval."
    ),
    "memory": (
        "Peak memory of training, in MiB beyond network, mask and data; each in a process of its"
        " own."
    ),
    "scoring": (
        "Seconds to a mask of 2 %, one batch. `ratio`: ours against the straightforward"
        " implementation, of which `rounds_measured` rounds were run and scaled."
    ),
    "selection": (
        "Keeping the top 2 % of so many scores. `ratio`: `masks.keep_top` against a full sort."
    ),
    "agent": (
        "Milliseconds a step of the agent's environment. `ratio`: a whole episode of ours against"
        " the straightforward implementation, of which `rounds_measured` rounds were run and"
        " scaled; the pool of batches is drawn before the clock starts.\n`look`: at the"
        " sub-network, with its gradient over all weights; `at_least`: its multiply-adds at the"
        " speed of a matrix product; `at_most`: the ratio if it took no more."
    ),
    "fixes": "Departures from the authors' environment, and what difference each makes.",
    "grid": (
        "A whole grid through `studies.sweep`; `seconds` on the clock, the others summed over the"
        " runs."
    ),
    "limits": (
        "How fast the sparse engine's step could be at 98 % (SNIP), the fastest of"
        f" {roofline.ROUNDS} rounds. `skeleton`: ours with so few"
        " weights that only the units are left; it is the price of images, pooling, normalisation"
        " and the loss.\n`weights_at_least`: the loads of the other weights' multiply-adds at the"
        " speed of the nearest cache. `at_most`: times plain PyTorch with the two together.\n"
        "What else could be done, as times plain PyTorch at most, its own costs not counted:"
        " `those_dense`: layers that are faster dense are dense; `half_the_rest`: the skeleton"
        " takes half the time, as if activations of 16 bits halved all of it;"
        " `images_for_nothing`: several networks share each batch, and none pays for it."
    ),
    "threads": (
        "Milliseconds of a gradient over a batch, on one thread and on a thread a core, alone and"
        " beside `busy_processes` other processes. `ratio`: how many times faster one thread is."
        f" From {threads.LARGE:.0e} multiply-adds of a pass on, `prune` and `train` take more"
        " than one."
    ),
    "early": (
        "Seconds of a whole training that is cut once, when its indicator says so (study 11), and"
        " of the dense network's, in turns; scores and tests included. `share`: of its seconds."
    ),
    "size": (
        f"What each operation costs as networks grow, on {size.BATCH} images, one thread; steps"
        f" and `keep_top` at {names.percent(1 - size.DENSITY)} sparsity. `wide-` networks are"
        " 784 - w - w - 10 with ReLU.\n"
        f"A round of Panning is the mean of {size.ROUNDS} on one batch. `copies`: the most that"
        " a fresh process holds beyond its libraries, network and activations included, in"
        " float32 copies of the weights."
    ),
}
HIDDEN = ["macs_dense", "flops", "matrix_peak", "effective_density", "ratio_low", "ratio_high"]


def tables(parts: dict[str, pd.DataFrame]) -> str:
    """All that was measured, in Markdown; what is not shown is in the CSV files."""
    text = []
    for name, frame in parts.items():
        shown = frame.astype(object).where(frame.notna(), None)
        for column in ("plain_per_second", "ours_per_second"):
            if column in frame:
                shown[column] = [f"{v:,.0f}" if v else None for v in shown[column]]
        if "ratio" in frame:
            shown["ratio"] = [
                f"{r.ratio:.3g} [{r.ratio_low:.3g}, {r.ratio_high:.3g}]" if r.ratio > 0 else None
                for r in frame.itertuples()
            ]
        text.append(CAPTIONS[name])
        if name == "size":
            text += size_tables(frame)
            continue
        text.append(
            shown.drop(columns=HIDDEN, errors="ignore").to_markdown(
                index=False, floatfmt=".4g", missingval="-"
            )
        )
        if name == "training" and len(found := crossover(frame)):
            text += [
                (
                    "From which sparsity on the sparse engine is faster than compaction alone,"
                    " whatever the method:"
                ),
                found.to_markdown(index=False, floatfmt=".3g"),
            ]
    return "\n\n".join(text) + "\n"


def size_tables(frame: pd.DataFrame) -> list[str]:
    """Seconds and copies, a row a network and a column an operation; slopes, and what they say."""
    text = []
    for column in ("seconds", "copies"):
        table = frame.pivot(index=["network", "weights"], columns="operation", values=column)
        table = table[frame.operation.unique()].sort_index(level="weights").reset_index()
        table.weights = table.weights.map("{:,}".format)
        text += [f"`{column}`:", table.to_markdown(index=False, floatfmt=".3g")]
    fitted = size.slopes(frame)
    return [
        *text,
        f"Slopes over the wide networks from {size.FITTED_FROM:,} weights on, and the copies that"
        " the largest takes:",
        fitted.to_markdown(index=False, floatfmt=".2f"),
        size.verdict(fitted),
    ]
