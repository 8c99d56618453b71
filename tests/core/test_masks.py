"""Masks: exact counts, ties, the effective part against a plain graph search, controls, files."""

import io
import itertools
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panning_core import masks, models, zoo
from panning_core.errors import UserError
from tests.conftest import make_residual

inf, nan = float("inf"), float("nan")


def scores(*rows):
    return {f"{i}.weight": torch.tensor(row) for i, row in enumerate(rows)}


def bits(mask):
    return [m.int().flatten().tolist() for m in mask.values()]


# --- exact counts and ties ---


@pytest.mark.parametrize(
    "rows, density, expected",
    [
        (([3.0, 1.0, 2.0, 0.0],), 0.5, [[1, 0, 1, 0]]),
        (([1.0, 1.0, 1.0, 1.0],), 0.5, [[1, 1, 0, 0]]),
        (([0.0, 1.0, 1.0, 2.0, 1.0],), 0.6, [[0, 1, 1, 1, 0]]),
        (([0.0, 5.0], [5.0, 0.0, 5.0]), 0.4, [[0, 1], [1, 0, 0]]),
        (([0.0, 0.0], [0.0, 0.0]), 0.25, [[1, 0], [0, 0]]),
        (([-1.0, -3.0, -2.0],), 1 / 3, [[1, 0, 0]]),
        (([inf, 1.0, -inf, inf],), 0.75, [[1, 1, 0, 1]]),
        (([-inf, -inf, -inf, 1.0],), 0.5, [[1, 0, 0, 1]]),
        (([inf, inf, inf],), 2 / 3, [[1, 1, 0]]),
        (([1.0, 2.0],), 0.0, [[0, 0]]),
        (([1.0, -inf],), 1.0, [[1, 1]]),
        (([1.0, 2.0, 3.0, 4.0, 5.0],), 0.29, [[0, 0, 0, 0, 1]]),  # 1.45 -> 1
        (([1.0, 2.0, 3.0, 4.0, 5.0],), 0.31, [[0, 0, 0, 1, 1]]),  # 1.55 -> 2
    ],
)
def test_keep_top(rows, density, expected):
    assert bits(masks.keep_top(scores(*rows), density)) == expected


@pytest.mark.parametrize(
    "rows, density, expected",
    [
        (([9.0, 8.0, 7.0, 6.0], [1.0, 2.0]), 0.5, [[1, 1, 0, 0], [0, 1]]),
        (([1.0, 1.0, 1.0], [5.0, 6.0, 7.0]), 1 / 3, [[1, 0, 0], [0, 0, 1]]),
        (([1.0, 2.0], [3.0]), 0.0, [[0, 0], [0]]),
    ],
)
def test_keep_top_layerwise(rows, density, expected):
    assert bits(masks.keep_top(scores(*rows), density, "layerwise")) == expected


def rows_of(*layers):
    return {f"{i}.weight": torch.tensor(layer) for i, layer in enumerate(layers)}


