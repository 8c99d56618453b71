"""The thin core: (data, network, metric, sparsity, seed) -> a mask and a trained sparse network.

Rooms, left to right; each imports only rooms to its left::

    errors, data, models, masks -> metrics -> pruning -> transfer -> compaction, kernels, sparse, training, stack
    -> studies -> statistics, report -> reproduce
"""

from pathlib import Path

__version__ = "0.1.0"

#: The checkout. Every path of a notebook, a ledger or a profile starts here, whatever the working directory is.
ROOT = Path(__file__).resolve().parent.parent
