"""The report in Markdown: a page for each study, and a short front page.

The narrative is the notebooks' own: ``results/PROFILE/STUDY/README.md`` is the text of the executed
notebook, with its tables, figures and verdicts at the places where the cells show them, and all its
verdicts first. ``results/PROFILE/README.md`` holds the cells of the overview that are tagged
``front``; cells tagged ``page:NAME`` make the page ``results/PROFILE/NAME.md``, and ``studies.md``
lists the studies.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from . import plain
from .study import MIME, OWN, italic, write

MADE = "<!-- made from the executed notebooks by `run_all.sh`; edit the notebooks instead -->"
FRONT = "front"  #: tag of a cell that the front page repeats
PAGE = "page:"  #: begins the tag of a cell that stands on a page of its own
STUDIES = "studies"  #: the page that lists them


def render(notebooks: list[Path]) -> Path:
    """Write a profile's report from its executed notebooks, the overview first.

    Returns the path of the front page, which is written last.
    """
    cells = {path: json.loads(path.read_text())["cells"] for path in notebooks}
    target = notebooks[0].parent.parent / "README.md"
    pages = {}
    for path, found in cells.items():
        folder, own = path.parent, [cell for cell in found if not tags(cell, PAGE)]
        pages[folder / "README.md"] = _verdicts_first(_page(own, folder), items(*own))
        for name in dict.fromkeys(tag for cell in found for tag in tags(cell, PAGE)):
            there = [cell for cell in found if name in tags(cell, PAGE)]
            place = target.parent / f"{name.removeprefix(PAGE)}.md"
            pages[place] = _page(there, folder, target.parent)
    pages[target.parent / f"{STUDIES}.md"] = _studies(cells)
    pages[target] = _front(cells, target.parent)
    for path, parts in pages.items():
        write(path, "\n\n".join([MADE, *parts]) + "\n")
    return target


def tags(cell: dict, start: str) -> list[str]:
    """The tags of a cell that begin with ``start``."""
    return [tag for tag in cell.get("metadata", {}).get("tags", []) if tag.startswith(start)]


def items(*cells: dict) -> list[dict]:
    """The tables, figures and verdicts that executed cells show."""
    data = (output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    return [found[MIME] for found in data if MIME in found]


def is_whole(notebook: Path) -> bool:
    """Whether an executed notebook is there with every file that it shows."""
    return notebook.exists() and all(
        (notebook.parent / item["file"]).exists()
        for item in items(*json.loads(notebook.read_text())["cells"])
        if "file" in item
    )


def _page(cells: Iterable[dict], folder: Path, start: Path | None = None) -> list[str]:
    """The parts of a page: the cells' text, and what they show from the study's ``folder``.

    Links are relative to ``start``, the folder of the page; None is the study's own.
    """
    parts = []
    for cell in cells:
        if cell["cell_type"] == "markdown":
            parts.append(_moved("".join(cell["source"]), folder, start))
        parts += [_markdown(item, folder, start or folder) for item in items(cell)]
    return parts


def _moved(text: str, folder: Path, start: Path | None) -> str:
    """Markdown with the links of the study's ``folder`` as they are in the one above it."""
    return text if start in (None, folder) else text.replace("](../", "](")


def _verdicts_first(parts: list[str], shown: list[dict]) -> list[str]:
    """The parts of a study's page with a table of its verdicts below the title: the claims of
    papers, then the study's own, folded in where there are both.
    """
    found = [item for item in shown if item["kind"] == "verdict"]
    if not found:
        return parts
    head = "| verdict | claim | the number that decides | n |\n|:--|:--|:--|:--|"
    named, own = ([i for i in found if (i["paper"] == OWN) == mine] for mine in (False, True))
    rows = ["\n".join([head, *map(_row, part)]) for part in (named, own) if part]
    if rows[1:]:
        words = f"{len(own)} more verdict{'s' * (len(own) > 1)}, on questions of this study"
        rows[1] = f"<details><summary>{words}</summary>\n\n{rows[1]}\n\n</details>"
    title, _, text = parts[0].partition("\n")
    return [title, "**Verdicts**", *rows, text.strip(), *parts[1:]]


def _row(item: dict) -> str:
    whose = f" ({item['paper']})" * (item["paper"] != OWN)
    place = f"[{item['interval']}](#{Path(item['figure']).stem})"
    cells = (item["verdict"], item["claim"] + whose, place, str(item["n"]))
    return f"| {' | '.join(map(plain.cell, cells))} |"


def _front(cells: dict[Path, list[dict]], start: Path) -> list[str]:
    overview, *_ = cells
    tagged = [cell for cell in cells[overview] if tags(cell, FRONT)]
    return _page(tagged, overview.parent, start)


def _studies(cells: dict[Path, list[dict]]) -> list[str]:
    """A row a study: a link by its short name, its title, and how many of its verdicts say what."""
    rows = ["| study | question | verdicts |", "|:--|:--|:--|"]
    for path, found in cells.items():
        title = "".join(found[0]["source"]).partition("\n")[0].removeprefix("# ")
        marks = Counter(item["verdict"][0] for item in items(*found) if item["kind"] == "verdict")
        words = " ".join(f"{mark} {count}" for mark, count in marks.most_common())
        link = f"[{path.stem.replace('_', ' ')}]({path.stem}/README.md)"
        rows.append(f"| {link} | {title} | {words} |")
    return ["# The studies", "\n".join(rows)]


def _markdown(item: dict, folder: Path, start: Path) -> str:
    if item["kind"] == "note":
        return _moved(plain.text(item["text"]), folder, start)
    if item["kind"] == "verdict":
        small = f"{item['rule']}; family of {item['family']}; n = {item['n']}"
        said = {name: plain.line(item[name]) for name in ("paper", "claim", "verdict", "evidence")}
        return "\n>\n> ".join(
            [
                f"> **Claim** ({said['paper']}). {said['claim']}",
                f"**{said['verdict']}.** {said['evidence']}",
                f"<sub>{plain.line(small)}</sub>",
            ]
        )
    words = plain.line(item["caption"])
    source = [plain.line(item["provenance"])]
    source += [_link(file, folder, start) for file in item["ledgers"]]
    caption = italic(words) + f"<br>\n<sub>{' · '.join(source)}</sub>" * bool(source[0])
    file = folder / item["file"]
    place = f'<a id="{file.stem}"></a>'
    if item["kind"] == "figure":
        alt = words.replace("](", "]&#40;")  # its end is the picture's, whatever it says
        return f"{place}![{alt}]({os.path.relpath(file, start)})\n\n{caption}"
    return f"{place}{caption}\n\n{_moved(file.read_text(), folder, start)}"


def _link(ledger: str, folder: Path, start: Path) -> str:
    """A link to a ledger, which is named from the profile's folder."""
    return f"[{ledger}]({os.path.relpath(folder.parent / ledger, start)})"
