"""A sweep: the runs of a study that its ledger lacks are done, and recorded as each is finished."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from .. import data
from ..errors import UserError, unknown
from ..runs import prune, toy
from . import provenance
from .ledger import Ledger
from .profiles import folder, runs, section, trainings
from .workers import WorkerDied, spread

if TYPE_CHECKING:
    from ..agent import learning


def teach(study: str, profile_name: str, jobs: int | None = None) -> list[dict]:
    """Train the agents of a study that its folder lacks, each in a process of one thread, and return the lines of its ``agents.jsonl``.

    A policy lies in the folder ``policies``. An interrupted training goes on from its last checkpoint.

    Raises:
        UserError: bad input (before any is trained), or, after all others are done and recorded, the agents that failed.
    """
    wanted = [
        training for entry in trainings(section(study, profile_name)).values() for training in entry
    ]
    place = folder(study, profile_name)
    ledger = Ledger(place / "agents.jsonl")
    ledger.rows()  # a damaged ledger is an error before the work
    if missing := [t for t in wanted if _is_to_learn(t, ledger)]:
        ledger.check_writable()
        for dataset in {network.partition("/")[2] for t in missing for network in t.networks}:
            data.load(dataset)  # a missing file is an error of the study, not of every agent
        _record(
            ledger,
            partial(_learn, ledger=ledger),
            [[t] for t in missing],
            jobs,
            lambda t: _is_to_learn(t, ledger),
            f"of {len(wanted)} agents of {study}",
        )
    return _in_order(ledger, wanted)


def _is_to_learn(training: learning.Training, ledger: Ledger) -> bool:
    return training.key() not in ledger or not _policy(training, ledger).exists()


def _policy(training: learning.Training, ledger: Ledger) -> Path:
    return ledger.path.parent / "policies" / f"{training.name()}.npz"


def agents(study: str, profile_name: str) -> list[dict]:
    """The agents that a study has trained: ``name`` of their entry in the profile, the fields of the training, ``seconds`` and ``metrics``."""
    found = section(study, profile_name)
    if "agents" not in found:
        return []
    named = {
        training.key(): (name, training)
        for name, entry in trainings(found).items()
        for training in entry
    }
    return [
        {
            "name": named[line["key"]][0],
            **dataclasses.asdict(named[line["key"]][1]),
            "seconds": line["provenance"]["seconds"],
            "metrics": line["metrics"],
        }
        for line in teach(study, profile_name)
    ]


def _learn(trainings: list[learning.Training], ledger: Ledger) -> list[dict]:
    """The ledger line of an agent, whose policy then lies beside the ledger; none if another sweep trained it meanwhile."""
    from ..agent import learning

    (training,) = trainings
    torch.set_num_threads(1)
    policy = _policy(training, ledger)
    policy.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        with (
            open(policy.with_suffix(".lock"), "w") as lock,
            tqdm(
                total=training.steps,
                desc=training.name(),
                unit="step",
                mininterval=0.5 if sys.stderr.isatty() else 60,
            ) as bar,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_to_learn(training, ledger):
                return []
            actor, told = learning.learn(
                training, policy.parent, lambda steps: bar.update(steps - bar.n)
            )
            actor.save(policy)
            columns = ("steps", "sparsity", "return", "effective_sparsity", "rounds")
            episodes = {
                name: [prune.short(v) for v in column]
                for name, column in zip(columns, zip(*told["episodes"]))
            }
            found = {
                "policy": training.name(),
                "digest": actor.digest(),
                "episodes": episodes,
                "evaluations": told["evaluations"],
            }
            line = provenance.line(training, found, told["seconds"])
            # While the lock is held, so that a sweep that waits for it finds the line.
            ledger.append(line)
            learning.checkpoint(training, policy.parent).unlink(missing_ok=True)
    except Exception as error:
        line = provenance.line(training, error, time.perf_counter() - start)
    return [line]


def toys(study: str, profile_name: str, jobs: int | None = None) -> list[dict]:
    """The lines of a study's ``toys.jsonl``: the toys of its profile, trained where the ledger lacks them, each with the whole ``toy`` and its ``metrics``.

    Raises:
        UserError: bad input (before any is trained), or, after all others are done and recorded, the toys that failed.
    """
    entries, known, toys = (
        section(study, profile_name).get("toys", []),
        {f.name for f in dataclasses.fields(toy.Toy)},
        {},
    )
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"toys are a list of entries like {{seed: [0, 1], penalty: 0.01}}, got {entries!r}"
        )
    for entry in entries:
        for name in entry.keys() - known:
            raise unknown("field of a toy", name, known)
        for values in product(
            *(value if isinstance(value, list) else [value] for value in entry.values())
        ):
            single = toy.Toy(**dict(zip(entry, values)))
            toys[single.key()] = single
    ledger = Ledger(folder(study, profile_name) / "toys.jsonl")
    done = {row["key"] for row in ledger.rows()}
    if missing := [each for key, each in toys.items() if key not in done]:
        ledger.check_writable()
        _record(
            ledger,
            _play,
            [[each] for each in missing],
            jobs,
            lambda each: each.key() not in ledger,
            f"of {len(toys)} toys of {study}",
        )
    return [
        {**line, "toy": dataclasses.asdict(toys[line["key"]])}
        for line in _in_order(ledger, list(toys.values()))
    ]


def _play(toys: list[toy.Toy]) -> list[dict]:
    (single,) = toys
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        found = toy.run(single)
    except Exception as error:
        found = error
    return [provenance.line(single, found, time.perf_counter() - start)]


def _work(runs: list[prune.Run], device: str) -> list[dict]:
    """The ledger lines of runs that are done together. An error is a line too: it must not stop the other runs."""
    torch.set_num_threads(1)  # two workers with one thread each beat one worker with two
    start, origin = time.perf_counter(), {}
    try:
        results = (
            [prune.execute(runs[0], device)]
            if len(runs) == 1
            else prune.execute_together(runs, device)
        )
        splits = runs[0].splits()
        origin = {"data": {"title": splits.title, "fingerprint": splits.fingerprint}}
    except Exception as error:
        if len(runs) > 1:  # alone each shows whether it is the one
            return [line for run in runs for line in _work([run], device)]
        results = [error]
    seconds = (time.perf_counter() - start) / len(runs)
    return [
        provenance.line(run, found, seconds, device, **origin) for run, found in zip(runs, results)
    ]


def _record(
    ledger: Ledger,
    work: Callable[[list], list[dict]],
    tasks: list[list],
    jobs: int | None,
    lacking: Callable[[object], bool],
    whole: str,
    device: str = "cpu",
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Spread tasks over workers and append the lines of each to the ledger when it is done. What is not ``lacking`` any more, because
    another sweep has done it meanwhile, is left out. At last a ``UserError`` names those that failed."""

    def drawn() -> Iterator[list]:
        for task in tasks:
            left = [each for each in task if lacking(each)]
            progress(len(task) - len(left))
            if left:
                yield left

    failed = []
    with closing(spread(work, drawn(), min(jobs or os.cpu_count() or 1, len(tasks)))) as finished:
        for task, lines in finished:
            if isinstance(lines, WorkerDied):
                lines = [provenance.line(each, lines, 0.0, device) for each in task]
            ledger.append(*lines)
            progress(len(task))
            failed += [
                f"{each.name()}: {line['error']}"
                for each, line in zip(task, lines)
                if "error" in line
            ]
    if failed:
        raise UserError(
            f"{len(failed)} {whole} failed (recorded in {ledger.path}, done again next time): {'; '.join(failed[:3])}"
        )


