"""Fault injection: a small sweep is disturbed at random moments, started again, and compared with
an undisturbed one.

    python -m tests.faults --moments 200

Every fault of ``FAULTS`` takes its turn, on pruning runs, toys or agents. What must hold after the
restart: every line that was whole is there byte for byte; every wanted run is there once; none that
was recorded before the fault was begun again; the metrics are those of the undisturbed sweep; no
process is left.
"""

import argparse
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import psutil

from panning_core import ROOT, data
from panning_core.__main__ import command_line
from panning_core.experiments import ledger, studies, sweep
from panning_core.runs import base
from tests.checkout import PARAMETERS, Checkout

STUDY = "01_tiny"
GRID = [
    {
        "dataset": "digits",
        "model": "lenet300",
        "epochs": 2,
        "method": ["random", "magnitude"],
        "sparsity": 0.1,
        "seed": [0, 1, 2, 3, 4],
    }
]
TOYS = [{"kind": "toy", "seed": [0, 1, 2, 3, 4, 5], "steps": 40}]
AGENTS = [
    {
        "kind": "agent",
        "name": "mine",
        "networks": "lenet300/digits",
        "init": "pytorch",
        "steps": 60,
        "random_steps": 20,
        "rounds": 5,
        "pool": 2,
        "per_class": 2,
        "width": 8,
        "seed": [0, 1],
    }
]
POISON = 3  #: the seed that kills its worker while the fault is on
PATIENCE = 1800  #: seconds; a busy machine may take minutes to start two workers
#: profile -> its grid
SUBJECTS = {"prune": GRID, "toys": TOYS, "agents": AGENTS}
ORIGINAL = sweep.perform


# --- in the processes that sweep ------------------------------------------------------------------


def counted(items: list, *others, **named) -> list[dict]:
    """A task of a sweep; that it began is written where ``FAULTS_BEGUN`` says."""
    with open(os.environ["FAULTS_BEGUN"], "a") as file:
        file.write("".join(f"{item.key()}\n" for item in items))
    if "FAULTS_POISON" in os.environ and any(item.seed == POISON for item in items):
        os.kill(os.getpid(), signal.SIGKILL)
    if "FAULTS_MEMORY" not in os.environ:
        return ORIGINAL(items, *others, **named)
    kind, execute = type(items[0]), type(items[0]).execute

    def short_of_memory(run, context):
        if run.seed == POISON:
            raise MemoryError(f"{2**60} bytes")
        return execute(run, context)

    with patch.object(kind, "execute", short_of_memory):
        with patch.object(kind, "execute_together", base.Run.execute_together):
            return ORIGINAL(items, *others, **named)


def settle(root: str | Path) -> None:
    """In this process the checkout at ``root`` is the core's own, and what begins is counted."""
    for name in (
        "panning_core",
        "panning_core.experiments.profiles",
        "panning_core.reporting.notebooks",
    ):
        if name in sys.modules:
            sys.modules[name].ROOT = Path(root)
    sweep.perform = counted


class Full(io.FileIO):
    """A file on a disk with ``room`` bytes left for all ledgers."""

    room = 0

    def write(self, text: bytes) -> int:
        if not Full.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().write(text[: Full.room])
        Full.room -= written
        return written


def fill_up(room: int) -> None:
    Full.room = room
    ledger.open = lambda path, mode, **named: (
        Full(path, "a+") if mode == "a+b" else open(path, mode, **named)
    )


