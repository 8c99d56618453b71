"""The one error a user is meant to read, and the lookups that raise it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import TypeVar

T = TypeVar("T")
LONGEST = 300  #: characters of a text of somebody else's in a sentence


class UserError(ValueError):
    """Bad input. The message says in one sentence what was wrong and what would be right."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not among ``known``: it offers the near names, or else all of
    them.
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name)[:LONGEST], known, n=3, cutoff=0.51)
    offer = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
    )
    return UserError(f"unknown {kind} {brief(repr(name))}; {offer}")


def pick(kind: str, name: str, table: Mapping[str, T]) -> T:
    """``table[name]``, or a ``UserError`` that names the near names."""
    if not isinstance(name, str) or name not in table:
        raise unknown(kind, name, table)
    return table[name]


def fraction(kind: str, value: float) -> float:
    """``value`` if it lies in [0, 1), else a ``UserError``."""
    if not is_number(value) or not 0 <= value < 1:
        example = ", for example 0.9 for nine tenths removed" if "sparsity" in kind else ""
        raise UserError(f"{kind} is {value!r}; it must be a fraction in [0, 1){example}")
    return float(value)


def fraction_kept(density: float) -> float:
    """``density`` if it lies in [0, 1], else a ``UserError``."""
    if not is_number(density) or not 0 <= density <= 1:
        raise UserError(
            f"density is {density!r}; it is the fraction kept, in [0, 1], for example 0.1 for one"
            " tenth"
        )
    return float(density)


def whole(kind: str, value: int, least: int = 0) -> int:
    """``value`` if it is a whole number from ``least``, else a ``UserError``; what no 64-bit
    machine can count to is none.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value < 2**62:
        raise UserError(
            f"{kind} is {value!r}; it must be a whole number from"
            f" {least}{' to 2^62' if isinstance(value, Integral) and value > least else ''}"
        )
    return int(value)


def shown(value: object) -> str:
    """The beginning of what Python calls ``value``, on one line."""
    return " ".join(repr(value)[:80].split())


def brief(text: object, most: int = LONGEST) -> str:
    """A text on one line, and no more of it than this."""
    words = " ".join(str(text)[: 2 * most].split())
    return words if len(words) <= most else f"{words[: most - 2]} …"


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says."""
    return str(error).strip().partition("\n")[0]


def told(error: BaseException) -> str:
    """Which error it is and what it says, on one line."""
    return f"{type(error).__name__}: {brief(error)}"


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite real number; True and False are none."""
    # Not math.isfinite, which a whole number can be too large for.
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return -math.inf < value < math.inf  # type: ignore[operator]
