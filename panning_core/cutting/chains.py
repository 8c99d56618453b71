"""Chains: which layer reads which, as far as compaction can read a network."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..errors import UserError
from ..models import input_shape
from ..zoo import Block

Chain = list[tuple[str, nn.Module]]
# With the streams that it reads and writes; of stream 0, the network's input and output, everything
# stays.
Link = tuple[Chain, int, int]

#: What compaction reads besides ``Sequential`` and ``Block``: the attributes that matter, and the
#: value that each must have.
KNOWN: dict[type, dict[str, object]] = {
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

    index: Tensor

    def __init__(self, index: Tensor):
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)  # x[:, index], several times faster in both directions


def _layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    # named_children() would leave out the second use of a module.
    for name, module in model._modules.items():
        if module is None:
            continue
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
    links = _links(model)
    flat = len(input_shape(model)) == 1
    seen: set[nn.Parameter] = set()
    for name, module in (layer for chain, _, _ in links for layer in chain):
        unread = f"compaction cannot read {name}, a {type(module).__name__}"
        _check_known(module, unread)
        if isinstance(module, nn.Linear) and not flat:
            raise UserError(f"{unread} that acts on images; put a Flatten before it")
        if seen & (own := set(module.parameters())):
            raise UserError(f"{unread} whose parameters another layer uses too; give each its own")
        flat, seen = flat or isinstance(module, nn.Flatten), seen | own
    return links


def _links(model: nn.Module) -> list[Link]:
    links: list[Link] = []
    chain: Chain = []
    source = streams = 0
    for name, module in _layers(model):
        if type(module) is Block:
            if chain:
                streams += 1
                links.append((chain, source, streams))
                source = streams
            branch, shortcut = _ways_through(module, name)
            streams += bool(shortcut)
            links.append((branch, source, streams))
            if shortcut:
                links.append((shortcut, source, streams))
            chain, source = [], streams
        elif type(module) is Select:  # an earlier compaction left nothing before it that may go
            links.append((chain, source, 0))
            chain, source = [], 0
        else:
            chain.append((name, module))
    return [*links, (chain, source, 0)]


def _ways_through(block: Block, name: str) -> tuple[Chain, Chain]:
    """The branch of a block and its shortcut, which is empty where nothing is done on it."""
    parts = ("conv1", "bn1", "relu1", "conv2", "bn2")
    branch = [(f"{name}.{part}", getattr(block, part)) for part in parts]
    return branch, list(_layers(block.shortcut, f"{name}.shortcut."))


def _check_known(module: nn.Module, unread: str) -> None:
    if type(module) not in KNOWN:
        known = ", ".join(kind.__name__ for kind in KNOWN)
        raise UserError(f"{unread}; it knows {known}, Sequential and Block")
    for attribute, value in KNOWN[type(module)].items():
        if (found := getattr(module, attribute)) != value:
            raise UserError(f"{unread} with {attribute}={found}; it must be {value}")
