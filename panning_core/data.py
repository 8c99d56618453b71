"""Name -> tensors: whole data sets in memory, standardised, with a fixed validation split.

Every set is read from the folder ``$PANNING_DATA`` (default: ``data/`` in the checkout); digits
come with scikit-learn. The scale of the input decides comparisons at extreme sparsity, so it has a
name: ``NORMALISATIONS``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .datasets.arrays import channels_first, checked, count_classes, mixed, moments
from .datasets.augment import crop_and_flip  # noqa: F401
from .datasets.files import Raw, digits, folder, from_torchvision, parquet
from .datasets.known import (  # noqa: F401
    AUTHORS,
    NORMALISATIONS,
    TITLES,
    authors_scale,
    check_normalisation,
)
from .datasets.loaders import READING, collected, loader_batches  # noqa: F401
from .errors import UserError, shown, told, unknown, whole
from .names import Table

#: of the official training images; never trained on, the only data a choice may look at
VALIDATION_FRACTION = 0.1
#: inputs of a class, on average, below which ``Split.first`` may well lack one
FEW = 10


@dataclass(frozen=True)
class Split:
    """Inputs ``x`` and labels ``y`` [n] (int64, 0 to classes - 1).

    Inputs are images [n, channels, height, width] or rows [n, features], float32, or tokens [n,
    length], int64.
    """

    x: Tensor
    y: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: str | torch.device) -> "Split":
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def first(self, count: int | None) -> "Split":
        """The first so many inputs; None are all. Where a class is not among them, as in a folder
        that was read class after class, so many with the shares that the classes have in all.
        """
        if count is None or count >= len(self):
            return self
        there = len(self.y.unique())
        if len(self.y[:count].unique()) == there or count < FEW * there:
            return replace(self, x=self.x[:count], y=self.y[:count])
        places = mixed(self.y)[:count]
        return replace(self, x=self.x[places], y=self.y[places])


@dataclass(frozen=True)
class Splits:
    """A data set: ``train``, ``validation`` (cut from the official training set) and ``test`` (for
    reporting only).
    """

    name: str
    title: str  #: what tables and figures call it; says so when the copy is not the official one
    train: Split
    validation: Split
    test: Split
    classes: int
    fingerprint: str  #: 12 hex digits of the SHA-256 of the raw pixels and labels

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.x.shape[1:])

    def to(self, device: str | torch.device) -> "Splits":
        return replace(
            self,
            **{part: getattr(self, part).to(device) for part in ("train", "validation", "test")},
        )

    def first(self, **counts: int | None) -> "Splits":
        """With the first so many inputs alone of the parts that are named (``Split.first``)."""
        return replace(self, **{part: getattr(self, part).first(n) for part, n in counts.items()})


#: name -> a function that gives images and labels of train and test, or ``Splits``; a user may add
#: some
DATASETS = Table(
    __name__ + ".DATASETS",
    {
        "digits": digits,
        "mnist": from_torchvision("MNIST"),
        "fashion-mnist": from_torchvision("FashionMNIST"),
        "cifar10": from_torchvision("CIFAR10"),
        "cifar100": from_torchvision("CIFAR100"),
        # A name that a profile may have where the files are not.
        "cifar10-jpeg": lambda: parquet(folder() / "cifar10-jpeg"),
    },
)


def names() -> list[str]:
    """What ``load`` takes: the keys of ``DATASETS``, and every sub-folder of the data folder with a
    train.parquet.
    """
    return [
        *DATASETS,
        *sorted({path.parent.name for path in folder().glob("*/train.parquet")} - DATASETS.keys()),
    ]


def load(name: str, normalisation: str = "standardised") -> Splits:
    """The data set ``name``: a key of ``DATASETS``, or a sub-folder of the data folder with
    train.parquet and test.parquet.

    Args:
        normalisation: ``"standardised"``, as in ``from_arrays``, or ``"authors"``: as ``AUTHORS``
            says for this data set.

    Raises:
        UserError: an unknown name, a missing or damaged file, or a data set that ``AUTHORS`` does
            not have.
    """
    if name not in names():
        raise unknown("data set", name, names())
    check_normalisation(name, normalisation)
    return _load(name, normalisation, DATASETS.get(name))


@lru_cache(maxsize=2)
def _load(name: str, normalisation: str, read: Callable[[], Raw | Splits] | None) -> Splits:
    """``load`` by the function that the name stands for now."""
    scale = authors_scale(name) if normalisation == "authors" else None
    arrays = _read(name, read) if read else parquet(folder() / name)
    if isinstance(arrays, Splits):  # a data set of the user's own, such as from_loaders gives
        return arrays
    title = TITLES.get(name, name)
    if name == "fashion-mnist" and arrays[0].max() < 255:  # the official pixels reach 255
        title += " (contrast-compressed copy)"
    return from_arrays(*arrays, name=name, title=title, scale=scale)


# For who changes PANNING_DATA.
load.cache_clear = _load.cache_clear  # type: ignore[attr-defined]


def _read(name: str, read: Callable[[], Raw | Splits]) -> Raw | Splits:
    try:
        found = read()
    except UserError:
        raise
    except Exception as error:  # of a data set that the user has registered
        raise UserError(f"the data set {name} can not be read: {told(error)}") from error
    if not (isinstance(found, Splits) or isinstance(found, tuple | list) and len(found) == 4):
        raise UserError(
            f"the data set {name} gives {shown(found)}; it must give images and labels of train "
            "and test, or data.Splits"
        )
    return found


def from_arrays(
    x_train,
    y_train,
    x_test,
    y_test,
    name: str = "arrays",
    title: str | None = None,
    scale: tuple[Tensor, Tensor] | None = None,
    *,
    channels: str | None = None,
    tokens: bool = False,
) -> Splits:
    """Splits from your own arrays: images [n, c, h, w] or [n, h, w], feature rows [n, d], or tokens
    [n, length]; integer labels [n] from 0.

    Images are standardised per channel and rows per feature, with the mean and deviation of the
    training part, or with those of ``scale`` ([1, channels, 1, 1] each). A part of the training
    images becomes the validation split, always the same for the same labels (``validation_split``).

    Args:
        channels: where images [n, ...] of four dimensions have theirs, ``"first"`` or ``"last"``;
            None is first, and arrays that look like [n, height, width, channels] are refused.
        tokens: the arrays are whole numbers from 0 for an ``Embedding``: they stay as they are,
            int64.

    Raises:
        UserError: shapes that do not match, labels that are not 0, 1, 2, ..., or values that are
            not finite.
    """
    raw = checked((x_train, y_train, x_test, y_test), name, channels, tokens)
    digest = hashlib.sha256()
    for each in raw:
        digest.update(np.ascontiguousarray(each))  # type: ignore[arg-type]
    shape = (1, *raw[0].shape[1:]) if raw[0].ndim == 3 else raw[0].shape[1:]
    # In float32 a time in seconds since 1970 is known to two minutes.
    wide = np.float64 if raw[0].dtype.itemsize > 4 else np.float32
    kind = np.int64 if tokens else wide
    images = [torch.from_numpy(x.reshape(len(x), *shape).astype(kind)) for x in (raw[0], raw[2])]
    labels = [torch.from_numpy(y.astype(np.int64)) for y in (raw[1], raw[3])]
    classes = count_classes(labels, name)
    kept, validation = validation_split(labels[0])
    if not tokens:
        mean, deviation = scale or moments(images[0][kept])
        images = [((x - mean) / deviation).float() for x in images]
    return Splits(
        name,
        title or name,
        Split(images[0][kept], labels[0][kept], classes),
        Split(images[0][validation], labels[0][validation], classes),
        Split(images[1], labels[1], classes),
        classes,
        digest.hexdigest()[:12],
    )


def validation_split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the training images ``labels`` [n] are trained on and which are for validation: two
    ascending lists of places.

    A tenth drawn at random, always the same for the same n. Where that would leave a class out of
    either part, a tenth of every class instead, at least one image of each; then a class with a
    single image is trained on.

    Raises:
        UserError: no class has two images.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[order[: max(1, int(len(order) * VALIDATION_FRACTION))]] = True
    sizes = labels.bincount()
    inside = labels[held].bincount(minlength=len(sizes))
    if ((inside == sizes) | (inside == 0) & (sizes > 1))[sizes > 0].any():
        members = ((labels[order] == label).nonzero().flatten() for label in range(len(sizes)))
        chosen = [
            which[: max(1, int(len(which) * VALIDATION_FRACTION))]
            for which in members
            if len(which) > 1
        ]
        if not chosen:
            raise UserError(
                "no class has two training images; at least 2 are needed, one of them for "
                "validation"
            )
        held = torch.zeros(len(labels), dtype=torch.bool)
        held[order[torch.cat(chosen)]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def from_loaders(
    train: DataLoader,
    test: DataLoader,
    name: str = "loaders",
    title: str | None = None,
    *,
    channels: str | None = None,
) -> Splits:
    """Splits from two loaders of pairs (inputs [n, ...], labels [n]), read once.

    Inputs stay as the loaders give them, in shape and value: normalising is theirs. Whole numbers
    [n, length] are tokens. A random augmentation is drawn once, for all epochs. The order is that
    of ``train``; where it shuffles, always the same. The global random state is left alone. The
    validation split is cut from ``train`` as in ``from_arrays``.

    **Memory**: the whole set is held, 4 bytes for each value of an input (8 for a token), and while
    it is read ``READING`` times as much. A set for which the machine has not so much memory is
    refused before it is read.

    Args:
        channels: as in ``from_arrays``.

    Raises:
        UserError: what is no such loader, an empty one, too large a set, or inputs and labels that
            ``from_arrays`` refuses.
    """
    parts = [collected(loader, part, name) for loader, part in ((train, "train"), (test, "test"))]
    (x, y), (x_test, y_test) = parts
    if x.shape[1:] != x_test.shape[1:]:
        raise UserError(
            f"{name}: inputs are {list(x.shape[1:])} in train and {list(x_test.shape[1:])} in "
            "test; they must be alike"
        )
    x, x_test = (
        torch.from_numpy(channels_first(part.numpy(), channels, name)) for part in (x, x_test)
    )
    tokens, shape = x.dim() == 2 and not x.is_floating_point(), x.shape[1:]
    unscaled = torch.zeros(1), torch.ones(1)
    rows = from_arrays(
        x.flatten(1), y, x_test.flatten(1), y_test, name, title, unscaled, tokens=tokens
    )
    whole_again = {part: getattr(rows, part) for part in ("train", "validation", "test")}
    return replace(
        rows,
        **{part: replace(split, x=split.x.view(-1, *shape)) for part, split in whole_again.items()},
    )


def balanced_batch(
    split: Split, per_class: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(x, y) with ``per_class`` images of every class, drawn without replacement, ordered by class.

    Raises:
        UserError: a class with fewer images than asked for, or what is no ``Split``.
    """
    if not isinstance(split, Split):
        raise UserError(
            "a balanced batch is drawn from a Split, such as splits.train, not from "
            f"{shown(split)}; "
            "data.from_loaders makes splits of loaders"
        )
    whole("per_class", per_class, 1)
    labels = split.y.cpu()
    chosen = []
    for label in range(split.classes):
        members = (labels == label).nonzero().flatten()
        if len(members) < per_class:
            raise UserError(
                f"class {label} has {len(members)} images; a scoring batch needs {per_class} of"
                " every class"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    index = torch.cat(chosen).to(split.x.device)
    return split.x[index], split.y[index]


def balanced_batches(
    split: Split, per_class: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """A fresh balanced batch at every ``next``, without end."""
    while True:
        yield balanced_batch(split, per_class, generator)
