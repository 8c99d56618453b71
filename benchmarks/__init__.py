"""How fast it is, and against what: every ratio is measured side by side in one run.

    python -m benchmarks --quick
    python -m benchmarks
    python -m benchmarks --only scoring

The first takes under three minutes, and its last line is JSON. The second writes
results/benchmarks: tables, figures, and the machine they are of.

``training`` and ``grid`` measure training, ``scoring`` pruning and selection, ``environment`` the
agent's, ``size`` what all this costs as networks grow; ``straightforward`` holds what scoring is
measured against, ``timing`` the clock, ``show`` the figures and the tables.
``cuda`` is a command of its own, for a machine with a GPU.
"""
