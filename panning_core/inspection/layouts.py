"""In which order a network's images lie in memory."""

from __future__ import annotations

import torch
from torch import nn

#: channels of a block of oneDNN, which PyTorch's convolutions on a CPU are made of
BLOCK = 16


def fastest(model: nn.Module) -> torch.memory_format:
    """The layout in which convolutions are fastest, channel by channel for each pixel, unless it is
    wrong for ``model``.

    On a CPU the weights' gradient of a strided 1 x 1 convolution that reads fewer channels than a
    block is then wrong, or the process dies: oneDNN writes over other memory
    (https://github.com/uxlfoundation/oneDNN/issues/6035). Compaction makes such convolutions of the
    shortcuts of a ResNet.
    """
    wrong = any(map(_is_wrong, model.modules()))
    return torch.contiguous_format if wrong else torch.channels_last


def _is_wrong(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and not module.weight.is_cuda
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
        and module.in_channels // module.groups < BLOCK
    )
