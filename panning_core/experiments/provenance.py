"""The line that a ledger gets for a run, and what produced it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import traceback
from datetime import UTC, datetime
from functools import cache

import torch

from .. import ROOT, __version__, plugins
from ..errors import UserError, shown
from ..runs import base, versions

LONGEST = 2000  #: characters of an error; nobody reads the megabytes that one may hold


@cache
def provenance(device: str) -> dict:
    """What produced a result: commit and whether the code was changed since, versions, device, one
    thread, plugins if there are any. Of this process: a worker asks for itself."""

    changed = _git("status", "--porcelain", "--", "panning_core", "requirements.txt")
    on_cuda = device.startswith("cuda") and torch.cuda.is_available()
    processor = (
        torch.cuda.get_device_name() if on_cuda else platform.processor() or platform.machine()
    )
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "versions": {
            "panning_core": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "device": device,
        "processor": processor,
        "threads": 1,
        **(
            {"plugins": {path.name: digest for path, digest in plugins.PLUGINS.items()}}
            if plugins.PLUGINS
            else {}
        ),
    }


def _git(*command: str) -> str | None:
    """What git says of the checkout; None of one that came as an archive, or without git."""
    # A repository that the checkout happens to lie in is not its own.
    above = {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *command],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | above,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def line(
    done: base.Run,
    found: dict | BaseException,
    seconds: float,
    device: str = "cpu",
    **origin,
) -> dict:
    """A ledger line: its metrics, or the error that came instead."""
    if not isinstance(found, BaseException):
        found = _unsound(found) or found
    if isinstance(found, BaseException):
        outcome = {
            "error": "".join(traceback.format_exception_only(found)).strip()[:LONGEST],
            "traceback": "".join(traceback.format_exception(found))[-10 * LONGEST :],
        }
    else:
        outcome = {"metrics": found}
    origin = {
        **provenance(device),
        "made_by": versions.current(done),
        **origin,
        "seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {
        "kind": done.kind,
        "key": done.key(),
        "run": done.canonical(),
        **outcome,
        "provenance": origin,
    }


def _unsound(metrics: object) -> UserError | None:
    """The error that metrics are which a ledger can not hold."""
    if not isinstance(metrics, dict):
        return UserError(f"the run gave {shown(metrics)}; it must give names and values")
    for name, value in metrics.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError):
            return UserError(
                f"{name} is {shown(value)}, which is no number that can be recorded; a training"
                " that diverged gives such"
            )
    return None
