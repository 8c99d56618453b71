"""Random changes of a batch of images."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError


def crop_and_flip(x: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """A batch [n, c, h, w] with each image shifted by up to ``pad`` pixels (zeros come in) and
    mirrored with probability 1/2.

    Raises:
        UserError: a batch that is not of images.
    """
    if x.dim() != 4:
        raise UserError(
            f"crop and flip are for images [n, channels, height, width], got {list(x.shape)}; "
            "use a recipe without augment"
        )
    n, _, height, width = x.shape
    device = x.device
    dy, dx = (
        torch.randint(-pad, pad + 1, (n, 1), generator=generator).to(device) for _ in range(2)
    )
    flip = (torch.rand((n, 1), generator=generator) < 0.5).to(device)
    rows = torch.arange(height, device=device) + dy + pad
    columns = torch.arange(width, device=device).expand(n, -1)
    columns = torch.where(flip, columns.flip(1), columns) + dx + pad
    padded = torch.nn.functional.pad(x, (pad,) * 4)
    return padded[
        torch.arange(n, device=device)[:, None, None], :, rows[:, :, None], columns[:, None, :]
    ].permute(0, 3, 1, 2)
