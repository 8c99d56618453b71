"""Bits for each layer and the width of one, by search (Azizi et al., arXiv 2308.06422, DATE 2024).

Only the abstract could be read, and no code is public. Theirs are: a search space cut down by a
Hessian-based sensitivity, a tree-structured Parzen estimator whose good and bad trials are clusters
of what was observed, and an objective of accuracy and hardware cost. Choices made here: the
network, the number format, HAWQ-v2's sensitivity (Dong et al. 2020), size as the only cost, and
quantisation after training in place of quantisation-aware training.

All 1,875 networks of the space are evaluated once, so that a search is a walk over a table whose
best entry is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import ClassVar, NamedTuple

import numpy as np
import optuna
import torch
from torch.nn.functional import cross_entropy

from .. import data
from ..errors import UserError, is_number, pick, whole
from ..methods import mixed_precision, parzen
from ..methods.mixed_precision import BITS, LAYERS, SIZES, WIDTHS, accuracies, cut_space, sizes
from ..methods.parzen import Configuration
from ..methods.sensitivity import sensitivity, traces
from . import base

VALIDATION = 2000  #: images that an objective is measured on, at most
START, MOST = 20, 200  #: evaluations at random, and of a search
MARKS = (30, 60, 100)  #: numbers of evaluations after which a gap is told
CLOSE = 0.003  #: a gap to the best objective that counts as found
SLACK = 0.01  #: of accuracy, that the smallest uniform network may lose beside 8 bits
DRAWS, BATCH = 20, 256  #: of Hutchinson's estimate
FELT_AT = 4  #: bits, the middle ones, at which layers are sorted by sensitivity
MOST_ASKED = 10  #: times as many questions to Optuna as evaluations, because it repeats itself
RULES = ("random", "quantile", "cluster", "optuna")


@dataclass(frozen=True)
class ClusterTPE(base.Run):
    """Several searches of one rule for one trained network; the table is made once a network.

    Attributes:
        seed: of the network, its training, the Hessian's draws and the searches.
        dataset, epochs: of the training.
        rule: ``"random"``; ``"quantile"`` or ``"cluster"``, a Parzen estimator of
            ``methods.parzen``; or ``"optuna"``, the library's.
        clusters: of the rule ``"cluster"``.
        pruned: whether the space is cut down by the layers' sensitivity.
        repeats: whether what was evaluated may be evaluated again; ``"optuna"`` is told what is
            known instead, at no cost, and ``"random"`` never repeats.
        searches, evaluations: how many, and how many in each.
        penalty: times the size, in units of that of 8 bits and full width, is taken from accuracy.
    """

    kind: ClassVar[str] = "cluster-tpe"
    needs: ClassVar[tuple[str, ...]] = ("optuna",)
    seed: int = 0
    dataset: str = "mnist"
    epochs: int = 2
    rule: str = "cluster"
    clusters: int = 4
    pruned: bool = False
    repeats: bool = False
    searches: int = 10
    evaluations: int = 100
    penalty: float = 0.1

    def __post_init__(self):
        for name, least in (("seed", 0), ("epochs", 1), ("clusters", 1), ("searches", 1)):
            whole(f"{name} of cluster-tpe", getattr(self, name), least)
        pick("rule", self.rule, dict.fromkeys(RULES))
        for name in ("pruned", "repeats"):
            if not isinstance(value := getattr(self, name), bool):
                raise UserError(f"{name} of cluster-tpe is {value!r}; it must be true or false")
        if whole("evaluations of cluster-tpe", self.evaluations, START + 1) > MOST:
            raise UserError(
                f"evaluations of cluster-tpe is {self.evaluations}; at most {MOST} leave something "
                "to be found"
            )
        if not is_number(self.penalty) or self.penalty < 0:
            raise UserError(
                f"penalty of cluster-tpe is {self.penalty!r}; it must be a number of at least 0"
            )

    @classmethod
    def tasks(cls, runs: Sequence[ClusterTPE], device: str) -> list[list[ClusterTPE]]:
        """All rules of a network, whose table is made once."""
        networks: dict[tuple, list[ClusterTPE]] = {}
        for run in runs:
            networks.setdefault((run.dataset, run.epochs, run.seed), []).append(run)
        return list(networks.values())

    def execute(self, context: base.Context) -> dict:
        known = tabulate(self.dataset, self.epochs, self.seed)
        objective = known.accuracy - self.penalty * known.size
        found = [self._search(known, objective, number) for number in range(self.searches)]
        return {
            **searched(found, objective),
            **compressed(found, known),
            **described(known, objective),
        }

    def _search(self, known: Table, objective: np.ndarray, number: int) -> list[Configuration]:
        space = known.pruned if self.pruned else tuple(map(range, SIZES))
        seed = 1000 * self.seed + number

        def measure(configuration: Configuration) -> float:
            return float(objective[configuration])

        if self.rule == "optuna":
            return ask_optuna(measure, space, self.evaluations, seed)
        splits = {
            "random": None,
            "quantile": parzen.by_quantile,
            "cluster": partial(parzen.by_clusters, count=self.clusters),
        }
        split = splits[self.rule]
        trials = parzen.search(measure, space, self.evaluations, START, split, self.repeats, seed)
        return [configuration for configuration, _ in trials]


class Table(NamedTuple):
    """All networks of the space, for one that was trained in full."""

    accuracy: np.ndarray  #: on validation images; a dimension a variable
    size: np.ndarray  #: in units of 8 bits and full width
    dense: float  #: accuracy in float32 on the same images
    traces: list[float]  #: of the Hessian, over the number of weights, a layer
    sensitivity: list[float]  #: at ``FELT_AT`` bits, a layer
    pruned: tuple[range, ...]  #: the choices that the cut space has
    test: Callable[[Configuration], float]  #: accuracy of one of them on the test images


@lru_cache(maxsize=1)
def tabulate(dataset: str, epochs: int, seed: int) -> Table:
    """Train the network and evaluate everything; the last table is kept, for the other rules."""
    splits = data.load(dataset)
    model = mixed_precision.network(splits, seed)
    mixed_precision.train(model, splits.train, epochs, seed)
    seen = splits.validation.first(VALIDATION)
    weights = [getattr(model, name).weight for name in LAYERS]
    batch = splits.train.first(BATCH)
    loss = cross_entropy(model(batch.x), batch.y)
    curved = traces(loss, weights, torch.Generator().manual_seed(seed), DRAWS)
    felt = [sensitivity(weight, trace, FELT_AT) for weight, trace in zip(weights, curved)]

    @lru_cache(maxsize=None)
    def test(chosen: Configuration) -> float:
        return accuracies(model, splits.test, tuple((index,) for index in chosen)).item()

    with torch.no_grad():
        dense = float((model(seen.x).argmax(1) == seen.y).double().mean())
    return Table(
        accuracies(model, seen, tuple(map(range, SIZES))),
        sizes(model),
        dense,
        [trace / weight.numel() for weight, trace in zip(weights, curved)],
        felt,
        cut_space(felt),
        test,
    )


def ask_optuna(
    objective: Callable[[Configuration], float], space: tuple, evaluations: int, seed: int
) -> list[Configuration]:
    """The different configurations that Optuna's TPE asks for, in their order.

    It begins with those of ``parzen.search`` with this seed, and its answers to what it has asked
    before are free.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(n_startup_trials=START, seed=seed)
    )
    for start, _ in parzen.search(objective, space, START, START, None, False, seed):
        study.enqueue_trial({str(place): index for place, index in enumerate(start)})
    known: dict[Configuration, float] = {}
    for _ in range(MOST_ASKED * evaluations):
        trial = study.ask()
        asked = tuple(
            trial.suggest_categorical(str(place), list(choices))
            for place, choices in enumerate(space)
        )
        known.setdefault(asked, objective(asked))
        study.tell(trial, known[asked])
        if len(known) == evaluations:
            break
    return list(known)


