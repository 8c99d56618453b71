"""How local weights and masks are: does a unit that reads a site read its neighbours too?

A unit reads ``sites``, on a ring or on the grid of an image. A mask can look local because units
keep many weights, or because all units read the same middle of an image. So what is measured,
``kept_neighbours``, is compared with masks that share these numbers: ``shuffled`` with those of
the units, ``rewired`` with those of the units and of the sites.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TRADES = 10  #: for each unit in ``rewired``; Strona et al. find five enough


def participation(weights: Tensor) -> Tensor:
    """Over how many sites a unit's weights [..., sites] are spread: (sum w^2)^2 / sum w^4, [...].

    One weight gives 1, equal ones give the number of sites; a sinusoid two thirds of it, Gaussian
    noise about one third, a Gaussian bump of deviation s (in sites) s * sqrt(2 pi).
    """
    squares = weights.double().square()
    return squares.sum(-1).square() / squares.square().sum(-1)


def likeness(fields: Tensor, filters: Tensor) -> Tensor:
    """How well each of the ``fields`` [units, sites] on a ring matches the best of the ``filters``
    [others, sites]: the largest absolute correlation over all shifts, [units]."""
    one, other = (
        torch.nn.functional.normalize(w.double() - w.double().mean(-1, keepdim=True), dim=-1)
        for w in (fields, filters)
    )
    spectra = torch.fft.rfft(one)[:, None] * torch.fft.rfft(other).conj()
    return torch.fft.irfft(spectra, n=fields.shape[-1]).abs().amax((1, 2))


def ring(sites: int) -> Tensor:
    """The pairs of neighbours [2, pairs] on a ring."""
    first = torch.arange(sites)
    return torch.stack([first, first.roll(-1)])


def grid(height: int, width: int) -> Tensor:
    """The pairs of neighbours [2, pairs] on an image, flattened row by row: side by side, and
    one above the other."""
    place = torch.arange(height * width).view(height, width)
    beside = torch.stack([place[:, :-1].flatten(), place[:, 1:].flatten()])
    above = torch.stack([place[:-1].flatten(), place[1:].flatten()])
    return torch.cat([beside, above], 1)


def kept_neighbours(mask: Tensor, pairs: Tensor) -> float:
    """Of all neighbours that kept weights have within their unit, the share that is kept too.

    Args:
        mask: [units, sites], bool.
        pairs: of neighbours [2, pairs], such as ``ring`` and ``grid`` give.
    """
    first, second = mask[:, pairs[0]], mask[:, pairs[1]]
    ends = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / ends if ends else 0.0


def radius(mask: Tensor, height: int, width: int) -> float:
    """How far kept weights lie from the middle of what their unit keeps, on an image flattened row
    by row: root mean square over kept weights, in pixels; 0 where nothing is kept."""
    place = torch.arange(height * width)
    at = torch.stack([place // width, place % width], 1).double()
    kept = mask.double()
    counts = kept.sum(1, keepdim=True)
    middles = kept @ at / counts.clamp(min=1)
    inside = (kept @ at.square()).sum() - (counts * middles.square()).sum()
    return float((inside / counts.sum().clamp(min=1)).clamp(min=0).sqrt())


def shuffled(mask: Tensor) -> float:
    """What ``kept_neighbours`` is if each unit keeps as many weights, at random sites.

    Two sites are kept with probability k (k - 1) / (D (D - 1)). This is the mean number of kept
    pairs over the mean number of kept ends; on a ring, where all sites have two neighbours, it is
    the mean itself.
    """
    kept = mask.sum(1).double()
    return float((kept * (kept - 1)).sum() / (mask.shape[1] - 1) / kept.sum().clamp(min=1))


def rewired(mask: Tensor, seed: int) -> Tensor:
    """A random mask [units, sites] whose units keep as many weights and whose sites are read by as
    many units as before (the curveball algorithm of Strona et al. 2014).

    Two units at a time share out anew the sites that only one of them reads.
    """
    rows, generator = mask.numpy().copy(), np.random.default_rng(seed)
    for _ in range(TRADES * len(rows) if len(rows) > 1 else 0):
        one, other = generator.choice(len(rows), 2, replace=False)
        apart = np.flatnonzero(rows[one] != rows[other])
        mine = np.count_nonzero(rows[one, apart])
        taken = generator.permutation(apart)
        rows[one, taken[:mine]], rows[one, taken[mine:]] = True, False
        rows[other, taken[:mine]], rows[other, taken[mine:]] = False, True
    return torch.from_numpy(rows)
