"""The graph of a network: which weights there are, which of them lie on a path, and how often each
is used.

Prunable are the weights of every ``Conv2d`` and ``Linear``, and of the kinds of module named in
``model.also_prunable``. A tensor that several layers share is one weight tensor under the name that
it has first. Biases and norms are never pruned and never counted.

Paths belong to the *linearised* network (Tanaka et al. 2020, section 4): nothing but its weights
changes a value. A forward pass of the module's own code runs in a mode that replaces what it calls:
an element-wise activation or a norm is the identity, a difference is a sum, a constant is nothing
where it is added and its magnitude where it multiplies. What is not known here is refused by name,
so that no path is lost silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .errors import UserError, shown

KINDS = (nn.Conv2d, nn.Linear)  #: of module, whose weights are prunable by themselves
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
#: the modules with parameters that have paths
_FOLLOWED = (
    *_LAYERS,
    nn.modules.batchnorm._BatchNorm,
)
#: one input [1, ...], zeros, of a network that has read a batch
_SEEN: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


# --- the weights ----------------------------------------------------------------------------------


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
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
    if not isinstance(model, nn.Module):
        raise UserError(
            f"a network is an nn.Module, such as models.build gives, not {shown(model)}"
        )
    also = getattr(model, "also_prunable", ())
    if not isinstance(also, tuple | list) or not all(isinstance(kind, type) for kind in also):
        raise UserError(
            f"model.also_prunable is {shown(also)}; it is a tuple of kinds of module, (nn.Conv1d,)"
        )
    kinds, first, found = (*KINDS, *also), {}, {}
    for path, module in model.named_modules():  # one pass: this is asked in every round of a pruner
        if isinstance(module, KINDS) and "weight" not in module._parameters:
            raise UserError(
                f"the weight of {path or 'the network'}, {_a(module)}, is computed from other "
                "parameters; make it one again, by prune.remove, remove_weight_norm or "
                "parametrize.remove_parametrizations of torch.nn.utils"
            )
        inside = isinstance(module, kinds)
        for key, parameter in module._parameters.items():
            name = first.setdefault(id(parameter), f"{path}.{key}" if path else key)
            if inside and parameter is not None and _is_weight(key, parameter):
                found[name] = parameter
    if found:
        return found
    raise UserError(
        f"this {type(model).__name__} has no Conv2d and no Linear, so there is nothing to prune; "
        "model.also_prunable names other kinds of module"
    )


def outside(model: nn.Module) -> dict[str, int]:
    """Kind of module -> how many weights of such modules no mask covers; empty if every weight is
    prunable.
    """
    inside, found = {id(w) for w in prunable(model).values()}, {}
    for module, key, _, parameter in _parameters(model):
        if _is_weight(key, parameter) and id(parameter) not in inside:
            inside.add(id(parameter))
            found[type(module).__name__] = found.get(type(module).__name__, 0) + parameter.numel()
    return found


def shared(model: nn.Module) -> list[str]:
    """The prunable weights that several modules have."""
    names = [name for _, _, name, _ in _parameters(model)]
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
    if hasattr(model, "input_shape"):
        return tuple(model.input_shape)
    if model in _SEEN:
        return tuple(_SEEN[model].shape[1:])
    first = next((module for module in model.modules() if isinstance(module, _LAYERS)), None)
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
    return torch.zeros(
        (1, *input_shape(model)),
        dtype=_SEEN[model].dtype if tokens else parameter.dtype,
        device=parameter.device,
    )


@contextmanager
def modes(model: nn.Module, training: bool) -> Iterator[None]:
    """Inside, every module is in train or eval mode; afterwards each has its own mode again."""
    others = [module for module in model.modules() if module.training != training]
    for module in others:
        vars(module)["training"] = training
    try:
        yield
    finally:
        for module in others:
            vars(module)["training"] = not training


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


class _Cost(TorchDispatchMode):
    """Adds up, by weight, the FLOPs of every operation on it, as ``torch.utils.flop_counter``
    counts them.
    """

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        self.flops, self.weights = dict.fromkeys(weights, 0), weights

    def _name(self, t: Tensor) -> str | None:
        """The weight that ``t`` is a part or a transpose of: it begins within its memory."""
        starts = ((name, w.data_ptr(), w.nbytes) for name, w in self.weights.items())
        return next((name for name, at, n in starts if at <= t.data_ptr() < at + n), None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            names = (self._name(t) for t in args if isinstance(t, Tensor))
            if name := next(filter(None, names), None):
                self.flops[name] += count(*args, **(kwargs or {}), out_val=out)
        return out


def uses(model: nn.Module) -> dict[str, int]:
    """How often one input uses each prunable weight: 1 in a ``Linear``, the number of output pixels
    in a ``Conv2d``, times the number of tokens and of calls; 0 for a layer that is not called.

    ``2 * uses * weights`` is the forward cost of the layer in FLOPs (a multiply and an add).
    Together they are what ``torch.utils.flop_counter`` gives, but for products without a weight, as
    in attention.

    Raises:
        UserError: the network can not read an input of its shape.
    """
    weights = prunable(model)
    x = _example(model)
    with (
        torch.no_grad(),
        modes(model, training=False),
        eager(model),
        _in_parts(model),
        _Cost(weights) as cost,
    ):
        try:
            model(x)
        except Exception as error:  # PyTorch raises many kinds
            raise UserError(
                f"the network can not read an input of shape {list(x.shape[1:])} and type "
                f"{x.dtype}; set model.input_shape: {_first_line(error)}"
            ) from error
    return {name: flops // (2 * weights[name].numel()) for name, flops in cost.flops.items()}


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


def _a(module: nn.Module) -> str:
    kind = type(module).__name__
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


# --- what is done in place of a function ----------------------------------------------------------

#: method of ``_Linear`` -> the functions that it stands for, without underscores at their ends
_STANDS_FOR = {
    "ask": (
        "size dim numel ndimension nelement stride is_contiguous len is_floating_point is_complex "
        "element_size get_device storage_offset hash zeros_like ones_like empty_like full_like "
        "rand_like randn_like new_zeros new_ones new_empty new_full new_tensor requires_grad "
        "format repr"
    ),
    "nothing": "set_grad_enabled",  # a value flows where no gradient does
    "shape": (
        "get contiguous clone view view_as reshape reshape_as flatten unflatten squeeze unsqueeze "
        "permute transpose t adjoint swapaxes swapdims movedim moveaxis expand expand_as "
        "broadcast_to repeat repeat_interleave tile chunk split tensor_split split_with_sizes "
        "unsafe_chunk unsafe_split unbind narrow select index_select gather take take_along_dim "
        "getitem flip fliplr flipud roll rot90 pixel_shuffle pixel_unshuffle channel_shuffle "
        "native_channel_shuffle unfold fold diagonal tril triu"
    ),
    "join": "cat concat concatenate stack hstack vstack dstack",
    "put": "setitem",
    "reduce": (
        "sum mean cumsum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d interpolate upsample upsample_nearest upsample_bilinear"
    ),
    "pad": "pad",
    "relu": "relu",
    "activation": (
        "hardtanh relu6 leaky_relu elu celu selu gelu silu mish hardswish tanh hardshrink "
        "softshrink tanhshrink softsign threshold rrelu clamp clamp_min clamp_max clip abs "
        "absolute square sign sin asin sinh atan arctan erf log1p expm1 pow float_power sqrt "
        "rsqrt nan_to_num"
    ),
    "opening": (
        "sigmoid hardsigmoid logsigmoid log_sigmoid exp softplus cos cosh rdiv rtruediv rpow "
        "reciprocal"
    ),
    "softmax": "softmax log_softmax softmin",
    "identity": (
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout "
        "feature_alpha_dropout detach batch_norm instance_norm group_norm layer_norm rms_norm "
        "local_response_norm normalize to type_as float double half bfloat16 cpu cuda"
    ),
    "negative": "neg negative",
    "pool": "max_pool1d max_pool2d max_pool3d",
    "adaptive_pool": "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    "power_pool": "lp_pool1d lp_pool2d lp_pool3d",
    "largest": "amax max",
    "add": "add radd sub subtract rsub maximum minimum where",
    "mul": "mul multiply rmul div divide true_divide truediv",
    "layer": "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    "product": "matmul rmatmul mm bmm mv",
}
_RULES = {name: method for method, names in _STANDS_FOR.items() for name in names.split()}
_ANY_WEIGHT = {"shape", "layer", "product"}  # what may be done with a weight
_SAME_NUMBERS = {"ask", "nothing", "shape", "join", "put", "pad", "relu", "activation", "identity"}


class _Unknown(Exception):
    """What a value can not be followed through."""


def _name(func: Callable) -> str:
    """Of what a module calls; of a property, its own."""
    return getattr(func.__self__ if func.__name__ == "__get__" else func, "__name__", repr(func))


def _flows(t: object) -> bool:
    """Whether ``t`` is a value, something that depends on the input, or a weight; what else there
    is is constant.
    """
    return isinstance(t, Tensor) and t.requires_grad


def _flowing(args: Iterable) -> Iterator[Tensor]:
    for each in args:
        if isinstance(each, tuple | list):
            yield from filter(_flows, each)
        elif _flows(each):
            yield each


class _Linear(TorchFunctionMode):
    """The linearised network of SynFlow: inside, a function of PyTorch does what its rule says.
    ReLU and max-pooling, on numbers that are not negative, are themselves.

    A tensor is *opened* by what is not the value: a bias, a constant, sigmoid(0). A factor that is
    opened lets the other one through even where no value reaches it.
    """

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        self.names = {id(w): name for name, w in weights.items()}  # of weights and their views
        self.views: list[Tensor] = []  # kept, so that no other tensor gets the id of one

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        rule = _RULES.get(getattr(func, "__name__", "").strip("_"))
        if rule == "ask":
            return func(*args, **kwargs)
        args = (*args, *(kwargs.pop(key) for key in ("input", "other") if key in kwargs))
        flowing = list(_flowing((*args, *kwargs.values())))
        if not flowing and rule != "nothing":
            return func(*args, **kwargs)
        self.check(func, rule, flowing)
        made = getattr(self, rule)(func, *args, **kwargs)
        out = self.settle(rule, made)
        if any(getattr(t, "opened", False) for t in (*flowing, *_flowing([made]))):
            for t in _flowing([out]):
                t.opened = True
        return out

    def check(self, func, rule: str | None, flowing: list[Tensor]) -> None:
        """Refuses a function that is not known, and one that a weight must not be given to."""
        if rule is None:
            raise _Unknown(_name(func))
        for t in flowing:
            if rule not in _ANY_WEIGHT and id(t) in self.names:
                raise _Unknown(f"{_name(func)} of {self.names[id(t)]}")
            if isinstance(t.grad_fn, BackwardCFunction) and not isinstance(t.grad_fn, _ANY):
                raise _Unknown(f"a function of another gradient, {type(t.grad_fn).__name__}")

    def settle(self, rule: str, out: object) -> object:
        return out

    def constant(self, c: Tensor | float) -> Tensor | float:
        """What a constant factor is."""
        return c if isinstance(c, Tensor) and c.dtype == torch.bool else abs(c)

    def nothing(self, func, *args):
        pass

    def as_it_is(self, func, *args, **kwargs):
        return func(*args, **kwargs)

    relu = pool = adaptive_pool = power_pool = along = as_it_is

    def identity(self, func, x, *args, **kwargs):
        if kwargs.get("bias") is not None:
            x.opened = True
        return x

    negative = identity

    def activation(self, func, x, *args, **kwargs):
        if any(map(_flows, (*args, *kwargs.values()))):
            raise _Unknown(f"{_name(func)} of two values")
        return x

    def opening(self, func, x, *args, **kwargs):
        x = self.activation(func, x, *args, **kwargs).view_as(x)
        x.opened = True
        return x

    softmax = opening

    def shape(self, func, *args, **kwargs):
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.is_floating_point() and not out.requires_grad:
            raise _Unknown(_name(func))
        if id(args[0]) in self.names:
            for view in _flowing([out]):
                self.names[id(view)] = self.names[id(args[0])]
                self.views.append(view)
        return out

    def join(self, func, tensors, *args, **kwargs):
        parts = [t if _flows(t) else torch.zeros_like(t) for t in tensors]
        out = func(parts, *args, **kwargs)
        if not all(map(_flows, tensors)):
            out.opened = True
        return out

    def put(self, func, t, index, value):
        if not _flows(t) and t.any():
            raise _Unknown("setitem of a value in a constant")
        func(t, index, value if _flows(value) else 0)

    def reduce(self, func, *args, **kwargs):
        modes = [each for each in (*args, *kwargs.values()) if isinstance(each, str)]
        if "bicubic" in modes:  # some of its coefficients are negative
            raise _Unknown("bicubic interpolation")
        return func(*args, **kwargs)

    def pad(self, func, x, pad, mode="constant", value=None):
        return func(x, pad, mode)

    def largest(self, func, x, *args, **kwargs):
        if args and isinstance(args[0], Tensor):  # of two tensors, and not along dimensions
            return self.add(func, x, *args)
        return self.along(func, x, *args, **kwargs)

    def add(self, func, *terms, alpha=1):
        """a + |alpha| b: a difference is a sum, and a constant brings nothing."""
        # All but the condition of ``where``.
        a, b = (t for t in terms if not (isinstance(t, Tensor) and t.dtype == torch.bool))
        inside = func.__name__.endswith("_") and not func.__name__.startswith("__")
        if _flows(a) and _flows(b):
            return (a.add_ if inside else a.add)(b, alpha=abs(alpha))
        if inside and not _flows(a):
            raise _Unknown(f"{_name(func)} of a value in a constant")
        value, constant = (a, b) if _flows(a) else (b, a)
        shape = torch.broadcast_shapes(value.shape, getattr(constant, "shape", ()))
        value = value.expand(shape) if shape != value.shape else value.view_as(value)
        value.opened = True
        return value

    def mul(self, func, a, b, **kwargs):
        """|c| a of a constant c; of two values the sum, each where the other one lets it
        through.
        """
        if _flows(b) and "div" in func.__name__:
            raise _Unknown(f"{_name(func)} by a value")
        if _flows(a) and _flows(b):
            both = a * _through(b) + b * _through(a)
            return a.copy_(both) if func.__name__ == "mul_" else both
        return func(*(t if _flows(t) else self.constant(t) for t in (a, b)), **kwargs)

    def layer(self, func, x, weight, bias=None, *args, **kwargs):
        out = self.product(func, x, weight, None, *args, **kwargs)
        if bias is not None:
            out.opened = True
        return out

    def product(self, func, a, b, *args, **kwargs):
        if sum(_flows(t) and id(t) not in self.names for t in (a, b)) > 1:
            raise _Unknown(f"{_name(func)} of two values")
        factors = (
            t if _flows(t) else self.constant(t).to(other.dtype) for t, other in ((a, b), (b, a))
        )
        return func(*factors, *args, **kwargs)


def _through(t: Tensor) -> Tensor:
    """1 where a factor ``t`` lets the other one through, else 0."""
    return torch.ones_like(t) if getattr(t, "opened", False) else (t.detach() != 0).to(t.dtype)


class _Open(_Linear):
    """As ``_Linear``, with every ReLU open; and a pool takes the mean, so that each input of a
    window is a path and not just the largest.
    """

    relu = _Linear.activation

    def pool(
        self, func, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **how
    ):
        dims = _dims(func, how)
        stride = stride or kernel_size
        if set(_each(dilation, dims)) == {1}:
            return _of("avg_pool", dims)(x, kernel_size, stride, padding, ceil_mode)
        shape = func(x.detach(), kernel_size, stride, padding, dilation, ceil_mode).shape
        geometry = (_each(each, dims) for each in (kernel_size, stride, padding, dilation))
        around = [  # where the last window ends decides how much is padded there
            (p, (last - 1) * s + (k - 1) * d + 1 - n - p)
            for n, last, k, s, p, d in zip(x.shape[-dims:], shape[-dims:], *geometry)
        ]
        padded = [each for side in reversed(around) for each in side]
        x = functional.pad(x.reshape(-1, 1, *x.shape[-dims:]), padded)
        kernel = torch.ones((1, 1, *_each(kernel_size, dims)), dtype=x.dtype, device=x.device)
        mean = _of("conv", dims)(x, kernel / kernel.numel(), stride=stride, dilation=dilation)
        return mean.view(shape)

    def adaptive_pool(self, func, x, output_size, **how):
        return _of("adaptive_avg_pool", _dims(func, how))(x, output_size)

    def power_pool(self, func, x, norm_type, kernel_size, stride=None, ceil_mode=False):
        return _of("avg_pool", _dims(func, {}))(x, kernel_size, stride, 0, ceil_mode)

    def along(self, func, x, *args, **kwargs):
        mean = x.mean(*args, **kwargs)
        if func.__name__ == "max" and (args or kwargs):
            return torch.return_types.max((mean, torch.zeros_like(mean, dtype=torch.long)))
        return mean


def _dims(func: Callable, how: dict[str, object]) -> int:
    if how.get("return_indices"):
        raise _Unknown(f"{func.__name__} with return_indices")
    return int(func.__name__[-2])


def _each(size: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (size,) * dims if isinstance(size, int) else tuple(size) * (dims // len(size))


def _of(name: str, dims: int) -> Callable[..., Tensor]:
    return getattr(functional, f"{name}{dims}d")


class _Signed(_Open):
    """As ``_Open``, with the signs of differences and constants."""

    negative = _Linear.as_it_is

    def constant(self, c):
        return c

    def add(self, func, a, b, *args, **kwargs):
        return func(*(t if _flows(t) else t * 0 for t in (a, b)), *args, **kwargs)


class _Reach(_Open):
    """Whether there is a path, 1 or 0, and not how many: what is above 0 is 1, in both directions,
    so that no number grows or shrinks with the depth.

    An activation lets nothing back to where nothing comes in, as a ReLU does.
    """

    def relu(self, func, x, *args, **kwargs):
        return functional.relu(super().activation(func, x, *args, **kwargs))

    activation = relu

    def softmax(self, func, x, dim=-1, **kwargs):
        return self.opening(func, x.sum(dim, keepdim=True).expand_as(x))

    def settle(self, rule, out):
        return out if rule in _SAME_NUMBERS or not _flows(out) else _Any.apply(out)


class _Any(torch.autograd.Function):
    """1 where there is something, else 0."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    backward = forward


