"""The report in Markdown: a page for each study, and a short front page.

The narrative is the notebooks' own: ``results/PROFILE/STUDY/README.md`` is the text of the executed
notebook, with its tables, figures and verdicts at the places where the cells show them.
``results/PROFILE/README.md`` holds the cells of the overview that are tagged ``front``, and leads
to the studies.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .study import MIME, italic, write

MADE = "<!-- made from the executed notebooks by `run_all.sh`; edit the notebooks instead -->"
FRONT = "front"  #: tag of a cell that the front page repeats


def render(notebooks: list[Path]) -> Path:
    """Write a profile's report from its executed notebooks, the overview first.

    Returns the path of the front page, which is written last.
    """
    cells = {path: json.loads(path.read_text())["cells"] for path in notebooks}
    pages = {path.parent / "README.md": _page(found, path.parent) for path, found in cells.items()}
    target = notebooks[0].parent.parent / "README.md"
    pages[target] = _front(cells, target.parent)
    for path, parts in pages.items():
        write(path, "\n\n".join([MADE, *parts]) + "\n")
    return target


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
            parts.append("".join(cell["source"]))
        parts += [_markdown(item, folder, start or folder) for item in items(cell)]
    return parts


def _front(cells: dict[Path, list[dict]], start: Path) -> list[str]:
    overview, *_ = cells
    tagged = [c for c in cells[overview] if FRONT in c.get("metadata", {}).get("tags", [])]
    entries = [_entry(path.stem, found) for path, found in cells.items()]
    return [*_page(tagged, overview.parent, start), "## Studies", "\n".join(entries)]


def _entry(study: str, cells: list[dict]) -> str:
    """A line of the front page: a place to link to, the study's title, and its verdicts."""
    title = "".join(cells[0]["source"]).partition("\n")[0].removeprefix("# ")
    counts = Counter(item["verdict"] for item in items(*cells) if item["kind"] == "verdict")
    words = ", ".join(f"{word} ({count})" for word, count in counts.most_common())
    return f'- <a id="{study}"></a>[{study[:2]} {title}]({study}/README.md)' + f": {words}" * bool(
        words
    )


def _markdown(item: dict, folder: Path, start: Path) -> str:
    if item["kind"] == "verdict":
        small = f"{item['rule']}; family of {item['family']}; n = {item['n']}"
        return "\n>\n> ".join(
            [
                f"> **Claim** ({item['paper']}). {item['claim']}",
                f"**{item['verdict']}.** {item['evidence']}",
                f"<sub>{small}</sub>",
            ]
        )
    source = [item["provenance"], *(_link(file, folder, start) for file in item["ledgers"])]
    caption = italic(item["caption"]) + f"<br>\n<sub>{' · '.join(source)}</sub>" * bool(source[0])
    file = folder / item["file"]
    if item["kind"] == "figure":
        return f"![{item['caption']}]({os.path.relpath(file, start)})\n\n{caption}"
    table = file.read_text()  # its links start in the study's folder
    return f"{caption}\n\n{table if start == folder else table.replace('](../', '](')}"


def _link(ledger: str, folder: Path, start: Path) -> str:
    """A link to a ledger, which is named from the profile's folder."""
    return f"[{ledger}]({os.path.relpath(folder.parent / ledger, start)})"
