"""Compiled kernels on disk, safe when several processes compile at once.

numba numbers the files of a function's signatures. Two processes that compile two signatures at
the same moment take the same number, and the index then leads one signature to the other's machine
code: wrong numbers, or a crash. Here a file is named after what it holds, and it is there before
the index names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numba
from numba.core.caching import IndexDataCacheFile


class Files(IndexDataCacheFile):
    """The files of one function: an index of signatures, and machine code for each."""

    def save(self, key: tuple, data: object) -> None:
        """Keep the machine code of a signature. What another process enters into the index at the
        same moment can get lost there, and is compiled again."""
        name = hashlib.sha256(repr((self._source_stamp, key)).encode()).hexdigest()[:16]
        name = self._data_name_pattern.format(number=int(name, 16))
        self._save_data(name, data)
        self._save_index({**self._load_index(), key: name})


def jit(function: Callable) -> Callable:
    """``function`` compiled by numba without the interpreter, kept on disk."""
    how = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz"}}
    try:
        compiled = numba.njit(cache=True, **how)(function)
    except RuntimeError:  # neither the checkout nor the user's home can be written to
        return numba.njit(**how)(function)
    # A new version of numba must not undo this in silence: without these names it fails here.
    compiled._cache._cache_file.__class__ = Files
    return compiled
