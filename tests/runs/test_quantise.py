"""Pruning and quantising while training: the number format, the schedules, what is stored."""

import json
import math

import pytest
import torch
from torch import nn

from panning_core import data, models
from panning_core.data import Split
from panning_core.errors import UserError
from panning_core.methods import quantisation
from panning_core.methods.quantisation import Operator, best_decimals, keep_above, truncate
from panning_core.runs import base, quantise
from panning_core.runs.quantise import Quantise

X = torch.tensor([0.30, -0.30, 0.124, -1.2, 1.9, 0.06])
SHORT = {"epochs": 3, "images": 300, "prune_at": 0.3, "quantise_at": 0.7}


# --- the number format: literal tables ---


@pytest.mark.parametrize(
    "bits, decimals, wanted",
    [
        (4, 3, [0.25, -0.25, 0, -1, 0.875, 0]),
        (4, 2, [0.25, -0.25, 0, -1, 1.75, 0]),
        (8, 6, [0.296875, -0.296875, 0.109375, -1.1875, 1.890625, 0.046875]),
    ],
)
def test_truncation_gives_the_published_values(bits, decimals, wanted):
    assert truncate(X, decimals, bits).tolist() == wanted
    by_hand = []
    for value in X.tolist():
        level = int(value * 2**decimals)
        by_hand.append(max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, level)) / 2**decimals)
    assert by_hand == wanted


def test_the_scale_has_the_least_error_of_all():
    errors = {n: float((X - truncate(X, n, 4)).square().sum()) for n in range(20)}
    assert errors[2] == pytest.approx(0.0864760, abs=1e-6)
    assert min(errors, key=errors.get) == best_decimals(X, 4) == 2 and best_decimals(X, 8) == 6
    assert best_decimals(torch.zeros(3), 4) == 0


def test_the_scale_is_chosen_for_what_the_mask_leaves():
    weight, operator = torch.tensor([1.9, *[0.12] * 1000]), Operator((1001,))
    operator.mask = weight > 1
    operator.fix(4, weight)
    assert operator.decimals == best_decimals(weight[:1], 4) == 2 != best_decimals(weight, 4)


def test_rounding_to_the_nearest_is_the_other_half():
    """Half a step more in absolute value, then cut off, is rounding; no value lies on a half."""
    for bits, decimals in ((4, 2), (8, 6), (3, 1)):
        moved = X + X.sign() * 2.0 ** -(decimals + 1)
        assert torch.equal(quantisation.nearest(X, decimals, bits), truncate(moved, decimals, bits))
    assert best_decimals(X, 4, "nearest") == 2


def test_quantising_twice_changes_nothing_and_commutes_with_a_fixed_mask():
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(500, generator=generator), torch.rand(500, generator=generator) < 0.5
    for bits in (1, 2, 3, 8):
        once = truncate(x, 3, bits)
        assert torch.equal(truncate(once, 3, bits), once)
        assert torch.equal(truncate(x * mask, 3, bits), once * mask)
        assert len(once.unique()) <= 2**bits


def test_the_gradient_is_clamped_to_the_range_and_not_by_the_input():
    x = torch.tensor([0.3, 50.0, -50.0, 0.0]).requires_grad_()
    operator = Operator((4,))
    operator.bits, operator.decimals = 3, 1
    operator(x).backward(torch.tensor([0.25, -9.0, 9.0, 1.0]))
    # 3 bits with one decimal: -2 to 1.5
    assert x.grad.tolist() == [0.25, -2.0, 1.5, 1.0]


# --- pruning ---


def test_cuts_follow_the_cubic():
    found = [quantisation.cubic(0.5, cut) for cut in (1, 2, 3, 4)]
    assert found == pytest.approx([0.289063, 0.4375, 0.492188, 0.5], abs=1e-6)


@pytest.mark.parametrize(
    "sparsity, kept",
    [
        (0.0, [1, 1, 1, 1, 1]),
        (0.2, [1, 1, 1, 1, 1]),
        (0.6, [0, 1, 0, 1, 1]),
        (0.99, [0, 1, 0, 0, 1]),
    ],
)
def test_the_value_at_the_threshold_stays(sparsity, kept):
    assert keep_above(torch.tensor([1.0, 7, 2, 4, 5]), sparsity).int().tolist() == kept


