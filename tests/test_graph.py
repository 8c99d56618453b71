"""The graph of a network against slow versions: every edge of it one by one, PyTorch's own counter, and autograd."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from panning_core import compaction, gates, graph, masks, metrics, models, pathways, pruning, training
from panning_core.errors import UserError


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def random_mask(model, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = models.prunable(model)
    return {name: torch.rand(w.shape, generator=generator) < density for name, w in weights.items()}


def shaped(model, *shape, also=()):
    model.input_shape, model.also_prunable = shape, also
    return model


def batch_of(model, n=6, classes=3):
    generator = torch.Generator().manual_seed(3)
    return torch.randn((n, *model.input_shape), generator=generator), torch.arange(n) % classes


def counter(model):
    with FlopCounterMode(display=False) as count, torch.backends.mkldnn.flags(enabled=False):
        model.eval()(torch.zeros((1, *model.input_shape)))
    return count.get_total_flops()


def flops(model):
    return masks.flops(model, masks.ones(model))


# --- random networks, and all their edges ---------------------------------------------------------

#: element-wise, or a norm: each number goes where it was
SAME = {
    "ReLU": nn.ReLU, "ReLU6": nn.ReLU6, "Tanh": nn.Tanh, "Sigmoid": nn.Sigmoid, "SiLU": nn.SiLU,
    "Hardtanh": nn.Hardtanh, "Hardsigmoid": nn.Hardsigmoid, "GELU": nn.GELU, "Softplus": nn.Softplus,
    "LeakyReLU": nn.LeakyReLU, "Hardswish": nn.Hardswish, "Softsign": nn.Softsign, "ELU": nn.ELU,
    "Dropout": nn.Dropout, "functional": None, "InstanceNorm": None, "GroupNorm": None, "LayerNorm": None,
    "BatchNorm": None, "BatchNorm without affine": None,
}  # fmt: skip


def same(kind, shape):
    """The module of a step that moves nothing."""
    channels, dims = shape[0], len(shape) - 1
    if kind == "InstanceNorm":
        return (nn.InstanceNorm1d, nn.InstanceNorm2d)[dims - 1](channels)
    if kind == "GroupNorm":
        return nn.GroupNorm(1, channels, affine=False)
    if kind == "LayerNorm":
        return nn.LayerNorm(shape, elementwise_affine=False)
    if kind.startswith("BatchNorm"):
        return (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](channels, affine=kind == "BatchNorm")
    return Clip() if kind == "functional" else SAME[kind]()


class Clip(nn.Module):
    """Saturates by functions and not by modules, and shifts."""

    def forward(self, x):
        return torch.clamp(-torch.tanh(2 * x - 1) / 3 + 0.5, -1, 1)


class Random(nn.Module):
    """Steps [(kind, module, other)] on maps; ``trace`` does the same to the numbers of units."""

    def __init__(self, shape, steps):
        super().__init__()
        self.layers, self.kinds = nn.ModuleList(m for _, m, _ in steps), [k for k, _, _ in steps]
        self.others, self.input_shape = [o for _, _, o in steps], shape
        self.also_prunable = (nn.Conv1d,)

    def forward(self, x):
        seen = [x]
        for kind, layer, other in zip(self.kinds, self.layers, self.others):
            if kind == "flatten":
                x = x.flatten(1)
            elif kind == "cat":
                x = torch.cat([x, seen[other]], 1)
            elif kind in ("add", "sub"):
                x = x + seen[other] if kind == "add" else x - seen[other]
            else:
                x = layer(x)
            seen.append(x)
        return x


class Edges:
    """Between units, each with the weight that it uses, or None."""

    def __init__(self):
        self.edges, self.units = [], 0

    def new(self, shape):
        self.units += math.prod(shape)
        return np.arange(self.units - math.prod(shape), self.units).reshape(shape)

    def join(self, sources, target, weight=None):
        self.edges += [(int(s), int(target), weight) for s in np.asarray(sources).ravel()]

    def layer(self, name, module, x):
        """A Linear on rows, or a convolution of one or two dimensions on maps with one place more."""
        weight = module.weight
        if isinstance(module, nn.Linear):
            out = self.new((len(weight),))
            for o, i in itertools.product(range(len(weight)), range(len(x))):
                self.join(x[i], out[o], (name, (o, i)))
            return out
        places = self.places(x.shape[1:], module.kernel_size, module.stride, module.padding, module.dilation, False)
        out, per = self.new((len(weight), *map(len, places))), len(x) // module.groups
        for o in range(len(weight)):
            first = o // (len(weight) // module.groups) * per
            for at in itertools.product(*(range(len(side)) for side in places)):
                windows = [list(enumerate(side[i])) for side, i in zip(places, at)]
                for i, tap in itertools.product(range(per), itertools.product(*windows)):
                    if all(0 <= p < n for (_, p), n in zip(tap, x.shape[1:])):
                        source = x[(first + i, *(p for _, p in tap))]
                        self.join(source, out[(o, *at)], (name, (o, i, *(k for k, _ in tap))))
        return out

    @staticmethod
    def places(sizes, kernel, stride, padding, dilation, ceil):
        """For each dimension the windows, each the positions of its taps, outside ones too."""
        found = []
        for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation):
            count, start = 0, -p
            while start + (k - 1) * d < n + p or (ceil and count and start < n and start - s + (k - 1) * d < n + p - 1):
                found[len(found):] = [] if count else [[]]
                found[-1].append([start + i * d for i in range(k)])
                count, start = count + 1, start + s
        return found

    def pool(self, module, x):
        dims = x.ndim - 1
        each = lambda size: (size,) * dims if isinstance(size, int) else tuple(size)  # noqa: E731
        if hasattr(module, "output_size"):
            places = [[range(i * n // o, -(-(i + 1) * n // o)) for i in range(o)] for n, o in zip(x.shape[1:], each(module.output_size))]
        else:
            dilation = each(getattr(module, "dilation", 1))
            places = self.places(x.shape[1:], each(module.kernel_size), each(module.stride), each(module.padding), dilation, module.ceil_mode)
        out = self.new((len(x), *map(len, places)))
        for c, at in itertools.product(range(len(x)), itertools.product(*(range(len(side)) for side in places))):
            for window in itertools.product(*(side[i] for side, i in zip(places, at))):
                if all(0 <= p < n for p, n in zip(window, x.shape[1:])):
                    self.join(x[(c, *window)], out[(c, *at)])
        return out

    def trace(self, model):
        names = {id(w): name for name, w in models.prunable(model).items()}
        x = self.new(model.input_shape)
        start, seen = x.ravel(), [x]
        for kind, layer, other in zip(model.kinds, model.layers, model.others):
            if kind == "flatten":
                x = x.ravel()
            elif kind == "cat":
                x = np.concatenate([x, seen[other]])
            elif kind in ("add", "sub"):
                out = self.new(x.shape)
                for a, b, c in zip(x.ravel(), seen[other].ravel(), out.ravel()):
                    self.join([a, b], c)
                x = out
            elif kind == "layer":
                x = self.layer(names[id(layer.weight)], layer, x)
            elif kind == "pool":
                x = self.pool(layer, x)
            seen.append(x)
        return start, x.ravel()

    def effective(self, mask, start, end):
        kept = [(a, b, w) for a, b, w in self.edges if w is None or mask[w[0]][w[1]]]
        ahead, back = {int(u) for u in start}, {int(u) for u in end}
        for _ in range(len(kept)):  # edges are in the order of the network, nearly always: one round
            size = len(ahead) + len(back)
            ahead |= {b for a, b, _ in kept if a in ahead}
            back |= {a for a, b, _ in kept if b in back}
            if len(ahead) + len(back) == size:
                break
        live = {name: torch.zeros_like(m) for name, m in mask.items()}
        for a, b, w in kept:
            if w is not None and a in ahead and b in back:
                live[w[0]][w[1]] = True
        return live


@st.composite
def networks(draw):
    """Up to eight steps on small maps, and a Linear at the end."""
    dims = draw(st.integers(1, 2))
    shape = (draw(st.integers(1, 3)), *(draw(st.integers(3, 6)) for _ in range(dims)))
    x, steps, seen = torch.zeros((1, *shape)), [], [torch.zeros((1, *shape))]
    conv, top, adaptive_max, adaptive, mean = (
        (nn.Conv1d, nn.MaxPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d, nn.AvgPool1d),
        (nn.Conv2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.AvgPool2d),
    )[dims - 1]
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["layer", "same", "pool", "add", "sub", "cat", "tied", "same"]))
        least, channels, other, layer = min(x.shape[2:]), x.shape[1], None, nn.Identity()
        if kind == "same":
            layer = same(draw(st.sampled_from(sorted(SAME))), tuple(x.shape[1:]))
        elif kind == "layer":
            groups = channels if draw(st.booleans()) and draw(st.booleans()) else 1
            kernel = draw(st.integers(1, min(3, least)))
            layer = conv(channels, groups * draw(st.integers(1, 2)), kernel, draw(st.integers(1, 2)), draw(st.integers(0, kernel - 1)),
                         groups=groups, bias=draw(st.booleans()))
        elif kind == "pool" and draw(st.booleans()):
            layer = draw(st.sampled_from([adaptive_max, adaptive]))(draw(st.integers(1, 3)))
        elif kind == "pool":
            kernel = draw(st.integers(1, min(3, least)))
            how = {"padding": draw(st.integers(0, kernel // 2)), "ceil_mode": draw(st.booleans())}
            dilated = draw(st.booleans()) and 2 * (kernel - 1) < least
            layer = top(kernel, draw(st.integers(1, 2)), dilation=1 + dilated, **how) if dilated or draw(st.booleans()) else mean(kernel, 2, **how)
        elif kind in ("add", "sub", "cat"):
            fits = [i for i, t in enumerate(seen[:-1]) if (t.shape[2:] if kind == "cat" else t.shape) == (x.shape[2:] if kind == "cat" else x.shape)]
            if not fits or channels > 6:
                continue
            other = draw(st.sampled_from(fits))
        elif kind == "tied":
            fits = [m for k, m, _ in steps if k == "layer" and m.in_channels == channels and m.kernel_size[0] <= least]
            if not fits:
                continue
            earlier = draw(st.sampled_from(fits))
            layer = conv(channels, earlier.out_channels, earlier.kernel_size, padding=earlier.kernel_size[0] - 1, groups=earlier.groups)
            layer.weight, kind = earlier.weight, "layer"
        module = Random(shape, [(kind, layer, other)]).eval()
        x = torch.cat([x, seen[other]], 1) if kind == "cat" else x if other is not None else module(x)
        steps.append((kind, layer, other))
        seen.append(x)
    steps += [("flatten", nn.Identity(), None), ("layer", nn.Linear(x[0].numel(), 2), None)]
    return Random(shape, steps)


@given(networks(), st.floats(0.1, 1), st.integers(0, 10_000))
@settings(deadline=None, max_examples=120)
def test_effective_is_what_every_edge_says(model, density, seed):
    mask, edges = random_mask(model, density, seed), Edges()
    start, end = edges.trace(model)
    live = masks.effective(model, mask)
    assert equal(live, edges.effective(mask, start, end))
    assert equal(masks.effective(model, live), live)


@given(networks())
@settings(deadline=None, max_examples=60)
def test_flops_are_those_of_the_counter_to_the_digit(model):
    assert flops(model) == counter(model)


@given(networks())
@settings(deadline=None, max_examples=40)
def test_synflow_scores_exactly_what_is_effective_where_nothing_pools_the_largest(model):
    """Its pools are means here, and its ReLU gives what is not negative: each weight on a path has a share of R, and no other."""
    model.layers = nn.ModuleList(nn.Identity() if isinstance(m, (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)) else m
                                 for m in model.layers)
    try:
        model.eval()(torch.zeros((1, *model.input_shape)))
    except RuntimeError:  # the pool that is gone made another shape
        return
    mask = random_mask(model, 0.5)
    scores = metrics.synflow(model, mask, (torch.zeros((1, *model.input_shape)), None))
    assert equal({name: s > 0 for name, s in scores.items()}, masks.effective(model, mask))
