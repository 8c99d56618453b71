"""Compaction against the masked full network: the same outputs, the same training, nothing left
that could go.
"""

import copy
import io
import pickle
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panning_core import graph, masks, metrics, models, zoo
from panning_core.compaction import Select, compact
from panning_core.errors import UserError

SHAPES = {
    "lenet300": (1, 28, 28),
    "lenet5": (1, 28, 28),
    "vgg11": (3, 32, 32),
    "resnet20": (3, 32, 32),
}
BOTH = pytest.mark.parametrize("fold", [False, True])


def randomise(model, generator):
    """In float64, biases and BatchNorm's parameters and statistics too, so that a constant that is
    lost shows.
    """
    model.double()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim():
            tensor.normal_(
                0.0, 0.5 if tensor.dim() == 1 else tensor[0].numel() ** -0.5, generator=generator
            )
    return model


@cache
def built(name):
    """In eval mode; shared, so a test that changes it takes a copy."""
    return randomise(
        models.build(name, SHAPES.get(name, (3, 32, 32)), 10, seed=0),
        torch.Generator().manual_seed(0),
    ).eval()


def sequential(*layers, shape):
    """A network with literal weights: zeros until a test writes into them."""
    model = nn.Sequential(*layers).double().eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    model.input_shape = shape
    return model


def some_mask(model, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(w.shape, generator=generator) < density
        for name, w in models.prunable(model).items()
    }


def batch(model, number=4, seed=0):
    return torch.randn(
        number,
        *models.input_shape(model),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.double,
    )


def masked(model, mask):
    full = copy.deepcopy(model)
    for name, weight in models.prunable(full).items():
        weight.data[~mask[name]] = 0.0
    return full


def outputs(model, training=False):
    with torch.no_grad():
        return copy.deepcopy(model).train(training)(
            batch(model)
        )  # a copy, because train mode moves the statistics


def close(a, b, tolerance=1e-10):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance)


def assert_fixed_point(small, fold):
    again = compact(small.model, small.mask, fold)
    before, after = small.model.state_dict(), again.model.state_dict()
    assert list(before) == list(after) and all(
        close(tensor, after[name]) for name, tensor in before.items()
    )
    assert all(torch.equal(m, again.mask[name]) for name, m in small.mask.items())


def assert_same(model, mask):
    """Both kinds of compaction: outputs, fixed point, order of sizes. Returns them."""
    full = masked(model, mask)
    trained, folded = compact(model, mask, fold=False), compact(model, mask)
    for small, fold in ((trained, False), (folded, True)):
        masks.check(small.model, small.mask)
        assert close(outputs(full), outputs(small.model))
        assert all(
            (w[~small.mask[name]] == 0).all() for name, w in models.prunable(small.model).items()
        )
        assert_fixed_point(small, fold)
    assert close(outputs(full, training=True), outputs(trained.model, training=True))
    assert masks.size(mask) >= masks.size(trained.mask) >= masks.size(folded.mask)
    return trained, folded


# --- the same outputs ---


@pytest.mark.parametrize(
    "name, density",
    [
        *(
            (name, density)
            for name in ("lenet300", "lenet5", "resnet20")
            for density in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
        ),
        ("vgg11", 1.0),
        ("vgg11", 0.03),
        ("vgg11", 0.001),
    ],
)
def test_random_masks(name, density):
    assert_same(built(name), some_mask(built(name), density, seed=int(1000 * density)))


@pytest.mark.parametrize(
    "name, metric, density",
    [
        ("lenet300", "snip", 0.02),
        ("lenet5", "snip", 0.05),
        ("lenet5", "synflow", 0.01),
        ("vgg11", "synflow", 0.01),
        ("resnet20", "snip", 0.01),
    ],
)
def test_masks_of_metrics(name, metric, density):
    model = built(name)
    score = metrics.METRICS[metric](model, masks.ones(model), (batch(model), torch.arange(4)))
    mask = masks.keep_top(score, density)
    _, folded = assert_same(model, mask)
    assert masks.size(folded.mask) < 0.9 * masks.size(mask)