_ANY = _Any._backward_cls


# --- the linearised network -----------------------------------------------------------------------


@contextmanager
def linearised(
    model: nn.Module, weights: dict[str, Tensor], paths: bool = False, signed: bool = False
) -> Iterator[None]:
    """Inside, ``model`` is the linearised network of SynFlow (Tanaka et al. 2020, section 4) with
    these weights, none of them negative.

    There are no biases, and a norm is the identity (BatchNorm has scale 1, shift 0: its running
    statistics must not leak in). ReLU and max-pooling act on non-negative numbers, where ReLU is
    the identity (but lets no gradient through where nothing comes in); every other activation is
    the identity. A product of two values, as of a map and its gate, is their sum. Convolutions that
    are not prunable keep their magnitudes.

    Args:
        weights: one for each of ``prunable(model)``, of any dtype; the input must have the same.
        paths: every ReLU is the identity and pooling averages, so that every input of a window is a
            path to the output.
        signed: with ``paths``, and weights of either sign: differences and constant factors have
            their signs.

    Raises:
        UserError: a layer with parameters that is no convolution, Linear or BatchNorm; in the
            forward pass, anything else that is not known.
    """
    mode = _Signed if signed else _Open if paths else _Linear
    with _replaced(model, weights, mode(weights), torch.abs):
        yield


