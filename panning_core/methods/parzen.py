"""Search by tree-structured Parzen estimators over a table of choices, good and bad told apart by
a quantile (Bergstra et al. 2011) or by clusters of what was observed (arXiv 2308.06422, abstract).

A configuration is a tuple of indices, one for each variable; an objective is to be as large as
possible. No code of the clustered variant is public and its text could not be read: the number of
clusters and their start are choices made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil

import numpy as np

Configuration = tuple[int, ...]
#: values [n] -> where the good ones are and where the bad ones are, both boolean [n]
Split = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

CANDIDATES = 24  #: drawn from the density of the good ones for one evaluation
PRIOR = 1.0  #: added to every count of a choice


def by_quantile(values: np.ndarray, share: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """The best ceil(share n) are good, the others bad; of equal values the earlier is better."""
    good = np.zeros(len(values), dtype=bool)
    good[np.argsort(-values, kind="stable")[: ceil(share * len(values))]] = True
    return good, ~good


def clusters(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means in one dimension, started at ``count`` evenly spaced quantiles.

    A value as far from two centres goes to the earlier one, and a centre without values stays.

    Returns:
        The label of each value, and the centres, which need not be in order at the end.
    """
    centres, labels = np.quantile(values, np.linspace(0, 1, count)), None
    while True:
        nearest = np.abs(values[:, None] - centres).argmin(1)
        if labels is not None and (nearest == labels).all():
            return labels, centres
        labels = nearest
        for each in np.unique(labels):
            centres[each] = values[labels == each].mean()


def by_clusters(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The cluster with the largest centre is good, that with the smallest bad, others neither."""
    labels, centres = clusters(values, count)
    own = centres[labels]
    return own == own.max(), own == own.min()


def densities(chosen: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """A categorical distribution a variable: counts plus ``PRIOR``; ``chosen`` [n, variables]."""
    counts = [np.bincount(column, minlength=size) for column, size in zip(chosen.T, sizes)]
    return [(count + PRIOR) / (count + PRIOR).sum() for count in counts]


def propose(
    tried: np.ndarray,
    values: np.ndarray,
    sizes: Sequence[int],
    split: Split,
    generator: np.random.Generator,
) -> np.ndarray:
    """``CANDIDATES`` configurations drawn from the density of the good ones, those first for which
    it is largest beside the density of the bad ones; [candidates, variables]."""
    good, bad = (densities(tried[part], sizes) for part in split(values))
    drawn = np.stack([generator.choice(len(p), CANDIDATES, p=p) for p in good], axis=1)
    ratio = sum(np.log(p / q)[column] for p, q, column in zip(good, bad, drawn.T))
    return drawn[np.argsort(-ratio, kind="stable")]


def search(
    objective: Callable[[Configuration], float],
    space: Sequence[Sequence[int]],
    evaluations: int,
    start: int,
    split: Split | None,
    repeats: bool,
    seed: int,
) -> list[tuple[Configuration, float]]:
    """Evaluate one configuration after the other.

    Args:
        space: the indices that each variable may have.
        start: evaluations at random before densities are used; the same for every rule with this
            seed.
        split: None is random search.
        repeats: whether a configuration may be evaluated again, which costs an evaluation; without
            it the best candidate that is new is taken, or a random new one where none is.

    Returns:
        Configurations and values in their order; fewer than ``evaluations`` where the space ends.
    """
    sizes = [len(choices) for choices in space]
    fresh = iter(np.random.default_rng(seed).permutation(int(np.prod(sizes))))
    generator = np.random.default_rng((seed, 1))
    tried: list[Configuration] = []
    values: list[float] = []
    while len(tried) < (evaluations if repeats else min(evaluations, int(np.prod(sizes)))):
        if split is None or len(tried) < start:
            found = _unseen(fresh, tried, sizes)
        else:
            ranked = propose(np.array(tried), np.array(values), sizes, split, generator)
            new = [c for c in map(_plain, ranked) if repeats or c not in tried]
            found = new[0] if new else _unseen(fresh, tried, sizes)
        tried.append(found)
        values.append(objective(_named(found, space)))
    return [(_named(found, space), value) for found, value in zip(tried, values)]


def _plain(row: np.ndarray) -> Configuration:
    return tuple(int(index) for index in row)


def _unseen(fresh: Iterator, tried: list[Configuration], sizes: Sequence[int]) -> Configuration:
    """The next of a random order of the space that was not tried."""
    while (found := _plain(np.unravel_index(next(fresh), sizes))) in tried:
        pass
    return found


def _named(found: Configuration, space: Sequence[Sequence[int]]) -> Configuration:
    return tuple(choices[index] for choices, index in zip(space, found))
