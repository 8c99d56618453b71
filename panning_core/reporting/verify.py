"""Do the results in ``results/`` follow from their ledgers, and the ledgers from the code?

``./run_all.sh verify paper`` makes every table, verdict and figure of a profile again, in a scratch
folder from a copy of its ledgers, and compares them with what lies there. Then it does a random
sample of the runs again and compares their metrics. It changes nothing.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from .. import ROOT, results
from ..errors import UserError
from ..experiments import studies
from ..experiments.ledger import Ledger
from ..runs import base, versions
from . import sources

BUDGET = (
    60  #: seconds that a run took at most when it was recorded, for the sample to be drawn from
)
#: relative difference of a metric that another processor, version or order of additions may make:
#: training magnifies the last bit
ROUNDING = 0.01
NOTHING = 1e-12  #: what is smaller is measured against this: a sum that should be 0 is all rounding
COMPARED = {".csv", ".md", ".png", ".json", ".jsonl"}


def ledger_lines(profile: str) -> dict[str, list[dict]]:
    """Study -> the lines of its runs, of every kind.

    Raises:
        UserError: a ledger lacks runs of the grid that every machine does; of those that only a
            CUDA device does it may hold any.
    """
    found = {}
    for study in studies.profile(profile):
        wanted, needed = (
            {run.key() for run in studies.runs(study, profile, device)} for device in (None, "cpu")
        )
        path = studies.folder(study, profile) / "runs.jsonl"
        found[study] = [line for line in Ledger(path).rows() if line["key"] in wanted]
        if missing := len(needed - {line["key"] for line in found[study]}):
            raise UserError(
                f"{path} lacks {missing} of {len(needed)} runs, so there is nothing to verify"
                f" yet; './run_all.sh {profile}' does them"
            )
    return found


def make_again(profile: str, scratch: Path) -> None:
    """Fill ``scratch``/PROFILE with all that follows from the ledgers."""

    def others(folder: str, names: list[str]) -> list[str]:
        return [
            name
            for name in names
            if Path(name).suffix not in (".jsonl", ".npz") and not Path(folder, name).is_dir()
        ]

    shutil.copytree(results() / profile, scratch / profile, ignore=others)
    if (results() / "benchmarks").exists():
        shutil.copytree(results() / "benchmarks", scratch / "benchmarks")
    # What fails is told on stderr, and what it did not make shows as missing.
    subprocess.run(
        [sys.executable, "-m", "panning_core", "run", profile],
        cwd=ROOT,
        env=os.environ | {"PANNING_RESULTS": str(scratch)},
        stdout=subprocess.DEVNULL,
        check=False,
    )


def difference(ours: Path, again: Path) -> str:
    """What tells two files apart, in words: nothing, where they are the same to the byte, or to the
    pixel.
    """
    if not ours.exists():
        return "is missing here, and follows from the ledgers"
    if not again.exists():
        return "does not follow from the ledgers"
    if ours.read_bytes() == again.read_bytes():
        return ""
    if ours.suffix == ".png":
        pixels, texts = zip(*((plt.imread(path), Image.open(path).text) for path in (ours, again)))
        if pixels[0].shape != pixels[1].shape or (pixels[0] != pixels[1]).any():
            return "picture differs, which other fonts may cause too"
        return (
            ""
            if texts[0] == texts[1]
            else (
                f"was made of {texts[0].get('Source')!r}, and again of {texts[1].get('Source')!r}"
            )
        )
    before, after = ours.read_text(), again.read_text()
    at = len(os.path.commonprefix([before, after]))
    shown = slice(max(0, at - 20), at + 30)
    return (
        f"line {before.count(chr(10), 0, at) + 1} holds {before[shown]!r}, and again"
        f" {after[shown]!r}"
    )


def _files(folder: Path) -> set[Path]:
    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix in COMPARED)
    return {path for path in inside if path.parts[0] != "html"}


def tables(profile: str) -> int:
    """Compare all that follows from the ledgers; returns how many files differ, pictures not
    counted.
    """
    with tempfile.TemporaryDirectory() as scratch:
        make_again(profile, Path(scratch))
        ours, again = results() / profile, Path(scratch) / profile
        paths = sorted(_files(ours) | _files(again))
        found = {path: words for path in paths if (words := difference(ours / path, again / path))}
    for path, words in found.items():
        print(f"  {path}: {words}")
    print(
        f"tables, verdicts and figures: {len(paths) - len(found)} of {len(paths)} files are the"
        " same when made again from the ledgers"
    )
    return sum(not words.startswith("picture") for words in found.values())


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Each single value inside dicts and lists, with its place, like ``layers.fc1.0``."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def compare(recorded: dict, again: dict) -> tuple[float, str]:
    """The largest relative difference of two runs' metrics, seconds left out, and its place;
    infinite for what is no number. 0 is equal to the bit.

    Metrics that are not in ``recorded`` are left out: later code may measure more.
    """
    here = dict(leaves(json.loads(json.dumps(again))))
    worst = 0.0, ""
    for name, value in leaves(recorded):
        other = here.get(name, "nothing")
        # Runs that learn together learn the same.
        if value != other and not name.endswith("_seconds") and name != "stack":
            numbers = all(type(v) in (int, float) for v in (value, other))
            worst = max(
                worst,
                (
                    (
                        abs(value - other) / max(abs(value), abs(other), NOTHING)
                        if numbers
                        else math.inf
                    ),
                    f"{name} is {value} in the ledger and {other} here",
                ),
            )
    return worst


def _by(origin: dict) -> str:
    return (
        f"code {sources.commit(origin)}, PyTorch {origin['versions']['torch']},"
        f" {origin['processor']}"
    )


def repeat(study: str, line: dict) -> bool:
    """Do a run again and say how it compares; returns whether it is equal, or as near as rounding
    explains.
    """
    torch.set_num_threads(1)  # as in a sweep
    origin, start = line["provenance"], time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        context = base.Context(origin["device"], Path(scratch))
        worst, place = compare(line["metrics"], base.read(line).execute(context))
    words = "equal to the bit"
    if worst:
        words = (
            f"not equal to the bit, {'beyond' if worst > ROUNDING else 'within'} rounding"
            f" ({100 * ROUNDING:g} %): {place} (recorded by {_by(origin)}; here by"
            f" {_by(studies.provenance(origin['device']))})"
        )
    print(
        f"  {study} {json.dumps(line['run'])}, {time.perf_counter() - start:.0f} s: {words}",
        flush=True,
    )
    return worst <= ROUNDING


def _repeatable(lines: dict[str, list[dict]]) -> list[tuple[str, dict]]:
    """Every study's ledger lines that this machine can compute again within ``BUDGET`` seconds."""
    return [
        (study, line)
        for study, found in lines.items()
        for line in found
        if line["provenance"]["seconds"] <= BUDGET
        and (line["provenance"]["device"] == "cpu" or torch.cuda.is_available())
    ]


