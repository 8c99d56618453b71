"""Texts and names of others are shown: none is markup, none is a place, none is endless."""

import json
from pathlib import Path

import mistune
import pandas as pd
import pytest
from bs4 import BeautifulSoup

import panning_core
from panning_core.errors import UserError, unknown
from panning_core.experiments import profiles, studies
from panning_core.reporting import plain, report, site
from panning_core.reporting import study as showing
from panning_core.reporting.site import contents, place, runs
from tests.checkout import PARAMETERS, Checkout

STUDY = "01_tiny"
EVIL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/x.png)",
    r"\![x](https://evil.example/x.png)",
    "a](https://evil.example/x.png)",
    "[x](javascript:alert(1))",
    r"[x]\(javascript:alert(1))",
    "&#60;script&#62;",
    "<!-- the rest is gone",
    "a | b",
    "one\n\n# two\n\n| a |\n|---|\n| b |",
    "`",
    "../../up",
]
ENDLESS = ["x" * 1_000_000]
#: what a page would obey
LIVE = ["img", "iframe", '[href^="javascript:" i]', "[onerror]"]


def live(html):
    """What on a page is more than text, and not our own."""
    soup = BeautifulSoup(html, "html.parser")
    found = [tag for each in LIVE for tag in soup.select(each)]
    found += [tag for tag in soup("script") if "alert(1)" in tag.get_text()]
    return [str(tag)[:200] for tag in found]


def rendered(markdown):
    """Markdown as HTML that nobody cleans afterwards."""
    return mistune.create_markdown(escape=False, plugins=["table"])(markdown)


@pytest.fixture
def made(tmp_path, monkeypatch):
    checkout = Checkout(tmp_path / "checkout")
    for module in (panning_core, profiles, contents, place):
        monkeypatch.setattr(module, "ROOT", checkout.root)
    monkeypatch.delenv("PANNING_RESULTS", raising=False)
    checkout.notebook(STUDY, "# A study", PARAMETERS)
    checkout.profile({STUDY: {}})
    return checkout


def executed(study, texts, outputs):
    """A notebook that shows each text as a cell, a header, a caption, a source, a note, each part
    of a verdict, and in its output."""
    for number, text in enumerate(texts):
        frame = pd.DataFrame({"method": [text, "b"], text: [1.0, 2.0]})
        study.table(frame, f"table_{number}", text, showing.Source(text, ()))
        study.note(text)
        said = {"paper": text, "interval": text, "rule": text}
        study.verdict(text, "holds", text, n=5, figure=f"table_{number}", **said)
    shown = [{"output_type": "display_data", "data": {showing.MIME: item}} for item, _ in outputs]
    shown += [{"output_type": "stream", "text": [text]} for text in texts]
    cells = [
        {"cell_type": "markdown", "source": "# A study\n\nWhy?", "metadata": {}},
        {"cell_type": "code", "source": "", "metadata": {}, "outputs": shown},
    ]
    notebook = study.folder / f"{STUDY}.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    return notebook


@pytest.mark.parametrize("texts", [EVIL, ENDLESS], ids=["markup", "endless"])
def test_a_text_of_others_is_shown_on_every_page(made, monkeypatch, texts):
    outputs = []
    monkeypatch.setattr(showing, "_display", lambda item, data: outputs.append((item, data)))
    study = showing.Study(STUDY, "tiny")
    notebook = executed(study, texts, outputs)
    for _, data in outputs:  # in JupyterLab
        assert not live(rendered(data.get("text/markdown", "")) + data.get("text/html", ""))
    front = report.render([notebook])
    for page in (front, study.folder / "README.md"):
        html = rendered(page.read_text())
        assert not live(html) and len(html) < 300_000
    page = site.Site("tiny").study(STUDY)
    assert not live(page) and len(page) < 400_000
    assert page.count("alert(1)") >= 30 * ("alert" in texts[0])
    assert not list(made.root.parent.rglob("up*"))


@pytest.mark.parametrize("text", EVIL, ids=lambda text: text[:20])
def test_what_is_taken_for_text_can_be_read(text):
    page = BeautifulSoup(rendered(plain.line(text)), "html.parser")
    assert not page(["h1", "h2", "table"])
    read = page.get_text().replace("\\", "")
    words = text.replace("\\", "").split()
    assert all(word in read for word in words if "](http" not in word)


@pytest.mark.parametrize("name", ["<script>", "a|b", "a`b", "a b", "../up", "![x](y)", "a\nb", ""])
def test_what_becomes_a_folder_and_an_address_has_a_plain_name(made, name):
    if "/" not in name and name:
        made.notebook(name, PARAMETERS)
    made.profile({name: {}}, "of_studies")
    (made.root / "notebooks" / f"{STUDY}.yaml").write_text(json.dumps({name: {}}))
    with pytest.raises(UserError, match="can not be the name of a (profile|study)") as told:
        studies.profile("of_studies")
    assert "\n" not in str(told.value)
    (made.root / "notebooks" / f"{STUDY}.yaml").unlink()
    with pytest.raises(UserError, match="can not be the name of a study"):
        studies.profile("of_studies")


def test_results_stay_in_their_folder(made):
    for profile in ("quick,networks=lenet300/digits", "quick,policy=../../../up", "../up"):
        folder = studies.folder(STUDY, profile)
        assert folder.resolve().parent.parent == made.root / "results"


def test_an_endless_line_makes_no_endless_page_or_sentence(tmp_path):
    endless = "<b>" * 3_000_000
    lines = [
        {"key": "a" * 64, "run": {"seed": 1}, "error": endless},
        {"key": "b" * 64, "run": {"seed": 2}, "metrics": {"x": endless, "y": {"z": [endless]}}},
    ]
    path = Path(tmp_path / "runs.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (line,) = runs.read(path)
    assert line["line"] == 2 and len(runs.script([line])) < 100_000
    assert len(str(unknown("data set", endless, ["digits"]))) < 500