@st.composite
def cases(draw):
    """A small network with a bit of everything that compaction reads, and a mask."""
    flag, number = st.booleans(), st.integers(1, 4)
    layers, channels, relu = [], 2, nn.ReLU()  # the same one everywhere
    for _ in range(draw(st.integers(1, 3))):
        outside, stride = draw(number), draw(st.integers(1, 2))
        if draw(st.integers(0, 3)) == 0:
            layers.append(zoo.Block(channels, outside, stride))
        else:
            stage = [
                nn.Conv2d(
                    channels,
                    outside,
                    draw(st.integers(1, 3)),
                    stride,
                    draw(st.sampled_from([0, 0, 1])),
                    bias=draw(flag),
                )
            ]
            stage += (
                [nn.BatchNorm2d(outside)] * draw(flag)
                + [relu] * draw(flag)
                + [nn.MaxPool2d(2, 1)] * draw(flag)
            )
            layers += [nn.Sequential(*stage)] if draw(flag) else stage
        channels = outside
    layers += [nn.AdaptiveAvgPool2d(1)] * draw(flag) + [nn.Flatten()]
    features = nn.Sequential(*layers).eval()(torch.zeros(1, 2, 27, 27)).shape[1]
    for _ in range(draw(st.integers(0, 2))):
        hidden = draw(number)
        layers += [nn.Linear(features, hidden, bias=draw(flag)), relu]
        features = hidden
    model = nn.Sequential(*layers, nn.Linear(features, 3, bias=draw(flag)))
    model.input_shape = (2, 27, 27)
    seed = draw(st.integers(0, 999))
    randomise(model, torch.Generator().manual_seed(seed)).eval()
    return model, some_mask(model, draw(st.sampled_from([0.7, 0.4, 0.2, 0.1, 0.03])), seed)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_any_network_and_the_way_back(case):
    model, mask = case
    for small in assert_same(model, mask):
        for name, tensor in small.model.named_parameters():  # as if it had been trained
            tensor.data += (
                0.1
                * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
                * small.mask.get(name, True)
            )
        full = copy.deepcopy(model)
        small.restore(full)
        assert close(outputs(masked(full, mask)), outputs(small.model))


@pytest.mark.parametrize(
    "name, density",
    [
        ("lenet300", 0.3),
        ("lenet300", 0.003),
        ("lenet5", 0.03),
        ("resnet20", 0.03),
        ("vgg11", 0.001),
    ],
)
@BOTH
def test_tensors_and_masks_find_the_way_in_and_back(name, density, fold):
    model = built(name)
    mask = some_mask(model, density)
    small, live = compact(model, mask, fold), masks.effective(model, mask)
    numbered = {layer: torch.arange(1, m.numel() + 1).view(m.shape) for layer, m in mask.items()}
    there, weights = (
        small.narrow(numbered),
        small.narrow({layer: w.detach() for layer, w in models.prunable(model).items()}),
    )
    whole = small.widen(small.mask)
    assert list(whole) == list(mask) and all(
        m.shape == mask[layer].shape and m.dtype == torch.bool for layer, m in whole.items()
    )
    assert all(
        (mask[layer] | ~m).all() and (m | ~live[layer]).all() for layer, m in whole.items()
    )  # of the mask, and all that is effective
    assert masks.count(whole) == masks.count(small.mask) and not masks.count(
        small.widen({layer: torch.zeros_like(m) for layer, m in small.mask.items()})
    )
    for layer, w in models.prunable(small.model).items():
        assert there[layer].shape == w.shape and torch.equal(
            there[layer][small.mask[layer]].sort().values, numbered[layer][whole[layer]]
        )
        assert fold or torch.equal(
            weights[layer][small.mask[layer]], w.detach()[small.mask[layer]]
        )  # folding changes weights


