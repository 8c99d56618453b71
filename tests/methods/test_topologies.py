"""Topologies: exact counts, literal tables for the smart ratio, and for PHEW whole paths with the
published odds.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panning_core import masks, models
from panning_core.compaction import Select
from panning_core.errors import UserError
from panning_core.methods import phew, smart_ratio
from tests.conftest import make_residual

BOTH = pytest.mark.parametrize("topology", [smart_ratio.smart_ratio, phew.phew])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def total(model):
    return sum(w.numel() for w in models.prunable(model).values())


def kept_by(topology, model, count, seed=0):
    return masks.keep_top(topology(model, count, seeded(seed)), count / total(model))


def counts(mask):
    return [int(m.sum()) for m in mask.values()]


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def sequential(*layers, shape, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in layers:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    model = nn.Sequential(*layers)
    model.input_shape = shape
    return model


def mlp(*widths, seed=0):
    return sequential(
        *(layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())),
        shape=widths[:1],
        seed=seed,
    )


def built(name, shape):
    return models.build(name, shape, 10, seed=0)


# --- both ---


@BOTH
def test_a_topology_scores_every_weight_and_leaves_no_trace(topology, case, unchanged):
    model, _ = case
    count = total(model) // 5
    with unchanged(model):
        scores = topology(model, count, seeded(1))
    assert {name: s.shape for name, s in scores.items()} == {
        name: w.shape for name, w in models.prunable(model).items()
    }
    assert list(scores) == list(models.prunable(model)) and all(
        s.dtype == torch.double and not s.requires_grad for s in scores.values()
    )
    flat = masks.flatten(scores)
    assert (
        int((flat >= 1).sum()) == count
        and 0 <= flat.min()
        and flat.max() <= 2
        and len(flat.unique()) == len(flat)
    )
    assert masks.count(masks.keep_top(scores, count / total(model))) == count
    with torch.no_grad():
        assert equal(topology(model, count, seeded(1)), scores)
    assert not equal(topology(model, count, seeded(2)), scores)


@BOTH
def test_a_generator_gives_something_else_the_second_time(topology, residual):
    generator = seeded(0)
    assert not equal(topology(residual, 99, generator), topology(residual, 99, generator))


WIDTHS = st.lists(st.integers(2, 5), min_size=2, max_size=5)


@BOTH
@given(WIDTHS, st.floats(0, 1), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_exactly_so_many_whatever_the_count(topology, widths, share, seed):
    """From one path to all weights; widths of 1 leave some counts without any paths."""
    model = mlp(*widths, seed=seed)
    least = len(widths) - 1
    count = least + round(share * (total(model) - least))
    mask = kept_by(topology, model, count, seed)
    assert masks.count(mask) == count
    if topology is phew.phew:
        assert equal(masks.effective(model, mask), mask)


# --- smart ratio ---


@pytest.mark.parametrize(
    "count, expected",
    [
        (
            26_620,
            [24_742, 1_578, 300],
        ),  # 300 of the last; 12 * 235,200 : 6 * 30,000 of the other 26,320
        (5_324, [4_723, 301, 300]),
        (266, [125, 8, 133]),  # the last takes half of the budget and not 300
        (3, [2, 0, 1]),
        (1, [1, 0, 0]),
        (
            255_300,
            [235_200, 19_800, 300],
        ),  # 239,712 : 15,288, and what is too much for the first goes to the second
        (266_000, [235_200, 30_000, 800]),  # what no other layer holds goes to the last
        (266_200, [235_200, 30_000, 1_000]),
    ],
)
def test_smart_ratio_of_lenet300(count, expected):
    assert (
        counts(kept_by(smart_ratio.smart_ratio, built("lenet300", (1, 28, 28)), count)) == expected
    )


def plain(norm):
    """Layers of 36, 144, 288 and 80 weights."""
    widths = [(1, 4), (4, 4), (4, 8)]
    layers = [
        layer
        for a, b in widths
        for layer in (nn.Conv2d(a, b, 3, padding=1), *[nn.BatchNorm2d(b)] * norm, nn.ReLU())
    ]
    return sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10), shape=(1, 6, 6)
    )


@pytest.mark.parametrize(
    "norm, count, expected",
    [
        (True, 24 + 56, [30, 18, 8, 24]),  # 20/1 * 36 : 12/4 * 144 : 6/9 * 288
        (False, 24 + 58, [10, 24, 24, 24]),  # 20 * 36 : 12 * 144 : 6 * 288
        (
            True,
            24 + 168,
            [36, 108, 24, 24],
        ),  # 90 : 54 : 24, and what is too much for the first goes to the second
        (True, 24 + 336, [36, 144, 156, 24]),  # 180 : 108 : 48
        (True, 500 + 24, [36, 144, 288, 56]),
        (True, 548, [36, 144, 288, 80]),
    ],
)
def test_smart_ratio_of_a_vgg_and_of_other_convolutions(norm, count, expected):
    assert counts(kept_by(smart_ratio.smart_ratio, plain(norm), count)) == expected


def test_smart_ratio_of_a_residual_network(residual):
    """Layers of 72, 180, 225, 20 and 60 weights, 30 : 20 : 12 : 6 in order; it has BatchNorm and is
    no VGG.
    """
    assert counts(kept_by(smart_ratio.smart_ratio, residual, 18 + 143)) == [36, 60, 45, 2, 18]


def test_smart_ratio_of_a_single_layer():
    assert counts(kept_by(smart_ratio.smart_ratio, mlp(5, 4), 17)) == [17]


def test_smart_ratio_takes_every_place_of_a_layer_equally_often():
    drawn = [kept_by(smart_ratio.smart_ratio, mlp(6, 5, 4), 16, seed) for seed in range(1000)]
    assert {tuple(counts(mask)) for mask in drawn} == {(10, 6)}
    for name, odds in {"0.weight": 10 / 30, "2.weight": 6 / 20}.items():
        often = sum(masks.numbers(mask[name]) for mask in drawn) / len(drawn)
        assert (often - odds).abs().max() < 5 * (odds * (1 - odds) / len(drawn)) ** 0.5


@pytest.mark.parametrize("count", [-1, 0, 51])
def test_smart_ratio_refuses_a_count_that_there_is_not(count):
    with pytest.raises(UserError, match=f"cannot keep {count} weights of a network that has 50"):
        smart_ratio.smart_ratio(mlp(6, 5, 4), count, seeded(0))


# --- PHEW: whole paths ---


@pytest.mark.parametrize(
    "name, shape, count",
    [
        ("lenet300", (1, 8, 8), 3),
        ("lenet300", (1, 8, 8), 50),
        ("lenet300", (1, 8, 8), 10_000),
        ("lenet300", (1, 8, 8), 50_199),
        ("lenet300", (1, 8, 8), 50_200),
        ("lenet5", (1, 28, 28), 4),
        ("lenet5", (1, 28, 28), 431),
        ("lenet5", (1, 28, 28), 43_050),
        ("resnet20", (1, 8, 8), 18),
        ("resnet20", (1, 8, 8), 400),
        ("resnet20", (3, 8, 8), 27_000),
        ("vgg11", (3, 32, 32), 200),
    ],
)
def test_phew_keeps_exactly_so_many_and_all_of_them_on_paths(name, shape, count):
    """The deep ones at few weights leave many walks over channels without a pixel: 2x2 maps in
    VGG-11, ResNet-20 on the digits.
    """
    model = built(name, shape)
    mask = kept_by(phew.phew, model, count)
    assert masks.count(mask) == count and equal(masks.effective(model, mask), mask)


@given(st.integers(0, 1000), st.floats(0, 1), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_phew_of_a_residual_network(weights, share, seed):
    """Down to 3 weights: convolution, shortcut and last layer."""
    model = make_residual(weights)
    count = 3 + round(share * (total(model) - 3))
    mask = kept_by(phew.phew, model, count, seed)
    assert masks.count(mask) == count and equal(masks.effective(model, mask), mask)


def test_the_weights_reached_first_are_whole_paths():
    """So the scores fall in the order of the walks: any number of first walks is effective by
    itself.
    """
    model = mlp(30, 40, 20, 10)
    scores = phew.phew(model, 300, seeded(0))
    sizes = [
        count
        for count in range(301)
        if equal(masks.effective(model, mask := masks.keep_top(scores, count / total(model))), mask)
    ]
    assert sizes[:2] == [0, 3] and len(sizes) > 100 and max(np.diff(sizes)) == 3


@pytest.mark.parametrize(
    "model, count, says",
    [
        (mlp(6, 5, 4), 1, "from 2 to 50 weights; got 1"),
        (mlp(6, 5, 4), 51, "got 51"),
        (make_residual(), 2, "from 3 to 557 weights"),
        (
            sequential(
                nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2, 3), shape=(1, 1, 1)
            ),
            9,
            "from 2 to 8 weights",
        ),  # 16 meet nothing but padding
        (mlp(1, 2, 2, 1), 4, "found no 4 weights"),
        (sequential(Select(torch.arange(2)), nn.Linear(2, 3), shape=(4,)), 3, "Select"),
        (sequential(nn.Linear(4, 3), nn.Tanh(), shape=(4,)), 2, "cannot read 1, a Tanh"),
    ],
)
def test_phew_refuses(model, count, says):
    with pytest.raises(UserError, match=says):
        phew.phew(model, count, seeded(0))


def test_phew_goes_round_weights_that_meet_only_padding():
    model = sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2, 3), shape=(1, 1, 1)
    )
    mask = kept_by(phew.phew, model, 8)["0.weight"]
    assert mask[:, :, 1, 1].all() and mask.sum() == 2


def test_phew_takes_weights_of_zero_last():
    model = mlp(8, 6, 5)
    zero = (
        torch.arange(6)[:, None] + torch.arange(8)
    ) % 2 == 0  # a checkerboard: no unit is without a way
    with torch.no_grad():
        model[0].weight[zero] = 0
    assert equal(
        kept_by(phew.phew, model, int((~zero).sum()) + 30),
        {"0.weight": ~zero, "2.weight": torch.ones(5, 6, dtype=torch.bool)},
    )
    with torch.no_grad():
        model[0].weight.zero_()
    assert masks.count(masks.effective(model, kept_by(phew.phew, model, 20))) == 20


def test_phew_knows_neither_the_scale_nor_the_sign_of_a_layer(residual):
    scores = phew.phew(residual, 100, seeded(3))
    with torch.no_grad():
        for index, weight in enumerate(models.prunable(residual).values()):
            weight.mul_((-2.0) ** index)
    assert equal(phew.phew(residual, 100, seeded(3)), scores)


# --- PHEW: the odds of a walk, against loops over the weights ---


@pytest.fixture
def recorded(monkeypatch):
    """What phew's walks visited, in batches: forward, backward, forward, ..."""
    walks, walk = [], phew._walk
    monkeypatch.setattr(phew, "_walk", lambda *how: walks.append(walk(*how)) or walks[-1])
    monkeypatch.setattr(phew, "_WALKS", 40_000)
    return walks


