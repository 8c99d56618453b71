"""Which engine trains a network, and why."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import compaction, masks, sparse
from ..data import Split, Splits
from ..errors import UserError, first_line, pick, shown
from ..inspection import faithful
from ..inspection.batches import check_batch
from ..masks import Mask
from ..models import modes
from .cost import Cost, kept
from .dense import Dense
from .losses import Loss, pick_loss
from .moving import Moving, Update
from .optimisers import Factory, check_optimiser
from .recipe import Recipe, Step, epochs


class Sparse:
    """The engine that touches surviving weights only (``sparse.SparseNet``): the same steps, many
    times faster."""

    name, count, seconds = "sparse", 1, (0.0,)

    def __init__(self, model: nn.Module, mask: Mask, recipe: Recipe):
        self.net, self.recipe = sparse.SparseNet(model, mask), recipe
        net: sparse.Engine = self.net
        self.images, self.logits, self.answer = net.pixels, net.logits, net.answer
        self.store, self.state, self.load_state = net.store, net.state, net.load_state

    def epochs(self, split: Split, drawn: torch.Generator, done: int) -> Iterator[Iterator[Step]]:
        return epochs(split, self.recipe, drawn, done)

    def step(self, x: Tensor, y: Tensor, lr: float) -> float:
        r = self.recipe
        return self.net.step(x, y, lr, r.momentum, r.weight_decay, r.nesterov)


class Shared:
    """Several of ``Sparse`` on the same batches (``sparse.Together``): losses are [count], logits
    [n, count * classes]."""

    name = "sparse"

    def __init__(self, trainers: Sequence[Sparse], recipe: Recipe):
        self.nets = sparse.Together([trainer.net for trainer in trainers])
        self.recipe, self.count = recipe, len(trainers)
        self.images, self.store, self.seconds = self.nets.pixels, self.nets.store, self.nets.seconds

    def epochs(self, split: Split, drawn: torch.Generator, done: int) -> Iterator[Iterator[Step]]:
        return epochs(split, self.recipe, drawn, done)

    def step(self, x: Tensor, y: Tensor, lr: float) -> np.ndarray:
        r = self.recipe
        return self.nets.step(x, y, lr, r.momentum, r.weight_decay, r.nesterov)

    def logits(self, x: Tensor) -> Tensor:
        return self.nets.logits(x).flatten(1)


ENGINES = {"dense": Dense, "sparse": Sparse}
#: Share of the multiply-adds that survive under which the sparse engine is used; about where both
#: cost the same (`python -m benchmarks`).
SPARSE_BELOW = 0.8


class How(NamedTuple):
    """How to train besides the recipe, as ``train`` takes it."""

    optimiser: str | Factory = "sgd"
    loss: str | Loss = "cross-entropy"
    update: Update | None = None

    def check(self) -> None:
        """Raise a ``UserError`` for what ``train`` does not take."""
        check_optimiser(self.optimiser)
        pick_loss(self.loss)
        if self.update is not None and not callable(self.update):
            raise UserError(
                f"update is {shown(self.update)}; it must be a function (step, model, mask) -> mask"
            )

    def needs_dense(self, splits: Splits, recipe: Recipe) -> str | None:
        """Why the sparse engine, which does one thing, can not do this; None if it can."""
        if self.update is not None:
            return "the mask may change while it trains"
        if self.optimiser != "sgd":
            return (
                f"the optimiser is {name_of(self.optimiser)}, and the sparse engine knows SGD alone"
            )
        if self.loss != "cross-entropy":
            return (
                f"the loss is {name_of(self.loss)}, and the sparse engine knows cross-entropy alone"
            )
        if splits.train.y.is_floating_point():
            return "the labels are soft, and the sparse engine knows one label an image"
        if (device := splits.train.x.device.type) != "cpu":
            return f"the network is on {device}, and the sparse engine runs on the CPU"
        if recipe.precision != "fp32":
            return f"the precision is {recipe.precision}, and the sparse engine knows fp32 alone"
        return None

    def needs_whole(self) -> bool:
        """Whether the network itself is trained and none without its dead units: a hook may revive
        them, and an optimiser of the user's may look at all that it is given."""
        return self.update is not None or not isinstance(self.optimiser, str)


