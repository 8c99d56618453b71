"""The site: every number leads to its runs, text stays text, equations need no network, and a real
browser shows it on a desk and a phone.
"""

import io
import json
import re
from types import FunctionType
from urllib.parse import parse_qsl

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image, ImageChops

import panning_core
from panning_core import ROOT, masks
from panning_core.experiments import profiles, studies
from panning_core.reporting import site
from panning_core.reporting import study as showing
from panning_core.reporting.site import contents, place, references, runs
from panning_core.reporting.site.text import markdown, number
from tests.browser import browser  # noqa: F401, a fixture
from tests.checkout import PARAMETERS, Checkout

GUIDE = "guide_add_your_own_metric"
RUNS = re.compile(r"\d\d_.*\.runs\.html")
EVIL = '<script>alert("1")</script>'
ORIGIN = {
    "commit": "0123456789abcdef",
    "dirty": False,
    "versions": {"panning_core": "0.1.0", "python": "3.11.0", "torch": "2.15.0"},
    "device": "cpu",
    "processor": "x86_64",
    "threads": 1,
    "seconds": 1.5,
    "data": {"title": "digits", "fingerprint": "f"},
}
CSV = {
    "accuracy": "method,dense,90 %,98 %\nSNIP,97.00,95.00,91.00\nrandom,97.00,93.00,\n",
    "rivals": "rival,all sparsities,90 %\nrandom,+2.00,+2.00*\n",
    "elsewhere": "method,90 %,99 %\nSNIP,95.01,80.00\n",
    "keyed": 'what,error,of\nboth,0.25,toys\none,"0.50 [0.4, 0.6]",toys\n',
    "compared": "minus,90 %,mean of all\nrandom,+2.00 ▲,+5.00\nSynFlow-100,+1.00,\n",
    "wide": (
        f"a_claim,{','.join(f'column_{i}' for i in range(12))},verdict\n"
        f'"It `works` {"as it was said " * 8}",'
        f"{','.join(['95.00 [94.00 to 96.00]'] * 12)},✔ holds\n"
    ),
    "sorted": (
        f'name,value\nlast,"1,000"\n"{EVIL.replace(chr(34), chr(34) * 2)}",9.5'
        ' %\nempty,\nfirst,"-2.0 [-3, -1]"\nword,dead\n'
    ),
}


def run_line(method, sparsity, seed, accuracy, **changes):
    run = studies.Run("digits", "lenet300", method, sparsity, seed, epochs=changes.get("epochs", 1))
    metrics = {
        "test_accuracy": accuracy,
        "effective_weights": 1234,
        "epochs": run.epochs,
        "network": {},
        "curve": {"loss": [2.0, 0.5, 0.25], "validation_accuracy": [0.1, 0.9, 0.9]},
    }
    return {
        "key": run.key(),
        "run": run.canonical(),
        "metrics": metrics,
        "provenance": ORIGIN | {"dirty": seed == 1},
    }


KEYS = ["3" * 8, "4" * 8]  #: of the toys
GRID = [
    ("dense", 0.0, 0.97),
    ("snip", 0.9, 0.95),
    ("snip", 0.98, 0.91),
    ("random", 0.9, 0.93),
    ("random", 0.98, 0.2),
]
LINES = [run_line("snip", 0.9, 0, 0.5, epochs=7)] + [
    run_line(*run[:2], seed, run[2]) for run in GRID for seed in (0, 1)
]


def shown(kind, **item):
    return {
        "output_type": "display_data",
        "metadata": {},
        "data": {showing.MIME: {"kind": kind, **item}, "text/plain": ""},
    }


def executed(*cells):
    """A notebook that has run: a string is Markdown, a list the outputs of a cell of code, and a
    pair either of them with a tag.
    """

    def made(cell, *tags):
        if isinstance(cell, tuple):
            return made(cell[1], cell[0])
        told = {"metadata": {"tags": tags}}
        if isinstance(cell, str):
            return {"cell_type": "markdown", "source": cell, **told}
        return {"cell_type": "code", "source": 'print("some code")', "outputs": cell, **told}

    return json.dumps({"cells": [made(cell) for cell in cells]})


def picture():
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((900, 300)).save(buffer, "PNG")
    return buffer.getvalue()


