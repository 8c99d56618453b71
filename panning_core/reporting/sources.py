"""What a table or figure was made of: the line of small print below it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .. import ROOT
from ..errors import UserError, brief
from ..runs import base, versions


class Source(NamedTuple):
    """What a table or figure was made of.

    Attributes:
        line: how many runs, by which code, where and on which data.
        files: the ledgers, or what else it was read from, relative to the profile's folder.
    """

    line: str
    files: tuple[str, ...]


def commit(origin: dict) -> str:
    """The commit of a provenance, short, with a ``+`` if the code had been changed since it."""
    return (origin["commit"] or "unknown")[:7] + "+" * bool(origin["dirty"])


def _torch(origin: dict) -> str:
    return f"PyTorch {origin['versions']['torch'].partition('+')[0]}"


def ledger(folder: Path, lines: list[dict]) -> Source:
    """The source of what a study shows: lines of the ledger in its ``folder``.

    Code is a range of commits as git writes it, oldest run first. A ``+`` says that the code had
    been changed since the commit; such commits are always named.
    """
    files = (f"{folder.name}/runs.jsonl",) if (folder / "runs.jsonl").exists() else ()
    origins = [line["provenance"] for line in lines]
    origins.sort(key=lambda origin: origin["finished"])
    if not origins:
        return Source("", files)
    parts = [f"{_counts(lines)} of {folder.name}", f"code {_commits(origins)}"]
    parts.append(_listed(_torch(origin) for origin in origins))
    parts.append(_listed(origin["device"] for origin in origins))
    if titles := _listed(origin["data"]["title"] for origin in origins if "data" in origin):
        parts.append(titles)
    parts += filter(None, (_diverged(lines), versions.told(lines)))
    return Source(" · ".join(parts), files)


def _counts(lines: list[dict]) -> str:
    """``"1 run"``, or ``"5 runs (3 prune, 2 toy)"`` where there are several kinds."""
    kinds = Counter(line.get("kind", base.FIRST) for line in lines)
    words = f"{len(lines)} run{'s' * (len(lines) != 1)}"
    parts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return words + f" ({parts})" * (len(kinds) > 1)


def _diverged(lines: list[dict]) -> str:
    """How many trainings came to a loss that is no number; empty if none did."""
    count = sum(bool(line["metrics"].get("diverged")) for line in lines)
    return f"{count} of {len(lines)} diverged" if count else ""


def _commits(origins: list[dict]) -> str:
    commits = list(dict.fromkeys(map(commit, origins)))
    ends = (commits[0], commits[-1])
    return "..".join(each for each in commits if each in ends or "+" in each)


def _listed(words: Iterable[str]) -> str:
    """Each different word once, in the order of their first places."""
    return ", ".join(dict.fromkeys(brief(word) for word in words))


def benchmark(results: Path, part: str) -> tuple[pd.DataFrame, dict, Source]:
    """A benchmark's table, the machine it was measured on, and both as a source.

    Your own benchmark in ``results`` is taken first, then the committed one.

    Raises:
        UserError: it was not measured.
    """
    folders = [results / "benchmarks", ROOT / "results" / "benchmarks"]
    place = next((folder for folder in folders if (folder / f"{part}.csv").exists()), None)
    if place is None:
        raise UserError(
            f"{folders[0] / part}.csv is missing; './run_all.sh bench --only {part}' measures it"
        )
    machine = json.loads((place / "machine.json").read_text())[part]
    line = f"benchmarks/{part}.csv, measured on {machine['date']} · code {commit(machine)}"
    line += f" · {_torch(machine)} · {machine['processor']}"
    files = (f"../benchmarks/{part}.csv",) if place == folders[0] else ()
    return pd.read_csv(place / f"{part}.csv"), machine, Source(line, files)
