"""What README and guides tell a reader to type runs, with the Python that they name; each number of
the README is that of the results.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import yaml

from panning_core import ROOT, masks, plugins
from panning_core.analysis import networks
from panning_core.experiments import studies
from panning_core.reporting import front, published

NOTEBOOKS = ROOT / "notebooks"
GUIDES = {path.stem: path for path in sorted(NOTEBOOKS.glob("guide_*"))}


def prose(path):
    """The text of a Markdown file, or of a notebook's Markdown cells."""
    if path.suffix == ".md":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


TEXTS = {"README": ROOT / "README.md", **GUIDES}
TEXTS = {name: (path, prose(path)) for name, path in TEXTS.items()}
README = TEXTS["README"][1]


def blocks(text, *languages):
    return [
        block for each in languages for block in re.findall(rf"```{each}\n(.*?)```", text, re.S)
    ]


COMMANDS = [
    line
    for _, text in TEXTS.values()
    for block in blocks(text, "bash", "sh")
    for line in block.splitlines()
]
PYTHON = "./run_all.sh python "


def laboratory(*words, **how):
    """What ``./run_all.sh`` does with these words once it has found its Python."""
    return subprocess.run(
        [sys.executable, "-m", "panning_core", *words], capture_output=True, text=True, **how
    )


# --- the README ---


def test_it_is_short():
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("name", TEXTS)
def test_every_line_for_python_says_which(name):
    for block in blocks(TEXTS[name][1], "bash", "sh"):
        for line in block.splitlines():
            if re.search(r"\b(python|dask|pip) ", line):
                assert line.startswith(PYTHON) or "source .venv/bin/activate\n" in block, line


