"""Drawings of a sweep: what is compared with what, and that names do not cover each other."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from panning_core.analysis import statistics
from panning_core.reporting import figures, names, sweeps, tables

ERRORS = {  # at 0.9 and 0.99
    "snip": (0.02, 0.40),
    "grasp": (0.04, 0.50),
    "synflow": (0.04, 0.20),
    "panning": (0.01, 0.40),
    "random": (0.03, 0.90),
}


@pytest.fixture
def runs():
    """Five seeds with the same error each, but for a hair."""
    rows = [
        {
            "method": method,
            "sparsity": sparsity,
            "seed": seed,
            "test_accuracy": 1 - error * (1 + seed / 1000),
            "kept_weights": 100,
            "effective_weights": 90,
        }
        for method, errors in ERRORS.items()
        for sparsity, error in zip((0.9, 0.99), errors)
        for seed in range(5)
    ]
    return pd.DataFrame(rows)


def test_each_sparsity_has_its_own_best_available_method_whose_errors_are_one(runs):
    assert sweeps.references(runs) == {0.9: "snip", 0.99: "synflow"}
    cells = sweeps.ratios(runs, ["panning", "snip"])
    table = sweeps.ratio_table(runs, cells)
    assert table.loc["panning"].tolist() == pytest.approx([0.5, 2])
    assert table.loc["snip"].tolist() == pytest.approx([1, 2])
    assert table.loc["synflow"].isna().tolist() == [True, False]  # at 0.9 it was not asked for
    assert len(cells) == 3 and cells.family.eq(3).all()


def test_what_is_far_off_is_named_and_not_drawn(runs):
    assert sweeps.beyond(runs) == ["random"]
    assert sweeps.words(runs).endswith("4 times the errors somewhere: random.")
    figure = sweeps.accuracy(runs, list(ERRORS))
    left, right = ([text.get_text() for text in panel.texts] for panel in figure.axes)
    assert "random" not in left and "random" in right and "Panning (staged, sum)" in left
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [
        "90 %\nn = 5\nSNIP",
        "99 %\nn = 5\nSynFlow",
    ]
    plt.close(figure)


def test_a_metric_of_the_users_own_is_drawn_last():
    found = sweeps.ordered(["mine", "synflow", "mine", "panning", "snip"])
    assert found == [m for m in names.METHODS if m in found] + ["mine"] and len(found) == 4


def test_a_front_stands_side_by_side_and_one_with_fewer_sparsities_is_narrower(runs):
    figure = sweeps.front({"one": runs, "two": runs[runs.sparsity == 0.9]})
    one, two = figure.axes
    assert [panel.get_title() for panel in (one, two)] == ["one", "two"]
    assert one.get_position().width > 1.4 * two.get_position().width
    assert one.get_position().y0 == two.get_position().y0 and not two.get_ylabel()
    plt.close(figure)


def test_ranks_are_drawn_as_they_are_told(runs):
    found = statistics.ranks(runs)
    figure = sweeps.ranks(found)
    assert [t.get_text() for t in figure.axes[0].texts][:2] == ["1.0", "2.5"]  # of Panning
    assert "difference 1.9 over 10 blocks" in sweeps.rank_words(found)
    plt.close(figure)


def test_the_verdicts_at_each_sparsity_stand_beside_a_mean(runs):
    cells = statistics.compare(runs, "panning", ["snip", "synflow"])
    assert tables.marks(cells[cells.rival == "synflow"]) == "▲▼"
    assert sweeps.at_each(cells) == (
        " Accuracy at 90 %, 99 % alone, against SNIP ▲≈, SynFlow ▲▼ (·: open)."
    )


def test_names_are_moved_apart_as_little_as_needed_and_keep_their_order():
    assert figures.apart([0.5, 0.1], 0.2).tolist() == [0.5, 0.1]
    np.testing.assert_allclose(figures.apart([0.5, 0.5, 0.0], 0.2), [0.4, 0.6, 0.0], atol=1e-9)
    moved = figures.apart(np.linspace(0, 0.1, 7)[::-1], 0.1)
    assert (np.diff(moved) <= -0.1 + 1e-9).all() and moved.mean() == pytest.approx(0.05)
