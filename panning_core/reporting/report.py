"""What a study shows: tables, figures and verdicts, saved beside its ledger, and the report made of them.

The narrative is the notebook's own: ``results/PROFILE/README.md`` is the text of the executed notebooks with the
tables, figures and verdicts at the places where their cells show them.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from .. import ROOT
from ..analysis import statistics
from ..analysis.statistics import interval
from ..errors import UserError, pick
from ..experiments import studies
from ..experiments.ledger import Ledger

MIME = "application/vnd.panning+json"  #: marks an output of a notebook that belongs into the report
VERDICTS = {
    "holds": "✔",
    "holds in part": "◐",
    "no worse": "≈",
    "fails": "✘",
    "undecided": "?",
    "not judged": "–",
}
OWN = "this study"  #: the ``paper`` of a claim that nobody has published
#: of ``verdicts.csv``
COLUMNS = ["paper", "claim", "verdict", "interval", "n", "rule", "family", "figure", "evidence"]
MARKED = {
    "better": "▲",
    "no worse": "≈",
    "worse": "▼",
    "open": "",
    "few": "",
}  #: outcomes in tables
#: outcomes in sentences
SAID = {
    "better": "better in",
    "no worse": "not worse by what matters in",
    "worse": "worse in",
    "open": "open in",
    "few": "too few seeds in",
}

#: How tables and figures show a method, in the order in which they list them: its name, colour and marker.
LOOKS = {
    "dense": ("dense", "black", "_"),
    "panning-agent": ("Panning (agent)", "#e377c2", "*"),
    "panning": ("Panning (staged, sum)", "#d62728", "o"),
    "panning-product": ("Panning (staged, product)", "#ff9896", "o"),
    "panning-masked": ("Panning (masked product)", "#a50f15", "o"),
    "synflow": ("SynFlow-100", "#1f77b4", "s"),
    "iterative-snip": ("Iterative SNIP-100", "#2ca02c", "D"),
    "force": ("FORCE-100", "#98df8a", "^"),
    "ntk-sap": ("NTK-SAP", "#17becf", "d"),
    "prospr": ("ProsPr", "#ff7f0e", "p"),
    "snip": ("SNIP", "#9467bd", "v"),
    "grasp": ("GraSP (signed)", "#8c564b", "P"),
    "grasp-abs": ("GraSP (absolute)", "#c49c94", "X"),
    "phew": ("PHEW", "#393b79", "h"),
    "smart-ratio": ("smart ratio", "#9c9ede", ">"),
    "magnitude": ("magnitude", "#7f7f7f", "s"),
    "random": ("random", "#bcbd22", "."),
    "gumbel-softmax": ("Gumbel-Softmax gates", "#006d5b", "*"),
    "iterative-magnitude": ("iterative magnitude", "#e6ab02", "<"),
    "trained-magnitude": ("magnitude after training", "#666666", "8"),
}
METHODS = {method: name for method, (name, _, _) in LOOKS.items()}
COLOURS = {method: colour for method, (_, colour, _) in LOOKS.items()}
MARKERS = {method: marker for method, (_, _, marker) in LOOKS.items()}
MODELS = {
    "lenet300": "LeNet-300-100",
    "lenet5": "LeNet-5",
    "resnet20": "ResNet-20",
    "resnet18": "ResNet-18",
    "vgg16": "VGG-16",
}


def label(run: pd.Series) -> str:
    """A run's method with its rounds, where they are not the method's own."""
    if pd.isna(run["rounds"]):
        return method_name(run["method"])
    return f"{method_name(run['method']).removesuffix('-100')}, {int(run['rounds'])} round{'s' if run['rounds'] > 1 else ''}"


def method_name(method: str) -> str:
    """The method's name in tables and figures; a method of your own keeps its key."""
    return METHODS.get(method, method)


def percent(sparsity: float) -> str:
    """0.995 -> ``"99.5 %"``."""
    return f"{100 * sparsity:.6g} %"


def seeds(runs: pd.DataFrame) -> str:
    """``"10 seeds"``, or how few and how many where it hangs on the method and sparsity."""
    counts = runs.groupby(["method", "sparsity"]).seed.nunique()
    least, most = counts.min(), counts.max()
    return f"{least} to {most} seeds" if least < most else f"{most} seed{'s' if most > 1 else ''}"