def write(made: Checkout, profile: str = "tiny") -> None:
    """The results of a profile with an overview, a study of everything there is to show, and one
    without its own runs.
    """
    for name in ("00_overview", "01_tiny", "02_mixed"):
        made.notebook(name, f"# {name}", PARAMETERS)
    made.notebook(GUIDE, "# Add your own", "x = 1")
    grid = [
        {
            "dataset": "digits",
            "model": "lenet300",
            "method": "dense",
            "seed": [0, 1],
            "epochs": 1,
        },
        {
            "dataset": "digits",
            "model": "lenet300",
            "method": ["snip", "random"],
            "sparsity": [0.9, 0.98],
            "seed": [0, 1],
            "epochs": 1,
        },
    ]
    made.profile(
        {"00_overview": {}, "01_tiny": {"grid": grid}, "02_mixed": {"grid": grid}}, profile
    )
    results = made.root / "results" / profile
    for name in ("00_overview", "01_tiny", "02_mixed"):
        (results / name).mkdir(parents=True)
    for name, text in CSV.items():
        (results / "01_tiny" / f"{name}.csv").write_text(text)
        (results / "01_tiny" / f"{name}.md").write_text("not read")
    (results / "01_tiny" / "plain.md").write_text("| a |\n|---|\n| only markdown |\n")
    (results / "01_tiny" / "picture.png").write_bytes(picture())
    failure = {key: LINES[1][key] for key in ("key", "run", "provenance")} | {"error": "once"}
    for name in ("01_tiny", "02_mixed"):
        (results / name / "runs.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in [failure, *LINES])
        )
    with open(results / "01_tiny" / "runs.jsonl", "a") as ledger:
        ledger.writelines(
            json.dumps(
                {
                    "kind": "toy",
                    "key": f"{seed}" * 8 + "more",
                    "run": {"seed": seed},
                    "metrics": {"test_error": 0.25, "edges": 18, "weights": [[1.0]]},
                    "provenance": ORIGIN,
                }
            )
            + "\n"
            for seed in (3, 4)
        )
    (results / "01_tiny" / "01_tiny.ipynb").write_text(
        executed(
            f"# A tiny study\n\nIt asks a question. {EVIL}\n\nMore, with $x^2$ in it.",
            [],
            [shown("table", file="accuracy.md", caption="Accuracy.", provenance="10 runs")],
            "## A section\n\n$$\\frac{a}{b}$$\n\nAnd $" + "a + " * 40 + "b$.",
            [shown("figure", file="picture.png", caption=f"A picture. {EVIL}")],
            [
                shown("table", file=f"{name}.md", caption=name)
                for name in ("rivals", "elsewhere", "sorted", "plain", "wide")
            ],
            [shown("table", file="compared.md", caption="compared", against="SNIP")],
            [shown("table", file="keyed.md", caption="keyed", keys=[[*KEYS], KEYS[:1]])],
            [{"output_type": "stream", "name": "stdout", "text": [f"told {EVIL}"]}],
            [
                shown(
                    "verdict",
                    claim=f"It works. {EVIL}",
                    verdict="✔ holds",
                    evidence="n = 2.",
                    paper="A paper",
                    n=2,
                    interval="+1 point",
                    figure="picture.png",
                    rule="count",
                    family=1,
                ),
                shown(
                    "verdict",
                    claim="It works better.",
                    verdict="✘ fails",
                    evidence="n = 2.",
                    figure="elsewhere.md",
                    rule="count",
                    family=1,
                ),
            ],
        )
    )
    (results / "02_mixed" / "accuracy.csv").write_text(CSV["accuracy"])
    table = {"file": "accuracy.md", "caption": "Of whom?"}
    (results / "02_mixed" / "02_mixed.ipynb").write_text(
        executed("# Another\n\nWhy?", [shown("table", **table)]).replace("some code", "01_tiny")
    )
    (results / "00_overview" / "claims.csv").write_text(
        "claim,verdict,shown in\nIt works.,✔ holds,[figure](01_tiny/picture.png)"
        ' [01](01_tiny)\nIt works.,? undecided,"[picture](../01_tiny/picture.png), [study'
        f' 02](../README.md#02_mixed)"\n{EVIL.replace(chr(34), "")},✘'
        " fails,[x](javascript:alert) [gone](09_gone)\n"
    )
    (results / "00_overview" / "00_overview.ipynb").write_text(
        executed(
            "# All claims\n\nWhat is this?",
            [
                shown(
                    "note",
                    text="Parts: [all of them](../parts.md), [a study](../01_tiny/README.md).",
                ),
                shown("table", file="claims.md", caption="One row a claim."),
            ],
            ("page:parts", "# Every part\n\nThe parts of all claims."),
            ("page:parts", [shown("table", file="part.md", caption="A part.")]),
        )
    )
    (results / "00_overview" / "part.csv").write_text("claim,verdict\nIt works a bit.,✔ holds\n")
    drawing = results / "html" / "figures" / "01_tiny" / "picture.svg"
    drawing.parent.mkdir(parents=True)
    size = 'viewBox="0 0 9 3" width="900" height="300"'
    drawing.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}><path d="M0 0L9 3"/></svg>')


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The folder of a small profile's site."""
    made = Checkout(tmp_path_factory.mktemp("site") / "checkout")
    with pytest.MonkeyPatch.context() as patch:
        for module in (panning_core, profiles, contents, place):
            patch.setattr(module, "ROOT", made.root)
        patch.delenv("PANNING_RESULTS", raising=False)
        write(made)
        return site.build("tiny").parent


@pytest.fixture(scope="session")
def pages(folder):
    return {path.name: path.read_text() for path in folder.glob("*.html")}


def tags(text):
    """Every tag of a page."""
    return BeautifulSoup(text, "html.parser")(True)


def frames(text):
    """The tables of a page."""
    found = [
        [[cell.get_text(strip=True) for cell in row(["th", "td"])] for row in table("tr")]
        for table in BeautifulSoup(text, "html.parser")("table")
    ]
    return [pd.DataFrame(rows[1:], columns=rows[0]) for rows in found]


def by_kind(text):
    """Kind -> its table, of a page of runs."""
    parts = BeautifulSoup(text, "html.parser").select("section.runs")
    return dict(zip((part["data-kind"] for part in parts), frames(text)))


def numbers(text):
    """What the cells of a page's tables say, and where they lead."""
    return {
        (link.get_text(), link["href"])
        for link in BeautifulSoup(text, "html.parser").select("td[data-number] > a")
    }


# --- text ---