def verify(profile: str, count: int = 5, seed: int | None = None) -> int:
    """Returns the exit code: 0, or 1 if a table or verdict differs, or a run of the sample by more
    than rounding.
    """
    if count < 0:
        raise UserError(f"sample is {count}; it must be at least 0")
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    lines = ledger_lines(profile)
    pool = _repeatable(lines)
    drawn = random.Random(seed).sample(pool, min(count, len(pool)))
    runs = [base.read(line) for _, line in drawn]
    for kind in set(map(type, runs)):
        # A missing file is said now.
        kind.prepare([run for run in runs if type(run) is kind])
    differ = tables(profile)
    print(
        f"sample: {len(drawn)} of the {len(pool)} runs that took at most {BUDGET} s each; --seed"
        f" {seed} draws the same again",
        flush=True,
    )
    for study, found in lines.items():
        if older := versions.told(found):
            print(
                f"  {study}: {older}; nothing is done again by itself: take these lines out of "
                "its ledger and start the study"
            )
    repeated = [repeat(*each) for each in drawn]
    print(f"{profile}: {'NOT ' * bool(differ or not all(repeated))}verified")
    return int(differ > 0 or not all(repeated))


if __name__ == "__main__":
    raise SystemExit("the command is now: python -m panning_core verify PROFILE")