@pytest.mark.parametrize(
    "layers, density, expected",
    [
        # sums 3, 5, 4 of two weights each, and a last layer of three: the last layer and the best
        # row take 5
        (
            ([[1.0, 2.0], [0.0, 5.0], [2.0, 2.0]], [[0.0, 0.0, 0.0]]),
            5 / 9,
            [[0, 0, 1, 1, 0, 0], [1, 1, 1]],
        ),
        (
            ([[1.0, 2.0], [0.0, 5.0], [2.0, 2.0]], [[0.0, 0.0, 0.0]]),
            6 / 9,
            [[0, 0, 1, 1, 0, 0], [1, 1, 1]],
        ),  # half a row is not kept
        (
            ([[1.0, 2.0], [0.0, 5.0], [2.0, 2.0]], [[0.0, 0.0, 0.0]]),
            7 / 9,
            [[0, 0, 1, 1, 1, 1], [1, 1, 1]],
        ),
        (([[1.0, 2.0], [0.0, 5.0], [2.0, 2.0]], [[0.0, 0.0, 0.0]]), 1.0, [[1] * 6, [1] * 3]),
        # the best of the second layer stays though all of the first are better
        (
            ([[7.0], [8.0], [9.0]], [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [[0.0, 0.0]]),
            6 / 11,
            [[0, 0, 1], [0, 0, 0, 1, 1, 1], [1, 1]],
        ),
        (
            ([[7.0], [8.0], [9.0]], [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [[0.0, 0.0]]),
            8 / 11,
            [[1, 1, 1], [0, 0, 0, 1, 1, 1], [1, 1]],
        ),
        # what does not fit ends it: the cheap third row is worse and does not overtake
        (
            ([[1.0], [9.0]], [[2.0, 2.0], [8.0, 8.0]], [[0.0, 0.0]]),
            6 / 8,
            [[0, 1], [0, 0, 1, 1], [1, 1]],
        ),
        # a row counts by its sum, whatever its length: 3 comes before 2.5
        (
            ([[3.0], [2.5]], [[2.0, 2.0], [1.5, 1.5]], [[0.0, 0.0]]),
            7 / 8,
            [[1, 0], [1, 1, 1, 1], [1, 1]],
        ),
        # a kernel is a part of its channel
        (([[[[3.0, 0.0]]], [[[1.0, 1.0]]]], [[-1.0, -2.0]]), 4 / 6, [[1, 1, 0, 0], [1, 1]]),
        (
            ([[2.0, 2.0], [-inf, -inf], [1.0, 1.0]], [[0.0, 0.0, 0.0]]),
            7 / 9,
            [[1, 1, 0, 0, 1, 1], [1, 1, 1]],
        ),
        (
            ([[2.0, 2.0], [2.0, 2.0], [1.0, 1.0]], [[0.0, 0.0, 0.0]]),
            5 / 9,
            [[1, 1, 0, 0, 0, 0], [1, 1, 1]],
        ),  # of equals the earlier
    ],
)
def test_keep_top_of_whole_units(layers, density, expected):
    assert bits(masks.keep_top(rows_of(*layers), density, "units")) == expected


@pytest.mark.parametrize(
    "density, says",
    [
        (
            4 / 9,
            (
                "density 0.444.* keeps 4 weights, and the outputs and one unit of every other"
                " layer take 5"
            ),
        ),
        (0.0, "keeps 0 weights"),
    ],
)
def test_too_little_for_whole_units_is_named(density, says):
    with pytest.raises(UserError, match=says):
        masks.keep_top(
            rows_of([[1.0, 2.0], [0.0, 5.0], [2.0, 2.0]], [[0.0, 0.0, 0.0]]), density, "units"
        )


def test_keep_top_keeps_shapes_and_is_boolean():
    mask = masks.keep_top({"a.weight": torch.arange(6.0).view(2, 3)}, 0.5)
    assert mask["a.weight"].dtype == torch.bool and mask["a.weight"].tolist() == [
        [False] * 3,
        [True] * 3,
    ]


@pytest.mark.parametrize(
    "rows, density, scope, says",
    [
        (([1.0, nan],), 0.5, "global", "NaN"),
        (([1.0, nan],), 0.0, "global", "NaN"),
        (([1.0], [nan, 1.0]), 0.5, "layerwise", "NaN"),
        (([1.0],), 1.1, "global", "density is 1.1"),
        (([1.0],), -0.1, "global", "density is -0.1"),
        (([1.0],), nan, "global", "density is nan"),
        (([1.0],), 0.5, "gobal", "unknown scope 'gobal'; did you mean 'global'"),
    ],
)
def test_keep_top_refuses(rows, density, scope, says):
    with pytest.raises(UserError, match=says):
        masks.keep_top(scores(*rows), density, scope)


TIED = st.lists(st.sampled_from([-inf, -1.0, 0.0, 0.0, 0.5, 1.0, inf]), min_size=1, max_size=40)


@given(st.lists(TIED, min_size=1, max_size=4), st.floats(0, 1))
@settings(deadline=None, max_examples=200)
def test_keep_top_agrees_with_a_stable_sort(rows, density):
    flat = list(itertools.chain(*rows))
    order = sorted(range(len(flat)), key=lambda i: -flat[i])  # sorted is stable
    kept = set(order[: round(density * len(flat))])
    mask = masks.keep_top(scores(*rows), density)
    assert list(itertools.chain(*bits(mask))) == [int(i in kept) for i in range(len(flat))]
    assert masks.count(mask) == round(density * len(flat)) and masks.density(mask) == len(
        kept
    ) / masks.size(mask)


KINDS = {
    "spread": lambda rng, n: rng.standard_normal(n) ** 3,
    "sorted": lambda rng, n: np.arange(n) - n / 2,
    "reversed": lambda rng, n: -np.arange(n) / 7,
    "few values": lambda rng, n: rng.integers(0, 4, n) / 3,
    "one value": lambda rng, n: np.zeros(n),
    "mostly removed": lambda rng, n: np.where(rng.random(n) < 0.9, -inf, rng.random(n)),
    "mostly zero, some infinite": lambda rng, n: rng.choice([0.0, 0.0, 0.0, inf, -inf, 1.5], n),
    "a sample that misleads": lambda rng, n: np.where(
        np.arange(n) % masks._STRIDE, rng.random(n), 9.0
    ),
}


@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 4000),
    st.floats(0, 1),
    st.integers(0, 10_000),
    st.sampled_from(["float32", "float64"]),
)
@settings(deadline=None, max_examples=200)
def test_keep_top_of_many_agrees_with_a_stable_sort(kind, n, density, seed, dtype):
    values = KINDS[kind](np.random.default_rng(seed), n).astype(dtype)
    expected = np.zeros(n, bool)
    expected[np.argsort(-values, kind="stable")[: round(density * n)]] = True
    mask = masks.keep_top({"weight": torch.from_numpy(values)}, density)["weight"]
    assert np.array_equal(mask.numpy(), expected)


