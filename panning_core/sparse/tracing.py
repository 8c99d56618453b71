"""What a forward calls, and which layers the engine knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import fx, nn

from ..compaction import Select
from ..errors import UserError
from ..zoo import Block

REFUSED = "the sparse engine cannot train this network: "

#: What the engine can train: the attributes that matter and the values it knows.
KNOWN = {
    nn.Flatten: {"start_dim": [1], "end_dim": [-1]},
    nn.Linear: {},
    nn.ReLU: {},
    nn.Conv2d: {"groups": [1], "dilation": [(1, 1)], "padding_mode": ["zeros"]},
    nn.MaxPool2d: {
        "padding": [0, (0, 0)],
        "dilation": [1, (1, 1)],
        "ceil_mode": [False],
        "return_indices": [False],
    },
    nn.AdaptiveAvgPool2d: {"output_size": [1, (1, 1)]},
    nn.BatchNorm2d: {"affine": [True], "track_running_stats": [True]},
    Select: {},
}


def refuse(reason: str) -> NoReturn:
    """Raises a ``UserError``."""
    raise UserError(REFUSED + reason)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


class Tracer(fx.Tracer):
    def trace(self, root: nn.Module) -> fx.Graph:
        """A forward that assigns to the network leaves nothing behind."""
        before = [(module, {**vars(module)}, {**module._buffers}) for module in root.modules()]
        try:
            return super().trace(root)
        finally:
            for module, own, buffers in before:
                vars(module).clear()
                vars(module).update(own)
                module._buffers.clear()
                module._buffers.update(buffers)

    def create_args_for_root(
        self, root_fn: Callable, is_module: bool, concrete_args: object = None
    ) -> tuple[Callable, list]:
        """The images are all that a forward is given, as in ``model(x)``: other arguments have
        their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in KNOWN or super().is_leaf_module(module, name)


#: of the networks seen so far; tracing takes longer than all else about a small one
GRAPHS: dict[tuple, fx.Graph] = {}


def trace(model: nn.Module) -> fx.Graph:
    """What a forward calls. Networks put together alike share a graph if the names and types of
    their modules tell all of it."""
    first: dict[nn.Module, str] = {}
    made = tuple(
        (name, first.setdefault(module, name), type(module))
        for name, module in model.named_modules(remove_duplicate=False)
    )
    if not all(kind in KNOWN or kind in (nn.Sequential, Block) for _, _, kind in made):
        return Tracer().trace(model)
    if made not in GRAPHS:
        GRAPHS[made] = Tracer().trace(model)
    return GRAPHS[made]


# One piece: one refusal after the other, in the order in which a user should read them.
def examine(node: fx.Node, module: nn.Module) -> None:
    """Refuses a layer that the engine does not know."""
    kind = type(module).__name__
    if type(module) not in KNOWN:
        refuse(f"{kind} is not supported")
    for attribute, values in KNOWN[type(module)].items():
        if getattr(module, attribute) not in values:
            refuse(f"{kind} with {attribute}={getattr(module, attribute)!r} is not supported")
    if reason := _shape(module):
        refuse(f"{kind} {reason} is not supported")
    parameters = list(module.parameters())
    if any(not parameter.requires_grad for parameter in parameters):
        refuse(f"{node.target} is frozen, and it trains every parameter")
    if any(parameter.dtype != torch.float32 for parameter in parameters):
        refuse("only float32 is supported")
    if parameters and sum(other.target == node.target for other in node.graph.nodes) > 1:
        refuse(f"a {kind} that occurs twice is not supported")
    reads_copies = isinstance(module, nn.Conv2d | nn.Linear | Select | nn.Flatten)
    if not reads_copies and len(node.all_input_nodes[0].users) > 1:
        refuse(f"{kind} of a value that is read elsewhere too is not supported")


def _shape(module: nn.Module) -> str | None:
    """What of a layer's sizes the engine does not know."""
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str):
            return f"with padding={module.padding!r}"
        if any(p >= k for p, k in zip(module.padding, module.kernel_size)):
            return "with a padding as large as its kernel"
    if isinstance(module, nn.MaxPool2d) and pair(module.kernel_size) != pair(module.stride):
        return "whose stride is not its kernel size"
    if isinstance(module, nn.BatchNorm2d) and module.momentum is None:
        return "with momentum=None"
    return None
