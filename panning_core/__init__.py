"""The thin core: (data, network, metric, sparsity, seed) -> a mask and a trained sparse network.

Rooms, left to right; each imports only rooms to its left::

    errors, registry, noise, data, graph, models, layers, masks -> faithful, compaction, exchange, kernels, sparse -> metrics, topologies, panning, policies -> pruning -> transfer, training, stack
    -> gates, tickets, networks, pathways, toy, agent -> ledger, workers, studies -> statistics, fidelity, report, site -> reproduce, verify
"""

import os
from pathlib import Path

__version__ = "0.1.0"

#: The checkout. Every path of a notebook, a ledger or a profile starts here, whatever the working directory is.
ROOT = Path(__file__).resolve().parent.parent


def results() -> Path:
    """Where ledgers, tables and figures lie: ``$PANNING_RESULTS`` (relative to the checkout), or ``results/`` in it."""
    return ROOT / Path(os.environ.get("PANNING_RESULTS") or "results").expanduser()