def name_of(option: object) -> str:
    """What an optimiser, a loss or a hook is called."""
    return option if isinstance(option, str) else getattr(option, "__name__", type(option).__name__)


def live(model: nn.Module, mask: Mask) -> float:
    """Surviving multiply-adds of a forward pass over all of them, in [0, 1]."""
    return masks.flops(model, mask) / masks.flops(model, masks.ones(model))


class Choice(NamedTuple):
    """An engine, one clause why, and whether that is slower than it had to be."""

    engine: str
    reason: str
    slower: bool = False


def choose(model: nn.Module, mask: Mask) -> Choice:
    """The sparse engine where it pays, else the dense one."""
    if reason := sparse.unsupported(model):
        return Choice("dense", reason, slower=masks.density(mask) < SPARSE_BELOW)
    share = live(model, mask)
    pays = f"it pays below {SPARSE_BELOW:.0%}"
    if share < SPARSE_BELOW:
        return Choice("sparse", f"{share:.2%} of the multiply-adds are left, and {pays}")
    return Choice(
        "dense", f"{share:.2%} of the multiply-adds are left, and of the sparse engine {pays}"
    )


def _check_labels(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    if not len(images):
        raise UserError("the training images are none, so there is nothing to learn from")
    if not labels.is_floating_point():
        last = labels.argmax()[None]
        check_batch(model, images[last], labels[last])
        return
    check_batch(model, images[:1], torch.zeros(1, dtype=torch.int64, device=images.device))
    with torch.no_grad(), modes(model, training=False):
        wanted = [len(images), model(images[:1].clone()).shape[1]]
    if list(labels.shape) != wanted or not labels.isfinite().all():
        raise UserError(
            f"soft labels are {list(labels.shape)}; they must be {wanted} finite numbers, one for "
            "each image and output of the network"
        )


def check(
    model: nn.Module, splits: Splits, batch_size: int, loss: str | Loss = "cross-entropy"
) -> None:
    """Raise a ``UserError`` unless ``splits`` is a data set that ``model`` can learn in batches of
    this size."""
    if not isinstance(splits, Splits):
        raise UserError(
            f"a data set is what data.load or data.from_arrays gives, not {shown(splits)}"
        )
    images, labels = splits.train.x, splits.train.y
    _check_labels(model, images, labels)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "every parameter is frozen and none could learn; call model.requires_grad_(True)"
        )
    alone = len(images) % batch_size == 1 or batch_size == 1
    few = images[: 1 if alone else 2], labels[: 1 if alone else 2]
    try:
        faithful.ask(model, masks.ones(model), *few, pick_loss(loss))
    except UserError:
        raise
    except Exception as error:  # of many kinds
        reason = first_line(error)
        if alone:
            raise UserError(
                f"{len(images)} images in batches of {batch_size} leave a batch of one image, "
                f"which this network can not learn from ({reason}); choose another batch_size"
            ) from error
        raise UserError(f"the network fails in train mode: {reason}") from error


class Prepared(NamedTuple):
    """What trains a network: the compacted one, None where the whole one is trained, the engine,
    the sentence why it is that, and the FLOPs of training on one image under a fixed mask."""

    small: compaction.Compact | None
    trainer: Dense | Sparse
    reason: str
    flops: int | None