def test_the_lines_of_python_run_as_it_says(tmp_path):
    (example,) = blocks(README, "python")
    (tmp_path / "try.py").write_text(example + "\nassert log.validation_accuracy.iloc[-1] > 0.5\n")
    assert "`./run_all.sh python try.py`" in README
    done = laboratory("python", "try.py", cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "fc1" in done.stdout, done.stderr


def test_one_run_from_the_shell(tmp_path):
    commands = {line for line in COMMANDS if line.startswith(f"{PYTHON}-m panning_core run")}
    assert len(commands) == 3
    for line in commands:
        words = [re.sub("epochs=.*", "epochs=1", word) for word in line.split()[5:]]
        if "--plugin" in words:
            (plugin,) = blocks(TEXTS["guide_own_network_and_data"][1], "py")
            (tmp_path / "my_models.py").write_text(plugin)
        done = laboratory("run", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        line = json.loads(done.stdout)
        assert line["run"]["epochs"] == 1 and 0 < line["metrics"]["test_accuracy"] <= 1
        assert "weights kept" in done.stderr


def test_the_tallies_are_those_of_the_results():
    found = pd.concat(
        [
            pd.read_csv(path).assign(study=path.parent.name, place="")
            for path in sorted((ROOT / "results" / "paper").glob("*/verdicts.csv"))
        ],
        ignore_index=True,
    )
    judged = found[found.verdict != "not judged"].verdict
    claims = published.table(found)
    assert front.does_it_win(claims) in README
    twelve = published.tally(claims.word)
    assert f"Of the twelve published claims {twelve}." in README
    assert f"{len(judged)} verdicts, of which {published.tally(judged)}:" in README


@pytest.mark.parametrize(
    "name, link",
    [(name, link) for name in TEXTS for link in re.findall(r"\]\(([^)#]+)\)", TEXTS[name][1])],
)
def test_links_lead_somewhere(name, link):
    assert link.startswith("https://") or (TEXTS[name][0].parent / link).exists()


def test_every_paper_that_it_names_has_its_address():
    told = README.partition("## References")[2].partition("To cite")[0]
    papers = re.findall(r"\d{4}: (.)", told)
    assert len(papers) == len(re.findall(r"\]\(https://arxiv.org/abs/\d{4}\.\d{5}\)", told)) > 12
    assert set(papers) == {"["} and "@software{" in README


# --- commands ---


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c.startswith("./run_all.sh") and not c.startswith(PYTHON)],
)
def test_shell_commands_are_understood(command, tmp_path):
    """With --help added the command is parsed up to there and nothing runs; what follows `test` is
    pytest's.
    """
    _, *arguments = command.split()
    if arguments[:1] == ["test"]:
        return
    if "--plugin" in arguments:
        (tmp_path / "my_models.py").write_text("")
    done = subprocess.run(
        ["bash", str(ROOT / "run_all.sh"), *arguments, "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_sweep_commands_are_understood():
    """Their study is in the profile; with no jobs allowed one is refused at the last check before
    the work.
    """
    commands = [c[c.index("python") :] for c in COMMANDS if "python -m panning_core sweep" in c]
    assert len(commands) == 3
    for words in (command.split() for command in commands if "my_study" not in command):
        assert words[4] in studies.profile(words[6])
    done = laboratory(*commands[0].split()[3:-1], "0")
    assert done.returncode == 2 and done.stderr == (
        "error: argument --jobs: '0' is no whole number from 1; see ./run_all.sh --help\n"
    )


def test_commands_for_the_night_and_a_cluster_are_understood(tmp_path):
    handed = [c.removeprefix(PYTHON).split() for c in COMMANDS if c.startswith(PYTHON)]
    (repair,) = [words[2:] for words in handed if "ledger" in words]
    (faults,) = [words for words in handed if "tests.faults" in words]
    (tmp_path / "runs.jsonl").write_text('not a run\n{"key": "a", "run": {}, "metrics": {}}\n')
    done = laboratory(repair[0], str(tmp_path / "runs.jsonl"), *repair[2:])
    assert done.returncode == 0 and "took out line 1" in done.stdout
    dask = [["-m", *line.split()] for line in COMMANDS if line.startswith("dask ")]
    assert len(dask) == 2
    for command in (faults, *dask):
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
    (file,) = {c.split()[-1] for c in COMMANDS if "panning_core network" in c}
    model, mask = networks.rebuild(networks.load(ROOT / file))
    assert (
        masks.count(mask) == masks.count(masks.effective(model, mask)) <= 399
        and masks.size(mask) == 266_200
    )


# --- guides ---


def test_the_plugin_and_the_profile_run(tmp_path, monkeypatch):
    """With fewer epochs; the commands are understood where such a profile is."""
    (plugin,) = blocks(TEXTS["guide_own_network_and_data"][1], "py")
    (profile,) = blocks(TEXTS["guide_own_study"][1], "yaml")
    (grid,) = yaml.safe_load(profile)["my_study"]["grid"]
    for place in ("panning_core.models.MODELS", "panning_core.data.DATASETS"):
        for name in ("small", "rows"):
            monkeypatch.setitem(plugins.TABLES[place], name, None)  # goes again afterwards
            del plugins.TABLES[place][name]
    exec(compile(plugin, "my_models.py", "exec"), {})
    runs = studies.expand([grid])
    found = studies.execute(dataclasses.replace(runs[0], epochs=1))
    assert len(runs) == 12 and found["kept_weights"] == 5600 and found["layers"]["4"][0] == 400


def test_the_three_cells_of_a_study_give_tables_and_a_verdict(tmp_path):
    """As the guide has it, with five seeds of the digits and one epoch."""
    for name in ("panning_core", "run_all.sh", "requirements.txt", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    grid = "{dataset: digits, model: lenet300, method: [snip, random], sparsity: 0.9, "
    grid = f"my_study:\n  grid:\n    - {grid} seed: [0, 1, 2, 3, 4], epochs: 3}}\n"
    (tmp_path / "notebooks" / "profiles" / "mine.yaml").write_text(grid)
    cells = [
        nbformat.v4.new_code_cell(block) for block in blocks(TEXTS["guide_own_study"][1], "python")
    ]
    cells[0].metadata["tags"] = ["parameters"]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Mine"), *cells])
    made.metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python"
    }  # fmt: skip
    nbformat.write(made, tmp_path / "notebooks" / "my_study.ipynb")
    (changed,) = [c for c in COMMANDS if c.startswith("./run_all.sh mine epochs=")]
    words = changed.split()[1:3] + ["--jobs", "1"]
    env = {name: value for name, value in os.environ.items() if name != "PANNING_RESULTS"}
    done = laboratory("run", *words, cwd=tmp_path, env=env | {"PYTHONPATH": str(tmp_path)})
    folder = tmp_path / "results" / "mine,epochs=5" / "my_study"
    assert done.returncode == 0, done.stderr
    assert (folder / "accuracy.csv").exists()
    assert pd.read_csv(folder / "verdicts.csv").claim.item() == "SNIP is better than chance."
    lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert {line["run"]["epochs"] for line in lines} == {5} and len(lines) == 10


#: what a reader of a guide must see in the end
SEEN = {
    "guide_add_your_own_metric": "balanced-snip",
    "guide_own_network_and_data": "on a path:",
    "guide_own_study": "SNIP is better than chance: holds",
    "guide_ledger_to_latex": "\\toprule",
    "guide_take_it_with_you": "fc1.weight_orig",
}


@pytest.mark.parametrize("name", [name for name in GUIDES if GUIDES[name].suffix == ".ipynb"])
def test_a_guide_runs_where_only_the_package_is(name, tmp_path):
    """From top to bottom as a reader would, in a folder without a checkout, as after pip."""
    papermill = pytest.importorskip("papermill")
    shutil.copytree(ROOT / "panning_core", tmp_path / "site" / "panning_core")
    given = {"epochs": 5, "seeds": 2} if name == "guide_add_your_own_metric" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "site"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("PANNING_RESULTS", raising=False)
        out = papermill.execute_notebook(
            str(GUIDES[name]),
            str(tmp_path / "guide.ipynb"),
            given,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(tmp_path),
            extra_arguments=["--log-level=ERROR"],
        )
    shown = "".join(str(output) for cell in out.cells for output in cell.get("outputs", []))
    assert SEEN[name] in shown.replace("\\\\", "\\")
