"""Every notebook also runs in JupyterLab as it stands: with its own parameters, from its own
folder, in under two minutes.
"""

import ast
import os
import time

import nbformat
import pytest
from nbclient import NotebookClient
from papermill import inspect_notebook

from panning_core import ROOT
from panning_core.experiments import studies

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
STUDIES = [name for name in NOTEBOOKS if name[0].isdigit()]
READING = {"open", "Path", "read_csv", "read_json"}


@pytest.mark.parametrize("name", STUDIES)
def test_by_itself_a_study_is_the_quick_profile(name):
    """So what `./run_all.sh` does with it is what JupyterLab does, from another folder."""
    given = {
        "profile": "quick",
        "jobs": None,
        "device": "cpu",
        **studies.profile("quick")[name].get("parameters", {}),
    }
    assert {
        key: ast.literal_eval(found["default"])
        for key, found in inspect_notebook(str(NOTEBOOKS[name])).items()
    } == given


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_folder_in_which_a_notebook_runs_does_not_matter(name):
    """No file is named by a path of its own: all of them begin at the package's root or at a
    study's folder.
    """
    code = "\n".join(
        cell.source
        for cell in nbformat.read(NOTEBOOKS[name], as_version=4).cells
        if cell.cell_type == "code"
    )
    calls = [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
    ]
    assert not [
        ast.unparse(call)
        for call in calls
        if getattr(call.func, "id", getattr(call.func, "attr", None)) in READING
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_its_own_folder_in_under_two_minutes(name, tmp_path, monkeypatch):
    if name != "playground" and not os.environ.get("PANNING_EVERY_NOTEBOOK"):
        pytest.skip("six minutes for all of them; PANNING_EVERY_NOTEBOOK=1 runs them")
    monkeypatch.setenv("PANNING_RESULTS", str(tmp_path))
    start = time.perf_counter()
    NotebookClient(
        nbformat.read(NOTEBOOKS[name], as_version=4),
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS[name].parent)}},
    ).execute()
    assert time.perf_counter() - start < 120


@pytest.mark.parametrize("name", sorted(set(NOTEBOOKS) - {"playground"}))
def test_a_line_of_code_has_at_most_100_columns(name):
    cells = nbformat.read(NOTEBOOKS[name], as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert not [line for source in code for line in source.splitlines() if len(line) > 100]
