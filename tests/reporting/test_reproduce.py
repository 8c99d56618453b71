"""The batch runner: bad notebooks are named before any work, a failure is never taken for success,
and report and site follow.
"""

import json
import re

import pytest

import panning_core
from panning_core import ROOT
from panning_core.errors import UserError
from panning_core.experiments import profiles, studies
from panning_core.reporting import notebooks
from panning_core.reporting import study as showing
from tests.checkout import PARAMETERS, SHOWN, Checkout, state

GIVEN = dict.fromkeys(["profile", "jobs", "device"])
STUDIES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PROFILES = ("quick", "paper")


# --- what is committed ---


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_a_committed_notebook_has_no_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells
    )
    given = sum("parameters" in cell["metadata"].get("tags", []) for cell in cells)
    assert given == 1 or (given == 0 and path.stem.startswith("guide_"))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_committed_profile_expands_and_suits_its_notebooks(profile):
    sections = studies.profile(profile)
    assert sections.keys() == {path.stem for path in STUDIES}
    for path in STUDIES:
        section = sections[path.stem]
        notebooks.check_notebook(path, {**section.get("parameters", {}), **GIVEN})
        grid = studies.runs(path.stem, profile)
        assert len(grid) == len(set(grid)) and bool(grid) == (path.stem != notebooks.OVERVIEW)


