"""Data sets as they lie on the disk: arrays of images and labels."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from .. import named_folder
from ..errors import UserError

# uint8 or float images [n, c, h, w] and labels [n]: train, test
Raw = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

#: of images in parquet files; for others Pillow may start a program, such as Ghostscript
FORMATS = (
    "PNG",
    "JPEG",
)


def folder() -> Path:
    """Where data sets lie: ``$PANNING_DATA`` (relative to the checkout), or ``data/`` in it."""
    return named_folder("PANNING_DATA", "data").resolve()


def digits() -> Raw:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # scikit-learn names no official test set.
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels, cut = (
        images.reshape(-1, 1, 8, 8)[order].astype(np.float32),
        labels[order],
        len(labels) * 4 // 5,
    )
    return images[:cut], labels[:cut], images[cut:], labels[cut:]


def from_torchvision(name: str) -> Callable[[], Raw]:
    def read() -> Raw:
        import torchvision

        make = getattr(torchvision.datasets, name)
        sets = []
        for train in (True, False):
            try:
                sets.append(make(folder(), train=train, download=False))
            except Exception:  # not there, or damaged: torchvision raises many kinds
                sets.append(_download(make, name, train))
        arrays: list[np.ndarray] = []
        for images, labels in ((s.data, s.targets) for s in sets):
            images = np.asarray(images)
            arrays += [
                images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2),
                np.asarray(labels),
            ]
        x_train, y_train, x_test, y_test = arrays
        return x_train, y_train, x_test, y_test

    return read


def _download(make, name: str, train: bool):
    new = [
        path
        for path in (folder() / make.__name__ / "raw", folder() / make.__name__, folder())
        if not path.exists()
    ]
    try:
        return make(folder(), train=train, download=True)
    except Exception as error:
        # No network, a read-only folder, a damaged file: torchvision raises many kinds.
        for path in new:  # it makes them before it knows
            with suppress(OSError):
                path.rmdir()
        raise UserError(
            f"{name} is missing or damaged in {folder()} and could not be downloaded"
            f" ({' '.join(str(error).split())}); set PANNING_DATA to a folder that holds it"
        ) from error


def _pixels(file: bytes) -> np.ndarray:
    """The colours of an image, also of one that stores places in a palette."""
    from PIL import Image

    image = Image.open(io.BytesIO(file), formats=FORMATS)
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)


def parquet(path: Path) -> Raw:
    """``train.parquet`` and ``test.parquet`` with the hub's schema: image column (struct of bytes,
    path) and label column.
    """
    import pandas as pd

    arrays: list[np.ndarray] = []
    for part in ("train", "test"):
        file = path / f"{part}.parquet"
        try:
            table = pd.read_parquet(file)
            image = next(c for c in ("img", "image") if c in table)
            label = next(c for c in ("label", "fine_label") if c in table)
            images = np.stack([_pixels(cell["bytes"]) for cell in table[image]])
        except StopIteration:
            raise UserError(
                f"{file} has columns {list(table)}; it needs an image column (img or image) and a"
                " label column"
            ) from None
        except Exception as error:  # pyarrow and PIL raise many kinds for a missing or damaged file
            raise UserError(
                f"{file} is missing or damaged: {' '.join(str(error).split())}; a data set of"
                " this kind is a folder in PANNING_DATA with train.parquet and test.parquet"
            ) from error
        arrays += [
            images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2),
            table[label].to_numpy(),
        ]
    x_train, y_train, x_test, y_test = arrays
    return x_train, y_train, x_test, y_test
