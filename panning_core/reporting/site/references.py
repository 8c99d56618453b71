"""From a number in a table to the runs behind it.

A table that says which runs are behind each of its rows leads to these. Of another, what can be
read off narrows the runs: the labels of the number's row, the header of its column, a network or
data set in the name of the table's file. Nothing is guessed: where a table speaks of what the runs
do not know, its numbers lead to all of them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from ... import data
from .. import names
from .runs import USUAL
from .text import number

#: What a column of labels says of the runs behind its row. "subject" says nothing by itself: a
#: difference stands on the runs of two methods.
FACETS = {
    "data": "data",
    "network": "network",
    "method": "method",
    "pruned by": "method",
    "variant": "method",
    "pruner": "method",
    "sparsity": "sparsity",
    "control": "control",
}
#: columns with the rival of a difference
RIVALS = ("minus", "rival")

Wanted = dict[str, set[str]]  #: column of the table of runs -> the values that it may have


def href(study: str, wanted: Wanted) -> str:
    """The page of a study's runs, narrowed to those that are wanted."""
    parts = [f"{name}={quote('|'.join(sorted(values)))}" for name, values in wanted.items()]
    return f"{study}.runs.html" + f"#{'&'.join(parts)}" * bool(parts)


def matches(runs: list[dict[str, str]], wanted: Wanted) -> bool:
    """Whether there are runs of everything that is wanted."""
    found = [run for run in runs if all(run[name] in values for name, values in wanted.items())]
    return all(values <= {run[name] for run in found} for name, values in wanted.items())


class Labels:
    """Reads tables of pruning runs.

    Args:
        runs: ``runs.runs_table`` of the study that the tables are of.
        titles: of its data sets, by their names in file names.
    """

    def __init__(self, runs: pd.DataFrame, titles: dict[str, str]):
        self.runs, self.titles = runs, titles
        self.values = {facet: set(runs[facet]) for facet in FACETS.values()}
        recipes = set(runs.get("recipe", ()))
        usual = {name for name in recipes if not name.endswith("warm-up")}
        self.usual: Wanted = {"recipe": usual} if usual < recipes else {}

    def given(self, file: str) -> Wanted:
        """What the name of a table's file says of all its numbers."""
        given: dict[str, str] = {"current": "yes"} if "current" in self.runs else {}
        if "order" in self.runs:  # a table of masks shows their usual order
            given["order"] = USUAL
        for part, after in pairwise([*Path(file).stem.split("_"), ""]):
            if after == "epochs":
                given["epochs"] = part
            if part in names.MODELS:
                given["network"] = names.MODELS[part]
            elif part in self.titles:
                given["data"] = self.titles[part]
            if part in data.NORMALISATIONS and "normalisation" in self.runs:
                given["normalisation"] = part
        return {name: {value} for name, value in given.items()} | self.usual

    def wanted(self, given: Wanted, row: dict, header: str, against: str | None) -> Wanted | None:
        """The runs behind a cell; None where it is no number of runs."""
        if header in FACETS or header.startswith("published") or number(row[header]) is None:
            return None
        compared = self._compared(row, header, against)
        found = given | self._told(row) | ({"method": compared} if compared else {})
        for facet, values in self.values.items():
            if header in values and not (compared and facet == "method"):
                if found.setdefault(facet, {header}) != {header}:
                    del found[facet]  # row and column contradict each other
        return found

    def _told(self, row: dict) -> Wanted:
        """What the labels of a row say."""
        named = {FACETS[name]: cell for name, cell in row.items() if name in FACETS}
        return {facet: {cell} for facet, cell in named.items() if cell in self.values[facet]}

    def _compared(self, row: dict, header: str, against: str | None) -> set[str]:
        """The two methods of a difference; none where it is not one of two known methods."""
        methods = self.values["method"]
        rivals = {row[name] for name in RIVALS if row.get(name) in methods}
        subject = header if header in methods else against
        return rivals | {subject} if rivals and subject in methods else set()

    def knows(self, table: pd.DataFrame) -> bool:
        """Whether the runs have every sparsity, network and data set that a table names."""
        named = {"sparsity": {header for header in table if re.fullmatch(r"[\d.]+ %", header)}}
        named |= {name: set(table[name]) for name in ("data", "network") if name in table}
        return all(words <= self.values[name] for name, words in named.items())


