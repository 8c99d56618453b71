"""Networks: their sizes, their seeds, and the linearised form."""

from math import sqrt

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from panning_core import models
from panning_core.errors import UserError

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    "name, shape, weights",
    [
        ("lenet300", GREY, 266_200),
        ("lenet5", GREY, 430_500),
        ("vgg11", COLOUR, 9_222_848),
        ("vgg16", COLOUR, 14_715_584),
        ("vgg19", COLOUR, 20_024_000),
        ("resnet18", COLOUR, 11_164_352),
        ("resnet20", COLOUR, 270_896),
        ("resnet32", COLOUR, 1_855_584),
    ],
)
def test_prunable_weights(name, shape, weights):
    assert (
        sum(w.numel() for w in models.prunable(models.build(name, shape, 10, seed=0)).values())
        == weights
    )


def test_every_network_is_in_the_table_above():
    (table,) = (mark for mark in test_prunable_weights.pytestmark if mark.name == "parametrize")
    assert {row[0] for row in table.args[1]} == models.MODELS.keys()


@pytest.mark.parametrize(
    "name, shape",
    [
        ("lenet300", (1, 8, 8)),
        ("lenet5", (1, 16, 20)),
        ("lenet5", GREY),
        ("vgg11", COLOUR),
        ("resnet20", (2, 9, 7)),
        ("resnet18", COLOUR),
    ],
)
def test_forward(name, shape):
    model = models.build(name, shape, 7, seed=0)
    assert model.training and models.input_shape(model) == shape
    out = model(torch.randn(2, *shape))
    assert out.shape == (2, 7) and out.isfinite().all()


def test_prunable_names_are_those_of_the_parameters_and_leave_out_biases_and_batchnorm(residual):
    weights, parameters = models.prunable(residual), dict(residual.named_parameters())
    assert list(weights) == [
        "0.weight",
        "4.conv1.weight",
        "4.conv2.weight",
        "4.shortcut.0.weight",
        "6.weight",
    ]
    assert all(weights[name] is parameters[name] for name in weights)
    assert list(models.prunable(nn.Linear(2, 3))) == ["weight"]


@pytest.mark.parametrize("init", models.INITS)
@pytest.mark.parametrize("name", ["lenet300", "resnet20"])
def test_a_seed_is_all_the_weights_depend_on(name, init):
    def state(seed):
        return models.build(name, COLOUR, 10, seed, init).state_dict()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = state(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two, other = state(5), state(6)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not any(
        torch.equal(one[key], other[key])
        for key in one
        if key.endswith("fc.weight") or "conv" in key or key == "fc1.weight"
    )


@pytest.mark.parametrize("name, shape", [("lenet5", GREY), ("resnet20", COLOUR)])
def test_panning_initialisation(name, shape):
    model = models.build(name, shape, 10, seed=3, init="panning")
    seen = 0
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            w = module.weight.detach().double()
            linear = isinstance(module, nn.Linear)
            std = (
                0.01
                if linear
                else sqrt(2 / (module.out_channels * module.kernel_size[0] * module.kernel_size[1]))
            )
            assert abs(w.mean()) < 5 * std / sqrt(w.numel())
            assert abs(w.std() / std - 1) < 5 / sqrt(2 * w.numel())
            assert (w.abs() > 2 * std).double().mean() == pytest.approx(
                0.0455, abs=5 * sqrt(0.0455 / w.numel())
            )  # normal, not uniform
            seen += 1
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            assert (module.bias == 0).all()
    assert seen >= 4


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("lenet30", GREY, 10, 0), "unknown model 'lenet30'; did you mean 'lenet300'"),
        (("lenet300", GREY, 10, 0, "panic"), "unknown initialisation 'panic'.*panning"),
        (("lenet5", (1, 8, 8), 10, 0), "at least 16x16 pixels, got 8x8"),
        (("vgg11", GREY, 10, 0), "at least 32x32 pixels, got 28x28"),
    ],
)
def test_bad_requests_are_named(arguments, says):
    with pytest.raises(UserError, match=says):
        models.build(*arguments)