def test_in_train_mode_folding_is_exact_as_long_as_running_means_are_the_constants():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    model.input_shape = (1, 8, 8)
    randomise(model, torch.Generator().manual_seed(0))
    model[1].running_mean[:], model[1].bias.data[1:3] = 0.0, 2.0
    mask = some_mask(model, 0.5)
    mask["0.weight"][1:3] = False
    small = compact(model, mask)
    assert [len(w) for w in models.prunable(small.model).values()] == [4, 4, 3]
    assert close(outputs(masked(model, mask), training=True), outputs(small.model, training=True))
    model[1].running_mean += 1.0
    small = assert_same(model, mask)[1]
    assert not close(
        outputs(masked(model, mask), training=True), outputs(small.model, training=True), 1e-3
    )


# --- what goes and what stays ---


def survivors(mask, fold):
    """Units left of every layer but the last, by taking away one layer after the other what has no
    edge on one side, until nothing does.
    """
    edges = []
    for m in mask.values():
        edges.append(m.reshape(len(m), len(edges[-1]) if edges else m.shape[1], -1).any(2))
    while True:
        before = [e.clone() for e in edges]
        for left, right in pairwise(edges):
            gone = ~right.any(0) | (~left.any(1) if fold else False)
            left[gone], right[:, gone] = False, False
        if all(map(torch.equal, before, edges)):
            return [max(int(e.any(0).sum()), 1) for e in edges[1:]]


@BOTH
@pytest.mark.parametrize("density", [0.1, 0.03, 0.01, 0.003, 0.001])
@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_as_small_as_taking_away_by_hand_until_nothing_goes(name, density, fold):
    mask = some_mask(built(name), density)
    small = compact(built(name), mask, fold)
    assert [len(m) for m in small.mask.values()] == [*survivors(mask, fold), 10]


def chain():
    """Unit 2 of fc2 is read by nothing; unit 2 of fc1 then leads nowhere, nor does input 2. Unit 0
    of fc1 reads nothing.
    """
    model = sequential(
        nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2), shape=(3,)
    )
    for index, (weight, bias) in {
        0: ([[9, 9, 9], [9, 2, 9], [9, 3, 4]], [5, 6, 7]),
        2: ([[2, 3, 9], [9, 4, 9], [9, 9, 5]], [1, 2, 3]),
        4: ([[1, 2, 9], [3, 4, 9]], [1, 1]),
    }.items():
        model[index].weight.data, model[index].bias.data = (
            torch.tensor(weight).double(),
            torch.tensor(bias).double(),
        )
    kept = {
        "0.weight": [[0, 0, 0], [0, 1, 0], [0, 1, 1]],
        "2.weight": [[1, 1, 0], [0, 1, 0], [0, 0, 1]],
        "4.weight": [[1, 1, 0], [1, 1, 0]],
    }
    return model, {name: torch.tensor(m).bool() for name, m in kept.items()}


@pytest.mark.parametrize(
    "fold, expected",
    [
        (
            False,
            {
                "select_0.index": [1],
                "0.weight": [[0], [2]],
                "0.bias": [5, 6],
                "2.weight": [[2, 3], [0, 4]],
                "2.bias": [1, 2],
                "4.weight": [[1, 2], [3, 4]],
                "4.bias": [1, 1],
            },
        ),
        (
            True,
            {
                "select_0.index": [1],
                "0.weight": [[2]],
                "0.bias": [6],
                "2.weight": [[3], [4]],
                "2.bias": [1 + 2 * 5, 2],
                "4.weight": [[1, 2], [3, 4]],
                "4.bias": [1, 1],
            },
        ),
    ],
)
def test_one_dead_unit_kills_the_next(fold, expected):
    model, mask = chain()
    small = compact(model, mask, fold)
    assert {name: tensor.tolist() for name, tensor in small.model.state_dict().items()} == expected
    assert {name: m.tolist() for name, m in small.mask.items()} == {
        name: [[bool(w) for w in row] for row in weight]
        for name, weight in expected.items()
        if name.endswith(".weight")
    }
    assert_same(model, mask)


