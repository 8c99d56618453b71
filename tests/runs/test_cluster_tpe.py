"""Search over bits and widths: clusters and densities against slow versions, and the table."""

import copy
import json
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from panning_core import data
from panning_core.data import Split
from panning_core.errors import UserError
from panning_core.methods import mixed_precision, parzen
from panning_core.methods.mixed_precision import BITS, LAYERS, SIZES, WIDTHS
from panning_core.methods.sensitivity import quantised, sensitivity, traces
from panning_core.runs import base, cluster_tpe
from panning_core.runs.cluster_tpe import ClusterTPE

SHORT = {"dataset": "digits", "epochs": 3, "searches": 2, "evaluations": 30}
SPACE = tuple(map(range, (4, 3, 5)))


# --- good and bad ---


@pytest.mark.parametrize(
    "values, count, good, bad",
    [
        ([0.9, 0.89, 0.6, 0.1], 2, [1, 1, 1, 0], [0, 0, 0, 1]),
        # 0.5 is as far from 0.1 as from 0.9: it goes to the earlier centre.
        ([0.9, 0.89, 0.5, 0.1], 2, [1, 1, 0, 0], [0, 0, 1, 1]),
        ([0.9, 0.89, 0.5, 0.1], 3, [1, 1, 0, 0], [0, 0, 0, 1]),
        ([0.9, 0.89, 0.5, 0.1], 1, [1, 1, 1, 1], [1, 1, 1, 1]),
        ([0.3, 0.3, 0.3], 4, [1, 1, 1], [1, 1, 1]),
        # A centre that nothing is left for, and one that overtakes it.
        ([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.45, 0.9], 3, [0, 0, 0, 0, 0, 0, 0, 1], [1] * 6 + [0, 0]),
    ],
)
def test_clusters_are_told_apart_by_their_centres(values, count, good, bad):
    found = parzen.by_clusters(np.array(values), count)
    assert [part.astype(int).tolist() for part in found] == [good, bad]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_clusters_are_those_of_a_slow_version(count):
    generator = random.Random(count)
    for _ in range(30):
        values = [round(generator.gauss(0, 1), 2) for _ in range(generator.randint(1, 25))]
        centres = [float(np.quantile(values, k / max(count - 1, 1))) for k in range(count)]
        for _ in range(100):
            groups = [[] for _ in centres]
            for value in values:
                far = [abs(value - centre) for centre in centres]
                groups[far.index(min(far))].append(value)
            centres = [np.mean(g) if g else c for g, c in zip(groups, centres)]
        labels, found = parzen.clusters(np.array(values), count)
        assert found == pytest.approx(centres)
        assert [sorted(np.array(values)[labels == k]) for k in range(count)] == [
            sorted(group) for group in groups
        ]


def test_the_quantile_takes_the_best_quarter():
    good, bad = parzen.by_quantile(np.array([0.1, 0.9, 0.5, 0.9, 0.2]))
    assert good.astype(int).tolist() == [0, 1, 0, 1, 0] and (good != bad).all()
    assert parzen.by_quantile(np.array([2.0, 2, 2, 2]))[0].tolist() == [True, False, False, False]


# --- densities and proposals ---


def test_densities_are_counts_and_a_prior():
    found = parzen.densities(np.array([[0, 2], [0, 1], [3, 2]]), [4, 3])
    assert [p.tolist() for p in found] == [
        pytest.approx([3 / 7, 1 / 7, 1 / 7, 2 / 7]),
        pytest.approx([1 / 6, 2 / 6, 3 / 6]),
    ]


def test_proposals_are_drawn_from_the_good_and_sorted_by_the_ratio():
    tried = np.array([[0, 0, 4], [0, 1, 4], [1, 2, 0], [2, 2, 1], [3, 1, 1], [0, 2, 4]])
    values = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.1])
    split = lambda v: parzen.by_clusters(v, 2)  # noqa: E731
    drawn = parzen.propose(tried, values, [4, 3, 5], split, np.random.default_rng(0))
    assert drawn.shape == (parzen.CANDIDATES, 3)

    def ratio(candidate):
        product = 1.0
        for place, size in enumerate((4, 3, 5)):
            good = sum(tried[i, place] == candidate[place] for i in (0, 1)) + 1
            bad = sum(tried[i, place] == candidate[place] for i in (2, 3, 4, 5)) + 1
            product *= good / (2 + size) / (bad / (4 + size))
        return product

    found = [ratio(candidate) for candidate in drawn]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]
    many = np.concatenate(
        [
            parzen.propose(tried, values, [4, 3, 5], split, np.random.default_rng(s))
            for s in range(99)
        ]
    )
    # Two of two good ones have 0 at first and 4 at last: (2 + 1) / (2 + 4) and / (2 + 5).
    assert (many[:, 0] == 0).mean() == pytest.approx(3 / 6, abs=0.05)
    assert (many[:, 2] == 4).mean() == pytest.approx(3 / 7, abs=0.05)