def test_a_network_that_does_not_say_its_input_is_an_error():
    assert models.input_shape(nn.Sequential(nn.Linear(4, 2))) == (4,)
    with pytest.raises(UserError, match="model.input_shape"):
        models.input_shape(nn.Sequential(nn.Conv2d(1, 2, 3)))


def positions(size, kernel, stride, padding):
    """How many places a kernel has along one side, counted one by one."""
    return sum(
        1
        for start in range(-padding, size + padding)
        if start + kernel <= size + padding and (start + padding) % stride == 0
    )


def test_uses_counts_the_places_of_every_kernel():
    model = nn.Sequential(
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 2, 2),
        nn.Flatten(),
        nn.Linear(20, 2),
    )
    model.input_shape = (3, 12, 13)
    first = positions(12, 3, 2, 1), positions(13, 2, 1, 0)
    second = positions(first[0] // 2, 2, 1, 0), positions(first[1] // 2, 2, 1, 0)
    assert models.uses(model) == {
        "0.weight": first[0] * first[1],
        "2.weight": second[0] * second[1],
        "4.weight": 1,
    }


def test_uses_of_lenet5_and_a_resnet():
    assert models.uses(models.build("lenet5", GREY, 10, 0)) == {
        "conv1.weight": 576,
        "conv2.weight": 64,
        "fc1.weight": 1,
        "fc2.weight": 1,
    }
    uses = models.uses(models.build("resnet20", COLOUR, 10, 0))
    assert [uses[f"blocks.{i}.conv1.weight"] for i in (0, 3, 6)] == [1024, 256, 64]
    assert uses["blocks.3.shortcut.0.weight"] == 256 and uses["conv.weight"] == 1024


def test_uses_changes_nothing(residual, unchanged):
    with unchanged(residual):
        assert models.uses(residual) == {
            "0.weight": 36,
            "4.conv1.weight": 4,
            "4.conv2.weight": 4,
            "4.shortcut.0.weight": 4,
            "6.weight": 1,
        }


def test_the_linearised_network_has_the_weights_it_is_given_and_no_biases_and_no_batchnorm(
    residual, residual_batch
):
    weights = {name: torch.rand_like(w) for name, w in models.prunable(residual).items()}
    with models.linearised(residual, weights):
        out = residual(residual_batch[0].abs())
    first, conv1, conv2, shortcut, last = weights.values()
    x = F.max_pool2d(F.conv2d(residual_batch[0].abs(), first, padding=1), 2)
    x = F.conv2d(F.conv2d(x, conv1, stride=2, padding=1), conv2, padding=1) + F.conv2d(
        x, shortcut, stride=2
    )
    assert torch.allclose(out, F.linear(x.flatten(1), last), rtol=1e-12)


def test_a_layer_that_paths_cannot_be_followed_through_is_named():
    model = nn.Sequential(nn.Linear(4, 2), nn.Bilinear(2, 2, 2))
    model[1].forward = lambda x: nn.functional.bilinear(x, x, model[1].weight)
    with models.linearised(model, models.prunable(model)):
        with pytest.raises(UserError, match="which calls bilinear"):
            model(torch.ones(1, 4, requires_grad=True))
    assert "forward" not in vars(model)


@pytest.mark.parametrize("paths", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_linearised_network_is_itself_again_afterwards(
    residual, residual_batch, unchanged, paths, fails
):
    residual.eval()
    before = residual(residual_batch[0])
    residual.train()
    with unchanged(residual):
        try:
            with models.linearised(residual, models.prunable(residual), paths=paths):
                assert not any(m.training for m in residual.modules())
                with torch.no_grad():
                    assert not torch.allclose(residual(residual_batch[0]), before)
                if fails:
                    raise KeyError("inside")
        except KeyError:
            assert fails
    residual.eval()
    assert torch.equal(residual(residual_batch[0]), before)


def test_with_paths_every_pixel_of_a_pooling_window_counts():
    model = nn.Sequential(nn.MaxPool2d(2))
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    for paths, live in ((False, 4), (True, 16)):
        with models.linearised(model, {}, paths=paths):
            (gradient,) = torch.autograd.grad(model(x).sum(), x)
        assert int((gradient > 0).sum()) == live
