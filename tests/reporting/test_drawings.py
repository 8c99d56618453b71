"""Drawings of single studies: what stands where, and what is left out."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from panning_core.analysis import statistics
from panning_core.reporting import figures, force, orders, policies, sweeps


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(panel):
    return [text.get_text() for text in panel.texts]


@pytest.mark.parametrize("across", [False, True])
def test_a_bar_reaches_from_low_to_high_and_no_further_than_values_do(across):
    found = statistics.intervals([[40, 50, 60], [97, 100, 100]], 0, 100)
    panel = plt.figure().subplots()
    figures.bars(panel, [1, 2], found, across=across, color="red", markersize=9)
    line, _, (drawn,) = panel.containers[0]
    assert line.get_marker() == "o" and line.get_markersize() == 9
    steps = slice(None, None, -1 if across else 1)
    assert line.get_xydata()[:, steps].tolist() == [[1, 50], [2, 99]]
    (first, second) = (bar[:, steps] for bar in drawn.get_segments())
    low, high = statistics.interval([40, 50, 60])[1:3]
    np.testing.assert_allclose(first, [[1, low], [1, high]])
    assert second[1].tolist() == [2, 100] and second[0, 1] < 97


def test_an_end_that_leaves_out_its_mean_is_drawn_as_no_bar():
    panel = plt.figure().subplots()
    figures.bars(panel, [0], statistics.intervals([[0.02, 0.04]], 0.1, 100))
    ((below, above),) = panel.containers[0][2][0].get_segments()
    assert below[1] == pytest.approx(0.03) and above[1] > 0.1


def test_a_band_is_a_line_and_its_intervals_in_one_colour():
    found = statistics.intervals([[1, 3], [2, 4]])
    panel = plt.figure().subplots()
    figures.band(panel, [10, 20], found, color="blue")
    assert panel.lines[0].get_xydata().tolist() == [[10, 2], [20, 3]]
    (shade,) = panel.collections
    heights = shade.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (found.low.min(), found.high.max())
    assert shade.get_facecolor()[0].tolist() == [0, 0, 1, 0.2]


def test_of_force_what_has_lost_all_of_it_is_not_drawn():
    ways = {"SNIP": (1, 0.5), "SynFlow, 1 round": (1, 0), "FORCE-100": (4, 2, 1)}
    rows = [
        {"how": how, "key": how, "round": k, "sparsity_now": 0.9 * (k > 0), "mass": left}
        for how, values in ways.items()
        for k, left in enumerate(values)
    ]
    figure = force.traces(
        {"mass": "one", "twice": "two"},
        pd.DataFrame(rows).assign(twice=lambda frame: frame.mass),
        dict.fromkeys(ways, "red"),
    )
    assert texts(figure.axes[0]) == ["all taken over", "SNIP", "FORCE", "as their number"]
    one_step = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_ydata().tolist() for line in one_step] == [[0.5]]


def test_a_layer_that_gained_stands_right_of_a_hundred_per_cent():
    growth = pd.DataFrame(
        {"how": ["a", "a"], "metric": "snip", "layer": ["fc1", "fc2"], "growth": [-0.75, 0.5]}
    )
    panels = force.layers(growth, ["a"], ["snip", "grasp"]).axes
    drawn = [float(c.get_offsets()[0, 0]) for c in panels[0].collections]
    assert drawn == [25, 150] and panels[0].get_xlim()[1] > 150


def test_the_difference_to_a_rival_is_of_the_same_network_and_right_is_better():
    rows = [
        {"variant": v, "sparsity": 0.9, "seed": s, "return": r, "share": 0.5, "test_accuracy": a}
        for v, s, r, a in (
            ("agent", 0, -10, 0.9), ("agent", 1, -30, 0.8),
            ("rival", 0, -15, 0.8), ("rival", 1, -35, 0.6), ("rival", 2, 99, 0.1),
        )
    ]  # fmt: skip
    figure = policies.compared(pd.DataFrame(rows), "agent", ["rival"])
    returns, _, errors = figure.axes
    assert returns.lines[0].get_xdata().tolist() == [5]
    assert errors.lines[0].get_xdata().tolist() == pytest.approx([0.5])
    assert errors.xaxis_inverted() and not returns.xaxis_inverted()


def test_fewer_than_five_are_told_from_the_lowest_to_the_highest():
    assert policies.told(pd.Series([0.2, 0.4]), 100) == "30.00 [20.00, 40.00]"
    assert policies.told(pd.Series([-2.0]), 1) == "-2.00"
    assert policies.spread([1, 2, 3, 4, 5]).high > 4


def test_places_share_what_is_equal_and_leave_out_where_a_method_is_missing():
    frame = pd.DataFrame(
        [("snip", 0.9, 50), ("grasp", 0.9, 50), ("snip", 0.99, 10), ("grasp", 0.99, 20)]
        + [("snip", 0.999, 5)],
        columns=["method", "sparsity", "accuracy"],
    )
    (panel,) = orders.places({"one": frame}, ["snip", "grasp"]).axes
    drawn = [line.get_ydata().tolist() for line in panel.lines]
    assert drawn == [[1.5, 2], [1.5, 1]] and texts(panel) == ["SNIP", "GraSP"]


def test_published_accuracies_are_interpolated_in_the_logarithm_of_the_density():
    curves = pd.DataFrame({"method": "snip", "sparsity": [0.9, 0.999], "accuracy": [80.0, 60.0]})
    assert orders.interpolated(curves, 0.99) == {"snip": pytest.approx(70)}
    assert orders.interpolated(curves, 0.5) == {}


def test_four_pairs_of_trainings_are_drawn_in_two_rows_with_their_names():
    means = pd.DataFrame({"before": [50, 60], "after": [70, 80]}, index=["snip", "force"])
    pair = {"means": means, "short": "s", "longer": "l", "title": "t"}
    panels = orders.agreement([pair] * 4).axes
    assert len(panels) == 6 and texts(panels[3]) == ["SNIP", "FORCE"] and not texts(panels[4])


def test_a_count_of_rounds_that_fails_stands_at_the_edge_as_a_number():
    rows = [
        {"method": "synflow", "sparsity": s, "took": t, "seed": k, "test_accuracy": 1 - e - k / 1e4}
        for s, t, e in ((0.9, 1, 0.9), (0.9, 10, 0.04), (0.9, 100, 0.03), (0.99, 100, 0.3))
        for k in range(3)
    ]
    (panel,) = sweeps.rounds(pd.DataFrame(rows)).axes
    assert panel.get_title() == "sparsity 90 %" and "SynFlow: 90 % ↑" in texts(panel)
    assert np.isclose(panel.get_ylim()[1], 1.25 * 4.01)
