"""What a notebook shows with: ``reporting.Study`` and the tables, drawings and words it needs."""

from .figures import accuracy_axes, estimates, network_axes
from .names import COLOURS, MARKERS, METHODS, MODELS, label, method_name, percent
from .sources import Source
from .study import OWN, VERDICTS, Study, verdicts
from .tables import MARKED, UNITS, accuracy_table, fates, seeds, tally, tidy, told

__all__ = [
    "COLOURS", "MARKED", "MARKERS", "METHODS", "MODELS", "OWN", "Source", "Study", "UNITS",
    "VERDICTS", "accuracy_axes", "accuracy_table", "estimates", "fates", "label", "method_name",
    "network_axes", "percent", "seeds", "tally", "tidy", "told", "verdicts",
]  # fmt: skip
