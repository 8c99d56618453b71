"""How fast it is, and against what: every ratio is measured side by side in one run.

    python -m benchmarks --quick            under three minutes; the last line is JSON python -m
    benchmarks                    writes results/benchmarks: tables, a figure, and the machine they
    are of python -m benchmarks --only scoring

``training`` and ``grid`` measure training, ``scoring`` pruning and selection, ``environment`` the
agent's; ``straightforward`` holds what scoring is measured against, ``timing`` the clock, ``show``
the figure and the table.
"""
