"""Exact removal of what has no influence: dead units and channels and unread inputs go, a smaller
network with the same outputs stays.

Residual streams cut a network into *chains*: from the input to the first block, each block's
branch, each shortcut, from the last block to the output. In a chain a layer is read by the next one
alone. A *stream* is what chains write to and read from; blocks without a convolution in their
shortcut write to the stream that they read, so a channel of it goes when none of its
readers needs it. A plain network is one chain. No image size is needed: a ``Linear`` behind a
``Flatten`` has one input for each pixel of the first channel, then those of the second, and so on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import nan

import torch
from torch import Tensor, nn

from . import graph, masks
from .errors import UserError
from .inspection import faithful
from .masks import Mask
from .models import Block, input_shape, prunable

Chain = list[tuple[str, nn.Module]]
# With the streams that it reads and writes; of stream 0, the network's input and output, everything
# stays.
Link = tuple[Chain, int, int]
# Tensor -> (there, here): True in the full and in the smaller one at the entries that are the same
Ways = dict[str, tuple]

#: What compaction reads besides ``Sequential`` and ``Block``: the attributes that matter, and the
#: value that each must have.
KNOWN = {
    nn.Linear: {},
    nn.ReLU: {},
    nn.MaxPool2d: {},
    nn.AdaptiveAvgPool2d: {},
    nn.Conv2d: {"groups": 1},
    nn.BatchNorm2d: {"affine": True, "track_running_stats": True},
    nn.Flatten: {"start_dim": 1, "end_dim": -1},
}
WEIGHTED = (nn.Linear, nn.Conv2d)


class Select(nn.Module):
    """The features ``index`` [k] of a batch [n, features]: those that the ``Linear`` behind it
    reads.
    """

    def __init__(self, index: Tensor):
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)  # x[:, index], several times faster in both directions


@dataclass(frozen=True)
class Compact:
    """A smaller network, its mask, and the way back to the full one.

    Attributes:
        model: the modules and names of the full network, and a ``Select`` named ``select_NAME``
            before a ``Linear`` to which features come that it does not read; own parameters, the
            pruned weights exactly 0.
        mask: of ``model``.
    """

    model: nn.Module
    mask: Mask
    _whole: Mask = field(repr=False)  # of the full network
    _ways: Ways = field(repr=False)
    # What folding added to a tensor of the smaller network
    _shifts: dict[str, Tensor] = field(repr=False)

    def narrow(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of tensors shaped like the full network's weights that the smaller one has; 0
        where that was pruned.
        """
        parts = {}
        for name, m in self.mask.items():
            there, here = self._ways[name]
            parts[name] = tensors[name].new_zeros(m.shape)
            parts[name][here] = tensors[name][there]
        return parts

    def widen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A mask, or tensors shaped like parameters of the smaller network, as of the full one; 0
        at what was removed."""
        whole = {}
        for name, tensor in tensors.items():
            there, here = self._ways[name]
            whole[name] = tensor.new_zeros(there.shape)
            whole[name][there] = tensor[here]
        return whole

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Write parameters and BatchNorm statistics into ``model``, the full network; a pruned
        weight becomes exactly 0.

        What was removed without being pruned, such as a dead unit's bias, stays as it is there;
        what folding added is taken off again. ``model`` then computes what the smaller network
        computes, in the modes in which compaction is exact.

        Raises:
            UserError: another network.
        """
        masks.check(model, self._whole)
        full, small = (
            model.state_dict(),
            self.model.state_dict(),
        )  # they share the networks' memory
        for name, (there, here) in self._ways.items():
            full[name][there] = (
                small[name] - self._shifts[name] if name in self._shifts else small[name]
            )[here]
        for name, m in self._whole.items():
            full[name][~m] = 0.0


@torch.no_grad()
def compact(model: nn.Module, mask: Mask, fold: bool = True) -> Compact:
    """The smaller network that computes what ``model`` computes under ``mask``; ``model`` is only
    read.

    A unit or channel goes when no path of kept weights leads from it to the output; so does a
    feature that a ``Linear`` does not read. The outputs and the network's input channels stay;
    where nothing of a layer would be left, one unit without weights is.

    Args:
        model: an ``nn.Sequential``, nested or not, of the modules in ``KNOWN`` and
            ``models.Block``.
        fold: False removes nothing else, and both networks train alike: a step of SGD does the same
            to all that they share. True, for a network as it stands, also removes what no path of
            kept weights reaches. Its constant goes into the next layer's bias, or where there is
            none into the running mean of the BatchNorm behind. A constant other than 0 stays if
            neither is there, and before a convolution that pads with zeros, whose border would tell
            it from the padding. Exact in eval mode. In train mode BatchNorm makes its bias of every
            constant; folding is exact there where eval mode does so too: without BatchNorm, or with
            running means equal to the constants, as in a fresh network.

    Raises:
        UserError: a mask of another network, or a network that compaction cannot read, such as one
            with hooks.
    """
    masks.check(model, mask)
    if reason := faithful.altered(model):
        raise UserError(f"compaction cannot read this network: {reason}")
    chains(model)
    try:
        small = copy.deepcopy(model)
    except Exception as error:  # what else hangs on the modules decides
        raise UserError(f"compaction cannot copy this network: {error}") from error
    graph.inherit(small, model)
    # [outputs, inputs, taps], of the full network
    used = {name: m.reshape(*m.shape[:2], -1) for name, m in mask.items()}
    ways, shifts = {}, {}
    links = chains(small)
    if fold:
        for chain, _, _ in links:
            _fold(chain, used, shifts)
    units, streams = _trim(links, used)
    for chain, source, _ in links:
        ways |= _cut(small, chain, streams[source], units, used, shifts)
    return Compact(small, {name: ways[name][1] for name in prunable(small)}, mask, ways, shifts)


