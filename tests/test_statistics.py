"""Intervals and tests over seeds: against literal cases, slow definitions and brute force."""

from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panning_core import statistics
from panning_core.statistics import compare, decisive, holm, interval, paired_test, verdict

SEEDS = [0.91, 0.93, 0.90, 0.95, 0.92]


# --- interval ---


@pytest.mark.parametrize("values, expected", [([0.25], (0.25, 0.25, 0.25, 1)), ([0.5] * 4, (0.5, 0.5, 0.5, 4)), ([1, 2], (1.5, 1, 2, 2))])
def test_intervals_known_beforehand(values, expected):
    assert interval(values) == pytest.approx(expected)


def test_an_interval_reads_as_mean_bounds_and_n():
    assert str(interval([0.25])) == "0.2500 [0.2500, 0.2500], n = 1"


@settings(max_examples=25)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12))
def test_an_interval_holds_the_mean_lies_within_the_values_and_is_the_same_again(values):
    found = interval(values)
    assert found.n == len(values) and found.mean == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= found.low <= found.mean + 1e-9 and found.mean - 1e-9 <= found.high <= max(values) + 1e-9
    assert interval(values) == found


def test_an_interval_does_not_hang_on_the_order_of_the_values():
    assert len({interval(values) for values in permutations([28.25, 11.35, 19.95])}) == 1


@pytest.mark.parametrize("n, covered", [(3, 0.73), (5, 0.85)])
def test_how_often_an_interval_over_few_seeds_covers_the_mean(monkeypatch, n, covered):
    """The report says so beside its intervals; 600 draws leave an error of about 0.03."""
    monkeypatch.setattr(statistics, "RESAMPLES", 299)
    draws = np.random.default_rng(1).normal(size=(600, n))
    found = [statistics.interval(values) for values in draws]
    assert np.mean([e.low <= 0 <= e.high for e in found]) == pytest.approx(covered, abs=0.04)


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_an_interval_of_nothing_is_refused(values):
    with pytest.raises(ValueError, match="finite values"):
        interval(values)


def test_an_interval_is_near_a_slow_percentile_bootstrap():
    values = np.random.default_rng(0).normal(10, 2, size=40)
    generator = np.random.default_rng(1)
    means = [generator.choice(values, len(values)).mean() for _ in range(4000)]
    for confidence in (0.95, 0.5):
        found, tail = interval(values, confidence), 50 * (1 - confidence)
        slow = np.percentile(means, [tail, 100 - tail])
        assert [found.low, found.high] == pytest.approx(slow, abs=0.1 * (slow[1] - slow[0]))


# --- paired_test and holm ---


def by_enumeration(differences):
    """Of all 2^n ways to give each difference its sign or the other: the fraction with as large a sum."""
    sums = [abs(sum(d * s for d, s in zip(differences, signs))) for signs in product((1, -1), repeat=len(differences))]
    return sum(s >= abs(sum(differences)) for s in sums) / len(sums)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=2, max_size=8))
def test_the_paired_test_is_every_sign_of_every_pair(pairs):
    a, b = zip(*pairs)
    assert paired_test(a, b) == pytest.approx(by_enumeration([x - y for x, y in pairs]))
    assert paired_test(b, a) == pytest.approx(paired_test(a, b))


@pytest.mark.parametrize("n, least", [(2, 0.5), (3, 0.25), (5, 0.0625), (13, 2 / 2**13)])
def test_the_least_p_of_n_pairs(n, least):
    assert paired_test(np.arange(1, n + 1), np.zeros(n)) == pytest.approx(least)


def test_one_pair_says_nothing_and_unequal_rows_are_refused():
    assert paired_test([1.0], [0.0]) == 1.0
    with pytest.raises(ValueError, match="equal length"):
        paired_test([1.0, 2.0], [1.0])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


@given(st.lists(st.integers(0, 1024), max_size=6), st.integers(1, 1023))
def test_holm_rejects_what_the_step_down_procedure_rejects(numbers, level):
    """From the smallest p on: reject while p <= alpha / (hypotheses left). In 1024ths, so that nothing is rounded."""
    p, rejected = [n / 1024 for n in numbers], set()
    for step, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if numbers[index] * (len(p) - step) > level:
            break
        rejected.add(index)
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= level / 1024} == rejected