def fate(metrics: dict) -> str:
    """What became of a run's network, by its curve.

    ``dead``: no path was left. ``plateau``: the loss never moved by more than a fiftieth, and it guesses. ``collapsed``: in the end it has less than half of
    its best validation accuracy, or its loss is no number. ``trained``: none of these. ``untrained``: it was not to be trained.
    """
    if metrics.get("effective_weights") == 0:
        return "dead"
    if "curve" not in metrics:
        return "untrained"
    losses, accuracies = metrics["curve"]["loss"], metrics["curve"]["validation_accuracy"]
    if None in losses:
        return "collapsed"
    if min(losses) > 0.98 * max(losses) and max(accuracies) < 0.5:
        return "plateau"
    return "collapsed" if accuracies[-1] < max(accuracies) / 2 else "trained"


def fates(found: pd.Series) -> str:
    """The fates of some runs in a cell of a table; "" where all were trained."""
    counts = found.value_counts()
    return ", ".join(
        f"{counts[name]} {name}" for name in ("dead", "plateau", "collapsed") if name in counts
    )


def tidy(lines: list[dict]) -> pd.DataFrame:
    """One row a run: its key, every field of the run, defaults filled in, every single-valued metric, and its ``fate``."""
    rows = []
    for line in lines:
        run = studies.Run(**line["run"])
        fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
        found = {k: v for k, v in line["metrics"].items() if not isinstance(v, (dict, list))}
        rows.append({"key": line["key"], **fields, **found, "fate": fate(line["metrics"])})
    return pd.DataFrame(rows)


class Source(NamedTuple):
    """What a table or figure was made of.

    Attributes:
        line: how many runs, by which code, where and on which data.
        files: the ledgers, or what else it was read from, relative to the profile's folder.
    """

    line: str
    files: tuple[str, ...]


def commit(origin: dict) -> str:
    """The commit of a provenance, short, with a ``+`` if the code had been changed since."""
    return (origin["commit"] or "unknown")[:7] + "+" * bool(origin["dirty"])


def _torch(origin: dict) -> str:
    return f"PyTorch {origin['versions']['torch'].partition('+')[0]}"


