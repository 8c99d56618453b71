"""A small network whose layers have a number of bits each and whose hidden layer has a width.

After Azizi et al. (arXiv 2308.06422), who search such a space; the network and the number format
are choices made here. Every network of the space is evaluated without being built.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from ..data import Split, Splits
from ..errors import UserError
from . import parzen
from .sensitivity import quantised

BITS = (2, 3, 4, 6, 8)
WIDTHS = (1.0, 0.75, 0.5)  #: of the hidden layer
LAYERS = ("conv1", "conv2", "fc1", "fc2")
SIZES = (*[len(BITS)] * len(LAYERS), len(WIDTHS))


def network(splits: Splits, seed: int) -> nn.Sequential:
    """A small LeNet-5: 6 and 16 channels, 84 hidden units; kernels of 5, or 3 for tiny images.

    Raises:
        UserError: the data are no images.
    """
    if len(splits.input_shape) != 3:
        raise UserError(
            f"convolutions need images (channels, height, width), and {splits.name} has inputs "
            f"{list(splits.input_shape)}"
        )
    channels, *side = splits.input_shape
    kernel, padding = (5, 0) if min(side) >= 16 else (3, 1)
    for _ in range(2):
        side = [(length + 2 * padding - kernel + 1) // 2 for length in side]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 6, kernel, padding=padding),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(6, 16, kernel, padding=padding),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(16 * prod(side), 84),
                relu3=nn.ReLU(),
                fc2=nn.Linear(84, splits.classes),
            )
        )


def train(model: nn.Module, split: Split, epochs: int, seed: int) -> None:
    """SGD at 0.05 with momentum 0.9 and batches of 64, the rate falling to 0 in a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    steps = epochs * -(-len(split) // 64)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(split), generator=generator).split(64):
            optimiser.zero_grad()
            cross_entropy(model(split.x[chosen]), split.y[chosen]).backward()
            optimiser.step()
            cosine.step()


def kept_units(model: nn.Module, width: float) -> Tensor:
    """Hidden units with the largest |incoming weights| |outgoing weights|, in their order."""
    importance = model.fc1.weight.norm(dim=1) * model.fc2.weight.norm(dim=0)
    count = round(width * len(importance))
    return importance.argsort(descending=True, stable=True)[:count].sort().values


@torch.no_grad()
def accuracies(model: nn.Module, split: Split, space: Sequence[Sequence[int]]) -> np.ndarray:
    """Accuracy of every network of a space, layer by layer: what two share is computed once."""
    found = np.empty([len(choices) for choices in space])
    layers = [[BITS[i] for i in choices] for choices in space[:4]]
    for i, first in enumerate(layers[0]):
        h1 = model.pool1(relu(_convolve(model.conv1, split.x, first)))
        for j, second in enumerate(layers[1]):
            h2 = model.pool2(relu(_convolve(model.conv2, h1, second))).flatten(1)
            for w, units in enumerate(kept_units(model, WIDTHS[choice]) for choice in space[4]):
                for k, third in enumerate(layers[2]):
                    weight = quantised(model.fc1.weight[units], third)
                    h3 = relu(h2 @ weight.T + model.fc1.bias[units])
                    for m, fourth in enumerate(layers[3]):
                        weight = quantised(model.fc2.weight[:, units], fourth)
                        right = (h3 @ weight.T + model.fc2.bias).argmax(1) == split.y
                        found[i, j, k, m, w] = float(right.double().mean())
    return found


def _convolve(layer: nn.Conv2d, x: Tensor, bits: int) -> Tensor:
    return nn.functional.conv2d(x, quantised(layer.weight, bits), layer.bias, padding=layer.padding)


def sizes(model: nn.Module) -> np.ndarray:
    """Bits of the weights of every network, over those of 8 bits and full width; no biases."""
    counts = np.array([getattr(model, name).weight.numel() for name in LAYERS], dtype=float)
    widths = [len(kept_units(model, width)) / model.fc1.out_features for width in WIDTHS]
    found = np.empty(SIZES)
    for place in np.ndindex(*SIZES):
        weights = counts * [1, 1, widths[place[4]], widths[place[4]]]
        found[place] = sum(weights * [BITS[i] for i in place[:4]])
    return found / (8 * counts.sum())


def cut_space(felt: list[float]) -> tuple[range, ...]:
    """Two clusters of log sensitivities: the sensitive layers keep 3 bits and more, others 4 and
    fewer; all widths stay."""
    labels, centres = parzen.clusters(np.log(np.maximum(felt, 1e-12)), 2)
    sensitive = centres[labels] == centres.max()
    return (*(range(1, 5) if each else range(3) for each in sensitive), range(len(WIDTHS)))
