"""Runs and differences as tables and in sentences."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..analysis import statistics
from ..analysis.statistics import interval
from ..experiments import studies
from ..runs import base
from .names import MODELS, method_name, percent

#: outcomes in tables
MARKED = {
    "better": "▲",
    "no worse": "≈",
    "worse": "▼",
    "open": "",
    "few": "",
}
SAID = {
    "better": "better in",
    "no worse": "not worse by what matters in",
    "worse": "worse in",
    "open": "open in",
    "few": "too few seeds in",
}


def seeds(runs: pd.DataFrame, *by: str) -> str:
    """``"10 seeds"``, or how few and how many where it hangs on ``by``, the method and sparsity if
    nothing is named.
    """
    counts = runs.groupby([*by] or ["method", "sparsity"]).seed.nunique()
    least, most = counts.min(), counts.max()
    return f"{least} to {most} seeds" if least < most else f"{most} seed{'s' if most > 1 else ''}"


def fate(metrics: dict) -> str:
    """What became of a run's network, by its curve.

    ``dead``: no path was left. ``plateau``: the loss never moved by more than a fiftieth, and it
    guesses. ``collapsed``: in the end it has less than half of its best validation accuracy, or its
    loss is no number. ``trained``: none of these. ``untrained``: it was not to be trained.
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


def by_kind(lines: list[dict]) -> dict[str, list[dict]]:
    """Kind -> the ledger's lines of this kind."""
    found: dict[str, list[dict]] = {}
    for line in lines:
        found.setdefault(line.get("kind", base.FIRST), []).append(line)
    return found


def frame(lines: list[dict]) -> pd.DataFrame:
    """One row a run of one kind: its ``key``, every field of the run, defaults filled in, every
    metric, and the ``seconds`` that it took."""
    return pd.DataFrame(
        [
            {
                "key": line["key"],
                **dataclasses.asdict(base.read(line)),
                **line["metrics"],
                "seconds": line["provenance"]["seconds"],
            }
            for line in lines
        ]
    )


def tidy(lines: list[dict]) -> pd.DataFrame:
    """One row a pruning run: its key, every field of the run, defaults filled in, every
    single-valued metric (``epochs`` are those that it trained), and its ``fate``.
    """
    rows = []
    for line in lines:
        run = studies.Run(**line["run"])
        fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
        found = {k: v for k, v in line["metrics"].items() if not isinstance(v, (dict, list))}
        rows.append({"key": line["key"], **fields, **found, "fate": fate(line["metrics"])})
    return pd.DataFrame(rows)


def accuracy_table(
    runs: pd.DataFrame,
    rows: str = "method",
    columns: str = "sparsity",
    value: str = "test_accuracy",
    order: Sequence[str] = (),
) -> pd.DataFrame:
    """Mean and 95 % interval over seeds in per cent, one row for each value of ``rows`` (in this
    ``order``) and a column for each of ``columns``.
    """

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


UNITS = {
    "points": lambda d, low, high: f"{100 * d:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]",
    "errors": lambda d, low, high: (
        f"{np.exp(-d):.2f} times the errors [{np.exp(-high):.2f}, {np.exp(-low):.2f}]"
    ),
    "losses": lambda d, low, high: (
        f"{np.exp(-d):.2f} times the loss [{np.exp(-high):.2f}, {np.exp(-low):.2f}]"
    ),
    "returns": lambda d, low, high: f"{d:+.2f} of return [{low:+.2f}, {high:+.2f}]",
    "nats": lambda d, low, high: f"{d:+.3f} nats [{low:+.3f}, {high:+.3f}]",
}


def told(cell: pd.Series, unit: str = "points") -> str:
    """A cell of ``statistics.compare`` in words; of too few seeds without an interval."""
    place = f" at {percent(cell['sparsity'])}" if "sparsity" in cell else ""
    if "task" in cell:
        place = f" ({cell['task']})"
    number = UNITS[unit](cell["difference"], cell["low"], cell["high"])
    sure = f"p = {cell['p_holm']:.2g}"
    if cell["outcome"] == "few":
        number, sure = number.partition(" [")[0], f"n = {cell['n']} has no interval"
    return f"{number} against {method_name(cell['rival'])}{place}, {sure}"


def points(shares: pd.Series, digits: int = 2) -> str:
    """Mean [95 % interval] of shares in per cent, inside 0 and 100."""
    e = interval(100 * shares)
    low, high = max(e.low, 0), min(e.high, 100)
    return f"{e.mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def tally(cells: pd.DataFrame, unit: str = "points", most: int = 4) -> str:
    """Cells in sentences: how many have which outcome, and the ``most`` that are least
    favourable.
    """
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
    return (
        f"Of {len(cells)} comparisons {', '.join(words)}; n = {cells.n.min()} seeds. Least"
        f" favourable: {listed}."
    )


