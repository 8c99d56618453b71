"""What a training needs to go on after an interruption, in one file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .. import storage
from ..errors import UserError, told


class Resumable(Protocol):
    """A trainer that can go on in another process."""

    def state(self) -> dict:
        """All that the next step depends on: tensors and plain values."""

    def load_state(self, state: dict) -> None:
        """Goes on from what ``state`` gave."""


class Checkpoint:
    """The file ``path`` of one training; it is read without unpickling anything but tensors and
    plain values.

    Args:
        key: what tells this training from others, from ``fingerprint``.
        trainer: what trains.
    """

    def __init__(self, path: str | Path, key: str, trainer: Resumable):
        self.path, self.key, self.trainer = Path(path), key, trainer

    def load(self) -> dict | None:
        """What ``save`` was given last, after the trainer has taken over its own state; None if
        there is nothing.

        Raises:
            UserError: a file that is damaged, something else, or of another training.
        """
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            key, loop, trainer = found["key"], found["loop"], found["trainer"]
        except Exception as error:  # of many kinds
            raise UserError(
                f"{self.path} is not a readable checkpoint ({told(error)[:120]}); delete it and "
                "the training begins again"
            ) from error
        if key != self.key:
            raise UserError(
                f"{self.path} is the checkpoint of another training; give the network as it was "
                "before, with the same mask, images, recipe and options, or another path"
            )
        self.trainer.load_state(trainer)
        return loop

    def save(self, loop: dict) -> None:
        """Keeps the state of the loop, and the trainer's. The file is replaced at once, so that an
        interruption leaves the one before.

        Raises:
            UserError: a place that can not be written to.
        """
        with storage.whole(self.path, "the checkpoint") as part:
            torch.save({"key": self.key, "loop": loop, "trainer": self.trainer.state()}, part)

    def remove(self) -> None:
        """The training has ended."""
        self.path.unlink(missing_ok=True)


def fingerprint(*parts: object) -> str:
    """64 hex digits of tensors, mappings of tensors and whatever else has a ``repr``."""
    digest = hashlib.sha256()

    def add(part: object) -> None:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {list(part.shape)}".encode())
            flat = part.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy())
        elif isinstance(part, dict):
            for name, each in part.items():
                digest.update(f"{name}:".encode())
                add(each)
        else:
            digest.update(repr(part).encode())

    for part in parts:
        add(part)
    return digest.hexdigest()
