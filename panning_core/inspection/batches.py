"""Whether a network can answer a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UserError, first_line
from ..graph import modes, remember


def check_batch(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Raise a ``UserError`` unless ``model`` answers images ``x`` [n, ...] with a number for each
    class that is among the labels ``y`` [n].
    """
    _check_tensors(x, y)
    classes = _answer(model, x).shape[1]
    if not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise UserError(
            f"labels go from {y.min()} to {y.max()}; the network knows the classes 0 to"
            f" {classes - 1}"
        )
    remember(model, x)


def _check_tensors(x: Tensor, y: Tensor) -> None:
    if not (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and y.dtype == torch.int64
        and y.shape == x.shape[:1]
        and len(y)
    ):
        found = " and ".join(
            (
                f"{each.dtype} {list(each.shape)}"
                if isinstance(each, Tensor)
                else type(each).__name__
            )
            for each in (x, y)
        )
        raise UserError(
            f"images and labels are {found}; they must be tensors [n, channels, height, width]"
            " and int64 [n]"
        )
    if not x.isfinite().all():
        raise UserError("the images hold values that are not finite numbers")


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    """To the first image [1, classes]."""
    try:
        with torch.no_grad(), modes(model, training=False):
            out = model(x[:1].clone())  # a forward may write into what it is given
    except Exception as error:  # another shape, dtype or device: PyTorch raises many kinds
        shape = getattr(model, "input_shape", None)
        wanted = "" if shape is None else f", it takes {list(shape)}"
        raise UserError(
            f"the network ({next(model.parameters()).dtype} on"
            f" {next(model.parameters()).device}{wanted}) can not read images"
            f" {list(x.shape[1:])} of {x.dtype} on {x.device}: {first_line(error)}"
        ) from error
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != 1:
        found = str(list(out.shape)) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise UserError(
            f"the network answers one image with {found}; it must be a tensor [1, classes]"
        )
    return out
