"""Are the masks that pruning finds on images local, and does it take more than covariances?

In fully connected networks, masks of iterative magnitude pruning are local in the image (Pellegrini
& Biroli 2022, arXiv 2104.13343), and non-Gaussian inputs are said to be necessary for that (Redman,
Wang, Ingrosso & Goldt 2024, arXiv 2412.06545). Here masks found before training stand beside those
of trained networks, on images and on Gaussian inputs with each class's mean and covariance. Both
papers were read no further than their abstracts; networks, sizes and measures here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import data, masks, models, pruning, training
from ..analysis import locality
from ..data import Split, Splits
from ..errors import UserError, fraction_kept, unknown, whole
from ..models import prunable
from . import base

LAYER = "fc1.weight"  #: of LeNet-300-100, whose sites are the pixels
PER_CLASS = 100  #: images that a method scores before training
REWIRINGS = 3  #: random masks that a mask is compared with
#: method that trains: how often, before it has its mask
ROUNDS = {"trained-magnitude": 1, "iterative-magnitude": 5}
INPUTS = ("images", "gaussian")


@dataclass(frozen=True)
class MaskLocality(base.Run):
    """The mask that one method finds for LeNet-300-100, and how local its first layer is.

    Attributes:
        seed: of weights, Gaussian inputs, orders of images and batches.
        dataset: a name of ``data``, of one-channel images.
        inputs: ``"images"``, or ``"gaussian"``: each class's mean and covariance, and no more.
        method: a key of ``ROUNDS``, or a name of ``pruning.methods()``.
        density: kept of all weights; every layer keeps its share by the scope "erk".
        epochs: of each training, the last with the mask too; recipe "mnist".
    """

    kind: ClassVar[str] = "mask-locality"
    seed: int = 0
    dataset: str = "mnist"
    inputs: str = "images"
    method: str = "snip"
    density: float = 0.02
    epochs: int = 2

    def __post_init__(self):
        for name, least in (("seed", 0), ("epochs", 1)):
            whole(f"{name} of a mask's locality", getattr(self, name), least)
        known = [*ROUNDS, *pruning.methods()]
        for name, names in (("dataset", data.names()), ("inputs", INPUTS), ("method", known)):
            if getattr(self, name) not in names:
                raise unknown(f"{name} of a mask's locality", getattr(self, name), names)
        if not fraction_kept(self.density):
            raise UserError("density of a mask's locality is 0; it must keep weights")

    def execute(self, context: base.Context) -> dict:
        """Find the mask, measure it, and train what is left from the initial weights.

        Returns:
            Of the first layer: ``kept`` weights; ``neighbours`` and ``radius`` as ``locality`` has
            them; ``shuffled``, the neighbours of a mask with as many weights in each unit;
            ``rewired_neighbours`` and ``rewired_radius``, means over masks with as many in each
            unit and at each pixel. And ``accuracy``, on test inputs.
        """
        splits = data.load(self.dataset)
        if splits.input_shape[0] != 1:
            raise UserError(
                f"dataset of a mask's locality is {self.dataset}, of shape {splits.input_shape}; "
                "it must be of images with one channel"
            )
        if self.inputs == "gaussian":
            splits = gaussian(splits, torch.Generator().manual_seed(self.seed))
        model = models.build("lenet300", splits.input_shape, splits.classes, self.seed)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        mask = self.find(model, splits)
        model.load_state_dict(start)
        log = training.train(model, mask, splits, self.recipe())
        return {
            **measures(mask[LAYER], *splits.input_shape[1:]),
            "accuracy": _digits(log.test_accuracy.iloc[-1]),
        }

    def recipe(self) -> training.Recipe:
        return replace(training.RECIPES["mnist"], seed=self.seed, epochs=self.epochs)

    def find(self, model: nn.Module, splits: Splits) -> masks.Mask:
        """The mask; a method that trains leaves ``model`` trained."""
        if self.method in ROUNDS:
            return after_training(model, splits, self.density, ROUNDS[self.method], self.recipe())
        per_class = min(PER_CLASS, int(splits.train.y.bincount().min()))
        generator = torch.Generator().manual_seed(self.seed)
        batch = data.balanced_batch(splits.train, per_class, generator)
        return pruning.prune(model, self.method, self.density, batch, seed=self.seed, scope="erk")[
            0
        ]


def measures(mask: Tensor, height: int, width: int) -> dict:
    """How local a mask [units, pixels] is, beside random masks."""
    pairs = locality.grid(height, width)
    controls = [locality.rewired(mask, seed) for seed in range(REWIRINGS)]
    neighbours = [locality.kept_neighbours(m, pairs) for m in controls]
    radii = [locality.radius(m, height, width) for m in controls]
    return {
        "kept": int(mask.sum()),
        "neighbours": _digits(locality.kept_neighbours(mask, pairs)),
        "shuffled": _digits(locality.shuffled(mask)),
        "rewired_neighbours": _digits(sum(neighbours) / REWIRINGS),
        "radius": _digits(locality.radius(mask, height, width)),
        "rewired_radius": _digits(sum(radii) / REWIRINGS),
    }


def after_training(
    model: nn.Module, splits: Splits, density: float, rounds: int, recipe: training.Recipe
) -> masks.Mask:
    """Train from the same weights, remove the same fraction of every layer's smallest, and so on.

    Iterative magnitude pruning with rewinding (Frankle & Carbin 2019); of one round, Han et al.'s.
    """
    start = {name: value.clone() for name, value in model.state_dict().items()}
    mask = masks.ones(model)
    for t in range(1, rounds + 1):
        model.load_state_dict(start)
        training.train(model, mask, splits, recipe)
        scores = {
            name: weight.detach().abs().masked_fill(~mask[name], -torch.inf)
            for name, weight in prunable(model).items()
        }
        mask = masks.keep_top(scores, density ** (t / rounds), "erk")
    return mask


def gaussian(splits: Splits, generator: torch.Generator) -> Splits:
    """Inputs drawn anew: of each class as many as there are, from the Gaussian with the mean and
    covariance of its training images."""
    means, roots = moments(splits.name)
    parts = {
        name: replace(part, x=_drawn(part, means, roots, generator))
        for name in ("train", "validation", "test")
        for part in [getattr(splits, name)]
    }
    return replace(splits, title=f"Gaussians like {splits.title}", **parts)


def _drawn(part: Split, means: Tensor, roots: Tensor, generator: torch.Generator) -> Tensor:
    x = torch.randn((len(part), means.shape[1]), generator=generator)
    for label in range(part.classes):
        rows = part.y == label
        x[rows] = x[rows] @ roots[label] + means[label]
    return x.view(part.x.shape)


@lru_cache(maxsize=1)
def moments(name: str) -> tuple[Tensor, Tensor]:
    """Of each class's training images the mean [classes, pixels] and the symmetric root of the
    covariance [classes, pixels, pixels]."""
    train = data.load(name).train
    means, roots = [], []
    for label in range(train.classes):
        x = train.x[train.y == label].flatten(1).double()
        values, vectors = torch.linalg.eigh(torch.cov(x.T))
        means.append(x.mean(0))
        roots.append(vectors * values.clamp(min=0).sqrt() @ vectors.T)
    return torch.stack(means).float(), torch.stack(roots).float()


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
