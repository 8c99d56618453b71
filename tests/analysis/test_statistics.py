"""Intervals and tests over seeds: against literal cases, slow definitions and brute force."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from panning_core.analysis import statistics
from panning_core.analysis.statistics import (
    compare,
    compare_errors,
    decisive,
    holm,
    interval,
    smallest,
    verdict,
)
from panning_core.errors import UserError

SEEDS = [0.91, 0.93, 0.90, 0.95, 0.92]


# --- interval ---


@pytest.mark.parametrize("values, expected", [
    ([0.25], (0.25, 0.25, 0.25, 1)),
    ([0.5] * 4, (0.5, 0.5, 0.5, 4)),
    ([1, 3], (2, 2 - 12.7062, 2 + 12.7062, 2)),  # t of one degree of freedom, standard error 1
    ([1, 2, 3, 4, 5], (3, 3 - 2.776445 * 0.5**0.5, 3 + 2.776445 * 0.5**0.5, 5)),
])  # fmt: skip
def test_intervals_known_beforehand(values, expected):
    assert interval(values) == pytest.approx(expected, rel=1e-5)


def test_an_interval_reads_as_mean_bounds_and_n():
    assert str(interval([0.25])) == "0.2500 [0.2500, 0.2500], n = 1"


def test_an_interval_does_not_hang_on_the_order_of_the_values():
    assert len({interval(values) for values in permutations([28.25, 11.35, 19.95])}) == 1


@pytest.mark.parametrize("n", [3, 5, 10])
def test_an_interval_covers_the_mean_of_normal_data_in_95_of_a_hundred_cases(n):
    """2,000 draws leave an error of about 0.005."""
    draws = np.random.default_rng(1).normal(size=(2000, n))
    found = [interval(values) for values in draws]
    assert np.mean([e.low <= 0 <= e.high for e in found]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_an_interval_of_nothing_is_refused(values):
    with pytest.raises(ValueError, match="finite values"):
        interval(values)


# --- holm ---


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


@given(st.lists(st.integers(0, 1024), max_size=6), st.integers(1, 1023))
def test_holm_rejects_what_the_step_down_procedure_rejects(numbers, level):
    """From the smallest p on: reject while p <= alpha / (hypotheses left). In 1024ths, so that
    nothing is rounded.
    """
    p, rejected = [n / 1024 for n in numbers], set()
    for step, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if numbers[index] * (len(p) - step) > level:
            break
        rejected.add(index)
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= level / 1024} == rejected


# --- compare ---


def frame(rows):
    return pd.DataFrame(rows, columns=["method", "sparsity", "seed", "test_accuracy"])


def test_compare_pairs_by_seed_where_means_would_mislead():
    """``ours`` is ahead in every seed that both have; the rival's extra seed, an easy one, gives it
    the better mean.
    """
    rows = [
        ("ours", 0.9, seed, base + lead)
        for seed, (base, lead) in enumerate(zip([0.1, 0.3, 0.5, 0.7], [0.01, 0.02, 0.03, 0.02]))
    ]
    rows += [("rival", 0.9, seed, base) for seed, base in enumerate([0.1, 0.3, 0.5, 0.7, 0.99])]
    means = frame(rows).groupby("method").test_accuracy.mean()
    assert means["ours"] < means["rival"]
    (found,) = compare(frame(rows[::-1]), "ours", ["rival"]).itertuples()
    assert (found.subject, found.rival, found.sparsity, found.n) == ("ours", "rival", 0.9, 4)
    assert found.difference == pytest.approx(0.02) and found.outcome == "few"
    paired = stats.ttest_1samp([0.01, 0.02, 0.03, 0.02], 0)
    assert found.p == pytest.approx(paired.pvalue) == found.p_holm
    assert (found.low, found.high) == pytest.approx(tuple(paired.confidence_interval()))


def test_compare_never_averages_over_sparsities_and_does_over_runs_of_a_seed():
    rows = [
        ("ours", 0.9, 0, 2),
        ("ours", 0.99, 0, 4),
        ("ours", 0.99, 0, 8),
        ("ours", 0.9, 1, 6),
        ("ours", 0.99, 1, 0),
        ("ours", 0.5, 0, 100),
    ]
    rows += [("rival", s, seed, 0) for s in (0.9, 0.99) for seed in (0, 1)]
    found = compare(frame(rows), "ours", ["rival"])
    assert (
        list(found.sparsity) == [0.9, 0.99]
        and list(found.difference) == [4, 3]
        and list(found.n) == [2, 2]
    )


def test_a_misspelt_name_is_not_left_out_in_silence():
    rows = [(name, 0.9, seed, seed) for name in ("ours", "rival") for seed in range(5)]
    for way in (compare, compare_errors):
        with pytest.warns(UserWarning, match="no run of 'rivals', .* did you mean 'rival'"):
            assert list(way(frame(rows), "ours", ["rival", "rivals", None]).rival) == ["rival"]


def test_all_cells_are_one_family_and_several_can_be_put_together():
    rows = [("ours", s, seed, a) for s in (0.9, 0.99) for seed, a in enumerate(SEEDS)]
    rows += [
        ("low", s, seed, a - 0.1 - 0.01 * seed) for s in (0.9, 0.99) for seed, a in enumerate(SEEDS)
    ]
    rows += [("mixed", 0.9, seed, a + (-1) ** seed * 0.01) for seed, a in enumerate(SEEDS)]
    found = compare(frame(rows), "ours", ["low", "mixed", "absent"])
    assert list(zip(found.rival, found.sparsity)) == [("low", 0.9), ("mixed", 0.9), ("low", 0.99)]
    assert list(found.p_holm) == pytest.approx(holm(found.p)) and set(found.family) == {3}
    assert list(found.outcome) == ["better", "open", "better"]
    twice = statistics.judged(pd.concat([found, found]))
    assert set(twice.family) == {6} and list(twice.p_holm) == pytest.approx(
        holm([*found.p, *found.p])
    )


def test_what_matters_is_a_fifth_of_a_point_or_a_tenth_of_the_error():
    assert [smallest(accuracy) for accuracy in (1.0, 0.98, 0.95, 0.9, 0.5)] == pytest.approx(
        [0.002, 0.002, 0.002, 0.01, 0.05]
    )
    rows = [("ours", 0.9, seed, 0.9) for seed in range(5)] + [
        ("rival", 0.9, seed, 0.905 + 0.0001 * seed) for seed in range(5)
    ]
    (found,) = compare(frame(rows), "ours", ["rival"]).itertuples()
    assert (
        found.p_holm < 1e-4 and found.outcome == "no worse"
    )  # surely below the rival, and surely by less than matters
    (found,) = compare(frame(rows), "ours", ["rival"], margin=lambda accuracy: 0.004).itertuples()
    assert found.outcome == "worse"


@pytest.mark.parametrize(
    "seeds, lead, p, outcome",
    [
        (5, 0.0, 1, "no worse"),
        (5, 0.01, 2 / 32, "no worse"),
        (5, -0.0001, 2 / 32, "no worse"),
        (5, -0.01, 2 / 32, "open"),
        (10, 0.01, 2 / 1024, "better"),
        (10, -0.01, 2 / 1024, "worse"),
    ],
)
def test_of_differences_without_any_spread_only_the_sign_counts(seeds, lead, p, outcome):
    """One image more in each of five seeds is no proof; they differ in the last bit."""
    rows = [("rival", 0.9, seed, 0.9 + seed / 300) for seed in range(seeds)]
    rows += [("ours", *place, accuracy + lead) for _, *place, accuracy in rows]
    (found,) = compare(frame(rows), "ours", ["rival"], margin=lambda accuracy: 0.002).itertuples()
    assert found.p == pytest.approx(p) and found.outcome == outcome


def test_errors_are_compared_by_their_logarithms_so_that_no_sparsity_decides_alone():
    """Half the errors at 90 %, a third more at 99.9 %: the mean accuracy is far lower, the mean log
    error better.
    """
    rows = [("ours", 0.9, seed, 0.99) for seed in range(10)] + [
        ("ours", 0.999, seed, 0.2) for seed in range(10)
    ]
    rows += [("rival", 0.9, seed, 0.98) for seed in range(10)] + [
        ("rival", 0.999, seed, 0.4) for seed in range(10)
    ]
    rows += [("ours", 0.5, 0, 0.99), ("rival", 0.9, 12, 0.1)]
    (found,) = compare_errors(frame(rows), "ours", ["rival", "absent"]).itertuples()
    assert (
        found.difference == pytest.approx(np.log(2) / 2 + np.log(0.6 / 0.8) / 2) and found.n == 10
    )
    assert found.outcome == "better" and found.margin == pytest.approx(np.log(1.1))


# --- verdict ---


def cells(*outcomes, differences=None):
    differences = differences or [0.0] * len(outcomes)
    chances = [{"better": 0.0, "no worse": 0.01}.get(outcome, 1.0) for outcome in outcomes]
    columns = {"difference": differences, "margin": 0.01, "p_margin": chances}
    return pd.DataFrame({"outcome": outcomes, **columns})


@pytest.mark.parametrize("outcomes, word, every, as_good", [
    (["better", "better"], "holds", "holds", "holds"),
    (["better", "no worse"], "holds in part", "holds in part", "holds"),
    (["better", "open"], "holds in part", "holds in part", "undecided"),
    (["no worse", "no worse"], "no worse", "no worse", "holds"),
    (["no worse", "open"], "undecided", "undecided", "undecided"),
    (["open", "open"], "undecided", "undecided", "undecided"),
    (["better", "worse"], "holds in part", "fails", "holds in part"),
    (["no worse", "worse"], "fails", "fails", "holds in part"),
    (["worse", "open"], "fails", "fails", "fails"),
    (["better", "few"], "not judged", "not judged", "not judged"),
    ([], "not judged", "not judged", "not judged"),
])  # fmt: skip
def test_verdicts(outcomes, word, every, as_good):
    for order in (outcomes, outcomes[::-1]):
        assert verdict(cells(*order)) == word and verdict(cells(*order), every=True) == every
        assert verdict(cells(*order), "as good") == as_good
    assert verdict(cells(*outcomes), "as good", every=True) == (
        "fails" if "worse" in outcomes else as_good
    )


def test_one_cell_of_many_that_is_no_worse_by_chance_is_no_part_of_a_claim_to_be_as_good():
    assert verdict(cells("no worse", *["worse"] * 4), "as good") == "holds in part"
    assert verdict(cells("no worse", *["worse"] * 5), "as good") == "fails"
    assert verdict(cells("no worse", *["no worse"] * 5), "as good") == "holds"


def test_the_verdict_hangs_on_the_cell_least_favourable_to_the_claim():
    assert (
        decisive(cells("better", "open", "worse", "worse", differences=[-9, -9, -1, -2])).name == 3
    )
    assert list(
        statistics.ranked(cells("better", "no worse", "open", differences=[-9, 1, 2])).index
    ) == [2, 1, 0]


# --- how often the rule errs, and what it can see ---

NOISE = {
    "normal": lambda draw, size: draw.normal(size=size),
    "heavy tails": lambda draw, size: draw.standard_t(3, size=size) / 3**0.5,
    "a tenth dies": lambda draw, size: (
        0.3 * draw.normal(size=size) - 10 * (draw.random(size) < 0.1)
    ),
}
TIMES = 150


def simulated(lead, seeds, rivals, sparsities, noise="normal", every=True, claim="better"):
    """Verdicts on a subject that is ahead of all rivals by ``lead`` everywhere; 1 is the deviation
    of a paired difference, and what matters.
    """
    draw, words = np.random.default_rng(0), []
    for _ in range(TIMES):
        subject, others = (NOISE[noise](draw, (seeds, n, sparsities)) / 2**0.5 for n in (1, rivals))
        differences = (subject - others + lead).reshape(seeds, -1).T
        words.append(
            verdict(
                statistics.judged(pd.DataFrame([statistics._cell(d, 1.0) for d in differences])),
                claim,
                every,
            )
        )
    return {word: words.count(word) / TIMES for word in set(words)}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("seeds, rivals, sparsities", [(5, 4, 1), (5, 8, 5), (10, 12, 6)])
def test_among_equal_methods_at_most_five_in_a_hundred_verdicts_are_wrong(
    seeds, rivals, sparsities, noise
):
    found = simulated(0, seeds, rivals, sparsities, noise)
    assert (
        found.get("holds", 0) + found.get("holds in part", 0) <= 0.05
        and found.get("fails", 0) <= 0.05
    )


@pytest.mark.parametrize(
    "seeds, rivals, sparsities, lead", [(5, 4, 1, 2.5), (10, 4, 1, 1.5), (10, 12, 6, 2)]
)
def test_four_of_five_true_differences_are_seen(seeds, rivals, sparsities, lead):
    """In deviations of a paired difference: these are the effects that a verdict can be relied on
    to see.
    """
    assert simulated(lead, seeds, rivals, sparsities)["holds"] >= 0.8
    assert simulated(-lead, seeds, rivals, sparsities)["fails"] >= 0.8


def test_what_is_worse_by_what_matters_is_hardly_ever_as_good_in_part():
    found = simulated(-1, 5, 8, 5, every=False, claim="as good")
    assert found.get("holds", 0) + found.get("holds in part", 0) <= 0.05


def test_no_worse_can_be_reached():
    assert simulated(0, 10, 4, 1)["no worse"] >= 0.6


def test_the_spread_is_split_between_groups_and_inside_them():
    """Against the deviations that the numbers were drawn with."""
    draw = np.random.default_rng(0)
    masks, orders = 400, 3
    values = 0.8 + draw.normal(0, 0.03, (masks, 1)) + draw.normal(0, 0.05, (masks, orders))
    runs = pd.DataFrame(
        [(m, o, values[m, o]) for m in range(masks) for o in range(orders)],
        columns=["seed", "order", "test_accuracy"],
    )
    found = statistics.parts(runs, "seed", "order")
    assert (found.groups, found.each) == (masks, orders)
    assert found.between == pytest.approx(0.03, rel=0.15)
    assert found.within == pytest.approx(0.05, rel=0.1)


def test_equal_groups_have_no_spread_between_them_and_one_group_is_refused():
    runs = pd.DataFrame(
        [(m, o, o / 10) for m in range(3) for o in range(3)],
        columns=["seed", "order", "test_accuracy"],
    )
    assert statistics.parts(runs, "seed", "order").between == 0
    with pytest.raises(UserError, match="1 values of seed and 3 of order; both need two"):
        statistics.parts(runs[runs.seed == 0], "seed", "order")


def test_the_critical_difference_is_the_published_one():
    """Demšar 2006, table 5a (two to ten classifiers) and the worked example of section 3.2.2."""
    for names, q in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):
        blocks = names * (names + 1)
        assert statistics.critical_difference(names, blocks) == pytest.approx(q / 6**0.5, abs=5e-4)
    assert statistics.critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)


def test_ranks_count_each_sparsity_the_same_and_leave_out_blocks_that_lack_a_method():
    accuracies = {  # by method, then by seed at 0.9 and 0.99
        "a": ((0.9, 0.9), (0.2, 0.2)),
        "b": ((0.8, 0.9), (0.3, 0.3)),
        "c": ((0.7, 0.7), (0.9, 0.1)),
    }
    rows = [
        {"method": method, "sparsity": sparsity, "seed": seed, "test_accuracy": accuracy}
        for method, levels in accuracies.items()
        for sparsity, values in zip((0.9, 0.99), levels)
        for seed, accuracy in enumerate(values)
    ]
    rows.append({"method": "a", "sparsity": 0.99, "seed": 2, "test_accuracy": 0.99})
    found = statistics.ranks(pd.DataFrame(rows))
    assert found.means.loc["a"].tolist() == [1.25, 2.5] and found.blocks == 4
    assert found.means.loc["b"].tolist() == [1.75, 1.5]
    assert found.means.loc["c"].tolist() == [3, 2]
    assert found.overall["mean"].to_dict() == {"b": 1.625, "a": 1.875, "c": 2.5}
    assert found.overall.n.eq(2).all() and 0.1 < found.p < 1
    with pytest.raises(UserError, match="2 to rank in 4 blocks"):
        statistics.ranks(pd.DataFrame(rows).query("method != 'c'"))


def test_methods_that_are_all_alike_have_ranks_too():
    rows = [
        {"method": m, "sparsity": 0.9, "seed": seed, "test_accuracy": 0.1}
        for m in "abc"
        for seed in range(2)
    ]
    found = statistics.ranks(pd.DataFrame(rows))
    assert found.p == 1 and found.overall["mean"].eq(2).all()


def test_a_group_that_lacks_a_measurement_is_left_out_of_the_parts():
    whole = pd.DataFrame(
        [(m, o, 0.5 + 0.1 * m + 0.02 * o) for m in range(4) for o in range(3)],
        columns=["seed", "order", "test_accuracy"],
    )
    missing = whole[~((whole.seed == 3) & (whole.order == 1))]
    expected = statistics.parts(whole[whole.seed < 3], "seed", "order")
    assert statistics.parts(missing, "seed", "order") == expected
