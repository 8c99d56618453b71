"""The options of a method: the keyword-only arguments of what it does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from ..errors import UserError, is_number, unknown


def keywords(function: Callable) -> dict[str, object]:
    """The keyword-only arguments of a function and their defaults: the options of what it does."""
    return {
        name: each.default
        for name, each in inspect.signature(function).parameters.items()
        if each.kind is each.KEYWORD_ONLY
    }


def settle(
    method: str, known: Mapping[str, object], options: Mapping[str, object]
) -> dict[str, object]:
    """``options`` of ``method`` without those at their default in ``known``, in the order of their
    names; a ``UserError`` for an unknown name, or a value of another kind than the default's."""
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise UserError(
            f"options of {method} are {options!r}; they must be names and values, like {{steps: 3}}"
        )
    settled = {}
    for name, value in sorted(options.items()):
        if name not in known:
            raise (
                unknown(f"option of {method}", name, known)
                if known
                else UserError(f"{method} has no options, got {name!r}")
            )
        kind = type(known[name])
        if (
            type(value) not in ((float, int) if kind is float else (kind,))
            or kind is float
            and not is_number(value)
        ):
            raise UserError(
                f"option {name} of {method} is {value!r}; it must be {kind.__name__}, like"
                f" {known[name]!r}"
            )
        if value != known[name]:
            settled[name] = kind(value)
    return settled
