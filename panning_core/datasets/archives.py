"""Arrays in a NumPy archive, read without trusting it."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path

import numpy as np


def arrays(path: str | Path, most: int) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive that unpacks to at most ``most`` bytes, whatever it says of
    itself; nothing in it is unpickled.

    Raises:
        Exception: of many kinds, zipfile's, zlib's and NumPy's, for a file that is damaged or
            something else.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > most:
            raise ValueError("it is too large")
        # NumPy may stop before the end of a member, where its checksum would be looked at.
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")
        # A few bytes can claim a huge array, and NumPy makes room for it before it reads.
        for member in archive.infolist():
            with archive.open(member) as file:
                np.lib.format.read_magic(file)
                shape, _, kind = np.lib.format.read_array_header_1_0(file)
            if prod(shape) * kind.itemsize > member.file_size:
                raise ValueError(f"{member.filename} claims more than it holds")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
