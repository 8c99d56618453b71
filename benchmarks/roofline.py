"""How fast a step of the sparse engine could be: what its loads take at least, what is left when
nearly all weights are gone, and what three changes that are not made would gain at most.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from panning_core import data, masks, pruning, training
from panning_core.masks import Mask
from panning_core.sparse.cache import jit
from panning_core.sparse.kernels import STEP, fill, load, madd, total
from panning_core.sparse.steps import Step
from panning_core.sparse.taps import Taps

from . import train
from .timing import interleave

NEAREST = 2**12  #: floats that the nearest cache of every processor holds
PASSES = 2_000  #: over them, one call
ROUNDS = 9  #: of which the fastest counts: how fast it could be
IMAGES = "images"  #: the name of the step that fetches them
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


def engine_seconds(small: train.Ours, split: data.Split, recipe: training.Recipe) -> dict:
    """What each layer with weights takes of a step of the engine, forward and back, and what
    fetching the ``IMAGES`` takes; by name, the least."""
    trainer = training.Sparse(small.model, small.mask, recipe)
    names = {id(module): name for name, module in small.model.named_modules()}
    spent: Counter[str] = Counter()
    for step in trainer.net.trained:
        if isinstance(step, Taps):
            _clock(step, names[id(step.module)], spent)
    _clock(trainer.net.inlet.fetch_step, IMAGES, spent)
    batches, rows = train.our_batches(trainer, split, recipe), []
    for _ in range(1 + ROUNDS):
        spent.clear()
        trainer.step(*next(batches))
        rows.append(dict(spent))
    return pd.DataFrame(rows[1:]).min().to_dict()


def _clock(step: Step, name: str, spent: Counter[str]) -> None:
    """From now on what the calls of ``step`` take is added up."""

    def clocked(function: Callable) -> Callable:
        def run(*arguments) -> None:
            start = time.perf_counter()
            function(*arguments)
            spent[name] += time.perf_counter() - start

        return run

    def timed(calls: Callable) -> Callable:
        return lambda a, b: [(clocked(function), each) for function, each in calls(a, b)]

    step.forward, step.backward = timed(step.forward), timed(step.backward)


def dense_seconds(model: nn.Module, x: Tensor) -> dict:
    """What each layer with weights takes for a batch in PyTorch, channels last: forward, and the
    gradients of its weights and, but for the first, of its input; by name, the least."""
    inputs: dict[str, Tensor] = {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}

    def remember(name: str) -> Callable:
        def hook(_, given: tuple[Tensor], __) -> None:
            inputs[name] = given[0].detach()

        return hook

    hooks = [m.register_forward_hook(remember(name)) for name, m in layers.items()]
    model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()

    def both_ways(name: str) -> Callable[[], object]:
        module, x = layers[name], inputs[name]
        of = [module.weight] + [x.requires_grad_()] * (name != next(iter(inputs)))
        gradient = torch.ones_like(module(x))
        return lambda: torch.autograd.grad(module(x), of, gradient)

    with training.fast_products(x.device):
        return interleave({name: both_ways(name) for name in inputs}, ROUNDS).min().to_dict()


def limits(quick: bool) -> pd.DataFrame:
    """One row a network, under the headline mask: milliseconds of a step of plain PyTorch, of ours
    and of ours with the ``skeleton``; what the loads of its weights take at least; and the ratio
    against plain PyTorch if they took no more.

    Then the same ratio, at most, for three changes, whose own costs are not counted: layers that
    are faster dense are dense; what is not for the weights' sake takes half the time, as if
    activations of 16 bits halved all of it; and the images come for nothing, as if so many networks
    shared them that each pays none."""
    return pd.DataFrame([_limit(name) for name in train.NETWORKS if not quick])


def _limit(name: str) -> dict:
    method, sparsity = train.HEADLINE
    network = train.NETWORKS[name]
    recipe, split = training.RECIPES[network.recipe], train.images(network.shape)
    batch = data.balanced_batch(split, 10, torch.Generator().manual_seed(0))
    model = train.build(name)
    mask, _ = pruning.prune(model, method, 1 - sparsity, batch)
    mask = masks.effective(model, mask)
    small = train.ours(model, mask)._replace(engine="sparse")
    bare = small._replace(mask=skeleton(small.mask))
    x = torch.rand(NEAREST).numpy()
    times = interleave(
        {
            "plain": train.plain_step(model, mask, split, recipe),
            "ours": train.our_step(small, split, recipe),
            "skeleton": train.our_step(bare, split, recipe),
            "loads": lambda: add_up(x, PASSES),
        },
        ROUNDS,
    ).min()
    images = recipe.batch_size
    inside = engine_seconds(small, split, recipe)
    dense = dense_seconds(small.model, split.x[:images])
    gains = {layer: inside[layer] - took for layer, took in dense.items() if layer in inside}
    gains = {layer: gain for layer, gain in gains.items() if gain > 0}
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
        "layers_faster_dense": len(gains),
        "those_dense": times.plain / (times.ours - sum(gains.values())),
        "half_the_rest": times.plain / (times.ours - times.skeleton / 2),
        "images_for_nothing": times.plain / (times.ours - inside[IMAGES]),
        "required": REQUIRED[name],
    }