@pytest.mark.parametrize("scope", masks.SCOPES)
def test_nan_among_many_is_refused_wherever_it_is(scope):
    for place in (0, 1, 500, 999):
        values = torch.rand(1000)
        values[place] = nan
        with pytest.raises(UserError, match="NaN"):
            masks.keep_top(
                {"0.weight": values.view(100, 10), "1.weight": torch.rand(1, 100)}, 0.5, scope
            )


def test_a_vector_of_all_layers_and_back(residual):
    mask = random_mask(residual, 0.3, 0)
    vector = masks.flatten(mask)
    assert equal(masks.unflatten(vector, mask), mask) and vector.tolist() == [
        bool(bit) for layer in bits(mask) for bit in layer
    ]
    assert masks.places(vector).tolist() == [
        i for i, bit in enumerate(vector.tolist()) if bit
    ] and masks.count(mask) == len(masks.places(vector))
    for dtype in (torch.float32, torch.float64):
        assert (
            masks.numbers(vector, dtype).tolist() == [float(bit) for bit in vector]
            and masks.numbers(vector, dtype).dtype == dtype
        )


# --- the effective part, against a graph of units and pixels ---


class Graph:
    """Edges between units, each with the weight that it uses (None: no weight, always there)."""

    def __init__(self):
        self.edges = []

    def linear(self, name, source, shape, target):
        self.edges += [
            ((source, i), (target, o), (name, o, i))
            for o in range(shape[0])
            for i in range(shape[1])
        ]

    def conv(self, name, source, size, weight_shape, stride, padding, target):
        """Units are (layer, channel * height * width); returns the size of the target."""
        (channels, height, width), (outside, _, kernel, _) = size, weight_shape
        rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        for o, r, c, i, u, v in itertools.product(
            range(outside),
            range(rows),
            range(columns),
            range(channels),
            range(kernel),
            range(kernel),
        ):
            y, x = r * stride + u - padding, c * stride + v - padding
            if 0 <= y < height and 0 <= x < width:
                self.edges.append(
                    (
                        (source, (i * height + y) * width + x),
                        (target, (o * rows + r) * columns + c),
                        (name, o, i, u, v),
                    )
                )
        return outside, rows, columns

    def pool(self, source, size, kernel, target):
        channels, height, width = size
        rows, columns = height // kernel, width // kernel
        for i, y, x in itertools.product(
            range(channels), range(rows * kernel), range(columns * kernel)
        ):
            self.edges.append(
                (
                    (source, (i * height + y) * width + x),
                    (target, (i * rows + y // kernel) * columns + x // kernel),
                    None,
                )
            )
        return channels, rows, columns

    def same(self, source, size, target):
        self.edges += [((source, i), (target, i), None) for i in range(np.prod(size))]

    def effective(self, mask, first, last):
        """Weights of ``mask`` on an edge whose source an input reaches and whose target reaches an
        output.
        """
        edges = [e for e in self.edges if e[2] is None or mask[e[2][0]][e[2][1:]]]
        ends = [
            {unit for edge in self.edges for unit in edge[:2] if unit[0] == layer}
            for layer in (first, last)
        ]

        def reached(start, here, there):
            next_to = {}
            for edge in edges:
                next_to.setdefault(edge[here], []).append(edge[there])
            seen, todo = set(start), list(start)
            while todo:
                for unit in next_to.get(todo.pop(), []):
                    if unit not in seen:
                        seen.add(unit)
                        todo.append(unit)
            return seen

        forward, backward = reached(ends[0], 0, 1), reached(ends[1], 1, 0)
        live = {name: torch.zeros_like(m) for name, m in mask.items()}
        for source, target, weight in edges:
            if weight is not None and source in forward and target in backward:
                live[weight[0]][weight[1:]] = True
        return live


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def random_mask(model, density, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(w.shape, generator=generator) < density
        for name, w in models.prunable(model).items()
    }


def check_effective(model, mask, expected):
    live = masks.effective(model, mask)
    assert equal(live, expected)
    assert all((m | ~live[name]).all() for name, m in mask.items())  # a part of the mask
    assert equal(masks.effective(model, live), live)  # nothing more to remove


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.floats(0, 1), st.integers(0, 10_000))
@settings(deadline=None, max_examples=150)
def test_effective_weights_of_an_mlp(widths, density, seed):
    layers, graph = [], Graph()
    for i, (inside, outside) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
        graph.linear(f"{2 * i}.weight", i, (outside, inside), i + 1)
    model = nn.Sequential(*layers)
    mask = random_mask(model, density, seed)
    check_effective(model, mask, graph.effective(mask, 0, len(widths) - 1))


def conv_graph():
    """Padding, stride, pooling that drops a row, and a 3x3 kernel on a 1x1 image, of which only the
    middle is ever used.
    """
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 3, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3, 2),
    )
    model.input_shape = (2, 5, 6)
    graph = Graph()
    size = graph.conv("0.weight", "in", (2, 5, 6), (3, 2, 3, 3), 2, 1, "conv")
    size = graph.pool("conv", size, 2, "pool")
    assert size == (3, 1, 1)
    graph.conv("3.weight", "pool", size, (3, 3, 3, 3), 1, 1, "last")
    graph.linear("6.weight", "last", (2, 3), "out")
    return model, graph