def test_a_weight_may_return_until_the_last_cut():
    operator, weight = Operator((4,)), torch.tensor([1.0, -2.0, 3.0, 4.0])
    operator.cut(0.75, weight)
    assert operator(weight).tolist() == [0, 0, 3, 4]
    weight[0] = 9.0
    operator.cut(0.75, weight)
    assert operator(weight).tolist() == [9, 0, 0, 4]


def test_an_activation_loses_the_same_places_for_every_input():
    operator = Operator((3,), activation=True)
    operator(torch.tensor([[3.0, -1, 2], [-3, 1, 2]]))
    operator(torch.tensor([[-3.0, 0, 5], [3, 0, 5]]))
    operator.cut(0.67)
    assert operator(torch.ones(2, 3)).tolist() == [[1, 0, 1], [1, 0, 1]]
    operator.eval()(torch.full((2, 3), 99.0))
    assert len(operator.seen) == 3


def test_the_window_is_in_samples(monkeypatch):
    monkeypatch.setattr(quantisation, "WINDOW", 5)
    operator = Operator((1,), activation=True)
    for value in (1, 2, 3, 4):
        operator(torch.full((2, 1), float(value)))
    assert torch.cat([*operator.seen]).flatten().tolist() == [2, 2, 3, 3, 4, 4]


# --- what is stored ---


def test_bits_of_a_layer_are_its_values_and_their_places():
    mask = torch.tensor([True, False, False, False] * 6)
    places = 24 * -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert quantisation.stored_bits(mask, 4) == pytest.approx(6 * 4 + places)
    assert quantisation.stored_bits(torch.ones(7, dtype=torch.bool), 3) == 21
    assert quantisation.stored_bits(torch.zeros(7, dtype=torch.bool), 3) == 0
    assert quantisation.coded_bits(torch.tensor([0.0, 0, 1, 2])) == pytest.approx(4 * 1.5)


# --- a run ---


def test_without_cuts_and_with_all_bits_it_is_plain_training(digits, monkeypatch):
    """Against PyTorch's own layers and optimiser, written out."""
    run = Quantise(epochs=2, images=300, sparsity=0, activation_sparsity=0, bits=None,
                   activation_bits=None, seed=3)  # fmt: skip
    found = run.execute(base.Context())
    plain = models.build("lenet300", digits.input_shape, digits.classes, seed=3)
    plain = nn.Sequential(plain.flatten, plain.fc1, nn.BatchNorm1d(300), nn.ReLU(), plain.fc2,
                          nn.BatchNorm1d(100), nn.ReLU(), plain.fc3)  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    optimiser = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for epoch in range(2):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * epoch / 2))
        for chosen in torch.randperm(300, generator=generator).split(50):
            x, y = digits.train.x[:300][chosen], digits.train.y[:300][chosen]
            optimiser.zero_grad()
            nn.functional.cross_entropy(plain(x), y).backward()
            optimiser.step()
    assert found["test_accuracy"] == quantise.accuracy(plain, digits.test)
    monkeypatch.setattr(quantise, "MOST", 24)
    many = Quantise(**{**vars(run), "bits": 24, "activation_bits": 24, "quantise_at": 0.5})
    assert many.execute(base.Context())["test_accuracy"] == found["test_accuracy"]


