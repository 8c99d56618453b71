"""Plugins: what a user adds to a table is there in every process, and what can not be is one
sentence."""

import os
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from panning_core import ROOT, data, masks, metrics, models, plugins, pruning
from panning_core.__main__ import main
from panning_core.errors import UserError
from panning_core.experiments import studies, workers
from panning_core.experiments.ledger import Ledger
from tests.checkout import PARAMETERS, Checkout

PLUGIN = """
import numpy as np
from torch import nn
from panning_core import data, metrics, models, studies
from panning_core.methods import registry, scored
from beside import WIDTH

class Small(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.a, self.b = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, x):
        return self.b(self.a(x).relu())

def rows():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = rng.normal(size=(300, 6)) + y[:, None]
    return x[:200], y[:200], x[200:], y[200:]

models.MODELS["small"] = lambda shape, classes: Small(shape[0], classes)
data.DATASETS["rows"] = rows
metrics.METRICS["backwards"] = lambda model, mask, batch, generator=None: {
    name: 1 / (1e-9 + s) for name, s in metrics.magnitude(model, mask, batch).items()}
registry.add(registry.Method(
    "backwards-rounds", "backwards in rounds", scored.by_metric("backwards"), rounds=3))
assert studies.Run("rows", "small", "backwards", 0.5).key()
"""
STUDY = "my_study"
SHOWS = """
from panning_core import models
from panning_core import reporting
assert "small" in models.MODELS
study = reporting.Study("my_study", profile, jobs, device)
study.table(study.runs[["dataset", "model", "method", "seed"]], "runs", "All runs.")
"""
GRID = {
    "dataset": "rows",
    "model": "small",
    "method": ["backwards", "backwards-rounds"],
    "sparsity": 0.5,
    "seed": [0, 1],
    "epochs": 2,
    "per_class": 5,
}


@pytest.fixture
def mine(tmp_path):
    """A checkout with a study and a profile of the user's own, and a plugin in another folder."""
    made = Checkout(tmp_path / "check out").core()
    shutil.copy(ROOT / "run_all.sh", made.root)
    made.notebook(STUDY, PARAMETERS, SHOWS)
    made.profile({STUDY: {"grid": [GRID]}}, "mine")
    folder = tmp_path / "else where"
    folder.mkdir()
    (folder / "beside.py").write_text("WIDTH = 5\n")
    (folder / "my_models.py").write_text(PLUGIN)
    return made, folder


def rows_of(made):
    return Ledger(made.root / "results" / "mine" / STUDY / "runs.jsonl").rows()