# --- check_notebook ---


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout that the runner in this process takes for its own."""
    made = Checkout(tmp_path / "checkout")
    monkeypatch.setattr(panning_core, "ROOT", made.root)  # of panning_core.results
    monkeypatch.setattr(profiles, "ROOT", made.root)
    monkeypatch.setattr(notebooks, "ROOT", made.root)
    monkeypatch.delenv("PANNING_RESULTS", raising=False)
    return made


def test_a_notebook_with_its_parameters_passes(checkout):
    notebooks.check_notebook(
        checkout.notebook("01_a", "# Title", PARAMETERS + "\nepochs = 3"), {**GIVEN, "epochs": 5}
    )


@pytest.mark.parametrize("tags", [(), ("parameter",)])
def test_a_notebook_without_a_parameters_cell_is_named(checkout, tags):
    path = checkout.notebook("01_a", PARAMETERS, tags=tags)
    with pytest.raises(
        UserError,
        match=(
            "01_a.ipynb has no cell tagged 'parameters'; tag the cell that assigns device, jobs,"
            " profile"
        ),
    ):
        notebooks.check_notebook(path, GIVEN)


def test_an_unknown_parameter_is_named_with_what_is_near(checkout):
    path = checkout.notebook("01_a", "epochs = 3\nprofile = 'tiny'")
    with pytest.raises(
        UserError, match="unknown parameter of 01_a.ipynb 'epoch'; did you mean 'epochs'"
    ):
        notebooks.check_notebook(path, {"profile": "tiny", "epoch": 5})


@pytest.mark.parametrize("content", [None, "", "{", "{}", "[]", '{"cells": [1]}', '{"cells": '])
def test_what_is_not_a_notebook_is_named(checkout, content):
    path = checkout.root / "notebooks" / "01_a.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="01_a.ipynb is not a notebook"):
        notebooks.check_notebook(path, GIVEN)


@pytest.mark.parametrize(
    "fault, message",
    [
        ({"only": "01_b"}, "unknown study in profile tiny '01_b'; did you mean '01_a'"),
        ({"profile_name": "tinny"}, "unknown profile 'tinny'; did you mean 'tiny'"),
    ],
)
def test_an_unknown_study_or_profile_is_named_before_any_work(checkout, fault, message):
    checkout.notebook("01_a", PARAMETERS)
    checkout.profile({"01_a": {}})
    with pytest.raises(UserError, match=re.escape(message)):
        notebooks.reproduce(**{"profile_name": "tiny", **fault})
    assert not (checkout.root / "results").exists()


@pytest.mark.parametrize(
    "section, message",
    [
        ({"parameters": {"epoch": 3}}, "unknown parameter"),
        ({"grid": [{"dataset": "digits", "model": "lenet"}]}, "unknown model"),
    ],
)
def test_a_fault_of_the_last_study_shows_before_the_first_has_run(
    checkout, monkeypatch, section, message
):
    for name in ("01_a", "02_b"):
        checkout.notebook(name, PARAMETERS)
    checkout.profile({"01_a": {}, "02_b": section})
    ran = []
    monkeypatch.setattr(notebooks, "run_study", lambda *arguments: ran.append(arguments))
    with pytest.raises(UserError, match=message):
        notebooks.reproduce("tiny")
    assert ran == []


# --- running ---


def test_a_profile_from_ledger_to_report_with_one_study_failing_first(tmp_path):
    """The command as a user types it, twice: one study fails; mended, it succeeds, and nothing of
    the other is done again.
    """
    made = Checkout(tmp_path / "check out").core()
    made.notebook("00_fails", "# A study that fails", PARAMETERS, "# Here it comes", "1 / 0")
    made.notebook("01_works", "# A study that works", PARAMETERS, SHOWN)
    run = {
        "dataset": "digits",
        "model": "lenet300",
        "method": "random",
        "sparsity": 0.5,
        "epochs": 1,
    }
    made.profile({"00_fails": {}, "01_works": {"grid": [{**run, "seed": [0, 1]}]}})
    results = made.root / "results" / "tiny"
    command = ("-m", "panning_core", "run", "tiny", "--jobs", "1")

    first = made.run(*command)
    assert first.returncode == 1, first.stderr
    assert (
        "error: 00_fails.ipynb failed in cell" in first.stderr
        and "ZeroDivisionError: division by zero" in first.stderr
    )
    assert sorted(path.name for path in (results / "00_fails").iterdir()) == [
        "00_fails.failed.ipynb"
    ]
    assert re.search(r"^00_fails +\d+ +FAILED$", first.stdout, re.M) and re.search(
        r"^01_works +\d+ +holds$", first.stdout, re.M
    )
    assert (
        "The report is written when every study" in first.stdout
        and not (results / "README.md").exists()
    )
    made_pages = {path.name for path in (results / "html").iterdir()}
    assert {"index.html", "01_works.html", "01_works.runs.html", "01_works.stamp"} <= made_pages
    assert not [name for name in made_pages if name.startswith("00_fails")]
    works = {path.name for path in (results / "01_works").iterdir()}
    assert works == {
        "runs.jsonl",
        "01_works.ipynb",
        "accuracy.png",
        "seeds.csv",
        "seeds.md",
        "verdicts.csv",
    }
    assert '"tiny"' in (results / "01_works" / "01_works.ipynb").read_text()
    before = state(results / "01_works")

    made.notebook("00_fails", "# A study that fails", PARAMETERS, "# Here it comes", "1 / 1")
    second = made.run(*command)
    assert second.returncode == 0, second.stderr
    assert {
        path: found for path, found in state(results / "01_works").items() if path in before
    } == before and made.ledger("01_works").read_text().count("\n") == 2
    assert sorted(path.name for path in (results / "00_fails").iterdir()) == [
        "00_fails.ipynb",
        "README.md",
    ]
    assert second.stdout.splitlines()[-2:] == [
        "report: results/tiny/README.md",
        "site: results/tiny/html/index.html",
    ]

    listed = (results / "studies.md").read_text()
    assert "| [00 fails](00_fails/README.md) | A study that fails |  |" in listed
    assert "| [01 works](01_works/README.md) | A study that works | ✔ 1 |" in listed
    assert "# Here it comes" in (results / "00_fails" / "README.md").read_text()
    text = (results / "01_works" / "README.md").read_text()
    assert "\n# A study that works" in text and "![Accuracy of two seeds.](accuracy.png)" in text
    assert (results / "01_works" / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert "> **Claim** (Somebody 2020). Digits can be learned.\n>\n> **✔ holds.** n = 5." in text
    assert "*Accuracy of two seeds.*<br>\n<sub>2 runs of 01_works · code " in text
    assert " · [01_works/runs.jsonl](runs.jsonl)</sub>" in text
    assert (results / "01_works" / "seeds.md").read_text() in text
    assert (results / "html" / "00_fails.html").exists() and "data:image/png;base64," in (
        results / "html" / "01_works.html"
    ).read_text()


@pytest.mark.parametrize(
    "cell, reason",
    [
        ("1 / 0", "in cell 3: ZeroDivisionError"),
        ("import os; os._exit(1)", "failed: Kernel died"),
    ],
)
def test_an_older_success_does_not_pass_for_a_failure(checkout, cell, reason):
    """Nor does a dead kernel escape as a traceback."""
    target = checkout.root / "results" / "tiny" / "01_a" / "01_a.ipynb"
    notebooks.execute(checkout.notebook("01_a", "profile = 1", "1 / 1"), target, {"profile": 2})
    assert target.exists()
    with pytest.raises(UserError, match=reason):
        notebooks.execute(checkout.notebook("01_a", "profile = 1", cell), target, {"profile": 2})
    assert [path.name for path in target.parent.iterdir()] == ["01_a.failed.ipynb"]


def test_a_notebook_that_was_stopped_or_robbed_runs_again_even_when_all_else_is_as_before(
    checkout, monkeypatch
):
    """Its tables may already be those of the change that was taken back, or have been deleted."""
    path, ran = checkout.notebook("01_a", PARAMETERS, "1"), []
    figure = checkout.root / "results" / "tiny" / "01_a" / "a.png"

    def execute(notebook, target, parameters):
        ran.append(path.read_text())
        if len(ran) == 2:
            raise KeyboardInterrupt
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            json.dumps(
                {
                    "cells": [
                        {
                            "outputs": [
                                {"data": {showing.MIME: {"file": figure.name}}},
                                {"name": "stderr"},
                            ]
                        },
                        {"source": "# Text"},
                    ]
                }
            )
        )
        figure.touch()

    monkeypatch.setattr(notebooks, "execute", execute)
    before = path.read_text()
    for text, times in (
        (before, 1),
        (before, 1),
        (before.replace('"1"', '"2"'), 2),
        (before, 3),
        (before, 3),
    ):
        path.write_text(text)
        try:
            notebooks.run_study("01_a", "tiny", {}, 1, "cpu")
        except KeyboardInterrupt:
            pass
        assert len(ran) == times
    figure.unlink()
    notebooks.run_study("01_a", "tiny", {}, 1, "cpu")
    assert len(ran) == 4 and figure.exists()


@pytest.mark.parametrize("change", ["notebook", "core", "ledger", "benchmark", "parameters"])
def test_a_stamp_is_of_everything_a_page_follows_from(checkout, change):
    checkout.core().notebook("01_a", PARAMETERS)
    ledger, section = checkout.ledger("01_a"), {"parameters": {"epochs": 1}}
    ledger.parent.mkdir(parents=True)
    ledger.write_text("a line")
    benchmark = checkout.root / "results" / "benchmarks" / "machine.json"
    benchmark.parent.mkdir(exist_ok=True)
    benchmark.write_text("{}")
    before = notebooks.stamp("01_a", "tiny", section)
    assert notebooks.stamp("01_a", "tiny", dict(section)) == before
    if change == "parameters":
        section = {"parameters": {"epochs": 2}}
    else:
        path = {
            "notebook": checkout.root / "notebooks" / "01_a.ipynb",
            "core": checkout.root / "panning_core" / "masks.py",
            "ledger": ledger,
            "benchmark": benchmark,
        }[change]
        path.write_text(path.read_text() + "\n")
    assert notebooks.stamp("01_a", "tiny", section) != before


def test_a_page_follows_from_the_ledgers_that_its_notebook_names(checkout):
    """Its own, of whatever kind, and those of the studies it reads."""
    checkout.core().notebook("02_b", PARAMETERS, 'showing.Study("01_a", profile)')
    stamps = [notebooks.stamp("02_b", "tiny", {})]
    for study, name, changes in (
        ("01_a", "runs.jsonl", True),
        ("03_c", "runs.jsonl", False),
        ("02_b", "runs.jsonl", True),
    ):
        ledger = studies.folder(study, "tiny") / name
        ledger.parent.mkdir(parents=True, exist_ok=True)
        ledger.write_text("a line")
        stamps.append(notebooks.stamp("02_b", "tiny", {}))
        assert (stamps[-1] != stamps[-2]) == changes, study


def test_the_overview_follows_from_the_others_verdicts(checkout):
    checkout.notebook(notebooks.OVERVIEW, PARAMETERS)
    before = notebooks.stamp(notebooks.OVERVIEW, "tiny", {})
    other = studies.folder("01_a", "tiny")
    other.mkdir(parents=True)
    (other / "verdicts.csv").write_text("claim,verdict,evidence\n")
    assert notebooks.stamp(notebooks.OVERVIEW, "tiny", {}) != before


def test_the_overview_runs_last_and_a_failure_stops_no_other(checkout, monkeypatch, capsys):
    for name in ("00_overview", "01_a", "02_b"):
        checkout.notebook(name, PARAMETERS)
    checkout.profile({"00_overview": {}, "01_a": {}, "02_b": {}})
    ran = []

    def run_study(study, *_):
        ran.append(study)
        if study == "01_a":
            raise UserError("a reason")

    monkeypatch.setattr(notebooks, "run_study", run_study)
    assert notebooks.reproduce("tiny") == 1
    assert ran == ["01_a", "02_b", "00_overview"]
    told = capsys.readouterr()
    assert told.err == "error: a reason\n" and told.out.count("FAILED") == 1
    ran.clear()
    assert notebooks.reproduce("tiny", only="02_b") == 0 and ran == ["02_b"]


def test_results_that_can_not_be_written_are_one_sentence(checkout, monkeypatch):
    (checkout.root / "file").write_text("not a folder")
    monkeypatch.setenv("PANNING_RESULTS", "file")
    checkout.notebook("01_a", PARAMETERS)
    checkout.profile({"01_a": {}})
    with pytest.raises(UserError, match="results can not be written to .*PANNING_RESULTS"):
        notebooks.reproduce("tiny")
