"""Do the engines agree? Weights after the same steps, and test accuracies over seeds, of the sparse
engine and of dense PyTorch.
"""

from __future__ import annotations

import copy
from math import nan

import pandas as pd
import torch

from panning_core import data, masks, models, pruning, training
from panning_core.analysis import statistics

from .train import HEADLINE, NETWORKS, build, images, mnist_is_here, shuffled

STEPS = 50
TRAINED = {"lenet300": 10, "lenet5": 1}  #: epochs; the networks small enough to train for real
SEEDS = 5


def distance(model: torch.nn.Module, exact: torch.nn.Module) -> float:
    """The largest relative distance of a weight tensor to that of ``exact``."""
    pairs = [
        (w.detach(), e.detach())
        for w, e in zip(models.prunable(model).values(), models.prunable(exact).values())
    ]
    return max(float((w.double() - e).norm() / e.norm()) for w, e in pairs if e.norm() > 0)


def after_steps(name: str) -> dict[str, float]:
    """Distances to PyTorch in float64 after ``STEPS`` steps: of the sparse engine, and of PyTorch
    in float32 as the yardstick.
    """
    recipe, split = training.RECIPES[NETWORKS[name].recipe], images(NETWORKS[name].shape)
    model = build(name)
    batch = data.balanced_batch(split, 10, torch.Generator().manual_seed(0))
    mask = masks.effective(model, pruning.prune(model, HEADLINE[0], 1 - HEADLINE[1], batch)[0])
    trained = {
        "float64": copy.deepcopy(model).double(),
        "float32": copy.deepcopy(model),
        "sparse": model,
    }
    trainers = {
        key: training.ENGINES["sparse" if key == "sparse" else "dense"](network, mask, recipe)
        for key, network in trained.items()
    }
    batches = shuffled(split, recipe.batch_size)
    for _ in range(STEPS):
        x, y = next(batches)
        for key, trainer in trainers.items():
            trainer.step(x.double() if key == "float64" else x, y, 0.01)
    for trainer in trainers.values():
        trainer.store()
    return {
        f"{key}_distance": distance(trained[key], trained["float64"])
        for key in ("sparse", "float32")
    }


def accuracies(name: str) -> dict[str, float]:
    """Mean test accuracy of each engine over the same seeds, and the mean difference with its
    interval.
    """
    splits, found = data.load("mnist"), {"dense": [], "sparse": []}
    for seed in range(SEEDS):
        model = models.build(name, splits.input_shape, splits.classes, seed, "panning")
        batch = data.balanced_batch(splits.train, 10, torch.Generator().manual_seed(seed))
        mask = masks.effective(model, pruning.prune(model, HEADLINE[0], 1 - HEADLINE[1], batch)[0])
        for engine, values in found.items():
            recipe = training.Recipe(epochs=TRAINED[name], seed=seed)
            values.append(
                training.train(
                    copy.deepcopy(model), mask, splits, recipe, engine
                ).test_accuracy.iloc[-1]
            )
    frame = pd.DataFrame(found)
    difference = statistics.interval(frame["sparse"] - frame["dense"])
    return {
        "epochs": TRAINED[name],
        "seeds": SEEDS,
        "dense_accuracy": frame["dense"].mean(),
        "sparse_accuracy": frame["sparse"].mean(),
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
    }


def agreement(quick: bool) -> pd.DataFrame:
    """One row a network. Nothing in the quick run; accuracies where MNIST is at hand."""
    rows = []
    for name in ("lenet300", "lenet5", "resnet20") if not quick else ():
        rows.append(
            {
                "network": name,
                "method": HEADLINE[0],
                "sparsity": HEADLINE[1],
                "steps": STEPS,
                **after_steps(name),
                **(
                    accuracies(name) if name in TRAINED and mnist_is_here() else {"difference": nan}
                ),
            }
        )
    return pd.DataFrame(rows)
