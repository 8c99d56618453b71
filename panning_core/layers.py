"""Which layers are pruned and what they keep at least; and how many weights each keeps where shares
of layers are fixed.

A layer is named as in ``nn.Module.named_modules``, and a pattern stands for one or several layers:
a glob such as ``"blocks.0.*"``, the name of a class such as ``"Linear"`` or the class itself,
``"first"`` or ``"last"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil, prod

import numpy as np
from torch import nn

from .errors import UserError, is_number, unknown
from .models import prunable

Pattern = str | type[nn.Module]
# name of each prunable weight -> the fewest that it keeps; all of them where the layer stays whole
Least = dict[str, int]


def matching(model: nn.Module, pattern: Pattern) -> list[str]:
    """The prunable weights whose layer ``pattern`` stands for.

    Raises:
        UserError: none, or what is no pattern.
    """
    if not isinstance(pattern, str | type):
        raise UserError(
            f"a layer is named by a pattern such as 'conv1', 'blocks.0.*', 'Linear', 'first' or "
            f"'last', not {pattern!r}"
        )
    weights, modules = list(prunable(model)), dict(model.named_modules())
    if pattern in ("first", "last"):
        return [weights[0 if pattern == "first" else -1]]
    kinds = {name: type(modules[_layer(name)]).__mro__ for name in weights}
    if found := [name for name in weights if _stands_for(pattern, name, kinds[name])]:
        return found
    names = {kind[0].__name__ for kind in kinds.values()}
    known = ["first", "last", *map(_layer, weights), *names]
    raise unknown("layer", getattr(pattern, "__name__", pattern), known)


def _layer(weight: str) -> str:
    """``"conv1"`` of ``"conv1.weight"``."""
    return weight.rpartition(".")[0]


def _stands_for(pattern: Pattern, weight: str, kinds: tuple[type, ...]) -> bool:
    """Whether a pattern is one of the ``kinds`` of a weight's layer, the name of one, or fits the
    name of the layer or the weight."""
    if isinstance(pattern, type):
        return pattern in kinds
    own = [kind.__name__ for kind in kinds if kind not in (nn.Module, object)]
    return fnmatchcase(_layer(weight), pattern) or fnmatchcase(weight, pattern) or pattern in own


def patterns(kind: str, value: Pattern | Sequence[Pattern] | None) -> tuple[Pattern, ...]:
    """One pattern or several as a tuple, without those that are there twice."""
    if value is None or isinstance(value, str | type):
        return () if value is None else (value,)
    if not isinstance(value, Sequence):
        raise UserError(
            f"{kind} is {value!r}; it must be a pattern such as 'first', or a list of them"
        )
    return tuple(dict.fromkeys(value))


def floors(value: float | Mapping[str, float]) -> dict[str, float]:
    """Pattern -> fraction kept at least; a number is that of every layer.

    Raises:
        UserError: what is not in [0, 1].
    """
    found = dict(value) if isinstance(value, Mapping) else {"*": value} if value != 0 else {}
    for pattern, least in found.items():
        if not is_number(least) or not 0 <= least <= 1:
            raise UserError(
                f"floor of {pattern!r} is {least!r}; it is the fraction that a layer keeps at "
                "least, in [0, 1], for example 0.01"
            )
    return found


def limits(
    model: nn.Module,
    include: Pattern | Sequence[Pattern] | None = None,
    exclude: Pattern | Sequence[Pattern] | None = None,
    floor: float | Mapping[str, float] = 0.0,
) -> Least | None:
    """What each layer keeps at least; None if nothing is asked for.

    Args:
        include: only these layers are pruned, all others stay whole.
        exclude: these stay whole.
        floor: fraction, rounded up to whole weights, that every layer keeps at least; or one for
            each pattern, of which the largest counts.

    Raises:
        UserError: a pattern that stands for no layer, a floor out of range, or no layer that may be
            pruned.
    """
    sizes = {name: weight.numel() for name, weight in prunable(model).items()}
    included, excluded = patterns("include", include), patterns("exclude", exclude)
    pruned = _together(model, included) or set(sizes)
    pruned -= _together(model, excluded)
    if not pruned:
        raise UserError("every layer stays whole, so nothing is left to prune; exclude fewer")
    least = {name: 0 if name in pruned else size for name, size in sizes.items()}
    for pattern, fraction in floors(floor).items():
        for name in matching(model, pattern):
            # 0.07 * 100 is 7.000000000000001.
            least[name] = max(least[name], ceil(round(fraction * sizes[name], 9)))
    return least if any(least.values()) else None


def _together(model: nn.Module, chosen: tuple[Pattern, ...]) -> set[str]:
    return {name for pattern in chosen for name in matching(model, pattern)}


def check_room(least: Least, density: float, total: int) -> None:
    """Raise a ``UserError`` unless round(density * total) weights are as many as all layers keep at
    least."""
    if (taken := sum(least.values())) > round(density * total):
        raise UserError(
            f"density {density} keeps {round(density * total):,} of {total:,} weights, and layers "
            f"that stay whole and floors take {taken:,}; "
            f"the least is {taken / total:.4g}"
        )


def uniform(shape: Sequence[int]) -> int:
    """The share of a layer that keeps the same fraction as all others: its size."""
    return prod(shape)


def erk(shape: Sequence[int]) -> int:
    """The share of a layer in the Erdős-Rényi-Kernel scheme (Evci et al. 2020, appendix): its
    density is proportional to sum / product of its dimensions, so the number that it keeps is to
    their sum."""
    return sum(shape)


def share_out(
    total: int, shares: Sequence[int], least: Sequence[int], sizes: Sequence[int]
) -> list[int]:
    """How many of ``total`` weights each layer keeps: in proportion to ``shares``, at least
    ``least`` and at most ``sizes``.

    What a layer can not take goes to the others in proportion. The sum is exact: shares are rounded
    with one common factor (Webster's method), so with a larger total no layer keeps less; among
    equals the earlier layer comes first.
    """
    wanted, floor, most = (np.asarray(each, dtype=np.int64) for each in (shares, least, sizes))

    def rounded(factor: float) -> np.ndarray:
        return np.clip((factor * wanted + 0.5).astype(np.int64), floor, most)

    low, high = 0.0, float((most / wanted).max()) + 1
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if rounded(middle).sum() <= total else (low, middle)
    counts = rounded(low)
    for _ in range(total - counts.sum()):  # equals at the factor itself
        turn = np.where(counts < most, (counts + 0.5) / wanted, np.inf)
        counts[turn.argmin()] += 1
    return counts.tolist()
