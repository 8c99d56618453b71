"""The graph of a network against slow versions: every edge of it one by one, PyTorch's own counter,
and autograd.
"""

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
from torch.nn.utils.prune import l1_unstructured
from torch.utils.flop_counter import FlopCounterMode

from panning_core import compaction, data, graph, masks, metrics, models, pruning, training
from panning_core.analysis import pathways
from panning_core.errors import UserError
from panning_core.inspection.batches import check_batch
from panning_core.methods import gumbel_softmax
from panning_core.paths import visible


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
    with FlopCounterMode(display=False) as count:
        model.eval()(torch.zeros((1, *model.input_shape)))
    return count.get_total_flops()


def flops(model):
    return masks.flops(model, masks.ones(model))


# --- random networks, and all their edges ---------------------------------------------------------

#: element-wise, or a norm: each number goes where it was
SAME = {
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
    "SiLU": nn.SiLU,
    "Hardtanh": nn.Hardtanh,
    "Hardsigmoid": nn.Hardsigmoid,
    "Softplus": nn.Softplus,
    "LeakyReLU": nn.LeakyReLU,
    "Hardswish": nn.Hardswish,
    "Dropout": nn.Dropout,
    "functional": None,
    "PReLU": nn.PReLU,
    "BatchNorm": None,
    "BatchNorm without affine": None,
}
#: what joins all of a group
NORMS = ("InstanceNorm", "GroupNorm", "LayerNorm")


def same(kind, shape):
    """The module of a step that moves nothing."""
    channels, dims = shape[0], len(shape) - 1
    if kind.startswith("BatchNorm"):
        return (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](channels, affine=kind == "BatchNorm")
    return Clip() if kind == "functional" else SAME[kind]()


