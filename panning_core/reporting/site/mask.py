"""The page that teaches how to read a mask, with the pictures of the playground."""

from __future__ import annotations

from markupsafe import Markup

from ... import data, masks
from ...experiments import studies
from ...inspection import threads
from .. import pictures
from ..names import method_name, percent

DATASET, MODEL = "digits", "lenet300"
#: method and sparsity of the masks that are shown; the last is to lose its paths
SHOWN = (("panning", 0.95), ("random", 0.95), ("snip", 0.99))


def examples() -> list[dict]:
    """The masks that are shown, pruned here: pictures, and the numbers of the sentences."""
    splits = data.load(DATASET)
    with threads.one():  # as every run has: the same picture each time
        return [_example(studies.Run(DATASET, MODEL, *shown), splits) for shown in SHOWN]


def _example(run: studies.Run, splits: data.Splits) -> dict:
    pruned = studies.prune(run, splits)
    table = masks.table(pruned.model, pruned.mask)
    dead = {name: int((~m.flatten(1).any(1)).sum()) for name, m in pruned.live.items()}
    emptiest = table.loc[table.effective_density.idxmin()]
    return {
        "title": f"{method_name(run.method)} at {percent(run.sparsity)}",
        "layers": Markup(pictures.layers(table, pruned.live)),
        "first": Markup(pictures.first_layer(pruned)),
        "weights": f"{table.weights.sum():,}",
        "kept": f"{table.kept.sum():,}",
        "effective": f"{table.effective.sum():,}",
        "idle": f"{100 - 100 * table.effective.sum() / table.kept.sum():.1f} %",
        "dead": sum(dead.values()),
        "units": sum(len(m) for m in pruned.live.values()),
        "emptiest": emptiest.layer,
        "density": f"{100 * emptiest.effective_density:.2g} %",
    }