def test_own_network_data_metric_method_study_and_profile_from_the_shell(mine):
    """Two workers, then the notebook; the plugin lies elsewhere and is named relative to where the
    user is."""
    made, folder = mine
    command = made.command("-c", "")
    environment = command["env"] | {
        "VIRTUAL_ENV": str(folder),
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", str(made.root / "run_all.sh"), "mine", "--plugin=my_models.py", "--jobs", "2"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = rows_of(made)
    assert [
        (row["run"]["method"], row["run"].get("seed", 0))
        for row in sorted(rows, key=lambda row: row["key"])
    ] and len(rows) == 4
    assert {row["run"]["dataset"] for row in rows} == {"rows"} and all(
        row["metrics"]["kept_weights"] == round(0.5 * 45) for row in rows
    )
    digest = plugins.hashlib.sha256((folder / "my_models.py").read_bytes()).hexdigest()[:12]
    assert all(row["provenance"]["plugins"] == {"my_models.py": digest} for row in rows)
    assert (made.root / "results" / "mine" / STUDY / "runs.md").exists()


@pytest.mark.parametrize(
    "text, says",
    [
        (
            "x = 1\nraise RuntimeError('two\\nlines')\n",
            r"plugin .*bad\.py, line 2: RuntimeError: two lines",
        ),
        ("x = (\n", r"plugin .*bad\.py, line 1: SyntaxError: "),
        ("import nothing_of_this_name\n", r"plugin .*bad\.py, line 1: ModuleNotFoundError"),
        ("import sys\n\nsys.exit(3)\n", r"plugin .*bad\.py, line 3: SystemExit: 3"),
        (b"\xff\xfe\x00", r"plugin .*bad\.py.*: (SyntaxError|UnicodeDecodeError)"),
        (
            None,
            r"plugin .*bad\.py can not be read \(No such file or directory\); it must be a Python "
            r"file",
        ),
    ],
)
def test_a_plugin_that_does_not_run_is_one_sentence(text, says, tmp_path, monkeypatch):
    monkeypatch.setenv(plugins.VARIABLE, "")
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for _ in range(2):  # it is named again, not taken for loaded
        with pytest.raises(UserError, match=f"^{says}[^\n]*$"):
            plugins.load_plugins([str(path)])
    assert path not in plugins.PLUGINS and os.environ[plugins.VARIABLE] == ""
    monkeypatch.setenv(plugins.VARIABLE, str(path))
    with pytest.raises(UserError, match=says):
        studies.profile("quick")


@pytest.mark.parametrize(
    "command", [["sweep", "03_sparsity_sweep"], ["run"], ["verify"], ["network", "x"], ["lab"]]
)
def test_commands_take_a_plugin(command, tmp_path, monkeypatch):
    path = tmp_path / "bad.py"
    path.write_text("1 / 0\n")
    monkeypatch.setenv(plugins.VARIABLE, "")
    with pytest.raises(
        UserError, match=f"plugin {path}, line 1: ZeroDivisionError: division by zero"
    ):
        main([*command, "--plugin", str(path)])


def test_a_broken_plugin_of_the_environment_is_one_sentence(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("1 / 0\n")
    done = subprocess.run(
        [sys.executable, "-m", "panning_core", "sweep", "03_sparsity_sweep"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), plugins.VARIABLE: str(path)},
    )
    assert (done.returncode, done.stderr) == (
        2,
        f"error: plugin {path}, line 1: ZeroDivisionError: division by zero\n",
    )


@pytest.fixture
def tables(monkeypatch):
    """What a test adds to tables goes again."""
    saved = {place: (dict(table), dict(table.known)) for place, table in plugins.TABLES.items()}
    monkeypatch.setenv(plugins.VARIABLE, "")
    yield plugins.TABLES
    for place, (entries, known) in saved.items():
        table = plugins.TABLES[place]
        table.clear()
        table.update(entries)
        table.known = known
    plugins.PLUGINS.clear()
    plugins.receive.cache_clear()


def test_a_plugin_is_loaded_once_and_named_to_others(tables, tmp_path):
    path = tmp_path / "counts.py"
    path.write_text(
        "from panning_core import models\nmodels.MODELS['counted'] = "
        "models.lenet300\nprint('loaded')\n"
    )
    plugins.load_plugins([str(path)])
    plugins.load_plugins([str(path)])
    plugins.load_plugins()
    assert os.environ[plugins.VARIABLE] == str(path) and plugins.PLUGINS.keys() == {path}
    assert "counted" in models.MODELS and plugins.additions() == b""  # every process has it


def test_the_tables_that_a_user_may_add_to():
    assert {
        "panning_core." + name
        for name in (
            "models.MODELS",
            "models.INITS",
            "data.DATASETS",
            "metrics.METRICS",
            "masks.SCOPES",
            "methods.registry.METHODS",
            "pruning.SCHEDULES",
            "training.RECIPES",
        )
    } <= plugins.TABLES.keys()
    assert not any(table.added() for table in plugins.TABLES.values())


def test_what_a_session_adds_arrives(tables):
    models.MODELS["mine"] = lambda shape, classes: models.lenet300(shape, classes)
    packed = plugins.additions()
    del models.MODELS["mine"]
    plugins.receive(packed)
    assert models.build("mine", (1, 4, 4), 3, seed=0)
    assert plugins.additions() and pickle.loads(packed).keys() == {"panning_core.models.MODELS"}


def test_what_can_not_be_sent_or_read_is_one_sentence(tables):
    lock = threading.Lock()
    models.MODELS["locked"] = lambda shape, classes: lock
    with pytest.raises(
        UserError,
        match="'locked' can not be sent to other processes .*; put it into a file for --plugin",
    ):
        list(workers.spread(str, [[1]], 2))
    assert [found for _, found in workers.spread(len, [[1]], 1)] == [1]
    for bad in (b"junk", pickle.dumps({"panning_core.nothing.MODELS": {"a": 1}}), pickle.dumps(3)):
        with pytest.raises(
            UserError,
            match="a worker can not read what this session has added to a table .*; put it into",
        ):
            plugins.receive(bad)


def test_a_data_set_that_is_registered_anew_is_read_anew(tables):
    def make(value):
        x = np.full((40, 3), 0.0) + np.arange(40)[:, None] + value
        return lambda: (x, np.arange(40) % 2, x, np.arange(40) % 2)

    data.DATASETS["changing"] = make(0)
    first = data.load("changing")
    assert data.load("changing") is first
    data.DATASETS["changing"] = make(1000)
    assert data.load("changing").fingerprint != first.fingerprint
    data.DATASETS["changing"] = lambda: first
    assert data.load("changing") is first


@pytest.mark.parametrize(
    "read, says",
    [
        (lambda: 1 / 0, "the data set own can not be read: ZeroDivisionError: division by zero"),
        (
            lambda: None,
            "the data set own gives None; it must give images and labels of train and test, or "
            "data.Splits",
        ),
        (lambda: (1, 2, 3), "the data set own gives"),
        (lambda: ([[1.0]], [0], [[1.0]], [0]), "own: one training image"),
    ],
)
def test_a_data_set_that_does_not_come_is_one_sentence(tables, read, says):
    data.DATASETS["own"] = read
    with pytest.raises(UserError, match=says):
        data.load("own")


@pytest.mark.parametrize(
    "make, says",
    [
        (
            lambda shape, classes: 1 / 0,
            r"own can not be made for inputs \[8\] and 3 classes: ZeroDivisionError: division by "
            r"zero",
        ),
        (lambda shape, classes: None, "own of models.MODELS gives None; it must give an nn.Module"),
    ],
)
def test_a_network_that_is_none_is_one_sentence(tables, make, says):
    models.MODELS["own"] = make
    with pytest.raises(UserError, match=says):
        models.build("own", (8,), 3, seed=0)


@pytest.mark.parametrize("name", ["lenet5", "vgg11", "resnet20"])
def test_convolutions_on_rows_are_one_sentence(name):
    with pytest.raises(UserError, match=r"convolutions need images .*, got rows \[8\]"):
        models.build(name, (8,), 3, seed=0)
    assert models.build("lenet300", (8,), 3, seed=0).fc1.in_features == 8


SCRIPT = """
import sys
from functools import partial
from torch import nn
from panning_core import metrics, models, studies
from panning_core.experiments.workers import spread
import helper
models.MODELS["mine"] = helper.small
models.MODELS["of the script"] = lambda s, k: nn.Sequential(nn.Flatten(), nn.Linear(64, k))
metrics.METRICS["first"] = lambda model, mask, batch, generator=None: {
    name: -w.detach().cumsum(0) for name, w in models.prunable(model).items()}
if __name__ == "__main__":
    work = partial(studies.perform, device="cpu")
    names = "mine", "of the script"
    tasks = [[studies.Run("digits", name, "first", 0.5, epochs=1)] for name in names]
    found = [{task[0].model: lines[0]["metrics"]["test_accuracy"]
              for task, lines in spread(work, tasks, jobs)} for jobs in (1, 2)]
    assert found[0].keys() == set(names) and found[0] == found[1], found
"""


def test_a_script_that_registers_by_itself_has_the_same_with_two_workers(tmp_path):
    """Its own helper module too, which the workers would not find."""
    (tmp_path / "helper.py").write_text(
        "from torch import nn\ndef small(s, k): return nn.Sequential(nn.Flatten(), nn.Linear(s[0] "
        "* s[1] * s[2], 9), nn.ReLU(), nn.Linear(9, k))\n"
    )
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def test_every_table_takes_part_in_a_run(tables):
    """A scope, a schedule, an initialisation and a recipe of one's own are names of a run like all
    others."""
    masks.SCOPES["own"] = masks.SCOPES["global"]
    pruning.SCHEDULES["own"] = pruning.SCHEDULES["linear"]
    models.INITS["own"] = models.INITS["panning"]
    metrics.METRICS["own"] = metrics.magnitude
    run = studies.Run(
        "digits",
        "lenet300",
        "own",
        0.9,
        init="own",
        scope="own",
        schedule="own",
        rounds=2,
        epochs=0,
    )
    right = studies.Run(
        "digits",
        "lenet300",
        "magnitude",
        0.9,
        init="panning",
        schedule="linear",
        rounds=2,
        epochs=0,
    )
    assert studies.execute(run)["layers"] == studies.execute(right)["layers"]
