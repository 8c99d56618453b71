"""How tasks are spread over workers: processes of this machine, or a Dask cluster if
``PANNING_SCHEDULER`` names its scheduler.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from urllib.parse import urlsplit

from joblib.externals.loky import get_reusable_executor

from .. import plugins
from ..errors import UserError

ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMBA", "NUMEXPR")
} | {"VECLIB_MAXIMUM_THREADS": "1"}
#: seconds after which a process without work leaves; until then the next sweep need not start one
IDLE = 300
PATIENCE = 5  #: seconds in which a scheduler answers
DIED = (
    "a worker was killed while it was in hand, perhaps for its memory, and again when it was done"
    " alone"
)
_alone = threading.Lock()


class WorkerDied(Exception):
    """What came of a task whose worker died, also when it was alone."""


def spread(
    work: Callable[[list], object], tasks: Iterable[list], jobs: int
) -> Iterator[tuple[list, object]]:
    """Yield each task, a list, with ``work(task)`` as soon as it is done.

    Tasks are drawn from ``tasks`` when there is room for them, so ``tasks`` may leave out what was
    done meanwhile. With one job and no cluster this process does the work. When a worker dies
    (``kill -9``, no memory), what was in its and its fellows' hands is cut into lists of one and
    done again, one at a time, by a fresh process; one whose worker dies again yields a
    ``WorkerDied``.

    Close the generator (``contextlib.closing``) to end the work early; its workers are killed then.

    Raises:
        UserError: there is no such cluster, or it is lost.
    """
    cluster, tasks = os.environ.get("PANNING_SCHEDULER"), iter(tasks)
    if jobs == 1 and not cluster:
        yield from ((task, work(task)) for task in tasks)
        return
    died = True
    while died:
        died = []
        for task, found in _attempt(work, tasks, jobs, cluster):
            if isinstance(found, WorkerDied):
                died.append(task)
            else:
                yield task, found
        for single in [[each] for task in died for each in task]:
            yield from _attempt(work, iter([single]), 1, cluster)


def _attempt(
    work: Callable, tasks: Iterator[list], jobs: int, cluster: str | None
) -> Iterator[tuple[list, object]]:
    """``spread`` until the tasks are out or a worker has died; then what was in hand yields a
    ``WorkerDied`` and the rest stays in ``tasks``.
    """
    going, died, added = {}, None, plugins.additions()
    with _cluster(cluster) if cluster else _processes(jobs) as (pool, room, Death):
        while True:
            for task in () if died else islice(tasks, room() - len(going)):
                try:
                    going[pool.submit(_one_at_a_time, work, plugins.packed(task), added)] = task
                except Death:
                    died = WorkerDied(DIED)
                    yield task, died
                    break
            if not going:
                return
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                task = going.pop(future)
                try:
                    found = future.result()
                except Death:
                    found = died = WorkerDied(DIED)
                yield task, found


def _one_at_a_time(work: Callable, packed: bytes, added: bytes) -> object:
    """PyTorch's random state and thread count belong to the process, and a Dask worker may have
    been given several threads.
    """
    with _alone:
        plugins.load_plugins()
        plugins.receive(added)
        # Not before: a plugin may have made the class of its runs.
        return work(plugins.unpacked(packed))


@contextmanager
def _processes(jobs: int) -> Iterator[tuple[Executor, Callable[[], int], type[Exception]]]:
    """(pool, how many tasks it takes, what a task raises whose worker died): processes of one
    thread each.
    """
    # Other plugins are a reason for other workers.
    env = ONE_THREAD | {plugins.VARIABLE: os.environ.get(plugins.VARIABLE, "")}
    pool = get_reusable_executor(
        jobs, timeout=IDLE, initializer=_serve, initargs=(os.getpid(),), env=env
    )
    try:
        yield pool, lambda: jobs, BrokenProcessPool
    except BaseException:
        pool.shutdown(kill_workers=True)
        raise


def _serve(runner: int) -> None:
    """Of a process: leave Ctrl-C to the runner, and go when the runner has gone, since nobody would
    record what comes of the work.
    """

    def watch() -> None:
        while os.getppid() == runner:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _cluster(address: str) -> Iterator[tuple[Executor, Callable[[], int], type[Exception]]]:
    """As ``_processes``. joblib's own backend for Dask waits for ever on a task that its workers
    died of.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise UserError(
            "PANNING_SCHEDULER is set but the package distributed is missing; install"
            " requirements.txt"
        ) from None
    try:
        parts = urlsplit(address)
        # A client that finds nobody says more than one sentence.
        socket.create_connection((parts.hostname, parts.port), PATIENCE).close()
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"PANNING_SCHEDULER is {address!r} but no scheduler answers there; it must be like"
            " tcp://host:8786, and `dask scheduler` running"
        ) from error
    with client:
        if not client.nthreads():
            print(
                f"the scheduler at {address} has no workers yet; waiting for them",
                file=sys.stderr,
            )
        try:
            # Twice as many as there are threads, so that no worker waits for its next task.
            yield (
                client.get_executor(pure=False),
                lambda: 2 * max(1, sum(client.nthreads().values())),
                KilledWorker,
            )
        except (ImportError, RuntimeError) as error:  # what a task itself raises is its result
            raise UserError(
                f"the cluster at {address} can not read a task ({str(error).partition('. ')[0]});"
                " start its scheduler and workers in the environment of this checkout"
            ) from error
        except (CancelledError, OSError) as error:
            raise UserError(
                f"the scheduler at {address} is gone; what is recorded is kept, the same command"
                " goes on from there"
            ) from error
