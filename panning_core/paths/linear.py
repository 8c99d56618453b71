"""The linearised network, and the paths through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .. import graph
from ..errors import UserError, first_line
from ..graph import eager, input_shape, modes
from . import activations
from .rules import Linear, Open, Reach, Signed, Unknown, flowing, flows

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@contextmanager
def linearised(
    model: nn.Module, weights: dict[str, Tensor], paths: bool = False, signed: bool = False
) -> Iterator[None]:
    """Inside, ``model`` is the linearised network of SynFlow (Tanaka et al. 2020, section 4) with
    these weights, none of them negative.

    There are no biases, and a norm is the identity (it has scale 1, shift 0: its running statistics
    must not leak in). ReLU and max-pooling act on non-negative numbers, where ReLU is
    the identity (but lets no gradient through where nothing comes in); every other activation is
    the identity. A product of two values, as of a map and its gate, is their sum. Other parameters,
    such as weights that are not prunable or the scale of a layer, have their magnitudes.

    Args:
        weights: one for each of ``prunable(model)``, of any dtype; the input must have the same.
        paths: every ReLU is the identity and pooling averages, so that every input of a window is a
            path to the output.
        signed: with ``paths``, and weights of either sign: differences and constant factors have
            their signs.

    Raises:
        UserError: in the forward pass, what is not known, such as attention.
    """
    mode = Signed if signed else Open if paths else Linear
    with _replaced(model, weights, mode(weights), Tensor.clone if signed else torch.abs):
        yield


@contextmanager
def _replaced(
    model: nn.Module, weights: dict[str, Tensor], mode: Linear, other: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Inside, ``model`` has these weights and as constants its norms 1 and ``other`` of all other
    parameters; its forward pass runs in ``mode``.
    """
    root = getattr(model, "_orig_mod", model)  # of a compiled network
    own, changed = vars(root).get("forward"), []
    for module, key, name, parameter in graph.each_parameter(model):
        replacement = weights.get(name)
        if replacement is None:  # a constant
            norm = isinstance(module, _NORMS)
            like = next(iter(weights.values()), parameter.detach())
            replacement = (torch.ones_like if norm else other)(parameter.detach()).to(like)
        changed.append((module, key, parameter, replacement))

    forward = root.forward

    def follow(x: Tensor) -> Tensor:
        try:
            with torch.enable_grad(), mode:
                out = forward((x if x.requires_grad else x.detach().requires_grad_()).clone())
                mode.check(forward, "shape", list(flowing([out])))
        except Exception as error:
            raise _refused(model, error) from error
        if not flows(out):
            raise UserError(
                f"paths cannot be followed through this {type(model).__name__}: it answers with "
                f"{type(out).__name__}, not with one tensor that depends on its input"
            )
        return out

    for module, key, _, replacement in changed:
        module._parameters[key] = replacement  # type: ignore[assignment]
    vars(root)["forward"] = follow
    try:
        with modes(model, training=False), eager(model), activations.kept():
            yield
    finally:
        for module, key, parameter, _ in changed:
            module._parameters[key] = parameter
        del vars(root)["forward"]
        if own is not None:
            vars(root)["forward"] = own


def _refused(model: nn.Module, error: Exception) -> UserError:
    """The sentence for what went wrong in a forward pass; it names the innermost module."""
    paths = {id(module): path for path, module in model.named_modules()}
    where, trace = model, error.__traceback__
    while trace is not None:
        within = trace.tb_frame.f_locals.get("self")
        if isinstance(within, nn.Module) and id(within) in paths:
            where = within
        trace = trace.tb_next
    what = f"calls {error}" if isinstance(error, Unknown) else f"says: {first_line(error)}"
    path = paths.get(id(where)) or "the network"
    return UserError(
        f"paths cannot be followed through {path}, {graph.called(where)}, which {what}"
    )


def on_paths(
    model: nn.Module, mask: dict[str, Tensor], output: int | None = None
) -> dict[str, Tensor]:
    """True for a kept weight that lies on a path of kept weights from an input to an output, and
    for a removed one that would join two ends of such paths; only what mask and modules say counts,
    no weight's value.

    Args:
        output: the only one of the outputs [1, outputs] that counts.

    Raises:
        UserError: something that paths can not be followed through, by name.
    """
    weights = {name: m.view(torch.int8).double().requires_grad_() for name, m in mask.items()}
    x = torch.ones(
        (1, *input_shape(model)), dtype=torch.double, device=next(iter(mask.values())).device
    )
    # Numbers of which none is 0, nor their differences: of a layer's scale only that it is there
    # counts.
    drawn = torch.Generator().manual_seed(0)

    def some(parameter: Tensor) -> Tensor:
        return 0.5 + torch.rand(parameter.shape, generator=drawn).to(parameter)

    with torch.enable_grad(), _replaced(model, weights, Reach(weights), some):
        out = model(x)
        total = (out if output is None else out[0, output]).sum()
    found = torch.autograd.grad(
        total, list(weights.values()), allow_unused=True, materialize_grads=True
    )
    return {name: each > 0 for name, each in zip(mask, found)}