class Study:
    """A study inside its notebook: does the missing runs, reads the ledger, and saves what is shown.

    Attributes:
        lines: the ledger's lines, in the order of the grid.
        runs: ``tidy`` of them.
        agents: a dict for each agent that the study has trained: ``name`` of its entry in the profile, every field of its training, ``seconds``, ``metrics``.
        folder: where its ledger, tables and figures lie.
    """

    def __init__(self, name: str, profile: str, jobs: int | None = None, device: str = "cpu"):
        sns.set_theme(context="notebook", style="whitegrid")
        self.folder = studies.folder(name, profile)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines = studies.sweep(name, profile, jobs, device)
        self.runs = tidy(self.lines)
        self.agents = studies.agents(name, profile)
        self._verdicts: list[dict] = []
        self._shown: dict[str, str] = {}

    @property
    def source(self) -> Source:
        """The study's ledgers: the runs of its grid, and the agents and toys it has trained.

        Code is a range of commits as git writes it, oldest run first. A ``+`` says that it had been changed since the commit; such commits are always named.
        """
        ledgers = {
            path: self.lines if path.stem == "runs" else Ledger(path).rows()
            for path in sorted(
                self.folder.glob("*.jsonl"), key=lambda path: (path.stem != "runs", path.stem)
            )
        }
        origins = sorted(
            (line["provenance"] for lines in ledgers.values() for line in lines),
            key=lambda origin: origin["finished"],
        )
        commits = list(dict.fromkeys(map(commit, origins)))
        counts = ", ".join(
            f"{len(lines)} {path.stem.removesuffix('s' * (len(lines) == 1))}"
            for path, lines in ledgers.items()
        )
        code = "..".join(
            each for each in commits if each in (commits[0], commits[-1]) or "+" in each
        )
        several = (
            map(_torch, origins),
            (origin["device"] for origin in origins),
            (origin["data"]["title"] for origin in origins if "data" in origin),
        )
        line = " · ".join(
            [
                f"{counts} of {self.folder.name}",
                f"code {code}",
                *(", ".join(dict.fromkeys(values)) for values in several),
            ]
        )
        return Source(
            line if origins else "", tuple(f"{path.parent.name}/{path.name}" for path in ledgers)
        )

    def benchmark(self, part: str) -> tuple[pd.DataFrame, dict, Source]:
        """A benchmark's table, the machine it was measured on, and both as a source; your own in ``$PANNING_RESULTS``, or else the committed one.

        Raises:
            UserError: it was not measured.
        """
        folders = [
            folder / "benchmarks" for folder in (self.folder.parent.parent, ROOT / "results")
        ]
        place = next((folder for folder in folders if (folder / f"{part}.csv").exists()), None)
        if place is None:
            raise UserError(
                f"{folders[0] / part}.csv is missing; './run_all.sh bench --only {part}' measures it"
            )
        machine = json.loads((place / "machine.json").read_text())[part]
        line = f"benchmarks/{part}.csv, measured on {machine['date']} · code {commit(machine)} · {_torch(machine)} · {machine['processor']}"
        return (
            pd.read_csv(place / f"{part}.csv"),
            machine,
            Source(line, (f"../benchmarks/{part}.csv",) if place == folders[0] else ()),
        )

    def setting(self) -> None:
        """Show what was run: data copy, networks, seeds, epochs beside the published recipe's, and where."""
        rows = []
        for line in self.lines:
            run, origin = studies.Run(**line["run"]), line["provenance"]
            rows.append(
                {
                    "data": origin["data"]["title"],
                    "network": MODELS.get(run.model, run.model),
                    "initialisation": run.init,
                    "input": run.normalisation,
                    "epochs (published)": f"{run.training_recipe().epochs if line['metrics']['epochs'] else 'none, pruned only'} ({dataclasses.replace(run, epochs=None).training_recipe().epochs})",
                    "seed": run.seed,
                    "engine": line["metrics"]["engine"],
                    "device": f"{origin['device']}, PyTorch {origin['versions']['torch']}",
                }
            )
        frame = pd.DataFrame(rows)
        keys = [c for c in frame.columns if c not in ("seed", "engine")]
        table = (
            frame.groupby(keys, sort=False)
            .agg(
                runs=("seed", "size"),
                seeds=("seed", "nunique"),
                engines=(
                    "engine",
                    lambda e: ", ".join(
                        f"{name} {count}" for name, count in e.value_counts().items()
                    ),
                ),
            )
            .reset_index()
        )
        self.table(
            table,
            "setting",
            "What was run. Trained is the effective mask; the last epoch's test accuracy is the headline.",
        )

    def table(
        self, frame: pd.DataFrame, name: str, caption: str, source: Source | None = None
    ) -> None:
        """Show ``frame`` and save it as ``name.csv`` and ``name.md``; ``source`` where it is not this study's own ledgers."""
        _write(self.folder / f"{name}.csv", frame.to_csv(index=False))
        text = frame.map(
            lambda cell: cell.replace("|", r"\|") if isinstance(cell, str) else cell
        ).to_markdown(index=False, floatfmt=".4g", disable_numparse=True)
        _write(self.folder / f"{name}.md", text + "\n")
        item = self._item("table", f"{name}.md", caption, source)
        _display(
            item,
            {
                "text/markdown": f"{_italic(caption)}<br>\n<small>{item['provenance']}</small>\n\n{text}"
            },
        )

    def figure(
        self, figure: plt.Figure, name: str, caption: str, source: Source | None = None
    ) -> None:
        """Show ``figure`` and save it as ``name.png``, which holds its source as text; ``source`` as in ``table``."""
        item = self._item("figure", f"{name}.png", caption, source)
        buffer = io.BytesIO()
        figure.savefig(
            buffer,
            format="png",
            dpi=110,
            bbox_inches="tight",
            metadata={"Software": None, "Source": item["provenance"]},
        )
        plt.close(figure)
        _write(self.folder / f"{name}.png", buffer.getvalue())
        _display(item, {"image/png": base64.b64encode(buffer.getvalue()).decode()})

    def _item(self, kind: str, file: str, caption: str, source: Source | None) -> dict:
        made_of, name = source or self.source, Path(file).stem
        self._shown[name] = file if kind == "figure" else self._shown.get(name, file)
        return {
            "kind": kind,
            "file": file,
            "caption": caption,
            "provenance": made_of.line,
            "ledgers": made_of.files,
        }

    def keep(self, text: str, name: str) -> None:
        """Save ``text`` beside the tables, as the file ``name``."""
        _write(self.folder / name, text + "\n")

    def verdict(
        self,
        claim: str,
        verdict: str,
        evidence: str,
        *,
        paper: str,
        n: int,
        interval: str,
        figure: str,
        rule: str,
        family: int = 1,
    ) -> None:
        """Record the verdict on ``claim``. All of them lie in ``verdicts.csv``.

        Args:
            verdict: a key of ``VERDICTS``; below ``statistics.LEAST`` repetitions it becomes "not judged".
            evidence: all that was measured, in sentences.
            paper: whose claim it is, such as "Kang et al. 2022", or ``OWN``.
            n: seeds, or whatever else was repeated.
            interval: the estimate on which the verdict hangs, with its unit: of several, the one least favourable to the claim.
            figure: name of the figure or table of this study that shows it; of two with this name, the figure.
            rule: how the numbers became the verdict.
            family: how many comparisons were adjusted together.

        Raises:
            UserError: no such verdict, or no such figure or table was shown.
        """
        verdict = verdict if n >= statistics.LEAST else "not judged"
        mark = f"{pick('verdict', verdict, VERDICTS)} {verdict}"
        file = pick("figure or table", figure, self._shown)
        item = {
            "paper": paper,
            "claim": claim,
            "verdict": verdict,
            "interval": interval,
            "n": int(n),
            "rule": rule,
            "family": int(family),
            "figure": file,
            "evidence": evidence,
        }
        self._verdicts.append(item)
        _write(
            self.folder / "verdicts.csv", pd.DataFrame(self._verdicts)[COLUMNS].to_csv(index=False)
        )
        small = f"{rule}; family of {family}; n = {n}"
        html = f"<blockquote><p>{claim} ({paper})</p><p><strong>{mark}</strong>. {evidence}</p><p><small>{small}</small></p></blockquote>"
        _display({"kind": "verdict", **item, "verdict": mark}, {"text/html": html})

    def judge(
        self,
        claim: str,
        cells: pd.DataFrame,
        figure: str,
        paper: str = OWN,
        kind: str = "better",
        every: bool = False,
        unit: str = "points",
        after: str = "",
    ) -> None:
        """Record what ``statistics.verdict`` says of ``claim`` in these cells of one family, and nothing where there are none.

        Args:
            cells: of ``statistics.compare`` or ``compare_errors``, made one family by ``statistics.judged``.
            kind, every: as in ``statistics.verdict``.
            unit: a key of ``UNITS``.
            after: more evidence, in sentences.
        """
        if not len(cells):
            return
        worst = statistics.decisive(cells)
        self.verdict(
            claim, statistics.verdict(cells, kind, every), f"{tally(cells, unit)}{after}", paper=paper,
            n=int(cells.n.min()), interval=told(worst, unit), figure=figure, rule=statistics.RULE, family=int(worst.family),
        )  # fmt: skip

    def differences(
        self, cells: pd.DataFrame, name: str, caption: str, source: Source | None = None
    ) -> None:
        """Show cells of ``statistics.compare`` as a table: a row a rival, a column a sparsity, and the verdict below each."""
        marked = [
            f"{100 * r.difference:+.2f} {MARKED[r.outcome]}".strip() for r in cells.itertuples()
        ]
        table = cells.assign(cell=marked, rival=cells.rival.map(method_name))
        table = table.pivot(index="rival", columns="sparsity", values="cell")
        table = table.reindex(dict.fromkeys(cells.rival.map(method_name))).fillna("")
        words = {
            level: statistics.verdict(part, every=True) for level, part in cells.groupby("sparsity")
        }
        table.loc["better than all of these?"] = pd.Series(words)
        table.columns = [percent(level) for level in table.columns]
        legend = f"Points of accuracy, paired over n = {cells.n.min()} seeds; positive: better. ▲ better and ▼ worse, Holm over all {len(cells)}; ≈ not worse by what matters."
        self.table(table.rename_axis("minus").reset_index(), name, f"{caption} {legend}", source)


