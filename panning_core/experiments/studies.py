"""A run, its key, and a sweep over many runs.

    python -m panning_core.experiments.studies 03_sparsity_sweep --profile paper

fills a study's ledger, on a machine with PyTorch and no Jupyter as well; the notebook then only reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from tqdm import tqdm

from .. import ROOT, __version__, data, layers, masks, models, plugins, pruning, results, training
from ..agent import observations, policies
from ..analysis import networks, transfer
from ..errors import UserError, command_line, fraction, keywords, pick, settle, unknown, whole
from ..experiments.ledger import Ledger
from ..experiments.workers import WorkerDied, spread
from ..methods import gumbel_softmax, iterative_magnitude
from ..plugins import Table
from ..runs.toy import Toy
from ..runs.toy import run as run_toy
from ..training import stacked

if TYPE_CHECKING:
    from ..agent import learning

#: ways to a mask that train the network for it: (model, splits, density, seed, options) -> mask, trace; ``model`` is trained then
LEARNERS = Table(
    __name__ + ".LEARNERS",
    {
        "gumbel-softmax": gumbel_softmax.learn,
        "iterative-magnitude": iterative_magnitude.iterative_magnitude,
        "trained-magnitude": iterative_magnitude.trained_magnitude,
    },
)
#: fields that no learner has
PRUNING = (
    *("rounds", "schedule", "scope", "revive", "per_class", "fixed_batch", "transfer", "returns"),
    *("effective", "include", "exclude", "floor"),
)
CONTROLS = ("none", "shuffle", "reinitialise", "invert")
STACK = 32  #: so many runs are trained at once on CUDA
SHARE = 8  #: so many runs of one seed learn from the same batches on the CPU


@dataclass(frozen=True)
class Run:
    """Everything that decides a result, as plain values. Same run, same numbers (on the same device and thread count).

    Attributes:
        dataset, model, method: names of ``data.names()``, ``models.MODELS``, and ``pruning.methods()``, ``LEARNERS`` or ``"dense"``.
        sparsity: fraction removed, in [0, 1).
        seed: of the initialisation, the scoring batches, a metric's noise, and the order of the training images.
        init: a key of ``models.INITS``.
        rounds, schedule, scope, revive, mix: as in ``pruning.prune``.
        control: ``"shuffle"`` the mask within its layers, ``"reinitialise"`` the kept weights, ``"invert"`` the scores.
        per_class: images of each class in a scoring batch.
        fixed_batch: one scoring batch for all rounds instead of a fresh one each.
        recipe: a key of ``training.RECIPES``; ``epochs`` replaces its length.
        transfer: also record the expressive force transfer of every round.
        precision: of the training, as in ``training.Recipe``.
        policy: of the method ``"panning-agent"``: ``"random"``, or a key of ``policies.places()``; None is ``policies.SHIPPED``.
        returns: also record what the agent's environment pays for the masks of every round: ``"authors"`` as the authors' pays, true in fixed units and
            over kept weights, as before ``observations.DEPARTURES`` had names.
        options: of the method, a dict: the keyword-only arguments of its metric or learner. Kept as pairs (name, value), without those at their default.
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
        if self.method == pruning.AGENT:
            object.__setattr__(
                self, "policy", self.policy or policies.SHIPPED
            )  # by name: another one that comes with the package is another run
        elif self.policy is not None:
            raise UserError(f"a policy belongs to {pruning.AGENT}, not to {self.method}")
        if self.mix is not None:
            if self.method not in pruning.MIXING:
                raise UserError(
                    f"a mix belongs to {' or '.join(pruning.MIXING)}, not to {self.method}"
                )
            object.__setattr__(
                self,
                "mix",
                tuple(int(v) if v == int(v) else v for v in pruning.check_mix(self.mix)),
            )  # 1 and 1.0 are one key
        for kind, value, known in (
            ("data set", self.dataset, data.names()),
            ("model", self.model, models.MODELS),
            ("method", self.method, ["dense", *pruning.methods(), *LEARNERS]),
            ("initialisation", self.init, models.INITS),
            ("schedule", self.schedule, pruning.SCHEDULES),
            ("scope", self.scope, masks.SCOPES),
            ("control", self.control, CONTROLS),
            ("recipe", self.recipe, training.RECIPES),
            ("precision", self.precision, training.PRECISIONS),
        ):
            if value not in list(known):
                raise unknown(kind, value, known)
        data.check_normalisation(self.dataset, self.normalisation)
        if self.network and self.normalisation != "standardised":
            raise UserError(
                "a network is recorded with standardised input alone; leave normalisation out"
            )
        if self.engine is not None:
            pick("engine", self.engine, training.ENGINES)
        fraction("sparsity", self.sparsity)
        for name, least in (
            ("seed", 0),
            ("rounds", 1),
            ("per_class", 1),
            ("epochs", 0),
            ("order", 0),
            ("scoring", 0),
        ):
            if (value := getattr(self, name)) is not None or name in ("seed", "per_class"):
                object.__setattr__(self, name, whole(name, value, least))
        for name in ("revive", "fixed_batch", "transfer", "returns", "effective", "network"):
            if not (
                type(value := getattr(self, name)) is bool
                or (name, value) in (("revive", None), ("returns", "authors"))
            ):
                raise UserError(
                    f"{name} is {value!r}; it must be true or false{' or authors' * (name == 'returns')}"
                )
        try:
            options = dict(self.options)
        except (TypeError, ValueError):
            raise UserError(
                f"options are {self.options!r}; they must be names and values, like {{steps: 3}}"
            ) from None
        self._settle_layers()
        known = (
            {}
            if self.method == "dense"
            else keywords(LEARNERS[self.method])
            if self.method in LEARNERS
            else pruning.options_of(self.method)
        )
        object.__setattr__(self, "options", tuple(settle(self.method, known, options).items()))
        if self.method == "dense" and (self.include or self.exclude or self.floor):
            raise UserError(
                "a dense run prunes no layer; leave out include, exclude and floor, or name a "
                "method"
            )
        if self.method == "dense" and (
            self.sparsity or self.transfer or self.returns or self.effective
        ):
            raise UserError(
                "a dense run has sparsity 0, nothing to transfer and no returns; name a method"
            )
        if self.method in LEARNERS and (
            foreign := [name for name in self.canonical() if name in PRUNING]
            + ["control"] * (self.control in ("invert", "shuffle"))
        ):
            raise UserError(
                f"{self.method} learns weights and mask together; {foreign[0]} {getattr(self, foreign[0])!r} belongs to pruning before training"
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
            object.__setattr__(self, name, tuple(sorted(chosen)))
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
            pattern: float(least)
            for pattern, least in sorted(layers.floors(floor).items())
            if least
        }
        if not all(isinstance(pattern, str) for pattern in found):
            raise UserError(
                f"floor is {floor!r}; its layers are patterns such as 'first' or 'Linear'"
            )
        object.__setattr__(
            self, "floor", found["*"] if found.keys() == {"*"} else tuple(found.items()) or 0.0
        )
        if self.effective and (self.include or self.exclude or self.floor):
            raise UserError(
                "effective keeps only what lies on a path, so no layer stays whole and no floor "
                "holds; leave out one of them"
            )

    def chosen_layers(self) -> dict[str, object]:
        """Which layers are pruned: keyword arguments of ``layers.limits`` and ``pruning.prune``."""
        floor = dict(self.floor) if isinstance(self.floor, tuple) else self.floor
        return {"include": self.include, "exclude": self.exclude, "floor": floor}

    def canonical(self) -> dict:
        """The fields that are not at their default; a field added later leaves old runs as they are."""
        fields = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }
        pairs = {
            name: dict(fields[name])
            for name in ("options", "floor")
            if isinstance(fields.get(name), tuple)
        }
        return {**fields, **pairs}

    def key(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()

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
    """The mask of ``run``, its control applied, and the pruner's trace; a learner leaves ``model`` trained."""
    if run.method == "dense":
        return masks.ones(model), []
    if run.method in LEARNERS:
        return LEARNERS[run.method](model, splits, 1 - run.sparsity, run.seed, **dict(run.options))
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
    """A run before its training: what is trained is ``live``, the *effective* part of ``mask``, as in Panning's code."""

    run: Run
    model: torch.nn.Module
    mask: masks.Mask
    live: masks.Mask
    trace: list[dict]
    meter: transfer.Transfer | None
    rewards: observations.Rewards | None
    seconds: float


def prune(run: Run, splits: data.Splits, observe: Callable[..., None] | None = None) -> Pruned:
    """The network and the masks of ``run``, on the device of ``splits``; ``observe`` as in ``pruning.prune``."""
    device = splits.train.x.device
    model = models.build(run.model, splits.input_shape, splits.classes, run.seed, run.init).to(
        device
    )

    def batches(seed: int):  # not those that a pruner sees
        return data.balanced_batches(
            splits.train, run.per_class, torch.Generator().manual_seed(seed + run.seed)
        )

    meter = transfer.Transfer(model, next(batches(10_000))) if run.transfer else None
    rewards = None
    if run.returns:
        departures = observations.DEFAULT if run.returns == "authors" else observations.FIRST
        rewards = observations.Rewards(
            model,
            batches(30_000),
            1 - run.sparsity,
            run.rounds or pruning.rounds_of(run.method),
            departures,
        )

    def watch(*seen) -> None:
        for watching in (meter, rewards, observe):
            if watching is not None:
                watching(*seen)

    start = time.perf_counter()
    mask, trace = find_mask(run, model, splits, watch)
    seconds = time.perf_counter() - start
    if run.control == "reinitialise":
        fresh = models.build(
            run.model, splits.input_shape, splits.classes, 20_000 + run.seed, run.init
        )
        model.load_state_dict(fresh.state_dict())
    return Pruned(run, model, mask, masks.effective(model, mask), trace, meter, rewards, seconds)


def result(pruned: Pruned, log: pd.DataFrame | None) -> dict:
    """The ``metrics`` of a ledger line, once a run was trained with this table; None if it was not to be trained."""
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
        last = log.iloc[-1]
        metrics |= {
            "test_accuracy": last.test_accuracy,
            "best_test_accuracy": log.test_accuracy.max(),
            "validation_accuracy": last.validation_accuracy,
            "train_seconds": round(log.attrs["seconds"], 3),
            "diverged": not math.isfinite(last.loss),
            "epochs": len(log),
            "engine": log.attrs["engine"],
            "curve": {
                column: [_short(v) for v in log[column]]
                for column in ("loss", "validation_accuracy", "test_accuracy")
            },
        }
    if pruned.run.network:
        metrics["network"] = networks.describe(
            pruned.model, live, pruned.run.model, pruned.run.dataset
        )
    if pruned.rewards is not None:
        metrics |= {
            "return": _short(sum(pruned.rewards)),
            "rewards": [_short(v) for v in pruned.rewards],
        }
    if pruned.run.policy:
        metrics["mixes"] = [[_short(v) for v in row["mix"]] for row in pruned.trace]
        metrics["policy_digest"] = (
            None if pruned.run.policy == "random" else policies.load(pruned.run.policy).digest()
        )
    if meter := pruned.meter:
        metrics["transfer"] = [
            {k: _short(v) if isinstance(v, float) else v for k, v in row.items()}
            for row in meter.whole()
        ]
        metrics["follow"] = {
            "sparsity_now": [0.0, *(_short(row["sparsity"]) for row in pruned.trace)],
            **{column: [_short(row[column]) for row in meter.follow] for column in meter.follow[0]},
        }
        metrics["transfer_rounds"] = _columns(
            [row for row in meter.rows if row["layer"] == "total"]
        )
    return metrics


def execute(run: Run, device: str = "cpu") -> dict:
    """Prune and train: the ``metrics`` of a ledger line."""
    splits = run.splits().to(device)
    pruned = prune(run, splits)
    return result(pruned, None) if run.epochs == 0 else _train([pruned], splits)[0]


def execute_together(runs: Sequence[Run], device: str) -> list[dict | Exception]:
    """``execute`` for runs of one data set, network and recipe, trained at once; a run that can not be pruned gives its error.

    On the CPU, runs of one seed share their batches, which changes no bit; others are trained as a stack. ``stack`` says
    with how many a run was trained, and ``train_seconds`` is its share.
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
    """Their results. What can not be stacked, or is more than the memory of the device holds, is trained in halves."""
    recipes = [each.run.training_recipe() for each in pruned]
    networks, live = [each.model for each in pruned], [each.live for each in pruned]
    try:
        if engine := pruned and pruned[0].run.engine:
            logs = [
                training.train(*each, splits, recipe, engine)
                for *each, recipe in zip(networks, live, recipes)
            ]
        elif splits.train.x.device.type == "cpu" and len(set(recipes)) == 1:
            logs = training.train_together(networks, live, splits, recipes[0])
        else:
            logs = stacked.train(networks, live, splits, recipes) if pruned else []
    except (UserError, torch.OutOfMemoryError):
        if len(pruned) == 1:
            raise
        logs = []  # the halves come later: here the error still holds the memory
    if len(logs) < len(pruned):
        half = len(pruned) // 2
        return _train(pruned[:half], splits) + _train(pruned[half:], splits)
    return [{**result(each, log), "stack": len(pruned)} for each, log in zip(pruned, logs)]


def _short(value: float) -> float | None:
    """Six significant digits, and None for what JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _columns(rows: list[dict]) -> dict[str, list]:
    """Transfer rows of the whole network as {"metric/part": [a value a round]}."""
    columns: dict[str, list] = {}
    for row in rows:
        for part in transfer.PARTS:
            columns.setdefault(f"{row['metric']}/{part}", []).append(_short(row[part]))
    return columns


# --- profiles -------------------------------------------------------------------------------------------------------


ENTRIES = {"parameters", "agents", "toys", "grid", "cuda"}
LARGEST = 100_000  #: values of a profile, and runs of an entry of its grid


def profile(name: str) -> dict[str, dict]:
    """``notebooks/profiles/NAME.yaml``: for each study its notebook's parameters, the agents and toys it trains, its grid, and
    a grid that is for CUDA devices alone."""
    import yaml

    plugins.load_plugins()  # the names of a profile may be theirs
    files = {path.stem: path for path in (ROOT / "notebooks" / "profiles").glob("*.yaml")}
    path = pick("profile", name, files)

    class Strict(yaml.SafeLoader):
        """YAML itself lets the last of two equal keys win, so that a study would lose its grid without a word."""

        def construct_mapping(self, node, deep=False):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := [key for position, key in enumerate(keys) if key in keys[:position]]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{twice[0]!r} is there twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(path.read_text(), Strict)
    except OSError as error:
        raise UserError(
            f"{path} can not be read ({error.strerror}); a profile is a text file"
        ) from error
    except (
        Exception
    ) as error:  # a YAMLError, and for a damaged text or a value like !!int x, many other kinds
        raise UserError(f"{path} is not YAML: {error}".replace("\n", " ")) from error
    left, values = LARGEST, [content]
    while (
        values and left
    ):  # a few lines of anchors can stand for more values than any memory holds, or for themselves
        value, left = values.pop(), left - 1
        values += (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, list | tuple | set)
            else ()
        )
    if values:
        raise UserError(f"{path} holds more than {LARGEST:,} values, or an anchor inside itself")
    known = {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(v, dict) for v in content.values())
    ):
        raise UserError(f"{path} must map each study to its parameters and grid")
    for study, section in content.items():
        if study not in known:
            raise unknown(f"study in {path.name}", study, known)
        for entry in section.keys() - ENTRIES:
            raise unknown(f"entry of {study} in {path.name}", entry, ENTRIES)
        if not isinstance(section.get("parameters", {}), dict):
            raise UserError(
                f"parameters of {study} in {path.name} are {section['parameters']!r}; they must be names and values, like {{seeds: 3}}"
            )
    return content


