"""Early structural pruning: the indicator, which channels stay, and that they are really gone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panning_core.errors import UserError
from panning_core.methods import early_pruning
from panning_core.runs import base
from panning_core.runs.early_structure import EarlyStructure, Training, factor, network

TINY = {"epochs": 3, "images": 100}


def test_the_indicator_of_a_literal_history():
    assert early_pruning.similarity([6, 10, 4], [5, 10, 5]) == pytest.approx(0.932660, abs=1e-6)
    history = [[16, 16], [12, 20], [10, 22], [10, 22], [9, 23], [9, 23]]
    assert early_pruning.indicator(history) == pytest.approx(0.917818, abs=1e-6)
    assert early_pruning.indicator(history[:5]) is None
    assert early_pruning.indicator([[3, 4]] * 6) == 1


@pytest.mark.parametrize(
    "indicators, settled",
    [
        ([], False),
        ([None, None], False),
        ([None, 0.99], True),
        ([0.93], False),
        ([0.99, 0.98], False),
        ([0.97, 0.98, 0.98], True),
        # What was more than five epochs before does not count.
        ([1.0, 0.98, 0.98, 0.98, 0.98, 0.98, 0.985], True),
    ],
)
def test_it_has_settled_above_the_threshold_and_not_below_what_was(indicators, settled):
    assert early_pruning.has_settled(indicators, 0.95) == settled


@settings(deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    ratio=st.floats(0, 0.95),
    seed=st.integers(0, 99),
)
def test_the_best_channels_of_all_layers_stay_and_one_of_each(widths, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.rand(width, generator=generator) for width in widths]
    chosen = early_pruning.kept(values, ratio)
    total = sum(int(each.sum()) for each in chosen)
    assert total == max(len(widths), round((1 - ratio) * sum(widths)))
    assert all(each[v.argmax()] for each, v in zip(chosen, values))
    # Apart from the best of each layer, none that goes is better than one that stays.
    free = [each & (v < v.max()) for each, v in zip(chosen, values)]
    stays = torch.cat([v[each] for v, each in zip(values, free)])
    goes = torch.cat([v[~each] for v, each in zip(values, chosen)])
    assert not len(stays) or not len(goes) or stays.min() >= goes.max()


def test_a_cut_network_computes_what_the_full_one_does_without_those_channels():
    model = network((1, 8, 8), 4, seed=0)
    x = torch.randn(20, 1, 8, 8)
    model(x)
    model.eval()
    channels = [torch.rand(width) < 0.5 for width in (16, 32, 32)]
    for each in channels:
        each[0] = True
    small = early_pruning.cut(model, channels)
    assert [m.out_channels for m in small if isinstance(m, nn.Conv2d)] == [
        int(each.sum()) for each in channels
    ]
    hooks = [
        getattr(model, f"relu{i}").register_forward_hook(
            lambda module, inputs, output, stays=stays: output * stays[:, None, None]
        )
        for i, stays in enumerate(channels, 1)
    ]
    assert torch.allclose(small(x), model(x), atol=1e-5)
    for hook in hooks:
        hook.remove()


def test_taylor_scores_are_squares_of_the_change_that_a_scaled_norm_makes():
    """(g gamma + h beta) is the derivative of the loss by a factor of the channel."""
    model = network((1, 8, 8), 3, seed=1)
    generator = torch.Generator().manual_seed(0)
    nn.init.uniform_(model.bn1.weight, 0.5, 1.5)
    nn.init.normal_(model.bn1.bias)
    batch = (torch.randn(12, 1, 8, 8, generator=generator), torch.arange(12) % 3)
    (first, *_) = early_pruning.scores(model, "taylor", [batch], generator)
    gates = torch.ones(16, requires_grad=True)
    hook = model.bn1.register_forward_hook(lambda m, i, output: output * gates[:, None, None])
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    (slow,) = torch.autograd.grad(loss, [gates])
    hook.remove()
    assert torch.allclose(first, slow.square(), rtol=1e-4, atol=1e-12)


def test_scores_by_magnitude():
    model = network((1, 8, 8), 3, seed=1)
    plain = early_pruning.scores(model, "magnitude", [], torch.Generator())
    slow = [w.pow(2).sum().sqrt() / w.numel() ** 0.5 for w in model.conv2.weight]
    assert torch.allclose(plain[1], torch.stack(slow))
    relative = early_pruning.scores(model, "relative-magnitude", [], torch.Generator())
    assert all(float(each.mean()) == pytest.approx(1) for each in relative)
    with pytest.raises(UserError, match="needs a BatchNorm behind it"):
        early_pruning.scores(nn.Sequential(nn.Conv2d(1, 2, 3)), "magnitude", [], torch.Generator())


def test_a_run_is_cut_when_it_should_be_and_trains_on():
    run = EarlyStructure(at=1, ratio=0.5, criterion="relative-magnitude", **TINY)
    found = run.execute(base.Context())
    assert found["cut_at"] == 1 and sum(found["widths"]) == 40
    assert found["cost"] == pytest.approx((1 + 2 * found["macs_share"]) / 3, rel=1e-5)
    again = run.execute(base.Context())
    assert {k: v for k, v in again.items() if "seconds" not in k} == {
        k: v for k, v in found.items() if "seconds" not in k
    }
    dense = EarlyStructure(ratio=0, **TINY).execute(base.Context())
    assert dense["cut_at"] is None and dense["cost"] == pytest.approx(1)
    assert dense["widths"] == [16, 32, 32]


def test_looking_at_the_units_changes_no_training():
    """The indicator only watches: until it fires, the network is that of a dense training."""
    watched = Training(EarlyStructure(at=None, criterion="taylor", **TINY))
    found, dense = watched.result(), Training(EarlyStructure(ratio=0, **TINY))
    whole = dense.result()
    assert found["cut_at"] is None and len(found["history"]) == 4
    for name, tensor in watched.model.state_dict().items():
        assert torch.equal(tensor, dense.model.state_dict()[name])
    assert found["test_accuracy"] == whole["test_accuracy"]


def test_the_indicator_cuts_when_it_fires(monkeypatch):
    run = EarlyStructure(at=None, ratio=0.5, epochs=8, images=100)
    monkeypatch.setitem(early_pruning.THRESHOLDS, "magnitude", 1.1)
    assert run.execute(base.Context())["cut_at"] is None
    monkeypatch.setitem(early_pruning.THRESHOLDS, "magnitude", 0.0)
    found = run.execute(base.Context())
    assert (found["cut_at"], sum(found["widths"])) == (early_pruning.LOOK_BACK, 40)
    assert found["widths"] == found["history"][-1] and len(found["history"]) == 6


def test_the_published_thresholds():
    """Shen et al. 2022 by its project page; Taylor's is that of the second implementation."""
    assert early_pruning.LOOK_BACK == 5
    assert early_pruning.THRESHOLDS == {
        "magnitude": 0.983,
        "relative-magnitude": 0.983,
        "taylor": 0.944,
    }


def test_the_rate_grows_and_falls():
    assert [round(factor(epoch, 6), 3) for epoch in range(6)] == [
        0.333,
        0.667,
        1,
        0.854,
        0.5,
        0.146,
    ]


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"ratio": 1.0}, "ratio is 1.0; it must be a fraction in"),
        ({"at": 30}, "at is 30 of 24 epochs; it must be at most as many"),
        ({"at": -1}, "at is -1; it must be a whole number from 0"),
        ({"criterion": "tailor"}, "unknown criterion 'tailor'; did you mean 'taylor'"),
        ({"criterion": "random", "at": None}, "the indicator has no threshold for random"),
        ({"epochs": 2}, "epochs is 2; it must be a whole number from 3"),
        ({"lr": 0}, "lr is 0; it must be a number above 0"),
        ({"dataset": "digit"}, "unknown data set 'digit'"),
    ],
)
def test_bad_input_is_one_sentence(fields, says):
    with pytest.raises(UserError) as error:
        EarlyStructure(**fields)
    assert says in str(error.value) and "\n" not in str(error.value)