def test_restore_leaves_alone_what_was_removed_and_not_pruned():
    model, mask = chain()
    small = compact(model, mask)
    for parameter in small.model.parameters():
        parameter.data += 100 * (parameter != 0)
    small.restore(model)
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == {
        "0.weight": [[0, 0, 0], [0, 102, 0], [0, 3, 4]],
        "0.bias": [5, 106, 7],
        "2.weight": [[2, 103, 0], [0, 104, 0], [0, 0, 5]],
        "2.bias": [101, 102, 3],
        "4.weight": [[101, 102, 0], [103, 104, 0]],
        "4.bias": [101, 101],
    }


@pytest.mark.parametrize(
    "padding, bias, channels",
    [(0, 3.0, 1), (1, 3.0, 2), ("same", 3.0, 2), ("valid", 3.0, 1), (1, -3.0, 1), (1, 0.0, 1)],
)
def test_a_constant_stays_before_a_padded_convolution_unless_it_is_zero(padding, bias, channels):
    model = sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=padding), shape=(1, 4, 4)
    )
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    model[0].bias.data[1] = bias
    mask = masks.ones(model)
    mask["0.weight"][1] = False
    assert len(assert_same(model, mask)[1].mask["0.weight"]) == channels


def test_a_constant_goes_into_the_running_mean_where_the_convolution_has_no_bias():
    model = sequential(
        nn.Conv2d(1, 2, 1),
        nn.Conv2d(2, 1, 2, bias=False),
        nn.BatchNorm2d(1),
        nn.Flatten(),
        nn.Linear(1, 1),
        shape=(1, 2, 2),
    )
    randomise(model, torch.Generator().manual_seed(0))
    model[0].bias.data[1], model[1].weight.data[:], model[2].running_mean[:] = 3.0, 2.0, 1.0
    mask = masks.ones(model)
    mask["0.weight"][1], mask["1.weight"][0, 1, 0, 0] = False, False
    small = assert_same(model, mask)[1]
    assert small.model[2].running_mean.tolist() == [1.0 - 3 * 3.0 * 2.0] and model[
        2
    ].running_mean.tolist() == [1.0]
    bare = sequential(
        nn.Conv2d(1, 2, 1),
        nn.Conv2d(2, 1, 2, bias=False),
        nn.Flatten(),
        nn.Linear(1, 1, bias=False),
        shape=(1, 2, 2),
    )
    bare.load_state_dict(model.state_dict(), strict=False)
    mask["3.weight"] = mask.pop("4.weight")
    assert len(assert_same(bare, mask)[1].mask["0.weight"]) == 2  # no place to put it


@BOTH
@pytest.mark.parametrize("name", SHAPES)
def test_an_empty_mask_leaves_constants(name, fold):
    model = built(name)
    mask = some_mask(model, 0.0)
    small = compact(model, mask, fold)
    out = outputs(small.model)
    assert close(out, outputs(masked(model, mask))) and close(out, out[:1].expand(4, -1))
    inside = [m for key, m in small.mask.items() if key.endswith(("conv1.weight", "fc1.weight"))]
    assert all(len(m) == 1 for m in inside) and len(small.mask[next(reversed(small.mask))]) == 10