def trainings(section: dict) -> dict[str, list[learning.Training]]:
    """The agents that a study trains: the name of each entry of its section -> one ``learning.Training`` for each of its seeds.

    Raises:
        UserError: an unknown or missing field, or a value out of range.
    """
    from ..agent import (
        learning,
    )  # needs gymnasium, which a machine that only prunes and trains may lack

    known, found = ["name", *(f.name for f in dataclasses.fields(learning.Training))], {}
    entries = section.get("agents", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"agents are a list of entries like {{name: mine, networks: [lenet5/mnist]}}, got {entries!r}"
        )
    for entry in entries:
        for field in entry.keys() - set(known):
            raise unknown("field of an agent", field, known)
        if not (isinstance(entry.get("name"), str) and "networks" in entry):
            raise UserError(
                f"an agent needs a name and its networks, such as {{name: mine, networks: [lenet5/mnist]}}, got {entry!r}"
            )
        name, seeds = (
            entry["name"],
            entry["seed"] if isinstance(entry.get("seed"), list) else [entry.get("seed", 0)],
        )
        if name in found or name == "random" or not seeds:
            raise UserError(f"the agent {name!r} has no seed, or a name that is taken")
        fields = {field: value for field, value in entry.items() if field not in ("name", "seed")}
        found[name] = [learning.Training(**fields, seed=seed) for seed in seeds]
    return found


