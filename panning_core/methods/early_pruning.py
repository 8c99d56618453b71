"""Which units of a network matter, and whether that has settled (Shen et al., CVPR 2022).

Pruning-aware training ranks the units of all layers after every epoch and looks at the widths that
pruning now would leave. The Early Pruning Indicator (EPI) says how much they still move. The text
of the paper could not be read; the indicator is the one on which its project page and two
independent implementations agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .. import compaction
from ..errors import UserError
from ..inspection import faithful
from ..masks import Mask
from ..models import prunable

#: epochs that the indicator looks back
LOOK_BACK = 5
#: criterion -> the indicator from which on the widths have settled
THRESHOLDS = {"magnitude": 0.983, "relative-magnitude": 0.983, "taylor": 0.944}
CRITERIA = (*THRESHOLDS, "random")


def similarity(one: Sequence[int], other: Sequence[int]) -> float:
    """1 minus the mean over layers of |n - n'| / (n + n'), of two lists of widths."""
    distances = [abs(a - b) / (a + b) for a, b in zip(one, other, strict=True)]
    return 1 - sum(distances) / len(distances)


def indicator(history: Sequence[Sequence[int]]) -> float | None:
    """EPI: the mean similarity of the last widths to those of ``LOOK_BACK`` epochs before; None
    where there are not so many."""
    if len(history) <= LOOK_BACK:
        return None
    now, before = history[-1], history[-1 - LOOK_BACK : -1]
    return sum(similarity(now, widths) for widths in before) / LOOK_BACK


def has_settled(indicators: Sequence[float | None], threshold: float) -> bool:
    """Whether the last indicator is above the threshold and none of ``LOOK_BACK`` before higher."""
    if not indicators or indicators[-1] is None or indicators[-1] < threshold:
        return False
    before = [each for each in indicators[-1 - LOOK_BACK : -1] if each is not None]
    return all(indicators[-1] >= each for each in before)


def scores(
    model: nn.Module,
    criterion: str,
    batches: Iterable[tuple[Tensor, Tensor]],
    generator: torch.Generator,
) -> list[Tensor]:
    """How much each output channel of each convolution matters, one vector a layer.

    ``magnitude``: the L2 norm of its weights over the root of their number;
    ``relative-magnitude``: over the mean of its layer, since layers of different initial scale can
    not be compared otherwise. ``taylor``: (g gamma + h beta)^2 of the BatchNorm behind, g and h
    being the loss's gradients, summed over ``batches``; no step is made. ``random``: noise.

    Raises:
        UserError: a convolution without a BatchNorm behind it.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if len(norms) != len(convolutions):
        raise UserError("every convolution of the network needs a BatchNorm behind it")
    if criterion == "random":
        return [torch.rand(each.out_channels, generator=generator) for each in convolutions]
    if criterion != "taylor":
        sizes = [each.weight.detach().flatten(1).square().mean(1).sqrt() for each in convolutions]
        return sizes if criterion == "magnitude" else [each / each.mean() for each in sizes]
    with faithful.untouched(model):  # or BatchNorm's statistics would move
        return _taylor(model, norms, batches)


def _taylor(
    model: nn.Module, norms: list[nn.BatchNorm2d], batches: Iterable[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    found = [torch.zeros(each.num_features) for each in norms]
    for x, y in batches:
        parameters = [p for norm in norms for p in (norm.weight, norm.bias)]
        loss = nn.functional.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, parameters)
        for total, norm, g, h in zip(found, norms, gradients[::2], gradients[1::2]):
            total += (g * norm.weight + h * norm.bias).detach().square()
    return found


def kept(values: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """Which channels stay when the share ``ratio`` of all goes, the least important of all layers
    together; of each layer the best always stays. One boolean vector a layer."""
    flat = torch.cat(list(values))
    first = torch.cat([v == v.max() for v in values])
    first &= torch.cat([(v == v.max()).cumsum(0) == 1 for v in values])
    order = torch.where(first, torch.inf, flat).argsort(descending=True, stable=True)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[: max(len(values), round((1 - ratio) * len(flat)))]] = True
    return list(chosen.split([len(v) for v in values]))


def cut(model: nn.Module, channels: Sequence[Tensor]) -> nn.Module:
    """The network without the channels that are not kept, by ``compaction``: a smaller network of
    the same modules that computes what the full one computes without them."""
    weights = prunable(model)
    mask: Mask = {name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()}
    names = list(weights)
    for before, after, stays in zip(names, names[1:], channels):
        mask[before][~stays] = False
        inputs = mask[after].shape[1]
        mask[after][:, ~stays.repeat_interleave(inputs // len(stays))] = False
    return compaction.compact(model, mask, fold=False).model
