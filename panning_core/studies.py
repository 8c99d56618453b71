"""The laboratory in one name, for scripts: what a run is, how it is done, and a sweep over many."""

from .errors import command_line
from .experiments.studies import (
    CONTROLS,
    LEARNERS,
    Pruned,
    Run,
    _work,
    agents,
    execute,
    execute_together,
    expand,
    find_mask,
    folder,
    main,
    profile,
    prune,
    result,
    runs,
    sweep,
    toys,
)

__all__ = [
    "CONTROLS",
    "LEARNERS",
    "Pruned",
    "Run",
    "_work",
    "agents",
    "execute",
    "execute_together",
    "expand",
    "find_mask",
    "folder",
    "main",
    "profile",
    "prune",
    "result",
    "runs",
    "sweep",
    "toys",
]

if __name__ == "__main__":
    command_line(main)