def expand(grid: list[dict], agents: dict[str, list[learning.Training]] | None = None) -> list[Run]:
    """The runs of a grid: in each entry every list is an axis, and the axes are crossed; ``method: all`` is every pruner, and
    the name of one of ``agents`` is the policies of its seeds.

    Raises:
        UserError: an unknown field or name, or a value out of range; nothing has run by then.
    """
    fields = [f.name for f in dataclasses.fields(Run)]
    runs: dict[str, Run] = {}
    if not isinstance(grid, list) or not all(isinstance(entry, dict) for entry in grid):
        raise UserError(
            f"a grid is a list of entries like {{dataset: digits, model: lenet300}}, got {grid!r}"
        )
    for entry in grid:
        for name in entry.keys() - set(fields):
            raise unknown("field of a run", name, fields)
        if "policy" in entry:
            chosen = entry["policy"] if isinstance(entry["policy"], list) else [entry["policy"]]
            entry = {
                **entry,
                "policy": [policy for name in chosen for policy in _policies(name, agents or {})],
            }
        axes = {
            name: pruning.methods()
            if name == "method" and value == "all"
            else value
            if isinstance(value, list)
            else [value]
            for name, value in entry.items()
        }
        if empty := [name for name, axis in axes.items() if not axis]:
            raise UserError(f"{empty[0]} of a run is an empty list; it needs at least one value")
        if (count := math.prod(map(len, axes.values()))) > LARGEST:
            raise UserError(f"an entry of a grid is {count:,} runs; it may be {LARGEST:,}")
        for values in product(*axes.values()):
            try:
                run = Run(**dict(zip(axes, values)))
            except TypeError as error:
                raise UserError(
                    f"a run needs at least a dataset and a model, and plain values: {error}"
                ) from error
            runs[run.key()] = run
    return list(runs.values())


