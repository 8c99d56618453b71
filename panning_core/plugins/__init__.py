"""How what a user adds to a table of names reaches every process.

A *plugin* is a Python file that adds to them when it runs::

    from panning_core import models

    models.MODELS["mine"] = lambda shape, classes: ...

``--plugin FILE`` of a command loads it there and in every process that the command starts, also in
notebooks; the variable ``PANNING_PLUGIN`` does so for processes that others start, such as the
workers of a cluster. What a script or a notebook adds by itself goes along with each of its tasks,
as long as cloudpickle can pack it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import cloudpickle

from ..errors import UserError, told
from ..names import TABLES

#: what this process has loaded -> 12 hex digits of the SHA-256 of the file
PLUGINS: dict[Path, str] = {}
VARIABLE = "PANNING_PLUGIN"  #: files, with ``os.pathsep`` between them


# --- plugins --------------------------------------------------------------------------------------


def load_plugins(paths: Sequence[str] = ()) -> None:
    """Load these plugins and those of ``PANNING_PLUGIN``, each once, and have every process load
    them that this one starts.

    Raises:
        UserError: a plugin that is missing or does not run.
    """
    named = [*filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)), *paths]
    wanted = list(dict.fromkeys(Path(path).expanduser().resolve() for path in named))
    for path in wanted:
        if path not in PLUGINS:
            _load(path)
    if wanted:
        os.environ[VARIABLE] = os.pathsep.join(map(str, wanted))


def _load(path: Path) -> None:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"plugin {path} can not be read ({error.strerror}); it must be a Python file"
        ) from error
    PLUGINS[path] = digest[:12]  # before it runs: it may import who loads plugins
    before = {place: dict(table) for place, table in TABLES.items()}
    name = f"panning_plugin_{path.stem}"
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.append(str(path.parent))  # for what lies beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del PLUGINS[path]
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        lines += [error.lineno] if isinstance(error, SyntaxError) else []
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(f"plugin {path}{where}: {told(error)}") from error
    for place, table in TABLES.items():
        table.known.update(
            {
                name: value
                for name, value in table.items()
                if before.get(place, {}).get(name) is not value
            }
        )


# --- what a session has added ---------------------------------------------------------------------


def additions() -> bytes:
    """What the tables of this process alone have, for ``receive`` in another one; empty if there is
    nothing.

    Raises:
        UserError: something that can not be packed.
    """
    found = _added()
    if not found:
        return b""
    try:
        return packed(found)
    except Exception as error:  # whatever it refers to may refuse
        names = ", ".join(repr(name) for added in found.values() for name in added)
        raise UserError(
            f"{names} can not be sent to other processes ({told(error)}); "
            "put it into a file for --plugin, or use one job"
        ) from error


def packed(value: object) -> bytes:
    """``value`` for another process, which must load its plugins before it unpickles this."""
    with _by_value(_added()):
        return cloudpickle.dumps(value)


def unpacked(value: bytes) -> object:
    """What ``packed`` packed in the process that asks this one."""
    return pickle.loads(value)


def _added() -> dict[str, dict]:
    return {place: added for place, table in TABLES.items() if (added := table.added())}


@contextmanager
def _by_value(found: dict[str, dict]) -> Iterator[None]:
    """Inside, the user's own modules are packed whole, since another process may not find them."""
    values = [
        getattr(value, "find", getattr(value, "func", value))
        for added in found.values()
        for value in added.values()
    ]
    own = {
        name
        for value in values
        if (name := getattr(value, "__module__", None)) and _is_own(sys.modules.get(name))
    }
    for name in own:
        cloudpickle.register_pickle_by_value(sys.modules[name])
    try:
        yield
    finally:
        for name in own:
            cloudpickle.unregister_pickle_by_value(sys.modules[name])


def _is_own(module: ModuleType | None) -> bool:
    file = getattr(module, "__file__", None)
    return (
        bool(file)
        and module.__name__ != "__main__"
        and not module.__name__.startswith("panning_core.")
        and "site-packages" not in file
    )


@lru_cache(maxsize=1)
def receive(packed: bytes) -> None:
    """Add what another process has packed to the tables of this one.

    Raises:
        UserError: something that can not be unpacked here.
    """
    try:
        found = pickle.loads(packed) if packed else {}
        for place, added in found.items():
            module, _, name = place.rpartition(".")
            getattr(import_module(module), name).update(added)
    except Exception as error:  # it may need what is not there
        raise UserError(
            f"a worker can not read what this session has added to a table ({told(error)}); "
            "put it into a file for --plugin"
        ) from error
