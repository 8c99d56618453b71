"""The house: modules import only what stands to their left, and experiments need no Jupyter."""

import ast
import sys

import pytest
from checkout import PARAMETERS, Checkout

from panning_core import ROOT
from panning_core.ledger import Ledger

#: Left to right. A new module finds its place here and in the docstring of the package.
ORDER = [
    "errors",
    "registry",
    "noise",
    "data",
    "graph",
    "models",
    "layers",
    "masks",
    "faithful",
    "compaction",
    "exchange",
    "kernels",
    "sparse",
    "metrics",
    "topologies",
    "panning",
    "policies",
    "pruning",
    "transfer",
    "training",
    "stack",
    "gates",
    "tickets",
    "networks",
    "pathways",
    "toy",
    "agent",
    "ledger",
    "workers",
    "studies",
    "statistics",
    "fidelity",
    "report",
    "site",
    "reproduce",
    "verify",
]
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


def imported(module):
    """What ``module`` imports anywhere in its text: ("own", name) for a module of the core, ("other", top-level name) for the rest."""
    for node in ast.walk(ast.parse((ROOT / "panning_core" / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (("other", alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            path = (["panning_core"] if node.level else []) + (node.module or "").split(".")
            path = [part for part in path if part]
            if path[0] != "panning_core":
                yield "other", path[0]
            else:
                yield from (
                    ("own", name) for name in (path[1:2] or [alias.name for alias in node.names])
                )


def test_every_module_has_its_place():
    assert sorted(
        path.stem for path in (ROOT / "panning_core").glob("*.py") if path.stem != "__init__"
    ) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_to_its_left(module):
    """So there is no circle, and no module of the core knows a notebook. ROOT, __version__ and results are the package's own."""
    allowed = {*ORDER[: ORDER.index(module)], "ROOT", "__version__", "results"}
    if module == "studies":
        allowed.add(
            "studies"
        )  # run as __main__ it hands over to itself, so that workers find its names
    found = list(imported(module))
    assert {name for kind, name in found if kind == "own"} <= allowed
    assert "panning_core" not in {name for kind, name in found if kind == "other"}
    assert all(
        name in sys.stdlib_module_names or not (ROOT / "notebooks" / f"{name}.py").exists()
        for _, name in found
    )


@pytest.mark.parametrize("module", ORDER[: ORDER.index("report")])
def test_only_report_and_reproduce_show_anything(module):
    assert not {name for kind, name in imported(module) if kind == "other"} & set(SHOWING)


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
from panning_core import errors, studies
errors.command_line(studies.main)
""")
    done = made.run("bare.py", "01_tiny", "--profile", "tiny", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert [row["run"].get("method") for row in Ledger(made.ledger("01_tiny")).rows()] == [
        "panning"
    ]
