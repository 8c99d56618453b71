"""Arrays of a user: images or rows and labels, checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, unknown

#: of a mean in float32: a deviation below it is no information
ROUNDING = 1e-6


def checked(arrays: Sequence, name: str, channels: str | None, tokens: bool) -> list[np.ndarray]:
    """Images and labels of train, then of test; images with the channels first.

    Raises:
        UserError: as ``data.from_arrays``.
    """
    try:
        raw: list[np.ndarray] = [np.asarray(a) for a in arrays]
    except ValueError as error:  # lists of unequal length
        raise UserError(f"{name}: these are not arrays of images and labels: {error}") from error
    train, test = raw[0], raw[2]
    for part, x, y in (("train", raw[0], raw[1]), ("test", raw[2], raw[3])):
        if x.ndim not in (2, 3, 4) or x.shape[1:] != train.shape[1:] or 0 in x.shape[1:]:
            raise UserError(
                f"{name}: {part} images have shape {x.shape}; they must be [n, channels, height,"
                f" width], [n, height, width] or [n, features], alike in train {train.shape} and"
                f" test {test.shape}"
            )
        _check_labels(x, y, part, name)
        _check_numbers(x, part, name)
    if len(raw[1]) < 2:
        raise UserError(
            f"{name}: one training image; at least 2 are needed, one of them for validation"
        )
    raw[0], raw[2] = (channels_first(x, channels, name) for x in (train, test))
    if tokens:
        _check_tokens(raw[0], raw[2], name)
    return raw


def _check_labels(x: np.ndarray, y: np.ndarray, part: str, name: str) -> None:
    if y.shape != (len(x),) or not len(y):
        raise UserError(
            f"{name}: {part} labels have shape {y.shape} for {len(x)} images; there must be"
            " one label for each image"
        )
    if y.dtype.kind not in "iu" or y.min() < 0:
        raise UserError(
            f"{name}: {part} labels must be integers from 0, got {y.dtype} such as"
            f" {y.min() if y.dtype.kind == 'i' else y[0]}"
        )


def _check_numbers(x: np.ndarray, part: str, name: str) -> None:
    if x.dtype.kind not in "biuf":
        raise UserError(f"{name}: {part} images are {x.dtype}; they must be numbers")
    with np.errstate(over="ignore"):
        finite = np.isfinite(x.astype(np.float32)).all()
    if not finite:
        raise UserError(f"{name}: {part} images hold values that are not finite numbers in float32")


def channels_first(x: np.ndarray, channels: str | None, name: str) -> np.ndarray:
    """Images [n, channels, height, width]; other arrays as they are."""
    if channels not in (None, "first", "last"):
        raise unknown("place of the channels", channels, ("first", "last"))
    if x.ndim != 4:
        return x
    if channels == "last":
        return x.transpose(0, 3, 1, 2)
    height, width, few = x.shape[1:]
    if channels is None and (height == width > few or min(height, width) > 4 >= few):
        raise UserError(
            f"{name}: images of shape {x.shape} look like [n, height, width, channels]; say "
            "channels='last', "
            "or channels='first' if they are [n, channels, height, width]"
        )
    return x


def _check_tokens(train: np.ndarray, test: np.ndarray, name: str) -> None:
    if train.ndim != 2 or any(x.dtype.kind not in "iu" or x.min() < 0 for x in (train, test)):
        raise UserError(
            f"{name}: tokens are whole numbers from 0, [n, length]; got {train.dtype} "
            f"{train.shape} "
            f"and {test.dtype} {test.shape}"
        )


def count_classes(labels: list[Tensor], name: str) -> int:
    """How many classes there are; each has a training image."""
    classes = int(max(y.max() for y in labels)) + 1
    if len(found := labels[0].unique()) != classes:
        absent = next(label for label, seen in enumerate([*found.tolist(), None]) if label != seen)
        raise UserError(
            f"{name}: labels go up to {classes - 1} and no training image has label {absent};"
            " they must be 0, 1, 2, ... without a gap"
        )
    return classes


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over all but the channels, or over all but the features of rows."""
    over = (0, 2, 3)[: x.dim() - 1]
    mean = x.mean(over, keepdim=True)
    if x.numel() == mean.numel():  # a single number has no deviation
        return mean, torch.ones_like(mean)
    deviation = x.std(over, keepdim=True)
    # Of what never changes it is rounding alone, and to divide by that would make noise of it.
    return mean, deviation.where(deviation > ROUNDING * mean.abs(), 1.0)


def mixed(labels: Tensor) -> Tensor:
    """The places of ``labels`` [n] in an order of which every beginning has all classes, with their
    shares: by how far into its class each stands.
    """
    order = labels.argsort(stable=True)
    sizes = labels.bincount()
    before = (sizes.cumsum(0) - sizes)[labels[order]]
    within = (torch.arange(len(labels), device=labels.device) - before + 0.5) / sizes[labels[order]]
    return order[within.argsort(stable=True)]
