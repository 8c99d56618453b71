"""What the search of the site looks through: an index that a page loads as a script, from disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from markupsafe import Markup

#: address, title and text of a place on the site
Place = tuple[str, str, str]

HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)</h2>', re.DOTALL)
EQUATION = re.compile(r"<math.*?</math>", re.DOTALL)


def plain(html: str) -> str:
    """The words of some HTML; an equation is none."""
    return Markup(EQUATION.sub(" ", html)).striptags()


def of_study(page: dict, blocks: Iterable[dict]) -> list[Place]:
    """The places of a notebook's page: its introduction, sections, tables, figures and verdicts."""
    places = [(page["href"], page["title"], plain(page.get("text", "")))]
    for block in blocks:
        if block["kind"] == "prose":
            parts = HEADING.split(block["html"])
            href, title, _ = places[-1]
            places.append((href, title, plain(parts[0])))
            for name, words, text in zip(parts[1::3], parts[2::3], parts[3::3]):
                places.append(
                    (f"{page['href']}#{name}", f"{page['title']}: {plain(words)}", plain(text))
                )
        elif block["kind"] == "verdict":
            text = f"{block['verdict']} {block['evidence']}"
            places.append((f"{page['href']}#{block['id']}", block["claim"], text))
        elif "file" in block:
            title, _, rest = block["caption"].partition(". ")
            text = " ".join([rest, *dict.fromkeys(_words(block))]).strip()
            places.append((f"{page['href']}#{block['file']}", title, text))
    return places


def _words(table: dict) -> Iterable[str]:
    """The words of a table: its header, and the cells that are no numbers."""
    yield from table.get("header", ())
    for row in table.get("rows", ()):
        yield from (cell["text"] for cell in row if cell["number"] is None)


def of_reference(page: dict) -> list[Place]:
    """The places of a page of the reference."""
    return [
        (f"{page['href']}#{thing['place']}", thing["name"], " ".join(thing["words"].split()))
        for thing in page["things"]
    ]


def script(places: Iterable[Place]) -> str:
    """The index as a script."""
    found = [place for place in dict.fromkeys(places) if place[1] or place[2]]
    return f"look({json.dumps(found, ensure_ascii=False, separators=(',', ':'))});\n"
