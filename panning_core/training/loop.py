"""The one loop: epochs of steps, measured after each, whatever engine makes the steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .. import masks
from ..data import Split, Splits
from ..errors import UserError, shown
from ..inspection import noise, threads
from ..masks import Mask
from . import losses
from .checkpoint import Checkpoint, fingerprint
from .engines import How, Prepared, Shared, Sparse, name_of, prepare
from .losses import Loss
from .moving import Moving, Update
from .optimisers import Factory
from .precision import fast_products
from .recipe import Recipe, Step

PARTS = ("validation", "test")


class Trainer(Protocol):
    """What the loop asks of an engine that trains ``count`` networks at once."""

    @property
    def name(self) -> str:
        """A key of ``ENGINES``."""

    @property
    def count(self) -> int:
        """How many networks."""

    @property
    def recipe(self) -> Recipe:
        """That of all of them, but for the seed."""

    @property
    def seconds(self) -> Sequence[float] | np.ndarray:
        """[count], what each has taken by itself."""

    def images(self, x: Tensor) -> Tensor:
        """What ``step`` and ``logits`` want of the images of a whole data set."""

    def epochs(self, split: Split, drawn: torch.Generator, done: int) -> Iterator[Iterator[Step]]:
        """The batches of each epoch after the first ``done``; ``drawn`` is their order's."""

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor | np.ndarray | float:
        """Learns from a batch; the losses before, [count] or one number."""

    def logits(self, x: Tensor) -> Tensor:
        """[n, count * classes] in eval mode, network after network."""

    def store(self) -> None:
        """Writes what was learned into the networks."""