def searched(found: list[list[Configuration]], objective: np.ndarray) -> dict:
    """How far the best so far is from the best of all.

    Returns:
        ``gaps`` after the evaluations of ``MARKS``, as ``gap_30``, and ``mean_gap`` over all behind
        the random start; ``curve``, every fifth gap from 5 evaluations on; ``needed``, evaluations
        until the gap is ``CLOSE``, one more than there are where it is never reached, and
        ``reached``, the share of searches that do: all means over searches. ``random_needed`` is
        the expectation for random order.
    """
    evaluations = max(map(len, found))
    gaps = np.empty((len(found), evaluations))
    for row, configurations in zip(gaps, found):
        best = np.maximum.accumulate([objective[c] for c in configurations])
        row[: len(best)], row[len(best) :] = objective.max() - best, objective.max() - best[-1]
    close = gaps <= CLOSE
    needed = np.where(close.any(1), close.argmax(1) + 1, evaluations + 1)
    near = int((objective.max() - objective <= CLOSE).sum())
    mean = gaps.mean(0)
    return {
        **{f"gap_{n}": _six(mean[n - 1]) for n in MARKS if n <= evaluations},
        "mean_gap": _six(mean[START:].mean()),
        "curve": [_six(gap) for gap in mean[4::5]],
        "needed": _six(needed.mean()),
        "reached": _six(close.any(1).mean()),
        "random_needed": _six((objective.size + 1) / (near + 1)),
        "distinct": _six(np.mean([len(set(each)) for each in found])),
    }


