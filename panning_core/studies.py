"""The laboratory in one name, for scripts: what a run is, how it is done, and a sweep over many."""

from .experiments.studies import *  # noqa: F403
from .experiments.studies import _work  # noqa: F401
