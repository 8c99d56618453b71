"""By which version of the laboratory's own code a result was made.

A key names the settings of a run and not the code that did it. So each kind of run, each method and
the trainer has a version, which is raised by hand when its *results* change
(``tests/experiments/test_versions.py`` sees that they do), and a ledger line says by which ones it
was made. What a line does not name is of version 1.
"""

from __future__ import annotations

from ..methods import registry
from ..training import VERSION
from . import base


def current(run: base.Run) -> dict[str, int]:
    """What a run is made by now: ``{"trainer": 1, "kind prune": 1, "method snip": 1}``."""
    found, method = {"trainer": VERSION, f"kind {run.kind}": run.version}, getattr(run, "method", 0)
    if method in registry.METHODS:
        found[f"method {method}"] = registry.METHODS[method].version
    return found


def older(line: dict) -> list[str]:
    """What has other results since a ledger line was recorded, in words; empty if nothing has."""
    made_by = line.get("provenance", {}).get("made_by", {})
    return [
        f"{name} {made_by.get(name, 1)}, now {version}"
        for name, version in current(base.read(line)).items()
        if made_by.get(name, 1) < version
    ]


def told(lines: list[dict]) -> str:
    """How many lines are of an earlier version, and of what; empty if none is."""
    found = [words for line in lines if (words := older(line))]
    what = "; ".join(sorted({each for words in found for each in words}))
    return f"{len(found)} of {len(lines)} by an earlier version ({what})" if found else ""