def differences(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells of ``statistics.compare``: a row a rival, a column a sparsity, below each its
    verdict.
    """
    marked = [f"{100 * r.difference:+.2f} {MARKED[r.outcome]}".strip() for r in cells.itertuples()]
    table = cells.assign(cell=marked, rival=cells.rival.map(method_name))
    table = table.pivot(index="rival", columns="sparsity", values="cell")
    table = table.reindex(dict.fromkeys(cells.rival.map(method_name))).fillna("")
    levels = cells.groupby("sparsity")
    words = {level: statistics.verdict(part, every=True) for level, part in levels}
    table.loc["better than all of these?"] = pd.Series(words)
    table.columns = [percent(level) for level in table.columns]
    return table.rename_axis("minus").reset_index()


def marks(cells: pd.DataFrame) -> str:
    """The outcomes of a rival's cells, those of the lowest sparsity first."""
    return "".join(MARKED[outcome] or "·" for outcome in cells.sort_values("sparsity").outcome)


def ratio(cell: Mapping) -> str:
    """A cell of ``statistics.compare_errors``: times the rival's errors, and its verdict."""
    words = UNITS["errors"](cell["difference"], cell["low"], cell["high"])
    return f"{words.replace(' times the errors', '')} {MARKED[cell['outcome']]}".strip()


def published(runs: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Published test errors in per cent beside those of ``runs``, with standardised input: a row
    for each line of ``path`` whose network, method and sparsity were run.
    """
    rows = []
    for row in pd.read_csv(path).itertuples():
        same = (runs.dataset == "mnist") & (runs.model == row.model) & (runs.method == row.method)
        same &= (runs.sparsity == row.sparsity) & (runs.normalisation == "standardised")
        if same.any():
            error = interval(100 * (1 - runs[same].test_accuracy))
            rows.append(
                {
                    "network": MODELS[row.model],
                    "method": method_name(row.method),
                    "sparsity": percent(row.sparsity),
                    "here (%)": f"{error.mean:.2f} [{error.low:.2f}, {error.high:.2f}]",
                    "n": error.n,
                    "published test error (%)": row.test_error,
                    "source": row.source,
                }
            )
    return pd.DataFrame(rows)


def setting(lines: list[dict]) -> pd.DataFrame:
    """What was run: a row for each data set, network and training, with its runs and seeds."""
    frame = pd.DataFrame([_setting(line) for line in lines])
    keys = [name for name in frame.columns if name not in ("seed", "engine")]
    groups = frame.groupby(keys, sort=False)
    return groups.agg(
        runs=("seed", "size"), seeds=("seed", "nunique"), engines=("engine", _counts)
    ).reset_index()


def _setting(line: dict) -> dict:
    run, origin = studies.Run(**line["run"]), line["provenance"]
    published = dataclasses.replace(run, epochs=None).training_recipe().epochs
    trained = run.training_recipe().epochs if line["metrics"]["epochs"] else "none, pruned only"
    return {
        "data": origin["data"]["title"],
        "network": MODELS.get(run.model, run.model),
        "initialisation": run.init,
        "input": run.normalisation,
        "epochs (published)": f"{trained} ({published})",
        "seed": run.seed,
        "engine": line["metrics"]["engine"],
        "device": f"{origin['device']}, PyTorch {origin['versions']['torch']}",
    }


def _counts(values: pd.Series) -> str:
    return ", ".join(f"{name} {count}" for name, count in values.value_counts().items())


#: what LaTeX has no letter for, or no reader of its source
LATEX = {
    "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$",
    "≈": r"$\approx$",
    "✔": r"$\checkmark$",
    "◐": r"$\circ$",
    "✘": r"$\times$",
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "λ": r"$\lambda$",
}


def to_latex(table: pd.DataFrame, caption: str = "", label: str = "") -> str:
    """A table of the report for a paper: LaTeX that needs the packages booktabs and amssymb.

    Cells, header and ``caption`` are text, escaped where LaTeX would read them as its own.
    """
    caption = re.sub(r"([&%$#_{}])", r"\\\1", caption)
    text = table.to_latex(
        index=False, escape=True, caption=caption or None, label=label or None, na_rep=""
    )
    return text.translate(str.maketrans(LATEX))
