"""The one loop: epochs of steps, measured after each, whatever engine makes the steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from .. import masks
from ..data import Split, Splits
from ..errors import UserError, shown
from ..inspection import noise
from ..masks import Mask
from . import losses
from .checkpoint import Checkpoint, fingerprint
from .dense import Moving, Update
from .engines import How, Prepared, Shared, Sparse, prepare
from .losses import Loss
from .optimisers import Factory
from .precision import fast_products
from .recipe import Recipe, Step

PARTS = ("validation", "test")


class Trainer(Protocol):
    """What the loop asks of an engine that trains ``count`` networks at once."""

    name: str
    count: int
    recipe: Recipe
    #: [count], what each has taken by itself
    seconds: Sequence[float]

    def images(self, x: Tensor) -> Tensor:
        """What ``step`` and ``logits`` want of the images of a whole data set."""

    def epochs(self, split: Split, drawn: torch.Generator, done: int) -> Iterator[Iterator[Step]]:
        """The batches of each epoch after the first ``done``; ``drawn`` is their order's."""

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor | float:
        """Learns from a batch; the losses before, [count] or one number."""

    def logits(self, x: Tensor) -> Tensor:
        """[n, count * classes] in eval mode, network after network."""

    def store(self) -> None:
        """Writes what was learned into the networks."""


class FinalMask(dict):
    """A mask in a table's ``attrs``. Pandas copies these with every column and compares them when
    it joins tables: a mask stays one object, equal to itself alone."""

    __eq__, __hash__ = object.__eq__, object.__hash__

    def __deepcopy__(self, memo: dict) -> FinalMask:
        return self


@dataclass
class _Progress:
    """What the loop has done so far; all of it goes into a checkpoint."""

    #: of each network one row an epoch
    rows: list[list[dict]]
    #: the order of the images, and the noise that networks draw
    order: torch.Generator
    noise: torch.Generator
    epochs: int = 0
    seconds: float = 0.0

    def over(self) -> bool:
        """Whether no loss is finite any more."""
        return self.epochs > 0 and not any(_goes_on(rows) for rows in self.rows)

    def state(self) -> dict:
        return {
            "rows": self.rows,
            "order": self.order.get_state(),
            "noise": self.noise.get_state(),
            "epochs": self.epochs,
            "seconds": self.seconds,
        }

    def load_state(self, state: dict) -> None:
        self.order.set_state(state["order"])
        self.noise.set_state(state["noise"])
        self.rows, self.epochs, self.seconds = state["rows"], state["epochs"], state["seconds"]


def _goes_on(rows: list[dict]) -> bool:
    return not rows or math.isfinite(rows[-1]["loss"])


def fit(
    trainer: Trainer,
    splits: Splits,
    observe: Callable[[dict], None] | None = None,
    checkpoint: Checkpoint | None = None,
    products: Callable[[torch.device], AbstractContextManager] = fast_products,
) -> list[pd.DataFrame]:
    """Trains, and returns the table of each network of ``trainer``; its ``attrs`` say which engine
    it was and its share of the seconds.

    Args:
        products: within what matrix products are made.
    """
    recipe, device = trainer.recipe, splits.train.x.device
    begun, own = time.perf_counter(), {part: getattr(splits, part) for part in ("train", *PARTS)}
    # Augmentation needs whole images.
    if not recipe.augment:
        own = {part: replace(split, x=trainer.images(split.x)) for part, split in own.items()}
    done = _Progress(
        [[] for _ in range(trainer.count)],
        order=torch.Generator().manual_seed(recipe.seed),
        noise=torch.Generator().manual_seed(recipe.seed),
    )
    if checkpoint and (state := checkpoint.load()):
        done.load_state(state["loop"])
        trainer.load_state(state["trainer"])
        begun -= done.seconds
    with products(device):
        for steps in trainer.epochs(own["train"], done.order, done.epochs):
            if done.over():
                break
            with noise.drawn_from(done.noise, device):
                total = sum(trainer.step(x, y, lr) * len(y) for x, y, lr in steps)
                found = torch.as_tensor(total / len(splits.train)).reshape(-1).tolist()
                logits = {
                    part: trainer.logits(own[part].x).unflatten(1, (trainer.count, -1))
                    for part in PARTS
                }
            done.epochs += 1
            _add_rows(done, trainer, found, logits, own)
            if checkpoint:
                done.seconds = time.perf_counter() - begun
                checkpoint.save({"loop": done.state(), "trainer": trainer.state()})
            if observe is not None:
                observe(dict(done.rows[0][-1]))
    trainer.store()
    tables, alone = [pd.DataFrame(rows) for rows in done.rows], trainer.seconds
    shared = (time.perf_counter() - begun - sum(alone)) / trainer.count
    for table, seconds in zip(tables, alone):
        table.attrs.update(engine=trainer.name, seconds=shared + float(seconds))
    return tables


