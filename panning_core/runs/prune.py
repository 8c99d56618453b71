"""Pruning runs: a network is pruned, by any method, and the sparse network is trained."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import pandas as pd
import torch

from .. import data, layers, masks, models, pruning, training
from ..agent import policies
from ..errors import UserError, fraction, pick, unknown, whole
from ..methods import panning, registry
from ..methods.registry import DENSE, LEARNER, MOVING, PRUNER
from ..training import stacked
from . import base, recorders
from .base import short

#: fields that no learner and no dense run has
PRUNING = (
    *("rounds", "schedule", "scope", "revive", "per_class", "fixed_batch", "transfer", "returns"),
    *("effective", "include", "exclude", "floor", "scoring"),
)

CONTROLS = ("none", "shuffle", "reinitialise", "invert")

STACK = 32  #: so many runs are trained at once on CUDA

SHARE = 8  #: so many runs of one seed learn from the same batches on the CPU


@dataclass(frozen=True)
class Run(base.Run):
    """Everything that decides a result, as plain values. Same run, same numbers (on the same device
    and thread count).

    Attributes:
        dataset, model, method: of ``data.names()``, ``models.MODELS`` and ``registry.names()``
            without those that move the mask.
        sparsity: fraction removed, in [0, 1).
        seed: of the initialisation, the scoring batches, a metric's noise, and the order of the
            training images.
        init: a key of ``models.INITS``.
        rounds, schedule, scope, revive, mix: as in ``pruning.prune``.
        control: ``"shuffle"`` the mask within its layers, ``"reinitialise"`` the kept weights,
            ``"invert"`` the scores.
        per_class: images of each class in a scoring batch.
        fixed_batch: one scoring batch for all rounds instead of a fresh one each.
        recipe: a key of ``training.RECIPES``; ``epochs`` replaces its length.
        transfer: also record the expressive force transfer of every round.
        precision: of the training, as in ``training.Recipe``.
        policy: of the method ``"panning-agent"``: ``"random"``, or a key of ``policies.places()``;
            None is ``policies.SHIPPED``.
        returns: also record what the agent's environment pays for the masks of every round:
            ``"authors"`` as the authors' pays, true in fixed units and over kept weights, as before
            ``observations.DEPARTURES`` had names.
        options: of the method, a dict: the keyword-only arguments of its metric or learner. Kept as
            pairs (name, value), without those at their default.
        effective: as in ``pruning.prune``; learners always count so.
        network: also record the trained network, as ``networks.describe`` writes it.
        normalisation: of the input, one of ``data.NORMALISATIONS``.
        order: seed of the order of the training images instead of ``seed``.
        scoring: seed of the scoring batches and of a metric's noise instead of ``seed``.
        engine: a key of ``training.ENGINES``; None is the faster one.
        include, exclude: as in ``pruning.prune``, by names: a grid crosses its lists, so two
            patterns for one run are ``[[first, last]]``.
        floor: as in ``pruning.prune``: a number, or a dict, which is kept as pairs (pattern,
            fraction).

    ``epochs`` 0 prunes and trains nothing: such a run has no accuracies.
    """

    kind: ClassVar[str] = "prune"
    on_cuda: ClassVar[bool] = True

    dataset: str
    model: str
    method: str = "dense"
    sparsity: float = 0.0
    seed: int = 0
    init: str = "pytorch"
    rounds: int | None = None
    schedule: str = "exponential"
    scope: str = "global"
    revive: bool | None = None
    mix: tuple[float, float, float] | None = None
    control: str = "none"
    per_class: int = 10
    fixed_batch: bool = False
    recipe: str = "mnist"
    epochs: int | None = None
    transfer: bool = False
    precision: str = "fp32"
    policy: str | None = None
    returns: bool | str = False
    options: tuple[tuple[str, object], ...] = ()
    effective: bool = False
    network: bool = False
    normalisation: str = "standardised"
    order: int | None = None
    scoring: int | None = None
    engine: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    floor: float | tuple[tuple[str, float], ...] = 0.0

    def __post_init__(self):
        self._check_names()
        self._settle_policy_and_mix()
        self._check_values()
        self.training_recipe()  # raises what these epochs make wrong
        options = self._pairs_of_options()
        self._settle_layers()
        self._set("options", tuple(self.record().settled(options).items()))
        if self.record().kind == DENSE:
            self._check_dense()
        if self.record().kind == LEARNER:
            self._check_learner()

    def record(self) -> registry.Method:
        """The record of the method."""
        return registry.method(self.method)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _settle_policy_and_mix(self) -> None:
        """A policy by name, as another one that comes with the package is another run; 1 and 1.0
        of a mix are one key."""
        self.record().taken(mix=self.mix, policy=self.policy)
        if "policy" in self.record().takes:
            self._set("policy", self.policy or policies.SHIPPED)
        if self.mix is not None:
            mix = panning.check_mix(self.mix)
            self._set("mix", tuple(int(v) if v == int(v) else v for v in mix))

    def _check_names(self) -> None:
        for what, value, known in (
            ("data set", self.dataset, data.names()),
            ("model", self.model, models.MODELS),
            ("method", self.method, registry.names()),
            ("initialisation", self.init, models.INITS),
            ("schedule", self.schedule, pruning.SCHEDULES),
            ("scope", self.scope, masks.SCOPES),
            ("control", self.control, CONTROLS),
            ("recipe", self.recipe, training.RECIPES),
            ("precision", self.precision, training.PRECISIONS),
        ):
            if value not in list(known):
                raise unknown(what, value, known)
        if self.record().kind == MOVING:
            raise UserError(
                f"{self.method} changes its mask while the network is trained; a run of the kind "
                "dynamic does that"
            )
        data.check_normalisation(self.dataset, self.normalisation)
        if self.network and self.normalisation != "standardised":
            raise UserError(
                "a network is recorded with standardised input alone; leave normalisation out"
            )
        if self.engine is not None:
            pick("engine", self.engine, training.ENGINES)

    def _check_values(self) -> None:
        fraction("sparsity", self.sparsity)
        for name, least in (
            *(("seed", 0), ("rounds", 1), ("per_class", 1)),
            *(("epochs", 0), ("order", 0), ("scoring", 0)),
        ):
            if (value := getattr(self, name)) is not None or name in ("seed", "per_class"):
                self._set(name, whole(name, value, least))
        for name in ("revive", "fixed_batch", "transfer", "returns", "effective", "network"):
            value = getattr(self, name)
            if type(value) is bool or (name, value) in (("revive", None), ("returns", "authors")):
                continue
            right = "true or false" + " or authors" * (name == "returns")
            raise UserError(f"{name} is {value!r}; it must be {right}")

    def _pairs_of_options(self) -> dict[str, object]:
        try:
            return dict(self.options)
        except (TypeError, ValueError):
            raise UserError(
                f"options are {self.options!r}; they must be names and values, like {{steps: 3}}"
            ) from None

    def _check_dense(self) -> None:
        if self.include or self.exclude or self.floor:
            raise UserError(
                "a dense run prunes no layer; leave out include, exclude and floor, or name a "
                "method"
            )
        if self.sparsity or self.transfer or self.returns or self.effective:
            raise UserError(
                "a dense run has sparsity 0, nothing to transfer and no returns; name a method"
            )
        if foreign := self._of_pruning():
            raise UserError(f"a dense run is not pruned; leave out {foreign[0]}, or name a method")

    def _of_pruning(self) -> list[str]:
        """The fields in use that pruning before training alone has."""
        found = [name for name in self.canonical() if name in PRUNING]
        return found + ["control"] * (self.control in ("invert", "shuffle"))

    def _check_learner(self) -> None:
        if foreign := self._of_pruning():
            raise UserError(
                f"{self.method} learns weights and mask together; "
                f"{foreign[0]} {getattr(self, foreign[0])!r} belongs to pruning before training"
            )

    def _settle_layers(self) -> None:
        """Equal choices of layers get one form, and thus one key."""
        for name in ("include", "exclude"):
            chosen = layers.patterns(name, getattr(self, name))
            if not all(isinstance(pattern, str) for pattern in chosen):
                raise UserError(
                    f"{name} is {getattr(self, name)!r}; a run names layers by patterns such as "
                    "'first' or 'Linear'"
                )
            self._set(name, tuple(sorted(chosen)))
        found = self._floors()
        self._set("floor", found["*"] if found.keys() == {"*"} else tuple(found.items()) or 0.0)
        if self.effective and (self.include or self.exclude or self.floor):
            raise UserError(
                "effective keeps only what lies on a path, so no layer stays whole and no floor "
                "holds; leave out one of them"
            )

    def _floors(self) -> dict[str, float]:
        """Pattern -> fraction, those of 0 left out, in the order of the patterns."""
        floor = self.floor
        if isinstance(floor, list | tuple):  # pairs, as a run keeps them
            try:
                floor = dict(floor)
            except (TypeError, ValueError):
                raise UserError(
                    f"floor is {floor!r}; it must be a fraction, or patterns and fractions like "
                    f"{{conv1: 0.5}}"
                ) from None
        found = {
            name: float(least) for name, least in sorted(layers.floors(floor).items()) if least
        }
        if not all(isinstance(pattern, str) for pattern in found):
            raise UserError(
                f"floor is {floor!r}; its layers are patterns such as 'first' or 'Linear'"
            )
        return found

    def chosen_layers(self) -> dict[str, object]:
        """Which layers are pruned: keyword arguments of ``layers.limits`` and ``pruning.prune``."""
        floor = dict(self.floor) if isinstance(self.floor, tuple) else self.floor
        return {"include": self.include, "exclude": self.exclude, "floor": floor}

    def canonical(self) -> dict:
        """The fields that are not at their default; options and floors by name."""
        fields = super().canonical()
        for name in ("options", "floor"):
            if isinstance(fields.get(name), tuple):
                fields[name] = dict(fields[name])
        return fields

    def identity(self) -> dict:
        """Without the kind: pruning was the first one, and its keys stay."""
        return self.canonical()

    @classmethod
    def axes(cls, entry: dict, named: dict[str, list[base.Run]]) -> dict:
        """``method: all`` is every pruner, and the name of an entry of agents is their policies;
        NAME/SEED are those of a seed.
        """
        entry = dict(entry)
        if entry.get("method") == "all":
            entry["method"] = pruning.methods()
        if "policy" in entry:
            chosen = entry["policy"] if isinstance(entry["policy"], list) else [entry["policy"]]
            entry["policy"] = [policy for name in chosen for policy in _policies(name, named)]
        return entry

    @classmethod
    def prepare(cls, runs: Sequence[Run]) -> None:
        for dataset, normalisation in {(run.dataset, run.normalisation) for run in runs}:
            data.load(dataset, normalisation)
        check_layers(runs)

    @classmethod
    def tasks(cls, runs: Sequence[Run], device: str) -> list[list[Run]]:
        return tasks(runs, device)

    @classmethod
    def execute_together(cls, runs: Sequence[Run], context: base.Context) -> list[dict | Exception]:
        return execute_together(runs, context.device)

    def execute(self, context: base.Context) -> dict:
        return execute(self, context.device)

    def origin(self) -> dict:
        splits = self.splits()
        return {"data": {"title": splits.title, "fingerprint": splits.fingerprint}}

    def splits(self) -> data.Splits:
        """The data of this run, on the CPU."""
        return data.load(self.dataset, self.normalisation)

    def training_recipe(self) -> training.Recipe:
        """The named recipe with this run's epochs, precision and order."""
        recipe = training.RECIPES[self.recipe]
        order = self.seed if self.order is None else self.order
        return dataclasses.replace(
            recipe, seed=order, epochs=self.epochs or recipe.epochs, precision=self.precision
        )


