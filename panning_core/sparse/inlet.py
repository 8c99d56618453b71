"""Where the images come in: which of their pixels are read, and who fetches them."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from .layout import Signal
from .plan import Plan
from .steps import Fetch
from .taps import Taps


class Inlet:
    """The images of a network, and the steps that read them.

    Attributes:
        read: the pixels that the network reads, ascending.
    """

    def __init__(self, plan: Plan):
        self.images = plan.input
        self.fetches = [step for step in plan.steps if isinstance(step, Fetch)]
        self.first = [step for fetch in self.fetches for step in plan.readers(fetch.out)]
        for step in self.first:
            if isinstance(step, Taps) and self.reads_pixels():
                self.fetch_step.keep(step.columns_read())
        self._narrow(np.unique(np.concatenate([fetch.there for fetch in self.fetches])))

    def reads_pixels(self) -> bool:
        """Whether the network begins with a ``Linear``, which reads some pixels and not others."""
        kinds = [type(getattr(step, "module", None)) for step in self.first]
        return len(self.fetches) == 1 and kinds == [nn.Linear]

    def _narrow(self, pixels: np.ndarray) -> None:
        self.read = pixels
        for fetch in self.fetches:
            fetch.narrow(pixels)

    def pixels(self, x: Tensor) -> Tensor:
        """[n, pixels]: of images [n, channels, height, width] those that are read.

        Raises:
            UserError: images of another size.
        """
        if x.shape[1:].numel() != prod(self.images.shape):
            raise UserError(
                f"the images have the shape {tuple(x.shape[1:])}; "
                f"the network takes {self.images.shape}"
            )
        x = x.detach().float().flatten(1)
        return x if len(self.read) == x.shape[1] else x[:, torch.from_numpy(self.read)]

    def take(self, x: Tensor) -> None:
        """The next batch: images, or what ``pixels`` made of them."""
        x = x if x.shape[1:] == self.read.shape else self.pixels(x)
        self.images.hold(x.contiguous().numpy())

    # --- one for several networks, of which each begins with a ``Linear``

    @property
    def fetch_step(self) -> Fetch:
        return self.fetches[0]

    def fetch_for_all(self, pixels: np.ndarray) -> Signal:
        """From now on these pixels are fetched, of a whole batch; returns the signal that holds
        them."""
        fetch = self.fetch_step
        fetch.keep(pixels)
        self._narrow(pixels)
        fetch.out.keep_whole()
        return fetch.out

    def fetch(self, n: int) -> None:
        """Fetches the n images that were taken last."""
        fetch = self.fetch_step
        fetch.fetch(fetch.out.values(0, n), 0, n)

    def read_from(self, images: Signal) -> None:
        """The network reads what another one fetches."""
        self.first[0].read_from(images)
