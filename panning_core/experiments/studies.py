"""The laboratory in one name, and its command line.

    python -m panning_core.experiments.studies 03_sparsity_sweep --profile paper

fills a study's ledger, on a machine with PyTorch and no Jupyter as well; the notebook then only
reads.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .. import plugins
from ..errors import UserError
from ..runs.prune import (
    CONTROLS,
    PRUNING,
    SHARE,
    STACK,
    Pruned,
    Run,
    execute,
    execute_together,
    find_mask,
    prune,
    result,
)
from .ledger import Ledger
from .profiles import entry_names, expand, folder, profile, runs, section
from .provenance import provenance
from .sweep import check_machine, perform, sweep

__all__ = [
    "CONTROLS",
    "PRUNING",
    "SHARE",
    "STACK",
    "Pruned",
    "Run",
    "check_machine",
    "entry_names",
    "execute",
    "execute_together",
    "expand",
    "find_mask",
    "folder",
    "perform",
    "profile",
    "provenance",
    "prune",
    "result",
    "runs",
    "section",
    "sweep",
]


def merge(study: str, profile_name: str, other: Path) -> int:
    """Take over the runs of another ledger of a study, also of the separate ones that agents and
    toys once had; returns how many are new.

    Raises:
        UserError: there is no such ledger, or it holds no run of the study.
    """
    kinds = {run.key(): run.kind for run in runs(study, profile_name)}
    if (rows := Ledger(other).rows()) and not any(row["key"] in kinds for row in rows):
        raise UserError(
            f"{other} holds no run of {study} in the profile {profile_name}; it is another "
            "study's, or another profile's"
        )
    return Ledger(folder(study, profile_name) / "runs.jsonl").merge(other, kinds)


with suppress(UserError):  # a plugin that is broken is named where a profile is read
    plugins.load_plugins()

if __name__ == "__main__":
    raise SystemExit("the command is now: python -m panning_core sweep STUDY --profile PROFILE")
