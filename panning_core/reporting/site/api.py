"""The reference of the package: what its docstrings say, read from the source without importing it.

A page a module of the thin core, and one for each folder.
"""

from __future__ import annotations

import re
from pathlib import Path

import griffe
from markupsafe import Markup

from .text import markdown

PACKAGE = "panning_core"


def pages() -> list[dict]:
    """One a page: its ``name``, ``href``, ``question`` (its first paragraph) and ``things``: the
    modules, classes and functions on it, as ``_thing`` gives them; the thin core first.
    """
    package = griffe.load(
        PACKAGE,
        search_paths=[Path(__file__).parents[3]],
        docstring_parser="google",
        docstring_options={"warnings": False},
    )
    parts = sorted(package.modules.values(), key=lambda part: (_is_folder(part), part.name))
    return [_page(part) for part in parts if not part.name.startswith("_")]


def _is_folder(module: griffe.Module) -> bool:
    return module.is_package or module.is_subpackage


def _page(part: griffe.Module) -> dict:
    modules = [part, *(part.modules.values() if _is_folder(part) else ())]
    things = [thing for module in modules for thing in _module(module)]
    first = next((thing["text"] for thing in things if thing["text"]), Markup())
    return {
        "name": part.name,
        "href": f"api.{part.name}.html",
        "title": f"{PACKAGE}.{part.name}",
        "folder": _is_folder(part),
        "question": Markup(first.partition("</p>")[0].removeprefix("<p>")),
        "things": things,
    }


def _module(module: griffe.Module) -> list[dict]:
    """A module, its public functions and classes, and their methods, one after the other."""
    things = [thing for each in _public(module) for thing in _thing(each, 2)]
    return [_described(module, 1), *things] if module.docstring or things else []


def _public(parent: griffe.Object) -> list[griffe.Object]:
    """Functions and classes that are its own, in the order of the source, with a docstring."""
    own = [member for member in parent.members.values() if not member.is_alias]
    wanted = [each for each in own if each.is_function or each.is_class]
    return [each for each in wanted if each.docstring and not each.name.startswith("_")]


def _thing(found: griffe.Object, level: int) -> list[dict]:
    """A function, or a class and after it its methods."""
    methods = _public(found) if found.is_class else []
    inside = [thing for method in methods for thing in _thing(method, level + 1)]
    return [_described(found, level), *inside]


def _described(found: griffe.Object, level: int) -> dict:
    """What the page shows: ``level`` (1: module, 2: its own, 3: of a class), ``place`` on it,
    ``name``, ``signature``, ``text``, ``sections`` (title -> names with descriptions) and the plain
    ``words`` that a search looks through.
    """
    parsed = found.docstring.parsed if found.docstring else []
    sections: dict[str, list[tuple[str, Markup]]] = {}
    text = Markup()
    for section in parsed:
        if section.kind is griffe.DocstringSectionKind.text:
            text += _html(section.value)
        elif isinstance(section.value, list):
            title = section.title or section.kind.value.capitalize()
            sections[title] = [(_called(item), _html(item.description)) for item in section.value]
    return {
        "level": level,
        "place": found.path,
        "name": found.path.removeprefix(f"{PACKAGE}."),
        "signature": _signature(found),
        "text": text,
        "sections": sections,
        "words": found.docstring.value if found.docstring else "",
    }


def _called(item: griffe.DocstringElement) -> str:
    """The name of a parameter, or the type of what is raised or returned."""
    return getattr(item, "name", "") or str(item.annotation or "")


def _signature(found: griffe.Object) -> str:
    if found.is_function:
        return found.signature()
    if found.is_class:
        bases = ", ".join(map(str, found.bases))
        return f"class {found.name}" + f"({bases})" * bool(bases)
    return ""


def _html(text: str) -> Markup:
    """A docstring as HTML: its code stands between two backticks, or after a double colon."""
    return markdown(re.sub(r"::(?=\n|$)", ":", text.replace("``", "`")))