def norm(kind, shape, affine, groups):
    channels, dims = shape[0], len(shape) - 1
    if kind == "InstanceNorm":
        return (nn.InstanceNorm1d, nn.InstanceNorm2d)[dims - 1](channels, affine=affine)
    if kind == "GroupNorm":
        return nn.GroupNorm(groups, channels, affine=affine)
    return nn.LayerNorm(shape[-dims:] if groups > 1 else shape, elementwise_affine=affine)


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
        """A Linear on rows, or a convolution of one or two dimensions on maps with one place
        more.
        """
        weight = module.weight
        if isinstance(module, nn.Linear):
            out = self.new((len(weight),))
            for o, i in itertools.product(range(len(weight)), range(len(x))):
                self.join(x[i], out[o], (name, (o, i)))
            return out
        places = self.places(
            x.shape[1:], module.kernel_size, module.stride, module.padding, module.dilation, False
        )
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
            while start + (k - 1) * d < n + p or (
                ceil and count and start < n and start - s + (k - 1) * d < n + p - 1
            ):
                found[len(found) :] = [] if count else [[]]
                found[-1].append([start + i * d for i in range(k)])
                count, start = count + 1, start + s
        return found

    def pool(self, module, x):
        dims = x.ndim - 1
        each = lambda size: (size,) * dims if isinstance(size, int) else tuple(size)  # noqa: E731
        if hasattr(module, "output_size"):
            places = [
                [range(i * n // o, -(-(i + 1) * n // o)) for i in range(o)]
                for n, o in zip(x.shape[1:], each(module.output_size))
            ]
        else:
            dilation = each(getattr(module, "dilation", 1))
            places = self.places(
                x.shape[1:],
                each(module.kernel_size),
                each(module.stride),
                each(module.padding),
                dilation,
                module.ceil_mode,
            )
        out = self.new((len(x), *map(len, places)))
        for c, at in itertools.product(
            range(len(x)), itertools.product(*(range(len(side)) for side in places))
        ):
            for window in itertools.product(*(side[i] for side, i in zip(places, at))):
                if all(0 <= p < n for p, n in zip(window, x.shape[1:])):
                    self.join(x[(c, *window)], out[(c, *at)])
        return out

    def norm(self, module, x):
        """Each number of a group reaches all of it, as their mean is taken off."""
        shape = getattr(module, "normalized_shape", None)
        parts = len(x) if shape is None or len(shape) < x.ndim else 1
        parts = getattr(module, "num_groups", parts)
        out = self.new(x.shape)
        for ins, outs in zip(x.reshape(parts, -1), out.reshape(parts, -1)):
            for each in outs:
                self.join(ins, each)
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
            elif kind in ("pool", "norm"):
                x = getattr(self, kind)(layer, x)
            seen.append(x)
        return start, x.ravel()

    def effective(self, mask, start, end):
        kept = [(a, b, w) for a, b, w in self.edges if w is None or mask[w[0]][w[1]]]
        ahead, back = {int(u) for u in start}, {int(u) for u in end}
        for _ in range(
            len(kept)
        ):  # edges are in the order of the network, nearly always: one round
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
def networks(draw, largest=True):
    """Up to seven steps on small maps, and a Linear at the end; without ``largest`` a pool takes
    the mean, and there are no norms that join.
    """
    dims = draw(st.integers(1, 2))
    shape = (draw(st.integers(1, 3)), *(draw(st.integers(3, 6)) for _ in range(dims)))
    x, steps, seen = torch.zeros((1, *shape)), [], [torch.zeros((1, *shape))]
    conv, top, adaptive_max, adaptive, mean = (
        (nn.Conv1d, nn.MaxPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d, nn.AvgPool1d),
        (nn.Conv2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.AvgPool2d),
    )[dims - 1]
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(
            st.sampled_from(["layer", "same", "pool", "add", "sub", "cat", "tied", "norm", "same"])
        )
        least, channels, other, layer = min(x.shape[2:]), x.shape[1], None, nn.Identity()
        if kind == "same":
            layer = same(draw(st.sampled_from(sorted(SAME))), tuple(x.shape[1:]))
        elif kind == "norm":
            if x[0, 0].numel() == 1 or not largest:  # which they refuse, and SynFlow passes over
                continue
            groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
            what = draw(st.sampled_from(NORMS))
            layer = norm(what, tuple(x.shape[1:]), draw(st.booleans()), groups)
        elif kind == "layer":
            groups = channels if draw(st.booleans()) and draw(st.booleans()) else 1
            kernel = draw(st.integers(1, min(3, least)))
            layer = conv(
                channels,
                groups * draw(st.integers(1, 2)),
                kernel,
                draw(st.integers(1, 2)),
                draw(st.integers(0, kernel - 1)),
                groups=groups,
                bias=draw(st.booleans()),
            )
        elif kind == "pool" and draw(st.booleans()):
            layer = draw(st.sampled_from([adaptive, adaptive_max][: 1 + largest]))(
                draw(st.integers(1, 3))
            )
        elif kind == "pool":
            kernel = draw(st.integers(1, min(3, least)))
            how = {"padding": draw(st.integers(0, kernel // 2)), "ceil_mode": draw(st.booleans())}
            if largest and draw(st.booleans()):
                layer = top(
                    kernel,
                    draw(st.integers(1, 2)),
                    dilation=1 + (draw(st.booleans()) and 2 * (kernel - 1) < least),
                    **how,
                )
            else:
                layer = mean(kernel, 2, **how)
        elif kind in ("add", "sub", "cat"):
            fits = [
                i
                for i, t in enumerate(seen[:-1])
                if (t.shape[2:] if kind == "cat" else t.shape)
                == (x.shape[2:] if kind == "cat" else x.shape)
            ]
            if not fits or channels > 6:
                continue
            other = draw(st.sampled_from(fits))
        elif kind == "tied":
            fits = [
                m
                for k, m, _ in steps
                if k == "layer" and m.in_channels == channels and m.kernel_size[0] <= least
            ]
            if not fits:
                continue
            earlier = draw(st.sampled_from(fits))
            layer = conv(
                channels,
                earlier.out_channels,
                earlier.kernel_size,
                padding=earlier.kernel_size[0] - 1,
                groups=earlier.groups,
            )
            layer.weight, kind = earlier.weight, "layer"
        module = Random(shape, [(kind, layer, other)]).eval()
        x = (
            torch.cat([x, seen[other]], 1)
            if kind == "cat"
            else x
            if other is not None
            else module(x)
        )
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
@settings(deadline=None, max_examples=30)
def test_flops_are_those_of_the_counter_to_the_digit(model):
    assert flops(model) == counter(model)


@given(networks(largest=False), st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_where_no_pool_takes_the_largest_synflow_scores_exactly_what_is_effective(model, seed):
    mask = random_mask(model, 0.5, seed)
    scores = metrics.synflow(model, mask, (torch.zeros((1, *model.input_shape)), None))
    assert equal({name: s > 0 for name, s in scores.items()}, masks.effective(model, mask))


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.LogSigmoid, nn.Softmin],
)
def test_a_saturating_activation_stops_no_path_and_no_synflow(activation):
    """The cases' own: 3,440 of 3,440; and the scores are those of the same network with ReLU."""

    def build(kind):
        torch.manual_seed(0)
        return shaped(
            nn.Sequential(
                nn.Flatten(), nn.Linear(64, 40), kind(), nn.Linear(40, 20), kind(), nn.Linear(20, 4)
            ),
            1,
            8,
            8,
        )

    model = build(activation)
    ones = masks.ones(model)
    assert masks.count(masks.effective(model, ones)) == masks.size(ones) == 3440
    scores, plain = (
        metrics.synflow(each, ones, (torch.zeros(1, 1, 8, 8), None))
        for each in (model, build(nn.ReLU))
    )
    assert equal(scores, plain)


def test_softmax_within_a_network_joins_what_it_compares():
    """Each output depends on every entry: the one kept weight behind it reads the other unit
    through the sum.
    """
    model = nn.Sequential(nn.Linear(2, 2), nn.Softmax(1), nn.Linear(2, 1))
    mask = {
        "0.weight": torch.tensor([[True, False], [False, False]]),
        "2.weight": torch.tensor([[False, True]]),
    }
    assert equal(masks.effective(model, mask), mask)
    relu = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    assert not masks.count(masks.effective(relu, mask))


def test_what_is_deep_and_wide_neither_overflows_nor_underflows():
    deep = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(300)))
    mask = random_mask(deep, 0.3)
    assert masks.count(masks.effective(deep, mask)) == masks.count(mask)
    pooled = shaped(
        nn.Sequential(
            nn.Conv2d(1, 1, 1),
            *(nn.AvgPool2d(9, 1, 4) for _ in range(200)),
            nn.Flatten(),
            nn.Linear(4, 1),
        ),
        1,
        2,
        2,
    )
    assert (
        masks.density(masks.effective(pooled, masks.ones(pooled))) == 1
    )  # 81 to the power of -200 is 0


@pytest.mark.parametrize(
    "scale, says",
    [(1e3, "R is inf in float64"), (1e-9, "R is 0 in float64.*though paths are left")],
)
def test_synflow_beyond_float64_says_so(scale, says):
    deep = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(120)))
    with torch.no_grad():
        for w in deep.parameters():
            w.mul_(scale)
    batch = torch.zeros(1, 8), torch.zeros(1, dtype=torch.long)
    with pytest.raises(UserError, match=says):
        metrics.synflow(deep, masks.ones(deep), batch)
    dead = {name: torch.zeros_like(m) for name, m in masks.ones(deep).items()}
    assert not any(
        s.any() for s in metrics.synflow(deep, dead, batch).values()
    )  # that is no underflow


