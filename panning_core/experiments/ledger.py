"""An append-only file of runs, one JSON object a line. What is recorded is never lost, and never
done twice.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ..errors import UserError


class Ledger:
    """``runs.jsonl`` of one study: lines ``{"kind", "key", "run", "metrics", "provenance"}``, with
    ``"error"`` instead of metrics where it failed. A line without kind is a pruning run.

    Two processes may append to one ledger: each line is written under a lock, whole, and flushed to
    the disk.
    """

    def __init__(self, path: Path):
        self.path = Path(path)

    def rows(self) -> list[dict]:
        """The finished runs, first line first, one for each key.

        A torn last line (power cut, kill -9) is left out with a warning.

        Raises:
            UserError: a line that is not a run anywhere else; it names file and line.
        """
        return list(self._read("metrics").values())

    def failures(self) -> list[dict]:
        """The last error line of every run that has failed and not yet succeeded."""
        done = self._read("metrics")
        return [row for key, row in self._read("error").items() if key not in done]

    def __contains__(self, key: str) -> bool:
        """Whether a finished run has this key. Cheap enough to ask before every run."""
        return _finished(self._content(), key)

    def _content(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                # A line that is just being written is not a torn one.
                fcntl.flock(file, fcntl.LOCK_SH)
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            raise UserError(
                f"{self.path} can not be read ({error.strerror}); a ledger is a file of runs, one"
                " a line"
            ) from error

    def _read(self, kind: str) -> dict[str, dict]:
        lines = self._content().split(b"\n")
        if lines[-1] and not _is_run(lines[-1]):
            warnings.warn(
                f"{self.path}: the last line is torn; its run will be done again", stacklevel=3
            )
            lines.pop()
        rows: dict[str, dict] = {}
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            if not _is_run(line):
                raise UserError(
                    f"{self.path}, line {number}: not a run; `python -m"
                    f" panning_core ledger {shlex.quote(str(self.path))} --repair`"
                    " takes it out and keeps a copy, and its run is done again"
                )
            row = json.loads(line)
            if kind in row and (kind == "error" or row["key"] not in rows):
                rows[row["key"]] = row
        return rows

    def append(self, *rows: dict) -> None:
        """Record ``rows``, but for those whose run is finished already; a torn end that an earlier
        process left is mended first.

        Raises:
            UserError: the folder or file can not be written, the disk is full, or a number is not
                finite.
        """
        try:
            lines = [json.dumps(row, allow_nan=False, separators=(",", ":")) for row in rows]
        except ValueError as error:
            raise UserError(
                f"a line for {self.path} holds a number that is not finite ({error})"
            ) from error
        with self._open() as file:
            content = file.read()
            text = "".join(
                line + "\n" for row, line in zip(rows, lines) if not _finished(content, row["key"])
            ).encode()
            if content and not content.endswith(b"\n"):
                start = content.rfind(b"\n") + 1
                if _is_run(content[start:]):
                    text = b"\n" + text
                else:
                    file.truncate(start)
            # unbuffered: what a full disk refuses now does not come later, behind another's line
            while text:
                text = text[file.write(text) :]
            os.fsync(file.fileno())

    @contextmanager
    def _open(self) -> Iterator[io.FileIO]:
        """The file from its beginning, locked; a ``UserError`` instead of an ``OSError``."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                with open(self.path, "a+b", buffering=0) as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    # Otherwise a repair has put another file in its place.
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                        file.seek(0)
                        yield file
                        return
        except OSError as error:
            raise UserError(
                f"results can not be written to {self.path} ({error.strerror}); what is recorded"
                " is kept: make room there, or set PANNING_RESULTS to a folder that can"
            ) from error

    def check_writable(self) -> None:
        """Raise the ``UserError`` of ``append`` now, before any work is done."""
        self.append()

    def damaged(self) -> list[int]:
        """The numbers of the lines, from 1, that are not runs."""
        return _damaged(self._content())

    def repair(self) -> tuple[list[int], Path] | None:
        """Take out the lines that are not runs; the file as it was stays beside it. Safe while
        others append, and at any moment.

        Returns:
            The numbers of the lines and the path of the copy; None if there were none, and then
            nothing is done.

        Raises:
            UserError: no line is a run, so that nothing would be left; or the folder can not be
                written.
        """
        with self._open() as file:
            content = file.read()
            damaged = _damaged(content)
            if not damaged:
                return None
            if len(damaged) == sum(map(bool, content.split(b"\n"))):
                raise UserError(
                    f"{self.path}: no line of it is a run, so it is no ledger, or nothing of one"
                    " is left to repair"
                )
            copy = next(
                path
                for number in count(1)
                if not (path := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists()
            )
            part = self.path.with_name(self.path.name + ".part")
            with open(part, "wb") as mended:
                mended.writelines(
                    line + b"\n"
                    for number, line in enumerate(content.split(b"\n"), 1)
                    if line and number not in damaged
                )
                mended.flush()
                os.fsync(mended.fileno())
            os.link(self.path, copy)  # refuses a name that is taken
            os.replace(part, self.path)
        return damaged, copy

    def merge(self, other: Path, kinds: Mapping[str, str] | None = None) -> int:
        """Append the runs of another ledger that this one lacks; returns how many.

        A line that does not say its kind gets that of its key in ``kinds``.
        """
        if not Path(other).exists():
            raise UserError(f"{other}: no such ledger")
        known = {row["key"] for row in self.rows()}
        new = [row for row in Ledger(other).rows() if row["key"] not in known]
        kinds = kinds or {}
        self.append(
            *({"kind": kinds[row["key"]], **row} if row["key"] in kinds else row for row in new)
        )
        return len(new)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON, and never written here")


def _is_run(line: bytes) -> bool:
    try:
        row = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(row, dict)
        and isinstance(row.get("key"), str)
        and isinstance(row.get("run"), dict)
        and (isinstance(row.get("metrics"), dict) or isinstance(row.get("error"), str))
    )


def _damaged(content: bytes) -> list[int]:
    return [
        number for number, line in enumerate(content.split(b"\n"), 1) if line and not _is_run(line)
    ]


def _finished(content: bytes, key: str) -> bool:
    name = key.encode()
    return name in content and any(
        _is_run(line) and (row := json.loads(line))["key"] == key and "metrics" in row
        for line in content.split(b"\n")
        if name in line
    )


def look(file: Path, repair: bool) -> tuple[str, int]:
    """What is to be said of a ledger's lines, and the exit code: 1 if any is damaged and stays.

    Args:
        repair: take out the lines that are not runs; the file as it was stays beside it.

    Raises:
        UserError: there is no such ledger, or no line of it is a run.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such ledger")
    ledger, content = Ledger(file), file.read_bytes()
    if content.strip() and len(_damaged(content)) == sum(map(bool, content.split(b"\n"))):
        raise UserError(f"{file} is no ledger: none of its lines is a run")
    if repair and (done := ledger.repair()):
        return f"{file}: took out {_named(done[0])}; the file as it was is {done[1]}", 0
    if damaged := ledger.damaged():
        return f"{file}: {_named(damaged)} damaged; --repair takes out what is", 1
    return f"{file}: no line is damaged", 0


def _named(numbers: list[int]) -> str:
    return (
        f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:10]))}"
        + f" and {len(numbers) - 10} more" * (len(numbers) > 10)
    )