def _add_rows(
    done: _Progress,
    trainer: Trainer,
    found: list[float],
    logits: dict[str, Tensor],
    own: dict[str, Split],
) -> None:
    """The row of this epoch for each network whose last loss was finite."""
    for k, (rows, loss) in enumerate(zip(done.rows, found)):
        if _goes_on(rows):
            row = {"epoch": done.epochs, "loss": loss}
            for part in PARTS:
                row[f"{part}_accuracy"] = losses.accuracy(logits[part][:, k], own[part].y)
            if isinstance(trainer, Moving):
                row["density"] = masks.density(trainer.mask)
            rows.append(row)


def train(
    model: nn.Module,
    mask: Mask,
    splits: Splits,
    recipe: Recipe,
    engine: str | None = None,
    observe: Callable[[dict], None] | None = None,
    *,
    optimiser: str | Factory = "sgd",
    loss: str | Loss = "cross-entropy",
    update: Update | None = None,
    checkpoint: str | Path | None = None,
) -> pd.DataFrame:
    """Train ``model`` in place under ``mask``; afterwards every pruned weight is exactly 0.

    What is trained is the network without its dead units, where ``compaction.compact`` can read it;
    what is removed without being pruned, such as a dead unit's bias, stays as it was, and so does a
    frozen parameter (``requires_grad`` False). The same seed, device, thread count and engine give
    the same bits; the noise of a network that draws some, as dropout does, follows from the seed,
    as does what an optimiser or a hook draws from PyTorch's global random state, which is left
    alone.

    The sparse engine trains where it pays and does the same: SGD on the cross-entropy of labels
    under a fixed mask, on the CPU, in float32. It and the compacted network are used if they answer
    a few images as ``model`` itself does, in both modes and with the same gradients; otherwise
    ``model`` itself is trained on the dense engine, and a warning says what was different. With
    ``update`` or an optimiser of the user's, ``model`` itself is always what is trained.

    **A mask that changes.** ``update(step, model, mask)`` is called after each step of the
    optimiser (step counts from 1) and returns the mask that holds from then on: ``mask`` itself,
    changed in place or not, or another one.

    - ``.grad`` of every weight holds the gradient of this step's loss at the weights before the
      step, also of weights that are pruned; the optimiser has seen it with those set to 0.
    - A weight outside the returned mask is exactly 0 afterwards. One that enters begins at 0,
      or at what the hook has written there.
    - Momentum, and all else that the optimiser keeps with the shape of the weights, becomes 0 for
      a weight that enters or leaves. One that the hook removes and regrows in the same call stays
      as it was, value and momentum; what the hook writes into it stays.
    - Autograd is on, and the network is in train mode.
    - Whether it grows weights by their gradient decides what a step costs (``Cost``): a
      step whose mask lets weights in counts the gradients of all weights. An attribute
      ``dense_gradients`` of the hook says otherwise: True for every step, False for none.
    - A hook with a state of its own offers ``state_dict()`` and ``load_state_dict(state)``, plain
      values and tensors, if it is to be resumed from a checkpoint.

    Args:
        splits: on the model's device. Test accuracy is recorded at every epoch and decides nothing.
            Labels are int64 [n] or, for the training, soft: floats [n, outputs].
        engine: a key of ``ENGINES``; None is the faster one of those that can.
        observe: called after each epoch with its row. What it raises ends the training; the weights
            of ``model`` are then undefined.
        optimiser: ``"sgd"``, ``"adam"`` with the recipe's rate and weight decay, or a function
            from a list of parameters to a ``torch.optim.Optimizer``, whose groups keep their rates
            times the factor of the recipe's schedule.
        loss: ``"cross-entropy"``, ``"bce"`` or ``"mse"``, each of labels or soft labels, or a
            function (output [n, outputs], labels) -> the mean over the batch.
        update: the hook.
        checkpoint: a file that is written after each epoch and removed at the end. If it is there,
            the training goes on from it and ends with the same bits as one without interruption;
            ``model`` is to be given as it was at the beginning.

    Returns:
        One row an epoch: epoch (from 1), loss (mean over the training images), validation_accuracy,
        test_accuracy; with ``update`` also the density at its end. A run whose loss stops being
        finite ends with that epoch's row; its loss says so. ``attrs`` has the ``engine``, the
        ``reason`` why it was that one, the ``seconds``, ``training_flops`` (see ``Cost``; None
        where they can not be counted) and, with ``update``, the final ``mask``.

    Raises:
        UserError: a mask of another network, an unknown engine, a network the sparse engine can not
            train, one that can not learn these images in batches of this size, a hook that returns
            no mask, or a checkpoint of another training.
    """
    how = How(optimiser, loss, update)
    prepared = prepare(model, mask, splits, recipe, engine, how)
    file = None
    if checkpoint is not None:
        file = _checkpoint(checkpoint, model, mask, splits, recipe, prepared, how)
    (log,) = fit(prepared.trainer, splits, observe, file)
    _finish(model, splits, prepared, log)
    if file:
        file.remove()
    return log


