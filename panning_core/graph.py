"""The weights of a network: which there are, how often each is used, and what the network reads.

Prunable are the weights of every ``Conv2d`` and ``Linear``, and of the kinds of module named in
``model.also_prunable``. A tensor that several layers share is one weight tensor under the name that
it has first. Biases and norms are never pruned and never counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from fractions import Fraction
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .errors import UserError, first_line, shown

KINDS = (nn.Conv2d, nn.Linear)  #: of module, whose weights are prunable by themselves
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
#: one input [1, ...], zeros, of a network that has read a batch
_SEEN: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


# --- the weights ----------------------------------------------------------------------------------


def each_parameter(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    """Every use of every parameter: the module, the parameter's name there, its first name in the
    network, the parameter.
    """
    first: dict[int, str] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                name = first.setdefault(id(parameter), f"{path}.{key}" if path else key)
                yield module, key, name, parameter


def _is_weight(key: str, parameter: nn.Parameter) -> bool:
    return "weight" in key and parameter.dim() > 1


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> weight of every ``Conv2d`` and ``Linear``, in the order of the modules; each tensor
    once.

    ``model.also_prunable``, a tuple of kinds of module such as ``(nn.Conv1d, nn.LSTM)``, adds the
    weights of these: their parameters of two dimensions or more with "weight" in their name.

    Raises:
        UserError: there is none, ``model`` is no network, or a weight is computed from other
            parameters.
    """
    kinds = _kinds(model)
    first: dict[int, str] = {}
    found: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():  # one pass: this is asked in every round of a pruner
        if isinstance(module, KINDS) and "weight" not in module._parameters:
            raise UserError(
                f"the weight of {path or 'the network'}, {called(module)}, is computed from other "
                "parameters; make it one again, by prune.remove, remove_weight_norm or "
                "parametrize.remove_parametrizations of torch.nn.utils"
            )
        inside = isinstance(module, kinds)
        for key, parameter in module._parameters.items():
            name = first.setdefault(id(parameter), f"{path}.{key}" if path else key)
            if parameter is None:
                continue
            if is_lazy(parameter):
                raise UserError(
                    f"{name} has no shape yet; give the network a batch once, as in model(x)"
                )
            if inside and _is_weight(key, parameter):
                found[name] = parameter
    if found:
        return found
    raise UserError(
        f"this {type(model).__name__} has no Conv2d and no Linear, so there is nothing to prune; "
        "model.also_prunable names other kinds of module"
    )


def _kinds(model: nn.Module) -> tuple[type, ...]:
    """The kinds of module whose weights are prunable in this network."""
    if not isinstance(model, nn.Module):
        raise UserError(
            f"a network is an nn.Module, such as models.build gives, not {shown(model)}"
        )
    also = getattr(model, "also_prunable", ())
    if not isinstance(also, tuple | list) or not all(isinstance(kind, type) for kind in also):
        raise UserError(
            f"model.also_prunable is {shown(also)}; it is a tuple of kinds of module, (nn.Conv1d,)"
        )
    return (*KINDS, *also)


def outside(model: nn.Module) -> dict[str, int]:
    """Kind of module -> how many weights of such modules no mask covers, whatever they are called;
    empty if every weight is prunable.
    """
    inside = {id(w) for w in prunable(model).values()}
    found: dict[str, int] = {}
    for module, key, _, parameter in each_parameter(model):
        matrix = sum(size > 1 for size in parameter.shape) > 1 and "bias" not in key
        if (matrix or _is_weight(key, parameter)) and id(parameter) not in inside:
            inside.add(id(parameter))
            found[type(module).__name__] = found.get(type(module).__name__, 0) + parameter.numel()
    return found


def shared(model: nn.Module) -> list[str]:
    """The prunable weights that several modules have."""
    names = [name for _, _, name, _ in each_parameter(model)]
    return [name for name in prunable(model) if names.count(name) > 1]


# --- the input ------------------------------------------------------------------------------------


def remember(model: nn.Module, x: Tensor) -> None:
    """``x`` [n, ...] is a batch that ``model`` has read: its shape and type are those of an input
    of the network, if it does not say another.
    """
    _SEEN[model] = torch.zeros_like(x[:1])


def inherit(model: nn.Module, original: nn.Module) -> None:
    """``model``, made of ``original``, reads what that has read."""
    if original in _SEEN:
        _SEEN[model] = _SEEN[original]