def compressed(found: list[list[Configuration]], known: Table) -> dict:
    """The smallest network that each search met and that is as accurate on the validation images
    as the smallest uniform one within ``SLACK`` of 8 bits.

    Returns:
        ``uniform_bits``, ``uniform_size`` and ``uniform_test_accuracy`` of that one;
        ``mixed_size`` and ``mixed_test_accuracy``, means over searches; sizes in units of 8 bits.
        A search that met none has the uniform one.
    """
    uniform = [(i, i, i, i, 0) for i in range(len(BITS))]
    floor = known.accuracy[uniform[-1]] - SLACK
    reference = next(place for place in uniform if known.accuracy[place] >= floor)
    chosen = []
    for configurations in found:
        good = [c for c in configurations if known.accuracy[c] >= known.accuracy[reference]]
        chosen.append(min([*good, reference], key=lambda c: known.size[c]))
    test = {c: known.test(c) for c in {*chosen, reference}}
    return {
        "uniform_bits": BITS[reference[0]],
        "uniform_size": _six(known.size[reference]),
        "uniform_test_accuracy": _six(test[reference]),
        "mixed_size": _six(np.mean([known.size[c] for c in chosen])),
        "mixed_test_accuracy": _six(np.mean([test[c] for c in chosen])),
    }


def described(known: Table, objective: np.ndarray) -> dict:
    """The table itself.

    Returns:
        ``dense_accuracy`` on validation images, ``uniform_accuracies`` for ``BITS``; ``traces`` and
        ``sensitivities``, a layer; ``best`` configuration, as bits and a width, and its
        ``best_objective``; ``space``, the number of networks in the cut space, and ``space_gap``,
        how much worse its best is.
    """
    best = np.unravel_index(objective.argmax(), SIZES)
    inside = max(objective[place] for place in product(*known.pruned))
    return {
        "dense_accuracy": _six(known.dense),
        "uniform_accuracies": [_six(known.accuracy[i, i, i, i, 0]) for i in range(len(BITS))],
        "traces": [_six(each) for each in known.traces],
        "sensitivities": [_six(each) for each in known.sensitivity],
        "best": [*(BITS[i] for i in best[:4]), WIDTHS[best[4]]],
        "best_objective": _six(objective.max()),
        "space": math.prod(map(len, known.pruned)),
        "space_gap": _six(objective.max() - inside),
    }


def _six(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")