#: unit -> its value and interval in words, of a difference
UNITS = {
    "points": lambda d, low, high: f"{100 * d:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]",
    "errors": lambda d, low, high: (
        f"{np.exp(-d):.2f} times the errors [{np.exp(-high):.2f}, {np.exp(-low):.2f}]"
    ),
    "returns": lambda d, low, high: f"{d:+.2f} of return [{low:+.2f}, {high:+.2f}]",
}


def told(cell: pd.Series, unit: str = "points") -> str:
    """A cell of ``statistics.compare`` in words."""
    place = f" at {percent(cell['sparsity'])}" if "sparsity" in cell else ""
    p = f", p = {cell['p_holm']:.2g}"
    return (
        UNITS[unit](cell["difference"], cell["low"], cell["high"])
        + f" against {method_name(cell['rival'])}{place}{p}"
    )


def tally(cells: pd.DataFrame, unit: str = "points", most: int = 4) -> str:
    """Cells in sentences: how many have which outcome, and the ``most`` that are least favourable."""
    counts = cells.outcome.value_counts()
    words = [
        f"{SAID[outcome]} {counts[outcome]}"
        for outcome in reversed(statistics.OUTCOMES)
        if outcome in counts
    ]
    listed = "; ".join(
        told(cell, unit) for _, cell in statistics.ranked(cells).head(most).iterrows()
    )
    if len(cells) <= most:
        return f"{listed}; n = {cells.n.min()} seeds."
    return f"Of {len(cells)} comparisons {', '.join(words)}; n = {cells.n.min()} seeds. Least favourable: {listed}."