def _checkpoint(
    path: str | Path,
    model: nn.Module,
    mask: Mask,
    splits: Splits,
    recipe: Recipe,
    prepared: Prepared,
    how: How,
) -> Checkpoint:
    if not isinstance(path, str | Path):
        raise UserError(f"checkpoint is {shown(path)}; it must be the path of a file")
    state, images = model.state_dict(), splits.train
    named = [getattr(each, "__qualname__", type(each).__name__) for each in how if callable(each)]
    named += [each for each in how if isinstance(each, str)]
    trained = prepared.trainer.name, prepared.small is None
    return Checkpoint(path, fingerprint(state, mask, images.x, images.y, recipe, named, trained))


def _finish(model: nn.Module, splits: Splits, prepared: Prepared, log: pd.DataFrame) -> None:
    """What was learned goes into ``model``, and what the log says besides its table."""
    if prepared.small:
        prepared.small.restore(model)
    trainer, images = prepared.trainer, len(log) * len(splits.train)
    flops = None if prepared.flops is None else images * prepared.flops
    if isinstance(trainer, Moving):
        flops = trainer.flops
        log.attrs["mask"] = FinalMask(trainer.mask)
    log.attrs.update(reason=prepared.reason, training_flops=flops)


def train_together(
    models: Sequence[nn.Module], pruned: Sequence[Mask], splits: Splits, recipe: Recipe
) -> list[pd.DataFrame]:
    """``train`` for several networks on the same batches; each learns the same, to the last bit, as
    alone.

    Those that the sparse engine trains and that begin with a ``Linear`` share the work of bringing
    images into place.

    Returns:
        The table of ``train`` for each network. One whose loss stops being finite ends with that
        epoch's row.
    """
    prepared = [
        prepare(model, mask, splits, recipe) for model, mask in zip(models, pruned, strict=True)
    ]
    trainers = [each.trainer for each in prepared]
    sharing = [t for t in trainers if isinstance(t, Sparse) and t.net.reads_pixels()]
    together = fit(Shared(sharing, recipe), splits) if sharing else []
    logs = dict(zip(map(id, sharing), together))
    for trainer in trainers:
        if id(trainer) not in logs:
            (logs[id(trainer)],) = fit(trainer, splits)
    for model, each in zip(models, prepared):
        _finish(model, splits, each, logs[id(each.trainer)])
    return [logs[id(trainer)] for trainer in trainers]
