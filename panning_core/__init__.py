"""The thin core: (data, network, metric, sparsity, seed) -> a mask and a trained sparse network.

Folders and modules stand in levels, and each imports only what stands below it; the levels are the
contract of import-linter in ``pyproject.toml``, and a test holds them.
"""

import os
from pathlib import Path

__version__ = "0.1.0"

#: The checkout. Every path of a notebook, a ledger or a profile starts here, whatever the working
#: directory is.
ROOT = Path(__file__).resolve().parent.parent


def results() -> Path:
    """Where ledgers, tables and figures lie: ``$PANNING_RESULTS`` (relative to the checkout), or
    ``results/`` in it.
    """
    return ROOT / Path(os.environ.get("PANNING_RESULTS") or "results").expanduser()
