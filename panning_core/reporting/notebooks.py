"""The batch runner behind ``run_all.sh``: fill the ledgers, run the notebooks, write the report and
the site.

Success is never read from papermill's metadata: parameter names are checked first, a notebook runs
as ``X.running.ipynb`` and is renamed to ``X.ipynb`` when it came through and to ``X.failed.ipynb``
when it did not.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from .. import ROOT, plugins
from ..errors import UserError, brief, unknown
from ..experiments import studies
from ..runs import base
from . import home, report
from .site import OVERVIEW, build
from .study import verdicts

GIVEN = {"profile", "jobs", "device"}  #: parameters the runner sets in every notebook


def check_notebook(path: Path, parameters: dict) -> None:
    """Raise a ``UserError`` unless the notebook has a cell tagged ``parameters`` that assigns every
    name in ``parameters``.

    papermill itself only warns of both and runs the defaults.
    """
    import nbformat
    from papermill import inspect_notebook

    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:  # whatever a file that is no notebook makes nbformat raise
        raise UserError(f"{path} is not a notebook: {error}") from error
    if not any("parameters" in cell.metadata.get("tags", []) for cell in cells):
        raise UserError(
            f"{path} has no cell tagged 'parameters'; tag the cell that assigns"
            f" {', '.join(sorted(parameters))}"
        )
    try:
        known = inspect_notebook(str(path))
    except ValueError as error:
        raise UserError(
            f"{path} does not name its kernel ({error}); save it once in JupyterLab with the"
            " kernel Python 3"
        ) from error
    for name in parameters:
        if name not in known:
            raise unknown(f"parameter of {path.name}", name, known)


def execute(notebook: Path, target: Path, parameters: dict) -> None:
    """Run ``notebook`` into ``target``."""
    import papermill

    home.lend()
    running = target.with_suffix(".running.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(running),
            parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(ROOT),
            # A kernel that is told to end while it is busy logs that as an error; a cell's own
            # error is raised below.
            extra_arguments=["--log-level=CRITICAL"],
        )
    except BaseException as error:
        target.unlink(missing_ok=True)  # an older success must not pass for this one
        if running.exists():
            os.replace(running, target.with_suffix(".failed.ipynb"))
        if not isinstance(error, Exception):
            raise
        where = (
            f" in cell {error.exec_count}: {error.ename}: {brief(error.evalue)}"
            if isinstance(error, papermill.PapermillExecutionError)
            else f": {error}"
        )
        raise UserError(
            f"{notebook.name} failed{where} (see {target.with_suffix('.failed.ipynb')})"
        ) from error
    target.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    os.replace(running, target)


def stamp(study: str, profile_name: str, section: dict) -> str:
    """A digest of everything the executed notebook follows from; equal stamps mean there is nothing
    to do again.
    """
    digest = hashlib.sha256(json.dumps(section, sort_keys=True).encode())
    results = studies.folder(study, profile_name).parent
    notebook = ROOT / "notebooks" / f"{study}.ipynb"
    text = notebook.read_text()
    inputs = [notebook, *sorted((ROOT / "panning_core").rglob("*.py")), *plugins.PLUGINS]
    # It may read another study's.
    inputs += [
        path
        for path in sorted(results.glob("*/*.jsonl"))
        if path.parent.name == study or path.parent.name in text
    ]
    for folder in (results.parent / "benchmarks", ROOT / "results" / "benchmarks"):
        inputs += sorted(folder.glob("*.csv")) + sorted(folder.glob("*.json"))
    inputs += sorted((ROOT / "results" / "published").glob("*.csv"))
    if study == OVERVIEW:
        inputs += sorted(results.glob("*/verdicts.csv")) + sorted(results.glob("*/runs.jsonl"))
    for path in inputs:
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def run_study(study: str, profile_name: str, section: dict, jobs: int | None, device: str) -> None:
    """Fill the ledger, then run the notebook unless nothing it follows from has changed."""
    if section.keys() & {"grid", "cuda"}:
        studies.sweep(study, profile_name, jobs, device)
    target = studies.folder(study, profile_name) / f"{study}.ipynb"
    mark = target.parent.parent / "html" / f"{study}.stamp"
    now = stamp(study, profile_name, section)
    if mark.exists() and mark.read_text() == now and report.is_whole(target):
        return
    # Tables and figures change from here on, and who is stopped on the way must begin again.
    mark.unlink(missing_ok=True)
    print(f"{study}: running the notebook", file=sys.stderr)
    execute(
        ROOT / "notebooks" / f"{study}.ipynb",
        target,
        {
            **section.get("parameters", {}),
            "profile": profile_name,
            "jobs": jobs,
            "device": device,
        },
    )
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(now)


def reproduce(
    profile_name: str, only: str | None = None, jobs: int | None = None, device: str = "cpu"
) -> int:
    """Run a profile; returns the exit code: 0, or 1 if a study failed (the others still run).

    A study that needs a package that is not installed is left out, and said so.
    """
    sections = studies.profile(profile_name)
    studies.check_machine(jobs, device)
    if only is not None and only not in sections:
        raise unknown(f"study in profile {profile_name}", only, sections)
    # The overview reads the others' verdicts, so it runs last; bad input shows before any work.
    chosen = sorted(
        sections if only is None else [only], key=lambda study: (study == OVERVIEW, study)
    )
    skipped = _left_out(chosen, profile_name, sections)
    _make(studies.folder(OVERVIEW, profile_name).parent)

    summary, failed = [], False
    for study in chosen:
        if study in skipped:
            print(f"{study} is left out: {skipped[study]}", file=sys.stderr)
            summary.append((study, "-", "left out"))
            continue
        start = time.perf_counter()
        try:
            run_study(study, profile_name, sections[study], jobs, device)
            words = ", ".join(verdicts(study, profile_name).verdict) or "-"
        except UserError as error:
            failed, words = True, "FAILED"
            print(f"error: {error}", file=sys.stderr)
        summary.append((study, f"{time.perf_counter() - start:.0f}", words))

    _print_summary(summary)
    executed = [
        studies.folder(study, profile_name) / f"{study}.ipynb"
        for study in sorted(sections)
        if study not in skipped
    ]
    if all(path.exists() for path in executed):  # a part would overwrite the report of the whole
        print(f"\nreport: {_shown(report.render(executed))}")
    else:
        print("\nThe report is written when every study of the profile has run.")
    print(f"site: {_shown(build(profile_name))}")
    return int(failed)


def _left_out(chosen: list[str], profile_name: str, sections: dict[str, dict]) -> dict[str, str]:
    """Checks the studies; returns those that need a package that is missing, and the sentences."""
    missing = {}
    for study in chosen:
        try:
            _check_study(study, profile_name, sections[study])
        except base.MissingPackage as error:
            missing[study] = str(error)
    return missing


def _make(results: Path) -> None:
    """The folder; raises now if nothing can be written to it."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=results).close()
    except OSError as error:
        raise UserError(
            f"results can not be written to {results} ({error.strerror}); set PANNING_RESULTS to"
            " a folder that can"
        ) from error


def _print_summary(rows: list[tuple[str, str, str]]) -> None:
    width = max(len(study) for study, _, _ in rows)
    print(f"\n{'study':<{width}}  seconds  verdicts")
    for study, seconds, words in rows:
        print(f"{study:<{width}}  {seconds:>7}  {words}")


def _check_study(study: str, profile_name: str, section: dict) -> None:
    """Raise now what is wrong with a study's parameters, notebook or grid."""
    if taken := GIVEN & section.get("parameters", {}).keys():
        raise UserError(
            f"{sorted(taken)[0]} is a parameter that the runner itself sets; take it out of"
            f" the parameters of {study} in the profile {profile_name}"
        )
    check_notebook(
        ROOT / "notebooks" / f"{study}.ipynb",
        {**section.get("parameters", {}), **dict.fromkeys(GIVEN)},
    )
    studies.runs(study, profile_name)


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    raise SystemExit("the command is now: python -m panning_core run PROFILE --only STUDY")
