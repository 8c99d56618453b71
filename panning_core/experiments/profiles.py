"""Profiles: which runs a study has, read from YAML, checked, and their grids expanded."""

from __future__ import annotations

import dataclasses
import math
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from .. import ROOT, plugins, pruning, results
from ..agent import policies
from ..errors import UserError, pick, unknown
from ..runs import prune

if TYPE_CHECKING:
    from ..agent import learning

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
    except Exception as error:
        # A YAMLError, and for a damaged text or a value like !!int x, many other kinds.
        raise UserError(f"{path} is not YAML: {error}".replace("\n", " ")) from error
    left, values = LARGEST, [content]
    # A few lines of anchors can stand for more values than any memory holds, or for themselves.
    while values and left:
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


def section(study: str, profile_name: str) -> dict:
    """What a profile says of a study."""
    return pick(f"study in profile {profile_name}", study, profile(profile_name))


def folder(study: str, profile_name: str) -> Path:
    """Where a study's ledger, tables and figures lie: ``results/PROFILE/STUDY`` (``$PANNING_RESULTS`` replaces ``results``)."""
    return results() / profile_name / study


def runs(study: str, profile_name: str, device: str | None = None) -> list[prune.Run]:
    """All runs of ``study`` in a profile, or those that such a device is to do: on CUDA its entry ``cuda``, where it has one, else its grid."""
    found = section(study, profile_name)
    grids = {name: found[name] for name in ("grid", "cuda") if name in found}
    if device is not None and len(grids) == 2:
        del grids["grid" if device.startswith("cuda") else "cuda"]
    agents = trainings(found) if "agents" in found else None
    return list(
        {run.key(): run for grid in grids.values() for run in expand(grid, agents)}.values()
    )


def trainings(section: dict) -> dict[str, list[learning.Training]]:
    """The agents that a study trains: the name of each entry of its section -> one ``learning.Training`` for each of its seeds.

    Raises:
        UserError: an unknown or missing field, or a value out of range.
    """
    # Here, as it needs gymnasium, which a machine that only prunes and trains may lack.
    from ..agent import learning

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


def expand(
    grid: list[dict], agents: dict[str, list[learning.Training]] | None = None
) -> list[prune.Run]:
    """The runs of a grid: in each entry every list is an axis, and the axes are crossed; ``method: all`` is every pruner, and
    the name of one of ``agents`` is the policies of its seeds.

    Raises:
        UserError: an unknown field or name, or a value out of range; nothing has run by then.
    """
    fields = [f.name for f in dataclasses.fields(prune.Run)]
    runs: dict[str, prune.Run] = {}
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
                run = prune.Run(**dict(zip(axes, values)))
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