def test_one_cluster_prefers_nothing():
    """Good and bad are the same, so the candidates stay in the order in which they were drawn."""
    tried, values = np.array([[0, 1], [1, 1], [3, 0]]), np.array([0.3, 0.2, 0.1])
    split = lambda v: parzen.by_clusters(v, 1)  # noqa: E731
    found = parzen.propose(tried, values, [4, 2], split, np.random.default_rng(1))
    generator, all_of_them = np.random.default_rng(1), parzen.densities(tried, [4, 2])
    columns = [generator.choice(len(p), parzen.CANDIDATES, p=p) for p in all_of_them]
    assert found.tolist() == np.stack(columns, 1).tolist()


# --- searches ---


def value(configuration):
    return -sum((a - b) ** 2 for a, b in zip(configuration, (3, 0, 2)))


RULES = {"random": None, "quantile": parzen.by_quantile}
RULES["cluster"] = lambda values: parzen.by_clusters(values, 3)


@pytest.mark.parametrize("rule", RULES)
def test_a_search_begins_like_all_others_and_repeats_nothing(rule):
    trials = parzen.search(value, SPACE, 40, 10, RULES[rule], False, 5)
    asked = [configuration for configuration, _ in trials]
    assert len(set(asked)) == 40 and all(value(c) == found for c, found in trials)
    assert trials[:10] == parzen.search(value, SPACE, 10, 10, None, False, 5)
    assert trials == parzen.search(value, SPACE, 40, 10, RULES[rule], False, 5)
    assert asked != [c for c, _ in parzen.search(value, SPACE, 40, 10, RULES[rule], False, 6)]
    whole = parzen.search(value, SPACE, 99, 10, RULES[rule], False, 5)
    assert len(whole) == len({c for c, _ in whole}) == 60


def test_a_smaller_space_is_kept_to():
    space = ((1, 3), (0, 2), (2, 4))
    trials = parzen.search(value, space, 8, 3, RULES["cluster"], False, 0)
    assert {c for c, _ in trials} == {(a, b, c) for a in (1, 3) for b in (0, 2) for c in (2, 4)}


def test_densities_find_the_best_sooner_and_get_stuck_where_they_may_repeat():
    def rank(split, repeats, seed):
        asked = [c for c, _ in parzen.search(value, SPACE, 60, 10, split, repeats, seed)]
        return (asked.index((3, 0, 2)) if (3, 0, 2) in asked else 60), len(set(asked))

    arms = [(rule, False) for rule in RULES] + [("cluster", True)]
    ranks = {
        (rule, repeats): np.mean([rank(RULES[rule], repeats, seed) for seed in range(15)], 0)
        for rule, repeats in arms
    }
    assert ranks["random", False][0] == pytest.approx(29.5, abs=12)
    assert max(ranks["quantile", False][0], ranks["cluster", False][0]) < 20
    assert ranks["cluster", True][1] < 40 < ranks["cluster", False][1]


def test_optuna_begins_alike_and_answers_from_memory_are_free():
    calls = []
    space = ((1, 3, 2), (0, 2), (2, 4))
    asked = cluster_tpe.ask_optuna(
        lambda c: calls.append(c) or value(c), space, 25, seed=3
    )  # fmt: skip
    # The whole space has twelve, fewer than it may evaluate.
    start = [c for c, _ in parzen.search(value, space, 12, 20, None, False, 3)]
    assert asked == start and set(asked) == set(calls)
    state = np.random.get_state()[1].tolist()
    asked = cluster_tpe.ask_optuna(value, SPACE, 30, 3)
    assert asked == cluster_tpe.ask_optuna(value, SPACE, 30, 3) and len(set(asked)) == 30
    assert asked[:20] == [c for c, _ in parzen.search(value, SPACE, 20, 20, None, False, 3)]
    assert np.random.get_state()[1].tolist() == state


# --- sensitivity ---


