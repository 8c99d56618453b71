"""The house: imports run one way, and experiments need no Jupyter."""

import subprocess
import sys
from pathlib import Path

from checkout import PARAMETERS, Checkout

from panning_core import ROOT
from panning_core.experiments.ledger import Ledger

SHOWING = [
    "jupyter",
    "jupyterlab",
    "papermill",
    "nbconvert",
    "nbformat",
    "nbclient",
    "ipykernel",
    "IPython",
    "matplotlib",
    "seaborn",
]


def test_imports_run_one_way():
    """The contracts are those of pyproject.toml."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_sweep_needs_no_jupyter_no_matplotlib_and_no_gymnasium(tmp_path):
    made = Checkout(tmp_path / "checkout").core()
    made.notebook("01_tiny", PARAMETERS)
    run = {
        "dataset": "digits",
        "model": "lenet300",
        "method": "panning",
        "sparsity": 0.5,
        "rounds": 2,
        "epochs": 1,
        "transfer": True,
    }
    made.profile({"01_tiny": {"grid": [run]}})
    (made.root / "bare.py").write_text(f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {[*SHOWING, "gymnasium", "stable_baselines3"]}:
            raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Absent())
from panning_core import errors
from panning_core.__main__ import main
errors.command_line(main)
""")
    done = made.run("bare.py", "sweep", "01_tiny", "--profile", "tiny", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert [row["run"].get("method") for row in Ledger(made.ledger("01_tiny")).rows()] == [
        "panning"
    ]