def channels_read(mask):
    """Channels of the three residual streams of a ResNet-20 that lead to its output, block by block
    until no more are found.
    """
    live = [torch.zeros(16).bool(), torch.zeros(32).bool(), mask["fc.weight"].any(0)]
    while True:
        before = [one.clone() for one in live]
        for block in reversed(range(9)):
            own, wider = block // 3, block in (3, 6)
            inside = mask[f"blocks.{block}.conv2.weight"][live[own]].any(3).any(2).any(0)
            live[own - wider] |= mask[f"blocks.{block}.conv1.weight"][inside].any(3).any(2).any(0)
            if wider:
                live[own - 1] |= (
                    mask[f"blocks.{block}.shortcut.0.weight"][live[own]].any(3).any(2).any(0)
                )
            else:
                assert f"blocks.{block}.shortcut.0.weight" not in mask
        if all(map(torch.equal, before, live)):
            return [max(int(one.sum()), 1) for one in live]


@BOTH
@pytest.mark.parametrize("density", [0.1, 0.02, 0.005, 0.002, 0.0005, 0.0])
def test_a_channel_of_a_residual_stream_goes_when_none_of_its_readers_needs_it(density, fold):
    model = built("resnet20")
    mask = (
        some_mask(model, density)
        if density
        else {name: torch.zeros_like(m) for name, m in masks.ones(model).items()}
    )
    small = compact(model, mask, fold)
    streams = [
        small.mask[name].shape[0]
        for name in ("conv.weight", "blocks.3.conv2.weight", "blocks.6.conv2.weight")
    ]
    assert (
        streams
        == [small.model.blocks[b].bn2.num_features for b in (0, 3, 6)]
        == [small.model.blocks[b].conv1.in_channels for b in (0, 4, 7)]
    )
    read = channels_read(mask)
    assert all(one <= other for one, other in zip(streams, read)) if fold else streams == read
    assert type(small.model.blocks[3]) is zoo.Block and small.model.conv.in_channels == 3
    assert_same(model, mask)


def blocks_and_others():
    """Streams that begin at the input, go through layers without weights, or end at the output
    without any.
    """

    def block(inside, outside, stride=1):
        return zoo.Block(inside, outside, stride)

    return {
        "block first": sequential(
            block(3, 3), block(3, 4), nn.Flatten(), nn.Linear(4 * 36, 3), shape=(3, 6, 6)
        ),
        "relu first": sequential(
            nn.ReLU(), block(3, 3), block(3, 3), nn.Flatten(), nn.Linear(3 * 36, 3), shape=(3, 6, 6)
        ),
        "pool between": sequential(
            nn.Conv2d(3, 8, 1),
            block(8, 8),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(8),
            block(8, 8),
            block(8, 5, 2),
            nn.Flatten(),
            nn.Linear(20, 3),
            shape=(3, 6, 6),
        ),
        "convolution between": sequential(
            block(3, 6),
            nn.Conv2d(6, 7, 3),
            nn.BatchNorm2d(7),
            nn.ReLU(),
            block(7, 7),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            shape=(3, 6, 6),
        ),
        "ends in a block": sequential(nn.Conv2d(3, 6, 3), block(6, 6), shape=(3, 6, 6)),
    }


@pytest.mark.parametrize("density", [0.3, 0.1, 0.05, 0.02])
@pytest.mark.parametrize("kind", blocks_and_others())
def test_blocks_among_other_layers(kind, density):
    model = randomise(blocks_and_others()[kind], torch.Generator().manual_seed(0))
    assert outputs(model).std() > 0.01
    for seed in range(5):
        assert_same(model, some_mask(model, density, seed))


@BOTH
@pytest.mark.parametrize("name", SHAPES)
def test_the_smaller_network_has_the_names_and_sizes_of_a_network(name, fold):
    model = built(name)
    small = compact(model, some_mask(model, 0.01), fold)
    assert list(small.mask) == list(models.prunable(small.model)) == list(models.prunable(model))
    assert set(small.model.state_dict()) - {"select_fc.index", "select_fc1.index"} == set(
        model.state_dict()
    )
    assert models.input_shape(small.model) == models.input_shape(model)
    for module in small.model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
        elif isinstance(module, nn.BatchNorm2d):
            assert {len(t) for t in module.state_dict().values() if t.dim()} == {
                module.num_features
            }
    assert all(p.is_contiguous() for p in small.model.parameters())


