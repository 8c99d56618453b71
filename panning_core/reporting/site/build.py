"""The pages of the site, and their files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader

from ...experiments import studies
from ...runs import base
from ..report import STUDIES
from ..study import OWN, VERDICTS, write
from . import api, mask, place, runs, search
from .contents import OVERVIEW, Contents, address
from .text import Renderer

#: what a verdict begins with, and the class of its colour
MARKS = {
    "✔": "holds",
    "◐": "part",
    "≈": "part",
    "✘": "fails",
    "?": "open",
    "–": "open",
}


def build(profile: str) -> Path:
    """Make the site of a profile anew, in a few seconds; returns its index. Pages of studies that
    have not come through are taken away.
    """
    pages = Site(profile).pages()
    folder = studies.folder(OVERVIEW, profile).parent / "html"
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.html"), *folder.glob("*.js")]:
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        write(folder / name, text)
    return folder / "index.html"


def title(name: str) -> str:
    """The title of a page from the name of its file."""
    return name.replace("_", " ")


class Site:
    """The pages of a profile's site."""

    def __init__(self, profile: str):
        self.contents = Contents(profile)
        self.environment = Environment(
            loader=PackageLoader("panning_core.reporting", "page"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        entries = [self.entry(name) for name in self.contents.notebooks]
        self.environment.globals |= {
            "entries": entries,
            "marks": MARKS,
            "overview": OVERVIEW,
            "guides": self.contents.guides,
            "verdicts": dict(zip(VERDICTS.values(), VERDICTS)),
            "claims": place.claims(self.contents),
            "place": place.of(self.contents),
            "more": self.more(),
        }
        self.places: list[search.Place] = []  # of what has been made, for the search
        self.entries = {entry["name"]: entry for entry in entries}

    def entry(self, name: str) -> dict:
        """What the other pages say of a page: its name, number, address, title and verdicts."""
        verdicts = self.contents.verdicts(name)
        return {
            "name": name,
            "number": name[:2] if name in self.contents.names else "",
            "href": address(name),
            **self.contents.introduction(name),
            "marks": Counter(item["verdict"][0] for item in verdicts),
        }

    def more(self) -> dict[str, str]:
        """Address -> title of the pages that are no notebook's."""
        own = {f"{name}.html": title(name) for name in (STUDIES, *self.contents.own)}
        return own | {"mask.html": "how to read a mask", "api.html": "the package"}

    def render(self, template: str, **values) -> str:
        return self.environment.get_template(template).render(values)

    def pages(self) -> dict[str, str]:
        """The site: name of a file -> its text."""
        index = {"name": OVERVIEW, "title": "Pruning before training", "href": "index.html"}
        made = {"index.html": self.render("index.html", page=index)}
        listed = {"title": "The studies", "href": f"{STUDIES}.html"}
        made[listed["href"]] = self.render("studies.html", page=listed)
        for name in self.contents.notebooks:
            made[address(name)] = self.study(name)
            if name in self.contents.names and self.contents.lines(name):
                made |= self.runs(name)
        for name, cells in self.contents.own.items():
            made[f"{name}.html"] = self.own(name, cells)
        made |= self.reference() | {"mask.html": self.mask(), "search.html": self.search()}
        return made | {"index.js": search.script(self.places)}

    def study(self, name: str) -> str:
        """The page of a notebook."""
        cells, renderer = self.contents.notebooks[name]["cells"][1:], Renderer()
        cells = [cell for cell in cells if not self.contents.aside(cell)]
        blocks = self.contents.blocks(name, cells, renderer)
        self.places += search.of_study(self.entries[name], blocks)
        return self.render(
            "index.html" if name == OVERVIEW else "study.html",
            page=self.entries[name],
            blocks=blocks,
            sections=renderer.sections,
            said=self.said(blocks),
            front=name == OVERVIEW,
            origin=self.contents.origin(name),
        )

    @staticmethod
    def said(blocks: list[dict]) -> list[dict]:
        """The verdicts of a page, for its beginning: those on the claims of papers first."""
        cards = [block for block in blocks if block["kind"] == "verdict"]
        return sorted(cards, key=lambda card: card.get("paper", OWN) == OWN)

    def own(self, name: str, cells: list[dict]) -> str:
        """A page of its own of cells of the overview; a heading at its beginning is the title."""
        heading, _, rest = "".join(cells[0]["source"]).partition("\n")
        titled = heading.startswith("# ")
        if titled:
            cells = [{**cells[0], "source": rest}, *cells[1:]]
        renderer = Renderer()
        blocks = self.contents.blocks(OVERVIEW, cells, renderer)
        page = {
            "name": name,
            "href": f"{name}.html",
            "title": heading.removeprefix("# ") if titled else title(name),
        }
        self.places += search.of_study(page, blocks)
        return self.render(
            "study.html", page=page, blocks=blocks, sections=renderer.sections, front=True
        )

    def runs(self, name: str) -> dict[str, str]:
        """The pages of a study's runs: all in tables, and each by itself."""
        found = self.contents.lines(name)
        tables = {
            kind: self.runs_table(
                name, self.contents.runs(name) if kind == base.FIRST else runs.other_table(lines)
            )
            for kind, lines in found.items()
        }
        common = {"page": self.entries[name], "origin": self.contents.origin(name)}
        lines = [line for each in found.values() for line in each]
        return {
            f"{name}.runs.html": self.render("runs.html", tables=tables, **common),
            f"{name}.run.html": self.render("run.html", **common),
            f"{name}.runs.js": runs.script(lines),
        }

    def runs_table(self, name: str, table: pd.DataFrame) -> dict:
        """A table of runs for the template, whose keys lead to the runs."""
        rest = [None] * (table.shape[1] - 1)
        return self.contents.table(table, [[f"{name}.run.html#{k}", *rest] for k in table.key])

    def reference(self) -> dict[str, str]:
        """The pages of the reference of the package, and their index."""
        parts = api.pages()
        self.places += [place for part in parts for place in search.of_reference(part)]
        index = {"title": "The package", "href": "api.html"}
        return {
            "api.html": self.render("api.html", page=index, parts=parts),
            **{part["href"]: self.render("api.html", page=part) for part in parts},
        }

    def mask(self) -> str:
        """The page that teaches how to read a mask."""
        text = self.render(
            "mask.html",
            page={"title": "How to read a mask", "href": "mask.html"},
            examples=mask.examples(),
        )
        self.places.append(("mask.html", "How to read a mask", search.plain(text)))
        return text

    def search(self) -> str:
        """The page of the search."""
        return self.render("search.html", page={"title": "Search", "href": "search.html"})
