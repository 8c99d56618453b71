"""Runs that hang, run out of memory, raise what can not be pickled or find what is no number are
recorded as that, in their own words, and the others go on.
"""

import os
import threading
import time
from dataclasses import dataclass
from typing import ClassVar

import pytest

from panning_core.errors import UserError
from panning_core.experiments import sweep, words
from panning_core.experiments.ledger import Ledger
from panning_core.runs import base


class Unpicklable(Exception):
    def __init__(self, what):
        super().__init__(what)
        self.lock = threading.Lock()

    def __reduce__(self):
        raise TypeError("this error can not be pickled")


class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")


@dataclass(frozen=True)
class Bad(base.Run):
    """A run that does what ``what`` says."""

    kind: ClassVar[str] = "bad"
    what: str = "well"
    seed: int = 0

    def execute(self, context):
        if self.what == "hangs":
            try:
                time.sleep(60)
            except Exception:  # a run that holds on does not hold up the sweep
                time.sleep(60)
        if self.what == "memory":
            raise MemoryError("12 EiB")
        if self.what == "pickle":
            raise Unpicklable("a lock inside")
        if self.what == "mute":
            raise Mute
        if self.what == "leaves":
            raise SystemExit(3)
        if self.what == "long":
            raise ValueError("<script>alert(1)</script>\n../../etc " + "x" * 10_000_000)
        answers = {"nan": {"value": 1.0, "error": [float("nan")]}, "nothing": None}
        answers["object"] = {"value": threading.Lock()}
        return answers.get(self.what, {"value": 1.0})


WORDS = {
    "hangs": "it took longer than the 8 s of --timeout",
    "memory": "MemoryError: 12 EiB",
    "pickle": "a lock inside",
    "mute": "Mute",
    "leaves": "SystemExit: 3",
    "long": "<script>",
    "nan": "error is [nan], which is no number that can be recorded",
    "nothing": "the run gave None; it must give names and values",
    "object": "value is <unlocked _thread.lock",
}


@pytest.fixture
def kind(monkeypatch):
    monkeypatch.setitem(base.KINDS, "bad", Bad)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_goes_wrong_is_recorded_in_its_own_words_and_nothing_else_stops(
    kind, tmp_path, monkeypatch, jobs
):
    monkeypatch.setenv(sweep.TIMEOUT, "8")
    runs = [Bad(what) for what in [*WORDS, "well"]]
    ledger = Ledger(tmp_path / "runs.jsonl")
    failed = sweep._record(ledger, [[run] for run in runs], jobs, "cpu", lambda n: None)
    told = {row["run"].get("what", "well"): row["error"] for row in ledger.failures()}
    assert told.keys() == WORDS.keys() and len(failed) == len(WORDS)
    assert all(words in told[what] for what, words in WORDS.items())
    assert [row["run"] for row in ledger.rows()] == [{}]
    assert ledger.path.stat().st_size < 200_000  # nobody reads ten megabytes
    assert all(len(words) < 700 and "\n" not in words for words in failed)


def test_a_run_of_a_task_that_hangs_is_told_apart_from_its_fellows(kind):
    lines = sweep._lines([Bad("hangs"), Bad()], base.Context(), 1)
    assert ["error" in line for line in lines] == [True, False]


def test_without_a_limit_no_alarm_is_set(kind, monkeypatch):
    monkeypatch.setattr(sweep.signal, "setitimer", lambda *_: pytest.fail("an alarm"))
    assert "metrics" in sweep._lines([Bad()], base.Context())[0]


def test_the_command_hands_its_limit_on(monkeypatch):
    from panning_core import __main__

    monkeypatch.setenv(sweep.TIMEOUT, "")
    monkeypatch.setitem(__main__.DOES, "sweep", lambda options: 0)
    __main__.main(["sweep", "01_tiny", "--timeout", "7"])
    assert os.environ[sweep.TIMEOUT] == "7"


def test_one_run_of_the_command_line_has_the_limit_too(kind, monkeypatch):
    monkeypatch.setenv(sweep.TIMEOUT, "1")
    with pytest.raises(UserError, match="it took longer than the 1 s of --timeout"):
        words.run(["kind=bad", "what=hangs"])


def test_a_cluster_has_no_limit_and_says_so_before_any_work(monkeypatch):
    monkeypatch.setenv(sweep.TIMEOUT, "8")
    monkeypatch.setenv("PANNING_SCHEDULER", "tcp://127.0.0.1:9")
    with pytest.raises(UserError, match="leave out --timeout or PANNING_SCHEDULER"):
        sweep.sweep("01_tiny", "tiny")
