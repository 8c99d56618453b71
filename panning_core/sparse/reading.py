"""From a model to the steps of the engine."""

from __future__ import annotations

import operator
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..compaction import Select
from ..errors import UserError
from ..inspection import faithful
from ..models import input_shape
from .kernels import STEP
from .layout import Signal, lanes_for
from .plan import Image, Plan
from .steps import Average, Pool
from .tracing import REFUSED, examine, pair, refuse, trace

#: a mask: name of each weight -> bool of its shape, True where the weight survives
Kept = dict[str, Tensor]
ADDITIONS = (operator.add, operator.iadd, torch.add)


class Reading(NamedTuple):
    """What a model was read as."""

    #: laid out
    plan: Plan
    #: the signal of the logits
    output: Signal
    #: names of the weights that a forward uses
    called: set[str]


def read(model: nn.Module, kept: Kept) -> Reading:
    """The steps of a model.

    Raises:
        UserError: a network that the engine can not train; the message says which of its layers is
            unknown.
    """
    if reason := faithful.altered(model):
        refuse(reason)
    # Of a row: as many as fill the registers; twice as many without convolutions, where fewer
    # samples at a time spare no cache.
    vectors = 4 if any(isinstance(module, nn.Conv2d) for module in model.modules()) else 8
    plan = Plan((*input_shape(model), 1, 1)[:3], vectors)
    try:
        graph = trace(model)
    except Exception as error:
        raise UserError(f"{REFUSED}its forward can not be traced ({error})") from error
    output = _follow(graph, model, kept, plan)
    plan.lay_out()
    called = {f"{node.target}.weight" for node in graph.nodes if node.op == "call_module"}
    return Reading(plan, output, called)


def _follow(graph: fx.Graph, model: nn.Module, kept: Kept, plan: Plan) -> Signal:
    """Adds the steps of everything that a forward calls."""
    found: dict[fx.Node, Image] = {}
    for node in graph.nodes:
        sources = [found[source] for source in node.all_input_nodes]
        if node.op == "placeholder":
            found[node] = Image(plan.input, plan.input.shape)
        elif node.op == "call_module":
            module = model.get_submodule(node.target)
            examine(node, module)
            found[node] = _layer(plan, module, sources[0], kept.get(f"{node.target}.weight"))
        elif node.target in ADDITIONS and len(sources) == 2 and not node.kwargs:
            found[node] = plan.sum(*sources)
        elif node.op == "output" and len(sources) == 1:
            return _logits(plan, sources[0])
        else:
            _refuse_node(model, node)
    raise AssertionError("a graph ends with its output")


def _refuse_node(model: nn.Module, node: fx.Node) -> None:
    if node.op == "get_attr":
        owner = node.target.rpartition(".")[0]
        kind = type(model.get_submodule(owner)).__name__
        refuse(f"the forward of {owner or 'the network'}, a {kind}, is not supported")
    given = f" with {' and '.join(node.kwargs)}" if node.kwargs else ""
    refuse(f"{getattr(node.target, '__name__', node.target)}{given} is not supported")


def _logits(plan: Plan, image: Image) -> Signal:
    signal, shape = image
    if signal.shape != (shape[0], 1, 1) or not signal.trains:
        refuse("its output is not one number for each class")
    if signal.margin == (0, 0):
        return signal
    return plan.relayout(signal, np.arange(shape[0]), shape, signal.lanes)


def _layer(plan: Plan, module: nn.Module, image: Image, kept: Tensor | None) -> Image:
    signal, shape = image
    if isinstance(module, nn.Flatten):
        return Image(signal, (prod(shape), 1, 1))
    if isinstance(module, Select):
        return _select(plan, module, image)
    if isinstance(module, nn.Linear):
        return plan.linear(image, module, kept)
    if isinstance(module, nn.Conv2d):
        return plan.convolution(image, module, kept)
    if signal is plan.input:
        index = np.arange(prod(shape)) if plan.selected is None else plan.selected
        image = Image(plan.relayout(signal, index, shape, STEP), shape)
    if isinstance(module, nn.ReLU):
        return plan.relu(image)
    if isinstance(module, nn.BatchNorm2d):
        return plan.normalisation(image, module)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        out = plan.add(Average(image.signal, image.signal.shape[1:]))
    else:
        out = plan.add(Pool(image.signal, pair(module.kernel_size)))
    return Image(out, out.shape)


def _select(plan: Plan, module: Select, image: Image) -> Image:
    index, shape = module.index.numpy(), (len(module.index), 1, 1)
    if image.signal is plan.input:
        plan.select(index)
        return Image(image.signal, shape)
    lanes = lanes_for(plan.vectors, 1)
    return Image(plan.relayout(image.signal, index, shape, lanes), shape)
