"""Whether one pass of SynFlow sees every path of a network."""

from __future__ import annotations

import torch
from torch import nn

from ..graph import prunable
from ..zoo import Block


def sees_every_path(model: nn.Module) -> bool:
    """Whether SynFlow's product is 0 at a kept weight only if no path leads through it: then the
    same pass gives ``masks.effective``.

    Not so where a weight is 0 or the product of a path's weights could underflow, nor where
    max-pooling picks the largest of a plane that padding has made uneven.
    """
    weights = prunable(model).values()
    if any(type(module) not in TRANSPARENT for module in model.modules()):
        return False
    pools = any(isinstance(module, nn.MaxPool2d) for module in model.modules())
    pads = any(
        isinstance(module, nn.Conv2d) and module.padding != (0, 0) for module in model.modules()
    )
    least = torch.finfo(torch.double).tiny ** (1 / len(weights))
    return not (pools and pads) and all(float(w.detach().abs().min()) > least for w in weights)


#: Modules that do nothing to a value but what ``sees_every_path`` looks for.
TRANSPARENT = {
    nn.Sequential, Block, nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.Identity,
    nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
}  # fmt: skip
