"""Noise that a network draws itself, such as dropout's: a function of a generator.

The global random state stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def drawn_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Inside, the global random state, from which a network draws, follows from ``generator``'s.

    If something was drawn, ``generator`` has moved on afterwards and the next noise is another.
    A network without noise leaves it where it is, so that nothing changes for who else uses it.
    """
    devices = [device] if device.type == "cuda" else []

    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]

    seed = int(torch.randint(2**62, (), generator=generator.clone_state()))
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        begun = states()
        yield
        drawn = not all(map(torch.equal, begun, states()))
    if drawn:
        torch.randint(2**62, (), generator=generator)


def apart(generator: torch.Generator) -> torch.Generator:
    """A generator with a stream of its own, seeded by the next draw of ``generator``.

    Noise of one that has the seed of the network would be the very numbers that PyTorch made the
    initial weights of: the largest noise would lie on the largest weights.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed(seed)


def made_of(noise: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether the noise for a layer is its weights but for shift and scale."""
    pairs = (torch.stack([noise[n].flatten(), w.detach().flatten()]) for n, w in weights.items())
    return any(float(torch.corrcoef(both)[0, 1]) > 0.99 for both in pairs if both.shape[1] > 9)