# --- compare and verdict ---


def frame(rows):
    return pd.DataFrame(rows, columns=["method", "sparsity", "seed", "test_accuracy"])


def test_compare_pairs_by_seed_where_means_would_mislead():
    """``ours`` is ahead in every seed that both have; the rival's extra seed, an easy one, gives it the better mean."""
    rows = [("ours", 0.9, seed, base + lead) for seed, (base, lead) in enumerate(zip([0.1, 0.3, 0.5, 0.7], [0.01, 0.02, 0.03, 0.02]))]
    rows += [("rival", 0.9, seed, base) for seed, base in enumerate([0.1, 0.3, 0.5, 0.7, 0.99])]
    means = frame(rows).groupby("method").test_accuracy.mean()
    assert means["ours"] < means["rival"]
    (found,) = compare(frame(rows[::-1]), "ours", ["rival"]).itertuples()
    assert found.rival == "rival" and found.difference == pytest.approx(0.02) and found.n == 4
    assert 0.01 - 1e-9 <= found.low <= 0.02 <= found.high <= 0.03 + 1e-9 and found.p == pytest.approx(2 / 2**4)


def test_compare_counts_seeds_and_not_runs():
    """A seed's difference is its mean over the sparsities, (2 + 4) / 2 and (6 + 0) / 2; 0.5 is only ours and does not count."""
    rows = [("ours", 0.9, 0, 2), ("ours", 0.99, 0, 4), ("ours", 0.9, 1, 6), ("ours", 0.99, 1, 0), ("ours", 0.5, 0, 100)]
    rows += [("rival", s, seed, 0) for s in (0.9, 0.99) for seed in (0, 1)]
    (found,) = compare(frame(rows), "ours", ["rival"]).itertuples()
    assert (found.difference, found.low, found.high, found.n, found.p) == (3, 3, 3, 2, 0.5)


def test_compare_corrects_over_its_rivals():
    rows = [("ours", 0.9, seed, a) for seed, a in enumerate(SEEDS)]
    rows += [("worse", 0.9, seed, a - 0.1 - 0.01 * seed) for seed, a in enumerate(SEEDS)]
    rows += [("mixed", 0.9, seed, a + (-1) ** seed * 0.01) for seed, a in enumerate(SEEDS)]
    found = compare(frame(rows), "ours", ["worse", "mixed"])
    assert list(found.rival) == ["worse", "mixed"]
    assert list(found.p) == pytest.approx([0.0625, 1.0]) and list(found.p_holm) == pytest.approx([0.125, 1.0])
    assert verdict(found.low, found.high) == "holds in part"


@pytest.mark.parametrize("low, high, word", [
    ([0.1, 0.2], [0.3, 0.4], "holds"),
    ([0.1, -0.2], [0.3, 0.4], "holds in part"),
    ([0.1, -0.4], [0.3, -0.2], "holds in part"),
    ([-0.4, -0.4], [-0.2, -0.2], "fails"),
    ([-0.4, -0.1], [-0.2, 0.1], "fails"),
    ([-0.1, -0.2], [0.1, 0.2], "undecided"),
    ([0.0, -0.2], [0.1, 0.0], "undecided"),
])
def test_verdicts(low, high, word):
    assert verdict(low, high) == word


def test_no_intervals_give_no_verdict():
    with pytest.raises(ValueError, match="at least one interval"):
        verdict([], [])


@pytest.mark.parametrize("low, high, word", [
    ([0.1, -0.4], [0.3, -0.2], "fails"),
    ([0.1, -0.2], [0.3, 0.4], "holds in part"),
    ([0.1, 0.2], [0.3, 0.4], "holds"),
])
def test_one_better_rival_refutes_a_claim_of_every_one(low, high, word):
    assert verdict(low, high, every=True) == word


@pytest.mark.parametrize("low, high, place", [
    ([0.1, 0.2], [0.3, 0.4], 0),
    ([0.1, -0.2, -0.1], [0.3, 0.4, 0.05], 1),
    ([-0.9, -0.4, -0.5], [0.3, -0.1, -0.2], 2),  # a wide interval around 0 refutes nothing
])
def test_the_verdict_hangs_on_the_interval_least_favourable_to_the_claim(low, high, place):
    assert decisive(low, high) == place
