"""The ledger: what was recorded stays, whatever happens to the process, the file or the folder."""

import builtins
import errno
import fcntl
import io
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panning_core import ROOT
from panning_core.__main__ import main
from panning_core.errors import UserError
from panning_core.experiments.ledger import Ledger


def line(key, **content):
    return {
        "key": key,
        "run": {"dataset": "digits"},
        **(content or {"metrics": {"test_accuracy": 0.5}}),
    }


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "deep" / "folder" / "runs.jsonl")


def keys(ledger):
    return [row["key"] for row in ledger.rows()]


def test_what_is_appended_is_read_in_order(ledger):
    assert ledger.rows() == ledger.failures() == []
    ledger.append(line("b"), line("a", metrics={"x": [1, None, "ü\n"]}))
    ledger.append(line("c"))
    assert ledger.rows() == [line("b"), line("a", metrics={"x": [1, None, "ü\n"]}), line("c")]
    assert ledger.path.read_bytes().count(b"\n") == 3


def test_the_first_of_equal_keys_wins(ledger):
    ledger.append(line("a", metrics={"n": 1}), line("b"), line("a", metrics={"n": 2}))
    assert keys(ledger) == ["a", "b"] and ledger.rows()[0]["metrics"] == {"n": 1}


def test_a_failure_is_forgotten_once_the_run_has_succeeded(ledger):
    ledger.append(line("a", error="first"), line("b", error="stays"), line("a", error="second"))
    assert [(row["key"], row["error"]) for row in ledger.failures()] == [
        ("a", "second"),
        ("b", "stays"),
    ]
    assert ledger.rows() == []
    ledger.append(line("a"))
    assert keys(ledger) == ["a"] and [row["key"] for row in ledger.failures()] == ["b"]
    ledger.append(line("a", error="a later failure undoes nothing"))
    assert keys(ledger) == ["a"] and [row["key"] for row in ledger.failures()] == ["b"]


def test_a_number_json_lacks_is_refused_and_leaves_the_file_as_it_was(ledger):
    ledger.append(line("a"))
    with pytest.raises(ValueError):
        ledger.append(line("b"), line("c", metrics={"x": float("nan")}))
    assert keys(ledger) == ["a"]


# --- torn and damaged ---


def test_a_torn_last_line_is_dropped_with_a_warning_and_mended(ledger):
    ledger.append(line("a"))
    with ledger.path.open("a") as file:
        file.write('{"key": "b", "run": {"data')
    with pytest.warns(UserWarning, match="last line is torn"):
        assert keys(ledger) == ["a"]
    ledger.append(line("c"))
    assert keys(ledger) == ["a", "c"]
    assert [json.loads(text)["key"] for text in ledger.path.read_text().splitlines()] == [
        "a",
        "c",
    ]


def test_a_whole_last_line_that_only_lacks_its_newline_is_kept(ledger):
    ledger.append(line("a"), line("b"))
    ledger.path.write_bytes(ledger.path.read_bytes()[:-1])
    assert keys(ledger) == ["a", "b"]
    ledger.append(line("c"))
    assert keys(ledger) == ["a", "b", "c"] and ledger.path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize(
    "damage",
    [
        b'{"key": "b", "ru',
        b"\xff\x00",
        b"[1, 2]",
        b'{"key": "b", "run": {}}',
        b'{"key": 3, "run": {}, "metrics": {}}',
    ],
)
def test_a_damaged_line_elsewhere_is_named_and_nothing_is_touched(ledger, damage):
    ledger.append(line("a"))
    with ledger.path.open("ab") as file:
        file.write(damage + b"\n")
    ledger.append(line("c"))
    before = ledger.path.read_bytes()
    for read in (ledger.rows, ledger.failures):
        with pytest.raises(UserError) as error:
            read()
        assert f"{ledger.path}, line 2:" in str(error.value)
    assert ledger.path.read_bytes() == before


LINES = [
    line(f"key {i}", **({"error": "x" * i} if i % 3 == 2 else {"metrics": {"n": i}}))
    for i in range(6)
]
TEXT = "".join(json.dumps(row) + "\n" for row in LINES).encode()


@settings(max_examples=300, deadline=None)  # it waits for the disk
@given(st.integers(0, len(TEXT)))
@pytest.mark.filterwarnings("ignore:.*last line is torn")
def test_cut_anywhere_it_keeps_every_whole_line_and_can_be_written_on(cut):
    """Whole: every byte of the line is there; its newline may be missing."""
    whole = sum(cut >= end for end, byte in enumerate(TEXT) if byte == ord("\n"))
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "runs.jsonl")
        ledger.path.write_bytes(TEXT[:cut])
        assert ledger.rows() == [row for row in LINES[:whole] if "metrics" in row]
        assert ledger.failures() == [row for row in LINES[:whole] if "error" in row]
        ledger.append(line("new"))
        assert [json.loads(text) for text in ledger.path.read_text().splitlines()] == [
            *LINES[:whole],
            line("new"),
        ]


