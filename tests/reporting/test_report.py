"""Tables, figures and verdicts: what they must name, and the line that says what they were made
of.
"""

import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import panning_core
from panning_core.analysis import statistics
from panning_core.errors import UserError
from panning_core.experiments import studies
from panning_core.reporting import figures, image, report, sources, tables
from panning_core.reporting import study as showing

LINE = {
    "commit": "a" * 40,
    "dirty": False,
    "versions": {"torch": "2.15.0+cu132"},
    "device": "cpu",
    "finished": "2026-01-01",
    "data": {"title": "MNIST"},
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of the runs that ``lines`` gives it, in a folder of its own, in no notebook."""
    monkeypatch.setattr(panning_core, "ROOT", tmp_path)  # of panning_core.results
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.delenv("PANNING_RESULTS", raising=False)
    monkeypatch.setattr(showing, "_display", lambda item, data: shown.append(item))
    monkeypatch.setattr(studies, "entry_names", lambda *_: {})
    shown = []

    def made(*origins):
        lines = [
            (
                origin
                if "provenance" in origin
                else {
                    "key": str(i),
                    "run": {"dataset": "digits", "model": "lenet300", "seed": i},
                    "metrics": {},
                    "provenance": origin,
                }
            )
            for i, origin in enumerate(origins)
        ]
        monkeypatch.setattr(studies, "sweep", lambda *_: lines)
        study = showing.Study("01_a", "tiny")
        (study.folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        study.shown = shown
        return study

    return made


@pytest.mark.parametrize(
    "origins, line",
    [
        ([LINE], "1 run of 01_a · code aaaaaaa · PyTorch 2.15.0 · cpu · MNIST"),
        (
            [
                {**LINE, "finished": "2026-01-02", "commit": "b" * 40},
                {**LINE, "data": {"title": "digits"}},
            ],
            "2 runs of 01_a · code aaaaaaa..bbbbbbb · PyTorch 2.15.0 · cpu · digits, MNIST",
        ),
        (
            [
                {**LINE, "commit": commit, "dirty": commit[0] == "c", "finished": commit}
                for commit in ("a" * 40, "b" * 40, "c" * 40, "d" * 40)
            ],
            "4 runs of 01_a · code aaaaaaa..ccccccc+..ddddddd · PyTorch 2.15.0 · cpu · MNIST",
        ),
        (
            [{**LINE, "commit": None, "dirty": None}],
            "1 run of 01_a · code unknown · PyTorch 2.15.0 · cpu · MNIST",
        ),
        ([], ""),
    ],
)
def test_a_source_says_how_many_runs_by_which_code_where_and_on_which_data(study, origins, line):
    assert study(*origins).source == (line, ("01_a/runs.jsonl",))


def test_a_source_counts_the_runs_of_each_kind(study):
    toy = {
        "kind": "toy",
        "key": "1",
        "run": {},
        "metrics": {},
        "provenance": {**LINE, "commit": "b" * 40, "finished": "2026-01-02"},
    }
    del toy["provenance"]["data"]
    assert study(LINE, toy, {**toy, "key": "2"}).source == (
        "3 runs (1 prune, 2 toy) of 01_a · code aaaaaaa..bbbbbbb · PyTorch 2.15.0 · cpu · MNIST",
        ("01_a/runs.jsonl",),
    )


def test_a_figure_is_saved_small_and_looks_as_it_was_drawn():
    """Also where it has thousands of colours."""
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.imshow(np.add.outer(np.arange(40), np.arange(60)), cmap="viridis")
    drawn, buffer = io.BytesIO(), io.BytesIO(image.png(figure))
    figure.savefig(drawn, format="png", dpi=image.DPI, bbox_inches="tight")
    before, after = (
        np.asarray(Image.open(each).convert("RGB")).astype(int) for each in (drawn, buffer)
    )
    assert buffer.getbuffer().nbytes < 0.6 * drawn.getbuffer().nbytes
    assert np.abs(before - after).max() <= 30 and np.abs(before - after).mean() < 0.5


def test_a_figure_says_itself_what_it_was_made_of_and_twice_the_same(study):
    made, written = study(LINE), []
    for _ in range(2):
        made.figure(plt.figure(figsize=(1, 1)), "empty", "Nothing.")
        sharp = made.folder.parent / "html" / "figures" / "01_a" / "empty.svg"
        written.append([(made.folder / "empty.png").read_bytes(), sharp.read_bytes()])
    assert written[0] == written[1] and b"tEXtSource\0" in written[0][0]
    assert b"<svg" in written[0][1] and b"fill: #ffffff" in written[0][1]  # on dark pages too
    assert Image.open(made.folder / "empty.png").text == {"Source": made.source.line}
    assert made.shown[0] == {
        "kind": "figure",
        "file": "empty.png",
        "caption": "Nothing.",
        "provenance": made.source.line,
        "ledgers": ("01_a/runs.jsonl",),
    }


def test_a_table_of_another_studys_runs_names_those(study):
    made = study(LINE)
    made.table(
        pd.DataFrame({"a": [1]}),
        "numbers",
        "Numbers.",
        sources.Source("5 runs", ("03_c/runs.jsonl",)),
    )
    assert made.shown[0]["provenance"] == "5 runs" and made.shown[0]["ledgers"] == (
        "03_c/runs.jsonl",
    )


def test_a_benchmark_of_your_own_goes_before_the_committed_one(study, tmp_path, monkeypatch):
    machine = {"speed": {**LINE, "date": "2026-01-01", "processor": "a processor"}}
    for place, value in (("results", 1), ("elsewhere", 2)):
        folder = tmp_path / place / "benchmarks"
        folder.mkdir(parents=True)
        (folder / "speed.csv").write_text(f"ratio\n{value}\n")
        (folder / "machine.json").write_text(json.dumps(machine))
    frame, told, source = study(LINE).benchmark("speed")
    assert frame.ratio.item() == 1 and told == machine["speed"]
    assert source == (
        (
            "benchmarks/speed.csv, measured on 2026-01-01 · code aaaaaaa · PyTorch 2.15.0 · a"
            " processor"
        ),
        ("../benchmarks/speed.csv",),
    )
    monkeypatch.setenv("PANNING_RESULTS", "elsewhere")
    assert study(LINE).benchmark("speed")[0].ratio.item() == 2
    (tmp_path / "elsewhere" / "benchmarks" / "speed.csv").unlink()
    frame, _, source = study(LINE).benchmark("speed")
    assert (
        frame.ratio.item() == 1 and source.files == ()
    )  # no link from elsewhere into the checkout
    with pytest.raises(
        UserError, match="memory.csv is missing; './run_all.sh bench --only memory' measures it"
    ):
        study(LINE).benchmark("memory")


GIVEN = {
    "paper": "Somebody 2020",
    "n": 5,
    "interval": "+1 point [+0, +2]",
    "rule": "Student",
    "family": 3,
    "figure": "numbers",
}


def test_a_verdict_lies_in_its_file_with_all_that_the_overview_shows(study):
    made = study(LINE)
    made.figure(plt.figure(figsize=(1, 1)), "numbers", "Nothing.")
    made.table(pd.DataFrame({"a": [1]}), "numbers", "Numbers.")
    made.table(pd.DataFrame({"a": [1]}), "others", "Others.")
    made.verdict("It is so.", "holds", "n = 3.", **GIVEN)
    made.verdict("It is more so.", "fails", "n = 3.", **{**GIVEN, "figure": "others"})
    found = showing.verdicts("01_a", "tiny")
    assert list(found.columns) == showing.COLUMNS
    assert list(found.figure) == ["numbers.png", "others.md"]  # of two with a name the figure
    assert found.iloc[0].to_dict() == {
        "claim": "It is so.",
        "verdict": "holds",
        "evidence": "n = 3.",
        **GIVEN,
        "figure": "numbers.png",
    }
    made.verdict("Four seeds say nothing.", "holds", "n = 4.", **{**GIVEN, "n": 4})
    assert list(showing.verdicts("01_a", "tiny").verdict) == ["holds", "fails", "not judged"]


def accuracies(lead, seeds=6, rivals=("snip", "random")):
    """Panning ahead of its rivals by ``lead[sparsity]``, with some noise."""
    rows = []
    for sparsity, ahead in lead.items():
        for seed in range(seeds):
            rows.append(
                {
                    "method": "panning",
                    "sparsity": sparsity,
                    "seed": seed,
                    "test_accuracy": 0.9 + ahead + 0.0001 * seed,
                }
            )
            rows += [
                {
                    "method": rival,
                    "sparsity": sparsity,
                    "seed": seed,
                    "test_accuracy": 0.9 + 0.0001 * (seed % 2),
                }
                for rival in rivals
            ]
    return pd.DataFrame(rows)


def test_a_claim_is_judged_by_its_cells(study):
    made = study(LINE)
    compared = statistics.compare(
        accuracies({0.9: 0.02, 0.99: -0.03}), "panning", ["snip", "random"]
    )
    made.differences(compared, "rivals", "Panning minus its rivals.")
    made.judge("Panning is better.", compared, "rivals", "Kang et al. 2022", every=True)
    (found,) = showing.verdicts("01_a", "tiny").itertuples()
    assert (found.verdict, found.n, found.rule, found.family, found.figure) == (
        "fails",
        6,
        statistics.RULE,
        4,
        "rivals.md",
    )
    assert (
        found.interval.startswith("-2.98 points [-3.0")
        and "against SNIP at 99 %, p = " in found.interval
    )
    assert found.evidence.count(" points [") == 4 and found.evidence.endswith("; n = 6 seeds.")
    table = pd.read_csv(made.folder / "rivals.csv", index_col=0, keep_default_na=False)
    assert table.loc["SNIP"].tolist() == ["+2.02 ▲", "-2.98 ▼"] and table.loc[
        "better than all of these?"
    ].tolist() == ["holds", "fails"]


def test_many_cells_are_counted_and_the_least_favourable_are_told():
    lead = {0.9: 0.02, 0.95: 0.01, 0.99: 0.0, 0.999: -0.03}
    compared = statistics.compare(accuracies(lead), "panning", ["snip", "random"])
    text = tables.tally(compared, most=2)
    assert text.startswith(
        "Of 8 comparisons better in 4, not worse by what matters in 2, worse in 2; n = 6 seeds."
        " Least favourable: -2.98 points"
    )
    assert text.count("against") == 2 and text.count("at 99.9 %") == 2
    few = statistics.compare(accuracies(lead, seeds=3), "panning", ["snip"])
    assert "too few seeds in 4" in tables.tally(few, most=0)
    told = tables.told(few.iloc[0])
    assert "[" not in told and told.endswith(", n = 3 has no interval")


def test_a_difference_of_log_errors_is_told_as_a_ratio():
    (cell,) = [
        row
        for _, row in statistics.compare_errors(
            accuracies({0.9: 0.05}), "panning", ["snip"]
        ).iterrows()
    ]
    assert tables.told(cell, "errors").startswith(
        "0.50 times the errors [0.50, 0.50] against SNIP, p = "
    )


def test_a_difference_on_a_task_names_the_task():
    frame = pd.DataFrame(
        {"task": "digits", "method": method, "seed": seed, "likelihood": value + seed / 100}
        for method, value in (("a", -0.5), ("b", -0.75))
        for seed in range(5)
    )
    cells = statistics.compare(frame, "a", ["b"], value="likelihood", by="task")
    text = tables.told(cells.iloc[0], "nats")
    assert text.startswith("+0.250 nats [+0.250, +0.250] against b (digits), p = ")


def test_no_cells_are_no_claim(study):
    made = study(LINE)
    made.judge("Nothing was compared.", pd.DataFrame(), "numbers")
    assert showing.verdicts("01_a", "tiny").empty


@pytest.mark.parametrize(
    "fault, message",
    [
        ({"verdict": "hold"}, "unknown verdict 'hold'; did you mean 'holds'"),
        ({"figure": "number"}, "unknown figure or table 'number'; did you mean 'numbers'"),
    ],
)
def test_a_verdict_that_is_none_or_that_nothing_shows_is_refused(study, fault, message):
    made = study(LINE)
    made.table(pd.DataFrame({"a": [1]}), "numbers", "Numbers.")
    with pytest.raises(UserError, match=message):
        made.verdict(
            **{"claim": "It is so.", "verdict": "holds", "evidence": "n = 3.", **GIVEN, **fault}
        )
    assert showing.verdicts("01_a", "tiny").empty


def test_a_link_of_a_table_leads_to_the_same_place_from_the_studys_page_and_the_front(tmp_path):
    folder = tmp_path / "tiny" / "00_overview"
    folder.mkdir(parents=True)
    table = "| [mixes](../02_b/mixes.png), [study 02](../README.md#02_b) |\n"
    (folder / "claims.md").write_text(table)
    item = {"kind": "table", "file": "claims.md", "caption": "Claims."}
    item |= {"provenance": "2 runs", "ledgers": ["02_b/runs.jsonl"]}
    cells = [
        {"cell_type": "markdown", "source": "# Title", "metadata": {"tags": ["front"]}},
        {"cell_type": "markdown", "source": "Details."},
        {"cell_type": "code", "source": "", "metadata": {"tags": ["front"]}},
    ]
    cells[2]["outputs"] = [{"data": {showing.MIME: item}}]
    (folder / "00_overview.ipynb").write_text(json.dumps({"cells": cells}))
    front = report.render([folder / "00_overview.ipynb"])
    small = "*Claims.*<br>\n<sub>2 runs · [02_b/runs.jsonl]({}02_b/runs.jsonl)</sub>\n\n|"
    text = front.read_text()
    assert "| [mixes](02_b/mixes.png), [study 02](README.md#02_b) |" in text
    assert small.format("") in text and "# Title" in text and "Details." not in text
    studies = (front.parent / "studies.md").read_text()
    assert "| [00 overview](00_overview/README.md) | Title |  |\n" in studies
    page = (folder / "README.md").read_text()
    assert table in page and small.format("../") in page and "Details." in page


def executed(folder, *cells):
    """A notebook in ``folder`` whose cells are text or items, each with its tags."""
    folder.mkdir(parents=True)
    made = [
        {"cell_type": "markdown", "source": what, "metadata": {"tags": tags}}
        if isinstance(what, str)
        else {
            "cell_type": "code",
            "source": "",
            "metadata": {"tags": tags},
            "outputs": [{"data": {showing.MIME: what}}],
        }
        for what, *tags in cells
    ]
    path = folder / f"{folder.name}.ipynb"
    path.write_text(json.dumps({"cells": made}))
    return path


def test_cells_with_the_name_of_a_page_stand_there_alone(tmp_path):
    note = {"kind": "note", "text": "See [there](../01_a/README.md)."}
    overview = executed(
        tmp_path / "tiny" / "00_overview",
        ("# Front", "front"),
        ("# Long", "page:long"),
        (note, "page:long", "front"),
        ("Only here.",),
    )
    front = report.render([overview]).read_text()
    page = (tmp_path / "tiny" / "long.md").read_text()
    own = (overview.parent / "README.md").read_text()
    assert "# Front" in front and "# Long" not in front and "[there](01_a/README.md)" in front
    assert "# Long\n\nSee [there](01_a/README.md)." in page and "Only here." not in page
    assert "Only here." in own and "# Long" not in own


def test_a_studys_page_begins_with_its_verdicts_and_folds_its_own_questions(tmp_path):
    given = {"kind": "verdict", "evidence": "All.", "rule": "r", "family": 1, "n": 5}
    given |= {"figure": "mixes.png", "interval": "+1 point"}
    theirs = {**given, "paper": "Kang et al. 2022", "claim": "It is so.", "verdict": "✔ holds"}
    own = {**given, "paper": showing.OWN, "claim": "Is it |w|?", "verdict": "✘ fails"}
    path = executed(
        tmp_path / "tiny" / "01_a", ("# Title\n\nThe question.",), (own,), (theirs,), ("Text.",)
    )
    report.render([path])
    text = (path.parent / "README.md").read_text()
    row = "| ✔ holds | It is so. (Kang et al. 2022) | [+1 point](#mixes) | 5 |"
    assert text.index("# Title") < text.index(row) < text.index("<details>")
    assert text.index("1 more verdict,") < text.index(r"| ✘ fails | Is it \|w\|? |")
    assert text.index("</details>") < text.index("The question.") < text.index("Text.")
    studies = (tmp_path / "tiny" / "studies.md").read_text()
    assert "| [01 a](01_a/README.md) | Title | ✘ 1 ✔ 1 |" in studies


# --- what became of a run ---


def curve(losses, accuracies):
    return {"effective_weights": 5, "curve": {"loss": losses, "validation_accuracy": accuracies}}


@pytest.mark.parametrize("metrics, word", [
    ({"effective_weights": 0, "curve": {"loss": [2.3], "validation_accuracy": [0.1]}}, "dead"),
    ({"effective_weights": 5}, "untrained"),
    (curve([2.3026, 2.3024, 2.3030], [0.11, 0.11, 0.10]), "plateau"),  # never left ln 10
    (curve([2.30, 1.2, 0.9, 2.31], [0.1, 0.6, 0.7, 0.11]), "collapsed"),  # learned, then lost it
    (curve([2.30, 1.2, None], [0.1, 0.6, 0.1]), "collapsed"),  # diverged
    (curve([2.30, 1.2, 0.9], [0.1, 0.6, 0.5]), "trained"),
    (curve([0.01, 0.01], [0.98, 0.98]), "trained"),
])  # fmt: skip
def test_dead_plateau_and_collapsed_are_told_apart_by_the_curve(metrics, word):
    assert tables.fate(metrics) == word


def test_fates_and_seeds_in_words():
    assert (
        tables.fates(pd.Series(["trained", "dead", "collapsed", "dead"])) == "2 dead, 1 collapsed"
    )
    assert tables.fates(pd.Series(["trained", "untrained"])) == ""
    runs = accuracies({0.9: 0.0}, seeds=3)
    assert tables.seeds(runs) == "3 seeds" and tables.seeds(runs[runs.seed == 0]) == "1 seed"
    assert tables.seeds(runs[(runs.seed == 0) | (runs.method == "snip")]) == "1 to 3 seeds"


def test_estimates_have_a_panel_for_each_sparsity_and_a_row_for_each_label():
    frame = accuracies({0.9: 0.02, 0.99: 0.01}).rename(columns={"method": "variant"})
    figure = figures.estimates(frame, ["panning", "snip", "absent"])
    assert [panel.get_title() for panel in figure.axes] == ["sparsity 90 %", "sparsity 99 %"]
    drawn = [
        line.get_xdata()[0]
        for line in figure.axes[0].lines
        if len(line.get_xdata()) == 1 and line.get_marker() == "o"
    ]
    assert drawn == pytest.approx([7.975, 9.995], abs=0.01)
    plt.close(figure)


def test_a_table_as_latex_is_escaped_and_has_symbols_for_its_marks():
    table = pd.DataFrame({"a_b": ["SNIP & co", "λ = 3"], "98 %": ["+1.0 ▲", None]})
    text = tables.to_latex(table, "Points in % of a_b.", "tab:x")
    assert r"a\_b & 98 \% \\" in text and r"SNIP \& co & +1.0 $\blacktriangle$ \\" in text
    assert r"$\lambda$ = 3 &  \\" in text and r"\caption{Points in \% of a\_b.}" in text
    assert r"\toprule" in text and r"\label{tab:x}" in text and text.isascii()
    marks = "".join([*tables.MARKED.values(), *showing.VERDICTS.values()])
    assert tables.to_latex(pd.DataFrame({"marks": [marks]})).isascii()
    assert r"\caption" not in tables.to_latex(table)
