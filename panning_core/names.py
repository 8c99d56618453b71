"""Tables of names that a user may add to, such as ``models.MODELS``."""

from __future__ import annotations

TABLES: dict[str, Table] = {}  #: "panning_core.models.MODELS" -> the table


class Table(dict):
    """Name -> what it stands for; it knows what was added later.

    Args:
        place: module and name of the table.
    """

    def __init__(self, place: str, entries: dict):
        super().__init__(entries)
        self.known = dict(entries)  # in every process: the package's own and those of plugins
        TABLES[place] = self

    def added(self) -> dict:
        """What this process alone has."""
        return {name: value for name, value in self.items() if self.known.get(name) is not value}
