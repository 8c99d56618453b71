"""An append-only file of runs, one JSON object a line. What is recorded is never lost, and never done twice."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from pathlib import Path

from .errors import UserError


class Ledger:
    """``runs.jsonl`` of one study: lines ``{"key", "run", "metrics", "provenance"}``, or with ``"error"`` instead of metrics.

    Two processes may append to one ledger: each line is written under a lock, whole, and flushed to the disk.
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

    def _read(self, kind: str) -> dict[str, dict]:
        try:
            lines = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        except OSError as error:
            raise UserError(f"{self.path} can not be read ({error.strerror}); a ledger is a file of runs, one a line") from error
        if lines[-1] and not _is_run(lines[-1]):
            warnings.warn(f"{self.path}: the last line is torn; its run will be done again", stacklevel=3)
            lines.pop()
        rows: dict[str, dict] = {}
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            if not _is_run(line):
                raise UserError(f"{self.path}, line {number}: not a run; restore the file, or delete that line and its run is done again")
            row = json.loads(line)
            if kind in row and (kind == "error" or row["key"] not in rows):
                rows[row["key"]] = row
        return rows

    def append(self, *rows: dict) -> None:
        """Record ``rows``; a torn end that an earlier process left is mended first.

        Raises:
            UserError: the folder or file can not be written, or a number that is not finite.
        """
        try:
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        except ValueError as error:
            raise UserError(f"a line for {self.path} holds a number that is not finite ({error})") from error
        with self._open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            if content and not content.endswith(b"\n"):
                start = content.rfind(b"\n") + 1
                if _is_run(content[start:]):
                    text = b"\n" + text
                else:
                    file.truncate(start)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _open(self):
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return open(self.path, "a+b")
        except OSError as error:
            raise UserError(f"results can not be written to {self.path} ({error.strerror}); set PANNING_RESULTS to a folder that can") from error

    def check_writable(self) -> None:
        """Raise the ``UserError`` of ``append`` now, before any work is done."""
        self.append()

    def merge(self, other: Path) -> int:
        """Append the runs of another ledger that this one lacks; returns how many."""
        if not Path(other).exists():
            raise UserError(f"{other}: no such ledger")
        known = {row["key"] for row in self.rows()}
        new = [row for row in Ledger(other).rows() if row["key"] not in known]
        self.append(*new)
        return len(new)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON, and never written here")


def _is_run(line: bytes) -> bool:
    try:
        row = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return (isinstance(row, dict) and isinstance(row.get("key"), str) and isinstance(row.get("run"), dict)
            and (isinstance(row.get("metrics"), dict) or isinstance(row.get("error"), str)))
