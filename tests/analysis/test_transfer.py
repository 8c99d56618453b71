"""Expressive force transfer: a network small enough for pencil and paper, conservation, and the
sign of SynFlow's.
"""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panning_core import masks, metrics, models, pruning
from panning_core.analysis import transfer
from tests.conftest import make_residual

LINEAR = torch.tensor([[[1.0, -2.0], [3.0, 0.5]], [[2.0, -1.0], [0.0, 0.0]]], dtype=torch.double)


def linear_net(*weights):
    model = nn.Sequential(
        *(nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights)
    ).double()
    with torch.no_grad():
        for layer, w in zip(model, weights):
            layer.weight.copy_(w)
    return model


def measure(model, old, new, batch):
    seen = transfer.Transfer(model, batch)
    seen(1, old, new, batch)
    return seen, {(row["metric"], row["layer"]): (row["lost"], row["gained"]) for row in seen.rows}


def overall(seen, metric, layer="total"):
    (row,) = [row for row in seen.whole() if (row["metric"], row["layer"]) == (metric, layer)]
    return row


def test_synflow_by_hand():
    """|W1| = 1 2 / 3 .5, |W2| = 2 1, R = 2 (1 + 2) + 1 (3 + .5) = 9.5; without W1's 2, R = 5.5."""
    model = linear_net(LINEAR[0], LINEAR[1][:1])
    old = masks.ones(model)
    new = {**old, "0.weight": torch.tensor([[True, False], [True, True]])}
    seen, row = measure(
        model, old, new, (torch.ones(1, 2, dtype=torch.double), torch.zeros(1, dtype=torch.long))
    )
    assert row["synflow", "0"] == pytest.approx(
        (4.0, 0.0), abs=1e-12
    )  # 2 x 2; the others of the layer stay 2, 3 and .5
    assert row["synflow", "1"] == pytest.approx((0.0, -4.0), abs=1e-12)  # 6 -> 2; 3.5 stays
    assert row["synflow", "total"] == pytest.approx((4.0, -4.0), abs=1e-12)
    assert overall(seen, "synflow")["transfer"] == pytest.approx(-1.0)
    assert [f["R"] for f in seen.follow] == pytest.approx([9.5, 5.5]) and [
        f["round"] for f in seen.follow
    ] == [0, 1]


def test_snip_and_grasp_by_hand():
    """One pixel of 200 and logits / 200: z = w = (ln 2, ln 6), p = (1/4, 3/4), label 0.

    g = (-a, a) with a = 1 - p0 = 3/4; H = p0 a (1 -1 / -1 1), so Hg = 2 p0 a^2 (-1, 1) = 9/32 (-1,
    1). Without the second weight p = (2/3, 1/3), g = (-1/3, .), and of the kept part of g: Hg = 2/9
    . 1/3 (-1, .). The loss is that of the logits as they are, 200 times as large.
    """
    model = linear_net(torch.tensor([[log(2)], [log(6)]], dtype=torch.double))
    old = masks.ones(model)
    batch = torch.tensor([[200.0]], dtype=torch.double), torch.tensor([0])
    seen, row = measure(model, old, {"0.weight": torch.tensor([[True], [False]])}, batch)
    assert row["snip", "0"] == pytest.approx((log(6) * 3 / 4, log(2) * (1 / 3 - 3 / 4)))
    assert row["grasp", "0"] == pytest.approx((log(6) * 9 / 32, log(2) * (2 / 27 - 9 / 32)))
    assert row["synflow", "total"] == pytest.approx((log(6), 0.0), abs=1e-12)
    assert [f["loss"] for f in seen.follow] == pytest.approx([200 * log(3), 0.0], abs=1e-9)
    assert [f["gtg"] for f in seen.follow] == pytest.approx([9 / 8, 1 / 9])
    assert overall(seen, "snip")["transfer"] == pytest.approx(
        log(2) * (1 / 3 - 3 / 4) / (log(6) * 3 / 4)
    )


def test_a_weight_that_comes_back_is_neither_lost_nor_gained():
    """The net of the first test, with W1's 2 away and back again: it returns with its 4, and W2's
    first weight gains its 4 back.
    """
    model = linear_net(LINEAR[0], LINEAR[1][:1])
    full = masks.ones(model)
    less = {**full, "0.weight": torch.tensor([[True, False], [True, True]])}
    batch = torch.ones(1, 2, dtype=torch.double), torch.zeros(1, dtype=torch.long)
    seen = transfer.Transfer(model, batch)
    seen(1, full, less, batch)
    seen(2, less, full, batch)
    back = {
        row["layer"]: (row["lost"], row["gained"], row["returned"])
        for row in seen.rows
        if row["round"] == 2 and row["metric"] == "synflow"
    }
    assert back == {
        "0": pytest.approx((0, 0, 4)),
        "1": pytest.approx((0, 4, 0)),
        "total": pytest.approx((0, 4, 4)),
    }
    whole = overall(seen, "synflow")
    assert (whole["lost"], whole["gained"], whole["returned"], whole["transfer"]) == (
        0,
        0,
        0,
        None,
    )  # what came back was not lost


