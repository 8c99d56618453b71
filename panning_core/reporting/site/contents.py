"""What a profile's folder holds, as blocks for the templates of the site."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from functools import cache

import pandas as pd
from markupsafe import Markup, escape

from ... import ROOT
from ...experiments import studies
from ...runs import base
from .. import plain, report, sources, tables
from ..study import MIME
from . import references, runs
from .text import Renderer, code, markdown, number

OVERVIEW = "00_overview"
LINK = re.compile(r"\[([^][]+)\]\(([^()\s]+)\)")
PHONE = 40  #: letters in a row that a phone shows side by side
#: columns that no screen may cut
FIRST = ("verdict", "answer")


def address(study: str) -> str:
    """The file of a study's page."""
    return "index.html" if study == OVERVIEW else f"{study}.html"


class Contents:
    """What a profile's folder holds, and where on the site it stands.

    Attributes:
        notebooks: study -> its executed notebook, for the studies that came through; and the
            guides.
        guides: their names.
        own: name of a page of its own -> the cells of the overview that are on it.
        anchors: ``STUDY/FILE`` of every table and figure that is shown -> its address.
        lines: of a study, kind -> the ledger's lines.
        runs: of a study, ``runs.runs_table`` of its pruning runs.
    """

    def __init__(self, profile: str):
        self.profile = profile
        self.names = sorted(studies.profile(profile))
        self.folder = lambda study: studies.folder(study, profile)
        paths = {study: self.folder(study) / f"{study}.ipynb" for study in self.names}
        guides = {path.stem: path for path in sorted((ROOT / "notebooks").glob("guide_*.ipynb"))}
        self.notebooks = {
            study: json.loads(path.read_text())
            for study, path in (paths | guides).items()
            if path.exists()
        }
        self.guides = list(guides)
        self.own = self._own()
        self.anchors = {
            f"{study}/{item['file']}": f"{page}#{item['file']}"
            for study in self.notebooks
            for page, cells in self._pages(study).items()
            for item in report.items(*cells)
            if "file" in item
        }
        self.lines = cache(
            lambda study: tables.by_kind(runs.read(self.folder(study) / "runs.jsonl"))
        )
        self.runs = cache(
            lambda study: runs.runs_table(
                self.lines(study).get(base.FIRST, []),
                {run.key() for run in studies.runs(study, profile)},
            )
        )
        self.readers = cache(self._readers)

    def _own(self) -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {}
        for cell in self.notebooks.get(OVERVIEW, {"cells": []})["cells"]:
            for name in self.aside(cell):
                found.setdefault(name, []).append(cell)
        return found

    def aside(self, cell: dict) -> list[str]:
        """The pages of their own that a cell is on."""
        return [tag.removeprefix(report.PAGE) for tag in report.tags(cell, report.PAGE)]

    def _pages(self, study: str) -> dict[str, list[dict]]:
        """File of a page -> the cells of a notebook that are on it."""
        cells = self.notebooks[study]["cells"]
        pages = {address(study): [c for c in cells if not self.aside(c)]}
        if study == OVERVIEW:
            pages |= {f"{name}.html": cells for name, cells in self.own.items()}
        return pages

    def verdicts(self, study: str) -> list[dict]:
        """The verdicts of a study, in the order of its notebook."""
        shown = report.items(*self.notebooks[study]["cells"])
        return [item for item in shown if item["kind"] == "verdict"]

    def introduction(self, study: str) -> dict:
        """Title, rest of the first cell, and the first paragraph of that: what the study asks."""
        title, _, text = "".join(self.notebooks[study]["cells"][0]["source"]).partition("\n\n")
        return {
            "title": title.removeprefix("# "),
            "text": markdown(self.led(text)),
            "question": markdown(self.led(text.partition("\n\n")[0])),
        }

    def origin(self, study: str) -> dict[str, str]:
        """What the runs of a study, or of all for the overview, were made with and on."""
        lines = [
            line
            for name in (self.names if study == OVERVIEW else [study])
            for lines in self.lines(name).values()
            for line in lines
        ]
        origins = [line["provenance"] for line in lines]
        found = {
            "runs": [f"{len(lines):,}"] * bool(lines),
            "code": map(sources.commit, origins),
            "data": [o["data"]["title"] for o in origins if "data" in o],
            "versions": [
                f"PyTorch {o['versions']['torch']} on Python {o['versions']['python']}"
                for o in origins
            ],
            "device": [f"{o['device']} ({o['processor']}, {o['threads']} thread)" for o in origins],
        }
        return {name: ", ".join(dict.fromkeys(words)) for name, words in found.items()}

    # --- links ---

    def link(self, target: str) -> str | None:
        """Where a link of the report leads on the site: to a study's page, to a table or figure on
        it, to another page, out into the web; None where it leads nowhere.
        """
        place = re.sub(r"^(\.\./)+(notebooks/)?", "", target).removesuffix(".ipynb")
        place = place.removeprefix("README.md#").removesuffix("/README.md")
        place = place.replace("/README.md#", "/").rstrip("/")
        for ending in ("", ".png", ".md"):  # a place on a study's page has no ending
            if place + ending in self.anchors:
                return self.anchors[place + ending]
        if place in self.notebooks:
            return address(place)
        if place.removesuffix(".md") in (report.STUDIES, *self.own):
            return f"{place.removesuffix('.md')}.html"
        return target if re.match("https?://|#", target) else None

    def led(self, text: str) -> str:
        """Markdown whose links lead where ``link`` says; one that leads nowhere is its words."""

        def there(found: re.Match) -> str:
            href = self.link(found[2])
            return f"[{found[1]}]({href})" if href else found[1]

        return LINK.sub(there, text)

    def cell(self, text: str) -> Markup:
        """A table's cell as HTML: the name of a study and markdown links lead where ``link`` says,
        what stands between backticks is code, everything else is text.
        """
        if text not in self.notebooks and not {*"`["} & {*text}:  # nearly all of many
            return escape(text)
        parts = LINK.split(f"[{text}]({text})" if text in self.notebooks else text)
        html = _coded(parts[0])
        for words, target, after in zip(parts[1::3], parts[2::3], parts[3::3]):
            href = self.link(target)
            html += Markup('<a href="{}">{}</a>').format(href, words) if href else escape(words)
            html += _coded(after)
        return html

    # --- the runs behind a number ---

    def source(self, study: str, provenance: str = "") -> tuple[str | None, bool]:
        """The study whose runs a table or figure of ``study`` shows (None: no study's), and whether
        it can be of nothing else.

        A notebook that reads another study may show its runs anywhere; only a table's provenance
        tells.
        """
        text = provenance or "".join(
            "".join(cell["source"])
            for cell in self.notebooks[study]["cells"]
            if cell["cell_type"] == "code"
        )
        named = {name for name in self.names if name in text}
        (source,) = named if provenance and len(named) == 1 else (study,)
        shown = "benchmarks" not in provenance and self.lines(source)
        return source if shown else None, named <= {source}

    def _readers(self, study: str) -> list[references.Labels | references.Words]:
        """What reads the tables of a study: of its pruning runs, else of each of its kinds."""
        lines = self.lines(study)
        if base.FIRST in lines:
            titles = {
                line["run"]["dataset"]: line["provenance"]["data"]["title"]
                for line in lines[base.FIRST]
            }
            return [references.Labels(self.runs(study), titles)]
        return [
            references.Words(kind, runs.other_table(found), runs.settings(found))
            for kind, found in lines.items()
        ]

    def references(
        self, study: str, file: str, table: pd.DataFrame, provenance: str = "", against: str = ""
    ) -> list[list[str | None]]:
        """``references.read`` of a table of a study, for the runs that it can be of."""
        source, sure = self.source(study, provenance)
        if source is None:
            return [[None] * table.shape[1]] * len(table)
        found = [
            references.read(reader, source, file, table, sure, against)
            for reader in self.readers(source)
        ]
        return max(found, key=_narrowed)

    def kinds(self, study: str) -> dict[str, str]:
        """Short key -> kind of the runs of a study."""
        lines = self.lines(study).items()
        return {line["key"][:8]: kind for kind, found in lines for line in found}

    # --- blocks ---

    def table(self, table: pd.DataFrame, hrefs: list[list[str | None]] | None = None) -> dict:
        """A table of text for the template: header, and rows of cells with ``text``, ``html``,
        ``number`` and ``href``; a verdict first. Whether it is ``wide``: too much for a phone.
        """
        hrefs = hrefs or [[None] * table.shape[1]] * len(table)
        order = sorted(range(table.shape[1]), key=lambda i: table.columns[i] not in FIRST)
        rows = [
            [
                {"text": text, "html": self.cell(text), "number": number(text), "href": href}
                for text, href in zip(row, links)
            ]
            for row, links in zip(table.itertuples(index=False, name=None), hrefs)
        ]
        return {
            "header": [table.columns[i].replace("_", " ") for i in order],
            "rows": [[row[i] for i in order] for row in rows],
            "wide": sum(max(map(len, [name, *table[name]])) for name in table) > PHONE,
        }

    def blocks(self, study: str, cells: Iterable[dict], renderer: Renderer) -> list[dict]:
        """Cells of a notebook, in their order and ready for the template."""
        blocks: list[dict] = []
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                blocks.append({"kind": "prose", "html": markdown(self.led(source), renderer)})
                continue
            if blocks and blocks[-1]["kind"] == "code":  # nothing was shown in between
                blocks[-1]["html"] += code(source)
            else:
                blocks.append({"kind": "code", "html": code(source)})
            for output in cell["outputs"]:
                if item := _cut(output.get("data", {}).get(MIME, {})):
                    number_of = sum(block["kind"] == "verdict" for block in blocks) + 1
                    place = {"id": f"verdict-{number_of}"} if item["kind"] == "verdict" else {}
                    blocks.append({**item, **place, **self.shown(study, item)})
                elif output["output_type"] == "stream":
                    blocks.append({"kind": "text", "text": plain.cut("".join(output["text"]))})
        return blocks

    def shown(self, study: str, item: dict) -> dict:
        """What the template needs for what a notebook shows beyond its item."""
        if item["kind"] == "note":
            return {"kind": "prose", "html": markdown(self.led(item["text"]))}
        source = self.source(study, item.get("provenance", ""))[0]
        more = {"runs": source and f"{source}.runs.html"}
        if item["kind"] == "verdict":
            return more | {"shown": self.link(f"{study}/{item['figure']}")}
        path = self.folder(study) / item["file"]
        if item["kind"] == "figure":
            image = base64.b64encode(path.read_bytes()).decode()
            drawing = f"figures/{study}/{path.stem}.svg"
            there = (self.folder(study).parent / "html" / drawing).exists()
            return more | {
                "image": f"data:image/png;base64,{image}",
                "svg": drawing if there else None,
            }
        if not path.with_suffix(".csv").exists():
            return more | {"html": markdown(self.led(path.read_text()))}
        table = pd.read_csv(path.with_suffix(".csv"), dtype=str, keep_default_na=False)
        table = table.map(plain.cut).rename(columns=plain.cut)
        if source and item.get("keys"):
            hrefs = references.of_rows(source, table, item["keys"], self.kinds(source))
        else:
            told = (item.get("provenance", ""), item.get("against", ""))
            hrefs = self.references(study, item["file"], table, *told)
        return more | self.table(table, hrefs)


def _cut(item: dict) -> dict:
    """What a notebook shows, without endless texts."""
    return {name: plain.cut(v) if isinstance(v, str) else v for name, v in item.items()}


def _coded(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one is left over
        return escape(text)
    html = (Markup("<code>{}</code>" if i % 2 else "{}").format(p) for i, p in enumerate(parts))
    return Markup("").join(html)


def _narrowed(hrefs: list[list[str | None]]) -> int:
    """How many cells lead to fewer than all runs."""
    return sum("#" in (href or "") for row in hrefs for href in row)