def verdicts(study: str, profile: str) -> pd.DataFrame:
    """The ``COLUMNS`` of a study's verdicts; empty where it has not run."""
    path = studies.folder(study, profile) / "verdicts.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)


def accuracy_table(
    runs: pd.DataFrame,
    rows: str = "method",
    columns: str = "sparsity",
    value: str = "test_accuracy",
    order: Sequence[str] = (),
) -> pd.DataFrame:
    """Mean and 95 % interval over seeds in per cent, one row for each value of ``rows`` (in this ``order``) and a column for each of ``columns``."""

    def cell(values: pd.Series) -> str:
        mean, low, high, n = interval(values)
        low, high = max(low, 0), min(high, 1)  # Student's interval knows no ends of the scale
        return (
            f"{100 * mean:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
            if n > 1
            else f"{100 * mean:.2f}"
        )

    cells = runs.groupby([rows, columns], sort=False)[value].apply(cell).unstack(columns)
    cells = cells.reindex([row for row in order if row in cells.index]) if order else cells
    cells = cells[sorted(cells.columns)] if columns == "sparsity" else cells
    cells.columns = [percent(c) if columns == "sparsity" else c for c in cells.columns]
    cells.index = [method_name(i) if rows == "method" else i for i in cells.index]
    return cells.fillna("").rename_axis(rows).reset_index()


