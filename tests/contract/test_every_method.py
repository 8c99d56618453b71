"""What every method that prunes before training keeps to: one battery over all of them."""

import itertools

import pytest
import torch

from panning_core import masks, models, pruning
from tests.conftest import same

REVIVING = {"force", "panning", "panning-product", "panning-masked", "panning-agent"}
DRAWING = {"random", "ntk-sap", "smart-ratio", "phew"}


@pytest.mark.parametrize(
    "scope, schedule", list(itertools.product(("global", "layerwise"), ("exponential", "linear")))
)
@pytest.mark.parametrize("method", pruning.methods())
def test_every_method_keeps_the_exact_count_and_tells_what_it_did(
    method, scope, schedule, residual, residual_batch
):
    sizes = {name: w.numel() for name, w in models.prunable(residual).items()}
    for density in (0.5, 0.1, 0.03):
        seen = []
        mask, trace = pruning.prune(
            residual,
            method,
            density,
            residual_batch,
            rounds=4,
            scope=scope,
            schedule=schedule,
            observe=lambda *arguments: seen.append(arguments),
        )
        masks.check(residual, mask)
        if scope == "global":
            assert masks.count(mask) == round(density * sum(sizes.values()))
        else:
            assert {name: int(m.sum()) for name, m in mask.items()} == {
                name: round(density * n) for name, n in sizes.items()
            }

        assert [row["round"] for row in trace] == [row[0] for row in seen] == [1, 2, 3, 4]
        before = masks.ones(residual)
        for t, (row, (_, old, new, _)) in enumerate(zip(trace, seen), start=1):
            asked = density ** (t / 4) if schedule == "exponential" else 1 - (1 - density) * t / 4
            assert row["sparsity_asked"] == pytest.approx(1 - asked)
            assert row["sparsity"] == 1 - masks.density(new)
            if scope == "global":
                assert masks.count(new) == round(asked * sum(sizes.values()))
            assert (
                row["effective_sparsity"]
                == pytest.approx(1 - masks.density(masks.effective(residual, new)))
                and row["effective_sparsity"] >= row["sparsity"]
            )
            assert row["layer_density"] == {
                name: float(m.double().mean()) for name, m in new.items()
            }
            assert same(old, before)
            assert masks.count(new) == masks.count(old) - row["removed"] + row["revived"]
            assert row["revived"] == sum(int((new[n] & ~old[n]).sum()) for n in new)
            assert row["kept_mass"].keys() == row["removed_mass"].keys() and row["events"] == []
            assert all(
                value >= 0 for value in [*row["kept_mass"].values(), *row["removed_mass"].values()]
            )
            if method not in REVIVING:
                assert row["revived"] == 0 and all((old[n] | ~new[n]).all() for n in new)
            before = new
        assert same(before, mask) and trace[-1]["sparsity_asked"] == 1 - density


@pytest.mark.parametrize("method", pruning.methods())
def test_every_method_only_reads_the_network_and_is_a_function_of_its_seed(method, case, unchanged):
    model, batch = case
    with unchanged(model):
        mask, trace = pruning.prune(model, method, 0.1, batch, rounds=3, seed=5)
    torch.manual_seed(99)
    with torch.no_grad():
        again, trace_again = pruning.prune(model, method, 0.1, batch, rounds=3, seed=5)
    other, _ = pruning.prune(model, method, 0.1, batch, rounds=3, seed=6)
    assert same(mask, again) and trace == trace_again
    assert same(mask, other) == (method not in DRAWING)


@pytest.mark.parametrize("method", pruning.methods())
def test_every_method_reaches_both_ends_of_density(method, residual, residual_batch):
    for kept in (
        3 if method in ("panning-agent", "phew") else 1,
        557,
    ):  # the least of these two is a path
        mask, _ = pruning.prune(residual, method, kept / 557, residual_batch, rounds=3)
        assert masks.count(mask) == kept and masks.size(mask) == 557


@pytest.mark.parametrize("scope", ["global", "layerwise", "units"])
@pytest.mark.parametrize("density", [0.7, 0.4])
@pytest.mark.parametrize("method", pruning.methods())
def test_every_method_can_count_effective_weights(method, density, scope, residual, residual_batch):
    seen = []
    mask, trace = pruning.prune(
        residual,
        method,
        density,
        residual_batch,
        rounds=3,
        scope=scope,
        effective=True,
        observe=lambda *told: seen.append(told),
    )
    masks.check(residual, mask)
    assert same(mask, masks.effective(residual, mask)) and 0 < masks.count(mask) <= round(
        density * 557
    )
    assert (
        trace[-1]["sparsity"]
        == trace[-1]["effective_sparsity"]
        == pytest.approx(1 - masks.density(mask))
    )
    assert same(seen[-1][2], mask) and trace[-1]["sparsity_asked"] == 1 - density
    plain = []
    pruning.prune(
        residual,
        method,
        density,
        residual_batch,
        rounds=3,
        scope=scope,
        observe=lambda *told: plain.append(told),
    )
    assert all(
        same(one[2], two[2]) for one, two in zip(seen[:2], plain[:2])
    )  # only the last round is another
