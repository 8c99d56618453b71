"""Text of notebooks and docstrings as HTML: Markdown, equations, code, numbers."""

from __future__ import annotations

import re

from latex2mathml.converter import convert
from markupsafe import Markup, escape
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer


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


class Renderer(IPythonRenderer):
    """HTML with MathML and with headings that can be linked to; markup in the text is shown, not
    obeyed.
    """

    def __init__(self):
        super().__init__(escape=True, allow_harmful_protocols=False)
        self.sections: dict[str, str] = {}  # id -> title of the headings of level 2

    def inline_math(self, body: str, display: str = "inline") -> str:
        try:
            made = convert(body, display=display)
        except Exception:  # its errors have no base of their own; what it can not read a reader may
            return f"<code>{escape(body)}</code>"
        return made if display == "inline" else f'<span class="equation">{made}</span>'

    def block_math(self, body: str) -> str:
        return self.inline_math(body, "block")

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """As it is written: figures are a study's own, and no page asks a network for one."""
        return str(escape(f"![{text}]({url})"))

    def heading(self, text: str, level: int, **attrs) -> str:
        title = Markup(text).striptags()
        place = re.sub(r"\W+", "-", title.lower()).strip("-")
        if level == 2:
            self.sections[place] = title
        return f'<h{level} id="{place}">{text}</h{level}>\n'


def markdown(source: str, renderer: Renderer | None = None) -> Markup:
    """HTML of a notebook's markdown, its equations as MathML."""
    return Markup(
        MarkdownWithMath(renderer or Renderer(), inline=_Inline(hard_wrap=False)).render(source)
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