@pytest.mark.parametrize(
    "cell, value",
    [
        ("95.74 [95.48, 95.88]", 95.74),
        ("98 %", 98),
        ("1,000", 1000),
        ("19,360 to 20,888", 19360),
        ("+0.25*", 0.25),
        ("-16.77*", -16.77),
        ("−1.5", -1.5),
        ("1.9e-07", 1.9e-7),
        ("7 of 45", 7),
        ("4.6×", 4.6),
        ("5, 3", 5),
        ("", None),
        ("-", None),
        ("dead", None),
        ("K = 3", None),
        ("3rd", None),
        ("[1, 2]", None),
        ("0123abcd", None),
    ],
)
def test_a_cell_counts_by_the_number_it_begins_with(cell, value):
    assert number(cell) == value


def test_equations_become_mathml():
    html = markdown("Let $a_1 < b$ and\n\n$$\\frac{a}{b}$$\n\nbe.")
    assert (
        html.count("<math") == 2
        and html.count('display="block"') == 1
        and "<mfrac>" in html
        and "$" not in html
        and "&#x0003C;" in html
    )


def test_an_equation_that_can_not_be_read_is_shown_as_written():
    assert "<code>x^{</code>" in markdown("so $x^{$ there")


@pytest.mark.parametrize(
    "text",
    ["from $5 to $6", "$5-$10", "US$5 or 6$ more", "\\$x\\$", "`$x$`", "a $ b $ c", "100 $"],
)
def test_a_dollar_that_is_no_equation_stays_one(text):
    html = markdown(text)
    assert "<math" not in html and html.count("$") == text.count("$")
    assert "<math" in markdown(f"{text}, but $y$ is one")