@contextmanager
def _replaced(
    model: nn.Module, weights: dict[str, Tensor], mode: _Linear, other: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Inside, ``model`` has these weights, ``other`` of those that have no entry, and its forward
    pass runs in ``mode``.
    """
    root = getattr(model, "_orig_mod", model)  # of a compiled network
    like, own, changed = next(iter(weights.values()), None), vars(root).get("forward"), []
    for module, key, name, parameter in _parameters(model):
        if not isinstance(module, _FOLLOWED) or key not in ("weight", "bias"):
            path = next(path for path, each in model.named_modules() if each is module)
            raise UserError(
                f"paths cannot be followed through {path or 'the network'}, {_a(module)} with "
                "parameters; known are convolutions, Linear and BatchNorm"
            )
        if key == "weight" and isinstance(module, _LAYERS):
            own_weight = weights.get(name)
            if own_weight is None:
                own_weight = other(parameter.detach()).to(like)
            changed.append((module, parameter, own_weight))

    forward = root.forward

    def follow(x: Tensor) -> Tensor:
        try:
            with torch.enable_grad(), mode:
                out = forward((x if x.requires_grad else x.detach().requires_grad_()).clone())
                mode.check(forward, "shape", list(_flowing([out])))
        except Exception as error:
            raise _refused(model, error) from error
        if not _flows(out):
            raise UserError(
                f"paths cannot be followed through this {type(model).__name__}: it answers with "
                f"{type(out).__name__}, not with one tensor that depends on its input"
            )
        return out

    for module, _, weight in changed:
        module._parameters["weight"] = weight
    vars(root)["forward"] = follow
    try:
        with modes(model, training=False), eager(model):
            yield
    finally:
        for module, parameter, _ in changed:
            module._parameters["weight"] = parameter
        del vars(root)["forward"]
        if own is not None:
            vars(root)["forward"] = own


def _refused(model: nn.Module, error: Exception) -> UserError:
    """The sentence for what went wrong in a forward pass; it names the innermost module."""
    paths = {id(module): path for path, module in model.named_modules()}
    where, trace = model, error.__traceback__
    while trace is not None:
        within = trace.tb_frame.f_locals.get("self")
        where = within if id(within) in paths else where
        trace = trace.tb_next
    what = f"calls {error}" if isinstance(error, _Unknown) else f"says: {_first_line(error)}"
    path = paths.get(id(where)) or "the network"
    return UserError(f"paths cannot be followed through {path}, {_a(where)}, which {what}")


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
    with torch.enable_grad(), _replaced(model, weights, _Reach(weights), torch.ones_like):
        out = model(x)
        total = (out if output is None else out[0, output]).sum()
    found = torch.autograd.grad(
        total, list(weights.values()), allow_unused=True, materialize_grads=True
    )
    return {name: each > 0 for name, each in zip(mask, found)}