def _policies(name: str, agents: dict[str, list[learning.Training]]) -> list[str]:
    if name in list(agents):
        return [training.name() for training in agents[name]]
    known = ["random", *policies.places()]
    if name not in known:
        raise unknown("policy", name, [*agents, *known])
    return [name]


def section(study: str, profile_name: str) -> dict:
    """What a profile says of a study."""
    return pick(f"study in profile {profile_name}", study, profile(profile_name))


def runs(study: str, profile_name: str, device: str | None = None) -> list[Run]:
    """All runs of ``study`` in a profile, or those that such a device is to do: on CUDA its entry ``cuda``, where it has one, else its grid."""
    found = section(study, profile_name)
    grids = {name: found[name] for name in ("grid", "cuda") if name in found}
    if device is not None and len(grids) == 2:
        del grids["grid" if device.startswith("cuda") else "cuda"]
    agents = trainings(found) if "agents" in found else None
    return list(
        {run.key(): run for grid in grids.values() for run in expand(grid, agents)}.values()
    )


def folder(study: str, profile_name: str) -> Path:
    """Where a study's ledger, tables and figures lie: ``results/PROFILE/STUDY`` (``$PANNING_RESULTS`` replaces ``results``)."""
    return results() / profile_name / study


# --- agents ---------------------------------------------------------------------------------------------------------


