"""What a DataLoader gives: all of it, or batches without end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError, shown

READING = 3  #: times the size of a set is in memory while it is standardised and split


def collected(loader: DataLoader, part: str, name: str) -> tuple[Tensor, Tensor]:
    """All inputs and labels of a loader."""
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | dict | str):
        raise UserError(
            f"{name}: {part} is {shown(loader)}; it must be a DataLoader that gives pairs"
            " (inputs, labels)"
        )
    if getattr(getattr(loader, "sampler", None), "replacement", False):
        raise UserError(
            f"{name}: {part} draws with replacement, so that copies of one input would be trained"
            " on and validated with; give a loader that gives each input once"
        )
    inputs, labels, bytes_ = [], [], 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch in loader:
            if not _is_pair(batch):
                raise UserError(
                    f"{name}: {part} gives {shown(batch)}; it must give pairs (inputs [n, ...], "
                    "labels [n]) of tensors"
                )
            x = batch[0].detach().cpu()
            inputs.append(x.float() if x.is_floating_point() else x)
            labels.append(batch[1].cpu())
            each = x[:1].numel() * max(4, x.element_size())
            bytes_ += len(x) * each
            _check_memory(max(bytes_, each * _length(loader)), part, name)
    if not inputs:
        raise UserError(f"{name}: {part} gives no batch")
    if len(shapes := {tuple(x.shape[1:]) for x in inputs}) > 1:
        raise UserError(
            f"{name}: {part} gives inputs of the shapes {sorted(shapes)}; all must be alike"
        )
    return torch.cat(inputs), torch.cat(labels)


def _is_pair(batch: object) -> bool:
    return (
        isinstance(batch, tuple | list)
        and len(batch) == 2
        and all(isinstance(each, Tensor) and each.dim() > 0 for each in batch)
    )


def _length(loader: DataLoader) -> int:
    """How many inputs a loader gives, 0 where it does not know."""
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except (AttributeError, TypeError):
        return 0


def _check_memory(bytes_: int, part: str, name: str) -> None:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if READING * bytes_ > there:
        raise UserError(
            f"{name}: {part} is {bytes_ / 2**30:,.1f} GiB, {READING} times as much while it is "
            "read, and this machine has "
            f"{there / 2**30:,.1f}; give fewer inputs, such as torch.utils.data.Subset"
        )


def loader_batches(loader: DataLoader, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of ``loader``, epoch after epoch without end; where it shuffles by ``seed``, the
    global random state left alone.

    Raises:
        UserError: a loader without a batch.
    """
    batches, state = iter(()), torch.Generator().manual_seed(seed).get_state()
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                batch = next(batches, None)
            state = torch.get_rng_state()
        if batch is None:
            raise UserError(
                "the loader gives no batch; it needs at least one, of a pair (inputs, labels)"
            )
        yield batch
