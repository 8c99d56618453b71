"""Several networks on the same batches."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .network import SparseNet
from .tracing import refuse


class Together:
    """Networks that begin with a ``Linear`` and learn from the same batches: the images are brought
    into place once for all of them.

    Each learns the same, to the last bit, as alone. Other networks spend too little on their input
    for this to pay.

    Attributes:
        seconds: [networks] what each has taken for itself, without the images.

    Raises:
        UserError: a network that does not begin with a ``Linear``.
    """

    def __init__(self, nets: Sequence[SparseNet]):
        if not all(net.reads_pixels() for net in nets):
            refuse("only networks that begin with a Linear share their input")
        self.nets, self.first, self.seconds = nets, nets[0], np.zeros(len(nets))
        read = np.unique(np.concatenate([net.inlet.read for net in nets]))
        images = self.first.inlet.fetch_for_all(read)
        for net in nets:
            net.share(images)
        self.pixels = self.first.pixels

    def step(self, x: Tensor, y: Tensor, *how: float) -> np.ndarray:
        """As ``Engine.step``; the losses [networks]."""
        self._take(x)
        labels, losses = y.numpy(), np.empty(len(self.nets))
        for k, net in enumerate(self.nets):
            start = time.perf_counter()
            losses[k] = net.learn(labels, *how)
            self.seconds[k] += time.perf_counter() - start
        return losses

    def logits(self, x: Tensor) -> Tensor:
        """[n, networks, classes]."""
        parts = []
        for images in x.split(max(self.first.capacity, 256)):
            self._take(images)
            parts.append(torch.stack([net.scores(len(images)) for net in self.nets], 1))
        return torch.cat(parts)

    def store(self) -> None:
        """As ``Engine.store``."""
        for net in self.nets:
            net.store()

    def _take(self, x: Tensor) -> None:
        # The others work in one room, which stays in the cache: none needs its arrays when
        # another's turn has come.
        if len(x) > self.first.capacity:
            room = max((net.memory.room(len(x)) for net in self.nets[1:]), key=len, default=None)
            for net in self.nets[1:]:
                net.memory.make_room(len(x), room)
            self.first.memory.make_room(len(x))
        self.first.inlet.take(x)
        self.first.inlet.fetch(len(x))