def find_mask(
    run: Run, model: torch.nn.Module, splits: data.Splits, observe=None
) -> tuple[masks.Mask, list[dict]]:
    """The mask of ``run``, its control applied, and the pruner's trace; a learner leaves ``model``
    trained.
    """
    if run.record().kind != PRUNER:
        return run.record().find(model, splits, 1 - run.sparsity, run.seed, **dict(run.options))
    seed = run.seed if run.scoring is None else run.scoring
    batches = data.balanced_batches(
        splits.train, run.per_class, torch.Generator().manual_seed(seed)
    )
    mask, trace = pruning.prune(
        model,
        run.method,
        1 - run.sparsity,
        next(batches) if run.fixed_batch else batches,
        run.rounds,
        seed,
        scope=run.scope,
        schedule=run.schedule,
        revive=run.revive,
        mix=run.mix,
        policy=policies.Random(run.seed) if run.policy == "random" else run.policy,
        options=dict(run.options),
        inverted=run.control == "invert",
        effective=run.effective,
        observe=observe,
        **run.chosen_layers(),
    )
    return (masks.shuffle(mask, run.seed) if run.control == "shuffle" else mask), trace


@dataclass(frozen=True)
class Pruned:
    """A run before its training: what is trained is ``live``, the *effective* part of ``mask``, as
    in Panning's code.
    """

    run: Run
    model: torch.nn.Module
    mask: masks.Mask
    live: masks.Mask
    trace: list[dict]
    recorders: list[recorders.Recorder]
    seconds: float


