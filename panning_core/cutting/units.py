"""Which units and channels may go, and a layer without them."""

from __future__ import annotations

from itertools import pairwise
from math import nan

import torch
from torch import Tensor, nn

from ..masks import Mask
from .chains import WEIGHTED, Chain, Link, Select

# Tensor -> (there, here): True in the full and in the smaller one at the entries that are the same
Ways = dict[str, tuple]


def fold_constants(chain: Chain, used: Mask, shifts: dict[str, Tensor]) -> None:
    """Takes out of ``used`` what carries a constant to a tensor that can hold it; ``shifts`` says
    what to add there.
    """
    # Of each channel, nan where it varies; what a chain begins with varies.
    value = torch.tensor(nan)
    for (name, module), (after, following) in pairwise([*chain, ("", None)]):
        if isinstance(module, WEIGHTED):
            taps = used[f"{name}.weight"]
            value = value.repeat_interleave(taps.shape[1] // value.numel()).to(module.weight)
            home = _home(name, module, after, following)
            padded = isinstance(module, nn.Conv2d) and module.padding not in ("valid", (0, 0))
            known = value.isfinite() if home and not padded else value == 0
            carried = (
                module.weight.reshape(taps.shape).where(taps, 0).sum(2)[:, known] @ value[known]
            )
            if home:
                shifts[home] = -carried if module.bias is None else carried
            used[f"{name}.weight"] = taps = taps & ~known[:, None]
            value = carried if module.bias is None else carried + module.bias
            value = value.masked_fill(taps.any(2).any(1), nan)
        elif isinstance(module, nn.BatchNorm2d):
            mean, variance = module.running_mean, module.running_var
            assert mean is not None and variance is not None  # as ``KNOWN`` says
            value = module.bias + (value - mean) * module.weight / (variance + module.eps).sqrt()
        elif isinstance(module, nn.ReLU):
            value = value.relu()  # pooling leaves a constant as it is


def _home(name: str, module: nn.Module, after: str, following: nn.Module | None) -> str | None:
    """The tensor that can hold what a layer adds to all places of a channel: its bias, or the mean
    of the BatchNorm behind it."""
    if module.bias is not None:
        return f"{name}.bias"
    return f"{after}.running_mean" if isinstance(following, nn.BatchNorm2d) else None


def trim(links: list[Link], used: Mask) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Takes out of ``used`` what leads to no output; returns which units [outputs] of each layer,
    and which channels of each stream, lead to one.
    """
    weighted = [
        [name for name, module in chain if isinstance(module, WEIGHTED)] for chain, _, _ in links
    ]
    # Of stream 0 one entry for all
    live, units, rest = (
        [next(iter(used.values())).new_ones(1)],
        {},
        {},
    )
    for names, (_, source, target) in zip(weighted, links):
        if target == len(live):
            live.append(
                live[0].new_zeros(len(used[f"{names[-1]}.weight"]) if names else len(live[source]))
            )
    before: list[Tensor] = []
    # A block reads the stream that it writes.
    while not (before and all(map(torch.equal, before, live))):
        before = list(live)
        for names, (_, source, target) in reversed([*zip(weighted, links)]):
            read = live[target]
            for name in reversed(names):
                taps = used[f"{name}.weight"]
                units[name] = _each(read, len(taps))
                rest[f"{name}.weight"] = taps = taps & units[name][:, None, None]
                read = taps.any(2).any(0)
            live[source] = live[source] | _each(read, len(live[source]))
            if not names:  # the chain hands its stream on as it is
                live[target] = live[target] | _each(live[source], len(live[target]))
    used.update(rest)
    return units, live


def _each(read: Tensor, count: int) -> Tensor:
    """Which of ``count`` units are read: ``read`` has one entry for all of them, or one or several
    for each.
    """
    return read.expand(count) if len(read) == 1 else read.view(count, -1).any(1)


def cut(
    model: nn.Module,
    chain: Chain,
    live: Tensor,
    units: dict[str, Tensor],
    used: Mask,
    shifts: dict[str, Tensor],
) -> Ways:
    """Makes the tensors of the chain smaller in place, and ``shifts`` with them; ``live`` channels
    come to it.
    """
    ways: Ways = {}
    kept = _some(live, torch.ones_like(live))
    for name, module in chain:
        if isinstance(module, WEIGHTED):
            taps = used[f"{name}.weight"]
            inputs = kept.repeat_interleave(taps.shape[1] // len(kept)).to(taps)
            if isinstance(module, nn.Linear):
                offered, inputs = inputs, _some(taps.any(2).any(0), inputs)
                if not inputs[offered].all():
                    _select(model, name, inputs[offered].nonzero().flatten())
            live = units[name]
            kept = _some(live, torch.ones_like(live))
            there = taps.reshape(module.weight.shape)
            ways[f"{name}.weight"] = there, there[kept][:, inputs]
            module.weight.data = module.weight.where(there, 0)[kept][:, inputs]
            sizes = (
                ("out_features", "in_features")
                if isinstance(module, nn.Linear)
                else ("out_channels", "in_channels")
            )
            vars(module).update(zip(sizes, module.weight.shape))
        elif isinstance(module, nn.BatchNorm2d):
            live, kept = (
                which.repeat_interleave(module.num_features // len(which)) for which in (live, kept)
            )
            module.num_features = int(kept.sum())
        for part, tensor in [*module.named_parameters(), *module.named_buffers()]:
            key = f"{name}.{part}"
            if tensor.dim() == 0:  # BatchNorm's count of batches
                ways[key] = ..., ...
            elif tensor.dim() == 1:
                ways[key] = live, live[kept]
                if key in shifts:
                    tensor += shifts[key]
                    shifts[key] = shifts[key][kept]
                tensor.data = tensor[kept]
    return ways


def _some(chosen: Tensor, among: Tensor) -> Tensor:
    """``chosen``, or the first of ``among`` where nothing is: no layer may be empty."""
    return chosen if chosen.any() else among & (among.cumsum(0) == 1)


def _select(model: nn.Module, name: str, index: Tensor) -> None:
    """Puts a ``Select`` before the layer ``name``, or narrows the one that an earlier compaction
    put there.
    """
    path, _, leaf = name.rpartition(".")
    parent = model.get_submodule(path)
    earlier = parent._modules.pop(f"select_{leaf}", None)
    modules, parent._modules = parent._modules, {}
    for key, module in modules.items():
        if key == leaf:
            parent.add_module(
                f"select_{leaf}",
                Select(earlier.index[index] if isinstance(earlier, Select) else index).train(
                    parent.training
                ),
            )
        parent.add_module(key, module)