def teach(study: str, profile_name: str, jobs: int | None = None) -> list[dict]:
    """Train the agents of a study that its folder lacks, each in a process of one thread, and return the lines of its ``agents.jsonl``.

    A policy lies in the folder ``policies``. An interrupted training goes on from its last checkpoint.

    Raises:
        UserError: bad input (before any is trained), or, after all others are done and recorded, the agents that failed.
    """
    wanted = [
        training for entry in trainings(section(study, profile_name)).values() for training in entry
    ]
    place = folder(study, profile_name)
    ledger = Ledger(place / "agents.jsonl")
    ledger.rows()  # a damaged ledger is an error before the work
    if missing := [t for t in wanted if _is_to_learn(t, ledger)]:
        ledger.check_writable()
        for dataset in {network.partition("/")[2] for t in missing for network in t.networks}:
            data.load(dataset)  # a missing file is an error of the study, not of every agent
        _record(
            ledger,
            partial(_learn, ledger=ledger),
            [[t] for t in missing],
            jobs,
            lambda t: _is_to_learn(t, ledger),
            f"of {len(wanted)} agents of {study}",
            lambda t: t.name(),
        )
    return _in_order(ledger, wanted)


def _is_to_learn(training: learning.Training, ledger: Ledger) -> bool:
    return training.key() not in ledger or not _policy(training, ledger).exists()