def test_a_run_leaves_what_it_was_asked_for(digits):
    run = Quantise(**SHORT, sparsity=0.8, activation_sparsity=0.5, bits=3, activation_bits=4)
    model = quantise.network(digits, run.seed)
    quantise.train(run, model, Split(digits.train.x[:300], digits.train.y[:300], 10))
    weights = [model.fc1.weight, model.fc2.weight, model.fc3.weight]
    for weight, (raw, operator) in zip(weights, quantise.linear(model)):
        levels = weight.detach() * 2**operator.decimals
        assert torch.equal(levels, levels.round()) and -4 <= levels.min() <= levels.max() <= 3
        assert not torch.equal(raw, weight) and not weight[~operator.mask].any()
    kept = [int(operator.mask.sum()) for _, operator in quantise.linear(model)]
    # The threshold's own weight stays, and the last layer is not pruned.
    assert kept == [64 * 300 - int(0.8 * 19200 - 1), 30000 - int(0.8 * 30000 - 1), 1000]
    found = quantise.measured(run, model, digits)
    assert found["kept_weights"] == sum(kept) and found["weights"] == 50200
    zeros = sum(int((w == 0).sum()) for w in weights) / 50200
    assert found["zeros"] == pytest.approx(zeros, rel=1e-5) and zeros > 0.7
    assert 0.5 <= min(found["activations_kept"]) <= max(found["activations_kept"]) < 0.52
    assert found["bits_per_weight"] > found["coded_bits_per_weight"] > 0


def test_what_is_due_when():
    model = quantise.network(data.load("digits"), 0)
    names = {}
    for at, happen in quantise.schedule(Quantise(), model, 1000).items():
        names[at] = len(happen)
    # Two weights and two activations at each cut; three weights; input and two activations.
    assert names == {460: 4, 520: 4, 580: 4, 640: 4, 920: 3, 940: 3}
    late = Quantise(prune_at=0.76, quantise_at=0.98, bits=None, activation_sparsity=0)
    due = quantise.schedule(late, model, 1000)
    assert {at: len(happen) for at, happen in due.items()} == {
        820: 2, 880: 2, 940: 2, 1000: 5
    }  # fmt: skip


def test_the_same_run_gives_the_same_numbers_and_leaves_the_global_random_state():
    run, state = Quantise(**SHORT), torch.get_rng_state()
    found = run.execute(base.Context())
    assert run.execute(base.Context()) == found and torch.equal(torch.get_rng_state(), state)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert base.kind("quantise") is Quantise and Quantise().canonical() == {}
    assert run.origin()["data"]["title"] == "scikit-learn digits"


def test_recalibration_gathers_the_statistics_of_all_images(digits):
    model = quantise.network(digits, 0)
    quantise.recalibrate(model, digits.train.x[:500])
    raw = model.fc1(model.flatten(digits.train.x[:500]))
    assert torch.allclose(model.bn1.running_mean, raw.mean(0), atol=1e-5)
    assert torch.allclose(model.bn1.running_var, raw.var(0), atol=1e-5)


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("seed", -1, "seed of quantise is -1; it must be a whole number from 0"),
        ("epochs", 0, "epochs of quantise is 0"),
        ("batch_size", 1, "batch_size of quantise is 1; it must be a whole number from 2"),
        ("images", 0, "images of quantise is 0"),
        ("lr", 0, "lr of quantise is 0; it must be a number above 0"),
        ("lr", float("nan"), "lr of quantise is nan"),
        ("sparsity", 1, r"sparsity of quantise is 1; it must be a fraction in \[0, 1\)"),
        ("activation_sparsity", -0.1, "activation_sparsity of quantise is -0.1"),
        ("bits", 0, "bits of quantise is 0; it must be a whole number from 1"),
        ("bits", 32, "bits of quantise is 32; it must be from 1 to 16, or None"),
        ("bits", 2.5, "bits of quantise is 2.5"),
        ("activation_bits", True, "activation_bits of quantise is True"),
        ("prune_at", 0.8, "prune_at of quantise is 0.8; .* must be at most 0.76"),
        ("quantise_at", 0.99, "quantise_at of quantise is 0.99; .* must be at most 0.98"),
        ("rounding", "down", "unknown rounding 'down'"),
    ],
)
def test_bad_fields_are_named(field, value, says):
    with pytest.raises(UserError, match=says):
        Quantise(**{field: value})


@pytest.mark.parametrize("early", [{"quantise_at": 0.0}, {"prune_at": 0.0}])
def test_activations_that_nobody_has_seen_can_not_be_cut(early):
    with pytest.raises(UserError, match="before any was seen; let that begin later"):
        Quantise(epochs=1, images=300, **early).execute(base.Context())
