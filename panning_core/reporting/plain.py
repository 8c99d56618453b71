"""Names and texts of others on a page of Markdown: shown as they are, never obeyed, never endless.

Links and code are Markdown that tables of notebooks mean. What a table or sentence has no use for
is taken for text: tags, entities, pictures, and links that are no address.
"""

from __future__ import annotations

import re

LONGEST = 10_000  #: characters of a text; nobody reads more

#: what Markdown would obey -> an entity that shows it, which no backslash before it undoes
OBEYED = {
    r"&(?=#|\w+;)": "&amp;",
    r"<(?=[A-Za-z/!?])": "&lt;",
    r"!(?=\[)": "&#33;",
    r"(?<=\])\((?=\s*(?!https?:)[A-Za-z][\w+.-]*:)": "&#40;",
}


def cut(words: str) -> str:
    """A text no longer than anybody reads."""
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} …"


def text(words: str) -> str:
    """Markdown of one or more paragraphs."""
    words = cut(words)
    for found, shown in OBEYED.items():
        words = re.sub(found, shown, words)
    return words


def line(words: str) -> str:
    """Markdown of one line."""
    return re.sub(r"\s*[\r\n]\s*", " ", text(words))


def cell(words: object) -> object:
    """A cell of a Markdown table; what is no text stays."""
    return line(words).replace("|", r"\|") if isinstance(words, str) else words
