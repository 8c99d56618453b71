"""A profile's results as a site that opens from disk: ``results/PROFILE/html/index.html``.

A page for each executed notebook, and beside it one with the runs behind its numbers. Every page is
one file that loads nothing; ``page/`` holds their template, style and script.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from latex2mathml.converter import convert
from markupsafe import Markup, escape
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from .. import ROOT, data
from ..experiments import studies
from ..experiments.ledger import Ledger
from ..runs import base
from . import names, report, sources, tables
from .study import MIME, VERDICTS

OVERVIEW = "00_overview"
GUIDE = "guide_add_your_own_metric"
#: What a column of labels says of the runs behind its row. "rival" or "subject" say nothing: a
#: difference stands on the runs of two methods.
USUAL = "by seed"  #: the order of the training images, where a run names no other
FACETS = {
    "data": "data",
    "network": "network",
    "method": "method",
    "pruned by": "method",
    "variant": "method",
    "pruner": "method",
    "sparsity": "sparsity",
    "control": "control",
}
#: what a verdict begins with, and the class of its colour
MARKS = {
    "✔": "holds",
    "◐": "part",
    "≈": "part",
    "✘": "fails",
    "?": "open",
    "–": "open",
}


# --- text -----------------------------------------------------------------------------------------


class _Inline(MathInlineParser):
    """Maths as code hosts read it: no space inside the dollar signs, no letter or digit next to
    them outside. Any other dollar sign is one.
    """

    SPECIFICATION = {
        **MathInlineParser.SPECIFICATION,
        "inline_math_tex": (
            r"(?<![\w$\\])\$(?![\s$])(?P<math_inline_tex>[^$]+?)(?<![\s\\])\$(?![\w$])"
        ),
    }


class _Renderer(IPythonRenderer):
    """HTML with MathML and with headings that can be linked to; markup in the text is shown, not
    obeyed.
    """

    def __init__(self):
        super().__init__(escape=True, allow_harmful_protocols=False)
        self.sections: dict[str, str] = {}  # id -> title of the headings of level 2

    def inline_math(self, body: str, display: str = "inline") -> str:
        try:
            return convert(body, display=display)
        except Exception:  # its errors have no base of their own; what it can not read a reader may
            return f"<code>{escape(body)}</code>"

    def block_math(self, body: str) -> str:
        return self.inline_math(body, "block")

    def heading(self, text: str, level: int, **attrs) -> str:
        title = Markup(text).striptags()
        place = re.sub(r"\W+", "-", title.lower()).strip("-")
        if level == 2:
            self.sections[place] = title
        return f'<h{level} id="{place}">{text}</h{level}>\n'


def markdown(source: str, renderer: _Renderer | None = None) -> Markup:
    """HTML of a notebook's markdown, its equations as MathML."""
    return Markup(
        MarkdownWithMath(renderer or _Renderer(), inline=_Inline(hard_wrap=False)).render(source)
    )


def code(source: str) -> Markup:
    """HTML of Python code, in colours."""
    return Markup(highlight(source, PythonLexer(), HtmlFormatter()))