def test_the_number_format():
    w = torch.tensor([0.4, -0.1, 0.2, 0.05, -0.8, 0.3])
    assert quantised(w, 3).tolist() == pytest.approx([8 / 15, 0, 4 / 15, 0, -0.8, 4 / 15])
    # 0.4 / 0.8 is a half, and halves go to the even level.
    assert quantised(w, 2).tolist() == pytest.approx([0, 0, 0, 0, -0.8, 0])
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    for bits in BITS:
        most = 2 ** (bits - 1) - 1
        scale = float(x.abs().max()) / most
        torchs = torch.fake_quantize_per_tensor_affine(x, scale, 0, -most, most)
        assert torch.allclose(quantised(x, bits), torchs, atol=1e-6)


def test_hutchinson_is_exact_for_a_diagonal_and_right_on_average():
    generator = torch.Generator().manual_seed(0)
    diagonal, w = torch.tensor([1.0, 5, -2]), torch.randn(3, generator=generator)
    w.requires_grad_()
    assert traces((diagonal * w * w).sum() / 2, [w], generator, 1) == pytest.approx([4.0])
    a = torch.randn(6, 6, generator=generator)
    a, u, v = a + a.T, torch.zeros(4), torch.zeros(2)
    both = torch.cat([u.requires_grad_(), v.requires_grad_()])
    loss = both @ a @ both / 2
    found = traces(loss, [u, v], generator, 2000)
    spread = float(a.square().sum()) ** 0.5 * 2 / 2000**0.5
    assert found == pytest.approx(
        [float(a[:4, :4].trace()), float(a[4:, 4:].trace())], abs=3 * spread
    )


def test_sensitivity_is_the_mean_trace_times_the_error():
    w = torch.tensor([0.4, -0.1, 0.2, 0.05, -0.8, 0.3])
    error = 0.4**2 + 0.1**2 + 0.2**2 + 0.05**2 + 0.3**2
    assert sensitivity(w, 12.0, 2) == pytest.approx(2 * error)


def test_sensitive_layers_keep_the_upper_bits():
    assert mixed_precision.cut_space([0.5, 0.01, 0.4, -1.0]) == (
        range(1, 5), range(1, 5), range(1, 5), range(3), range(3)
    )  # fmt: skip
    assert [len(c) for c in mixed_precision.cut_space([0.5, 0.01, 0.02, 0.01])] == [4, 3, 3, 3, 3]


# --- the table ---


@pytest.fixture(scope="module")
def trained():
    splits = data.load("digits")
    model = mixed_precision.network(splits, 1)
    mixed_precision.train(model, splits.train, 3, 1)
    return splits, model


@pytest.mark.parametrize(
    "place", [(0, 0, 0, 0, 0), (4, 4, 4, 4, 0), (1, 3, 0, 2, 1), (2, 1, 4, 0, 2)]
)
def test_an_entry_is_the_accuracy_of_that_network(trained, place):
    """Against a copy whose tensors are changed, its units removed one by one."""
    splits, model = trained
    copied = copy.deepcopy(model)
    gone = round((1 - WIDTHS[place[4]]) * 84)
    ranks = {
        unit: float(
            model.fc1.weight[unit].detach().norm() * model.fc2.weight[:, unit].detach().norm()
        )
        for unit in range(84)
    }
    units = [unit for unit in range(84) if unit not in sorted(ranks, key=ranks.get)[:gone]]
    copied.fc1.weight, copied.fc1.bias, copied.fc2.weight = (
        nn.Parameter(tensor.detach())
        for tensor in (model.fc1.weight[units], model.fc1.bias[units], model.fc2.weight[:, units])
    )
    with torch.no_grad():
        for layer, index in zip(LAYERS, place):
            weight = getattr(copied, layer).weight
            weight.copy_(quantised(weight, BITS[index]))
        answers = copied(splits.test.x).argmax(1)
    wanted = float((answers == splits.test.y).double().mean())
    one = mixed_precision.accuracies(model, splits.test, tuple((index,) for index in place))
    assert one.shape == (1,) * 5 and one.item() == wanted
    small = Split(splits.test.x[:50], splits.test.y[:50], 10)
    part = mixed_precision.accuracies(
        model, small, ((place[0],), range(5), (2,), (3,), (0, place[4]))
    )
    alone = tuple((i,) for i in (place[0], 4, 2, 3, place[4]))
    assert part[0, 4, 0, 0, 1] == mixed_precision.accuracies(model, small, alone).item()