def _in_order(ledger: Ledger, wanted: list) -> list[dict]:
    """The ledger's lines of ``wanted``, whatever the order in which they finished."""
    lines = {row["key"]: row for row in ledger.rows()}
    for each in wanted:
        if (row := lines.get(each.key())) and row["run"] != (
            said := json.loads(json.dumps(each.canonical()))
        ):
            raise UserError(
                f"{ledger.path}: a line was edited: its key is that of {json.dumps(said)} and it says {json.dumps(row['run'])}; "
                "restore the file, or delete that line and its run is done again"
            )
    return [lines[each.key()] for each in wanted if each.key() in lines]


def check_machine(jobs: int | None, device: str) -> None:
    """Raise a ``UserError`` unless ``jobs`` processes on ``device`` can be had."""
    try:
        index = (
            torch.device(device).index or 0
            if device == "cpu" or device.startswith("cuda")
            else None
        )
    except RuntimeError:  # such as cuda:x
        index = None
    if index is None:
        raise unknown("device", device, ("cpu", "cuda"))
    # On a cluster it is the workers that need the device.
    here = not os.environ.get("PANNING_SCHEDULER")
    if device != "cpu" and here and not torch.cuda.is_available():
        raise UserError(
            f"device is {device} but PyTorch sees no CUDA device here; use --device cpu"
        )
    if index and here and index >= torch.cuda.device_count():
        raise UserError(
            f"device is {device} but PyTorch sees {torch.cuda.device_count()} CUDA devices here, the first of them cuda:0"
        )
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs is {jobs}; it must be at least 1")


def sweep(
    study: str, profile_name: str, jobs: int | None = None, device: str = "cpu"
) -> list[dict]:
    """Do the runs of a study that its ledger lacks and this device is for, and return the ledger's lines of the study.

    On the CPU each run has a process of one thread; on CUDA up to ``STACK`` runs are trained, and then recorded, at once.

    Raises:
        UserError: bad input (before anything runs), or, after all others are done and recorded, the runs that failed.
    """
    check_machine(jobs, device)
    wanted = runs(study, profile_name, device)
    ledger = Ledger(folder(study, profile_name) / "runs.jsonl")
    done = {row["key"] for row in ledger.rows()}
    missing = [run for run in wanted if run.key() not in done]
    if missing:
        ledger.check_writable()
        for dataset, normalisation in {(run.dataset, run.normalisation) for run in missing}:
            # A missing file is an error of the study, not of every run.
            data.load(dataset, normalisation)
        prune.check_layers(missing)
        if "agents" in section(study, profile_name):
            teach(study, profile_name, jobs)
        # A log file wants few lines.
        with tqdm(
            total=len(wanted),
            initial=len(wanted) - len(missing),
            desc=study,
            unit="run",
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as bar:
            _record(
                ledger,
                partial(_work, device=device),
                prune.tasks(missing, device),
                jobs or (1 if device.startswith("cuda") else None),
                lambda run: run.key() not in ledger,
                f"of {len(wanted)} runs of {study}",
                device,
                bar.update,
            )
    return _in_order(ledger, runs(study, profile_name))
