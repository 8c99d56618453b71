"""What a reader must know first of a profile: what it is, and where the published verdicts are."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from ... import ROOT
from ...commands import PROFILE as QUICK
from ..study import VERDICTS
from .contents import OVERVIEW, Contents

PUBLISHED = "paper"  #: the profile whose results are committed
CLAIMS = "claims.csv"  #: the overview's table of claims


def claims(contents: Contents) -> Counter:
    """How many claims of the overview's table have which mark; none without that page."""
    return _counts(contents.folder(OVERVIEW)) if OVERVIEW in contents.notebooks else Counter()


def _counts(folder: Path) -> Counter:
    if not (folder / CLAIMS).exists():
        return Counter()
    return Counter(verdict[0] for verdict in pd.read_csv(folder / CLAIMS, dtype=str).verdict)


def told(found: Counter) -> str:
    """``"of 3 claims 1 holds, 2 fail"``, in the words of the verdicts."""
    parts = [f"{found[mark]} {mark} {words}" for words, mark in VERDICTS.items() if found[mark]]
    return f"of {found.total()} claims {', '.join(parts)}"


def of(contents: Contents) -> dict:
    """Which profile this is, on which data and with how many seeds, and what was published."""
    lines = [
        line for name in contents.names for found in contents.lines(name).values() for line in found
    ]
    titles = {line["provenance"].get("data", {}).get("title") for line in lines}
    seeds = len({line["run"].get("seed", 0) for line in lines})
    return {
        "profile": contents.profile,
        "quick": contents.profile == QUICK,
        "data": sorted(titles - {None}),
        "seeds": f"1 to {seeds}" if seeds > 1 else str(seeds),
        "published": _published(contents.folder(OVERVIEW).parent / "html"),
    }


def _published(start: Path) -> dict:
    """The published verdicts in words, and the address of all of them from the folder ``start``."""
    folder = ROOT / "results" / PUBLISHED
    found = _counts(folder / OVERVIEW)
    pages = [folder / "html" / "index.html", folder / "README.md"]
    there = next((page for page in pages if page.exists()), None)
    return {
        "words": told(found) if found else "in results/paper of the repository",
        "href": there and quote(Path(os.path.relpath(there, start)).as_posix()),
    }