def prune(run: Run, splits: data.Splits, observe: Callable[..., None] | None = None) -> Pruned:
    """The network and the masks of ``run``, on the device of ``splits``; ``observe`` as in
    ``pruning.prune``.
    """
    device = splits.train.x.device
    model = models.build(run.model, splits.input_shape, splits.classes, run.seed, run.init).to(
        device
    )

    def batches(seed: int):  # not those that a pruner sees
        return data.balanced_batches(
            splits.train, run.per_class, torch.Generator().manual_seed(seed + run.seed)
        )

    watching = recorders.of(run, model, batches)

    def watch(*seen) -> None:
        for each in watching if observe is None else [*watching, observe]:
            each(*seen)

    start = time.perf_counter()
    mask, trace = find_mask(run, model, splits, watch)
    seconds = time.perf_counter() - start
    if run.control == "reinitialise":
        fresh = models.build(
            run.model, splits.input_shape, splits.classes, 20_000 + run.seed, run.init
        )
        model.load_state_dict(fresh.state_dict())
    return Pruned(run, model, mask, masks.effective(model, mask), trace, watching, seconds)


def result(pruned: Pruned, log: pd.DataFrame | None) -> dict:
    """The ``metrics`` of a ledger line, once a run was trained with this table; None if it was not
    to be trained.
    """
    mask, live = pruned.mask, pruned.live
    metrics = {
        "test_accuracy": None,
        "best_test_accuracy": None,
        "validation_accuracy": None,
        "density": masks.density(mask),
        "effective_density": masks.density(live),
        "prunable_weights": masks.size(mask),
        "kept_weights": masks.count(mask),
        "effective_weights": masks.count(live),
        "flops_dense": masks.flops(pruned.model, masks.ones(pruned.model)),
        "flops_nonzero": masks.flops(pruned.model, live),
        "prune_seconds": round(pruned.seconds, 3),
        "train_seconds": 0.0,
        "diverged": False,
        "epochs": 0,
        "engine": "none",
        "layers": {
            name.removesuffix(".weight"): [int(m.sum()), int(live[name].sum())]
            for name, m in mask.items()
        },
        "events": sorted({event for row in pruned.trace for event in row["events"]}),
    }
    if log is not None:
        metrics |= _learned(log)
    for recorder in pruned.recorders:
        metrics |= recorder.metrics(pruned)
    return metrics


