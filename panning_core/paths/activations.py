"""Activation checkpointing, which computes a part of the forward pass again on the way back."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from torch.utils import checkpoint


class _Kept:
    """In place of PyTorch's function that computes again."""

    @staticmethod
    def apply(function, preserve_rng_state, *args):
        return function(*args)


def kept() -> AbstractContextManager:
    """A context inside which activations are kept, never computed again: that would be with a
    module's own weights, in place of those that are scored.
    """
    # What PyTorch does before and after the part; the name depends on its version.
    around = [name for name in vars(checkpoint) if name.startswith("_checkpoint_without_reentrant")]
    nothing: dict[str, Any] = dict.fromkeys(around, lambda *args, **settings: iter((None,)))
    return patch.multiple(checkpoint, CheckpointFunction=_Kept, **nothing)
