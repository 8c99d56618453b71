"""What a notebook shows with: ``reporting.Study`` and the tables, drawings and words it needs."""

from . import names
from .axes import logarithmic
from .figures import accuracy_axes, band, bars, estimates, network_axes
from .names import MODELS, label, method_name, percent
from .sources import Source
from .study import OWN, VERDICTS, Study, verdicts
from .tables import MARKED, UNITS, accuracy_table, fates, points, seeds, tally, tidy, told

__all__ = [
    "MARKED", "MODELS", "OWN", "Source", "Study", "UNITS", "VERDICTS", "accuracy_axes",
    "accuracy_table", "band", "bars", "estimates", "fates", "label", "logarithmic", "method_name",
    "network_axes", "percent", "points", "seeds", "tally", "tidy", "told", "verdicts",
]  # fmt: skip


def __getattr__(name: str) -> dict[str, str]:
    """``METHODS``, ``COLOURS`` and ``MARKERS`` of ``names``, with what plugins have added by
    now.
    """
    if name not in ("METHODS", "COLOURS", "MARKERS"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(names, name)
