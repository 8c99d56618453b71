"""One record for every way to a sparse network. What is here appears in every sweep, table, figure,
battery of tests and benchmark.

A method of your own is a file for ``--plugin`` with a function and a record::

    from panning_core.methods.registry import Method, add

    def find(model, batches, density, seed, how, *, power=1.0):
        return in_rounds(model, lambda mask, batch, asked: Scored(...), density, batches, how)

    add(Method("mine", "my method", find, colour="#123456", marker="^"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from .. import masks, metrics
from ..errors import UserError, unknown
from ..masks import Mask
from ..names import Table
from . import dynamic, gumbel_softmax, iterative_magnitude, panning, phew, smart_ratio
from .options import keywords, settle
from .scored import by_count, by_metric

DENSE, PRUNER, LEARNER, MOVING = KINDS = ("dense", "pruner", "learner", "moving")


@dataclass(frozen=True)
class Method:
    """A way to a sparse network.

    Attributes:
        name: in runs, profiles and ``pruning.prune``.
        title: in tables and figures.
        find: of a pruner ``(model, batches, density, seed, how, **options) -> mask, trace``, which
            only reads ``model`` and obeys ``how``, a ``pruning.Rounds``; of a learner ``(model,
            splits, density, seed, **options) -> mask, trace``, and ``model`` is trained then; of a
            moving one as of a learner, but the first mask of its training.
        kind: ``PRUNER``, ``LEARNER``, ``MOVING`` or ``DENSE``, the network as it is.
        paper: who found it.
        colour, marker: in figures, as Matplotlib names them; without a colour it gets the next one.
        rounds: of scoring and pruning that a pruner takes, unless it is asked for others.
        regrows: whether a pruned weight may return, unless asked otherwise.
        takes: of the arguments ``mix`` and ``policy`` of ``pruning.prune`` those that ``find`` has.
        options: name -> default; None is the keyword-only arguments of ``find``.
        update: of a moving method makes the hook of ``training.train`` that changes the mask while
            the network is trained, ``(plan, density, seed) -> dynamic.Update``, with a
            ``dynamic.Plan``; None leaves the mask alone.
        version: of its results; a change of the masks it finds takes the next number (see
            ``runs.versions``).
    """

    name: str
    title: str
    find: Callable[..., tuple[Mask, list[dict]]]
    kind: str = PRUNER
    paper: str = ""
    colour: str | None = None
    marker: str = "o"
    rounds: int = 1
    regrows: bool = False
    takes: tuple[str, ...] = ()
    options: Mapping[str, object] | None = None
    update: Callable[..., dynamic.Update] | None = None
    version: int = 1

    def __post_init__(self):
        if self.kind not in KINDS:
            raise unknown("kind of method", self.kind, KINDS)
        if self.options is None:
            object.__setattr__(self, "options", keywords(self.find))

    def settled(self, options: Mapping[str, object]) -> dict[str, object]:
        """``options`` without those at their default, in the order of their names.

        Raises:
            UserError: an option that this method has not, or a value of the wrong kind.
        """
        return settle(self.name, self.options or {}, options)

    def taken(self, **given: object) -> dict[str, object]:
        """What was given of ``mix`` and ``policy``.

        Raises:
            UserError: it belongs to other methods.
        """
        given = {what: value for what, value in given.items() if value is not None}
        for what in given.keys() - set(self.takes):
            takers = [each.name for each in METHODS.values() if what in each.takes]
            raise UserError(f"a {what} belongs to {' or '.join(takers)}, not to {self.name}")
        return given


def _scored(
    name: str,
    title: str,
    paper: str,
    colour: str | None,
    marker: str,
    metric: str | None = None,
    rounds: int = 1,
    regrows: bool = False,
) -> Method:
    """A pruner by a metric of its own name, or by ``metric``."""
    metric = metric or name
    return Method(
        name, title, by_metric(metric), PRUNER, paper, colour, marker, rounds, regrows,
        options=keywords(metrics.METRICS[metric]),
    )  # fmt: skip


def _panning(name: str, title: str, find: Callable, colour: str, marker: str, takes: str) -> Method:
    return Method(
        name, title, find, PRUNER, "Kang et al. 2022", colour, marker, rounds=100, regrows=True,
        takes=(takes,),
    )  # fmt: skip


def _at_random(
    model: nn.Module, splits: object, density: float, seed: int
) -> tuple[Mask, list[dict]]:
    return dynamic.begin(model, density, seed), []


def _moving(
    name: str, title: str, paper: str, colour: str, marker: str, version: int = 1
) -> Method:
    """A method of ``dynamic.WAYS``."""
    return Method(
        name, title, _at_random, MOVING, paper, colour, marker, options={},
        update=partial(dynamic.Update, name), version=version,
    )  # fmt: skip


def _whole(model: nn.Module, splits: object, density: float, seed: int) -> tuple[Mask, list[dict]]:
    return masks.ones(model), []


#: Name -> record, in the order in which tables and figures list them.
METHODS: dict[str, Method] = Table(
    __name__ + ".METHODS",
    {
        method.name: method
        for method in (
            Method("dense", "dense", _whole, DENSE, colour="black", marker="_"),
            _panning(
                "panning-agent", "Panning (agent)", panning.agent, "#e377c2", "*", "policy"
            ),
            _panning(
                "panning", "Panning (staged, sum)", panning.staged_sum, "#d62728", "o", "mix"
            ),
            _panning(
                "panning-product",
                "Panning (staged, product)",
                panning.staged_product,
                "#ff9896",
                "o",
                "mix",
            ),
            _panning(
                "panning-masked",
                "Panning (masked product)",
                panning.masked_product,
                "#a50f15",
                "o",
                "mix",
            ),
            _scored("synflow", "SynFlow-100", "Tanaka et al. 2020", "#1f77b4", "s", rounds=100),
            _scored(
                "iterative-snip", "Iterative SNIP-100", "de Jorge et al. 2021", "#2ca02c", "D",
                metric="snip", rounds=100,
            ),
            _scored(
                "force", "FORCE-100", "de Jorge et al. 2021", "#98df8a", "^",
                rounds=100, regrows=True,
            ),
            _scored("ntk-sap", "NTK-SAP", "Wang et al. 2023", "#17becf", "d", rounds=20),
            _scored("prospr", "ProsPr", "Alizadeh et al. 2022", "#ff7f0e", "p"),
            _scored("snip", "SNIP", "Lee et al. 2019", "#9467bd", "v"),
            _scored("grasp", "GraSP (signed)", "Wang et al. 2020", "#8c564b", "P"),
            _scored("grasp-abs", "GraSP (absolute)", "Kang et al. 2022", "#c49c94", "X"),
            Method(
                "phew", "PHEW", by_count(phew.phew), PRUNER, "Patil & Dovrolis 2021", "#393b79", "h"
            ),
            Method(
                "smart-ratio", "smart ratio", by_count(smart_ratio.smart_ratio), PRUNER,
                "Su et al. 2020", "#9c9ede", ">",
            ),
            _scored("magnitude", "magnitude", "", "#7f7f7f", "s"),
            _scored("random", "random", "", "#bcbd22", "."),
            Method(
                "gumbel-softmax", "Gumbel-Softmax gates", gumbel_softmax.learn, LEARNER,
                "Zhang et al. 2023", "#006d5b", "*",
            ),
            Method(
                "iterative-magnitude", "iterative magnitude",
                iterative_magnitude.iterative_magnitude, LEARNER,
                "Frankle & Carbin 2019; Renda et al. 2020", "#e6ab02", "<",
            ),
            Method(
                "trained-magnitude", "magnitude after training",
                iterative_magnitude.trained_magnitude, LEARNER,
                "Han et al. 2015", "#666666", "8",
            ),
            _moving("gmp", "GMP", "Zhu & Gupta 2018", "#8c510a", "D"),
            _moving("granet", "GraNet", "Liu et al. 2021", "#5e3c99", "^", version=2),
            _moving("granet-st", "GraNet-ST", "Liu et al. 2021", "#b2abd2", "^", version=3),
            _moving("granet-random", "GraNet, random growth", "", "#dfc27d", "^", version=2),
            _moving("rigl", "RigL", "Evci et al. 2020", "#01665e", "P", version=2),
            _moving("set", "SET", "Mocanu et al. 2018", "#80cdc1", "X", version=2),
        )
    },
)  # fmt: skip


def add(method: Method) -> None:
    """A method of your own, from a plugin or a notebook.

    Raises:
        UserError: its name belongs to another method or metric.
    """
    if method.name in names():
        raise UserError(f"there is a method {method.name!r} already; give yours another name")
    METHODS[method.name] = method


def method(name: str) -> Method:
    """The record of a method; any other metric of ``metrics.METRICS`` is one too, in one round.

    Raises:
        UserError: an unknown name.
    """
    if name not in names():
        raise unknown("method", name, names())
    return METHODS.get(name) or _scored(name, name, "", None, "o")


def names(kind: str | None = None) -> list[str]:
    """Every method, or those of a kind: ``METHODS``, and the metrics that are not there by name."""
    found = [name for name, each in METHODS.items() if kind in (None, each.kind)]
    one_shot = kind in (None, PRUNER)
    return [*found, *(name for name in metrics.METRICS if one_shot and name not in METHODS)]


def pruners() -> list[str]:
    """The methods that prune before training: the names that ``pruning.prune`` takes."""
    return names(PRUNER)


def moving() -> list[str]:
    """The methods that change the mask while the network is trained."""
    return names(MOVING)


def learners() -> list[str]:
    """The methods that train the network for its mask."""
    return names(LEARNER)