def test_rows_are_no_images():
    rows = data.from_arrays(np.eye(4), np.array([0, 1, 0, 1]), np.eye(4), np.array([0, 1, 0, 1]))
    with pytest.raises(UserError, match=r"need images .*, and arrays has inputs \[4\]"):
        mixed_precision.network(rows, 0)


def test_sizes_count_bits_of_weights(trained):
    found = mixed_precision.sizes(trained[1])
    # Kernels of 3 on digits: 6 x 9, 16 x 6 x 9, 84 x 64 and 10 x 84 weights.
    bits = 8 * (54 + 864 + 5376 + 840)
    assert found.shape == SIZES and found[4, 4, 4, 4, 0] == 1
    wanted = (54 * 2 + 864 * 4 + (42 * 64) * 3 + (10 * 42) * 6) / bits
    assert found[0, 2, 1, 3, 2] == pytest.approx(wanted)


# --- what a run says ---


def test_gaps_are_to_the_best_of_all():
    objective = np.zeros(SIZES)
    objective[0, 0, 0, 0, :] = [1.0, 0.999, 0.9]
    other, near, best = (4, 4, 4, 4, 0), (0, 0, 0, 0, 1), (0, 0, 0, 0, 0)
    far = [(4, 4, 4, k, 0) for k in range(4)]
    ended = [other, *far, *[(1, 1, 1, 1, 1)] * 15, near, best]
    never = [other, *far]
    found = cluster_tpe.searched([ended, never], objective)
    assert found["needed"] == (21 + 23) / 2 and found["reached"] == 0.5
    assert found["curve"] == [1.0, 1.0, 1.0, 1.0] and found["distinct"] == (8 + 5) / 2
    assert found["mean_gap"] == pytest.approx(((0.001 + 1) / 2 + (0 + 1) / 2) / 2)
    # Two of 1,875 are close: in random order the first comes, on average, at 1,876 / 3.
    assert found["random_needed"] == pytest.approx(1876 / 3, rel=1e-5)


@pytest.mark.parametrize("rule", ["random", "quantile", "cluster", "optuna"])
def test_a_run_is_repeatable_and_plain(rule):
    run, state = ClusterTPE(**SHORT, rule=rule), torch.get_rng_state()
    found = run.execute(base.Context())
    cluster_tpe.tabulate.cache_clear()
    assert run.execute(base.Context()) == found and torch.equal(torch.get_rng_state(), state)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (
        found["distinct"] == 30
        and len(found["curve"]) == 6
        and found["space"] in (243, 324, 432, 576)
    )
    assert found["mixed_size"] <= found["uniform_size"] and found["space_gap"] >= 0
    assert found["uniform_bits"] in BITS and found["uniform_accuracies"][4] > 0.6
    cut = ClusterTPE(**SHORT, rule=rule, pruned=True).execute(base.Context())
    assert cut["curve"][-1] >= found["space_gap"] - 1e-6 and cut["curve"] != found["curve"]


def test_the_rules_of_a_network_are_one_task():
    runs = [ClusterTPE(seed=seed, rule=rule) for rule in ("random", "optuna") for seed in (0, 1)]
    assert ClusterTPE.tasks(runs, "cpu") == [[runs[0], runs[2]], [runs[1], runs[3]]]
    assert ClusterTPE(dataset="digits").origin()["data"]["title"] == "scikit-learn digits"


def test_a_missing_optuna_is_one_sentence(monkeypatch):
    monkeypatch.delitem(sys.modules, "panning_core.runs.cluster_tpe")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="runs of the kind cluster-tpe need the package optuna"):
        base.kind("cluster-tpe")


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("seed", -1, "seed of cluster-tpe is -1; it must be a whole number from 0"),
        ("epochs", 0, "epochs of cluster-tpe is 0"),
        ("rule", "clusters", "unknown rule 'clusters'; did you mean 'cluster'"),
        ("clusters", 0, "clusters of cluster-tpe is 0; it must be a whole number from 1"),
        ("pruned", 1, "pruned of cluster-tpe is 1; it must be true or false"),
        ("repeats", "no", "repeats of cluster-tpe is 'no'"),
        ("searches", 0, "searches of cluster-tpe is 0"),
        ("evaluations", 20, "evaluations of cluster-tpe is 20; it must be a whole number from 21"),
        ("evaluations", 201, "evaluations of cluster-tpe is 201; at most 200"),
        ("penalty", -0.1, "penalty of cluster-tpe is -0.1; it must be a number of at least 0"),
    ],
)
def test_bad_fields_are_named(field, value, says):
    with pytest.raises(UserError, match=says):
        ClusterTPE(**{field: value})
