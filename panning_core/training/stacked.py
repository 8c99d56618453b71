"""Train many networks of one architecture at once: what keeps a GPU busy when one of them is too
small for it.

The networks lie side by side in one: its convolutions have a group for each, its linear layers are
batched products, and BatchNorm, ReLU and pooling never mix channels. So a stack is an ordinary
network with an ordinary mask, and the dense engine trains it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from .. import masks
from ..data import Split, Splits
from ..errors import UserError
from ..inspection import faithful
from ..masks import Mask
from ..models import input_shape
from . import loop
from .cost import Cost, kept
from .dense import Dense
from .recipe import Recipe, Step, epochs


def _linear(layer: nn.Linear, count: int, x: Tensor) -> Tensor:
    """[n, count * in] -> [n, count * out]: each network's features times its own weights."""
    weight, bias = (
        layer.weight.unflatten(0, (count, -1)),
        0 if layer.bias is None else layer.bias.unflatten(0, (count, 1, -1)),
    )
    return (
        (x.unflatten(1, (count, -1)).transpose(0, 1) @ weight.mT + bias).transpose(0, 1).flatten(1)
    )


def side_by_side(networks: Sequence[nn.Module]) -> nn.Module:
    """One network from images [n, count * channels, height, width] to logits [n, count * classes]:
    each of ``networks`` on its share.

    Every parameter and buffer is theirs, one after the other along the first axis, under the same
    name.

    Raises:
        UserError: networks of different shapes; one with hooks, frozen parameters or noise of its
            own; or one with a layer that mixes channels in another way than ``Conv2d`` and
            ``Linear``.
    """
    for network in networks:
        _check_plain(network)
    count, stacked = len(networks), copy.deepcopy(networks[0])
    for layer in stacked.modules():
        if isinstance(layer, nn.Conv2d):
            layer.groups *= count
        elif isinstance(layer, nn.Linear):
            layer.forward = partial(_linear, layer, count)
    channels, *size = input_shape(stacked)
    some = next(stacked.parameters())
    x = torch.rand((4, count, channels, *size), generator=torch.Generator().manual_seed(0)).to(some)
    try:
        for name, tensor in stacked.state_dict(keep_vars=True).items():
            if tensor.dim():  # BatchNorm's number of batches is the same in all
                tensor.data = torch.cat([network.state_dict()[name] for network in networks])
        same = _agree(stacked, networks, x)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"these networks can not be trained as one: {error}") from error
    if not same:
        raise UserError(
            "these networks can not be trained as one: a layer besides Conv2d and Linear mixes "
            "their channels, or draws noise"
        )
    return stacked


def _check_plain(network: nn.Module) -> None:
    if reason := faithful.altered(network):
        raise UserError(f"these networks can not be trained as one: {reason}")
    if frozen := [name for name, p in network.named_parameters() if not p.requires_grad]:
        raise UserError(f"these networks can not be trained as one: {frozen[0]} is frozen")


def _agree(stacked: nn.Module, networks: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether both answer x [n, count, channels, ...] alike, with the same gradients."""

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return sum(nn.functional.cross_entropy(part, y) for part in logits.chunk(len(networks), 1))

    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    own = [faithful.ask(net, masks.ones(net), x[:, k], y) for k, net in enumerate(networks)]
    found = faithful.ask(stacked, masks.ones(stacked), x.flatten(1, 2), y, loss)
    gradients = {
        name: torch.cat([each.gradients[name] for each in own]) for name in found.gradients
    }
    logits, settled = (torch.cat(parts, 1) for parts in list(zip(*own))[:2])
    return faithful.difference(faithful.Answer(logits, settled, gradients), found) is None


class Stack(Dense):
    """The dense engine on ``count`` networks side by side: images are [n, count, ...], labels
    [n, count], losses [count]."""

    def __init__(
        self, networks: Sequence[nn.Module], pruned: Sequence[Mask], recipes: Sequence[Recipe]
    ):
        self.networks, self.count = networks, len(networks)
        self.seconds, self.recipes = (0.0,) * len(networks), recipes
        one = side_by_side(networks)
        masks_of_one = {name: torch.cat([mask[name] for mask in pruned]) for name in pruned[0]}
        super().__init__(one, masks_of_one, recipes[0])

    def epochs(self, split: Split, drawn: torch.Generator, done: int) -> Iterator[Iterator[Step]]:
        """Each network in its own order; ``drawn`` is that of none."""
        return map(_stack, zip(*(epochs(split, recipe) for recipe in self.recipes)))

    def _forward(self, x: Tensor) -> Tensor:
        """[n, classes, count]"""
        logits = super()._forward(x.flatten(1, 2))
        return logits.unflatten(1, (self.count, -1)).transpose(1, 2)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self._forward(x), y, reduction="none").mean(0)

    def logits(self, x: Tensor) -> Tensor:
        """[n, count * classes] for images [n, ...], which every network sees."""
        self.model.eval()
        parts = (
            part[:, None].expand(-1, self.count, *part.shape[1:])
            for part in x.split(max(1, 1000 // self.count))
        )
        with torch.no_grad():
            return torch.cat([self._forward(part).mT.flatten(1) for part in parts])

    def store(self) -> None:
        for name, tensor in self.model.state_dict().items():
            own = tensor.chunk(self.count) if tensor.dim() else [tensor] * self.count
            for network, part in zip(self.networks, own):
                network.state_dict()[name].copy_(part)


def _stack(orders: Sequence[Iterator[Step]]) -> Iterator[Step]:
    """The steps of several networks as one: images [n, count, ...], labels [n, count]."""
    for steps in zip(*orders):
        x, y, (lr, *_) = zip(*steps)
        yield torch.stack(x, 1), torch.stack(y, 1), lr


def train(
    networks: Sequence[nn.Module], pruned: Sequence[Mask], splits: Splits, recipes: Sequence[Recipe]
) -> list[pd.DataFrame]:
    """``training.train`` for many networks at once, each in place under its own mask and with its
    own order of the images.

    A network whose loss stops being finite disturbs no other; its table ends there.

    Args:
        networks: of one architecture, on the device of ``splits``.
        pruned: the mask of each.
        recipes: that of each; they may differ in their seeds only.

    Returns:
        The table of ``training.train`` for each network.

    Raises:
        UserError: another network's mask, recipes that differ, or networks that do not go
            ``side_by_side``.
    """
    for network, mask in zip(networks, pruned, strict=True):
        masks.check(network, mask)
    if len({dataclasses.replace(recipe, seed=0) for recipe in recipes}) > 1:
        raise UserError("the recipes of a stack differ in more than their seeds")
    # On a GPU, which stacks are for, products are what PyTorch is set to.
    logs = loop.fit(Stack(networks, pruned, recipes), splits, products=nullcontext)
    cost = Cost(networks[0])
    for log, mask in zip(logs, pruned):
        image = cost.image(kept(mask))
        log.attrs.update(
            reason=f"{len(networks)} networks side by side are one dense network",
            training_flops=None if image is None else len(log) * len(splits.train) * image,
        )
    return logs
