"""A network and its core, trained together; the core is split off later and used alone
(Mohtashami, Jaggi & Stich 2022, arXiv 2106.08895).

Every core is a part of the parameters: the first units of each hidden layer, single weights, or the
low-rank part of layers that are written as a product plus the rest. Its network computes with
zeros elsewhere. The scheme takes turns: a step of the core alone, a step of everything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import data, masks, metrics, models, training
from ..data import Split, Splits
from ..errors import UserError, is_number, pick, whole
from ..methods.partial_updates import PartialSGD
from . import base
from .base import short

#: images of each class in the batch that chooses single weights
PER_CLASS = 10
#: parameter name -> boolean tensor: what belongs to the core
Core = dict[str, Tensor]
CORES = ("width", "weights", "rank")
#: scheme -> what each step trains, in turn; both at once is the sum of both losses
SCHEMES = {
    "alternate": (("core",), ("full",)),
    "joint": (("core", "full"),),
    "core": (("core",),),
    "full": (("full",),),
}


@dataclass(frozen=True)
class PartialMask(base.Run):
    """LeNet-300-100 trained once by SGD with momentum 0.9, a cosine to 0 and no weight decay.

    Attributes:
        seed: of the initial weights, the core and the order of the images.
        dataset, images: a name of ``data.load``, and how many of its first training images; None
            are all.
        core: ``"width"``, the first units of both hidden layers; ``"weights"``, single weights that
            SNIP chooses before training; ``"rank"``, the low-rank part of the first two layers,
            with the whole last layer.
        size: of the core, in (0, 1): the share of the units, of the weights, or of the rank.
        scheme: a key of ``SCHEMES``; ``"core"`` and ``"full"`` train only one of the two.
        rescaled: with ``"core"``, whether its weights begin at the scale of a network of its own.
        epochs, batch_size, lr: of the training.
    """

    kind: ClassVar[str] = "partial-mask"
    on_cuda: ClassVar[bool] = True
    seed: int = 0
    dataset: str = "digits"
    images: int | None = None
    core: str = "width"
    size: float = 0.1
    scheme: str = "alternate"
    rescaled: bool = False
    epochs: int = 20
    batch_size: int = 50
    lr: float = 0.05

    def __post_init__(self):
        pick("core", self.core, dict.fromkeys(CORES))
        pick("scheme", self.scheme, SCHEMES)
        for name, least in (("seed", 0), ("epochs", 1), ("batch_size", 2)):
            whole(f"{name} of a partial mask", getattr(self, name), least)
        if self.images is not None:
            whole("images of a partial mask", self.images, 2)
        if not is_number(self.lr) or not self.lr > 0:
            raise UserError(f"lr of a partial mask is {self.lr!r}; it must be a number above 0")
        if not is_number(self.size) or not 0 < self.size < 1:
            raise UserError(
                f"size of a core is {self.size!r}; it must be a share between 0 and 1, such as 0.1"
            )
        if self.rescaled and (self.scheme != "core" or self.core == "rank"):
            raise UserError(
                "rescaled is for a core of units or weights that is trained alone (scheme 'core')"
            )

    def execute(self, context: base.Context) -> dict:
        """Train, split off, and measure both networks.

        Returns:
            ``core_accuracy`` and ``full_accuracy`` on the test images (None for what the scheme has
            not trained), ``core_validation_accuracy`` and ``full_validation_accuracy``,
            ``core_weights`` and ``full_weights`` (no biases), and the ``loss`` of the last epoch.
        """
        splits = data.load(self.dataset).first(train=self.images).to(context.device)
        model = network(self, splits).to(context.device)
        core = core_of(self, model, splits)
        if self.rescaled:
            rescale(model, core)
        loss = fit(self, model, core, splits.train)
        parts = {"core": core, "full": None}
        trained = {name for step in SCHEMES[self.scheme] for name in step}
        found = {
            f"{name}_{what}accuracy": accuracy(model, split, core) if name in trained else None
            for name, core in parts.items()
            for what, split in (("", splits.test), ("validation_", splits.validation))
        }
        counts = [core[name] for name, p in model.named_parameters() if p.dim() > 1]
        return {
            **found,
            "core_weights": sum(int(m.sum()) for m in counts),
            "full_weights": sum(w.numel() for w in models.prunable(plain(self, splits)).values()),
            "loss": short(loss),
        }


class Factored(nn.Module):
    """A linear layer as up @ down + rest: its best approximation of a rank (Eckart & Young 1936),
    and what that leaves; together they begin as ``layer``.

    ``up`` [outputs, rank] and ``down`` [rank, inputs] share the singular values evenly (spectral
    initialisation, Khodak et al. 2021); ``rest`` [outputs, inputs].
    """

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        left, values, right = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        root = values[:rank].sqrt()
        self.up = nn.Parameter(left[:, :rank] * root)
        self.down = nn.Parameter(root[:, None] * right[:rank])
        self.rest = nn.Parameter((layer.weight - self.up @ self.down).detach())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return low + nn.functional.linear(x, self.rest, self.bias)


def plain(run: PartialMask, splits: Splits) -> nn.Module:
    """LeNet-300-100 as it is built everywhere."""
    return models.build("lenet300", splits.input_shape, splits.classes, run.seed)


def network(run: PartialMask, splits: Splits) -> nn.Module:
    """The whole network: ``plain``, for a low-rank core with ``Factored`` layers."""
    model = plain(run, splits)
    if run.core != "rank":
        return model
    layers = OrderedDict(model.named_children())
    for name in ("fc1", "fc2"):
        layer = layers[name]
        layers[name] = Factored(layer, share(run.size, min(layer.weight.shape)))
    return nn.Sequential(layers)


def share(size: float, count: int) -> int:
    """So many of ``count``, at least one."""
    return max(1, round(size * count))


def core_of(run: PartialMask, model: nn.Module, splits: Splits) -> Core:
    """What belongs to the core. Outputs keep all biases, and so do single weights' units."""
    core = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    if run.core == "rank":
        return {name: m & (not name.endswith("rest")) for name, m in core.items()}
    if run.core == "weights":
        generator = torch.Generator().manual_seed(run.seed)
        batch = data.balanced_batch(splits.train, PER_CLASS, generator)
        scores = metrics.snip(model, masks.ones(model), batch)
        return core | masks.keep_top(scores, run.size)
    for here, after in (("fc1", "fc2"), ("fc2", "fc3")):
        units = len(core[f"{here}.bias"])
        first = share(run.size, units)
        core[f"{here}.weight"][first:] = False
        core[f"{here}.bias"][first:] = False
        core[f"{after}.weight"][:, first:] = False
    return core


