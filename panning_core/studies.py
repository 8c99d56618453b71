"""The laboratory in one name; what it is made of stands in ``experiments``."""

from .experiments.studies import *  # noqa: F403