def _learned(log: pd.DataFrame) -> dict:
    """What the table of a training adds to the metrics."""
    last = log.iloc[-1]
    return {
        "test_accuracy": last.test_accuracy,
        "best_test_accuracy": log.test_accuracy.max(),
        "validation_accuracy": last.validation_accuracy,
        "train_seconds": round(log.attrs["seconds"], 3),
        "diverged": not math.isfinite(last.loss),
        "epochs": len(log),
        "engine": log.attrs["engine"],
        "curve": {
            column: [short(v) for v in log[column]]
            for column in ("loss", "validation_accuracy", "test_accuracy")
        },
    }


def execute(run: Run, device: str = "cpu") -> dict:
    """Prune and train: the ``metrics`` of a ledger line."""
    splits = run.splits().to(device)
    pruned = prune(run, splits)
    return result(pruned, None) if run.epochs == 0 else _train([pruned], splits)[0]


def execute_together(runs: Sequence[Run], device: str) -> list[dict | Exception]:
    """``execute`` for runs of one data set, network and recipe, trained at once; a run that can not
    be pruned gives its error.

    On the CPU, runs of one seed share their batches, which changes no bit; others are trained as a
    stack. ``stack`` says with how many a run was trained, and ``train_seconds`` is its share.
    """
    splits = runs[0].splits().to(device)
    pruned, results = {}, {}
    for run in runs:
        try:
            pruned[run] = prune(run, splits)
        except Exception as error:
            results[run] = error
    results |= zip(pruned, _train(list(pruned.values()), splits))
    return [results[run] for run in runs]