def accuracy_axes(
    axes: plt.Axes,
    runs: pd.DataFrame,
    dense: pd.DataFrame,
    methods: Sequence[str],
    x: str = "sparsity",
) -> None:
    """Accuracy against sparsity (even steps) or against effective density (log) for each method, with intervals and a dense line."""
    levels = sorted(runs.sparsity.unique())
    for place, method in enumerate(methods):
        groups = [group for _, group in runs[runs.method == method].groupby("sparsity")]
        if not groups:
            continue
        estimates = [interval(100 * group.test_accuracy) for group in groups]
        shift = min(0.05, 0.5 / len(methods)) * (
            place - (len(methods) - 1) / 2
        )  # side by side, so that intervals do not hide each other
        at = (
            [levels.index(g.sparsity.iloc[0]) + shift for g in groups]
            if x == "sparsity"
            else [g.effective_density.mean() for g in groups]
        )
        points = pd.DataFrame(
            {
                "at": at,
                "mean": [e.mean for e in estimates],
                "below": [e.mean - max(e.low, 0) for e in estimates],
                "above": [min(e.high, 100) - e.mean for e in estimates],
            }
        )
        dead = (points["at"] == 0) & (
            x != "sparsity"
        )  # on no line: between them and the live ones lies nothing that was measured
        for part, line in ((points[~dead], "-"), (points[dead], "")):
            axes.errorbar(
                part["at"],
                part["mean"],
                [part.below, part.above],
                label=method_name(method) if line else None,
                color=COLOURS.get(method),
                marker=MARKERS.get(method, "o"),
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
        # A dead network has effective density 0, which a logarithm has no place for: linear below the least live one.
        live = runs.effective_density[runs.effective_density > 0]
        least = 10.0 ** int(np.floor(np.log10(live.min())))
        axes.set_xscale("symlog", linthresh=least, linscale=0.4)
        axes.set_xlim(live.max() * 1.3, -least * 0.15)
        ticks = [10.0**p for p in range(int(np.log10(least)), 0) if 10.0**p < live.max() * 1.3]
        axes.set_xticks([0, *ticks], ["0", *(f"{100 * t:g} %" for t in ticks)], minor=False)
        axes.set_xlabel("effective density (kept weights on a path / all), logarithmic")
    axes.set_ylabel("test accuracy, last epoch (%)")


def estimates(frame: pd.DataFrame, labels: Sequence[str], column: str = "variant") -> plt.Figure:
    """Test error of each of ``labels`` (values of ``column``), a row each and a panel for each sparsity: mean and interval, the first in red.

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
            e = interval(100 * (1 - part.test_accuracy))
            low, high = min(max(e.low, 0.1), e.mean), min(e.high, 100)
            colour = "#d62728" if place == 0 else "#1f77b4"
            panel.errorbar(
                e.mean,
                place,
                xerr=[[e.mean - low], [high - e.mean]],
                fmt="o",
                capsize=3,
                color=colour,
            )
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


def network_axes(
    axes: plt.Axes,
    weights: Sequence[np.ndarray],
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> None:
    """Draw a network of linear layers, weights [out, in] each with 0 for what is pruned: units that have weights, and these as lines.

    A unit stands at the mean height of the units that it reads; lines are red for positive weights and blue for negative ones, thick for large ones.
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
    for names, place, side in ((inputs, 0, "right"), (outputs, len(weights), "left")):
        for unit, name in enumerate(names or []):
            axes.text(
                place + (-0.06 if side == "right" else 0.06),
                heights[place][unit],
                name,
                ha=side,
                va="center",
            )
    axes.axis("off")


# --- the rendered report --------------------------------------------------------------------------------------------


def render(notebooks: list[Path]) -> Path:
    """Write ``README.md`` beside the folders of a profile's executed notebooks; returns its path."""
    parts = [
        "<!-- made from the executed notebooks by `run_all.sh`; edit the notebooks instead -->"
    ]
    for path in notebooks:
        content = json.loads(path.read_text())
        parts.append(f'<a id="{path.stem}"></a>')
        for cell in content["cells"]:
            if cell["cell_type"] == "markdown":
                parts.append(_demote("".join(cell["source"]), first=path == notebooks[0]))
            parts += [_markdown(item, path.parent) for item in items(cell)]
    target = notebooks[0].parent.parent / "README.md"
    _write(target, "\n\n".join(parts) + "\n")
    return target


def items(*cells: dict) -> list[dict]:
    """The tables, figures and verdicts that executed cells show."""
    data = (output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    return [found[MIME] for found in data if MIME in found]


def is_whole(notebook: Path) -> bool:
    """Whether an executed notebook is there with every file that it shows."""
    return notebook.exists() and all(
        (notebook.parent / item["file"]).exists()
        for item in items(*json.loads(notebook.read_text())["cells"])
        if "file" in item
    )


def _demote(text: str, first: bool) -> str:
    """Headings one level down, except in the notebook that gives the report its title."""
    return (
        text
        if first
        else "\n".join("#" + line if line.startswith("#") else line for line in text.splitlines())
    )


def _italic(text: str) -> str:
    return f"*{text.replace('*', chr(92) + '*')}*"


def _markdown(item: dict, folder: Path) -> str:
    if item["kind"] == "verdict":
        return f"> **Claim** ({item['paper']}). {item['claim']}\n>\n> **{item['verdict']}.** {item['evidence']}\n>\n> <sub>{item['rule']}; family of {item['family']}; n = {item['n']}</sub>"
    source = " · ".join([item["provenance"], *(f"[{file}]({file})" for file in item["ledgers"])])
    caption = _italic(item["caption"]) + f"<br>\n<sub>{source}</sub>" * bool(source)
    if item["kind"] == "figure":
        return f"![{item['caption']}]({folder.name}/{item['file']})\n\n{caption}"
    table = (folder / item["file"]).read_text()
    return f"{caption}\n\n{table.replace('](../', '](')}"  # its links start in the study's folder, the report lies above


def _display(item: dict, data: dict) -> None:
    from IPython.display import display

    display({MIME: item, "text/plain": item.get("caption") or item["claim"], **data}, raw=True)


def _write(path: Path, content: str | bytes) -> None:
    """Whole or not at all: an interruption never leaves half a file."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} can not be written ({error.strerror})") from error
