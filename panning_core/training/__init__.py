"""Train masked networks. A pruned weight and its momentum are exactly 0 after every step.

``recipe`` says how, ``losses`` and ``optimisers`` what is made small and how weights move,
``dense`` is the reference engine, ``moving`` the same with a mask that changes, ``engines`` which
one trains and why, ``loop`` the one loop, ``cost`` what it costs, ``checkpoint`` how it goes
on after an interruption, ``stacked`` many networks at once on a GPU.
"""

from .cost import Cost
from .dense import Dense
from .engines import (
    ENGINES,
    SPARSE_BELOW,
    Shared,
    Sparse,
    check,
    live,
)
from .loop import Trainer, train, train_together
from .losses import LOSSES, accuracy, logits, tested
from .moving import Moving, Update
from .optimisers import OPTIMISERS
from .precision import fast_products
from .recipe import DECAYS, PRECISIONS, RECIPES, Recipe, epochs

#: of the trainer's results; a change of these takes the next number (see ``runs.versions``)
VERSION = 1

__all__ = [
    "DECAYS",
    "ENGINES",
    "LOSSES",
    "OPTIMISERS",
    "PRECISIONS",
    "RECIPES",
    "SPARSE_BELOW",
    "Cost",
    "Dense",
    "Moving",
    "Recipe",
    "Shared",
    "Sparse",
    "Trainer",
    "Update",
    "VERSION",
    "accuracy",
    "check",
    "epochs",
    "fast_products",
    "live",
    "logits",
    "tested",
    "train",
    "train_together",
]
