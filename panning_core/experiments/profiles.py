"""Profiles: which runs a study has, read from YAML, checked, and their grids expanded."""

from __future__ import annotations

import dataclasses
import math
import re
from itertools import product
from pathlib import Path

from .. import ROOT, plugins, results
from ..errors import UserError, brief, pick, unknown
from ..runs import base
from . import words

ENTRIES = {"parameters", "grid", "cuda"}
LARGEST = 100_000  #: values of a file, and runs of an entry of a grid


# --- files ----------------------------------------------------------------------------------------


def profile(name: str) -> dict[str, dict]:
    """What a profile says of each of its studies: the notebook's parameters, its grid, and a grid
    that is for CUDA devices alone.

    ``notebooks/STUDY.yaml`` maps profiles to what they say of this study, and
    ``notebooks/profiles/NAME.yaml`` the studies of one profile to what it says of them. Behind a
    name may stand changes of its values: ``quick,epochs=5`` is a profile whose results lie apart.

    Raises:
        UserError: no such profile, or a file that is not as it should be.
    """
    name, changes = words.parted(name)
    return words.change(_profile(name), changes)


def _profile(name: str) -> dict[str, dict]:
    plugins.load_plugins()  # the names of a profile may be theirs
    beside = {path.stem: _sections(path, "profile") for path in sorted(_folder().glob("*.yaml"))}
    for study in beside:
        _check_study(study, _folder() / f"{study}.yaml")
    found = {study: sections[name] for study, sections in beside.items() if name in sections}
    own = _own(name)
    if twice := found.keys() & own.keys():
        raise UserError(
            f"{min(twice)} is in the profile {name} of notebooks/{min(twice)}.yaml and of "
            f"notebooks/profiles/{name}.yaml; one of them must have another name"
        )
    if not found | own:
        known = {each for sections in beside.values() for each in sections}
        raise unknown("profile", name, known | {path.stem for path in _profiles().glob("*.yaml")})
    return found | own


def section(study: str, profile_name: str) -> dict:
    """What a profile says of a study."""
    path = _folder() / f"{study}.yaml"
    if words.BETWEEN.search(str(profile_name)):
        return pick(f"study in profile {profile_name}", study, profile(profile_name))
    if (
        path.parent == _folder()
        and path.exists()
        and not (_profiles() / f"{profile_name}.yaml").exists()
    ):
        plugins.load_plugins()
        sections = _sections(path, "profile")  # one file is read much faster than all
        if profile_name in sections:
            return sections[profile_name]
    return pick(f"study in profile {profile_name}", study, profile(profile_name))


def folder(study: str, profile_name: str) -> Path:
    """Where a study's ledger, tables and figures lie: ``results/PROFILE/STUDY``
    (``$PANNING_RESULTS`` replaces ``results``)."""
    # A changed value may have a slash, as in quick,networks=lenet300/digits.
    return results() / profile_name.replace("/", "%2F") / study


def _folder() -> Path:
    return ROOT / "notebooks"


def _profiles() -> Path:
    return _folder() / "profiles"


def _own(name: str) -> dict[str, dict]:
    """The profile that is a file of its own, empty if there is none of this name."""
    # A name is no path.
    files = {path.stem: path for path in _profiles().glob("*.yaml")}
    if not isinstance(name, str) or name not in files:
        return {}
    _check_name("profile", name)
    sections = _sections(files[name], "study")
    for study in sections:
        _check_study(study, files[name])
    return sections


def _check_study(study: str, path: Path) -> None:
    _check_name("study", study)
    known = {path.stem for path in _folder().glob("*.ipynb")}
    if study not in known:
        raise unknown(f"study in {path.name}", study, known)


def _check_name(what: str, name: object) -> None:
    """It becomes the name of a folder, an address, and words of a page."""
    if not re.fullmatch(r"\w[\w.-]*", str(name)):
        raise UserError(
            f"{brief(repr(name))} can not be the name of a {what}; it must be of letters, digits,"
            " _, - and ., such as 03_sparsity_sweep"
        )


def _sections(path: Path, of: str) -> dict[str, dict]:
    """Profile or study -> its section, checked but for what is inside the grids."""
    content = _load(path)
    maps = isinstance(content, dict) and all(isinstance(v, dict) for v in content.values())
    if not maps or not content:
        raise UserError(f"{path} must map each {of} to its parameters and grid")
    for name, found in content.items():
        _check_name(of, name)
        for entry in found.keys() - ENTRIES:
            raise unknown(f"entry of {name} in {path.name}", entry, ENTRIES)
        if not isinstance(found.get("parameters", {}), dict):
            raise UserError(
                f"parameters of {name} in {path.name} are {found['parameters']!r}; they must be "
                "names and values, like {seeds: 3}"
            )
    return content