def limit(size: int) -> None:
    """No file may be longer than this, which a write finds out in the middle as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# --- a disturbed sweep ----------------------------------------------------------------------------


class Broken(AssertionError):
    """An invariant does not hold."""


def check(holds: object, sentence: str) -> None:
    if not holds:
        raise Broken(sentence)


class Moment:
    """One subject in a folder of its own."""

    def __init__(
        self, root: Path, name: str, subject: str, wanted: dict[str, dict], chance: random.Random
    ):
        self.root, self.folder, self.subject, self.wanted, self.chance = (
            root,
            root / "moments" / name,
            subject,
            wanted,
            chance,
        )
        self.place = self.folder / "results"
        self.begun_file = self.folder / "begun"
        self.seen = b""  #: the lines that were whole just before the fault
        self.folder.mkdir(parents=True)
        self.begun_file.touch()

    @property
    def path(self) -> Path:
        """The ledger."""
        return self.place / self.subject / STUDY / "runs.jsonl"

    def start(
        self, jobs: int, prepare=lambda: None, call=None, **environment: str
    ) -> psutil.Process:
        """A sweep in a process, and process group, of its own; a fork, which spares it the seconds
        of the imports.
        """
        call = call or (lambda: studies.sweep(STUDY, self.subject, jobs) and 0)
        if pid := os.fork():
            return psutil.Process(pid)
        os.setsid()
        settle(self.root)
        os.environ.update(
            PANNING_RESULTS=str(self.place), FAULTS_BEGUN=str(self.begun_file), **environment
        )
        for stream in (1, 2):
            os.dup2(os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        code = 70
        try:
            prepare()
            command_line(call)
        except SystemExit as exit_:
            code = exit_.code
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def end(self, process: psutil.Process, *family: psutil.Process) -> int:
        """Its exit code, once it and its family are gone."""
        family = {*family, *_children(process)}
        try:
            code = process.wait(PATIENCE)
        except psutil.TimeoutExpired:
            raise Broken(f"it hangs for {PATIENCE} s") from None
        deadline = time.monotonic() + 30
        while left := [each for each in family if _lives(each)]:
            check(time.monotonic() < deadline, f"processes are left: {left}")
            time.sleep(0.05)
        return code

    def content(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def whole(self) -> bytes:
        """Every whole line."""
        text = self.content()
        return text[: text.rfind(b"\n") + 1]

    def recorded(self) -> list[str]:
        """The keys of the lines of finished runs."""
        return [
            row["key"] for row in map(json.loads, self.whole().splitlines()) if "metrics" in row
        ]

    def begun(self) -> list[str]:
        return self.begun_file.read_text().split()

    def wait_for_a_moment(self, process: psutil.Process, pause: float) -> None:
        """Some lines are recorded, and then some time passes; or the sweep is over."""
        lines, deadline = self.chance.randrange(len(self.wanted)), time.monotonic() + PATIENCE
        while self.content().count(b"\n") < lines and _lives(process):
            check(time.monotonic() < deadline, f"{lines} lines are not recorded in {PATIENCE} s")
            time.sleep(0.01)
        time.sleep(self.chance.uniform(0, pause if lines == 0 else pause / 10))
        self.seen = self.whole()

    def restart(self, before: bytes, jobs: int = 1, call=None) -> None:
        """The same again, undisturbed; then everything must hold. ``before`` are the lines that
        were whole at the fault.
        """
        done, begun = self.recorded(), len(self.begun())
        check(self.content().startswith(before), "a line that was whole is lost at the fault")
        code = self.end(self.start(jobs, call=call))
        check(code == 0, f"the restart ends with {code}")
        again = set(self.begun()[begun:]) & set(done)
        check(not again, f"{len(again)} runs that were recorded are begun again")
        self.compare(before)

    def compare(self, before: bytes) -> None:
        check(
            self.content().startswith(before) and self.content().startswith(self.seen),
            "a line that was whole is lost",
        )
        check(self.content() == self.whole(), "the last line is torn")
        check(
            Counter(self.recorded()) == Counter(self.wanted.keys()),
            "a run is missing, or recorded twice",
        )
        found = metrics(self.path)
        check(
            all(found[key] == self.wanted[key] for key in self.wanted),
            "metrics differ from the undisturbed sweep's",
        )


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def metrics(path: Path) -> dict[str, dict]:
    """key -> what a run found, without what the clock and the company it was trained in say."""
    return {
        row["key"]: {
            name: value
            for name, value in row["metrics"].items()
            if not name.endswith("seconds") and name != "stack"
        }
        for row in map(json.loads, path.read_text().splitlines())
        if "metrics" in row
    }


# --- faults ---------------------------------------------------------------------------------------


def runner_killed(moment: Moment, jobs: int) -> str:
    """kill -9 of the runner alone: its workers must go by themselves."""
    sweep = moment.start(jobs)
    moment.wait_for_a_moment(sweep, jobs * 1.5)
    family = _children(sweep)
    sweep.kill()
    moment.end(sweep, *family)
    return _restart(moment)


def all_killed(moment: Moment, jobs: int) -> str:
    sweep = moment.start(jobs)
    moment.wait_for_a_moment(sweep, jobs * 1.5)
    family = _children(sweep)
    os.killpg(sweep.pid, signal.SIGKILL)
    moment.end(sweep, *family)
    return _restart(moment)


def power_cut(moment: Moment, jobs: int) -> str:
    """The last line is cut anywhere."""
    sweep = moment.start(jobs)
    moment.wait_for_a_moment(sweep, jobs * 1.5)
    os.killpg(sweep.pid, signal.SIGKILL)
    moment.end(sweep)
    last = moment.whole()[:-1].rpartition(b"\n")[2]
    cut = moment.chance.randint(1, len(last)) if last else 0
    if moment.content():
        moment.seen = b""
        os.truncate(moment.path, len(moment.whole()) - cut)
    return f"{cut} bytes lost, {_restart(moment)}"


def interrupted(moment: Moment, jobs: int) -> str:
    """Ctrl-C reaches the whole group, `kill -INT` the runner alone."""
    group = moment.chance.random() < 0.5
    sweep = moment.start(jobs)
    moment.wait_for_a_moment(sweep, jobs * 1.5)
    family = _children(sweep)
    if _lives(sweep):
        (os.killpg if group else os.kill)(sweep.pid, signal.SIGINT)
    code = moment.end(sweep, *family)
    check(code in (0, 130), f"Ctrl-C ends with {code}")
    return f"{'group' if group else 'runner'}, {_restart(moment)}"


def worker_killed(moment: Moment, _: int) -> str:
    """The sweep goes on by itself."""
    sweep = moment.start(2)
    while _lives(sweep) and not (workers := _workers(sweep)):
        time.sleep(0.1)
    moment.wait_for_a_moment(sweep, 1.5)
    before, done, begun = moment.whole(), moment.recorded(), len(moment.begun())
    if workers := _workers(sweep) or workers:
        moment.chance.choice(workers).kill()
    code = moment.end(sweep)
    check(code == 0, f"the sweep whose worker was killed ends with {code}")
    check(
        not set(moment.begun()[begun:]) & set(done),
        "a recorded run is done again after its worker was killed",
    )
    moment.compare(before)
    check(max(Counter(moment.begun()).values()) <= 3, "a run was begun more than three times")
    return _restart(moment)


def _workers(process: psutil.Process) -> list[psutil.Process]:
    """Those of its children that do tasks."""
    found = []
    for child in _children(process):
        try:
            if "popen_loky_posix" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


def poisoned(moment: Moment, _: int) -> str:
    """Runs that kill their worker, each time, are errors; the others are done."""
    code = moment.end(moment.start(2, FAULTS_POISON="yes"))
    check(code == 2, f"a sweep with a run that kills its workers ends with {code}")
    rows = [json.loads(line) for line in moment.content().splitlines()]
    bad = [row["key"] for row in rows if "error" in row]
    check(
        len(bad) == len(set(bad)) == sum(row["run"].get("seed") == POISON for row in rows) > 0,
        "not every run that kills its worker is one error",
    )
    check(
        set(moment.recorded()) == moment.wanted.keys() - set(bad),
        "a run that kills nobody is missing",
    )
    check(
        all(row["run"].get("seed") != POISON or "done alone" in row["error"] for row in rows),
        "the error does not say that the worker was killed",
    )
    check(
        all(Counter(moment.begun())[key] == 2 for key in bad),
        "a run that kills its worker was not begun twice",
    )
    return f"{len(bad)} errors, {_restart(moment)}"


def out_of_memory(moment: Moment, jobs: int) -> str:
    """Runs that need more memory than there is are errors in their own words, however many are
    done together; the others are done."""
    code = moment.end(moment.start(jobs, FAULTS_MEMORY="yes"))
    check(code == 2, f"a sweep with a run that is out of memory ends with {code}")
    rows = [json.loads(line) for line in moment.content().splitlines()]
    bad = [row["key"] for row in rows if "error" in row]
    check(
        len(bad) == sum(row["run"].get("seed") == POISON for row in rows) > 0,
        "not every run that is out of memory is one error",
    )
    check(
        all("MemoryError" in row["error"] for row in rows if "error" in row),
        "the error does not say that it was the memory",
    )
    check(
        set(moment.recorded()) == moment.wanted.keys() - set(bad),
        "a run that has memory enough is missing",
    )
    return f"{len(bad)} errors, {_restart(moment)}"


def results_moved(moment: Moment, jobs: int) -> str:
    """The results are moved, once the sweep was killed or while it goes on; it is told where they
    are and goes on there. What it then wrote to the old place is merged."""
    sweep, while_it_runs = moment.start(jobs), moment.chance.random() < 0.5
    moment.wait_for_a_moment(sweep, jobs * 1.5)
    family = _children(sweep)
    if not while_it_runs:
        os.killpg(sweep.pid, signal.SIGKILL)
        moment.end(sweep, *family)
    old = moment.place
    moment.place = old.with_name("moved")
    if old.exists():
        old.rename(moment.place)
    if while_it_runs:
        code, told = moment.end(sweep, *family), (moment.folder / "output").read_text()
        # A policy has lost the folder that it was about to be saved in.
        lost = moment.subject == "agents" and code == 2 and "can not be written" in told
        check(code == 0 or lost, f"a sweep whose results are moved ends with {code}")
        left = old / moment.subject / STUDY / "runs.jsonl"
        if left.exists():
            ledger.Ledger(moment.path).merge(left)
    return f"{'at work' if while_it_runs else 'killed'}, {_restart(moment)}"


def disk_full(moment: Moment, jobs: int) -> str:
    """A tiny disk where one may be mounted, else a limit to the length of a file; or a write that
    fails.
    """
    size = moment.chance.randrange(1, LENGTH[moment.subject])
    way = moment.chance.choice(["tmpfs", "write"])
    place = moment.path.parent
    if way == "tmpfs":
        place.mkdir(parents=True)
        pages = 4 * (1 + size // 4096)
        mounted = (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={pages}k", "tmpfs", str(place)],
                capture_output=True,
            ).returncode
            == 0
        )
        way, prepare = (
            ("tmpfs", lambda: None) if mounted else ("limit", lambda: limit(max(size, 1200)))
        )
    else:
        prepare = lambda: fill_up(size)  # noqa: E731
    try:
        code = moment.end(moment.start(jobs, prepare))
        told = (moment.folder / "output").read_text()
        full = moment.chance.random() < 0.5 and len(moment.recorded()) < len(moment.wanted)
        if full:  # and still full
            code = moment.end(moment.start(jobs, lambda: fill_up(0)))
        check(
            code == 0
            and len(moment.recorded()) == len(moment.wanted)
            or code == 2
            and "can not be written" in told,
            f"a full disk ends with {code}",
        )
        if way == "tmpfs":
            subprocess.run(["mount", "-o", "remount,size=1m", str(place)], check=True)
        return f"{way}, {_restart(moment)}"
    finally:
        if way == "tmpfs":
            subprocess.run(["umount", str(place)], check=True)


def two_at_once(moment: Moment, jobs: int) -> str:
    """Two sweeps on one ledger, and one of them may be killed."""
    first, second = moment.start(jobs), moment.start(1)
    killed = moment.chance.random() < 0.7
    if killed:
        moment.wait_for_a_moment(first, jobs * 1.5)
        before, done, begun = moment.whole(), moment.recorded(), len(moment.begun())
        family = _children(first)
        first.kill()
        moment.end(first, *family)
        check(moment.end(second) == 0, "the sweep that was not killed fails")
        # What it had drawn when the first recorded the same run is not begun after that: one task
        # of slack for the moment between the two.
        again = set(moment.begun()[begun:]) & set(done)
        check(len(again) <= 2, f"{len(again)} recorded runs are begun again by the other sweep")
        moment.compare(before)
    else:
        check(moment.end(first) == moment.end(second) == 0, "one of two sweeps fails")
        moment.compare(b"")
    return f"{'one killed' if killed else 'both whole'}, {_restart(moment)}"


def kernel_killed(moment: Moment, jobs: int) -> str:
    """The runner as in run_all.sh: the kernel of its notebook is killed, or the runner is."""
    # It imports matplotlib, for which the workers need not wait.
    from panning_core.reporting import notebooks

    def call() -> int:
        return notebooks.reproduce("toys", jobs=jobs)

    runner, kernel, victim = (
        moment.start(jobs, call=call),
        None,
        moment.chance.choice(["kernel", "runner"]),
    )
    while _lives(runner) and not kernel:
        kernel = next(
            (
                child
                for child in _children(runner)
                if _lives(child) and "ipykernel_launcher" in " ".join(child.cmdline())
            ),
            None,
        )
        time.sleep(0.1)
    moment.wait_for_a_moment(runner, 2)
    family = _children(runner)
    (kernel if victim == "kernel" and kernel else runner).kill()
    code = moment.end(runner, *family)
    check(
        code != 0 or len(moment.recorded()) == len(moment.wanted),
        "the runner does not notice that its kernel was killed",
    )
    before = moment.whole()
    moment.restart(before, jobs, call)
    pages = sorted(path.name for path in moment.path.parent.glob("*.ipynb"))
    check(pages == [f"{STUDY}.ipynb"], f"after the restart there are {pages}")
    return f"{victim}, {before.count(bytes([10]))} lines before"


def _restart(moment: Moment) -> str:
    before = moment.whole()
    moment.restart(before)
    return f"{before.count(bytes([10]))} lines before"


#: fault -> the ledgers it is tried on, and how many jobs
FAULTS = {
    runner_killed: (["prune", "toys", "agents"], [1, 2]),
    all_killed: (["prune", "toys", "agents"], [1, 2]),
    power_cut: (["prune", "toys"], [1]),
    interrupted: (["prune", "toys", "agents"], [1, 2]),
    worker_killed: (["prune", "toys", "agents"], [2]),
    poisoned: (["prune", "toys"], [2]),
    out_of_memory: (["prune", "toys"], [1, 2]),
    results_moved: (["prune", "toys", "agents"], [1, 2]),
    disk_full: (["prune", "toys"], [1, 2]),
    two_at_once: (["prune", "toys", "agents"], [1, 2]),
    kernel_killed: (["toys"], [1]),
}
LENGTH: dict[str, int] = {}  #: bytes of an undisturbed ledger


def undisturbed(root: Path, subject: str) -> dict[str, dict]:
    moment = Moment(root, f"undisturbed-{subject}", subject, {}, random.Random(0))
    check(moment.end(moment.start(1)) == 0, (moment.folder / "output").read_text())
    LENGTH[subject] = len(moment.content())
    return metrics(moment.path)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--moments",
        type=int,
        default=len(FAULTS),
        help="how many faults; each kind takes its turn",
    )
    parser.add_argument("--seed", type=int, default=None, help="of all chance; it is printed")
    parser.add_argument("--only", choices=[fault.__name__ for fault in FAULTS])
    parser.add_argument(
        "--quick", action="store_true", help="no agents, and one job where one will do"
    )
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    chance, start, broken = random.Random(seed), time.monotonic(), []
    print(f"seed {seed}", flush=True)
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    made = Checkout(root / "checkout")
    data.load("digits")  # once, for all that are forked
    made.notebook(
        STUDY,
        PARAMETERS,
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from tests import faults\n"
        f"faults.settle({str(made.root)!r})",
        f"faults.studies.sweep({STUDY!r}, profile, jobs)",
    )
    for name, grid in SUBJECTS.items():
        made.profile({STUDY: {"grid": grid}}, name)
    wanted: dict[str, dict] = {}
    chosen = [fault for fault in FAULTS if options.only in (None, fault.__name__)]
    for number in range(1, options.moments + 1):
        fault = chosen[(number - 1) % len(chosen)]
        subjects, jobs = FAULTS[fault]
        weights = [
            (0 if options.quick else 1) if subject == "agents" else 6 for subject in subjects
        ]
        subject, jobs = (
            chance.choices(subjects, weights)[0],
            min(jobs) if options.quick else chance.choice(jobs),
        )
        if subject not in wanted:
            wanted[subject] = undisturbed(made.root, subject)
        own, began = random.Random(chance.random()), time.monotonic()
        moment = Moment(made.root, f"{number:03}", subject, wanted[subject], own)
        try:
            told = fault(moment, jobs)
        except Exception as error:
            broken.append(number)
            told = f"BROKEN {type(error).__name__}: {error} (see {moment.folder})"
        else:
            shutil.rmtree(moment.folder)
        print(
            f"{number:>3} {fault.__name__:<14} {subject:<12} {jobs} job{'s' * (jobs > 1):<1} "
            f" {time.monotonic() - began:4.0f} s  {told}",
            flush=True,
        )
    print(
        f"{options.moments} moments in {time.monotonic() - start:.0f} s,"
        f" {len(broken)} broken{': ' if broken else ''}{', '.join(map(str, broken))}"
    )
    if not broken:
        shutil.rmtree(root)
    return int(bool(broken))


if __name__ == "__main__":
    from tests import faults  # the workers must find these names in the module, not in __main__

    sys.exit(faults.main())