def residual_graph():
    model, graph = make_residual(), Graph()
    size = graph.conv("0.weight", "in", (2, 6, 6), (4, 2, 3, 3), 1, 1, "conv")
    size = graph.pool("conv", size, 2, "pool")
    inner = graph.conv("4.conv1.weight", "pool", size, (5, 4, 3, 3), 2, 1, "inner")
    outer = graph.conv("4.conv2.weight", "inner", inner, (5, 5, 3, 3), 1, 1, "sum")
    assert (
        graph.conv("4.shortcut.0.weight", "pool", size, (5, 4, 1, 1), 2, 0, "sum")
        == outer
        == (5, 2, 2)
    )
    graph.linear("6.weight", "sum", (3, 20), "out")
    return model, graph


def identity_graph():
    """A block whose shortcut has no weights: what enters it always leaves it."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), zoo.Block(2, 2, 1), nn.Flatten(), nn.Linear(8, 2)
    )
    model.input_shape = (1, 2, 2)
    graph = Graph()
    size = graph.conv("0.weight", "in", (1, 2, 2), (2, 1, 3, 3), 1, 1, "stem")
    graph.conv("1.conv1.weight", "stem", size, (2, 2, 3, 3), 1, 1, "inner")
    graph.conv("1.conv2.weight", "inner", size, (2, 2, 3, 3), 1, 1, "sum")
    graph.same("stem", size, "sum")
    graph.linear("3.weight", "sum", (2, 8), "out")
    return model, graph


def border_graph():
    """On 2x2 pixels each corner of the kernel is used at another pixel of the same pooling window:
    all are paths, not just the largest.
    """
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 2)
    )
    model.input_shape = (1, 2, 2)
    graph = Graph()
    size = graph.conv("0.weight", "in", (1, 2, 2), (3, 1, 3, 3), 1, 1, "conv")
    graph.pool("conv", size, 2, "pool")
    graph.linear("3.weight", "pool", (2, 3), "out")
    return model, graph


@pytest.mark.parametrize("build", [conv_graph, residual_graph, identity_graph, border_graph])
def test_effective_weights_of_convolutions(build):
    model, graph = build()
    sizes = set()
    for density, seed in itertools.product((0.02, 0.05, 0.1, 0.2, 0.4, 1.0), range(6)):
        mask = random_mask(model, density, seed)
        expected = graph.effective(mask, "in", "out")
        check_effective(model, mask, expected)
        sizes.add(masks.count(expected) / max(1, masks.count(mask)))
    assert len(sizes) > 5  # not all dead and not all alive


def test_corners_of_a_kernel_on_one_pixel_are_not_effective():
    model, _ = conv_graph()
    live = masks.effective(model, masks.ones(model))
    assert live["3.weight"][:, :, 1, 1].all() and masks.count({"3": live["3.weight"]}) == 9


def test_effective_depends_on_the_mask_alone(residual, unchanged):
    mask = random_mask(residual, 0.2, 0)
    before = masks.effective(residual, mask)
    with torch.no_grad(), unchanged(residual):
        assert equal(masks.effective(residual, mask), before)
    with torch.no_grad():
        for parameter in residual.parameters():
            parameter.fill_(nan)
    assert equal(masks.effective(residual, mask), before)


def test_a_path_through_many_wide_layers_is_not_lost():
    model = models.build("vgg19", (3, 32, 32), 10, seed=0)
    thin = {name: torch.zeros_like(m) for name, m in masks.ones(model).items()}
    for name, m in thin.items():
        m[0, 0, *([1, 1] if m.ndim == 4 else [])] = True
    assert masks.count(masks.effective(model, thin)) == masks.count(thin) == 17


# --- as many as leave so many effective ones ---


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.sampled_from(["global", "layerwise", "units"]),
    st.floats(0.01, 1),
    st.booleans(),
    st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=60)
def test_keep_effective_against_every_count(widths, scope, density, tied, seed):
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    generator = torch.Generator().manual_seed(seed)
    ranked = {
        name: torch.randn(w.shape, generator=generator)
        for name, w in models.prunable(model).items()
    }
    if tied and scope != "units":
        ranked = {name: s.round() for name, s in ranked.items()}
    total, best = masks.size(ranked), None
    for n in range(total + 1):
        try:
            live = masks.effective(model, masks.keep_top(ranked, n / total, scope))
        except UserError:  # too little for whole units
            continue
        if masks.count(live) <= round(density * total):
            best = live
    if best is None or not masks.count(best):
        with pytest.raises(UserError, match="density .* (leaves|keeps) "):
            masks.keep_effective(model, ranked, density, scope)
    else:
        assert equal(masks.keep_effective(model, ranked, density, scope), best)


def test_keep_effective_passes_over_what_is_on_no_path():
    """2-2-1: the best two weights end at different hidden units, so that the third makes the first
    path, of two weights.
    """
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    ranked = {
        "0.weight": torch.tensor([[6.0, 1.0], [2.0, 3.0]]),
        "1.weight": torch.tensor([[4.0, 5.0]]),
    }
    for count, expected in (
        (2, [[1, 0, 0, 0], [1, 0]]),
        (3, [[1, 0, 0, 0], [1, 0]]),
        (4, [[1, 0, 0, 1], [1, 1]]),
        (5, [[1, 0, 1, 1], [1, 1]]),
        (6, [[1, 1, 1, 1], [1, 1]]),
    ):
        assert bits(masks.keep_effective(model, ranked, count / 6)) == expected
    with pytest.raises(
        UserError,
        match=(
            "density 0.16.* leaves 1 of 6 weights, too few for a path where these scores are"
            " largest"
        ),
    ):
        masks.keep_effective(model, ranked, 1 / 6)


@given(
    st.sampled_from(["global", "layerwise"]),
    st.floats(0.05, 1),
    st.floats(0.1, 0.9),
    st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=60)
def test_what_has_a_score_of_minus_infinity_is_never_kept_for_being_effective(
    scope, density, share, seed
):
    """Such scores are of weights that may not return. Without them there may be fewer effective
    weights than the density allows.
    """
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    generator, left = torch.Generator().manual_seed(seed), random_mask(model, share, seed)
    ranked = {
        name: torch.rand(m.shape, generator=generator).masked_fill(~m, -inf)
        for name, m in left.items()
    }
    most = masks.effective(model, left)
    try:
        mask = masks.keep_effective(model, ranked, density, scope)
    except UserError:
        assert density < 0.3 or not masks.count(most) or scope == "layerwise"
        return
    assert all((left[name] | ~m).all() for name, m in mask.items()) and equal(
        mask, masks.effective(model, mask)
    )
    assert 0 < masks.count(mask) <= round(density * 34)
    if scope == "global" and masks.count(most) <= round(density * 34):
        assert equal(mask, most)


def test_keep_effective_only_reads_the_network(residual, unchanged):
    with unchanged(residual):
        masks.keep_effective(
            residual,
            {name: w.detach().abs() for name, w in models.prunable(residual).items()},
            0.1,
        )


# --- controls, table ---


def test_shuffle_keeps_the_count_of_every_layer_and_moves_the_weights(lenet300):
    mask = random_mask(lenet300, 0.1, 0)
    before = {name: m.clone() for name, m in mask.items()}
    state = torch.get_rng_state()
    shuffled = masks.shuffle(mask, seed=1)
    assert equal(mask, before) and torch.equal(torch.get_rng_state(), state)
    masks.check(lenet300, shuffled)
    for name, m in mask.items():
        assert shuffled[name].sum() == m.sum() and not torch.equal(shuffled[name], m)
        overlap = (shuffled[name] & m).sum() / m.sum()
        assert abs(overlap - 0.1) < 5 * (0.09 / m.sum()) ** 0.5  # what chance gives
    assert equal(masks.shuffle(mask, 1), shuffled) and not equal(masks.shuffle(mask, 2), shuffled)


def test_table(residual):
    mask = random_mask(residual, 0.15, 0)
    live, table = masks.effective(residual, mask), masks.table(residual, mask)
    assert table.layer.tolist() == ["0", "4.conv1", "4.conv2", "4.shortcut.0", "6"]
    assert table["shape"].tolist() == ["4x2x3x3", "5x4x3x3", "5x5x3x3", "5x4x1x1", "3x20"]
    assert table.weights.tolist() == [72, 180, 225, 20, 60]
    assert table.kept.tolist() == [
        int(m.sum()) for m in mask.values()
    ] and table.kept.sum() == masks.count(mask)
    assert table.effective.sum() == masks.count(live) < table.kept.sum()
    assert (table.density * table.weights).tolist() == pytest.approx(table.kept.tolist())
    assert (table.effective_density * table.weights).tolist() == pytest.approx(
        table.effective.tolist()
    )
    assert table.flops_dense.tolist() == [
        2 * 36 * 72,
        2 * 4 * 180,
        2 * 4 * 225,
        2 * 4 * 20,
        2 * 60,
    ]
    assert table.flops_nonzero.tolist() == [
        2 * uses * n for uses, n in zip((36, 4, 4, 4, 1), table.effective)
    ]


def test_flops_of_lenet5():
    model = models.build("lenet5", (1, 28, 28), 10, seed=0)
    assert masks.table(model, masks.ones(model)).flops_dense.sum() == 2 * (
        500 * 576 + 25_000 * 64 + 400_000 + 5_000
    )


# --- check, save and load ---


def test_another_networks_mask_is_named(lenet300, residual):
    good = masks.ones(lenet300)
    masks.check(lenet300, good)
    for change, says in [
        (lambda m: m.pop("fc2.weight"), "lacks fc2.weight"),
        (lambda m: m.update({"fc9.weight": m["fc2.weight"]}), "has no fc9.weight"),
        (
            lambda m: m.update({"fc2.weight": m["fc3.weight"]}),
            r"fc2.weight is \(10, 100\) in the mask, \(100, 300\)",
        ),
        (
            lambda m: m.update({"fc2.weight": m["fc2.weight"].float()}),
            "fc2.weight is torch.float32",
        ),
    ]:
        mask = dict(good)
        change(mask)
        with pytest.raises(UserError, match=says):
            masks.check(lenet300, mask)
    for function in (masks.effective, masks.table):
        with pytest.raises(UserError, match="another network"):
            function(residual, good)


def test_a_saved_mask_comes_back(residual, tmp_path):
    mask = random_mask(residual, 0.3, 0)
    masks.save(mask, tmp_path / "mask.npz")
    assert equal(masks.load(tmp_path / "mask.npz"), mask) and equal(
        masks.load(tmp_path / "mask.npz", residual), mask
    )
    assert list(masks.load(tmp_path / "mask.npz")) == list(mask)


def test_a_mask_is_loaded_from_the_path_it_was_saved_to(residual, tmp_path):
    mask = random_mask(residual, 0.3, 0)
    masks.save(mask, tmp_path / "mask")
    assert equal(masks.load(tmp_path / "mask"), mask)


def test_loading_another_networks_mask_is_an_error(residual, lenet300, tmp_path):
    masks.save(masks.ones(residual), tmp_path / "mask.npz")
    with pytest.raises(UserError, match="another network.*fc1.weight"):
        masks.load(tmp_path / "mask.npz", lenet300)


def test_a_damaged_file_is_an_error_wherever_the_damage_is(lenet300, tmp_path):
    """Cut short or overwritten anywhere, the file is refused, or still holds the very same mask."""
    mask, file = random_mask(lenet300, 0.3, 0), tmp_path / "mask.npz"
    masks.save(mask, file)
    whole = file.read_bytes()
    kinds = {}
    for place in [*range(0, len(whole), 97), *range(len(whole) - 300, len(whole), 5)]:
        for damaged in (
            whole[:place],
            whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :],
        ):
            file.write_bytes(damaged)
            try:
                assert equal(masks.load(file, lenet300), mask)
            except UserError:
                pass
            except Exception as error:  # collected, so that one run names every kind
                kinds.setdefault(
                    f"{type(error).__module__}.{type(error).__name__}", (place, str(error))
                )
    assert not kinds


def test_what_is_not_a_mask_is_refused(tmp_path):
    for name, write in {
        "array.npy": lambda f: np.save(f, np.ones(3, bool)),
        "text.npz": lambda f: f.write_text("hello"),
        "empty.npz": lambda f: f.write_bytes(b""),
        "floats.npz": lambda f: np.savez(f, a=np.ones(3)),
        "words.npz": lambda f: np.savez(f, a=np.array(["x"])),
        "none.npz": lambda f: np.savez(f),
    }.items():
        write(tmp_path / name)
        with pytest.raises(UserError, match=name):
            masks.load(tmp_path / name)
    with pytest.raises(UserError, match="missing.npz"):
        masks.load(tmp_path / "missing.npz")


class Trap:
    def __reduce__(self):
        return Trap.spring, ()

    @staticmethod
    def spring():
        Trap.sprung = True
        return True


def test_a_pickle_is_refused_and_not_run(tmp_path):
    Trap.sprung = False
    np.savez(tmp_path / "object.npz", **{"fc1.weight": np.array([Trap()], dtype=object)})
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap()))
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        archive.writestr("fc1.weight.npy", pickle.dumps(Trap()))
    for name in ("object.npz", "plain.npz", "raw.npz"):
        with pytest.raises(UserError, match=name):
            masks.load(tmp_path / name)
    assert not Trap.sprung
    with np.load(tmp_path / "object.npz", allow_pickle=True) as archive:
        assert archive["fc1.weight"] is not None
    assert Trap.sprung  # the trap works where pickles are read


def test_a_damaged_member_is_refused_where_numpy_would_not_read_to_its_end(tmp_path):
    path, kept = tmp_path / "mask.npz", io.BytesIO()
    np.save(kept, np.ones(8, bool))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fc.weight.npy", kept.getvalue() + bytes(100_000))
    whole = path.read_bytes()
    path.write_bytes(
        whole.replace(b"\1" * 8, b"\1\0" * 4)
    )  # the checksum is that of what stood there before
    np.load(path)["fc.weight"]
    with pytest.raises(
        UserError, match="mask.npz is not a readable mask: fc.weight.npy is damaged"
    ):
        masks.load(path)