def _load(path: Path) -> object:
    import yaml

    class Strict(yaml.SafeLoader):
        """YAML itself lets the last of two equal keys win, so that a study would lose its grid
        without a word."""

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
    if not _is_small(content):
        raise UserError(f"{path} holds more than {LARGEST:,} values, or an anchor inside itself")
    return content


def _is_small(content: object) -> bool:
    """A few lines of anchors can stand for more values than any memory holds, or for themselves."""
    left, values = LARGEST, [content]
    while values and left:
        value, left = values.pop(), left - 1
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list | tuple | set):
            values += value
    return not values


# --- grids ----------------------------------------------------------------------------------------


def runs(study: str, profile_name: str, device: str | None = None) -> list[base.Run]:
    """All runs of a study in a profile, or those that such a device is to do: on CUDA its entry
    ``cuda``, where it has one, else its grid."""
    found = section(study, profile_name)
    names = ["grid", "cuda"]
    if device is not None:
        names = ["cuda" if device.startswith("cuda") and "cuda" in found else "grid"]
    both = [run for name in names for run in expand(found.get(name, []))]
    return list({run.key(): run for run in both}.values())


def entry_names(study: str, profile_name: str) -> dict[str, str]:
    """The key of each run whose entry has a ``name`` -> that name."""
    named = _entries(section(study, profile_name).get("grid", []))[1]
    return {run.key(): name for name, runs in named.items() for run in runs}


def expand(grid: list[dict]) -> list[base.Run]:
    """The runs of a grid: in each entry every list is an axis, and the axes are crossed.

    ``kind`` says what an entry is; without it, a pruning run. By its ``name`` later entries can
    refer to an entry, as the ``policy`` of a pruning run does to an agent.

    Raises:
        UserError: an unknown field or name, or a value out of range; nothing has run by then.
    """
    return list({run.key(): run for run in _entries(grid)[0]}.values())


def _entries(grid: list[dict]) -> tuple[list[base.Run], dict[str, list[base.Run]]]:
    """The runs of a grid, and those of each entry that has a name."""
    if not isinstance(grid, list) or not all(isinstance(entry, dict) for entry in grid):
        raise UserError(
            f"a grid is a list of entries like {{dataset: digits, model: lenet300}}, got {grid!r}"
        )
    found, named = [], {}
    for entry in grid:
        runs = _entry(entry, named)
        if "name" in entry:
            name = entry["name"]
            if not isinstance(name, str) or name in named:
                raise UserError(
                    f"the name of an entry of a grid is {name!r}; it must be a text, and no two "
                    "entries may have the same"
                )
            named[name] = runs
        found += runs
    return found, named


def _entry(entry: dict, named: dict[str, list[base.Run]]) -> list[base.Run]:
    kind = base.kind(entry.get("kind", base.FIRST))
    of = "a run" if kind.kind == base.FIRST else f"a run of the kind {kind.kind}"
    entry = {field: value for field, value in entry.items() if field not in ("kind", "name")}
    _check_fields(kind, entry, of)
    axes = {
        field: value if isinstance(value, list) else [value]
        for field, value in kind.axes(entry, named).items()
    }
    if empty := [field for field, axis in axes.items() if not axis]:
        raise UserError(f"{empty[0]} of {of} is an empty list; it needs at least one value")
    if (count := math.prod(map(len, axes.values()))) > LARGEST:
        raise UserError(f"an entry of a grid is {count:,} runs; it may be {LARGEST:,}")
    try:
        return [kind(**dict(zip(axes, values))) for values in product(*axes.values())]
    except TypeError as error:
        raise UserError(f"{of} must be made of plain values: {error}") from error


def _check_fields(kind: type[base.Run], entry: dict, of: str) -> None:
    """Raise a ``UserError`` for a field that the kind has not, or one that it needs."""
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    for field in entry.keys() - fields.keys():
        raise unknown(f"field of {of}", field, [*fields, "kind", "name"])
    for field, default in fields.items():
        if default is dataclasses.MISSING and field not in entry:
            raise UserError(f"{of} lacks {field}, got {entry!r}")