class FinalMask(dict):
    """A mask in a table's ``attrs``. Pandas copies these with every column and compares them when
    it joins tables: a mask stays one object, equal to itself alone."""

    __eq__ = object.__eq__
    # a dict has none
    __hash__ = object.__hash__  # type: ignore[assignment]

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
    #: before this process
    seconds: float = 0.0

    def over(self) -> bool:
        """Whether no loss is finite any more."""
        return self.epochs > 0 and not any(_goes_on(rows) for rows in self.rows)

    def record(
        self, trainer: Trainer, lost: list[float], logits: dict[str, Tensor], own: dict[str, Split]
    ) -> None:
        """One more epoch: a row for each network whose last loss was finite.

        Args:
            lost: [count], the mean loss over the training images.
            logits: [n, count, classes] of the images of each part.
        """
        self.epochs += 1
        for k, (rows, loss) in enumerate(zip(self.rows, lost)):
            if _goes_on(rows):
                row = {"epoch": self.epochs, "loss": loss}
                for part in PARTS:
                    row[f"{part}_accuracy"] = losses.accuracy(logits[part][:, k], own[part].y)
                if isinstance(trainer, Moving):
                    row["density"] = masks.density(trainer.mask)
                rows.append(row)

    def state(self, seconds: float) -> dict:
        return {
            "rows": self.rows,
            "order": self.order.get_state(),
            "noise": self.noise.get_state(),
            "epochs": self.epochs,
            "seconds": seconds,
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
        done.load_state(state)
        begun -= done.seconds
    with products(device):
        for steps in trainer.epochs(own["train"], done.order, done.epochs):
            if done.over():
                break
            with noise.drawn_from(done.noise, device):
                lost, logits = _epoch(trainer, steps, own)
            done.record(trainer, lost, logits, own)
            if checkpoint:
                checkpoint.save(done.state(time.perf_counter() - begun))
            if observe is not None:
                observe(dict(done.rows[0][-1]))
    trainer.store()
    return _tables(trainer, done.rows, time.perf_counter() - begun)


def _epoch(
    trainer: Trainer, steps: Iterable[Step], own: dict[str, Split]
) -> tuple[list[float], dict[str, Tensor]]:
    """One epoch; returns what ``_Progress.record`` takes of it."""
    total = sum(trainer.step(x, y, lr) * len(y) for x, y, lr in steps)
    lost = torch.as_tensor(total / len(own["train"])).reshape(-1).tolist()
    return lost, {
        part: trainer.logits(own[part].x).unflatten(1, (trainer.count, -1)) for part in PARTS
    }


def _tables(trainer: Trainer, rows: list[list[dict]], seconds: float) -> list[pd.DataFrame]:
    tables, alone = [pd.DataFrame(own) for own in rows], trainer.seconds
    shared = (seconds - sum(alone)) / trainer.count
    for table, more in zip(tables, alone):
        table.attrs.update(
            engine=trainer.name, seconds=shared + float(more), threads=torch.get_num_threads()
        )
    return tables


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

    The same seed, device, thread count and engine give the same bits. What a network, an optimiser
    or a hook draws from the global random state follows from the seed; that state is left alone.
    Frozen parameters stay, and so does what compaction removes without its being pruned, such as a
    dead unit's bias. Which network and engine are trained, and why: ``engines.prepare``.

    Args:
        splits: on the model's device. Test accuracy is recorded at every epoch and decides nothing.
            Labels are int64 [n] or, for the training, soft: floats [n, outputs].
        engine: a key of ``ENGINES``; None is the faster one of those that can.
        observe: called after each epoch with its row. What it raises ends the training; the weights
            of ``model`` are then undefined.
        optimiser: a key of ``OPTIMISERS``, or a function from a list of parameters to a
            ``torch.optim.Optimizer``, whose groups keep their rates times the factor of the
            recipe's schedule.
        loss: a key of ``LOSSES``, or a function (output [n, outputs], labels) -> mean of the batch.
        update: changes the mask, by the rules of ``Update``.
        checkpoint: a file that is written after each epoch and removed at the end. If it is there,
            the training goes on from it, with the same bits as without interruption; ``model`` must
            be as it was at the beginning. Functions are told apart by their names alone.

    Returns:
        One row an epoch: epoch (from 1), loss (mean over the training images), validation_accuracy,
        test_accuracy, and with ``update`` the density at its end. A run whose loss stops being
        finite ends with that row. ``attrs``: ``engine``, the ``reason`` why it was that one,
        ``seconds``, ``threads`` of PyTorch, ``training_flops`` (see ``Cost``; None where they can
        not be counted), and with ``update`` the final ``mask``.

    Raises:
        UserError: bad arguments, a network that can not learn these images in batches of this size,
            a hook that returns no mask, or a checkpoint of another training.
    """
    how = How(optimiser, loss, update)
    prepared = prepare(model, mask, splits, recipe, engine, how)
    with threads.fitting(model, recipe.batch_size):
        if checkpoint is None:
            (log,) = fit(prepared.trainer, splits, observe)
        else:
            file = _checkpoint(checkpoint, model, mask, splits, prepared, how)
            (log,) = fit(prepared.trainer, splits, observe, file)
            file.remove()
        _finish(model, splits, prepared, log)
    return log


def _checkpoint(
    path: str | Path, model: nn.Module, mask: Mask, splits: Splits, prepared: Prepared, how: How
) -> Checkpoint:
    if not isinstance(path, str | Path):
        raise UserError(f"checkpoint is {shown(path)}; it must be the path of a file")
    trainer = prepared.trainer
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    network = model.state_dict(), learning, mask, prepared.small is None
    parts = splits.train, splits.validation, splits.test
    images = [each for part in parts for each in (part.x, part.y)]
    options = [name_of(each) for each in how]
    key = fingerprint(*network, *images, trainer.recipe, trainer.name, *options)
    return Checkpoint(path, key, trainer)


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
    together = []
    if sharing:
        with threads.fitting(models[0], recipe.batch_size):
            together = fit(Shared(sharing, recipe), splits)
    logs = dict(zip(map(id, sharing), together))
    for model, trainer in zip(models, trainers):
        if id(trainer) not in logs:
            with threads.fitting(model, recipe.batch_size):
                (logs[id(trainer)],) = fit(trainer, splits)
    for model, each in zip(models, prepared):
        _finish(model, splits, each, logs[id(each.trainer)])
    return [logs[id(trainer)] for trainer in trainers]