class Gated(nn.Module):
    """A map, and a gate of each channel from its mean (Hu et al. 2018)."""

    def __init__(self, gate=torch.sigmoid, bias=True):
        super().__init__()
        self.conv, self.squeeze, self.excite = (
            nn.Conv2d(1, 2, 1, bias=bias),
            nn.Linear(2, 1, bias=bias),
            nn.Linear(1, 2, bias=bias),
        )
        self.head, self.gate = nn.Linear(2, 1), gate
        shaped(self, 1, 3, 3)

    def forward(self, x):
        x = self.conv(x)
        gate = self.gate(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


def gated_mask(conv, squeeze, excite, head):
    shapes = {"conv": (2, 1, 1, 1), "squeeze": (1, 2), "excite": (2, 1), "head": (1, 2)}
    bits = dict(zip(shapes, (conv, squeeze, excite, head)))
    return {
        f"{name}.weight": torch.tensor(bits[name]).bool().view(shape)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    "gate, bias, kept, live",
    [
        # all is kept, all is on a path
        (torch.sigmoid, True, ([1, 1], [1, 1], [1, 1], [1, 1]), ([1, 1], [1, 1], [1, 1], [1, 1])),
        # a gate that nothing reaches is half open, and the map flows through it
        (torch.sigmoid, False, ([1, 1], [0, 0], [1, 1], [1, 1]), ([1, 1], [0, 0], [0, 0], [1, 1])),
        (F.hardsigmoid, False, ([1, 1], [1, 1], [0, 1], [1, 1]), ([1, 1], [1, 1], [0, 1], [1, 1])),
        # without a constant it is shut: tanh(0) = 0
        (torch.tanh, False, ([1, 1], [0, 0], [1, 1], [1, 1]), ([0, 0], [0, 0], [0, 0], [0, 0])),
        (torch.tanh, False, ([1, 1], [1, 0], [1, 0], [1, 1]), ([1, 0], [1, 0], [1, 0], [1, 0])),
        # a map that is 0 lets no gate through
        (torch.sigmoid, False, ([1, 0], [1, 1], [0, 1], [1, 1]), ([1, 0], [0, 0], [0, 0], [1, 0])),
    ],
)
def test_a_product_is_open_where_its_other_factor_is(gate, bias, kept, live):
    assert equal(masks.effective(Gated(gate, bias), gated_mask(*kept)), gated_mask(*live))


def test_synflow_of_a_gated_network_reaches_the_gate():
    model = Gated()
    scores = metrics.synflow(model, masks.ones(model), (torch.zeros(1, 1, 3, 3), None))
    assert all((s > 0).all() and s.isfinite().all() for s in scores.values())


class Odd(nn.Module):
    """A Linear, and behind it whatever is to be followed."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 4), nn.Linear(4, 2), how

    def forward(self, x):
        return self.b(self.how(self.a(x)))


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g * 0


def frozen(x):
    with torch.no_grad():
        return x * 2


def in_place(x):
    x.sub_(torch.ones(4)).clamp_(-1, 1).mul_(torch.sigmoid(x))
    return x


def by_index(x):
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, 1:]
    out[:, 0] = x[:, 0]
    return out


MAY_DO = {
    "sub": lambda x: x - 2 * x.flip(1),
    "rsub": lambda x: 1 - x,
    "mean": lambda x: x / 2 - x.mean(1, keepdim=True),
    "where": lambda x: torch.where(torch.tensor([True, False, True, False]), x, -x),
    "maximum": lambda x: torch.maximum(x, -x),
    "amax": lambda x: x.amax(1, keepdim=True) + 0 * x.new_zeros(4) + x,
    "max": lambda x: x.max(1, keepdim=True)[0] + x,
    "cat": lambda x: torch.cat([x[:, :2], x[:, 2:]], 1),
    "stack": lambda x: torch.stack(x.unbind(1), 1),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "normalize": lambda x: F.normalize(x),
    "dropout": lambda x: F.dropout(x, 0.5),
    "rdiv": lambda x: 2 / x,
    "pow": lambda x: x**3,
    "exp": lambda x: x.exp().log1p(),
    "detach": lambda x: x.detach(),
    "no_grad": frozen,
    "in place": in_place,
    "setitem": by_index,
    "matmul": lambda x: x @ torch.eye(4),
    "dtypes": lambda x: x.double().float(),
    "pad": lambda x: F.pad(x, (1, 0), value=3.0)[:, 1:],
    "boolean": lambda x: x * torch.tensor([True] * 4),
    "keywords": lambda x: F.relu(input=torch.add(input=x, other=x, alpha=-0.5)),
    "square": lambda x: x * x,
    "interpolate": lambda x: F.interpolate(x[:, None], scale_factor=2)[:, 0, ::2],
}


@pytest.mark.parametrize("how", MAY_DO.values(), ids=MAY_DO)
def test_what_forward_may_do_with_a_value(how):
    model = Odd(how)
    assert masks.density(masks.effective(model, masks.ones(model))) == 1


class Functional(nn.Module):
    """Two branches of which one is taken off the other, and a pool without a stride."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        difference = torch.add(self.one(x), self.two(x), alpha=-1)
        return self.out(F.max_pool2d(difference, 2).flatten(1))


def test_a_term_times_minus_one_and_a_pool_without_a_stride_stop_no_path():
    model = Functional()
    model.input_shape = (1, 4, 4)
    assert masks.density(masks.effective(model, masks.ones(model))) == 1


@pytest.mark.parametrize(
    "how, live",
    [
        (lambda x: x * torch.tensor([1.0, 0, -1, 0]), 24 - 12),
        (lambda x: x[:, :1].expand(-1, 4), 4 + 8),
        (
            lambda x: torch.cat([x[:, :1], torch.ones(len(x), 3)], 1),
            4 + 2,
        ),  # constants are no values
        (lambda x: F.pad(x[:, :2], (1, 1), value=1.0), 8 + 4),
        (lambda x: F.pad(x[:, :2], (0, 2), value=1.0) * x, 24),  # ones let the others through
        (lambda x: torch.zeros_like(x) + x[:, :1], 4 + 8),
        (lambda x: torch.where(torch.arange(4) < 1, x, 0.0), 24 - 18),
        (lambda x: torch.zeros(4).where(torch.arange(4) < 1, x), 24 - 6),
    ],
)
def test_what_a_constant_takes_away(how, live):
    model = Odd(how)
    assert masks.count(masks.effective(model, masks.ones(model))) == live


@pytest.mark.parametrize(
    "how, says",
    [
        (lambda x: x.sort(1)[0], "calls sort"),
        (lambda x: x if x.sum() > 0 else -x, "calls gt"),
        (lambda x: x / x.std(), "calls std"),
        (lambda x: F.scaled_dot_product_attention(x, x, x), "calls scaled_dot_product_attention"),
        (lambda x: x @ x.t() @ x, "calls matmul of two values"),
        (lambda x: x.data, "calls data"),
        (lambda x: x.view(3, 5), "says: .*invalid for input"),
        (lambda x: x / (1 + x), "calls div by a value"),
        (lambda x: torch.zeros(1, 4).add_(x), "calls add_ of a value in a constant"),
    ],
)
def test_what_is_not_known_is_refused_by_name(how, says, unchanged):
    model = Odd(how)
    with (
        unchanged(model),
        pytest.raises(
            UserError, match=f"^paths cannot be followed through the network, an Odd, which {says}"
        ),
    ):
        masks.effective(model, masks.ones(model))


@pytest.mark.parametrize("last", [False, True])
def test_a_function_with_a_gradient_of_its_own_is_refused(last):
    model = nn.Sequential(Odd(Own.apply), nn.Identity())
    if last:
        model[0].b = model[0].a
        model = Odd(lambda x: x)
        model.b.forward = lambda x: Own.apply(F.linear(x, model.b.weight))
    with pytest.raises(UserError, match="which calls a function of another gradient, OwnBackward"):
        masks.effective(model, masks.ones(model))


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(
            x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias
        )


class SamePadding(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


def test_a_convolution_with_a_forward_of_its_own():
    def build(kind):
        return shaped(
            nn.Sequential(nn.Conv2d(1, 2, 1), kind(2, 2, 3), nn.Flatten(), nn.Linear(18, 2)),
            1,
            3,
            3,
        )

    with pytest.raises(
        UserError, match="through 1, a Standardised, which calls (mean|sub) of 1.weight"
    ):
        masks.effective(build(Standardised), masks.ones(build(Standardised)))
    plain = shaped(
        nn.Sequential(
            nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(), nn.Linear(18, 2)
        ),
        1,
        3,
        3,
    )
    mask = random_mask(plain, 0.3)
    assert equal(masks.effective(build(SamePadding), mask), masks.effective(plain, mask)) and flops(
        build(SamePadding)
    ) == flops(plain)


def test_weights_that_other_layers_read():
    """A tied auto-encoder: the decoder is the encoder's weight, transposed."""

    class Auto(nn.Module):
        def __init__(self):
            super().__init__()
            self.code = nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return F.linear(torch.relu(self.code(x)), self.code.weight.t())

    mask = {"code.weight": torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()}
    assert equal(masks.effective(Auto(), mask), mask) and flops(Auto()) == 2 * 2 * 6


def test_contributions_keep_the_sign_of_a_difference():
    model = Odd(lambda x: x[:, [1, 0, 2, 3]] - x).double()
    first, last = (w.detach() for w in models.prunable(model).values())
    assert torch.allclose(
        pathways.contributions(model, masks.ones(model)), last @ (first[[1, 0, 2, 3]] - first)
    )


# --- FLOPs ----------------------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x.flatten(1, -2)))).mean(1)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(self.a(self.a(x))))


class Half(nn.Linear):
    """Its weights are used in half precision."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class Attention(nn.Module):
    """A class token, LayerNorm, attention, and a Linear."""

    def __init__(self, dims=8):
        super().__init__()
        self.token, self.norm = nn.Parameter(torch.zeros(1, 1, dims)), nn.LayerNorm(dims)
        self.attend, self.out = nn.MultiheadAttention(dims, 2, batch_first=True), nn.Linear(dims, 3)
        shaped(self, 4, dims)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        y = self.norm(x)
        return self.out((x + self.attend(y, y, y, need_weights=False)[0])[:, 0])


@pytest.mark.parametrize(
    "model, expected",
    [
        (shaped(Tokens(), 1, 5, 8), 2 * 5 * (8 * 16 + 16 * 4)),
        (shaped(Tokens(), 3, 5, 8), 2 * 15 * (8 * 16 + 16 * 4)),
        (shaped(Twice(), 4), 2 * (3 * 16 + 8)),
        (
            shaped(nn.Sequential(Standardised(2, 3, 3), nn.Flatten(), Half(27, 4)), 2, 5, 5),
            2 * (9 * 3 * 2 * 9 + 27 * 4),
        ),
        (
            shaped(
                nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(72, 2)), 4, 5, 5
            ),
            2 * (9 * 8 * 2 * 9 + 144),
        ),
        (
            shaped(
                nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.Conv2d(3, 1, 1)),
                2,
                4,
                4,
                also=(nn.ConvTranspose2d,),
            ),
            2 * (16 * 54 + 81 * 3),
        ),
        (
            shaped(
                nn.Sequential(nn.Conv3d(1, 4, 3), nn.Flatten(), nn.Linear(108, 2)),
                1,
                5,
                5,
                5,
                also=(nn.Conv3d,),
            ),
            2 * (27 * 108 + 216),
        ),
    ],
)
def test_flops_by_hand_and_by_the_counter(model, expected):
    assert flops(model) == counter(model) == expected


class Placed(nn.Module):
    """Adds weights to activations of their size, and masks the weights of the layer after it."""

    def __init__(self):
        super().__init__()
        self.place, self.inner, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("kept", torch.ones(6, 6))
        shaped(self, 6, 6)

    def forward(self, x):
        x = F.linear(x + self.place.weight, self.inner.weight * self.kept, self.inner.bias)
        return self.out(x).mean(1)


def test_an_activation_of_the_size_of_a_weight_is_no_copy_of_it():
    assert models.uses(Placed()) == {"place.weight": 0, "inner.weight": 6, "out.weight": 6}


class Composed(nn.Module):
    """Two layers as one product, half of a layer, and a layer plus a small product (LoRA)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.some = nn.Linear(6, 2), nn.Linear(6, 4), nn.Linear(6, 8)
        self.whole, self.out = nn.Linear(4, 4), nn.Linear(4, 3)
        self.down, self.up = nn.Parameter(torch.ones(1, 4)), nn.Parameter(torch.zeros(4, 1))
        shaped(self, 5, 6)

    def forward(self, x):
        x = F.linear(x, torch.cat([self.a.weight, self.b.weight]))
        x = F.linear(x, self.some.weight[::4]) + F.linear(x, self.some.weight[:2])
        x = torch.cat([x, x], -1)
        return self.out(F.linear(x, self.whole.weight + self.up @ self.down)).mean(1)


def test_weights_that_are_joined_cut_or_changed_before_use_are_counted():
    wanted = {"a": 5, "b": 5, "some": 2.5, "whole": 5, "out": 5}
    assert models.uses(Composed()) == {f"{name}.weight": n for name, n in wanted.items()}
    assert flops(Composed()) == counter(Composed()) - 2 * 4 * 4  # the product of LoRA has no input


class Asked(nn.Module):
    """What a weight says of two learned queries is multiplied with every input."""

    def __init__(self):
        super().__init__()
        self.query, self.read = nn.Parameter(torch.ones(2, 6)), nn.Linear(6, 6, bias=False)
        self.out = nn.Linear(2, 3)
        shaped(self, 5, 6)

    def forward(self, x):
        return self.out(x @ self.read(self.query).T).mean(1)


def test_a_product_with_a_learned_query_is_no_copy_of_the_weight():
    assert models.uses(Asked()) == {"read.weight": 2, "out.weight": 5}


def test_flops_of_attention_are_those_of_its_weights():
    model = Attention()
    model.also_prunable = (nn.MultiheadAttention,)
    assert flops(model) == 2 * (
        5 * (3 * 64 + 64) + 24
    )  # and no others: the counter also has the products of tokens, 2 * (2 * 25 * 8)
    assert flops(model) + 2 * 2 * 25 * 8 == counter_of_parts(model)


def counter_of_parts(model):
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return counter(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Text(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.cells, self.out = (
            nn.Embedding(20, 6),
            kind(6, 5, batch_first=True),
            nn.Linear(5, 3),
        )

    def forward(self, x):
        return self.out(self.cells(self.embed(x))[0].mean(1))


TOKENS = torch.arange(42).view(6, 7) % 20, torch.arange(6) % 3


@pytest.mark.parametrize("kind, gates_of", [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_flops_of_a_recurrent_network_are_one_use_a_token(kind, gates_of):
    model = Text(kind)
    model.also_prunable = (kind, nn.Embedding)
    metrics.snip(model, masks.ones(model), TOKENS)
    check_batch(model, *TOKENS)
    weights = gates_of * 5 * (6 + 5)
    assert models.uses(model) == {
        "embed.weight": 0,
        "cells.weight_ih_l0": 7,
        "cells.weight_hh_l0": 7,
        "out.weight": 1,
    }
    assert flops(model) == 2 * (7 * weights + 15) and torch.backends.mkldnn.enabled


# --- which weights --------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec, self.out = (
            nn.Linear(4, 4, bias=False),
            nn.Linear(4, 4, bias=False),
            nn.Linear(4, 3),
        )
        self.dec.weight = self.enc.weight
        shaped(self, 4)

    def forward(self, x):
        return self.out(torch.relu(self.dec(torch.relu(self.enc(x)))))


def test_a_shared_tensor_is_one_weight():
    model = Tied()
    x, y = batch_of(model)
    assert (
        list(models.prunable(model)) == ["enc.weight", "out.weight"]
        and masks.size(masks.ones(model)) == 28
    )
    loss = F.cross_entropy(model(x), y)
    expected = model.enc.weight * torch.autograd.grad(loss, model.enc.weight)[0]
    assert torch.allclose(
        metrics.snip(model, masks.ones(model), (x, y))["enc.weight"], expected.abs()
    )
    for name in metrics.METRICS:
        mask, _ = pruning.prune(model, name, 0.5, (x, y))
        assert masks.count(mask) == 14
    assert flops(model) == counter(model) == 2 * (32 + 12)
    with pytest.raises(UserError, match="enc.weight has two"):
        gumbel_softmax.Gates(model)


def test_what_two_embeddings_share_is_outside_once():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Embedding(5, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    assert graph.outside(model) == {"Embedding": 15}


def test_a_tensor_shared_with_an_embedding_has_the_name_that_pytorch_gives_it():
    model = Text(nn.GRU)
    model.out = nn.Linear(6, 20)
    model.cells = nn.GRU(6, 6, batch_first=True)
    model.out.weight = model.embed.weight
    assert list(models.prunable(model)) == ["embed.weight"] and graph.shared(model) == [
        "embed.weight"
    ]
    assert metrics.snip(model, masks.ones(model), TOKENS)["embed.weight"].any()


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.spare, self.out = nn.Linear(4, 4), nn.Linear(4, 7), nn.Linear(4, 3)
        shaped(self, 4)

    def forward(self, x):
        return self.out(torch.relu(self.a(x)))


@pytest.mark.parametrize("name", sorted(metrics.METRICS.keys() - {"random", "magnitude"}))
def test_a_layer_that_is_not_called_scores_nothing(name):
    model = Unused()
    scores = metrics.METRICS[name](model, masks.ones(model), batch_of(model))
    assert (
        not scores["spare.weight"].any() and scores["a.weight"].any() and scores["out.weight"].any()
    )
    assert (
        not masks.effective(model, masks.ones(model))["spare.weight"].any()
        and models.uses(model)["spare.weight"] == 0
    )


REQUESTED = {
    "Conv1d": (
        nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.Tanh(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 3)
        ),
        (2, 8),
        nn.Conv1d,
        24,
    ),
    "Conv3d": (
        nn.Sequential(
            nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)
        ),
        (1, 5, 5, 5),
        nn.Conv3d,
        108,
    ),
    "ConvTranspose2d": (
        nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)),
        (1, 4, 4),
        nn.ConvTranspose2d,
        36,
    ),
    "MultiheadAttention": (Attention(), (4, 8), nn.MultiheadAttention, 192),
}


@pytest.mark.parametrize("kind", REQUESTED)
def test_other_modules_are_prunable_on_request_and_never_dense_in_silence(kind):
    model, shape, module, weights = REQUESTED[kind]
    model = shaped(copy.deepcopy(model), *shape)
    batch, before = batch_of(model), masks.size(masks.ones(model))
    assert graph.outside(model) == {kind: weights}
    with pytest.warns(
        UserWarning,
        match=f"is of {before:,} weights; outside and never pruned are {weights} of {kind}",
    ):
        pruning.prune(model, "snip", 0.5, batch)
    model.also_prunable = (module,)
    assert graph.outside(model) == {} and masks.size(masks.ones(model)) == before + weights
    for name in ("snip", "grasp", "magnitude", "random", "prospr"):
        mask, _ = pruning.prune(model, name, 0.25, batch)
        assert masks.count(mask) == round(0.25 * (before + weights))
    if kind != "MultiheadAttention":
        assert 0 < masks.density(masks.effective(model, masks.ones(model))) <= 1


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_network_is_scored_by_autograd(kind):
    model = Text(kind)
    model.also_prunable = (kind, nn.Embedding)
    loss = F.cross_entropy(model(TOKENS[0]), TOKENS[1])
    weights = models.prunable(model)
    expected = {
        name: (w * g).abs()
        for (name, w), g in zip(weights.items(), torch.autograd.grad(loss, list(weights.values())))
    }
    scores = metrics.snip(model, masks.ones(model), TOKENS)
    assert (
        all(torch.allclose(scores[name], s, atol=1e-7) for name, s in expected.items())
        and len(scores) == 4
    )
    assert pruning.prune(model, "grasp", 0.5, TOKENS)[1][-1]["effective_sparsity"] is None
    with pytest.raises(UserError, match="reads tokens"):
        metrics.ntk_sap(model, masks.ones(model), TOKENS)


@pytest.mark.parametrize(
    "also, says",
    [(nn.Conv1d, "also_prunable is .*it is a tuple"), (("Conv1d",), "it is a tuple of kinds")],
)
def test_a_request_that_is_none(also, says):
    model = Unused()
    model.also_prunable = also
    with pytest.raises(UserError, match=says):
        models.prunable(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: l1_unstructured(layer, "weight", 0.5),
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
def test_a_weight_that_is_computed_is_named_and_not_looked_at(change):
    model = Unused()
    change(model.a)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(
        UserError,
        match="the weight of a, a .*Linear, is computed from other parameters; .*prune.remove",
    ):
        metrics.snip(model, {}, batch_of(Unused()))
    assert equal(before, model.state_dict())


# --- norms and other parameters -------------------------------------------------------------------


class Scaled(nn.Module):
    """Two Linear, between them what has parameters of its own, all 0 as some networks begin."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 4), nn.Linear(4, 2), how
        self.own = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.b(self.how(self.a(x), self.own))


@pytest.mark.parametrize(
    "how",
    [
        lambda x, own: x * own,
        lambda x, own: x * (1 - own) + own,
        lambda x, own: x * torch.sigmoid(own - own.mean()),
        lambda x, own: F.layer_norm(x, (4,), own, own),
        lambda x, own: torch.layer_norm(x, (4,), own, own),
        lambda x, own: F.linear(x, torch.diag(own), own),
        lambda x, own: F.prelu(x, own),
    ],
)
def test_of_another_parameter_counts_that_it_is_there_and_not_its_value(how):
    model = Scaled(how)
    assert masks.density(masks.effective(model, masks.ones(model))) == 1


def test_synflow_takes_norms_as_the_identity_and_other_parameters_as_magnitudes():
    scale = nn.Parameter(torch.tensor([1.0, -2, 0.5, 0]))
    model = Scaled(lambda x, own: F.layer_norm(x, (4,), own, own) * own)
    model.own, norm = scale, nn.LayerNorm(4)
    nn.init.constant_(norm.weight, 7)
    first, last = (w.detach().abs().double() for w in (model.a.weight, model.b.weight))
    found = metrics.synflow(model, masks.ones(model), batch_of(shaped(model, 4)))
    through = last.sum(0) * scale.detach().abs().double()
    assert torch.allclose(found["a.weight"], first * through[:, None])
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.ReLU(), nn.Linear(4, 2))
    found = metrics.synflow(model, masks.ones(model), batch_of(shaped(model, 4)))
    first, last = (w.detach().abs().double() for w in (model[0].weight, model[3].weight))
    assert torch.allclose(found["0.weight"], first * last.sum(0)[:, None])


@pytest.mark.parametrize(
    "how, opened, closed",
    [
        # Unit 0 has no input and, when opened, a bias, in which the size of the others tells; unit
        # 3 is not read.
        (lambda x: F.rms_norm(x, (4,)), 12 + 6, 12 + 4),
        (lambda x: F.normalize(x), 12 + 6, 12 + 4),
        (lambda x: F.local_response_norm(x[:, :, None], 3)[:, :, 0], 12 + 6, 12 + 4),
        (lambda x: F.local_response_norm(x[:, :, None], 1)[:, :, 0], 8 + 4, 8 + 4),
        (lambda x: F.layer_norm(x, (4,)), 12 + 6, 12 + 6),
        (lambda x: x, 8 + 4, 8 + 4),
    ],
)
def test_a_norm_joins_what_it_takes_together(how, opened, closed):
    model = Odd(how)
    mask = masks.ones(model)
    mask["a.weight"][0] = mask["b.weight"][:, 3] = False
    assert masks.count(masks.effective(model, mask)) == opened
    model.a.bias = None
    assert masks.count(masks.effective(model, mask)) == closed


@given(st.floats(0.2, 0.8), st.integers(0, 10_000), st.sampled_from(["group", "layer", "rms"]))
@settings(deadline=None, max_examples=40)
def test_no_weight_that_matters_behind_a_norm_is_called_dead(density, seed, kind):
    torch.manual_seed(seed)
    norm = {"group": nn.GroupNorm(2, 4), "layer": nn.LayerNorm((4, 2, 2)), "rms": nn.RMSNorm(2)}
    model = nn.Sequential(
        nn.Conv2d(1, 4, 2, bias=False), norm[kind], nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)
    ).double()
    mask = random_mask(shaped(model, 1, 3, 3), density, seed)
    with torch.no_grad():
        for name, w in models.prunable(model).items():
            w.mul_(mask[name])
    out = model(torch.randn(5, 1, 3, 3, dtype=torch.double))
    moved = torch.autograd.grad((out - out.detach().mean(0)).square().sum(), model[0].weight)[0]
    live = masks.effective(model, mask)["0.weight"]
    assert not ((moved.abs() > 1e-12) & mask["0.weight"] & ~live).any()


# --- networks whose paths can not be followed -----------------------------------------------------


class ClassToken(nn.Module):
    """Rows as tokens behind one of the network's own, through one of PyTorch's layers."""

    def __init__(self):
        super().__init__()
        self.a, self.head, self.input_shape = nn.Linear(4, 4), nn.Linear(4, 3), (5, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.body = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.a(x)], 1)
        return self.head(self.body(x)[:, 0])


@pytest.mark.filterwarnings("ignore:density .* is of")
@pytest.mark.parametrize(
    "build, names",
    [
        (ClassToken, "body.self_attn, a MultiheadAttention"),
        (Attention, "attend, a MultiheadAttention"),
    ],
)
def test_pruning_goes_on_where_effective_can_not_be_known(build, names):
    model = build()
    batch = batch_of(model)
    for method in (
        "snip",
        "grasp",
        "grasp-abs",
        "magnitude",
        "random",
        "force",
        "iterative-snip",
        "prospr",
        "ntk-sap",
    ):
        mask, trace = pruning.prune(model, method, 0.25, batch, rounds=2)
        assert masks.count(mask) == round(0.25 * masks.size(mask)) and [
            row["effective_sparsity"] for row in trace
        ] == [None, None]
    for call in (
        lambda: masks.effective(model, mask),
        lambda: pruning.prune(model, "snip", 0.25, batch, effective=True),
        lambda: pruning.prune(model, "synflow", 0.25, batch),
    ):
        with pytest.raises(UserError, match=f"through {names}, which calls"):
            call()


def test_the_curvature_of_attention_is_that_of_its_products():
    """Second derivatives through scaled_dot_product_attention, which its fast kernels do not
    have.
    """

    class By(nn.Module):
        def __init__(self, attend):
            super().__init__()
            self.q, self.v, self.out, self.attend = (
                nn.Linear(8, 8),
                nn.Linear(8, 8),
                nn.Linear(8, 3),
                attend,
            )

        def forward(self, x):
            return self.out(self.attend(self.q(x), x, self.v(x)).mean(1))

    torch.manual_seed(0)
    one = shaped(By(F.scaled_dot_product_attention), 4, 8)
    two = copy.deepcopy(one)
    two.attend = lambda q, k, v: (q @ k.transpose(1, 2) / 8**0.5).softmax(2) @ v
    found, expected = (metrics.grasp(each, masks.ones(each), batch_of(each)) for each in (one, two))
    assert all(torch.allclose(found[name], s, rtol=1e-3, atol=1e-9) for name, s in expected.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(dtype):
    model = shaped(
        nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)), 16
    ).to(dtype)
    x, y = (
        torch.randn((8, 16), generator=torch.Generator().manual_seed(0)).to(dtype),
        torch.arange(8) % 4,
    )
    wide = copy.deepcopy(model).float()
    for name, metric in metrics.METRICS.items():
        scores, expected = (
            metric(model, masks.ones(model), (x, y)),
            metric(wide, masks.ones(wide), (x.float(), y)),
        )
        assert equal(scores, expected) and all(
            s.dtype in (torch.float32, torch.float64) for s in scores.values()
        )
        assert masks.count(pruning.prune(model, name, 0.3, (x, y))[0]) == 72


def test_a_compiled_network_is_the_one_that_was_compiled():
    plain = shaped(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)), 1, 4, 4
    )
    compiled = torch.compile(plain, backend="aot_eager")
    batch, mask = batch_of(plain, classes=4), random_mask(plain, 0.5)
    over = {f"_orig_mod.{name}": m for name, m in mask.items()}
    for function in (
        lambda m, k: metrics.grasp(m, k, batch),
        lambda m, k: metrics.synflow(m, k, batch),
        masks.effective,
    ):
        assert equal(
            {f"_orig_mod.{name}": t for name, t in function(plain, mask).items()},
            function(compiled, over),
        )
    assert masks.flops(compiled, over) == masks.flops(plain, mask)


def test_one_sentence_for_a_network_that_answers_with_more_than_logits():
    class Two(Unused):
        def forward(self, x):
            return (super().forward(x), x) if self.training else super().forward(x)

    model = Two()
    with pytest.raises(UserError, match="in train mode the network answers with a tuple"):
        metrics.snip(model, masks.ones(model), batch_of(model))


def test_one_sentence_for_a_batch_that_batchnorm_does_not_take():
    model = shaped(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), 4)
    with pytest.raises(
        UserError,
        match="can not be computed on this Sequential and batch: Expected more than 1",
    ):
        metrics.snip(
            model, masks.ones(model), (torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))
        )


# --- the input ------------------------------------------------------------------------------------


class Patches(nn.Module):
    """Its first layer reads patches, and not the image."""

    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.o(
            torch.relu(self.e(x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).flatten(1, 3))).mean(1)
        )


def test_the_shape_of_the_input_is_that_of_the_batch():
    model, batch = Patches(), (torch.randn(4, 1, 4, 4), torch.arange(4))
    with pytest.raises(
        UserError, match=r"can not read an input of shape \[4\].*set model.input_shape"
    ):
        models.uses(model)
    mask, trace = pruning.prune(model, "snip", 0.5, batch)
    assert models.input_shape(model) == (1, 4, 4) and trace[-1]["effective_sparsity"] is not None
    assert models.uses(model) == {"e.weight": 4, "o.weight": 1} and not hasattr(
        model, "input_shape"
    )
    image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4))
    mask, _ = pruning.prune(image, "snip", 0.5, batch)
    assert (
        masks.flops(compaction.compact(image, mask).model, compaction.compact(image, mask).mask) > 0
    )


def test_the_last_batch_says_the_shape():
    layers = nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    model = nn.Sequential(*layers)
    for side in (4, 8):
        check_batch(model, torch.ones(1, 1, side, side), torch.tensor([0]))
        assert models.input_shape(model) == (1, side, side)


def test_random_passes_over_what_was_removed_before():
    """In a layer of which something is left; one that is all 0 was made so."""
    model = Unused()
    with torch.no_grad():
        model.a.weight[:2] = 0
        model.out.weight.zero_()
    scores = metrics.random(model, masks.ones(model), batch_of(model))
    assert (
        not scores["a.weight"][:2].any()
        and scores["a.weight"][2:].all()
        and scores["out.weight"].all()
    )


def test_a_volume_trains_and_a_layer_that_is_not_called_too(digits):
    volume = shaped(
        nn.Sequential(
            nn.Unflatten(2, (2, 4)), nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(42, 10)
        ),
        1,
        8,
        8,
    )
    unused = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), Unused(), nn.Linear(3, 10))
    for model in (volume, shaped(unused, 1, 8, 8)):
        mask = random_mask(model, 0.9)
        training.train(
            model, mask, digits, training.Recipe(epochs=1, batch_size=512), engine="dense"
        )
        assert all((w[~mask[name]] == 0).all() for name, w in models.prunable(model).items())


class Largest(nn.Module):
    """Padding makes the border uneven, and the pool is a function: SynFlow's own pass misses what
    is not the largest.
    """

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 2)
        shaped(self, 1, 2, 2)

    def forward(self, x):
        return self.out(F.max_pool2d(self.conv(x), 2).flatten(1))


def test_synflows_pass_says_what_is_effective_only_of_modules_that_are_known():
    model, batch, seen = Largest(), (torch.zeros(2, 1, 2, 2), torch.arange(2)), []
    _, trace = pruning.prune(
        model, "synflow", 0.5, batch, rounds=3, observe=lambda t, old, new, batch: seen.append(new)
    )
    assert [1 - row["effective_sparsity"] for row in trace] == pytest.approx(
        [masks.density(masks.effective(model, new)) for new in seen]
    )
    first = metrics.synflow(model, masks.ones(model), batch)
    assert sum(int((s == 0).sum()) for s in first.values()) and not visible.sees_every_path(model)


# --- what a forward may do to its input, and what it must answer ----------------------------------


class Writes(nn.Module):
    """A forward that writes into what it is given, as a ReLU(inplace=True) in front does."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.input_shape = nn.Linear(4, 6), nn.Linear(6, 3), (4,)

    def forward(self, x):
        return self.b(torch.relu(self.a(x.mul_(2))))


class Reads(Writes):
    def forward(self, x):
        return self.b(torch.relu(self.a(2 * x)))


def test_a_forward_that_writes_into_its_input_changes_no_image(digits):
    torch.manual_seed(0)
    writes, reads = Writes(), Reads()
    reads.load_state_dict(writes.state_dict())
    x, y = batch_of(writes, 12)
    before = x.clone()
    for method in ("snip", "grasp", "synflow", "prospr", "ntk-sap"):
        found, expected = (
            pruning.prune(m, method, 0.4, (x, y), rounds=2)[0] for m in (writes, reads)
        )
        assert equal(found, expected)
    part = data.Split(x, y, 3)
    splits = data.Splits("random", "random", part, part, part, 3, "none")
    recipe = training.Recipe(epochs=2, batch_size=4, lr=0.1)
    with pytest.warns(UserWarning):
        logs = [training.train(m, found, splits, recipe) for m in (writes, reads)]
    assert logs[0].equals(logs[1]) and torch.equal(x, before)


def test_second_derivatives_go_through_a_hardsigmoid():
    class Plain(nn.Module):
        def forward(self, x):
            return torch.clamp(x + 3, 0, 6) / 6

    scores = []
    for gate in (nn.Hardsigmoid(), Plain()):
        torch.manual_seed(0)
        model = shaped(nn.Sequential(nn.Linear(4, 6), gate, nn.Linear(6, 3)).double(), 4)
        x, y = batch_of(model)
        scores.append(metrics.grasp(model, masks.ones(model), (x.double(), y)))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(*(s.values() for s in scores)))


@pytest.mark.parametrize(
    "forward, says",
    [
        (lambda x: {"logits": x}, "answers (one image )?with a dict "),
        (lambda x: None, "answers (one image )?with a NoneType "),
        (lambda x: x[:, 0], r"with \[1\]; it must be a tensor \[1, classes\]"),
        (lambda x: x[:, :, None], r"with \[1, 4, 1\]; it must"),
    ],
)
def test_a_network_that_does_not_answer_with_logits_is_one_sentence(forward, says):
    model = shaped(nn.Linear(4, 4), 4)
    plain = model.forward
    model.forward = lambda x: forward(plain(x))
    with pytest.raises(UserError, match=says):
        metrics.snip(model, masks.ones(model), batch_of(model))


@pytest.mark.parametrize(
    "build, says",
    [
        (lambda: nn.LazyLinear(3), "has no shape yet; give the network a batch once"),
        (lambda: nn.Linear(4, 3, device="meta"), "has no numbers, only a shape; build"),
    ],
)
def test_a_network_without_numbers_is_one_sentence(build, says):
    model = nn.Sequential(build())
    with pytest.raises(UserError, match=f"^0.weight {says}"):
        pruning.prune(model, "snip", 0.5, batch_of(shaped(model, 4)))


def test_weights_of_any_name_are_outside():
    """A matrix of the user's own that no mask covers is named, so that no density hides it."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel, self.last = nn.Parameter(torch.randn(8, 6)), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(x @ self.kernel)

    assert graph.outside(Own()) == {"Own": 48}