class Words:
    """Reads tables of runs of another kind, whose settings have names of their own.

    A label belongs to a setting if it is one of its values, in capitals or not, and of no other
    setting's; a label of several parts, such as ``"SNIP, others frozen"``, has a chance with each.
    A number belongs to the setting that its column is called by.

    Args:
        kind: of the runs.
        runs: ``runs.other_table`` of them.
        settings: which of its columns are settings.
    """

    def __init__(self, kind: str, runs: pd.DataFrame, settings: list[str]):
        self.kind, self.runs = kind, runs.assign(kind=kind)
        self.values = {name: {*runs[name]} - {"", "yes", "no"} for name in settings}
        self.places: dict[str, set[tuple[str, str]]] = {}
        for name, values in self.values.items():
            for value in values:
                if not _measured(value):
                    self.places.setdefault(_plain(value), set()).add((name, value))

    def given(self, file: str) -> Wanted:
        return {"kind": {self.kind}}

    def knows(self, table: pd.DataFrame) -> bool:
        return True

    def wanted(self, given: Wanted, row: dict, header: str, against: str | None) -> Wanted | None:
        if header == next(iter(row)) or not _measured(row[header]):
            return None
        found: Wanted = {}
        for name, cell in [*row.items(), (None, header)]:
            if cell in self.values.get(name, ()):
                found.setdefault(name, set()).add(cell)
            elif not _measured(cell):
                for place, value in filter(None, map(self._only, [cell, *cell.split(", ")])):
                    found.setdefault(place, set()).add(value)
        return given | {name: values for name, values in found.items() if len(values) == 1}

    def _only(self, part: str) -> tuple[str, str] | None:
        """The one setting and value that a part of a label can mean."""
        places = self.places.get(_plain(part), set())
        return next(iter(places)) if len(places) == 1 else None


def _measured(cell: str) -> bool:
    """Whether a cell is a number, with its interval and unit, and no more."""
    return bool(re.fullmatch(r"[+−-]?[\d,.]+(e[+-]?\d+)?( ?[%×])?( \[[^]]*\].{0,2})?", cell))


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def read(
    labels: Labels | Words,
    study: str,
    file: str,
    table: pd.DataFrame,
    sure: bool,
    against: str | None = None,
) -> list[list[str | None]]:
    """For each cell of a table the address of the runs behind its number; None where it has none.

    If the table names what the runs lack, or one cell asks for runs that do not exist, it is of
    something else, and all its cells lead to all runs.

    Args:
        sure: whether the table can be of nothing but these runs.
        against: the method that a table of differences is about.
    """
    given = labels.given(file)
    cells = [
        [labels.wanted(given, row, header, against) for header in table]
        for row in table.to_dict("records")
    ]
    asked = [wanted for row in cells for wanted in row if wanted is not None]
    sure = sure and labels.knows(table) and _exist(labels.runs, asked)

    def address(wanted: Wanted | None) -> str | None:
        if wanted is None:
            return None
        return href(study, wanted if sure and wanted.keys() - {"current", "kind"} else {})

    return [[address(wanted) for wanted in row] for row in cells]


def of_rows(
    study: str, table: pd.DataFrame, keys: list[list[str]], kinds: dict[str, str]
) -> list[list[str | None]]:
    """For each cell of a table the address of the runs of its row, which are known; None where it
    is the row's label or no number.

    Args:
        keys: short keys of the runs of each row.
        kinds: of the study's runs, by their short keys.
    """
    addresses = [
        href(study, {"kind": {kinds[key] for key in row}, "key": set(row)}) for row in keys
    ]
    return [
        [None, *(address if number(cell) is not None else None for cell in row[1:])]
        for row, address in zip(table.itertuples(index=False, name=None), addresses)
    ]


def _exist(runs: pd.DataFrame, asked: list[Wanted]) -> bool:
    """Whether there are runs for every wish."""
    columns = list({name for wanted in asked for name in wanted})
    kinds = runs[columns].drop_duplicates().to_dict("records")
    return all(matches(kinds, wanted) for wanted in asked)
