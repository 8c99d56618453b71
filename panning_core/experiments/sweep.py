"""A sweep: the runs of a study that its ledger lacks are done, and recorded as each is finished."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ..errors import UserError, brief, unknown
from ..runs import base
from . import provenance
from .ledger import Ledger
from .profiles import folder, runs
from .workers import WorkerDied, spread

TIMEOUT = "PANNING_TIMEOUT"  #: where the seconds of --timeout stand, for kernels of notebooks too


def sweep(
    study: str, profile_name: str, jobs: int | None = None, device: str = "cpu"
) -> list[dict]:
    """Do the runs of a study that its ledger lacks and this device is for, kind by kind in the
    order of the grid, and return the ledger's lines of the study.

    On the CPU each run has a process of one thread; on CUDA several are done at once.

    Raises:
        UserError: bad input (before anything runs), or, after all others are done and recorded,
            the runs that failed.
    """
    check_machine(jobs, device)
    wanted = runs(study, profile_name, device)
    ledger = Ledger(folder(study, profile_name) / "runs.jsonl")
    done = {row["key"] for row in ledger.rows()}
    missing = [run for run in wanted if _is_lacking(run, ledger, done)]
    if missing:
        _do(study, missing, len(wanted), ledger, jobs, device)
    return _in_order(ledger, runs(study, profile_name))


def _do(
    study: str, missing: list[base.Run], count: int, ledger: Ledger, jobs: int | None, device: str
) -> None:
    ledger.check_writable()
    kinds = {
        kind: [r for r in missing if type(r) is kind] for kind in dict.fromkeys(map(type, missing))
    }
    for kind, found in kinds.items():
        kind.prepare(found)
    failed, jobs = [], jobs or (1 if device.startswith("cuda") else os.cpu_count() or 1)
    with tqdm(
        total=count,
        initial=count - len(missing),
        desc=study,
        unit="run",
        # A log file wants few lines.
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as bar:
        for kind, found in kinds.items():
            failed += _record(ledger, kind.tasks(found, device), jobs, device, bar.update)
    if failed:
        raise UserError(
            f"{len(failed)} of {count} runs of {study} failed (recorded in {ledger.path}, done "
            f"again next time): {'; '.join(failed[:3])}"
        )


def _is_lacking(run: base.Run, ledger: Ledger, done: set[str] | None = None) -> bool:
    """Whether a run is not in the ledger, or a file of it is gone."""
    return run.key() not in (ledger if done is None else done) or not all(
        path.exists() for path in run.files(ledger.path.parent)
    )


def time_limit() -> float:
    """The seconds of ``--timeout``; 0 is none."""
    return float(os.environ.get(TIMEOUT) or 0)


def _record(
    ledger: Ledger,
    tasks: list[list[base.Run]],
    jobs: int,
    device: str,
    progress: Callable[[int], object],
) -> list[str]:
    """Spread tasks over workers and append the lines of each to the ledger when it is done; returns
    what failed, in words. A run that another sweep has done meanwhile is left out."""

    def drawn() -> Iterator[list[base.Run]]:
        for task in tasks:
            left = [run for run in task if _is_lacking(run, ledger)]
            progress(len(task) - len(left))
            if left:
                yield left

    failed: list[str] = []
    work = partial(perform, device=device, ledger=ledger, limit=time_limit())
    with closing(spread(work, drawn(), min(jobs, len(tasks)))) as finished:
        for task, lines in finished:
            if isinstance(lines, WorkerDied):
                where = _device_of(task[0], device)
                lines = [provenance.line(run, lines, 0.0, where) for run in task]
            ledger.append(*lines)
            progress(len(task))
            failed += [
                f"{brief(run.name())}: {brief(line['error'])}"
                for run, line in zip(task, lines)
                if "error" in line
            ]
    return failed


def perform(
    runs: list[base.Run], device: str, ledger: Ledger | None = None, limit: float = 0
) -> list[dict]:
    """The ledger lines of runs that are done together. An error is a line too: it must not stop the
    other runs. Empty for a run with files that another sweep has done meanwhile.

    Args:
        limit: seconds after which a run is an error; 0 is none.
    """
    # Two workers with one thread each beat one worker with two.
    torch.set_num_threads(1)
    device = _device_of(runs[0], device)
    places = runs[0].files(ledger.path.parent) if ledger else []
    if not places:
        return _lines(runs, base.Context(device, ledger and ledger.path.parent), limit)
    (run,) = runs
    with _alone(places[0]):
        if not _is_lacking(run, ledger):
            return []
        (line,) = _lines(runs, base.Context(device, ledger.path.parent), limit)
        if "metrics" in line:
            # While the lock is held, so that a sweep that waits for it finds the line.
            ledger.append(line)
            run.clean(ledger.path.parent)
    return [line]


def _device_of(run: base.Run, device: str) -> str:
    return device if run.on_cuda else "cpu"


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """No two processes make this file at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class TimedOut(BaseException):
    """A run took longer than ``--timeout``. No ``Exception``: what a run does about its own errors
    must not hold it up."""


