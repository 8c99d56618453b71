"""What every metric keeps to: one battery over ``metrics.METRICS``."""

import pytest
import torch
from torch import nn

from panning_core import masks, metrics, models, pruning
from tests.conftest import half


@pytest.mark.parametrize("name", metrics.METRICS)
@pytest.mark.parametrize("partial", [False, True])
def test_every_metric_scores_every_weight_and_leaves_no_trace(name, partial, case, unchanged):
    model, batch = case
    mask = half(model) if partial else masks.ones(model)
    kept, x = {n: m.clone() for n, m in mask.items()}, batch[0].clone()
    with unchanged(model):
        scores = metrics.METRICS[name](model, mask, batch, torch.Generator().manual_seed(1))
    assert all(torch.equal(mask[n], m) for n, m in kept.items()) and torch.equal(batch[0], x)
    assert list(scores) == list(mask)
    for layer, score in scores.items():
        assert (
            score.shape == mask[layer].shape
            and score.is_floating_point()
            and not score.requires_grad
        )
        assert score.isfinite().all() and score.std() > 0
    with torch.no_grad():
        again = metrics.METRICS[name](model, mask, batch, torch.Generator().manual_seed(1))
    assert all(torch.equal(again[layer], score) for layer, score in scores.items())


@pytest.mark.parametrize("name", metrics.METRICS)
def test_no_metric_depends_on_the_mode_or_on_the_running_statistics(name, residual, residual_batch):
    scores = metrics.METRICS[name](
        residual, half(residual), residual_batch, torch.Generator().manual_seed(1)
    )
    residual.eval()
    for module in residual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(30), module.running_var.fill_(70)
    again = metrics.METRICS[name](
        residual, half(residual), residual_batch, torch.Generator().manual_seed(1)
    )
    assert all(torch.equal(again[layer], score) for layer, score in scores.items())


@pytest.mark.parametrize("name", metrics.METRICS)
def test_layers_of_a_mask_are_known_by_their_names(name, residual, residual_batch):
    mask = half(residual)
    scores = metrics.METRICS[name](residual, mask, residual_batch)
    again = metrics.METRICS[name](residual, dict(reversed(mask.items())), residual_batch)
    assert scores.keys() == again.keys() and all(
        torch.equal(again[layer], s) for layer, s in scores.items()
    )


def test_a_metric_of_your_own_is_seen_everywhere(lenet300, digits_batch, monkeypatch):
    def last(model, mask, batch, generator=None):
        return {
            name: torch.arange(w.numel(), dtype=torch.double).view(w.shape)
            for name, w in models.prunable(model).items()
        }

    monkeypatch.setitem(metrics.METRICS, "last-ones", last)
    assert "last-ones" in pruning.methods()
    mask, trace = pruning.prune(lenet300, "last-ones", 0.1, digits_batch)
    assert masks.count(mask) == round(0.1 * masks.size(mask)) and list(trace[0]["kept_mass"]) == [
        "last-ones"
    ]
    assert (
        mask["fc2.weight"].flatten()[-masks.count(mask) :].all()
    )  # the highest numbers are all in fc2
