"""Activation checkpointing: what is computed again on the way back is what was scored."""

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from panning_core import masks, metrics
from tests.conftest import half


class Checkpointed(nn.Module):
    """Computes its middle again on the way back, unless ``reentrant`` is None."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.reentrant = reentrant

    def part(self, x):
        return self.middle(self.first(x).relu()).relu()

    def forward(self, x):
        if self.reentrant is None:
            return self.last(self.part(x))
        return self.last(checkpoint.checkpoint(self.part, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("metric", metrics.METRICS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_scores_are_those_without_checkpointing(metric, reentrant):
    plain, model = Checkpointed(None), Checkpointed(reentrant)
    batch = torch.randn(9, 6), torch.arange(9) % 3
    expected, found = (
        metrics.METRICS[metric](each, half(each), batch, generator=torch.Generator().manual_seed(1))
        for each in (plain, model)
    )
    for name, scores in expected.items():
        torch.testing.assert_close(found[name], scores)


@pytest.mark.parametrize("reentrant", [False, True])
def test_paths_are_those_without_checkpointing(reentrant):
    plain, model = Checkpointed(None), Checkpointed(reentrant)
    expected, found = (masks.effective(each, half(each)) for each in (plain, model))
    assert all(torch.equal(found[name], kept) for name, kept in expected.items())


def test_checkpointing_is_back_afterwards():
    before = dict(vars(checkpoint))
    metrics.loss(
        Checkpointed(False), half(Checkpointed(False)), (torch.randn(3, 6), torch.arange(3))
    )
    assert vars(checkpoint) == before