@contextmanager
def _at_most(limit: float) -> Iterator[None]:
    """Raises ``TimedOut`` inside after so many seconds, between two steps of Python; 0 is never."""
    if not limit:
        yield
        return

    def ring(*_) -> None:
        raise TimedOut(f"it took longer than the {limit:g} s of --timeout")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _lines(runs: list[base.Run], context: base.Context, limit: float = 0) -> list[dict]:
    start, origin = time.perf_counter(), {}
    try:
        with _at_most(limit * len(runs)):
            if len(runs) == 1:
                results = [runs[0].execute(context)]
            else:
                results = runs[0].execute_together(runs, context)
            origin = runs[0].origin()
    except (Exception, TimedOut, SystemExit) as error:
        if len(runs) > 1:  # alone each shows whether it is the one
            return [line for run in runs for line in _lines([run], context, limit)]
        results = [error]
    seconds = (time.perf_counter() - start) / len(runs)
    return [
        provenance.line(run, found, seconds, context.device, **origin)
        for run, found in zip(runs, results)
    ]


def _in_order(ledger: Ledger, wanted: list[base.Run]) -> list[dict]:
    """The ledger's lines of ``wanted``, whatever the order in which they finished."""
    lines = {row["key"]: row for row in ledger.rows()}
    for run in wanted:
        said = json.loads(json.dumps(run.canonical()))
        if (row := lines.get(run.key())) and row["run"] != said:
            raise UserError(
                f"{ledger.path}: a line was edited: its key is that of {json.dumps(said)} and it"
                f" says {brief(json.dumps(row['run']))}; restore the file, or delete that line and"
                " its run is done again"
            )
    return [lines[run.key()] for run in wanted if run.key() in lines]


def check_machine(jobs: int | None, device: str) -> None:
    """Raise a ``UserError`` unless ``jobs`` processes on ``device`` can be had."""
    _check_limit()
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise unknown("device", device, ("cpu", "cuda"))
    index = torch.device(device).index or 0
    # On a cluster it is the workers that need the device.
    here = not os.environ.get("PANNING_SCHEDULER")
    if device != "cpu" and here and not torch.cuda.is_available():
        raise UserError(
            f"device is {device} but PyTorch sees no CUDA device here; use --device cpu"
        )
    if index and here and index >= torch.cuda.device_count():
        raise UserError(
            f"device is {device} but PyTorch sees {torch.cuda.device_count()} CUDA devices here,"
            " the first of them cuda:0"
        )
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs is {jobs}; it must be at least 1")


def _check_limit() -> None:
    # The alarm of a process belongs to its main thread, and a Dask worker's work to another.
    if time_limit() and os.environ.get("PANNING_SCHEDULER"):
        raise UserError(
            "--timeout is for runs on this machine; a cluster has no such limit, so leave out"
            " --timeout or PANNING_SCHEDULER"
        )
