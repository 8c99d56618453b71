"""What a function of PyTorch does inside the linearised network: one rule for each kind of
function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.nn import functional
from torch.overrides import TorchFunctionMode

#: method of ``Linear`` -> the functions that it stands for, without underscores at their ends
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
        "feature_alpha_dropout detach batch_norm to type_as float double half bfloat16 cpu cuda"
    ),
    "norm": "instance_norm group_norm layer_norm",
    "scale": "rms_norm normalize local_response_norm",
    "prelu": "prelu",
    "negative": "neg negative",
    "pool": "max_pool1d max_pool2d max_pool3d",
    "adaptive_pool": "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    "power_pool": "lp_pool1d lp_pool2d lp_pool3d",
    "largest": "amax max",
    "add": "add radd sub subtract rsub maximum minimum",
    "where": "where",
    "mul": "mul multiply rmul div divide true_divide truediv",
    "layer": "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    "product": "matmul rmatmul mm bmm mv",
}
_RULES = {name: method for method, names in _STANDS_FOR.items() for name in names.split()}
_ANY_WEIGHT = {"shape", "layer", "product"}  # what may be done with a weight
_SAME_NUMBERS = {"ask", "nothing", "shape", "join", "put", "pad", "relu", "activation", "identity"}


class Unknown(Exception):
    """What a value can not be followed through."""


def _name(func: Callable) -> str:
    """Of what a module calls; of a property, its own."""
    named = getattr(func, "__self__", func) if func.__name__ == "__get__" else func
    return getattr(named, "__name__", repr(func))


def flows(t: object) -> bool:
    """Whether ``t`` is a value, something that depends on the input, or a weight; what else there
    is is constant.
    """
    return isinstance(t, Tensor) and t.requires_grad


def flowing(args: Iterable) -> Iterator[Tensor]:
    for each in args:
        if isinstance(each, tuple | list):
            yield from filter(flows, each)
        elif flows(each):
            yield each


class Linear(TorchFunctionMode):
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
        found = list(flowing((*args, *kwargs.values())))
        if not found and rule != "nothing":
            return func(*args, **kwargs)
        self.check(func, rule, found)
        made = getattr(self, rule)(func, *args, **kwargs)
        out = self.settle(rule, made)
        if any(getattr(t, "opened", False) for t in (*found, *flowing([made]))):
            for t in flowing([out]):
                t.opened = True
        return out

    def check(self, func, rule: str | None, found: list[Tensor]) -> None:
        """Refuses a function that is not known, and one that a weight must not be given to."""
        if rule is None:
            raise Unknown(_name(func))
        for t in found:
            if rule not in _ANY_WEIGHT and id(t) in self.names:
                raise Unknown(f"{_name(func)} of {self.names[id(t)]}")
            if isinstance(t.grad_fn, BackwardCFunction) and not isinstance(t.grad_fn, _ANY):
                raise Unknown(f"a function of another gradient, {type(t.grad_fn).__name__}")

    def settle(self, rule: str, out: object) -> object:
        return out

    def constant(self, c: Tensor | float) -> Tensor | float:
        """What a constant factor is."""
        if isinstance(c, Tensor):
            return c if c.dtype == torch.bool else c.abs()
        return abs(c)

    def nothing(self, func, *args):
        pass

    def as_it_is(self, func, *args, **kwargs):
        return func(*args, **kwargs)

    relu = pool = adaptive_pool = power_pool = along = as_it_is

    def identity(self, func, x, *args, **kwargs):
        if kwargs.get("bias") is not None:
            x.opened = True
        return x

    negative = norm = scale = identity

    def activation(self, func, x, *args, **kwargs):
        if any(map(flows, (*args, *kwargs.values()))):
            raise Unknown(f"{_name(func)} of two values")
        return x

    def prelu(self, func, x, slope):
        return self.activation(func, x)

    def opening(self, func, x, *args, **kwargs):
        x = self.activation(func, x, *args, **kwargs).view_as(x)
        x.opened = True
        return x

    softmax = opening

    def shape(self, func, *args, **kwargs):
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.is_floating_point() and not out.requires_grad:
            raise Unknown(_name(func))
        if id(args[0]) in self.names:
            for view in flowing([out]):
                self.names[id(view)] = self.names[id(args[0])]
                self.views.append(view)
        return out

    def join(self, func, tensors, *args, **kwargs):
        parts = [t if flows(t) else torch.zeros_like(t) for t in tensors]
        out = func(parts, *args, **kwargs)
        if not all(map(flows, tensors)):
            out.opened = True
        return out

    def put(self, func, t, index, value):
        if not flows(t) and t.any():
            raise Unknown("setitem of a value in a constant")
        func(t, index, value if flows(value) else 0)

    def reduce(self, func, *args, **kwargs):
        modes = [each for each in (*args, *kwargs.values()) if isinstance(each, str)]
        if "bicubic" in modes:  # some of its coefficients are negative
            raise Unknown("bicubic interpolation")
        return func(*args, **kwargs)

    def pad(self, func, x, pad, mode="constant", value=None):
        padded = func(x, pad, mode)
        if value:
            padded.opened = True
        return padded

    def largest(self, func, x, *args, **kwargs):
        if args and isinstance(args[0], Tensor):  # of two tensors, and not along dimensions
            return self.add(func, x, *args)
        return self.along(func, x, *args, **kwargs)

    def where(self, func, *terms):
        """Values where they are taken; a constant brings nothing."""
        condition = next(t for t in terms if isinstance(t, Tensor) and t.dtype == torch.bool)
        taken = [t if flows(t) else 0 for t in terms if t is not condition]
        made = torch.where(condition, *taken)
        if not all(map(flows, taken)):
            made.opened = True
        return made

    def add(self, func, a, b, alpha=1):
        """a + |alpha| b: a difference is a sum, and a constant brings nothing."""
        inside = func.__name__.endswith("_") and not func.__name__.startswith("__")
        if flows(a) and flows(b):
            return (a.add_ if inside else a.add)(b, alpha=abs(alpha))
        if inside and not flows(a):
            raise Unknown(f"{_name(func)} of a value in a constant")
        value, constant = (a, b) if flows(a) else (b, a)
        shape = torch.broadcast_shapes(value.shape, getattr(constant, "shape", ()))
        value = value.expand(shape) if shape != value.shape else value.view_as(value)
        value.opened = True
        return value

    def mul(self, func, a, b, **kwargs):
        """|c| a of a constant c; of two values the sum, each where the other one lets it
        through.
        """
        if flows(b) and "div" in func.__name__:
            raise Unknown(f"{_name(func)} by a value")
        if flows(a) and flows(b):
            both = a * _through(b) + b * _through(a)
            return a.copy_(both) if func.__name__ == "mul_" else both
        return func(*(t if flows(t) else self.constant(t) for t in (a, b)), **kwargs)

    def layer(self, func, x, weight, bias=None, *args, **kwargs):
        out = self.product(func, x, weight, None, *args, **kwargs)
        if bias is not None:
            out.opened = True
        return out

    def product(self, func, a, b, *args, **kwargs):
        if sum(flows(t) and id(t) not in self.names for t in (a, b)) > 1:
            raise Unknown(f"{_name(func)} of two values")
        factors = (
            t if flows(t) else self.constant(t).to(other.dtype) for t, other in ((a, b), (b, a))
        )
        return func(*factors, *args, **kwargs)


def _through(t: Tensor) -> Tensor:
    """1 where a factor ``t`` lets the other one through, else 0."""
    return torch.ones_like(t) if getattr(t, "opened", False) else (t.detach() != 0).to(t.dtype)


class Open(Linear):
    """As ``Linear``, with every ReLU open; and a pool takes the mean, so that each input of a
    window is a path and not just the largest.
    """

    relu = Linear.activation

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
        raise Unknown(f"{func.__name__} with return_indices")
    return int(func.__name__[-2])


def _each(size: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (size,) * dims if isinstance(size, int) else tuple(size) * (dims // len(size))


def _of(name: str, dims: int) -> Callable[..., Tensor]:
    return getattr(functional, f"{name}{dims}d")


class Signed(Open):
    """As ``Open``, with the signs of differences and constants."""

    negative = Linear.as_it_is

    def constant(self, c):
        return c

    def add(self, func, a, b, *args, **kwargs):
        return func(*(t if flows(t) else t * 0 for t in (a, b)), *args, **kwargs)


class Reach(Open):
    """Whether there is a path, 1 or 0, and not how many: what is above 0 is 1, in both directions,
    so that no number grows or shrinks with the depth.

    An activation lets nothing back to where nothing comes in, as a ReLU does. What compares
    numbers with one another, a norm or softmax, joins them.
    """

    def relu(self, func, x, *args, **kwargs):
        return functional.relu(super().activation(func, x, *args, **kwargs))

    activation = relu

    def softmax(self, func, x, dim=-1, **kwargs):
        return self.opening(func, x.sum(dim, keepdim=True).expand_as(x))

    def norm(self, func, x, *args, **kwargs):
        """All of a group, as their mean is taken off each."""
        if func.__name__ == "instance_norm" and not kwargs.get("use_input_stats", True):
            return self.identity(func, x, *args, **kwargs)
        return self.identity(func, _group(func, x, *args, **kwargs).clone(), *args, **kwargs)

    def scale(self, func, x, *args, **kwargs):
        """The group is a factor of each of its numbers."""
        size = _group(func, x, *args, **kwargs).clone()
        size.opened = True
        return self.mul(torch.mul, x, size)

    def settle(self, rule, out):
        return out if rule in _SAME_NUMBERS or not flows(out) else _Any.apply(out)


def _group(func: Callable, x: Tensor, *args, **kwargs) -> Tensor:
    """At each number the sum of all that a norm takes it together with."""
    name = func.__name__
    size: Any = next(iter((*args, *kwargs.values())), None)
    if name == "group_norm":
        parts = x.reshape(len(x), kwargs.get("num_groups", size), -1)
        return parts.sum(-1, keepdim=True).expand_as(parts).reshape(x.shape)
    if name == "local_response_norm":
        size = kwargs.get("size", size)
        padded = functional.pad(x.transpose(1, -1), (size // 2, (size - 1) // 2))
        return padded.unfold(-1, size, 1).sum(-1).transpose(1, -1)
    if name == "normalize":
        dims = kwargs.get("dim", args[1] if len(args) > 1 else 1)
    elif name == "instance_norm":
        dims = tuple(range(2, x.dim()))
    else:
        dims = tuple(range(-len(kwargs.get("normalized_shape", size)), 0))
    return x.sum(dims, keepdim=True).expand_as(x)


class _Any(torch.autograd.Function):
    """1 where there is something, else 0."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    backward = forward


_ANY = _Any._backward_cls