def input_shape(model: nn.Module) -> tuple[int, ...]:
    """The shape of one input of ``model``, without the batch: what ``model.input_shape`` says, else
    that of the last batch that was checked, else what the first layer takes, a ``Linear``.

    Raises:
        UserError: none of these is there.
    """
    if (shape := getattr(model, "input_shape", None)) is not None:
        return tuple(shape)
    if model in _SEEN:
        return tuple(_SEEN[model].shape[1:])
    first = next((module for module in model.modules() if isinstance(module, LAYERS)), None)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    raise UserError(
        "the network does not say the shape of its input; "
        "set model.input_shape = (channels, height, width)"
    )


def _example(model: nn.Module) -> Tensor:
    """One input [1, ...], zeros."""
    parameter = next(model.parameters())
    tokens = model in _SEEN and not _SEEN[model].is_floating_point()
    dtype = _SEEN[model].dtype if tokens else parameter.dtype
    return torch.zeros((1, *input_shape(model)), dtype=dtype, device=parameter.device)


@contextmanager
def modes(model: nn.Module, training: bool) -> Iterator[None]:
    """Inside, every module is in train or eval mode; afterwards each has its own mode again."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)  # a network's own train() may leave some as they are
    try:
        yield
    finally:
        model.train(before[0][1])
        for module, mode in before:
            vars(module)["training"] = mode


def eager(model: nn.Module):
    """A context inside which a compiled network runs as it was written: a mode sees all of it, and
    it can be differentiated twice.
    """
    compiled = any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


# --- what the weights cost ------------------------------------------------------------------------


class _Uses(TorchDispatchMode):
    """Counts the uses of weights: in products with them, or with what is made of them alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.weights, others = prunable(model), (*model.parameters(), *model.buffers())
        self.times = dict.fromkeys(self.weights, Fraction())
        #: what no input has a part in, and of which weights it is made; no other takes its memory
        self.own = [((n,), w) for n, w in self.weights.items()] + [((), t) for t in others]

    _should_skip_dynamo = classmethod(lambda cls: False)  # or it imports the compiler, for a second

    def _made_of(self, tensor: Tensor) -> tuple[str, ...] | None:
        at = tensor.data_ptr()  # a part or a transpose begins in the whole
        return next((n for n, own in self.own if 0 <= at - own.data_ptr() < own.nbytes), None)

    def _add(self, names: set[str], flops: int) -> None:
        size = sum(self.weights[name].numel() for name in names)
        for name in names:
            self.times[name] += Fraction(flops, 2 * size)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = kwargs or {}
        out = func(*args, **given)
        sources = [self._made_of(t) for t in tree_leaves((args, given)) if isinstance(t, Tensor)]
        names = {name for source in sources for name in source or ()}
        if count := flop_registry.get(func._overloadpacket):
            self._add(names, count(*args, **given, out_val=out))
        if None not in sources and isinstance(out, Tensor):
            # A product of weights, or of a learned query with one, is none of them.
            self.own.append((() if count else tuple(names), out))
        return out


def uses(model: nn.Module) -> dict[str, float]:
    """How often one input uses each prunable weight: 1 in a ``Linear``, the number of output pixels
    in a ``Conv2d``, times the number of tokens and of calls; 0 for a layer that is not called, a
    half for one of which half is.

    ``2 * uses * weights`` is the forward cost of the layer in FLOPs (a multiply and an add).
    Together they are what ``torch.utils.flop_counter`` gives, but for products without a weight, as
    in attention.

    Raises:
        UserError: the network can not read an input of its shape.
    """
    x = _example(model)
    with torch.no_grad(), modes(model, training=False), eager(model), _in_parts(model):
        try:
            with _Uses(model) as counted:
                model(x)
        except Exception as error:  # PyTorch raises many kinds
            raise UserError(
                f"the network can not read an input of shape {list(x.shape[1:])} and type "
                f"{x.dtype}; set model.input_shape: {first_line(error)}"
            ) from error
    return {k: int(n) if n.denominator == 1 else float(n) for k, n in counted.times.items()}


@contextmanager
def _in_parts(model: nn.Module) -> Iterator[None]:
    """Inside, attention and an LSTM are the products that they are made of, and not one
    operation.
    """
    with ExitStack() as after:
        after.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            after.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # the flag's own, about Intel GPUs
            after.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


def called(module: nn.Module) -> str:
    """What a message calls a module."""
    kind = type(module).__name__
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
