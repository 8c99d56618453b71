"""The runs of a ledger: a row each in a table, and all there is to know of one."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from ...experiments import studies
from ...experiments.ledger import Ledger
from ...runs import base
from .. import names, plain, sources, tables

USUAL = "by seed"  #: the order of the training images, where a run names no other


def read(path: Path) -> list[dict]:
    """The finished runs of a ledger, each with the number of its ``line``; endless texts are
    cut."""
    rows, places = Ledger(path).rows(), {}
    for place, line in enumerate(path.read_bytes().split(b"\n") if rows else [], 1):
        if b'"metrics"' in line:  # the first such line of a key counts, as for the ledger
            with suppress(ValueError):  # a torn one is none
                places.setdefault(json.loads(line)["key"], place)
    return [{**_cut(row), "line": places[row["key"]]} for row in rows]


def _cut(value: object) -> object:
    """``plain.cut`` of every text inside."""
    if isinstance(value, dict):
        return {name: _cut(each) for name, each in value.items()}
    if isinstance(value, list) and not (value and isinstance(value[0], float)):  # a curve
        return [_cut(each) for each in value]
    return plain.cut(value) if isinstance(value, str) else value


def runs_table(lines: list[dict], current: set[str]) -> pd.DataFrame:
    """One row a run, all text, in the words of the tables: settings that vary and those that every
    reader looks for, results, origin.

    ``current`` are the keys of the study's grid; a column of that name tells them from the runs
    that an earlier grid has left, where there are any.
    """
    if not lines:
        return pd.DataFrame()
    tidy = tables.tidy(lines)
    known = pd.DataFrame(
        {
            "key": tidy.key.str[:8],
            "data": [line["provenance"]["data"]["title"] for line in lines],
            "network": tidy.model.map(lambda name: names.MODELS.get(name, name)),
            "method": tidy.apply(names.label, axis=1),
            "sparsity": tidy.sparsity.map(names.percent),
            "seed": tidy.seed,
            "rounds": tidy["rounds"].map(lambda rounds: "" if pd.isna(rounds) else f"{rounds:.0f}"),
            "control": tidy.control,
            "epochs": tidy.epochs,
        }
    )
    # "network" is the field here: whether the network is recorded.
    rest = {field.name for field in dataclasses.fields(studies.Run)} - {
        *known,
        "dataset",
        "model",
    } | {"network"}
    others = (
        tidy[[name for name in tidy if name in rest]]
        .rename(columns={"network": "network recorded"})
        .assign(current=tidy.key.isin(current), order=[_order(line) for line in lines])
    )
    results = pd.DataFrame(
        {
            "test accuracy (%)": [
                "" if pd.isna(a) else f"{100 * a:.2f}" for a in tidy.test_accuracy
            ],
            "effective weights": tidy.effective_weights.map("{:,.0f}".format),
        }
    )
    return pd.concat([known, _varying(others), results, _origins(lines)], axis=1).astype(str)


def other_table(lines: list[dict]) -> pd.DataFrame:
    """The same for the runs of another kind."""
    settings = pd.DataFrame([dataclasses.asdict(base.read(line)) for line in lines])
    results = pd.DataFrame(
        [
            {
                name: _word(value)
                for name, value in line["metrics"].items()
                if not isinstance(value, (dict, list))
            }
            for line in lines
        ]
    )
    keys = pd.Series([line["key"][:8] for line in lines], name="key")
    return pd.concat(
        [keys, _varying(settings), results.rename(columns=_spaced), _origins(lines)], axis=1
    ).astype(str)


def settings(lines: list[dict]) -> list[str]:
    """The columns of ``other_table`` that are settings."""
    return list(_varying(pd.DataFrame([dataclasses.asdict(base.read(line)) for line in lines])))


def _order(line: dict) -> str:
    return str(line["run"].get("order", USUAL))


def _varying(settings: pd.DataFrame) -> pd.DataFrame:
    words = settings.map(_word).rename(columns=_spaced)
    return words.loc[:, words.nunique() > 1]


def _origins(lines: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "seconds": f"{line['provenance']['seconds']:.4g}",
                "commit": sources.commit(line["provenance"]),
                "device": line["provenance"]["device"],
                "line": line["line"],
            }
            for line in lines
        ]
    )


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _word(value: object) -> str:
    if isinstance(value, (list, tuple)):  # of options: pairs of name and value
        return ", ".join(
            " ".join(map(_word, each)) if isinstance(each, tuple) else _word(each) for each in value
        )
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    return (
        ""
        if value is None or value != value
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )


# --- one run --------------------------------------------------------------------------------------


def repeat(line: dict) -> str:
    """The Python lines that do a run again, of any kind."""
    kind = line.get("kind", base.FIRST)
    where = 'folder=Path(".")' if kind == "agent" else ""  # an agent leaves its policy there
    imports = ["from pathlib import Path\n"] if where else []
    return "\n".join(
        [
            *imports,
            "from panning_core.runs import base\n",
            f"run = base.read({{'kind': {kind!r}, 'run': {line['run']!r}}})",
            f"metrics = run.execute(base.Context({where}))",
        ]
    )


def script(lines: list[dict]) -> str:
    """All runs of a study as a script for their page: short key -> ledger line, and how to repeat
    it.
    """
    told = {
        line["key"][:8]: {
            "line": {name: value for name, value in line.items() if name != "line"},
            "repeat": repeat(line),
        }
        for line in lines
    }
    return f"show({json.dumps(told, separators=(',', ':'))});\n"
