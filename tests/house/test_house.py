"""The house: imports run one way, and experiments need no Jupyter."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from radon.complexity import cc_visit

from panning_core import ROOT
from panning_core.experiments.ledger import Ledger
from tests.checkout import PARAMETERS, Checkout

# What the extras of pyproject.toml bring, as modules.
# Not onnx, tabulate, hypothesis and psutil, which PyTorch and joblib themselves look for.
AGENT = "gymnasium stable_baselines3".split()
LAB = "seaborn matplotlib optuna gpytorch safetensors papermill".split()
LAB += "nbconvert nbformat nbclient latex2mathml IPython ipykernel ipywidgets jupyterlab".split()
CLUSTER, DEV = ["distributed", "dask_jobqueue"], ["playwright", "radon"]


def test_imports_run_one_way():
    """The contracts are those of pyproject.toml."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_sweep_needs_none_of_the_extras(tmp_path):
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
        if name.split(".")[0] in {AGENT + LAB + CLUSTER + DEV}:
            raise ModuleNotFoundError(name + " is not installed")

sys.meta_path.insert(0, Absent())
from panning_core.__main__ import command_line, main
command_line(main)
""")
    done = made.run("bare.py", "sweep", "01_tiny", "--profile", "tiny", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert [row["run"].get("method") for row in Ledger(made.ledger("01_tiny")).rows()] == [
        "panning"
    ]


def test_the_thin_core_needs_torch_and_numpy_alone(tmp_path):
    """Its modules are read, a network is pruned and made smaller, with all else out of reach."""
    (tmp_path / "bare.py").write_text("""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in LABORATORY:
            raise ModuleNotFoundError(name + " is not installed")

LABORATORY = set(sys.argv[1:])
sys.meta_path.insert(0, Absent())
import torch
from panning_core import compaction, data, errors, graph, layers, masks, metrics, models, pruning

splits = data.from_arrays(torch.rand(40, 6).numpy(), torch.arange(40).numpy() % 2,
                          torch.rand(40, 6).numpy(), torch.arange(40).numpy() % 2)
model = models.build("lenet300", splits.input_shape, 2, seed=0)
batch = data.balanced_batch(splits.train, 5, torch.Generator().manual_seed(0))
mask = masks.keep_top(metrics.snip(model, masks.ones(model), batch), 0.1)
print(masks.count(mask), compaction.compact(model, mask).model is not model)
""")
    names = "cloudpickle distributed gpytorch gymnasium IPython joblib jupyterlab matplotlib"
    names += " nbconvert nbformat numba optuna pandas papermill pyarrow scipy seaborn sklearn"
    names += " stable_baselines3 tqdm yaml"
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bare.py"), *names.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3200 True\n"


def test_every_package_is_pinned_once_and_belongs_to_the_base_or_to_one_extra():
    """requirements.txt has the versions, pyproject.toml says what needs which package."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", pin) for pin in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"agent", "lab", "cluster", "dev"}
    named = project["dependencies"] + [name for extra in extras.values() for name in extra]
    assert sorted(named) == sorted(pin.partition("==")[0] for pin in pins)


FRONT = {"__main__.py", "commands.py", "studies.py"}  # ways in, nothing of a mask


def test_the_thin_core_is_thin():
    files = [path for path in (ROOT / "panning_core").glob("*.py") if path.name not in FRONT]
    assert len(files) > 8
    assert sum(len(path.read_text().splitlines()) for path in files) <= 2_500


def functions(path):
    """Every function of a file: its name, lines, complexity, and the comment above it."""
    text = path.read_text()
    lines, branched = text.splitlines(), {}
    for block in cc_visit(text):
        for each in [block, *getattr(block, "methods", []), *getattr(block, "closures", [])]:
            branched[each.name, each.lineno] = each.complexity
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            above = lines[first - 2].strip() if first > 1 else ""
            yield (
                node.name,
                node.end_lineno - node.lineno + 1,
                branched.get((node.name, node.lineno), 0),
                above.startswith("# One piece: "),
            )


def test_a_long_or_branched_function_says_why_it_is_one_piece():
    """``# One piece: WHY`` above it. In the core none is longer than 60 lines, whatever it says."""
    told, seen = [], 0
    for path in (ROOT / "panning_core").rglob("*.py"):
        for name, length, branches, excused in functions(path):
            seen += branches > 1
            long = length > 60 and (not excused or path.parent.name != "reporting")
            if long or (branches > 12 and not excused):
                told.append(f"{path.name}: {name} of {length} lines, complexity {branches}")
    assert not told and seen > 800


def test_a_cell_is_read_at_a_glance():
    """At most 15 lines of code in a cell; not of parameters, and not in the playground."""
    told, seen = [], 0
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            tags = cell["metadata"].get("tags", [])
            lines = len("".join(cell["source"]).splitlines())
            if cell["cell_type"] == "code" and "parameters" not in tags:
                seen += 1
                if lines > 15 and "playground" not in path.name:
                    told.append(f"{path.name}: a cell of {lines} lines, {cell['source'][0]}")
    assert not told and seen > 500