def test_the_equations_of_the_notebooks_are_shown():
    for path, least in (("01_expressive_force_transfer", 5), ("06_gumbel_softmax", 8)):
        cells = json.loads((ROOT / "notebooks" / f"{path}.ipynb").read_text())["cells"]
        html = "".join(
            markdown("".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown"
        )
        assert html.count("<math") >= least and "$" not in html and "\\" not in html


def test_markup_in_results_is_text(pages):
    """In prose, captions, claims, cells and output; and no link of a cell runs anything."""
    for name, text in pages.items():
        assert "<script>alert" not in text and not any(
            tag.get("href", "").startswith("javascript:") for tag in tags(text)
        ), name
    assert (
        pages["01_tiny.html"].count("&lt;script&gt;") >= 5
        and "&lt;script&gt;" in pages["index.html"]
    )


# --- links ---


def test_a_number_leads_to_the_runs_that_its_row_and_column_name(pages):
    runs = "01_tiny.runs.html#current=yes&"
    assert {
        ("91.00", f"{runs}method=SNIP&sparsity=98%20%25"),
        ("93.00", f"{runs}method=random&sparsity=90%20%25"),
    } <= numbers(pages["01_tiny.html"])


def test_what_cannot_be_read_off_leads_to_all_runs(pages):
    """Row and column disagree on the method; a difference is of two methods; a sparsity that the
    study has no runs of makes the whole table another's.
    """
    links = numbers(pages["01_tiny.html"])
    assert {href for words, href in links if words == "97.00"} == {"01_tiny.runs.html"}
    assert {
        ("+2.00", "01_tiny.runs.html"),
        ("+2.00*", "01_tiny.runs.html#current=yes&sparsity=90%20%25"),
    } <= links
    assert {("95.01", "01_tiny.runs.html"), ("80.00", "01_tiny.runs.html")} <= links


def test_a_notebook_that_reads_another_study_narrows_nothing(pages):
    assert {href for _, href in numbers(pages["02_mixed.html"])} == {"02_mixed.runs.html"}


@pytest.mark.parametrize(
    "provenance, where",
    [
        ("10 runs of 01_tiny", "01_tiny.runs.html#current=yes&method=SNIP&sparsity=90%20%25"),
        ("10 runs", "02_mixed.runs.html#current=yes&method=SNIP&sparsity=90%20%25"),
        ("10 runs of 01_tiny, 10 runs of 02_mixed", "02_mixed.runs.html"),
        ("benchmarks/a.csv", None),
    ],
)
def test_a_provenance_decides_whose_runs_a_table_shows(folder, monkeypatch, provenance, where):
    root = folder.parent.parent.parent
    for module in (panning_core, profiles, contents, place):
        monkeypatch.setattr(module, "ROOT", root)
    table = pd.DataFrame({"method": ["SNIP"], "90 %": ["95.00"]})
    assert contents.Contents("tiny").references("02_mixed", "a.md", table, provenance) == [
        [None, where]
    ]


def test_every_link_leads_somewhere(folder, pages):
    """To a page, to an anchor on it, to runs that exist, to a run that its page knows, or out into
    the web.
    """
    assert {"index.html", "01_tiny.html", "01_tiny.runs.html", f"{GUIDE}.html"} <= pages.keys()
    anchors = {
        name: {tag["id"] for tag in tags(text) if tag.get("id")} for name, text in pages.items()
    }
    tables = {name: by_kind(text) for name, text in pages.items() if RUNS.fullmatch(name)}
    for name, text in pages.items():
        for tag in tags(text):
            for target in {tag.get("href"), tag.get("src"), tag.get("action")} - {None}:
                page, _, place = target.partition("#")
                page = page or name
                if target.startswith(("data:image/", "https://")):
                    continue
                assert (folder / page).is_file(), (name, target)
                if page in tables:
                    asked = dict(parse_qsl(place))
                    table = tables[page][asked.pop("kind", "prune")]
                    for column, value in asked.items():
                        assert set(value.split("|")) <= {*table[column]}, target
                elif ".run." in page and place:
                    assert place in (folder / page.replace(".html", "s.js")).read_text(), target
                else:
                    assert not place or place in anchors[page], (name, target)


def test_the_claims_lead_to_where_they_are_shown(pages):
    index, study = (
        BeautifulSoup(pages[name], "html.parser") for name in ("index.html", "01_tiny.html")
    )
    assert {tag.get("href") for tag in index.select("td a")} == {
        "01_tiny.html#picture.png",
        "01_tiny.html",
        "02_mixed.html",
    }
    cards = study.select(".verdict")
    assert [[a["href"] for a in card.select("a")] for card in cards] == [
        ["01_tiny.html#picture.png", "01_tiny.runs.html"],
        ["01_tiny.html#elsewhere.md", "01_tiny.runs.html"],
    ]
    said = study.select(".said a")
    assert [a["href"] for a in said] == [f"#{card['id']}" for card in cards]


def test_accuracies_of_the_committed_sweep_are_the_means_of_the_runs_they_link_to():
    made = contents.Contents("paper")
    runs, checked = made.runs("03_sparsity_sweep"), 0
    for name in (
        "accuracy_lenet300_standardised",
        "accuracy_lenet300_authors",
        "accuracy_lenet5_standardised_80_epochs",
        "accuracy_lenet5_standardised_4_epochs",
    ):
        table = pd.read_csv(
            made.folder("03_sparsity_sweep") / f"{name}.csv", dtype=str, keep_default_na=False
        )
        for cells, hrefs in zip(
            table.to_numpy(),
            made.references("03_sparsity_sweep", f"{name}.md", table, "its own runs"),
        ):
            for cell, href in zip(cells, hrefs):
                facets = dict(parse_qsl(href.partition("#")[2])) if href else {}
                if "sparsity" in facets:
                    part = runs[(runs[list(facets)] == list(facets.values())).all(axis=1)]
                    assert part["test accuracy (%)"].astype(float).mean() == pytest.approx(
                        number(cell), abs=0.0051
                    ), (name, facets)
                    checked += 1
    assert checked == 2 * 16 * 6 + 8 * 2 + 15 * 4


# --- pages ---


def test_the_runs_page_has_a_row_for_every_run_in_the_words_of_the_tables(pages):
    runs, toys = frames(pages["01_tiny.runs.html"])
    assert list(runs) == [
        "key",
        "data",
        "network",
        "method",
        "sparsity",
        "seed",
        "rounds",
        "control",
        "epochs",
        "current",
        "test accuracy (%)",
        "effective weights",
        "seconds",
        "commit",
        "device",
        "line",
    ]
    assert list(runs.line) == [
        str(line) for line in range(2, len(LINES) + 2)
    ]  # line 1 is the failure
    assert list(runs.iloc[0])[1:] == [
        "digits",
        "LeNet-300-100",
        "SNIP",
        "90 %",
        "0",
        "",
        "none",
        "7",
        "no",
        "50.00",
        "1,234",
        "1.5",
        "0123456",
        "cpu",
        "2",
    ]
    assert set(runs[runs.seed == "1"].commit) == {"0123456+"} and list(runs.current) == [
        "no",
        *["yes"] * 10,
    ]
    assert list(toys) == [
        "key",
        "seed",
        "test error",
        "edges",
        "seconds",
        "commit",
        "device",
        "line",
    ] and list(toys.key) == ["3" * 8, "4" * 8]


def test_a_page_says_what_its_runs_were_made_with(pages):
    for name in ("index.html", "01_tiny.html", "01_tiny.runs.html"):
        foot = BeautifulSoup(pages[name], "html.parser").find("footer").get_text(" ")
        for words in (
            "0123456, 0123456+",
            "PyTorch 2.15.0 on Python 3.11.0",
            "cpu (x86_64, 1 thread)",
            "digits",
        ):
            assert words in foot, (name, words)


def test_a_study_that_no_longer_came_through_loses_its_page(tmp_path, monkeypatch):
    made = Checkout(tmp_path / "checkout")
    for module in (panning_core, profiles, contents, place):
        monkeypatch.setattr(module, "ROOT", made.root)
    monkeypatch.delenv("PANNING_RESULTS", raising=False)
    write(made)
    folder = site.build("tiny").parent
    (made.root / "results" / "tiny" / "01_tiny" / "01_tiny.ipynb").unlink()
    (made.root / "results" / "tiny" / "00_overview" / "00_overview.ipynb").unlink()
    assert site.build("tiny") == folder / "index.html"
    assert sorted(path.name for path in folder.glob("*.html")) == [
        "02_mixed.html",
        "02_mixed.run.html",
        "02_mixed.runs.html",
        *sorted(path.name for path in folder.glob("api*.html")),
        f"{GUIDE}.html",
        "index.html",
        "mask.html",
        "search.html",
        "studies.html",
    ] and sorted(path.name for path in folder.glob("*.js")) == ["02_mixed.runs.js", "index.js"]
    index, listed = ((folder / name).read_text() for name in ("index.html", "studies.html"))
    assert "02_mixed.html" in index and "#claims.md" not in index
    assert "02_mixed.html" in listed and "01_tiny.html" not in listed


# --- what a page says ---


def test_a_table_has_its_verdict_first_and_words_for_its_columns(pages):
    table = BeautifulSoup(pages["01_tiny.html"], "html.parser").find(id="wide.md")
    header = [cell.text for cell in table.select("th")]
    assert header == ["verdict", "a claim", *(f"column {i}" for i in range(12))]
    first, second, *_ = table.select("tbody td")
    assert first.text == "✔ holds" and first.select_one(".mark.holds")
    assert second.select_one("code").text == "works" and "`" not in table.text


def test_a_captions_stands_above_its_table(pages):
    made = BeautifulSoup(pages["01_tiny.html"], "html.parser")
    assert [tag.name for tag in made.find(id="wide.md")(["figcaption", "table"])] == [
        "figcaption",
        "table",
    ]


def test_every_page_names_its_profile(pages):
    for name, html in pages.items():
        made = BeautifulSoup(html, "html.parser")
        assert made.title.text.endswith("– Panning, tiny"), name
        assert "profile tiny" in made.header.text, name


def test_the_quick_site_says_that_it_is_a_smoke_test_and_where_the_verdicts_are(
    tmp_path, monkeypatch
):
    made = Checkout(tmp_path / "checkout")
    for module in (panning_core, profiles, contents, place):
        monkeypatch.setattr(module, "ROOT", made.root)
    monkeypatch.delenv("PANNING_RESULTS", raising=False)
    write(made, "quick")
    published = made.root / "results" / "paper" / "00_overview"
    published.mkdir(parents=True)
    (published / "claims.csv").write_text("claim,verdict\na,✔ holds\nb,✘ fails\nc,✘ fails\n")
    (published.parent / "README.md").write_text("# All of them\n")
    index = site.build("quick")
    page = BeautifulSoup(index.read_text(), "html.parser")
    told = page.select_one(".notice")
    assert "Smoke test on digits, n = 1 to 4." in " ".join(told.text.split())
    assert "Published verdicts: of 3 claims 1 ✔ holds, 2 ✘ fails" in told.text
    assert (index.parent / told.a["href"]).resolve() == published.parent / "README.md"
    assert page.title.text.endswith("quick")


def test_an_index_without_an_overview_promises_none(tmp_path, monkeypatch):
    made = Checkout(tmp_path / "checkout")
    for module in (panning_core, profiles, contents, place):
        monkeypatch.setattr(module, "ROOT", made.root)
    monkeypatch.delenv("PANNING_RESULTS", raising=False)
    write(made)
    (made.root / "results" / "tiny" / "00_overview" / "00_overview.ipynb").unlink()
    page = BeautifulSoup(site.build("tiny").read_text(), "html.parser")
    anchors = {tag["id"] for tag in page(id=True)}
    within = [a["href"][1:] for a in page.select("a[href^='#']")]
    assert {*within} <= anchors and "overview" not in page.main.text
    assert [a["href"] for a in page.main("a")] == ["studies.html"]


def test_cells_of_a_page_of_their_own_stand_there_alone(pages):
    page = BeautifulSoup(pages["parts.html"], "html.parser")
    assert page.h1.text == "Every part" and page.find(id="part.md")
    assert "part.md" not in pages["index.html"] and "Every part" not in pages["index.html"]
    told = [a["href"] for a in BeautifulSoup(pages["index.html"], "html.parser").select("main p a")]
    assert {"parts.html", "01_tiny.html"} <= {*told}


def test_a_figure_has_its_drawing_beside_it(pages, folder):
    figure = BeautifulSoup(pages["01_tiny.html"], "html.parser").find(id="picture.png")
    assert figure.img["src"].startswith("data:image/png")
    assert (folder / figure.figcaption.find("a", string="as SVG")["href"]).is_file()


# --- runs ---


def test_a_table_that_says_which_runs_its_rows_are_of_leads_to_these(pages, visit):
    there = "01_tiny.runs.html#kind=toy&key=33333333"
    links = dict(numbers(pages["01_tiny.html"]))
    assert links["0.25"] == f"{there}%7C44444444" and links["0.50 [0.4, 0.6]"] == there
    tab = visit("01_tiny.html")
    tab.get_by_role("link", name="0.50 [0.4, 0.6]").click()
    assert tab.locator("tbody tr:visible td:first-child").all_inner_texts() == ["33333333"]


def test_a_difference_leads_to_the_runs_of_its_two_methods(pages):
    links = dict(numbers(pages["01_tiny.html"]))
    runs = "01_tiny.runs.html#current=yes&method=SNIP%7Crandom"
    assert links["+2.00 ▲"] == f"{runs}&sparsity=90%20%25" and links["+5.00"] == runs
    # There are no runs of the other rival.
    assert links["+1.00"] == "01_tiny.runs.html#current=yes&sparsity=90%20%25"


WORDS = pd.DataFrame(
    {
        "key": ["a", "b", "c"],
        "model": ["deep-kernel", "ign", "ign"],
        "head": ["ign", "linear", "linear"],
        "choice": ["snip", "random", "snip"],
        "width": ["2", "4", "4"],
    }
)


@pytest.mark.parametrize(
    "row, wanted",
    [
        ({"what": "SNIP, others frozen", "error": "9.5"}, "choice=snip"),
        (
            {"what": "Deep kernel", "width": "2", "error": "9.5 [9, 10]"},
            "model=deep-kernel&width=2",
        ),
        ({"what": "IGN", "error": "95.1 %"}, ""),  # a model or a head?
        ({"what": "something else", "error": "9.5"}, ""),
        ({"what": "Deep kernel, SNIP", "width": "4", "error": "9.5"}, ""),  # there are none
    ],
)
def test_labels_of_other_kinds_are_read_where_they_can_mean_one_thing(row, wanted):
    words = references.Words("ours", WORDS, ["model", "head", "choice", "width"])
    ((first, *_, last),) = references.read(words, "01", "a.md", pd.DataFrame([row]), True)
    assert first is None
    assert last == "01.runs.html" + f"#kind=ours&{wanted}" * bool(wanted)


def test_the_lines_of_every_kind_give_its_run():
    """Of the first committed run of each kind; the shortest is done, and has the same numbers."""
    found = {}
    for ledger in sorted((ROOT / "results" / "paper").glob("*/runs.jsonl")):
        for text in ledger.read_text().splitlines():
            line = json.loads(text)
            if "metrics" in line:
                found.setdefault(line.get("kind", "prune"), line)
    assert len(found) > 15
    for line in found.values():
        lines = runs.repeat(line).rpartition("\n")[0]  # all but what does it
        exec(lines, names := {})
        assert names["run"].key() == line["key"]
    line = found["ball-indicator"]
    exec(runs.repeat(line), names := {})
    assert names["metrics"].keys() == line["metrics"].keys()
    for name, value in line["metrics"].items():
        assert "seconds" in name or names["metrics"][name] == pytest.approx(value, rel=1e-3), name


# --- the reference of the package ---


def test_the_reference_has_every_public_function_and_what_it_says(pages):
    page = BeautifulSoup(pages["api.masks.html"], "html.parser")
    public = {
        f"panning_core.masks.{name}"
        for name, thing in vars(masks).items()
        if isinstance(thing, FunctionType) and thing.__module__ == masks.__name__ and name[0] != "_"
    }
    assert len(public) > 15 and public <= {tag["id"] for tag in page(id=True)}
    keep = page.find(id="panning_core.masks.keep_top")
    assert "keep_top(scores: Scores, density: float" in keep.pre.text
    assert "ties go to the earlier" in keep.text
    assert [tag.text for tag in keep.select("dt")][0] == "scope" and "`" not in keep.text
    index = BeautifulSoup(pages["api.html"], "html.parser")
    assert {a["href"] for a in index.select(".api a")} == {
        name for name in pages if re.fullmatch(r"api\..+\.html", name)
    }


def test_the_reference_has_no_name_of_somebody_else(pages):
    assert "Tensor" not in {
        tag.text for tag in BeautifulSoup(pages["api.masks.html"], "html.parser")("h3")
    }
    assert not any("._" in tag.get("id", "") for tag in tags(pages["api.runs.html"]))


def test_how_to_read_a_mask_has_three_masks_and_their_numbers(pages):
    page = BeautifulSoup(pages["mask.html"], "html.parser")
    figures = page.select("figure.play")
    assert [figure.figcaption.text.partition(":")[0] for figure in figures] == [
        "Panning (staged, sum) at 95 %",
        "random at 95 %",
        "SNIP at 99 %",
    ]
    for figure, kept in zip(figures, ("2,510", "2,510", "502")):
        assert f"{kept} of 50,200 weights kept" in figure.figcaption.text
        assert len(figure.select("tr")) == 4 and figure.img["src"].startswith("data:image/png")


# --- in a browser ---

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture
def visit(browser, folder):  # noqa: F811
    """``visit(page, ...)`` opens a page of the site; at the end, that nothing was asked of a
    network and nothing went wrong.
    """
    contexts, faults = [], []

    def visit(page, viewport=DESK, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        context.route(
            re.compile("^(?!file:|data:)"),
            lambda route: (faults.append(route.request.url), route.abort()),
        )
        tab = context.new_page()
        tab.on(
            "console",
            lambda message: (
                faults.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(f"{folder.as_uri()}/{page}")
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize(
    "page", ["index.html", "01_tiny.html", "01_tiny.runs.html", f"{GUIDE}.html"]
)
def test_no_page_is_wider_than_the_screen(visit, page, viewport):
    tab = visit(page, viewport)
    assert tab.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    for part in ("header", "h1", "main", *[".box"] * ("runs" in page)):
        box = tab.locator(part).first.bounding_box()
        assert (
            box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"] and box["height"] > 0
        ), part


def test_a_wide_table_of_a_study_is_read_by_rows_on_a_phone(visit):
    """No cell stands beside the screen, and each says of which column it is."""
    tab = visit("01_tiny.html", PHONE)
    for box in tab.locator("figure.table .box").all():
        assert box.evaluate("b => b.scrollWidth <= b.clientWidth")
    cells = tab.locator("figure[id='wide.md'] tbody td")
    rights = cells.evaluate_all("all => all.map(c => c.getBoundingClientRect().right)")
    assert len(rights) == 14 and max(rights) <= PHONE["width"]
    named = "c => getComputedStyle(c, '::before').content"
    told = [cells.nth(i).evaluate(named) for i in (0, 1, 13)]
    assert told == ["none", '"a claim: "', '"column 11: "']
    assert cells.first.inner_text() == "✔ holds"
    assert tab.locator("figure[id='accuracy.md'] th").first.is_visible()  # narrow enough
    desk = visit("01_tiny.html").locator("figure[id='wide.md'] td")
    tops = desk.evaluate_all("all => all.map(c => c.getBoundingClientRect().top)")
    assert len(set(tops)) == 1


def test_a_wide_table_scrolls_in_its_own_box_beside_its_first_column(visit):
    box = visit("01_tiny.runs.html", PHONE).locator(".box").first
    assert box.evaluate("b => b.scrollWidth > b.clientWidth")
    box.evaluate("b => b.scrollTo(500, 0)")
    first, second = (box.locator("tbody td").nth(i).bounding_box()["x"] for i in (0, 1))
    assert first == pytest.approx(box.bounding_box()["x"], abs=1) and second < 0


@pytest.mark.parametrize("press", ["click", "key"])
def test_a_header_sorts_numbers_as_numbers(visit, press):
    table = visit("01_tiny.html").locator("figure[id='sorted.md'] table")
    button = table.locator("th button").nth(1)

    for direction, order in (
        ("ascending", ["first", EVIL, "last"]),
        ("descending", ["last", EVIL, "first"]),
    ):
        button.click() if press == "click" else button.press("Enter")
        assert table.locator("tbody td:first-child").all_inner_texts() == [
            *order,
            "word",
            "empty",
        ]
        assert table.locator("th").nth(1).get_attribute("aria-sort") == direction


def test_the_address_says_which_runs_are_shown(visit):
    tab = visit("01_tiny.html")
    tab.get_by_role("link", name="91.00").click()
    count, rows = tab.locator(".count").first, tab.locator("[data-kind=prune] tbody tr:visible")
    assert (
        count.inner_text() == "2 of 11 runs: current yes, method SNIP, sparsity 98 %; show all"
        and rows.count() == 2
    )
    assert set(rows.locator("td:nth-child(5)").all_inner_texts()) == {"98 %"}
    count.get_by_role("link").click()
    tab.wait_for_function("document.querySelector('.count').textContent === '11 of 11 runs'")
    assert rows.count() == 11
    tab.evaluate("location.hash = 'method=random&sparsity=90 %'")
    tab.wait_for_function("document.querySelector('.count').textContent.startsWith('2 of 11')")
    assert tab.locator(".box").nth(1).locator("tbody tr:visible").count() == 2  # the toys stay


def test_a_figure_opens_in_full_and_closes(visit):
    tab = visit("01_tiny.html")
    dialog = tab.locator("dialog")
    assert not dialog.is_visible()
    tab.locator(".zoom").click()
    assert (
        dialog.locator("img").bounding_box()["width"]
        > tab.locator(".zoom img").bounding_box()["width"]
    )
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()
    tab.locator(".zoom").press("Enter")
    dialog.click()
    assert not dialog.is_visible()


def test_dark_and_light_follow_the_system_and_the_button_is_remembered(visit):
    def ground(tab):
        return sum(
            map(
                int,
                re.findall(
                    r"\d+",
                    tab.evaluate("getComputedStyle(document.documentElement).backgroundColor"),
                )[:3],
            )
        )

    assert ground(visit("index.html", color_scheme="light")) > 600
    tab = visit("index.html", color_scheme="dark")
    assert ground(tab) < 150
    tab.locator(".theme").click()
    assert ground(tab) > 600
    tab.reload()
    assert ground(tab) > 600
    assert (
        visit("01_tiny.html", color_scheme="dark")
        .locator(".zoom")
        .evaluate("z => getComputedStyle(z).backgroundColor")
        == "rgb(255, 255, 255)"
    )


def test_without_scripts_everything_can_be_read(visit):
    tab = visit("01_tiny.runs.html", java_script_enabled=False)
    assert tab.locator("tbody tr:visible").count() == 13 and tab.locator(".theme").is_hidden()
    tab = visit("01_tiny.html", java_script_enabled=False)
    assert (
        tab.locator("figure img").is_visible() and not tab.locator(".highlight").first.is_visible()
    )
    tab.locator("summary").first.click()
    assert tab.locator(".highlight").first.is_visible()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("page", ["index.html", "01_tiny.html"])
def test_a_page_looks_the_same_twice_and_is_not_blank(visit, page, viewport):
    first, second, dark = (
        Image.open(io.BytesIO(visit(page, viewport, color_scheme=scheme).screenshot())).convert("L")
        for scheme in ("light", "light", "dark")
    )
    assert first.size == second.size == dark.size == (viewport["width"], viewport["height"])
    area = first.width * first.height
    assert (
        sum(ImageChops.difference(first, second).histogram()[1:]) < 0.001 * area
    )  # an edge between two pixels may fall to either
    for shot, ground in ((first, slice(230, 256)), (dark, slice(0, 60))):
        assert 0.5 < sum(shot.histogram()[ground]) / area < 0.99


def test_a_link_to_a_guide_or_to_the_studies_leads_to_its_page(folder):
    with pytest.MonkeyPatch.context() as patch:
        for module in (panning_core, profiles, contents):
            patch.setattr(module, "ROOT", folder.parents[2], raising=False)
        patch.delenv("PANNING_RESULTS", raising=False)
        made = contents.Contents("tiny")
        assert made.link(f"../../../notebooks/{GUIDE}.ipynb") == f"{GUIDE}.html"
        assert made.link("../studies.md") == "studies.html"


def test_a_link_to_a_place_on_a_studys_page_leads_to_what_it_shows(folder):
    """As ``[study 01](../01_tiny/README.md#picture)`` in the tables of the overview."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (panning_core, profiles, contents):
            patch.setattr(module, "ROOT", folder.parents[2], raising=False)
        patch.delenv("PANNING_RESULTS", raising=False)
        made = contents.Contents("tiny")
        assert made.link("../01_tiny/README.md#picture") == made.anchors["01_tiny/picture.png"]
        assert made.link("../01_tiny/README.md#nothing") is None


WIDTHS = (390, 1024, 1440, 1920)


def visible(width):
    return {"width": width, "height": 900}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", ["index.html", "01_tiny.html", "parts.html"])
def test_no_verdict_is_clipped(visit, page, width):
    tab = visit(page, visible(width))
    marks = tab.locator("td .mark")
    assert marks.count()
    for mark in marks.all():
        box, around = mark.bounding_box(), mark.locator("xpath=ancestor::div[1]").bounding_box()
        right = min(width, around["x"] + around["width"])
        assert box["x"] >= max(0, around["x"]) and box["x"] + box["width"] <= right


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", ["index.html", "01_tiny.html", "01_tiny.runs.html", "mask.html"])
def test_a_table_that_goes_on_shows_its_edge_and_no_other_does(visit, page, width):
    tab = visit(page, visible(width))
    tab.wait_for_timeout(100)
    told = tab.locator(".box").evaluate_all(
        """boxes => boxes.map((box) => [box.scrollWidth > box.clientWidth + 1,
            getComputedStyle(box.parentElement, "::after").content !== "none"])"""
    )
    assert told and all(cut == shown for cut, shown in told)
    if page.startswith("01_tiny") and width == 390:
        assert ([True, True] in told) == ("runs" in page)


def test_the_edge_goes_where_a_table_has_been_scrolled_to_its_end(visit):
    tab = visit("01_tiny.runs.html", PHONE)
    frame = tab.locator("[data-kind=prune] .frame.more")
    frame.wait_for()
    tab.locator("[data-kind=prune] .box").evaluate("box => box.scrollTo(9999, 0)")
    frame.wait_for(state="detached")


def test_a_jump_marks_its_target(visit):
    tab = visit("01_tiny.html")
    marked = "tag => getComputedStyle(tag).outlineStyle"
    figure = tab.locator("figure[id='picture.png']")
    assert figure.evaluate(marked) == "none"
    tab.locator(".verdict a", has_text="shown here").first.click()
    assert figure.evaluate(marked) == "solid"
    tab.locator(".said a").nth(1).click()
    assert figure.evaluate(marked) == "none"
    assert tab.locator("#verdict-2").evaluate(marked) == "solid"


def test_lists_say_which_runs_are_shown(visit):
    tab = visit("01_tiny.runs.html")
    part = tab.locator("[data-kind=prune]")
    rows, count = part.locator("tbody tr:visible"), part.locator(".count")
    names = part.locator("select").evaluate_all("lists => lists.map((list) => list.name)")
    assert {"method", "sparsity", "seed"} <= {*names} and not {"key", "network", "line"} & {*names}
    part.locator("select[name=method]").select_option("SNIP")
    part.locator("select[name=sparsity]").select_option("90 %")
    part.locator("select[name=seed]").select_option("1")
    assert rows.count() == 1 and "method SNIP, sparsity 90 %, seed 1" in count.inner_text()
    assert tab.locator("[data-kind=toy]").is_hidden()
    tab.go_back()
    assert rows.count() == 3
    tab.reload()
    assert rows.count() == 3
    assert part.locator("select[name=method]").input_value() == "SNIP"
    part.locator("select[name=method]").select_option("all")
    assert rows.count() == 5


def test_a_difference_shows_the_runs_of_two_methods(visit):
    tab = visit("01_tiny.html")
    tab.get_by_role("link", name="+2.00 ▲").click()
    part = tab.locator("[data-kind=prune]")
    assert {*part.locator("tbody tr:visible td:nth-child(4)").all_inner_texts()} == {
        "SNIP",
        "random",
    }
    assert "4 of 11 runs" in part.locator(".count").inner_text()
    assert part.locator("select[name=method] option:checked").inner_text() == "SNIP or random"


def test_a_run_has_its_curves_its_line_and_the_code_that_repeats_it(visit):
    tab = visit("01_tiny.runs.html")
    key = LINES[1]["key"][:8]
    tab.get_by_role("link", name=key).click()
    tab.locator("#curves path").first.wait_for(state="attached")
    assert tab.locator("#curves path").count() == 2
    assert tab.locator("#curves path").first.bounding_box()["width"] > 100
    captions = tab.locator("#curves figcaption").all_inner_texts()
    assert captions[0] == "loss: from 0.2500 to 2, at the end 0.2500 (3 points)"
    assert json.loads(tab.locator("#line").inner_text()) == LINES[1]
    assert tab.locator("#repeat").inner_text() == runs.repeat(LINES[1])
    tab.evaluate("location.hash = '00000000'")
    tab.get_by_text("No run of this study has the key 00000000").wait_for()
    assert tab.locator("#run").is_hidden()


def test_a_search_finds_functions_sections_tables_and_verdicts(visit):
    tab = visit("01_tiny.html")
    tab.get_by_role("searchbox").fill("keep_top")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=keep_top")
    results = tab.locator("#found a")
    assert results.first.inner_text() == "masks.keep_top"
    for words, title, page in (
        ("tiny study section", "A tiny study: A section", "01_tiny.html#a-section"),
        ("compared synflow-100", "compared", "01_tiny.html#compared.md"),
        ("it works better", "It works better.", "01_tiny.html#verdict-2"),
        ("PALE dark dot", "How to read a mask", "mask.html"),
    ):
        tab.locator("#query").fill(words)
        assert results.first.inner_text() == title, words
        assert results.first.get_attribute("href") == page
    tab.locator("#query").fill("nothing like this")
    assert tab.locator("#count").inner_text() == "0 places" and results.count() == 0
    tab.locator("#query").fill("keep_top scope")
    results.first.click()
    assert tab.locator("[id='panning_core.masks.keep_top']").is_visible()


def test_a_figure_opens_as_its_drawing(visit):
    tab = visit("01_tiny.html")
    tab.locator(".zoom").click()
    assert tab.locator("dialog img").get_attribute("src") == "figures/01_tiny/picture.svg"
    tab.wait_for_function("document.querySelector('dialog img').naturalWidth === 900")
