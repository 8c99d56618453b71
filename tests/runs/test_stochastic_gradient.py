"""StochGradAdam: what it draws, what a step does, and what is measured after pruning."""

import json

import pytest
import torch
from torch import nn

from panning_core import data, masks, models, training
from panning_core.errors import UserError
from panning_core.methods import stoch_grad_adam
from panning_core.methods.stoch_grad_adam import StochGradAdam
from panning_core.models import prunable
from panning_core.runs import base, stochastic_gradient
from panning_core.runs.stochastic_gradient import METHODS, SPARSITIES, StochasticGradient

SHORT = {"images": 300, "epochs": 3, "target": 0.5}


def weights(seed=0):
    return nn.Parameter(torch.randn(400, generator=torch.Generator().manual_seed(seed)))


def moved(make, steps=5, constant=False):
    """A tensor after some steps on gradients that follow from a seed."""
    weight, generator = weights(), torch.Generator().manual_seed(1)
    optimiser = make([weight])
    gradient = torch.randn(400, generator=generator)
    for _ in range(steps):
        weight.grad = gradient.clone()
        optimiser.step()
        gradient = gradient if constant else torch.randn(400, generator=generator)
    return weight.detach()


# --- the optimiser ---


def test_three_steps_by_hand(monkeypatch):
    """One weight at 1, gradients 2, 1, -1, of which the second is dropped."""
    drawn = iter([1.0, 0.0, 1.0])
    monkeypatch.setitem(
        stoch_grad_adam.SAMPLES, "gradient", lambda like, *_: torch.tensor([next(drawn)])
    )
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimiser, found = StochGradAdam([weight]), []
    for gradient in (2.0, 1.0, -1.0):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        state = optimiser.state[weight]
        found.append([weight.item(), state["exp_avg"].item(), state["exp_avg_sq"].item()])
    assert found == [
        pytest.approx([0.999000000, 0.2, 0.004], rel=1e-8),
        pytest.approx([0.998329942, 0.18, 0.003996], rel=1e-8),
        pytest.approx([0.998152675, 0.062, 0.004992004], rel=1e-8),
    ]


@pytest.mark.parametrize("sample", stoch_grad_adam.SAMPLES)
def test_without_dropping_it_is_pytorchs_adam_to_the_last_bit(sample):
    whole = moved(lambda p: StochGradAdam(p, keep=1.0, sample=sample))
    assert torch.equal(whole, moved(lambda p: torch.optim.Adam(p, 1e-3)))


def test_a_constant_gradient_moves_by_the_root_of_what_is_kept():
    way = (
        (moved(lambda p: StochGradAdam(p, 1e-3, 0.64), 2000, True) - weights().detach())
        .abs()
        .mean()
    )
    assert float(way) == pytest.approx(2000 * 1e-3 * 0.8, rel=0.02)


@pytest.mark.parametrize("sample", ["gradient", "update"])
def test_a_dropped_entry_moves_by_its_momentum_and_a_dropped_update_does_not(sample):
    weight = weights()
    optimiser = StochGradAdam([weight], keep=0.5, sample=sample)
    for _ in range(12):
        weight.grad, before = torch.ones(400), weight.detach().clone()
        optimiser.step()
    still = weight.detach() == before
    moment = optimiser.state[weight]["exp_avg"]
    if sample == "gradient":
        assert torch.equal(still, moment == 0) and len(moment.unique()) > 100
    else:
        assert 150 < still.sum() < 250 and len(moment.unique()) == 1


def test_the_share_that_is_kept_and_the_moments_of_its_normal_stand_in():
    like, generator = torch.zeros(100_000), torch.Generator().manual_seed(0)
    for draw in (stoch_grad_adam.SAMPLES["gradient"], stoch_grad_adam.SAMPLES["noise"]):
        found = draw(like, 0.8, generator).double()
        assert float(found.mean()) == pytest.approx(0.8, abs=0.005)
        assert float(found.var()) == pytest.approx(0.16, abs=0.005)


