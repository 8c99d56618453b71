"""The thin core: (data, network, metric, sparsity, seed) -> a mask and a trained sparse network.

Folders and modules stand in levels, and each imports only what stands below it; the levels are the
contract of import-linter in ``pyproject.toml``, and a test holds them.
"""

import os
from pathlib import Path

from .errors import UserError

__version__ = "0.1.0"

#: The checkout. Every path of a notebook, a ledger or a profile starts here, whatever the working
#: directory is.
ROOT = Path(__file__).resolve().parent.parent


def named_folder(variable: str, default: str) -> Path:
    """The folder that an environment variable names, or the default; relative to the checkout. A
    ``UserError`` where it begins with ~ and nobody says where that is."""
    try:
        return ROOT / Path(os.environ.get(variable) or default).expanduser()
    except RuntimeError as error:
        told = f"{variable} begins with ~, and no home folder is known here; give the whole path"
        raise UserError(told) from error


def results() -> Path:
    """Where ledgers, tables and figures lie: ``$PANNING_RESULTS``, or ``results/``."""
    return named_folder("PANNING_RESULTS", "results")
