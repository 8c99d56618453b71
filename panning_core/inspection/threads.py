"""How many threads a piece of work takes.

Threads wait for one another at every operation. Where the operations are short, and other work has
the cores, that is most of the time: ``python -m benchmarks --only threads`` measures it. One thread
also gives the bits that a sweep gives, whose workers have no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from ..errors import UserError
from ..graph import prunable, uses

#: multiply-adds of a pass over a batch from which more threads are worth their waiting
LARGE = 10**9


@contextmanager
def one() -> Iterator[None]:
    """Inside, PyTorch takes one thread; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fitting(model: nn.Module, images: int) -> AbstractContextManager[None]:
    """Inside, PyTorch takes one thread if a pass of ``model`` over so many images is small work,
    else as many as before."""
    on_gpu = any(weight.is_cuda for weight in prunable(model).values())
    if on_gpu or torch.get_num_threads() == 1 or images * multiply_adds(model) >= LARGE:
        return nullcontext()
    return one()


def multiply_adds(model: nn.Module) -> int:
    """Of one image; of a network that can not say what it reads, as if it used each weight once."""
    try:
        times = uses(model)
    except UserError:
        times = {}
    return sum(times.get(name, 1) * weight.numel() for name, weight in prunable(model).items())
