"""The README's commands and code run, and the guide works: a reader finds out before we do
otherwise.
"""

import dataclasses
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml

from panning_core import ROOT, masks, plugins
from panning_core.analysis import exchange, networks
from panning_core.experiments import studies

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, own_agent, variants, gated = [
        block for block in blocks("python") if "SLURMCluster" not in block
    ]  # of which test_workers.py tries what it can
    scope = {}
    exec(compile(first, "README.md", "exec"), scope)
    assert "fc1" in capsys.readouterr().out
    assert scope["log"].validation_accuracy.iloc[-1] > 0.5
    exec(compile(own_agent, "README.md", "exec"), scope)
    assert len(scope["trace"]) == 20 and (tmp_path / "mine.npz").exists()
    exec(compile(variants, "README.md", "exec"), scope)
    model, mask = scope["model"], scope["mask"]
    assert masks.count(mask) <= round(0.01 * masks.size(mask)) and masks.count(
        masks.effective(model, mask)
    ) == masks.count(mask)
    exec(compile(gated, "README.md", "exec"), scope)
    assert masks.count(scope["mask"]) <= 502 and scope["log"].validation_accuracy.iloc[-1] > 0.5


def test_the_plugin_and_the_profile_run(tmp_path, monkeypatch):
    """With fewer epochs; the commands are understood where such a profile is."""
    _, plugin = blocks("py")
    (grid,) = yaml.safe_load(blocks("yaml")[0])["my_study"]["grid"]
    for place in ("panning_core.models.MODELS", "panning_core.data.DATASETS"):
        for name in ("small", "rows"):
            monkeypatch.setitem(plugins.TABLES[place], name, None)  # goes again afterwards
            del plugins.TABLES[place][name]
    exec(compile(plugin, "my_models.py", "exec"), {})
    runs = studies.expand([grid])
    found = studies.execute(dataclasses.replace(runs[0], epochs=1))
    assert len(runs) == 12 and found["kept_weights"] == 5600 and found["layers"]["4"][0] == 400

    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    (tmp_path / "notebooks" / "profiles" / "mine.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "my_models.py").write_text(plugin)
    (tmp_path / "panning_core").mkdir()
    for name in ("run_all.sh", "requirements.txt", "pyproject.toml", "panning_core/commands.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for command in [
        line
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("./run_all.sh")
    ]:
        done = subprocess.run(
            ["bash", *command.split(), "--help"], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_masks_are_exchanged(tmp_path, monkeypatch, lenet300):
    monkeypatch.chdir(tmp_path)
    exports, mask = (
        [],
        {name: m & (torch.rand(m.shape) < 0.5) for name, m in masks.ones(lenet300).items()},
    )
    monkeypatch.setattr(
        exchange, "save_onnx", lambda *seen, **how: exports.append((seen[2], how))
    )  # test_exchange.py does it
    exec(compile(blocks("py")[0], "README.md", "exec"), scope := {"model": lenet300, "mask": mask})
    assert all(torch.equal(m, mask[name]) for name, m in scope["mask"].items()) and exports == [
        ("network.onnx", {"compact": True})
    ]


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("./run_all.sh")])
def test_shell_commands_are_understood(command):
    """With --help added the command is parsed up to there and nothing runs; what follows `test` is
    pytest's.
    """
    script, *arguments = command.split()
    if arguments[:1] == ["test"]:
        return
    done = subprocess.run(
        ["bash", str(ROOT / script), *arguments, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_sweep_command_is_understood():
    """Its study is in the profile; with no jobs allowed it is refused at the last check before the
    work.
    """
    commands = [c[c.index("python") :] for c in COMMANDS if "python -m panning_core sweep" in c]
    assert len(commands) == 2 and all(
        c.split()[4] in studies.profile(c.split()[6]) for c in commands
    )
    arguments = commands[0].split()[1:]
    done = subprocess.run([sys.executable, *arguments[:-1], "0"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        "error: argument --jobs: '0' is no whole number from 1; see ./run_all.sh --help\n"
    )


def test_commands_for_the_night_and_a_cluster_are_understood(tmp_path):
    repair, faults = (
        line.split()[1:]
        for line in COMMANDS
        if line.startswith(("python -m panning_core ledger", "python -m tests.faults"))
    )
    (tmp_path / "runs.jsonl").write_text('not a run\n{"key": "a", "run": {}, "metrics": {}}\n')
    done = subprocess.run(
        [sys.executable, *repair[:3], str(tmp_path / "runs.jsonl"), *repair[4:]],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and "took out line 1" in done.stdout
    for command in (
        faults,
        *(["-m", *line.split()] for line in COMMANDS if line.startswith("dask ")),
    ):
        help_ = subprocess.run(
            [sys.executable, *command[: 2 if command == faults else 3], "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert help_.returncode == 0 and all(
            option in help_.stdout for option in command if option.startswith("--")
        )


def test_the_network_of_399_weights_is_there():
    (command,) = [c for c in COMMANDS if c.startswith("python -m panning_core network")]
    model, mask = networks.rebuild(networks.load(ROOT / command.split()[-1]))
    assert (
        masks.count(mask) == masks.count(masks.effective(model, mask)) <= 399
        and masks.size(mask) == 266_200
    )


def test_the_tally_of_claims_is_that_of_the_report():
    found = pd.concat(
        [pd.read_csv(path) for path in (ROOT / "results" / "paper").glob("*/verdicts.csv")]
    ).verdict.value_counts()
    told = re.search(
        r"Of (\d+) that are judged, (\d+) hold, (\d+) hold in part, (\d+) are no worse, (\d+)"
        r" fail and (\d+) are undecided",
        README,
    )
    words = ("holds", "holds in part", "no worse", "fails", "undecided")
    assert list(map(int, told.groups())) == [
        found.reindex(words).sum(),
        *(found.get(word, 0) for word in words),
    ]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_guide_runs(tmp_path, monkeypatch):
    """Add your own metric, from top to bottom as a reader would; its metric must not stay
    behind.
    """
    papermill = pytest.importorskip("papermill")
    out = papermill.execute_notebook(
        str(ROOT / "notebooks" / "guide_add_your_own_metric.ipynb"),
        str(tmp_path / "guide.ipynb"),
        {"epochs": 5, "seeds": 2},
        kernel_name="python3",
        progress_bar=False,
        extra_arguments=["--log-level=ERROR"],
    )
    shown = [str(output) for cell in out.cells for output in cell.get("outputs", [])]
    assert any("balanced-snip" in text and "SNIP" in text for text in shown)