def _policy(training: learning.Training, ledger: Ledger) -> Path:
    return ledger.path.parent / "policies" / f"{training.name()}.npz"


def agents(study: str, profile_name: str) -> list[dict]:
    """The agents that a study has trained: ``name`` of their entry in the profile, the fields of the training, ``seconds`` and ``metrics``."""
    found = section(study, profile_name)
    if "agents" not in found:
        return []
    named = {
        training.key(): (name, training)
        for name, entry in trainings(found).items()
        for training in entry
    }
    return [
        {
            "name": named[line["key"]][0],
            **dataclasses.asdict(named[line["key"]][1]),
            "seconds": line["provenance"]["seconds"],
            "metrics": line["metrics"],
        }
        for line in teach(study, profile_name)
    ]


def _learn(trainings: list[learning.Training], ledger: Ledger) -> list[dict]:
    """The ledger line of an agent, whose policy then lies beside the ledger; none if another sweep trained it meanwhile."""
    from ..agent import learning

    (training,) = trainings
    torch.set_num_threads(1)
    policy = _policy(training, ledger)
    policy.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        with (
            open(policy.with_suffix(".lock"), "w") as lock,
            tqdm(
                total=training.steps,
                desc=training.name(),
                unit="step",
                mininterval=0.5 if sys.stderr.isatty() else 60,
            ) as bar,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_to_learn(training, ledger):
                return []
            actor, told = learning.learn(
                training, policy.parent, lambda steps: bar.update(steps - bar.n)
            )
            actor.save(policy)
            columns = ("steps", "sparsity", "return", "effective_sparsity", "rounds")
            episodes = {
                name: [_short(v) for v in column]
                for name, column in zip(columns, zip(*told["episodes"]))
            }
            found = {
                "policy": training.name(),
                "digest": actor.digest(),
                "episodes": episodes,
                "evaluations": told["evaluations"],
            }
            line = _line(training, found, told["seconds"])
            ledger.append(
                line
            )  # while the lock is held, so that a sweep that waits for it finds the line
            learning.checkpoint(training, policy.parent).unlink(missing_ok=True)
    except Exception as error:
        line = _line(training, error, time.perf_counter() - start)
    return [line]


# --- toys -----------------------------------------------------------------------------------------------------------


def toys(study: str, profile_name: str, jobs: int | None = None) -> list[dict]:
    """The lines of a study's ``toys.jsonl``: the toys of its profile, trained where the ledger lacks them, each with the whole ``toy`` and its ``metrics``.

    Raises:
        UserError: bad input (before any is trained), or, after all others are done and recorded, the toys that failed.
    """
    entries, known, toys = (
        section(study, profile_name).get("toys", []),
        {f.name for f in dataclasses.fields(Toy)},
        {},
    )
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"toys are a list of entries like {{seed: [0, 1], penalty: 0.01}}, got {entries!r}"
        )
    for entry in entries:
        for name in entry.keys() - known:
            raise unknown("field of a toy", name, known)
        for values in product(
            *(value if isinstance(value, list) else [value] for value in entry.values())
        ):
            toy = Toy(**dict(zip(entry, values)))
            toys[toy.key()] = toy
    ledger = Ledger(folder(study, profile_name) / "toys.jsonl")
    done = {row["key"] for row in ledger.rows()}
    if missing := [toy for key, toy in toys.items() if key not in done]:
        ledger.check_writable()
        _record(
            ledger,
            _play,
            [[toy] for toy in missing],
            jobs,
            lambda toy: toy.key() not in ledger,
            f"of {len(toys)} toys of {study}",
            repr,
        )
    return [
        {**line, "toy": dataclasses.asdict(toys[line["key"]])}
        for line in _in_order(ledger, list(toys.values()))
    ]


def _play(toys: list[Toy]) -> list[dict]:
    (toy,) = toys
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        found = run_toy(toy)
    except Exception as error:
        found = error
    return [_line(toy, found, time.perf_counter() - start)]


# --- the sweep ------------------------------------------------------------------------------------------------------


