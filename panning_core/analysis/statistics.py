"""Intervals, tests and verdicts over seeds. A seed is the unit that is repeated: everything random
in a run follows from it.

The rule of a verdict, fixed before the runs: differences are paired over seeds; each cell (a rival
at a sparsity) has a Student interval and a two-sided Student p, and all cells of a claim are one
family of Holm's. Below ``LEAST`` seeds nothing is judged. A difference matters from ``smallest``
on. How often the rule errs, and what it can see, is simulated in its tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit  # scipy.stats takes ten times as long a call

from ..errors import UserError

LEVEL = 0.05  #: of every test; intervals cover 1 - LEVEL
LEAST = 5  #: seeds below which there is no verdict, only numbers
RULE = "Student, paired over seeds; Holm"  #: what tables call the rule
TENTH = float(np.log(1.1))  #: of a mean log error: errors that are a tenth larger
OUTCOMES = ("few", "worse", "open", "no worse", "better")  #: of a cell, the least favourable first
FLOOR = 1e-4  #: an error on 10,000 images is not known below one image
ROUNDING = 1e-9  #: differences that are the same up to it have no spread


class Estimate(NamedTuple):
    """A mean with its interval over ``n`` values."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}], n = {self.n}"


def interval(values: Sequence[float]) -> Estimate:
    """Mean and Student's 95 % interval.

    It covers the mean of normal data in 95 cases of a hundred whatever n is, which a bootstrap of
    so few values does not. One value, or values without spread, give an interval of no width.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    # The same values give the same bits, in whatever order.
    values = np.sort(np.asarray(values, dtype=float))
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values, got {values}")
    mean, n = float(values.mean()), len(values)
    if n < 2 or np.ptp(values) == 0:
        return Estimate(mean, mean, mean, n)
    half = float(stdtrit(n - 1, 1 - LEVEL / 2) * values.std(ddof=1) / n**0.5)
    return Estimate(mean, mean - half, mean + half, n)


def intervals(
    groups: Iterable[Sequence[float]], least: float = -np.inf, most: float = np.inf
) -> pd.DataFrame:
    """A row for each group of values, mean, low, high and n of ``interval``; low and high end where
    values do, at ``least`` and ``most``: Student's interval knows no ends of a scale.
    """
    table = pd.DataFrame([interval(group) for group in groups], columns=Estimate._fields)
    return table.assign(low=table.low.clip(lower=least), high=table.high.clip(upper=most))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm 1979)."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def smallest(accuracy: float) -> float:
    """The smallest difference of interest beside this accuracy: 0.2 points from 95 % on, else a
    tenth of the error.
    """
    return 0.002 if accuracy >= 0.95 else (1 - accuracy) / 10


def gain(accuracy: pd.Series) -> pd.Series:
    """Minus the logarithm of the error: what ``compare_errors`` compares."""
    return -np.log(np.maximum(1 - accuracy, FLOOR))


def compare(
    frame: pd.DataFrame,
    subject: str,
    rivals: Sequence[str],
    column: str = "method",
    value: str = "test_accuracy",
    by: str = "sparsity",
    margin: Callable[[float], float] = smallest,
) -> pd.DataFrame:
    """``subject`` minus each rival, paired over seeds, apart at each value of ``by``; never a mean
    over them.

    Runs that share a seed (as orders of one mask) are averaged first.

    Args:
        margin: the smallest difference of interest, of the rival's mean.

    Returns:
        One row a cell: subject, rival, ``by``, difference (mean of subject - rival), low, high
        (Student), n, margin, p, p_margin (one-sided, against a difference of -margin), and
        ``judged``'s columns with all rows as one family.
    """
    table = frame.pivot_table(index=[by, "seed"], columns=column, values=value)
    _check_names(list(table), subject, rivals)
    rows = []
    for place, part in table.groupby(level=by):
        for rival in rivals:
            if {subject, rival} <= set(part) and len(pair := part[[subject, rival]].dropna()):
                least = margin(pair[rival].mean())
                rows.append(
                    {
                        "subject": subject,
                        "rival": rival,
                        by: place,
                        **_cell(pair[subject] - pair[rival], least),
                    }
                )
    return judged(pd.DataFrame(rows))


def compare_errors(
    frame: pd.DataFrame, subject: str, rivals: Sequence[str], column: str = "method"
) -> pd.DataFrame:
    """``compare`` of the mean logarithm of the error over the sparsities that both have: no
    sparsity decides it alone.

    A difference of 0.1 says that the subject's errors are exp(-0.1) times the rival's; ``TENTH`` is
    the smallest of interest.
    """
    logs = frame.assign(gain=gain(frame.test_accuracy))
    table = logs.pivot_table(index=["sparsity", "seed"], columns=column, values="gain")
    _check_names(list(table), subject, rivals)
    rows = []
    for rival in rivals:
        pair = table[[subject, rival]].dropna() if {subject, rival} <= set(table) else table[:0]
        if len(pair):
            difference = pair[subject] - pair[rival]
            # Seeds that lack a sparsity would be compared over others.
            whole = difference.groupby("seed").filter(
                lambda d: len(d) == pair.index.get_level_values(0).nunique()
            )
            if len(whole):
                rows.append(
                    {
                        "subject": subject,
                        "rival": rival,
                        **_cell(whole.groupby("seed").mean(), TENTH),
                    }
                )
    return judged(pd.DataFrame(rows))


def _check_names(names: Collection[str], subject: str, rivals: Sequence[str]) -> None:
    """Warns of a name that is nearly one of ``names`` and has no run: one without may be left out,
    but a misspelt one not in silence.
    """
    for name in {subject, *rivals}.difference(names):
        if near := get_close_matches(str(name), map(str, names), 1, cutoff=0.85):
            said = f"no run of {name!r}, which is not compared; did you mean {near[0]!r}?"
            warnings.warn(said, stacklevel=3)


def _cell(differences: Sequence[float], margin: float) -> dict:
    """Interval and tests of paired differences."""
    e = interval(differences)
    error = (e.high - e.mean) / stdtrit(e.n - 1, 1 - LEVEL / 2) if e.n > 1 else np.nan
    if e.n < 2:
        p = p_margin = 1.0
    elif error < ROUNDING:  # all differences are the same, and only their sign says something
        p = 2 * 0.5**e.n if abs(e.mean) > ROUNDING else 1.0
        p_margin = 0.5**e.n if e.mean > -margin else 1.0
    else:
        p = 2 * stdtr(e.n - 1, -abs(e.mean) / error)
        p_margin = stdtr(e.n - 1, -(e.mean + margin) / error)
    return {
        "difference": e.mean,
        "low": e.low,
        "high": e.high,
        "n": e.n,
        "margin": margin,
        "p": float(p),
        "p_margin": float(p_margin),
    }


def judged(cells: pd.DataFrame) -> pd.DataFrame:
    """``cells`` of ``compare``, several of them put together too, as one family: with p_holm,
    family (its size) and outcome.

    ``better`` and ``worse``: p_holm says that the difference is none of chance. ``no worse``: it is
    surely above -margin, whatever its sign. ``open``: neither. ``few``: too few seeds to say.
    Together being no worse needs no adjustment: every cell must show it.
    """
    if not len(cells):
        return cells
    cells = cells.reset_index(drop=True)
    p_holm = np.array(holm(cells.p))
    sure, above = p_holm <= LEVEL, cells.difference > 0
    within = cells.p_margin <= LEVEL
    outcome = np.select(
        [cells.n < LEAST, sure & above, within, sure],
        ["few", "better", "no worse", "worse"],
        "open",
    )
    return cells.assign(p_holm=p_holm, family=len(cells), outcome=outcome)


# One piece: the rules of a verdict stand in the order in which they are tried.
def verdict(cells: pd.DataFrame, claim: str = "better", every: bool = False) -> str:
    """In a word: does the claim hold that the subject is better than its rivals, or as good as
    they, in these cells of one family?

    ``holds``: in every cell. ``holds in part``: in some. ``fails``: in none, and worse in a cell;
    with ``every``, for a claim like "better than all others", worse in one is enough. ``no worse``
    (of a claim to be better): in no cell by a margin that matters. ``undecided``: the rest.
    ``not judged``: below ``LEAST`` seeds, or no cell.

    Some cells among others must show it after Holm's adjustment; all together need none.

    Args:
        claim: ``"better"`` or ``"as good"``.
    """
    if not len(cells) or (cells.outcome == "few").any():
        return "not judged"
    better, worse = cells.outcome == "better", (cells.outcome == "worse").any()
    alike = cells.outcome.isin(["better", "no worse"]).all()
    if better.all() or claim == "as good" and alike:
        return "holds"
    some = better if claim == "better" else better | (np.array(holm(cells.p_margin)) <= LEVEL)
    if worse and (every or not some.any()):
        return "fails"
    if some.any() and (worse or claim == "better"):
        return "holds in part"
    return "no worse" if alike else "undecided"


def ranked(cells: pd.DataFrame) -> pd.DataFrame:
    """``cells``, those least favourable to the claim first: by outcome, then by difference in units
    of what matters.
    """
    order = cells.assign(
        rank=cells.outcome.map(OUTCOMES.index), size=cells.difference / cells.margin
    )
    return cells.loc[order.sort_values(["rank", "size"], kind="stable").index]


def decisive(cells: pd.DataFrame) -> pd.Series:
    """The cell on which the verdict hangs, the one least favourable to the claim."""
    return ranked(cells).iloc[0]


class Ranks(NamedTuple):
    """Ranks inside blocks, each a seed at a sparsity; 1 is best, ties share their mean."""

    means: pd.DataFrame  #: mean over seeds, a row a name (best first) and a column a sparsity
    overall: pd.DataFrame  #: mean, low, high (``interval`` over the seeds' means), by name
    blocks: int
    p: float  #: of Friedman's test that all are alike
    critical: float  #: Nemenyi's critical difference of two means over all blocks


def critical_difference(names: int, blocks: int) -> float:
    """From which difference on two mean ranks of ``names`` in ``blocks`` are told apart (Nemenyi;
    Demšar 2006, section 3.2.2), all pairs together at ``LEVEL``.
    """
    # Here, as it takes a second to import.
    from scipy.stats import studentized_range

    q = studentized_range.ppf(1 - LEVEL, names, np.inf) / 2**0.5
    return float(q * (names * (names + 1) / (6 * blocks)) ** 0.5)


def ranks(frame: pd.DataFrame, column: str = "method", value: str = "test_accuracy") -> Ranks:
    """The ranks of the values of ``column`` by ``value``, the largest first, so that no sparsity
    decides alone, however large its differences are.

    Blocks that lack one are left out. Friedman and Nemenyi take sparsities as problems of their
    own; the intervals do not, they stand on the seeds alone.

    Raises:
        UserError: fewer than three to rank, or no two blocks with all of them.
    """
    from scipy.stats import friedmanchisquare

    table = frame.pivot_table(index=["sparsity", "seed"], columns=column, values=value).dropna()
    if table.shape[1] < 3 or len(table) < 2:
        raise UserError(f"{table.shape[1]} to rank in {len(table)} blocks; needs 3 in 2")
    places = table.rank(axis=1, ascending=False)
    overall = pd.DataFrame(
        {name: interval(places[name].groupby("seed").mean()) for name in places},
        index=Estimate._fields,
    ).T.sort_values("mean", kind="stable")
    alike = (table.nunique(axis=1) == 1).all()
    p = 1.0 if alike else float(friedmanchisquare(*table.to_numpy().T).pvalue)
    means = places.groupby("sparsity").mean().T.loc[overall.index]
    return Ranks(means, overall, len(table), p, critical_difference(table.shape[1], len(table)))


class Parts(NamedTuple):
    """Deviations of a one-way analysis of variance, in units of what was measured."""

    mean: float
    between: float  #: of the groups' true means; 0 where the spread inside explains theirs
    within: float  #: inside a group
    groups: int
    each: int  #: measurements of a group, on average


def parts(runs: pd.DataFrame, group: str, inside: str, value: str = "test_accuracy") -> Parts:
    """How much of the spread of ``value`` lies between the groups, and how much inside them.

    A group that lacks a measurement is left out.

    Args:
        group, inside: columns; what differs between the groups, and within one.

    Raises:
        UserError: fewer than two groups, or than two values in a group.
    """
    table = runs.pivot(index=group, columns=inside, values=value).dropna()
    groups, each = table.shape
    if groups < 2 or each < 2:
        raise UserError(f"{groups} values of {group} and {each} of {inside}; both need two")
    within = float(table.var(axis=1, ddof=1).mean())
    between = max(0.0, float(table.mean(axis=1).var(ddof=1)) - within / each)
    return Parts(float(table.stack().mean()), between**0.5, within**0.5, groups, each)