def _train(pruned: list[Pruned], splits: data.Splits) -> list[dict]:
    """Their results. What can not be stacked, or is more than the memory of the device holds, is
    trained in halves.
    """
    try:
        logs = _logs(pruned, splits) if pruned else []
    except (UserError, torch.OutOfMemoryError):
        if len(pruned) == 1:
            raise
        logs = []  # the halves come later: here the error still holds the memory
    if len(logs) < len(pruned):
        half = len(pruned) // 2
        return _train(pruned[:half], splits) + _train(pruned[half:], splits)
    return [{**result(each, log), "stack": len(pruned)} for each, log in zip(pruned, logs)]


def _logs(pruned: list[Pruned], splits: data.Splits) -> list[pd.DataFrame]:
    """The tables of their trainings: with shared batches, or as a stack; with an engine of one's
    choice alone.
    """
    recipes = [each.run.training_recipe() for each in pruned]
    networks, live = [each.model for each in pruned], [each.live for each in pruned]
    if engine := pruned[0].run.engine:
        if len(pruned) > 1:  # halves would train again what is trained already
            return []
        return [training.train(*networks, *live, splits, *recipes, engine)]
    if splits.train.x.device.type == "cpu" and len(set(recipes)) == 1:
        return training.train_together(networks, live, splits, recipes[0])
    return stacked.train(networks, live, splits, recipes)


def tasks(runs: list[Run], device: str) -> list[list[Run]]:
    """What a worker does at a time, of one data set, network and recipe: on CUDA up to ``STACK``
    runs, on the CPU up to ``SHARE`` of the same seed where that pays, in networks that begin with a
    ``Linear``; else, or with an engine of its own, one run."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        recipe = run.training_recipe()
        groups.setdefault(
            (
                run.dataset,
                run.normalisation,
                run.model,
                run.epochs,
                run.record().kind == LEARNER,
                run.engine,
                dataclasses.replace(recipe, seed=0) if device.startswith("cuda") else recipe,
            ),
            [],
        ).append(run)
    tasks = []
    for (dataset, _, name, epochs, learns, engine, _), group in groups.items():
        most = (
            1
            if epochs == 0 or learns or engine
            else STACK
            if device.startswith("cuda")
            else SHARE
            if _begins_with_linear(dataset, name)
            else 1
        )
        tasks += [group[start : start + most] for start in range(0, len(group), most)]
    return tasks


def _policies(name: str, named: dict[str, list[base.Run]]) -> list[str]:
    """The policies that a profile means by this name: those of an entry, those of a seed of an
    entry, or one that there is.
    """
    trained = {}
    for entry, runs in named.items():
        for agent in (run for run in runs if run.kind == "agent"):
            for called in (entry, f"{entry}/{agent.seed}"):
                trained.setdefault(called, []).append(agent.name())
    meant = {one: [one] for one in ("random", *policies.places())} | trained
    if not isinstance(name, str) or name not in meant:
        raise unknown("policy", name, meant)
    return meant[name]


@cache
def _begins_with_linear(dataset: str, name: str) -> bool:
    splits = data.load(dataset)
    try:
        model = models.build(name, splits.input_shape, splits.classes, seed=0)
    except UserError:  # the run itself will say so
        return False
    layers = (m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    return isinstance(next(layers, None), torch.nn.Linear)


def check_layers(runs: Sequence[Run]) -> None:
    """Raise a ``UserError`` for layers that a network has not, or that leave nothing to prune: of
    the study, not of every run."""
    for run in {
        (run.dataset, run.model, run.include, run.exclude, run.floor, run.sparsity): run
        for run in runs
    }.values():
        if run.include or run.exclude or run.floor:
            splits = run.splits()
            model = models.build(run.model, splits.input_shape, splits.classes, seed=0)
            if least := layers.limits(model, **run.chosen_layers()):
                layers.check_room(least, 1 - run.sparsity, masks.size(masks.ones(model)))