def test_the_same_seed_draws_the_same_and_the_global_state_is_left_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = (moved(lambda p: StochGradAdam(p, seed=s)) for s in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_goes_on_from_its_state():
    weight, generator = weights(), torch.Generator().manual_seed(1)
    optimiser = StochGradAdam([weight])
    for step in range(5):
        weight.grad = torch.randn(400, generator=generator)
        optimiser.step()
        if step == 2:
            other = nn.Parameter(weight.detach().clone())
            state, optimiser = optimiser.state_dict(), StochGradAdam([other])
            optimiser.load_state_dict(state)
            weight = other
    assert torch.equal(weight.detach(), moved(StochGradAdam))


def test_the_trainer_takes_it_and_pruned_weights_stay_0():
    splits = data.load("digits").first(train=100)
    model = models.build("lenet300", splits.input_shape, splits.classes, seed=0)
    mask = masks.keep_top({n: w.detach().abs() for n, w in prunable(model).items()}, 0.3)
    training.train(model, mask, splits, training.Recipe(2, 50), optimiser=StochGradAdam)
    assert all(not w[~mask[name]].any() for name, w in prunable(model).items())


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": 1.5}, {"sample": "all"}, {"seed": -1}])
def test_bad_options_get_one_sentence(options):
    with pytest.raises(UserError):
        StochGradAdam([weights()], **options)


# --- the run ---


@pytest.mark.parametrize("method", METHODS)
def test_a_run_gives_plain_numbers_and_the_same_ones_again(method):
    run = StochasticGradient(method=method, **SHORT)
    found = run.execute(base.Context())
    assert json.loads(json.dumps(found)) == found == run.execute(base.Context())
    assert len(found["pruned_test_accuracy"]) == len(SPARSITIES)
    assert found["matched_validation_accuracy"] >= 0.5 and found["matched_epoch"] <= 3


def test_the_slow_control_moves_by_the_mean_step_of_sampled_gradients():
    for method, rate in (("adam", 1e-3), ("stochastic", 1e-3), ("slow-adam", 0.8e-3)):
        optimiser = StochasticGradient(method=method, keep=0.64).optimiser([weights()])
        assert optimiser.param_groups[0]["lr"] == pytest.approx(rate)
        assert optimiser.keep == (0.64 if method == "stochastic" else 1)


def test_methods_differ_and_an_unreached_target_is_none():
    found = [StochasticGradient(method=m, **SHORT).execute(base.Context()) for m in METHODS]
    assert len({each["smaller_half"] for each in found}) == len(METHODS)
    never = StochasticGradient(**SHORT | {"target": 0.999}).execute(base.Context())
    assert never["matched_epoch"] is None and never["matched_pruned_test_accuracy"] is None


def test_pruning_removes_the_smallest_and_leaves_the_network_as_it_is():
    splits = data.load("digits")
    model = models.build("lenet300", splits.input_shape, splits.classes, seed=0)
    before = masks.flatten({n: w.detach().clone() for n, w in prunable(model).items()})
    found = stochastic_gradient.pruned_accuracy(model, 0.9, splits.test)
    assert torch.equal(masks.flatten(prunable(model)).detach(), before)
    bound = before.abs().sort().values[round(0.9 * len(before))]
    with torch.no_grad():
        for weight in prunable(model).values():
            weight[weight.abs() < bound] = 0
        model.eval()
        assert found == training.accuracy(model(splits.test.x), splits.test.y)


def test_the_smaller_half_of_four_weights():
    assert stochastic_gradient.smaller_half(torch.tensor([3.0, -1, 2, 0])) == pytest.approx(1 / 14)


@pytest.mark.parametrize(
    "field",
    [{"method": "sgd"}, {"keep": 0}, {"target": 1}, {"lr": 0}, {"epochs": 0}, {"dataset": "no"}],
)
def test_bad_fields_get_one_sentence(field):
    with pytest.raises(UserError):
        StochasticGradient(**field)