def _layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    # named_children() would leave out the second use of a module.
    for (
        name,
        module,
    ) in model._modules.items():
        if type(module) is nn.Sequential:
            yield from _layers(module, f"{prefix}{name}.")
        else:
            yield prefix + name, module


def chains(model: nn.Module) -> list[Link]:
    """The chains of a network, in the order in which they compute.

    Raises:
        UserError: a network that compaction cannot read.
    """
    if type(model) is not nn.Sequential:
        raise UserError(
            f"compaction cannot read a {type(model).__name__}; it reads an nn.Sequential, nested"
            " or not"
        )
    links: list[Link] = []
    chain, source, streams = [], 0, 0
    for name, module in _layers(model):
        if type(module) is Block:
            if chain:
                streams += 1
                links.append((chain, source, streams))
                source = streams
            branch = [
                (f"{name}.{part}", getattr(module, part))
                for part in ("conv1", "bn1", "relu1", "conv2", "bn2")
            ]
            shortcut = list(_layers(module.shortcut, f"{name}.shortcut."))
            streams += bool(shortcut)
            links += [
                (branch, source, streams),
                *([(shortcut, source, streams)] if shortcut else []),
            ]
            chain, source = [], streams
        elif type(module) is Select:  # an earlier compaction left nothing before it that may go
            links.append((chain, source, 0))
            chain, source = [], 0
        else:
            chain.append((name, module))
    links.append((chain, source, 0))
    flat, seen = len(input_shape(model)) == 1, set()
    for name, module in (layer for chain, _, _ in links for layer in chain):
        unread = f"compaction cannot read {name}, a {type(module).__name__}"
        if type(module) not in KNOWN:
            raise UserError(
                f"{unread}; it knows {', '.join(kind.__name__ for kind in KNOWN)}, Sequential and"
                " Block"
            )
        for attribute, value in KNOWN[type(module)].items():
            if getattr(module, attribute) != value:
                raise UserError(
                    f"{unread} with {attribute}={getattr(module, attribute)}; it must be {value}"
                )
        if isinstance(module, nn.Linear) and not flat:
            raise UserError(f"{unread} that acts on images; put a Flatten before it")
        if seen & (own := set(module.parameters())):
            raise UserError(f"{unread} whose parameters another layer uses too; give each its own")
        flat, seen = flat or isinstance(module, nn.Flatten), seen | own
    return links


def _fold(chain: Chain, used: Mask, shifts: dict[str, Tensor]) -> None:
    """Takes out of ``used`` what carries a constant to a tensor that can hold it; ``shifts`` says
    what to add there.
    """
    # Of each channel, nan where it varies; what a chain begins with varies.
    value = torch.tensor(nan)
    for (name, module), (after, following) in pairwise([*chain, ("", None)]):
        if isinstance(module, WEIGHTED):
            taps, biased = used[f"{name}.weight"], module.bias is not None
            value = value.repeat_interleave(taps.shape[1] // value.numel()).to(module.weight)
            home = (
                f"{name}.bias"
                if biased
                else f"{after}.running_mean"
                if isinstance(following, nn.BatchNorm2d)
                else None
            )
            padded = isinstance(module, nn.Conv2d) and module.padding not in ("valid", (0, 0))
            known = value.isfinite() if home and not padded else value == 0
            carried = (
                module.weight.reshape(taps.shape).where(taps, 0).sum(2)[:, known] @ value[known]
            )
            if home:
                shifts[home] = carried if biased else -carried
            used[f"{name}.weight"] = taps = taps & ~known[:, None]
            value = (carried + module.bias if biased else carried).masked_fill(
                taps.any(2).any(1), nan
            )
        elif isinstance(module, nn.BatchNorm2d):
            value = (
                module.bias
                + (value - module.running_mean)
                * module.weight
                / (module.running_var + module.eps).sqrt()
            )
        elif isinstance(module, nn.ReLU):
            value = value.relu()  # pooling leaves a constant as it is


def _trim(links: list[Link], used: Mask) -> tuple[dict[str, Tensor], list[Tensor]]:
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


def _cut(
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
                Select(earlier.index[index] if earlier else index).train(parent.training),
            )
        parent.add_module(key, module)
