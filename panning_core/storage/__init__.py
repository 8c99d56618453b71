"""Files are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError, first_line


@contextmanager
def whole(path: str | Path, what: str) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to; what is there in the end takes the place of
    ``path``. After an error, or on a full disk, ``path`` is as it was and nothing lies beside it.

    Args:
        what: is written, in words.

    Raises:
        UserError: a place that can not be written to.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # PyTorch has errors of its own for a full disk
        raise UserError(refused(path, what, error)) from error
    finally:
        try:
            part.unlink(missing_ok=True)
        except OSError:  # a folder that can not even be read
            pass


def refused(path: str | Path, what: str, error: BaseException) -> str:
    """The sentence for a place that can not be written to, and what to do."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return (
        f"{what} can not be written to {path}: {reason}; make room there or choose another place, "
        "and start again"
    )
