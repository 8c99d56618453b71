"""The laboratory in one name, for scripts: what a run is, how it is done, and a sweep over many."""

from .errors import command_line
from .experiments.studies import *  # noqa: F403, its __all__ is the list
from .experiments.studies import main

if __name__ == "__main__":
    command_line(main)
