"""What a training makes small, a loss of the network's outputs, and how many of them are right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data import Split
from ..errors import UserError, pick, shown
from ..models import modes

#: (outputs [n, classes], targets) -> the mean over the batch, one number
Loss = Callable[[Tensor, Tensor], Tensor]


def _wanted(output: Tensor, y: Tensor) -> Tensor:
    """What the outputs [n, classes] should be: soft labels, or 1 for a label and else 0."""
    return (y if y.is_floating_point() else functional.one_hot(y, output.shape[1])).to(output)


def bce(output: Tensor, y: Tensor) -> Tensor:
    """The mean over batch and outputs of the binary cross-entropy, each output a logit."""
    return functional.binary_cross_entropy_with_logits(output, _wanted(output, y))


def mse(output: Tensor, y: Tensor) -> Tensor:
    """The mean over batch and outputs of the squared distance."""
    return functional.mse_loss(output, _wanted(output, y))


#: Each takes labels [n] int64 or, as soft labels, a float for each output [n, classes].
LOSSES: dict[str, Loss] = {"cross-entropy": functional.cross_entropy, "bce": bce, "mse": mse}


def pick_loss(loss: str | Loss) -> Loss:
    """The function that a name or a function of the user's own stands for.

    Raises:
        UserError: an unknown name, or what can not be called.
    """
    if not callable(loss):
        if not isinstance(loss, str):
            raise UserError(
                f"loss is {shown(loss)}; it must be one of {', '.join(LOSSES)} or a function "
                "(output, target) -> number"
            )
        return pick("loss", loss, LOSSES)

    def checked(output: Tensor, y: Tensor) -> Tensor:
        value = loss(output, y)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            found = (
                f"a tensor of shape {list(value.shape)} that "
                f"{'depends' if value.requires_grad else 'does not depend'} on the output"
                if isinstance(value, Tensor)
                else shown(value)
            )
            raise UserError(
                f"the loss gives {found}; it must be one number, a tensor made of the output"
            )
        return value.reshape(())

    return checked


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Fraction of rows of ``logits`` [n, classes] whose largest entry is the label; of soft labels
    [n, classes] the largest counts. A row with NaN is no answer, and thus wrong."""
    labels = y.argmax(1) if y.is_floating_point() else y
    right = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    return float(right.double().mean())


@torch.no_grad()
def logits(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What ``network`` answers to images [n, ...], a thousand at a time. It gets copies: a layer
    may write into what it reads, and a data set serves every run.
    """
    return torch.cat([network(part.clone()) for part in x.split(1000)])


def tested(model: nn.Module, split: Split) -> float:
    """Share of right answers of a network in eval mode."""
    with modes(model, training=False):
        return accuracy(logits(model, split.x), split.y)