def number(text: str) -> float | None:
    """The number that a cell begins with, as in ``"95.74 [95.48, 95.88]"``, ``"98 %"`` or
    ``"1,000"``; None if it begins otherwise.
    """
    found = re.match(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?(?!\w)", text.replace("−", "-"))
    return float(found[0].rstrip(",").replace(",", "")) if found else None


# --- runs -----------------------------------------------------------------------------------------


def read(path: Path) -> list[dict]:
    """The finished runs of a ledger, each with the number of its ``line``."""
    rows, places = Ledger(path).rows(), {}
    for place, line in enumerate(path.read_bytes().splitlines() if rows else [], 1):
        if b'"metrics"' in line:  # the first such line of a key counts, as for the ledger
            places.setdefault(re.search(rb'"key": "(\w+)"', line)[1].decode(), place)
    return [{**row, "line": places[row["key"]]} for row in rows]


def runs_table(lines: list[dict], current: set[str]) -> pd.DataFrame:
    """One row a run, all text, in the words of the tables: settings that vary and those that every
    reader looks for, results, origin.

    ``current`` are the keys of the study's grid; a column of that name tells them from the runs
    that an earlier grid has left, where there are any.
    """
    if not lines:
        return pd.DataFrame()
    tidy = tables.tidy(lines)
    known = pd.DataFrame(
        {
            "key": tidy.key.str[:8],
            "data": [line["provenance"]["data"]["title"] for line in lines],
            "network": tidy.model.map(lambda name: names.MODELS.get(name, name)),
            "method": tidy.apply(names.label, axis=1),
            "sparsity": tidy.sparsity.map(names.percent),
            "seed": tidy.seed,
            "rounds": tidy["rounds"].map(lambda rounds: "" if pd.isna(rounds) else f"{rounds:.0f}"),
            "control": tidy.control,
            "epochs": tidy.epochs,
        }
    )
    # "network" is the field here: whether the network is recorded.
    rest = {field.name for field in dataclasses.fields(studies.Run)} - {
        *known,
        "dataset",
        "model",
    } | {"network"}
    others = (
        tidy[[name for name in tidy if name in rest]]
        .rename(columns={"network": "network recorded"})
        .assign(current=tidy.key.isin(current), order=[_order(line) for line in lines])
    )
    results = pd.DataFrame(
        {
            "test accuracy (%)": [
                "" if pd.isna(a) else f"{100 * a:.2f}" for a in tidy.test_accuracy
            ],
            "effective weights": tidy.effective_weights.map("{:,.0f}".format),
        }
    )
    return pd.concat([known, _varying(others), results, _origins(lines)], axis=1).astype(str)


def other_table(lines: list[dict]) -> pd.DataFrame:
    """The same for the runs of another kind."""
    settings = pd.DataFrame([dataclasses.asdict(base.read(line)) for line in lines])
    results = pd.DataFrame(
        [
            {
                name: _word(value)
                for name, value in line["metrics"].items()
                if not isinstance(value, (dict, list))
            }
            for line in lines
        ]
    )
    keys = pd.Series([line["key"][:8] for line in lines], name="key")
    return pd.concat(
        [keys, _varying(settings), results.rename(columns=_spaced), _origins(lines)], axis=1
    ).astype(str)


def _order(line: dict) -> str:
    return str(line["run"].get("order", USUAL))


def _varying(settings: pd.DataFrame) -> pd.DataFrame:
    words = settings.map(_word).rename(columns=_spaced)
    return words.loc[:, words.nunique() > 1]


def _origins(lines: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "seconds": f"{line['provenance']['seconds']:.4g}",
                "commit": sources.commit(line["provenance"]),
                "device": line["provenance"]["device"],
                "line": line["line"],
            }
            for line in lines
        ]
    )


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _word(value: object) -> str:
    if isinstance(value, (list, tuple)):  # of options: pairs of name and value
        return ", ".join(
            " ".join(map(_word, each)) if isinstance(each, tuple) else _word(each) for each in value
        )
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    return (
        ""
        if value is None or value != value
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )


# --- the site -------------------------------------------------------------------------------------


def build(profile: str) -> Path:
    """Make the site of a profile anew, in a few seconds; returns its index. Pages of studies that
    have not come through are taken away.
    """
    site = Site(profile)
    folder = studies.folder(OVERVIEW, profile).parent / "html"
    folder.mkdir(parents=True, exist_ok=True)
    pages = site.pages()
    for old in folder.glob("*.html"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text)
    return folder / "index.html"


def address(study: str) -> str:
    """The file of a study's page."""
    return "index.html" if study == OVERVIEW else f"{study}.html"