@cache
def provenance(device: str) -> dict:
    """What produced a result: commit and whether the code was changed since, versions, device, one
    thread, plugins if there are any. Of this process: a worker asks for itself."""

    def git(*command: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--", "panning_core", "requirements.txt")
    on_cuda = device.startswith("cuda") and torch.cuda.is_available()
    processor = (
        torch.cuda.get_device_name() if on_cuda else platform.processor() or platform.machine()
    )
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "versions": {
            "panning_core": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "device": device,
        "processor": processor,
        "threads": 1,
        **(
            {"plugins": {path.name: digest for path, digest in plugins.PLUGINS.items()}}
            if plugins.PLUGINS
            else {}
        ),
    }


def _line(
    done: Run | Toy | learning.Training,
    found: dict | Exception,
    seconds: float,
    device: str = "cpu",
    **origin,
) -> dict:
    """A ledger line: its metrics, or the error that came instead."""
    if isinstance(found, Exception):
        outcome = {
            "error": "".join(traceback.format_exception_only(found)).strip(),
            "traceback": "".join(traceback.format_exception(found)),
        }
    else:
        outcome = {"metrics": found}
    origin = {
        **provenance(device),
        **origin,
        "seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {"key": done.key(), "run": done.canonical(), **outcome, "provenance": origin}


def _work(runs: list[Run], device: str) -> list[dict]:
    """The ledger lines of runs that are done together. An error is a line too: it must not stop the other runs."""
    torch.set_num_threads(1)  # two workers with one thread each beat one worker with two
    start, origin = time.perf_counter(), {}
    try:
        results = [execute(runs[0], device)] if len(runs) == 1 else execute_together(runs, device)
        splits = runs[0].splits()
        origin = {"data": {"title": splits.title, "fingerprint": splits.fingerprint}}
    except Exception as error:
        if len(runs) > 1:  # alone each shows whether it is the one
            return [line for run in runs for line in _work([run], device)]
        results = [error]
    seconds = (time.perf_counter() - start) / len(runs)
    return [_line(run, found, seconds, device, **origin) for run, found in zip(runs, results)]


def _record(
    ledger: Ledger,
    work: Callable[[list], list[dict]],
    tasks: list[list],
    jobs: int | None,
    lacking: Callable[[object], bool],
    whole: str,
    name: Callable[[object], str],
    device: str = "cpu",
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Spread tasks over workers and append the lines of each to the ledger when it is done. What is not ``lacking`` any more, because
    another sweep has done it meanwhile, is left out. At last a ``UserError`` names those that failed."""

    def drawn() -> Iterator[list]:
        for task in tasks:
            left = [each for each in task if lacking(each)]
            progress(len(task) - len(left))
            if left:
                yield left

    failed = []
    with closing(spread(work, drawn(), min(jobs or os.cpu_count() or 1, len(tasks)))) as finished:
        for task, lines in finished:
            if isinstance(lines, WorkerDied):
                lines = [_line(each, lines, 0.0, device) for each in task]
            ledger.append(*lines)
            progress(len(task))
            failed += [
                f"{name(each)}: {line['error']}"
                for each, line in zip(task, lines)
                if "error" in line
            ]
    if failed:
        raise UserError(
            f"{len(failed)} {whole} failed (recorded in {ledger.path}, done again next time): {'; '.join(failed[:3])}"
        )


def _in_order(ledger: Ledger, wanted: list) -> list[dict]:
    """The ledger's lines of ``wanted``, whatever the order in which they finished."""
    lines = {row["key"]: row for row in ledger.rows()}
    for each in wanted:
        if (row := lines.get(each.key())) and row["run"] != (
            said := json.loads(json.dumps(each.canonical()))
        ):
            raise UserError(
                f"{ledger.path}: a line was edited: its key is that of {json.dumps(said)} and it says {json.dumps(row['run'])}; "
                "restore the file, or delete that line and its run is done again"
            )
    return [lines[each.key()] for each in wanted if each.key() in lines]


def _tasks(runs: list[Run], device: str) -> list[list[Run]]:
    """What a worker does at a time, of one data set, network and recipe: on CUDA up to ``STACK`` runs, on the CPU up to
    ``SHARE`` of the same seed where that pays, in networks that begin with a ``Linear``; else one run."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        recipe = run.training_recipe()
        groups.setdefault(
            (
                run.dataset,
                run.normalisation,
                run.model,
                run.epochs,
                run.method in LEARNERS,
                run.engine,
                dataclasses.replace(recipe, seed=0) if device.startswith("cuda") else recipe,
            ),
            [],
        ).append(run)
    tasks = []
    for (dataset, _, name, epochs, learns, *_), group in groups.items():
        most = (
            1
            if epochs == 0 or learns
            else STACK
            if device.startswith("cuda")
            else SHARE
            if _begins_with_linear(dataset, name)
            else 1
        )
        tasks += [group[start : start + most] for start in range(0, len(group), most)]
    return tasks


@cache
def _begins_with_linear(dataset: str, name: str) -> bool:
    splits = data.load(dataset)
    try:
        model = models.build(name, splits.input_shape, splits.classes, seed=0)
    except UserError:  # the run itself will say so
        return False
    return isinstance(
        next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)),
        torch.nn.Linear,
    )


def _check_layers(runs: Sequence[Run]) -> None:
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


def check_machine(jobs: int | None, device: str) -> None:
    """Raise a ``UserError`` unless ``jobs`` processes on ``device`` can be had."""
    try:
        index = (
            torch.device(device).index or 0
            if device == "cpu" or device.startswith("cuda")
            else None
        )
    except RuntimeError:  # such as cuda:x
        index = None
    if index is None:
        raise unknown("device", device, ("cpu", "cuda"))
    here = not os.environ.get(
        "PANNING_SCHEDULER"
    )  # else it is the cluster's workers that need the device
    if device != "cpu" and here and not torch.cuda.is_available():
        raise UserError(
            f"device is {device} but PyTorch sees no CUDA device here; use --device cpu"
        )
    if index and here and index >= torch.cuda.device_count():
        raise UserError(
            f"device is {device} but PyTorch sees {torch.cuda.device_count()} CUDA devices here, the first of them cuda:0"
        )
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs is {jobs}; it must be at least 1")


def sweep(
    study: str, profile_name: str, jobs: int | None = None, device: str = "cpu"
) -> list[dict]:
    """Do the runs of a study that its ledger lacks and this device is for, and return the ledger's lines of the study.

    On the CPU each run has a process of one thread; on CUDA up to ``STACK`` runs are trained, and then recorded, at once.

    Raises:
        UserError: bad input (before anything runs), or, after all others are done and recorded, the runs that failed.
    """
    check_machine(jobs, device)
    wanted = runs(study, profile_name, device)
    ledger = Ledger(folder(study, profile_name) / "runs.jsonl")
    done = {row["key"] for row in ledger.rows()}
    missing = [run for run in wanted if run.key() not in done]
    if missing:
        ledger.check_writable()
        for dataset, normalisation in {(run.dataset, run.normalisation) for run in missing}:
            data.load(
                dataset, normalisation
            )  # a missing file is an error of the study, not of every run
        _check_layers(missing)
        if "agents" in section(study, profile_name):
            teach(study, profile_name, jobs)
        with tqdm(
            total=len(wanted),
            initial=len(wanted) - len(missing),
            desc=study,
            unit="run",
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as bar:  # a log file wants few lines
            _record(
                ledger,
                partial(_work, device=device),
                _tasks(missing, device),
                jobs or (1 if device.startswith("cuda") else None),
                lambda run: run.key() not in ledger,
                f"of {len(wanted)} runs of {study}",
                lambda run: json.dumps(run.canonical()),
                device,
                bar.update,
            )
    return _in_order(ledger, runs(study, profile_name))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m panning_core.experiments.studies", description="Fill the ledger of a study."
    )
    parser.add_argument("study", help="name of its notebook, for example 03_sparsity_sweep")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--jobs", type=int, help="processes (default: one a core; one on CUDA)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--merge",
        type=Path,
        metavar="LEDGER",
        help="take over the runs of another ledger of this study instead",
    )
    plugins.option(parser)
    options = parser.parse_args()
    plugins.load_plugins(options.plugin)
    if options.merge:
        wanted = {
            run.key() for run in runs(options.study, options.profile)
        }  # the names must be right
        if (rows := Ledger(options.merge).rows()) and wanted.isdisjoint(row["key"] for row in rows):
            raise UserError(
                f"{options.merge} holds no run of {options.study} in the profile {options.profile}; it is another study's, or another profile's"
            )
        print(
            f"{Ledger(folder(options.study, options.profile) / 'runs.jsonl').merge(options.merge)} new runs"
        )
        return 0
    rows = sweep(options.study, options.profile, options.jobs, options.device)
    print(
        f"{options.study}: {len(rows)} runs in {folder(options.study, options.profile) / 'runs.jsonl'}"
    )
    return 0


if __name__ == "__main__":
    from panning_core.experiments import (
        studies,
    )  # the workers must find these names in the module, not in __main__

    command_line(studies.main)
else:
    with suppress(UserError):  # a plugin that is broken is named where a profile is read
        plugins.load_plugins()