# --- a full disk ---


class Full(io.FileIO):
    """Takes ``room`` bytes, in pieces."""

    room = 0

    def write(self, text):
        if not Full.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(text[: min(Full.room, 20)])
        Full.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 70, 200])
@pytest.mark.filterwarnings("ignore:.*last line is torn")
def test_a_disk_that_fills_up_in_the_middle_of_a_line_is_one_sentence_and_costs_no_other_line(
    ledger, monkeypatch, room
):
    ledger.append(line("a"))
    before = ledger.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            "panning_core.experiments.ledger.open",
            lambda path, mode, **named: (
                Full(path, "a+") if mode == "a+b" else open(path, mode, **named)
            ),
            raising=False,
        )
        Full.room = room
        with pytest.raises(
            UserError,
            match=(
                r"can not be written to .*runs.jsonl \(No space left on device\); what is"
                r" recorded is kept"
            ),
        ):
            ledger.append(line("b"), line("c"), line("d"))
        Full.room = 10_000
    assert (
        ledger.path.read_bytes().startswith(before)
        and len(ledger.path.read_bytes()) == len(before) + room
    )
    whole = 1 + (room + 1) // len(before)  # a line without its end is whole
    assert keys(ledger) == ["a", "b", "c"][:whole]
    ledger.append(line("b"), line("c"), line("d"))
    assert keys(ledger) == ["a", "b", "c", "d"] and ledger.path.read_bytes().count(b"\n") == 4


# --- once for each key ---


def test_what_is_finished_is_not_recorded_again(ledger):
    ledger.append(line("a", error="first"), line("b"))
    assert "a" not in ledger and "b" in ledger and "c" not in ledger
    ledger.append(
        line("a", metrics={"note": "mentions c"}),
        line("b", metrics={"n": 2}),
        line("b", error="late"),
    )
    assert "a" in ledger and "c" not in ledger
    assert [json.loads(text)["key"] for text in ledger.path.read_text().splitlines()] == [
        "a",
        "b",
        "a",
    ] and ledger.rows()[0] == line("b")


# --- repair ---


DAMAGE = [b"<<<<<<< HEAD", b'{"key": "x", "ru']


@pytest.fixture
def damaged(ledger):
    """Lines 2 and 4 are not runs, and the last one is torn."""
    ledger.append(line("a"), line("b"), line("c"))
    first, second, third, _ = ledger.path.read_bytes().split(b"\n")
    ledger.path.write_bytes(
        b"\n".join([first, DAMAGE[0], second, DAMAGE[1], b"", third, b'{"key": "d"'])
    )
    return ledger


def run_main(monkeypatch, *arguments):
    return main(["ledger", *map(str, arguments)])