class Site:
    """What a profile's folder holds, and where on the site it stands.

    Attributes:
        notebooks: study -> its executed notebook, for the studies that came through; and the guide.
        anchors: ``STUDY/FILE`` of every table and figure that a page shows.
        lines: of a study, kind -> the ledger's lines.
        runs: of a study, ``runs_table`` of its pruning runs.
    """

    def __init__(self, profile: str):
        self.names = sorted(studies.profile(profile))
        self.folder = lambda study: studies.folder(study, profile)
        paths = {study: self.folder(study) / f"{study}.ipynb" for study in self.names} | {
            GUIDE: ROOT / "notebooks" / f"{GUIDE}.ipynb"
        }
        self.notebooks = {
            study: json.loads(path.read_text()) for study, path in paths.items() if path.exists()
        }
        self.anchors = {
            f"{study}/{item['file']}"
            for study in self.notebooks
            for item in self.items(study)
            if "file" in item
        }
        self.lines = cache(lambda study: tables.by_kind(read(self.folder(study) / "runs.jsonl")))
        self.runs = cache(
            lambda study: runs_table(
                self.lines(study).get(base.FIRST, []),
                {run.key() for run in studies.runs(study, profile)},
            )
        )

    def items(self, study: str) -> list[dict]:
        """The tables, figures and verdicts that a notebook shows."""
        return report.items(*self.notebooks[study]["cells"])

    def pages(self) -> dict[str, str]:
        """The site: name of a file -> its HTML."""
        environment = Environment(
            loader=PackageLoader("panning_core.reporting", "page"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        entries = [
            {
                "name": name,
                "number": name[:2] if name in self.names else "",
                "href": address(name),
                **self.introduction(name),
                "marks": Counter(
                    item["verdict"][0] for item in self.items(name) if item["kind"] == "verdict"
                ),
            }
            for name in self.notebooks
        ]
        common = {
            "entries": entries,
            "marks": MARKS,
            "overview": OVERVIEW,
            "guide": GUIDE,
            "verdicts": dict(zip(VERDICTS.values(), VERDICTS)),
            "tally": sum((entry["marks"] for entry in entries), Counter()),
        }
        made = {
            "index.html": environment.get_template("index.html").render(
                common, page={"name": OVERVIEW, "title": "Panning"}
            )
        }
        for page in entries:
            renderer = _Renderer()
            blocks = self.blocks(page["name"], renderer)
            template = environment.get_template(
                "index.html" if page["name"] == OVERVIEW else "study.html"
            )
            made[page["href"]] = template.render(
                common,
                page=page,
                blocks=blocks,
                sections=renderer.sections,
                origin=self.origin(page["name"]),
            )
            if page["name"] in self.names and (found := self.lines(page["name"])):
                tables = {
                    kind: self.table(
                        self.runs(page["name"]) if kind == base.FIRST else other_table(lines)
                    )
                    for kind, lines in found.items()
                }
                made[f"{page['name']}.runs.html"] = environment.get_template("runs.html").render(
                    common, page=page, tables=tables, origin=self.origin(page["name"])
                )
        return made

    def introduction(self, study: str) -> dict:
        """Title, rest of the first cell, and the first paragraph of that: what the study asks."""
        title, _, text = "".join(self.notebooks[study]["cells"][0]["source"]).partition("\n\n")
        return {
            "title": title.removeprefix("# "),
            "text": markdown(text),
            "question": markdown(text.partition("\n\n")[0]),
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

    def link(self, target: str) -> str | None:
        """Where a link of the report leads on the site: to a study's page, to a table or figure on
        it, out into the web; None where it leads nowhere.
        """
        place = target.removeprefix("../").removeprefix("README.md#").removesuffix("/README.md")
        place = place.rstrip("/")
        study, _, file = place.partition("/")
        if place in self.anchors or place in self.notebooks:
            return address(study) + f"#{file}" * bool(file)
        return target if re.match("https?://", target) else None

    def led(self, text: str) -> str:
        """Markdown whose links lead where ``link`` says."""

        def there(found: re.Match) -> str:
            href = self.link(found[2])
            return f"[{found[1]}]({href})" if href else found[1]

        return re.sub(r"\[([^][]+)\]\(([^()\s]+)\)", there, text)

    def cell(self, text: str) -> Markup:
        """A table's cell as HTML: the name of a study and markdown links lead where ``link`` says,
        everything else is text.
        """
        parts = re.split(
            r"\[([^][]+)\]\(([^()\s]+)\)", f"[{text}]({text})" if text in self.notebooks else text
        )
        html = escape(parts[0])
        for words, target, after in zip(parts[1::3], parts[2::3], parts[3::3]):
            html += (
                Markup('<a href="{}">{}</a>').format(href, words)
                if (href := self.link(target))
                else words
            ) + after
        return html

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

    # One piece: each part narrows the same wish, what a cell is of, by one more thing that it reads.
    def references(
        self, study: str, file: str, table: pd.DataFrame, provenance: str = ""
    ) -> list[list[str | None]]:
        """For each cell of a table the address of the runs behind its number; None where it has
        none.

        They are narrowed by what can be read off: the labels of its row, the header of its column,
        a network or data set in the file's name. If the table names a sparsity, network or data set
        that the runs lack, or one cell asks for runs that do not exist, it is of something else,
        and all its cells lead to all runs.
        """
        source, sure = self.source(study, provenance)
        if source is None or self.runs(source).empty:
            return [[None] * table.shape[1]] * len(table)
        runs = self.runs(source)
        values = {facet: set(runs[facet]) for facet in FACETS.values()}
        titles = {
            line["run"]["dataset"]: line["provenance"]["data"]["title"]
            for line in self.lines(source)[base.FIRST]
        }
        given = {"current": "yes"} if "current" in runs else {}
        if "order" in runs:  # a table of masks shows their usual order
            given["order"] = USUAL
        for part, after in pairwise([*Path(file).stem.split("_"), ""]):
            if after == "epochs":
                given["epochs"] = part
            given |= (
                {"network": names.MODELS[part]}
                if part in names.MODELS
                else {"data": titles[part]}
                if part in titles
                else {}
            )
            given |= (
                {"normalisation": part}
                if part in data.NORMALISATIONS and "normalisation" in runs
                else {}
            )

        def facets(row: dict, header: str) -> dict[str, str] | None:
            if header in FACETS or header.startswith("published") or number(row[header]) is None:
                return None
            found = given | {
                FACETS[name]: cell
                for name, cell in row.items()
                if name in FACETS and cell in values[FACETS[name]]
            }
            for facet in values:
                if header in values[facet] and found.setdefault(facet, header) != header:
                    del found[facet]  # row and column contradict each other
            return found

        cells = [[facets(row, header) for header in table] for row in table.to_dict("records")]
        kinds = runs[list({*values, *given})].drop_duplicates().to_dict("records")
        named = {"sparsity": {header for header in table if re.fullmatch(r"[\d.]+ %", header)}} | {
            name: set(table[name]) for name in ("data", "network") if name in table
        }
        sure = (
            sure
            and all(words <= values[name] for name, words in named.items())
            and all(
                any(wanted.items() <= kind.items() for kind in kinds)
                for row in cells
                for wanted in row
                if wanted is not None
            )
        )

        def href(wanted: dict[str, str]) -> str:
            told = sure and wanted.keys() - {"current"}
            return f"{source}.runs.html" + (
                "#" + "&".join(f"{facet}={quote(value)}" for facet, value in wanted.items())
            ) * bool(told)

        return [[None if wanted is None else href(wanted) for wanted in row] for row in cells]

    def table(self, table: pd.DataFrame, references: list[list[str | None]] | None = None) -> dict:
        """A table of text for the template: header, and rows of cells with ``text``, ``html``,
        ``number`` and ``href``.
        """
        references = references or [[None] * table.shape[1]] * len(table)
        return {
            "header": list(table),
            "rows": [
                [
                    {"text": text, "html": self.cell(text), "number": number(text), "href": href}
                    for text, href in zip(row, hrefs)
                ]
                for row, hrefs in zip(table.itertuples(index=False, name=None), references)
            ],
        }

    def blocks(self, study: str, renderer: _Renderer) -> list[dict]:
        """The cells of a notebook after its introduction, in their order and ready for the
        template.
        """
        blocks: list[dict] = []
        for cell in self.notebooks[study]["cells"][1:]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                blocks.append({"kind": "prose", "html": markdown(source, renderer)})
                continue
            if blocks and blocks[-1]["kind"] == "code":  # nothing was shown in between
                blocks[-1]["html"] += code(source)
            else:
                blocks.append({"kind": "code", "html": code(source)})
            for output in cell["outputs"]:
                if item := output.get("data", {}).get(MIME):
                    blocks.append({**item, **self.shown(study, item)})
                elif output["output_type"] == "stream":
                    blocks.append({"kind": "text", "text": "".join(output["text"])})
        return blocks

    def shown(self, study: str, item: dict) -> dict:
        """What the template needs for a table, figure or verdict beyond its item."""
        if item["kind"] == "note":
            return {"kind": "prose", "html": markdown(self.led(item["text"]))}
        more = {
            "runs": (
                f"{source}.runs.html"
                if (source := self.source(study, item.get("provenance", ""))[0])
                else None
            )
        }
        if item["kind"] == "verdict":
            return more | {"shown": self.link(f"{study}/{item['figure']}")}
        path = self.folder(study) / item["file"]
        if item["kind"] == "figure":
            return more | {"image": base64.b64encode(path.read_bytes()).decode()}
        if not path.with_suffix(".csv").exists():
            return more | {"html": markdown(path.read_text())}
        table = pd.read_csv(path.with_suffix(".csv"), dtype=str, keep_default_na=False)
        return more | self.table(
            table, self.references(study, item["file"], table, item.get("provenance", ""))
        )