# --- Select ---


def selected(model, mask):
    return {
        name: module.index.tolist()
        for name, module in compact(model, mask).model.named_modules()
        if isinstance(module, Select)
    }


def test_select_stands_only_where_something_is_unread_and_cannot_go_upstream():
    model = built("lenet300")
    mask = masks.ones(model)
    assert selected(model, mask) == {}
    mask["fc1.weight"][:, 5] = False
    assert selected(model, mask) == {"select_fc1": [i for i in range(784) if i != 5]}
    assert list(compact(model, mask).model._modules)[:3] == ["flatten", "select_fc1", "fc1"]
    model = built("lenet5")
    mask = masks.ones(model)
    mask["fc1.weight"][:, 16:32] = False
    assert selected(model, mask) == {}
    assert [len(m) for m in compact(model, mask).mask.values()] == [20, 49, 500, 10]
    mask["fc1.weight"][:, 33] = False
    assert selected(model, mask) == {"select_fc1": [i for i in range(49 * 16) if i != 17]}
    model = built("resnet20")
    mask = masks.ones(model)
    mask["fc.weight"][:, 1] = False
    assert selected(model, mask) == {"select_fc": [0, *range(2, 64)]}


@BOTH
def test_a_compact_network_is_compacted_further(fold):
    model = nn.Sequential(nn.Flatten(), nn.Sequential(built("lenet300")[1:]))
    model.input_shape = SHAPES["lenet300"]
    mask = some_mask(model, 0.02)
    small = compact(model, mask, fold)
    fewer = {name: m & some_mask(small.model, 0.5)[name] for name, m in small.mask.items()}
    smaller = compact(small.model, fewer, fold)
    assert masks.size(smaller.mask) < masks.size(small.mask)
    assert sum(isinstance(module, Select) for module in smaller.model.modules()) == 1
    assert close(outputs(smaller.model), outputs(masked(small.model, fewer)))


def test_what_a_network_has_read_its_smaller_one_reads_too():
    """No ``input_shape`` says it."""
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3))
    graph.remember(model, torch.ones(2, 1, 6, 6))
    mask = masks.ones(model)
    mask["0.weight"][1], mask["3.weight"][:, 16:32] = False, False
    small = compact(model, mask)
    assert small.model[0].out_channels == 5 and models.input_shape(small.model) == (1, 6, 6)


# --- training and the way back ---


def descend(model, mask):
    """Ten steps of SGD that leave pruned weights at 0."""
    weights = models.prunable(model)
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    for step in range(10):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(batch(model, seed=step)), torch.arange(4)).backward()
        for name, weight in weights.items():
            weight.grad[~mask[name]] = 0.0
        optimiser.step()


@pytest.mark.parametrize(
    "name, density", [("lenet300", 0.03), ("lenet5", 0.01), ("small vgg", 0.02), ("resnet20", 0.01)]
)
def test_both_train_alike(name, density, monkeypatch):
    monkeypatch.setitem(
        models.MODELS,
        "small vgg",
        models.vgg([16, "pool", 32, "pool", 32, 32, "pool", 64, "pool", 64, "pool"]),
    )
    model = copy.deepcopy(built(name)).train()
    mask = masks.effective(model, some_mask(model, density))
    small, full = compact(model, mask, fold=False), masked(model, mask)
    assert masks.count(small.mask) == masks.count(mask) > 0 and masks.size(small.mask) < masks.size(
        mask
    )
    assert masks.size(compact(model, mask).mask) == masks.size(
        small.mask
    )  # of an effective mask nothing is left to fold
    before = copy.deepcopy(model.state_dict())
    descend(full, mask)
    descend(small.model, small.mask)
    small.restore(model)
    after, living = model.state_dict(), None
    for key, expected in full.state_dict().items():
        if key in mask:
            living = (
                mask[key].flatten(1).any(1)
            )  # the biases and statistics that follow are those of this layer's units
            assert (after[key][~mask[key]] == 0).all() and close(after[key], expected)
            assert not close(after[key], before[key], 1e-6) or not mask[key].any()
        elif expected.dim() == 0:
            assert after[key] == expected == 10
        else:
            assert close(after[key][living], expected[living])
            same = [
                (a[~living] - after[key][~living]).abs() < 1e-10 for a in (expected, before[key])
            ]
            assert (same[0] | same[1]).all()


