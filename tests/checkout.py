"""A small checkout in a temporary folder: a copy of the core with a profile and notebooks of the
test's own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from panning_core import ROOT

PARAMETERS = 'profile = "none"\njobs = 7\ndevice = "none"'
SHOWN = """
import matplotlib.pyplot as plt
from panning_core import reporting
study = reporting.Study("01_works", profile, jobs, device)
figure, axes = plt.subplots(figsize=(2, 2))
axes.plot(study.runs.seed, study.runs.test_accuracy)
study.figure(figure, "accuracy", "Accuracy of two seeds.")
study.table(study.runs[["seed", "test_accuracy"]], "seeds", "Two seeds.")
study.verdict("Digits can be learned.", "holds", "n = 5.", paper="Somebody 2020", n=5,
              interval="95 %", figure="accuracy", rule="count")
"""


def state(folder):
    """Every file under ``folder`` with what it holds and when it was written."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def powerless() -> list[str]:
    """What stands before a command so that modes count for it: root may write everywhere."""
    if os.geteuid():
        return []
    if not (setpriv := shutil.which("setpriv")):
        pytest.skip("root can not put its power down here")
    return [setpriv, "--bounding-set=-all", "--inh-caps=-all"]


class Checkout:
    """``core()`` copies the package, so that a process started here has this folder as its root."""

    def __init__(self, root: Path):
        self.root = root
        (root / "notebooks" / "profiles").mkdir(parents=True)

    def core(self) -> "Checkout":
        # With what Python and numba have compiled; not what another process is just writing.
        being_written = shutil.ignore_patterns("*.pyc.*", "*.tmp.*")
        shutil.copytree(ROOT / "panning_core", self.root / "panning_core", ignore=being_written)
        return self

    def profile(self, content: dict | str, name: str = "tiny") -> None:
        text = content if isinstance(content, str) else json.dumps(content)  # JSON is YAML
        (self.root / "notebooks" / "profiles" / f"{name}.yaml").write_text(text)

    def notebook(self, name: str, *cells: str, tags=("parameters",)) -> Path:
        """A notebook of code cells; the first carries ``tags``, and a cell that begins with # is
        Markdown.
        """
        made = [
            (
                {"cell_type": "markdown", "id": f"c{i}", "metadata": {}, "source": cell}
                if cell.startswith("#")
                else {
                    "cell_type": "code",
                    "id": f"c{i}",
                    "metadata": {},
                    "source": cell,
                    "outputs": [],
                    "execution_count": None,
                }
            )
            for i, cell in enumerate(cells)
        ]
        next(cell for cell in made if cell["cell_type"] == "code")["metadata"] = {
            "tags": list(tags)
        }
        path = self.root / "notebooks" / f"{name}.ipynb"
        kernel = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
        path.write_text(
            json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
        )
        return path

    def ledger(self, study: str) -> Path:
        return self.root / "results" / "tiny" / study / "runs.jsonl"

    def command(self, *arguments: str) -> dict:
        """What ``subprocess`` needs to run ``python arguments`` in this checkout, in a process
        group of its own.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PANNING_")}
        return {
            "args": [sys.executable, *arguments],
            "cwd": self.root,
            "env": environment | {"PYTHONPATH": str(self.root)},
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "start_new_session": True,
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(**self.command(*arguments), timeout=300)