@pytest.mark.parametrize("method", ["iterative-snip", "panning"])
def test_rounds_add_up(method, lenet300, digits, digits_batch):
    """Mass after = mass before - lost + gained + returned, from round to round and from dense to
    the end.
    """
    seen = transfer.Transfer(lenet300, digits_batch)
    batches = [digits_batch, (digits.train.x[:20], digits.train.y[:20])]
    mask, trace = pruning.prune(lenet300, method, 0.05, batches, rounds=5, observe=seen)
    layers = ["total", "fc1", "fc2", "fc3"]
    assert [(row["round"], row["metric"], row["layer"]) for row in seen.rows] == [
        (t, metric, layer)
        for t in range(1, 6)
        for metric in ("snip", "grasp", "synflow")
        for layer in layers
    ]
    assert [f["round"] for f in seen.follow] == list(range(6))
    first, last = (transfer.forces(lenet300, m, digits_batch) for m in (masks.ones(lenet300), mask))
    for row, (masses, values) in ((seen.follow[0], first), (seen.follow[-1], last)):
        assert {key: row[key] for key in values} == values
        assert all(
            row[f"mass_{metric}"] == pytest.approx(sum(float(s.sum()) for s in scores.values()))
            for metric, scores in masses.items()
        )

    def change(rows):
        return sum(row["gained"] + row["returned"] - row["lost"] for row in rows)

    for metric in ("snip", "grasp", "synflow"):
        rows = [row for row in seen.rows if row["metric"] == metric]
        for layer in layers[1:]:
            before, after = (
                float(masses[metric][f"{layer}.weight"].sum()) for masses, _ in (first, last)
            )
            assert before + change(row for row in rows if row["layer"] == layer) == pytest.approx(
                after, rel=1e-9
            )
            assert before + change([overall(seen, metric, layer)]) == pytest.approx(after, rel=1e-9)
        for t in range(1, 6):
            total, *parts = [row for row in rows if row["round"] == t]
            assert all(
                total[key] == pytest.approx(sum(part[key] for part in parts))
                for key in ("lost", "gained", "returned")
            )
            assert seen.follow[t][f"mass_{metric}"] - seen.follow[t - 1][
                f"mass_{metric}"
            ] == pytest.approx(change([total]), rel=1e-9)
        whole = overall(seen, metric)
        assert (
            whole["transfer"] == pytest.approx(whole["gained"] / whole["lost"])
            and whole["returned"] == 0
        )
    returned = sum(row["returned"] for row in seen.rows)
    assert all(row["lost"] >= 0 for row in seen.rows) and (returned > 0) == any(
        row["revived"] for row in trace
    ) == (method == "panning")


def test_every_round_is_measured_on_the_batch_it_was_made_with(lenet300, digits, digits_batch):
    other = digits.test.x[:20], digits.test.y[:20]
    seen = transfer.Transfer(lenet300, digits_batch)
    before, after = (
        masks.ones(lenet300),
        masks.shuffle(masks.keep_top(metrics.magnitude(lenet300, None, digits_batch), 0.5), 0),
    )
    seen(1, before, after, other)
    assert seen.rows == measure(lenet300, before, after, digits_batch)[0].rows


def test_nothing_lost_is_no_transfer(lenet300, digits_batch):
    full = masks.ones(lenet300)
    seen, row = measure(lenet300, full, full, digits_batch)
    assert (
        all(value == (0.0, 0.0) for value in row.values())
        and overall(seen, "snip")["transfer"] is None
    )


def test_what_is_measured_leaves_no_trace(case, unchanged):
    model, batch = case
    with unchanged(model), torch.no_grad():
        pruning.prune(
            model, "synflow", 0.1, batch, rounds=2, observe=transfer.Transfer(model, batch)
        )


@pytest.mark.parametrize("method", ["random", "synflow", "panning"])
def test_synflow_is_conserved_from_layer_to_layer(method, lenet300, digits_batch):
    seen = transfer.Transfer(lenet300, digits_batch)
    pruning.prune(lenet300, method, 0.02, digits_batch, rounds=6, observe=seen)
    assert (
        len(seen.follow) == 7
        and max(f["conservation"] for f in seen.follow) <= 1e-10
        and seen.follow[-1]["R"] > 0
    )


def test_conservation_also_holds_where_a_network_has_convolutions_and_pools():
    model = models.build("lenet5", (1, 16, 16), 4, seed=0)
    batch = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    seen = transfer.Transfer(model, batch)
    pruning.prune(model, "iterative-snip", 0.05, batch, rounds=3, observe=seen)
    assert max(f["conservation"] for f in seen.follow) <= 1e-10


def never_positive(model, batch, density, seed):
    generator = torch.Generator().manual_seed(seed)
    old = {
        name: torch.rand(w.shape, generator=generator) < 0.9
        for name, w in models.prunable(model).items()
    }
    new = {
        name: m & (torch.rand(m.shape, generator=generator) < density) for name, m in old.items()
    }
    seen, row = measure(model, old, new, batch)
    total = row["synflow", "total"]
    assert all(
        row["synflow", name.removesuffix(".weight")][1] <= 1e-12 * max(total[0], 1e-300)
        for name in new
    )
    assert (overall(seen, "synflow")["transfer"] or 0) <= 1e-12


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.floats(0, 1), st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_synflow_is_never_handed_on_in_a_plain_network(widths, density, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.ReLU())
        ]
        model, x = (
            nn.Sequential(*layers[:-1]).double(),
            torch.randn(3, widths[0], dtype=torch.double),
        )
    never_positive(model, (x, torch.zeros(3, dtype=torch.long)), density, seed)


@given(st.floats(0.1, 0.95), st.integers(0, 10_000))
@settings(deadline=None, max_examples=15)
def test_nor_in_a_residual_one(density, seed):
    x = torch.randn((3, 2, 6, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    never_positive(make_residual(seed), (x, torch.arange(3)), density, seed)
