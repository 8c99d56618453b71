"""How fast a step of the sparse engine could be: what its loads take at least, and what is left
when nearly all weights are gone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from panning_core import data, masks, pruning, training
from panning_core.masks import Mask
from panning_core.sparse.cache import jit
from panning_core.sparse.kernels import STEP, fill, load, madd, total

from . import train
from .timing import interleave

NEAREST = 2**12  #: floats that the nearest cache of every processor holds
PASSES = 2_000  #: over them, one call
#: bytes that a multiply-add of the engine loads: one float32, the others stay in registers
LOADED = 4
REQUIRED = {"lenet300": 30, "lenet5": 10, "resnet20": 6, "vgg16": 6}  #: times plain PyTorch


@jit
def add_up(x, passes):
    """The sum of x, so many times: as fast as this processor loads."""
    one = fill(np.float32(1), STEP)
    a = b = c = d = fill(np.float32(0), STEP)
    for _ in range(passes):
        for t in range(0, len(x), 4 * STEP):
            a = madd(a, one, load(x, t, STEP))
            b = madd(b, one, load(x, t + STEP, STEP))
            c = madd(c, one, load(x, t + 2 * STEP, STEP))
            d = madd(d, one, load(x, t + 3 * STEP, STEP))
    return total(a) + total(b) + total(c) + total(d)


def skeleton(mask: Mask) -> Mask:
    """As few weights of ``mask`` as leave each unit an input and an output, if it has some: what
    then remains of a step is not for the weights' sake."""
    thin = {}
    for name, kept in mask.items():
        taps = kept.flatten(2) if kept.dim() > 2 else kept.unsqueeze(2)
        pairs = taps.any(2)
        chosen = _first(pairs, 0) | _first(pairs, 1)
        thin[name] = (_first(taps, 2) & chosen.unsqueeze(2)).view_as(kept)
    return thin


def _first(kept: Tensor, dim: int) -> Tensor:
    """Of those kept along ``dim`` the first."""
    return kept & (kept.cumsum(dim) == 1)


def multiply_adds(small: train.Ours) -> int:
    """Of one image: forward, and the gradients of the weights and of what is between layers."""
    alive = masks.table(small.model, small.mask).flops_nonzero
    return int(3 * alive.sum() - alive.iloc[0]) // 2


def limits(quick: bool) -> pd.DataFrame:
    """One row a network, under the headline mask: milliseconds of a step of plain PyTorch, of ours
    and of ours with the ``skeleton``; what the loads of its weights take at least; and the ratio
    against plain PyTorch if they took no more."""
    return pd.DataFrame([_limit(name) for name in train.NETWORKS if not quick])


def _limit(name: str) -> dict:
    method, sparsity = train.HEADLINE
    network = train.NETWORKS[name]
    recipe, split = training.RECIPES[network.recipe], train.images(network.shape)
    batch = data.balanced_batch(split, 10, torch.Generator().manual_seed(0))
    model = train.build(name)
    mask, _ = pruning.prune(model, method, 1 - sparsity, batch)
    mask = masks.effective(model, mask)
    small = train.ours(model, mask, recipe)._replace(engine="sparse")
    bare = small._replace(mask=skeleton(small.mask))
    x = torch.rand(NEAREST).numpy()
    times = interleave(
        {
            "plain": train.plain_step(model, mask, split, recipe),
            "ours": train.our_step(small, split, recipe),
            "skeleton": train.our_step(bare, split, recipe),
            "loads": lambda: add_up(x, PASSES),
        }
    ).median()
    images = recipe.batch_size
    work = images * (multiply_adds(small) - multiply_adds(bare))
    loads = LOADED * NEAREST * PASSES / times.loads
    least = LOADED * work / loads
    return {
        "network": name,
        "multiply_adds": work,
        "gigabytes_a_second": loads / 1e9,
        "plain_ms": 1000 * times.plain,
        "ours_ms": 1000 * times.ours,
        "skeleton_ms": 1000 * times.skeleton,
        "weights_ms": 1000 * (times.ours - times.skeleton),
        "weights_at_least_ms": 1000 * least,
        "times_plain": times.plain / times.ours,
        "at_most": times.plain / (times.skeleton + least),
        "required": REQUIRED[name],
    }
