"""Tables, figures and verdicts: what they must name, and the line that says what they were made of."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from PIL import Image

import panning_core
from panning_core import report, studies
from panning_core.errors import UserError

LINE = {"commit": "a" * 40, "dirty": False, "versions": {"torch": "2.15.0+cu132"}, "device": "cpu", "finished": "2026-01-01", "data": {"title": "MNIST"}}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of the runs that ``lines`` gives it, in a folder of its own, in no notebook."""
    monkeypatch.setattr(panning_core, "ROOT", tmp_path)  # of panning_core.results
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.delenv("PANNING_RESULTS", raising=False)
    monkeypatch.setattr(report, "_display", lambda item, data: shown.append(item))
    monkeypatch.setattr(studies, "agents", lambda *_: [])
    shown = []

    def made(*origins):
        lines = [{"key": str(i), "run": {"dataset": "digits", "model": "lenet300", "seed": i}, "metrics": {}, "provenance": origin} for i, origin in enumerate(origins)]
        monkeypatch.setattr(studies, "sweep", lambda *_: lines)
        study = report.Study("01_a", "tiny")
        (study.folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        study.shown = shown
        return study

    return made


@pytest.mark.parametrize("origins, line", [
    ([LINE], "1 run of 01_a · code aaaaaaa · PyTorch 2.15.0 · cpu · MNIST"),
    ([{**LINE, "finished": "2026-01-02", "commit": "b" * 40}, {**LINE, "data": {"title": "digits"}}], "2 runs of 01_a · code aaaaaaa..bbbbbbb · PyTorch 2.15.0 · cpu · digits, MNIST"),
    ([{**LINE, "commit": commit, "dirty": commit[0] == "c", "finished": commit} for commit in ("a" * 40, "b" * 40, "c" * 40, "d" * 40)],
     "4 runs of 01_a · code aaaaaaa..ccccccc+..ddddddd · PyTorch 2.15.0 · cpu · MNIST"),
    ([{**LINE, "commit": None, "dirty": None}], "1 run of 01_a · code unknown · PyTorch 2.15.0 · cpu · MNIST"),
    ([], ""),
])
def test_a_source_says_how_many_runs_by_which_code_where_and_on_which_data(study, origins, line):
    assert study(*origins).source == (line, ("01_a/runs.jsonl",))


def test_toys_and_agents_belong_to_the_source(study):
    made = study(LINE)
    toy = {"key": "1", "run": {}, "metrics": {}, "provenance": {**LINE, "commit": "b" * 40, "finished": "2026-01-02"}}
    del toy["provenance"]["data"]
    (made.folder / "toys.jsonl").write_text(json.dumps(toy) + "\n" + json.dumps({**toy, "key": "2"}) + "\n")
    assert made.source == ("1 run, 2 toys of 01_a · code aaaaaaa..bbbbbbb · PyTorch 2.15.0 · cpu · MNIST", ("01_a/runs.jsonl", "01_a/toys.jsonl"))


def test_a_figure_says_itself_what_it_was_made_of_and_twice_the_same(study):
    made, written = study(LINE), []
    for _ in range(2):
        made.figure(plt.figure(figsize=(1, 1)), "empty", "Nothing.")
        written.append((made.folder / "empty.png").read_bytes())
    assert written[0] == written[1] and b"tEXtSource\0" in written[0]
    assert Image.open(made.folder / "empty.png").text == {"Source": made.source.line}
    assert made.shown[0] == {"kind": "figure", "file": "empty.png", "caption": "Nothing.", "provenance": made.source.line, "ledgers": ("01_a/runs.jsonl",)}


def test_a_table_of_another_studys_runs_names_those(study):
    made = study(LINE)
    made.table(pd.DataFrame({"a": [1]}), "numbers", "Numbers.", report.Source("5 runs", ("03_c/runs.jsonl",)))
    assert made.shown[0]["provenance"] == "5 runs" and made.shown[0]["ledgers"] == ("03_c/runs.jsonl",)


def test_a_benchmark_of_your_own_goes_before_the_committed_one(study, tmp_path, monkeypatch):
    machine = {"speed": {**LINE, "date": "2026-01-01", "processor": "a processor"}}
    for place, value in (("results", 1), ("elsewhere", 2)):
        folder = tmp_path / place / "benchmarks"
        folder.mkdir(parents=True)
        (folder / "speed.csv").write_text(f"ratio\n{value}\n")
        (folder / "machine.json").write_text(json.dumps(machine))
    frame, told, source = study(LINE).benchmark("speed")
    assert frame.ratio.item() == 1 and told == machine["speed"]
    assert source == ("benchmarks/speed.csv, measured on 2026-01-01 · code aaaaaaa · PyTorch 2.15.0 · a processor", ("../benchmarks/speed.csv",))
    monkeypatch.setenv("PANNING_RESULTS", "elsewhere")
    assert study(LINE).benchmark("speed")[0].ratio.item() == 2
    (tmp_path / "elsewhere" / "benchmarks" / "speed.csv").unlink()
    frame, _, source = study(LINE).benchmark("speed")
    assert frame.ratio.item() == 1 and source.files == ()  # no link from elsewhere into the checkout
    with pytest.raises(UserError, match="memory.csv is missing; './run_all.sh bench --only memory' measures it"):
        study(LINE).benchmark("memory")


GIVEN = {"paper": "Somebody 2020", "n": 3, "interval": "+1 point [+0, +2]", "figure": "numbers"}


def test_a_verdict_lies_in_its_file_with_all_that_the_overview_shows(study):
    made = study(LINE)
    made.figure(plt.figure(figsize=(1, 1)), "numbers", "Nothing.")
    made.table(pd.DataFrame({"a": [1]}), "numbers", "Numbers.")
    made.table(pd.DataFrame({"a": [1]}), "others", "Others.")
    made.verdict("It is so.", "holds", "n = 3.", **GIVEN)
    made.verdict("It is more so.", "fails", "n = 3.", **{**GIVEN, "figure": "others"})
    found = report.verdicts("01_a", "tiny")
    assert list(found.columns) == report.COLUMNS
    assert list(found.figure) == ["numbers.png", "others.md"]  # of two with a name the figure
    assert found.iloc[0].to_dict() == {"claim": "It is so.", "verdict": "holds", "evidence": "n = 3.", **GIVEN, "figure": "numbers.png"}


@pytest.mark.parametrize("fault, message", [({"verdict": "hold"}, "unknown verdict 'hold'; did you mean 'holds'"), ({"figure": "number"}, "unknown figure or table 'number'; did you mean 'numbers'")])
def test_a_verdict_that_is_none_or_that_nothing_shows_is_refused(study, fault, message):
    made = study(LINE)
    made.table(pd.DataFrame({"a": [1]}), "numbers", "Numbers.")
    with pytest.raises(UserError, match=message):
        made.verdict(**{"claim": "It is so.", "verdict": "holds", "evidence": "n = 3.", **GIVEN, **fault})
    assert report.verdicts("01_a", "tiny").empty


def test_a_link_of_a_table_leads_to_the_same_place_from_the_report(tmp_path):
    folder = tmp_path / "tiny" / "00_overview"
    folder.mkdir(parents=True)
    (folder / "claims.md").write_text("| [mixes](../02_b/mixes.png), [study 02](../README.md#02_b) |\n")
    item = {"kind": "table", "file": "claims.md", "caption": "Claims.", "provenance": "2 runs", "ledgers": ["02_b/runs.jsonl"]}
    cell = {"cell_type": "code", "source": "", "outputs": [{"data": {report.MIME: item}}]}
    (folder / "00_overview.ipynb").write_text(json.dumps({"cells": [cell]}))
    text = report.render([folder / "00_overview.ipynb"]).read_text()
    assert "| [mixes](02_b/mixes.png), [study 02](README.md#02_b) |" in text and '<a id="00_overview"></a>' in text
    assert "*Claims.*<br>\n<sub>2 runs · [02_b/runs.jsonl](02_b/runs.jsonl)</sub>\n\n|" in text
