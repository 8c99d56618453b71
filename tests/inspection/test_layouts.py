"""Convolutions take the fast layout but where it is known to be wrong."""

import copy

import pytest
import torch
from torch import nn

from panning_core import masks, metrics, training
from panning_core.inspection import layouts

FAST, SAFE = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    "convolution, expected",
    [
        (nn.Conv2d(7, 11, 1, stride=2), SAFE),
        (nn.Conv2d(15, 32, 1, stride=(1, 2)), SAFE),
        (nn.Conv2d(32, 32, 1, stride=2, groups=4), SAFE),
        (nn.Conv2d(16, 32, 1, stride=2), FAST),
        (nn.Conv2d(7, 11, 1), FAST),
        (nn.Conv2d(7, 11, 3, stride=2), FAST),
        (nn.Linear(7, 11), FAST),
    ],
)
def test_the_layout_of_a_network(convolution, expected):
    assert layouts.fastest(nn.Sequential(nn.ReLU(), convolution)) == expected


def shortcut():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1),
        nn.Conv2d(7, 11, 1, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(11, 10),
    )


def batch():
    torch.manual_seed(1)
    return torch.randn(32, 3, 16, 16), torch.arange(32) % 10


def test_the_gradient_of_a_narrow_shortcut_is_that_of_double_precision():
    x, y = batch()
    model, exact = shortcut(), shortcut().double()
    engine = training.Dense(model, masks.ones(model), training.Recipe(batch_size=32))
    loss = engine.step(x, y, 0.1)
    exact_loss = nn.functional.cross_entropy(exact(x.double()), y)
    exact_loss.backward()
    assert float(loss) == pytest.approx(exact_loss.item(), rel=1e-5)
    for here, there in zip(model.parameters(), exact.parameters()):
        torch.testing.assert_close(here.grad.double(), there.grad, rtol=1e-4, atol=1e-6)


def test_its_gradient_flow_too():
    model = shortcut()
    _, flow = metrics.gradient_flow(model, masks.ones(model), batch())
    exact, (x, y) = copy.deepcopy(model).double(), batch()
    nn.functional.cross_entropy(exact(x.double()), y).backward()
    weights = (exact[k].weight.grad for k in (0, 1, 4))
    assert flow == pytest.approx(sum(float(g.square().sum()) for g in weights), rel=1e-4)
