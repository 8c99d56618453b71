"""Workers: a task whose worker dies costs no other, nobody is left behind, and a Dask cluster gives
what this machine gives.
"""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import cloudpickle
import pytest

import panning_core
from panning_core import ROOT
from panning_core.errors import UserError
from panning_core.experiments import profiles, studies, workers
from panning_core.experiments.ledger import Ledger
from tests.checkout import PARAMETERS, Checkout

STUDY = "01_tiny"
RUN = {
    "dataset": "digits",
    "model": "lenet300",
    "method": ["random", "magnitude"],
    "sparsity": 0.1,
    "epochs": 20,
    "seed": [0, 1, 2, 3],
}

cloudpickle.register_pickle_by_value(
    sys.modules[__name__]
)  # a worker that doubles numbers need not import this file and PyTorch


def work(task):
    """Doubles; 13 kills its worker always, the name of a file where there is none yet."""
    for each in task:
        if each == 13 or isinstance(each, str) and not os.path.exists(each):
            if each != 13:
                open(each, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    return [2 * each for each in task]


def results(tasks, jobs=2):
    with closing(workers.spread(work, tasks, jobs)) as finished:
        return {tuple(task): found for task, found in finished}


def test_one_job_needs_no_worker():
    assert results([[1], [2, 3]], 1) == {(1,): [2], (2, 3): [4, 6]}


def test_a_task_that_always_kills_its_worker_costs_no_other():
    """It is told apart from its fellows in the task and from those that were at work beside it."""
    found = results([[1], [2, 13, 3], *([k] for k in range(4, 9))])
    died = found.pop((13,))
    assert isinstance(
        died, workers.WorkerDied
    ) and "perhaps for its memory, and again when it was done alone" in str(died)
    assert {each: value for task, values in found.items() for each, value in zip(task, values)} == {
        k: 2 * k for k in range(1, 9)
    }


def test_a_task_that_kills_its_worker_once_is_done(tmp_path):
    once = str(tmp_path / "once")
    assert results([[1], [once], [2], [3]]) == {
        (1,): [2],
        (2,): [4],
        (3,): [6],
        (once,): [2 * once],
    }


def test_tasks_are_drawn_when_there_is_room():
    drawn = []
    with closing(workers.spread(work, (drawn.append(k) or [k] for k in range(10)), 2)) as finished:
        next(finished)
        assert len(drawn) == 2


def test_a_worker_goes_when_its_runner_has_gone():
    program = (
        "from panning_core.experiments import workers; import os\nfor task, pid in"
        " workers.spread(eval, ('__import__(\"os\").getpid()' for _ in range(1)), 2): print(pid,"
        " flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    deadline = time.monotonic() + 30
    while (
        os.path.exists(f"/proc/{int(done.stdout)}")
        and "Z" not in open(f"/proc/{int(done.stdout)}/stat").read().split()[2]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert done.returncode == -signal.SIGKILL


# --- a cluster ---


@contextmanager
def dask(*arguments):
    """A process of Dask's command line, killed in any case."""
    command = [sys.executable, "-m", "dask", *arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "30s",
    }
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()


@contextmanager
def scheduler():
    """A scheduler's process, on a free port, and its address."""
    with dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard") as process:
        yield (
            process,
            re.search(
                r"tcp://\S+", next(line for line in process.stderr if "Scheduler at:" in line)
            )[0],
        )


def worker(address, threads):
    return dask("worker", address, "--nthreads", str(threads), "--no-nanny", "--no-dashboard")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    made = Checkout(tmp_path / "checkout")
    made.notebook(STUDY, PARAMETERS)
    made.profile({STUDY: {"grid": [RUN, {"kind": "toy", "seed": [0, 1], "steps": 50}]}})
    monkeypatch.setattr(panning_core, "ROOT", made.root)
    monkeypatch.setattr(profiles, "ROOT", made.root)
    return made


def numbers(rows):
    return [
        (
            row["key"],
            {
                name: value
                for name, value in row["metrics"].items()
                if not name.endswith("seconds") and name != "stack"
            },
        )
        for row in rows
    ]


def test_a_cluster_gives_what_this_machine_gives_though_a_worker_is_killed(
    checkout, monkeypatch, tmp_path
):
    """Two workers, one of them with two threads; one is killed as soon as a run is recorded. Before
    that, what they can not import is one sentence.
    """
    append, lengths = Ledger.append, []
    (tmp_path / "elsewhere.py").write_text("def work(task): pass")
    with (
        scheduler() as (_, address),
        worker(address, 1) as first,
        worker(address, 2),
        monkeypatch.context() as patch,
    ):
        patch.setenv("PANNING_SCHEDULER", address)
        patch.syspath_prepend(tmp_path)
        with pytest.raises(
            UserError,
            match=(
                f"the cluster at {address} can not read a task .*; start its scheduler and"
                " workers in the environment of this checkout"
            ),
        ):
            list(workers.spread(importlib.import_module("elsewhere").work, [[1]], 1))

        def kill_one(ledger, *rows):
            append(ledger, *rows)
            lengths.append(len(rows))
            if rows:
                first.kill()

        patch.setattr(Ledger, "append", kill_one)
        rows = studies.sweep(STUDY, "tiny")
    assert lengths == [
        0,
        2,
        2,
        2,
        2,
        1,
        1,
    ]  # each task when it was done, after a look whether the ledger can be written
    monkeypatch.setenv("PANNING_RESULTS", str(tmp_path / "here"))
    assert numbers(rows) == numbers(studies.sweep(STUDY, "tiny", 1))


def test_a_scheduler_that_goes_away_is_one_sentence(checkout, monkeypatch):
    with scheduler() as (process, address):
        monkeypatch.setenv("PANNING_SCHEDULER", address)
        monkeypatch.setattr(
            "builtins.print", lambda *_, **__: process.kill()
        )  # it says that there are no workers yet
        with pytest.raises(
            UserError, match=f"the scheduler at {address} is gone; what is recorded is kept"
        ):
            studies.sweep(STUDY, "tiny")


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:9", "nowhere", "127.0.0.1", "tpc://127.0.0.1:8786", "tcp://127.0.0.1:x"],
)
def test_a_scheduler_that_does_not_answer_is_one_sentence(checkout, monkeypatch, address):
    monkeypatch.setattr(workers, "PATIENCE", 1)
    monkeypatch.setenv("PANNING_SCHEDULER", address)
    with pytest.raises(
        UserError,
        match=(
            f"PANNING_SCHEDULER is '{address}' but no scheduler answers there; it must be like"
            " tcp://host:8786"
        ),
    ):
        studies.sweep(STUDY, "tiny")
    assert not Ledger(checkout.ledger(STUDY)).rows()


def test_a_missing_package_is_one_sentence(checkout, monkeypatch):
    monkeypatch.setenv("PANNING_SCHEDULER", "tcp://127.0.0.1:8786")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        UserError, match="the package distributed is missing; install requirements.txt"
    ):
        studies.sweep(STUDY, "tiny")


def test_the_recipe_for_slurm_makes_a_job_script():
    """Slurm itself is not needed for that."""
    (recipe,) = [
        block
        for block in re.findall(
            r"```python\n(.*?)```",
            (ROOT / "notebooks" / "guide_overnight_and_cluster.md").read_text(),
            re.DOTALL,
        )
        if "SLURMCluster" in block
    ]
    (call,) = re.findall(r"with (SLURMCluster\(.*\)) as cluster:", recipe)
    from dask_jobqueue import SLURMCluster

    with eval(call, {"SLURMCluster": SLURMCluster}) as cluster:
        script = cluster.job_script()
    assert (
        "#SBATCH" in script and "distributed.cli.dask_worker" in script and "--nthreads 1" in script
    )