def check(visits, expected, walks):
    """Frequencies within 5 standard deviations of the odds."""
    expected = expected.flatten().numpy()
    often = np.bincount(visits, minlength=len(expected)) / walks
    assert (
        expected.sum() == pytest.approx(1) and (expected > 0.05).any() and (expected < 0.005).any()
    )
    assert (np.abs(often - expected) <= 5 * (expected * (1 - expected) / walks) ** 0.5 + 1e-9).all()


def test_walks_follow_the_l1_norms(recorded):
    model = sequential(
        nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2), shape=(2, 3, 3)
    ).double()
    with torch.no_grad():
        for weight in models.prunable(model).values():
            weight.copy_(torch.randn(weight.shape, generator=seeded(5), dtype=torch.double) ** 3)
    phew.phew(model, 20, seeded(0))
    conv, linear = (
        w.detach().abs() for w in models.prunable(model).values()
    )  # [3, 2, 2, 2], [2, 12]
    kernels = conv.sum((2, 3))

    forward = recorded[0]
    step, last = torch.zeros_like(conv), torch.zeros_like(linear)
    for c, o in itertools.product(range(2), range(3)):
        reach = 1 / 2 * kernels[o, c] / kernels[:, c].sum()
        step[o, c] = reach * conv[o, c] / kernels[o, c]
        features = slice(4 * o, 4 * o + 4)
        last[:, features] += reach * linear[:, features] / linear[:, features].sum()
    check(forward[:, 0], step, len(forward))
    check(forward[:, 1] - 24, last, len(forward))

    backward = recorded[1][:, ::-1]
    step, last = torch.zeros_like(conv), torch.zeros_like(linear)
    for out, f in itertools.product(range(2), range(12)):
        last[out, f] = 1 / 2 * linear[out, f] / linear[out].sum()
        for c in range(2):
            step[f // 4, c] += (
                last[out, f]
                * kernels[f // 4, c]
                / kernels[f // 4].sum()
                * conv[f // 4, c]
                / kernels[f // 4, c]
            )
    check(backward[:, 0], step, len(backward))
    check(backward[:, 1] - 24, last, len(backward))

    for walks in (
        forward,
        backward,
    ):  # the feature is one of the channel to which the convolution led
        assert ((walks[:, 1] - 24) % 12 // 4 == walks[:, 0] // 8).all()


def test_walks_take_branch_and_shortcut_alike(recorded, residual):
    phew.phew(residual, 50, seeded(0))
    ends = np.cumsum([w.numel() for w in models.prunable(residual).values()])
    for walks in recorded[:2]:
        crossed = np.stack(
            [
                ((walks >= 0) & (np.searchsorted(ends, walks, side="right") == layer)).sum(1)
                for layer in range(5)
            ],
            1,
        )
        assert set(map(tuple, crossed.tolist())) == {(1, 1, 1, 0, 1), (1, 0, 0, 1, 1)}
        assert abs(crossed[:, 3].mean() - 0.5) < 5 * 0.5 / len(walks) ** 0.5


def test_forward_and_backward_walks_take_turns():
    """Half of the inputs are avoided by backward walks, half of the outputs by forward walks; a
    walk that begins there brings one of their weights.
    """
    model = mlp(60, 50, 60)
    with torch.no_grad():
        model[0].weight[:, 30:] = 1e-9
        model[2].weight[30:] = 1e-9
    mask = kept_by(
        phew.phew, model, 120
    )  # of some 60 walks 30 are forward, and 15 begin at an avoided input
    assert 7 <= mask["0.weight"][:, 30:].sum() <= 23 and 7 <= mask["2.weight"][30:].sum() <= 23


# --- PHEW: the end ---


def test_no_walk_is_cut(monkeypatch):
    """What walks bring is effective without any repair."""
    visits, visit = [], phew._visit
    monkeypatch.setattr(phew, "_visit", lambda *how: visits.append(visit(*how)) or visits[-1])
    model = mlp(30, 40, 20, 10)
    for count in range(100, 120):
        phew.phew(model, count, seeded(count))
    assert len(visits) == 20
    for places in visits:
        mask = masks.unflatten(
            torch.zeros(total(model), dtype=torch.bool).index_fill(
                0, torch.from_numpy(places), True
            ),
            models.prunable(model),
        )
        assert masks.count(masks.effective(model, mask)) == len(places)


def test_what_walks_never_bring_is_filled_in_proportion_to_the_weights():
    model = mlp(1, 5, 5, 1)
    with torch.no_grad():
        model[2].weight.copy_(torch.where(torch.arange(5) % 2 == 0, 1e-12, 9e-12)).fill_diagonal_(
            1.0
        )
    filled = [kept_by(phew.phew, model, 16, seed)["2.weight"] for seed in range(100)]
    assert all(mask.diagonal().all() and mask.sum() == 6 for mask in filled)
    heavy = sum(int(mask[:, 1::2].sum() - 2) for mask in filled)  # 8 of 9e-12 and 12 of 1e-12
    assert abs(heavy / 100 - 72 / 84) < 5 * (72 * 12 / 84**2 / 100) ** 0.5


@pytest.mark.parametrize("seed", range(8))
def test_phew_begins_anew_where_walks_leave_no_room(seed):
    """Two walks through 1-2-2-1 that share a weight hold 5; no sixth alone completes a path, yet
    two that share none are 6.
    """
    model = mlp(1, 2, 2, 1)
    mask = kept_by(phew.phew, model, 6, seed)
    assert masks.count(masks.effective(model, mask)) == 6
