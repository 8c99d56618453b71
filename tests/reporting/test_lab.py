"""What JupyterLab writes into a notebook never reaches git."""

import json
import subprocess

import nbformat
import pytest

from panning_core import ROOT
from panning_core.reporting import lab

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDED = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
    "version": "3.11.7",
}


def git(folder, *words):
    return subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *words],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_the_kernel_as_jupyterlab_does(notebook):
    spec = json.loads(notebook.read_text())["metadata"]["kernelspec"]
    assert spec["display_name"] == "Python 3 (ipykernel)"


def test_a_notebook_that_ran_is_no_change(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / "playground.ipynb"
    path.write_bytes((ROOT / "notebooks" / "playground.ipynb").read_bytes())
    (tmp_path / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    git(tmp_path, "init", "--quiet")
    monkeypatch.setattr(lab, "ROOT", tmp_path)
    lab.keep_git_clean()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "as it was")

    content = nbformat.read(path, as_version=4)
    cell = next(cell for cell in content.cells if cell.cell_type == "code")
    cell.execution_count = 7
    cell.outputs = [nbformat.v4.new_output("stream", text="seen")]
    content.metadata.language_info.update(ADDED)
    nbformat.write(content, path)
    assert git(tmp_path, "diff") == ""
    git(tmp_path, "add", ".")  # a status compares sizes alone until then
    assert git(tmp_path, "status", "--porcelain") == ""

    cell.source += "\n# a real change"
    nbformat.write(content, path)
    assert '+    "# a real change"' in git(tmp_path, "diff").replace("\\n", "")
