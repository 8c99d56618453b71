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
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import graph, masks
from .cutting.chains import KNOWN, WEIGHTED, Select, chains  # noqa: F401
from .cutting.units import Ways, cut, fold_constants, trim
from .errors import UserError
from .inspection import faithful
from .masks import Mask
from .models import prunable


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
            ``zoo.Block``.
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
    ways: Ways = {}
    shifts: dict[str, Tensor] = {}
    links = chains(small)
    if fold:
        for chain, _, _ in links:
            fold_constants(chain, used, shifts)
    units, streams = trim(links, used)
    for chain, source, _ in links:
        ways |= cut(small, chain, streams[source], units, used, shifts)
    return Compact(small, {name: ways[name][1] for name in prunable(small)}, mask, ways, shifts)