def test_the_command_that_the_refusal_names_repairs_and_keeps_a_copy(damaged, tmp_path):
    (tmp_path / "with space").mkdir()
    damaged.path = damaged.path.rename(tmp_path / "with space" / "runs.jsonl")
    before = damaged.path.read_bytes()
    with (
        pytest.warns(UserWarning, match="torn"),
        pytest.raises(
            UserError, match="line 2: not a run; `.* --repair` takes it out and keeps a copy"
        ) as error,
    ):
        damaged.rows()
    command = str(error.value).split("`")[1].replace("python", shlex.quote(sys.executable), 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    copy = damaged.path.with_name("runs.jsonl.damaged-1")
    assert (
        done.returncode == 0
        and done.stdout == f"{damaged.path}: took out lines 2, 4, 7; the file as it was is {copy}\n"
    ), done.stderr
    assert (
        copy.read_bytes() == before
        and keys(damaged) == ["a", "b", "c"]
        and damaged.path.read_bytes().count(b"\n") == 3
    )
    assert sorted(path.name for path in copy.parent.iterdir()) == [
        "runs.jsonl",
        "runs.jsonl.damaged-1",
    ]


def written(path):
    """Which file it is and when it was written; when it was read does not count."""
    return path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size


def test_a_look_changes_nothing_and_a_fine_ledger_is_left_alone(
    damaged, monkeypatch, capsys, tmp_path
):
    before = damaged.path.read_bytes()
    assert (
        run_main(monkeypatch, damaged.path) == 1
        and "lines 2, 4, 7 damaged; --repair takes out what is" in capsys.readouterr().out
    )
    assert damaged.path.read_bytes() == before and len(list(damaged.path.parent.iterdir())) == 1
    damaged.path.write_bytes(json.dumps(line("a")).encode())  # fine, though its newline is missing
    before = written(damaged.path)
    for arguments in ((), ("--repair",)):
        assert (
            run_main(monkeypatch, damaged.path, *arguments) == 0
            and "no line is damaged" in capsys.readouterr().out
        )
    assert written(damaged.path) == before and len(list(damaged.path.parent.iterdir())) == 1
    with pytest.raises(UserError, match="nowhere.jsonl: no such ledger"):
        run_main(monkeypatch, tmp_path / "nowhere.jsonl", "--repair")
    assert not (tmp_path / "nowhere.jsonl").exists()


def test_a_file_that_is_no_ledger_is_not_repaired_away(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("torch==2\n\nnumpy==2\n")
    with pytest.raises(UserError, match="no line of it is a run"):
        Ledger(path).repair()
    assert path.read_text() == "torch==2\n\nnumpy==2\n" and [
        file.name for file in tmp_path.iterdir()
    ] == ["requirements.txt"]


def test_a_second_repair_keeps_a_second_copy(damaged):
    befores = []
    for number in (1, 2):
        befores.append(damaged.path.read_bytes())
        assert damaged.repair() == (
            [2, 4, 7] if number == 1 else [4],
            damaged.path.with_name(f"runs.jsonl.damaged-{number}"),
        )
        assert damaged.repair() is None
        with damaged.path.open("ab") as file:
            file.write(b"damaged again\n")
    assert [
        damaged.path.with_name(f"runs.jsonl.damaged-{number}").read_bytes() for number in (1, 2)
    ] == befores


def repair_often(path, barrier):
    barrier.wait()
    for _ in range(60):
        with open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                file.write(b"damage\n")
        Ledger(path).repair()


def test_a_repair_during_a_sweep_loses_no_line(ledger):
    """Who waited for the lock of the file that a repair replaced writes into the new one."""
    context = multiprocessing.get_context("fork")
    ledger.append(line("first"))
    barrier = context.Barrier(2)
    both = [
        context.Process(target=write_many, args=(ledger.path, "a", barrier)),
        context.Process(target=repair_often, args=(ledger.path, barrier)),
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    ledger.repair()
    assert keys(ledger) == ["first", *(f"a{number}" for number in range(200))]


# --- two processes ---


def write_many(path, name, barrier):
    ledger = Ledger(path)
    barrier.wait()
    for number in range(200):
        ledger.append(line(f"{name}{number}", metrics={"long": name * 500}))


def test_two_processes_at_once_lose_and_mix_nothing(ledger):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [
        context.Process(target=write_many, args=(ledger.path, name, barrier)) for name in "ab"
    ]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
    assert [process.exitcode for process in writers] == [0, 0]
    rows = ledger.rows()
    assert all(row["metrics"] == {"long": row["key"][0] * 500} for row in rows)
    for name in "ab":  # each writer's own order, too
        assert [row["key"] for row in rows if row["key"][0] == name] == [
            f"{name}{number}" for number in range(200)
        ]
    assert len(ledger.path.read_bytes().splitlines()) == 400


# --- folders, merging ---


def test_a_folder_that_can_not_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    ledger = Ledger(tmp_path / "file" / "runs.jsonl")
    for write in (ledger.check_writable, lambda: ledger.append(line("a"))):
        with pytest.raises(UserError, match="can not be written.*PANNING_RESULTS"):
            write()


def test_a_read_only_file_is_one_sentence_and_can_still_be_read(ledger, monkeypatch):
    ledger.append(line("a"))

    def refuse(path, mode="r", **rest):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="Permission denied"):
        patch.setattr(builtins, "open", refuse)
        ledger.append(line("b"))
    assert keys(ledger) == ["a"]


def test_check_writable_writes_nothing(ledger):
    ledger.append(line("a"))
    before = ledger.path.read_bytes()
    ledger.check_writable()
    assert ledger.path.read_bytes() == before


def test_merging_takes_what_is_missing_by_key(ledger, tmp_path):
    other = Ledger(tmp_path / "other.jsonl")
    other.append(
        line("b", metrics={"from": "other"}), line("c"), line("d", error="no result to take")
    )
    ledger.append(line("a"), line("b", metrics={"from": "here"}))
    assert ledger.merge(other.path) == 1
    assert (
        keys(ledger) == ["a", "b", "c"]
        and ledger.rows()[1]["metrics"] == {"from": "here"}
        and ledger.failures() == []
    )
    assert ledger.merge(other.path) == 0 and keys(ledger) == ["a", "b", "c"]
    with pytest.raises(UserError, match="no such ledger"):
        ledger.merge(tmp_path / "nowhere.jsonl")