@BOTH
def test_compaction_only_reads(residual, unchanged, fold):
    mask = some_mask(residual, 0.3)
    kept = {name: m.clone() for name, m in mask.items()}
    with unchanged(residual):
        small = compact(residual, mask, fold)
        for parameter in small.model.parameters():
            parameter.data.fill_(1.0)
    assert all(torch.equal(m, kept[name]) for name, m in mask.items())


@BOTH
def test_modes_and_requires_grad_come_along(residual, fold):
    residual[1].eval()
    residual[4].conv1.weight.requires_grad_(False)
    residual.conv_mode = "mine"
    small = compact(residual, some_mask(residual, 0.3), fold).model
    assert [m.training for m in small.modules() if not isinstance(m, Select)] == [
        m.training for m in residual.modules()
    ]
    assert all(m.training for m in small.modules() if isinstance(m, Select))
    assert [name for name, p in small.named_parameters() if not p.requires_grad] == [
        "4.conv1.weight"
    ]
    assert all(p.grad is None for p in small.parameters())
    assert not any(
        m.training for m in compact(residual.eval(), some_mask(residual, 0.1), fold).model.modules()
    )


def test_a_compact_network_is_saved_pickled_and_copied():
    model = built("lenet5")
    small = compact(model, some_mask(model, 0.01))
    expected = outputs(small.model)
    file = io.BytesIO()
    torch.save(small.model, file)
    file.seek(0)
    assert torch.equal(outputs(torch.load(file, weights_only=False)), expected)
    for other in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        full = copy.deepcopy(model)
        other.restore(full)
        assert torch.equal(outputs(other.model), expected) and close(outputs(full), expected)


# --- errors ---


@pytest.mark.parametrize(
    "layers, says",
    [
        (
            [nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout())],
            "0.1, a Dropout; it knows Linear, .*Flatten, Sequential and Block",
        ),
        ([nn.Conv2d(2, 2, 3, groups=2)], "0, a Conv2d with groups=2; it must be 1"),
        (
            [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False)],
            "1, a BatchNorm2d with affine=False",
        ),
        (
            [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)],
            "1, a BatchNorm2d with track_running_stats=False",
        ),
        ([nn.Flatten(2), nn.Linear(64, 2)], "0, a Flatten with start_dim=2"),
        ([nn.Linear(8, 2)], "0, a Linear that acts on images; put a Flatten before it"),
        (
            [nn.Flatten(), *[nn.Linear(64, 64)] * 2],
            "2, a Linear whose parameters another layer uses too",
        ),
    ],
)
def test_a_network_it_cannot_read_is_named(layers, says):
    model = nn.Sequential(*layers)
    model.input_shape = (1, 8, 8)
    with pytest.raises(UserError, match=f"cannot read {says}"):
        compact(model, masks.ones(model))


def test_other_errors(residual):
    with pytest.raises(UserError, match="cannot read a Linear; it reads an nn.Sequential"):
        compact(nn.Linear(2, 2), {"weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(UserError, match="another network: it lacks 4.conv1.weight"):
        mask = masks.ones(residual)
        del mask["4.conv1.weight"]
        compact(residual, mask)
    with pytest.raises(UserError, match="another network"):
        compact(residual, masks.ones(residual)).restore(built("lenet5"))