@torch.no_grad()
def rescale(model: nn.Module, core: Core) -> None:
    """Enlarge the core's weights to the scale that PyTorch gives a layer with so many inputs as its
    units read on average."""
    for name, weight in models.prunable(model).items():
        read = core[name].sum(1).double()
        weight.mul_((core[name].shape[1] / read[read > 0].mean()) ** 0.5)


def answers(model: nn.Module, x: Tensor, core: Core | None = None) -> Tensor:
    """Logits [n, classes] of the whole network, or of its core: all other parameters are 0."""
    if core is None:
        return model(x)
    return functional_call(model, {name: p * core[name] for name, p in model.named_parameters()}, x)


def fit(run: PartialMask, model: nn.Module, core: Core, split: Split) -> float:
    """Train in place by the run's scheme; the mean loss of the last epoch.

    A step of the core moves neither the other parameters nor their momentum.
    """
    recipe = training.Recipe(run.epochs, run.batch_size, run.lr, weight_decay=0, seed=run.seed)
    optimiser = PartialSGD(model.parameters(), lr=run.lr, momentum=recipe.momentum)
    inside = {p: core[name] for name, p in model.named_parameters() if not core[name].all()}
    turns, done, losses = SCHEMES[run.scheme], 0, []
    for batches in training.epochs(split, recipe):
        losses = []
        for x, y, lr in batches:
            parts = turns[done % len(turns)]
            optimiser.param_groups[0]["lr"] = lr
            optimiser.part = inside if parts == ("core",) else {}
            optimiser.zero_grad(set_to_none=True)
            loss = objective(model, core, parts, x, y)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            done += 1
    return sum(losses) / len(losses)


def objective(model: nn.Module, core: Core, parts: Sequence[str], x: Tensor, y: Tensor) -> Tensor:
    """The sum of the mean cross-entropies of the networks that ``parts`` names."""
    masks_of = {"core": core, "full": None}
    return sum(nn.functional.cross_entropy(answers(model, x, masks_of[p]), y) for p in parts)


def accuracy(model: nn.Module, split: Split, core: Core | None) -> float:
    """Share of right answers of the whole network or of its core."""
    return training.accuracy(training.logits(lambda x: answers(model, x, core), split.x), split.y)