def prepare(
    model: nn.Module,
    mask: Mask,
    splits: Splits,
    recipe: Recipe,
    engine: str | None = None,
    how: How | None = None,
) -> Prepared:
    """Checks everything that ``train`` is given, and chooses what trains.

    The sparse engine trains where it pays and does the same: SGD on the cross-entropy of labels
    under a fixed mask, on the CPU, in float32. It, or the dense engine, gets the network without
    its dead units, where ``compaction.compact`` can read it. Both are used if they answer a few
    images as ``model`` itself does, in both modes and with the same gradients; otherwise ``model``
    itself is trained on the dense engine, and a warning says what was different. With a hook, or an
    optimiser of the user's, it is always ``model`` itself.
    """
    how = how or How()
    _check_all(model, mask, splits, recipe, engine, how)
    needs_dense = how.needs_dense(splits, recipe)
    if engine == "sparse" and needs_dense:
        raise _refused(needs_dense)
    flops = Cost(model).image(kept(mask))
    if how.needs_whole():
        return Prepared(None, _dense(model, mask, recipe, how), needs_dense, flops)
    small = _compacted(model, mask)
    network, alive = (small.model, small.mask) if small else (model, mask)
    chosen = _chosen(network, alive, engine, needs_dense)
    if chosen.slower:
        told = f"training on the dense engine, which is slower: {chosen.reason}"
        warnings.warn(told, stacklevel=3)
    make = {"sparse": ENGINES["sparse"], "dense": partial(_dense, how=how)}[chosen.engine]
    trainer = make(network, alive, recipe)
    if not small and chosen.engine == "dense":
        return Prepared(None, trainer, chosen.reason, flops)
    part = _departure(model, mask, splits, trainer, small, how)
    if part is None:
        return Prepared(small, trainer, chosen.reason, flops)
    stand_in = {"sparse": "sparse engine", "dense": "compacted network"}[chosen.engine]
    reason = f"the {stand_in} has another {part} than the network itself"
    if engine == "sparse":
        raise _refused(reason)
    told = f"training the network itself on the dense engine, which is slower: {reason}"
    warnings.warn(told, stacklevel=3)
    return Prepared(None, _dense(model, mask, recipe, how), reason, flops)


def _check_all(
    model: nn.Module, mask: Mask, splits: Splits, recipe: Recipe, engine: str | None, how: How
) -> None:
    masks.check(model, mask)
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"a recipe is a training.Recipe, or one of training.RECIPES, not {shown(recipe)}"
        )
    how.check()
    check(model, splits, recipe.batch_size, how.loss)
    pick("engine", engine or "dense", ENGINES)


def _chosen(network: nn.Module, alive: Mask, engine: str | None, needs_dense: str | None) -> Choice:
    """The engine that was asked for, if it can; else the dense one for the reason ``needs_dense``,
    or what ``choose`` says."""
    if engine == "sparse" and (reason := sparse.unsupported(network)):
        raise _refused(reason)
    if engine:
        return Choice(engine, "it was asked for")
    return Choice("dense", needs_dense) if needs_dense else choose(network, alive)


def _refused(reason: str) -> UserError:
    return UserError(f"the sparse engine can not train this network: {reason}; use engine='dense'")


def _compacted(model: nn.Module, mask: Mask) -> compaction.Compact | None:
    try:
        return compaction.compact(model, mask, fold=False)
    # a network of the user's own that it can not read
    except UserError:
        return None


def _dense(model: nn.Module, mask: Mask, recipe: Recipe, how: How) -> Dense:
    if how.update is None:
        return ENGINES["dense"](model, mask, recipe, how.optimiser, how.loss)
    return Moving(model, mask, recipe, how.update, how.optimiser, how.loss)


def _departure(
    model: nn.Module,
    mask: Mask,
    splits: Splits,
    trainer: Dense | Sparse,
    small: compaction.Compact | None,
    how: How,
) -> str | None:
    """In which part the trainer answers otherwise than the network itself; None if in none."""

    def answer(x: Tensor, y: Tensor) -> faithful.Answer:
        found = trainer.answer(x, y)
        return found._replace(gradients=small.widen(found.gradients)) if small else found

    split = splits.train
    return faithful.departure(model, mask, split.x, split.y, answer, pick_loss(how.loss))
