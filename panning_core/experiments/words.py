"""Words of the command line: ``FIELD=VALUE`` makes one run, or changes values of a profile."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable

from ..errors import UserError, brief, unknown
from ..runs import base

SHORT = {"data": "dataset", "network": "model"}  #: other words for fields of a run
BETWEEN = re.compile(r",(?=\w+=)")  #: of the changes in a profile's name; a value may have commas


def read(words: Iterable[str]) -> dict[str, object]:
    """Field -> value, as YAML reads it: ``epochs=5``, ``seed=[0,1]``, ``method=snip``.

    Raises:
        UserError: a word that is no FIELD=VALUE, a field that is there twice, or no YAML.
    """
    import yaml

    found: dict[str, object] = {}
    for word in words:
        field, equals, value = word.partition("=")
        field = SHORT.get(field, field)
        if not equals or not field.isidentifier() or not value:
            raise UserError(f"{word!r} is no FIELD=VALUE, such as sparsity=0.95")
        if field in found:
            raise UserError(f"{field} is there twice; it needs one value, or a list like [0, 1]")
        try:
            found[field] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{word!r} has no value that YAML reads; quote it?") from error
    return found


def parted(profile: str) -> tuple[str, dict[str, object]]:
    """The name of a profile, and the changes that stand behind it: ``quick,epochs=5``."""
    name, *changes = BETWEEN.split(profile) if isinstance(profile, str) else (profile,)
    return name, read(changes)


def change(sections: dict[str, dict], changes: dict[str, object]) -> dict[str, dict]:
    """The sections of a profile with these values in every entry and parameter that names such a
    field.

    Raises:
        UserError: no entry and no parameter names it.
    """
    known, used = set(), set()

    def changed(values: dict) -> dict:
        known.update(values)
        used.update(changes.keys() & values.keys())
        return {name: changes.get(name, value) for name, value in values.items()}

    def entries(found: object) -> object:
        # What is no list of mappings is refused where it is expanded.
        if not isinstance(found, list):
            return found
        return [changed(entry) if isinstance(entry, dict) else entry for entry in found]

    made = {
        study: {
            part: changed(found) if part == "parameters" else entries(found)
            for part, found in section.items()
        }
        for study, section in sections.items()
    }
    for field in changes.keys() - used:
        raise unknown("value of this profile", field, known)
    return made


def run(words: Iterable[str], device: str = "cpu") -> int:
    """Do the runs that ``words`` say, one unless a value is a list; the line of each goes to
    stdout, as a ledger holds it, and a sentence to stderr.

    Raises:
        UserError: no such run, or one that failed.
    """
    from .profiles import expand
    from .sweep import check_machine, perform, time_limit

    check_machine(None, device)
    runs = expand([read(words)])
    for kind in dict.fromkeys(map(type, runs)):
        kind.prepare([each for each in runs if type(each) is kind])
    for each in runs:
        (line,) = perform([each], device, limit=time_limit())
        if "error" in line:
            raise UserError(f"{brief(each.name())} failed: {brief(line['error'])}")
        print(json.dumps(line))
        print(_told(each, line["metrics"]), file=sys.stderr)
    return 0


def _told(run: base.Run, metrics: dict) -> str:
    """What came of a run, in a sentence."""
    parts = [run.name()]
    if metrics.get("test_accuracy") is not None:
        parts.append(f"test accuracy {100 * metrics['test_accuracy']:.2f} %")
    if metrics.get("diverged"):
        parts.append("the training diverged: its loss is no number")
    if "kept_weights" in metrics:
        parts.append(
            f"{metrics['kept_weights']:,} of {metrics['prunable_weights']:,} weights kept, "
            f"{metrics['effective_weights']:,} of them on a path"
        )
    return "; ".join(parts)
