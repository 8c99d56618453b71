"""Random pruning of a two-layer network on a signal in noise: exact cases and closed forms."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from panning_core.errors import UserError
from panning_core.runs import base
from panning_core.runs import signal_noise as sn
from panning_core.runs.signal_noise import SignalNoise

SMALL = SignalNoise(classes=3, inputs=200, width=4, samples=12, lr=0.05, steps=400)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def parts(run):
    """Data, initial weights and mask of a run."""
    generator = seeded(run.seed)
    x, y = sn.draw(run, run.samples, generator)
    return x, y, sn.initial(run, generator), sn.masked(run, generator)


def dense(run, x, y, weights):
    """Descent of autograd without any mask."""
    w, taken = weights.clone().requires_grad_(), 0
    while taken < run.steps:
        output = (x @ w.T).relu().view(len(x), run.classes, run.width).sum(2)
        loss = functional.cross_entropy(output, y)
        if loss <= run.stop:
            break
        (gradient,) = torch.autograd.grad(loss, w)
        w, taken = (w - run.lr * gradient).detach().requires_grad_(), taken + 1
    return w.detach(), taken


def test_with_everything_kept_it_is_dense_descent():
    x, y, weights, mask = parts(SMALL)
    assert mask.all()
    trained, taken = sn.descend(SMALL, x, y, weights, mask)
    expected, steps = dense(SMALL, x, y, weights)
    assert taken == steps > 5 and torch.allclose(trained, expected, atol=1e-6)


def test_removed_weights_stay_at_zero_and_the_step_is_that_of_autograd():
    run = replace(SMALL, kept=0.3, steps=1)
    x, y, weights, mask = parts(run)
    trained, _ = sn.descend(run, x, y, weights, mask)
    w = (weights * mask).requires_grad_()
    output = (x @ w.T).relu().view(len(x), run.classes, run.width).sum(2)
    functional.cross_entropy(output, y).backward()
    expected = (w - run.lr / run.kept * w.grad * mask).detach()
    assert torch.allclose(trained, expected, atol=1e-6) and not trained[~mask].any()
    slower, _ = sn.descend(replace(run, rescaled=False), x, y, weights, mask)
    assert torch.allclose((slower - weights * mask) / run.kept, trained - weights * mask, atol=1e-6)


def test_samples_are_those_of_the_model():
    run = replace(SMALL, noise=0.5, signal=3.0)
    x, y = sn.draw(run, 4000, seeded())
    assert (y.bincount(minlength=3) - 4000 / 3).abs().max() < 5 * (4000 * 2 / 9) ** 0.5
    rest = x.clone()
    rest[torch.arange(4000), y] -= 3.0
    assert float(rest.std()) == pytest.approx(0.5, rel=0.01) and rest.mean().abs() < 0.005
    weights = sn.initial(run, seeded())
    assert weights.shape == (12, 200) and float(weights.std()) == pytest.approx(0.005, rel=0.1)


@pytest.mark.parametrize(
    ("kept", "expected"), [(0.1, 0.928), (0.05, 0.723), (0.02, 0.397), (0.01, 0.222)]
)
def test_how_many_classes_are_covered_follows_the_formula(kept, expected):
    assert sn.coverage(kept, 25) == pytest.approx(expected, abs=5e-4)
    run = SignalNoise(kept=kept, inputs=5)
    hits = [sn.covered(run, sn.masked(run, seeded(seed))).float().mean() for seed in range(400)]
    assert float(torch.stack(hits).mean()) == pytest.approx(expected, abs=0.04)


def test_masks_are_nested_and_their_kinds_are_what_they_say():
    few, many = (sn.masked(replace(SMALL, kept=kept), seeded()) for kept in (0.1, 0.4))
    assert not (few & ~many).any() and float(many.float().mean()) == pytest.approx(0.4, abs=0.05)
    kinds = {m: sn.masked(replace(SMALL, kept=0.4, mask=m), seeded()) for m in sn.MASKS}
    assert kinds["signal-kept"][:, :3].all() and not kinds["signal-removed"][:, :3].any()
    for kind in ("signal-kept", "signal-removed"):
        assert torch.equal(kinds[kind][:, 3:], kinds["random"][:, 3:])
    assert (kinds["inputs"] == kinds["inputs"][0]).all() and 0 < kinds["inputs"].sum() < 12 * 200


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.05])
def test_without_the_signals_coordinates_accuracy_is_chance(kept):
    run = replace(SMALL, kept=kept, mask="signal-removed", width=20, inputs=1000)
    found = [replace(run, seed=seed).execute(base.Context()) for seed in range(8)]
    assert all(each["reached"] and each["signal_learned"] == 0 for each in found)
    mean = sum(each["test_accuracy"] for each in found) / 8
    assert mean == pytest.approx(1 / 3, abs=0.03)


def test_without_noise_every_covered_class_is_right():
    run = replace(SMALL, noise=0.0, kept=0.5, samples=30, width=20)
    x, y, weights, mask = parts(run)
    assert sn.covered(run, mask).all()
    trained, _ = sn.descend(run, x, y, weights, mask)
    assert sn.measure(run, trained, *sn.draw(run, 500, seeded(9)))[1] == 1


def test_a_network_that_says_nothing_is_at_chance():
    x, y = sn.draw(SMALL, 50, seeded())
    _, accuracy = sn.measure(SMALL, torch.zeros(12, 200), x, y)
    assert accuracy == pytest.approx(1 / 3)


def test_what_was_learned_is_told_apart():
    weights = torch.zeros(12, 200)
    # one neuron of class 1 on its own coordinate, one of class 0 on that of class 1, and on noise
    weights[4, 1], weights[0, 1], weights[0, 7] = 0.6, 5.0, -0.9
    signal, noise = sn.learned(SMALL, weights)
    assert signal == pytest.approx(0.2) and noise == pytest.approx(0.3)


def test_a_spread_signal_has_the_same_norm_and_is_covered_by_any_of_its_coordinates():
    run = replace(SMALL, spread=4, noise=0.0)
    x, y = sn.draw(run, 6, seeded())
    assert torch.allclose(x.norm(dim=1), torch.full((6,), run.signal))
    assert all(
        row.nonzero().flatten().tolist() == list(range(4 * c, 4 * c + 4)) for row, c in zip(x, y)
    )
    mask = torch.zeros(12, 200, dtype=torch.bool)
    # a neuron of class 1 that sees its own signal, and one of class 2 that sees only another's
    mask[5, 7] = mask[8, 0] = True
    assert sn.covered(run, mask).tolist() == [False, True, False]
    kept = sn.masked(replace(run, kept=0.1, mask="signal-kept"), seeded())
    assert kept[:, :12].all() and not kept[:, 12:].all()


def test_the_orders_of_the_theorems():
    run = SignalNoise(classes=2, inputs=4000, width=25)
    assert sn.mild(run) == pytest.approx(0.33176, abs=1e-5)
    assert sn.excessive(run) == pytest.approx(0.0024114, abs=1e-7)


def test_a_run_says_the_same_twice():
    state, run = torch.get_rng_state(), replace(SMALL, kept=0.3, width=20)
    found = run.execute(base.Context())
    assert torch.equal(torch.get_rng_state(), state) and found == run.execute(base.Context())
    assert found != replace(run, seed=1).execute(base.Context())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["reached"] and found["train_loss"] <= 0.01 and found["steps_taken"] < 400
    short = replace(run, steps=2).execute(base.Context())
    assert not short["reached"] and short["steps_taken"] == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kept": 0}, "kept is 0; it must be a probability above 0"),
        ({"kept": 1.2}, "kept is 1.2"),
        ({"classes": 1}, "classes of a signal-noise run is 1"),
        (
            {"inputs": 3},
            "3 inputs can not hold the signals of 5 classes; each class needs 1 of its",
        ),
        ({"inputs": 9, "spread": 2}, "9 inputs can not hold the signals of 5 classes"),
        ({"mask": "input"}, "unknown mask of a signal-noise run 'input'; did you mean 'inputs'"),
        ({"signal": -1.0}, "signal is -1.0; it must be a number above 0"),
        ({"noise": -0.1}, "noise is -0.1; it must be a number from 0"),
        ({"rescaled": 1}, "rescaled is 1; it must be true or false"),
        ({"steps": 0}, "steps of a signal-noise run is 0"),
    ],
)
def test_bad_fields(wrong, message):
    with pytest.raises(UserError, match=message):
        SignalNoise(**wrong)
