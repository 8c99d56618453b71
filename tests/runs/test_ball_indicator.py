"""Ball indicators: closed forms for errors, symmetries, and what is trained."""

import dataclasses
import json
import math

import pytest
import torch

from panning_core.errors import UserError
from panning_core.runs import ball_indicator, base
from panning_core.runs.ball_indicator import BallIndicator, Network, sample


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def execute(**fields):
    return BallIndicator(**fields).execute(base.Context())


# --- data ---


@pytest.mark.parametrize("radii", ["uniform", "heavy"])
def test_half_the_points_lie_in_the_ball(radii):
    run = BallIndicator(dimension=7, radii=radii)
    x, y = sample(run, 40_000, seeded(0))
    radius = x.norm(dim=1) / 7**0.5
    assert (
        torch.equal(y, (radius <= 1).float()) or (radius[y != (radius <= 1)] - 1).abs().max() < 1e-5
    )
    assert float(y.mean()) == pytest.approx(0.5, abs=5 * 0.5 / 200)
    directions = x / x.norm(dim=1, keepdim=True)
    assert directions.mean(0).abs().max() < 5 / 200
    second = directions.T @ directions / 40_000
    assert (second - torch.eye(7) / 7).abs().max() < 5 / 200


def test_the_radial_laws_are_those_of_the_formulas():
    u = torch.rand(200_000, generator=seeded(1))
    uniform, heavy = ball_indicator.uniform(u), ball_indicator.heavy(u)
    for t in (0.25, 1.0, 1.7):
        assert float((uniform <= t).double().mean()) == pytest.approx(t / 2, abs=0.006)
    for t in (0.8, 1.0, 2.0, 5.0):
        assert float((heavy > t).double().mean()) == pytest.approx(1 / (2 * t * t), abs=0.006)
    assert float(heavy.min()) >= 0.5**0.5 - 1e-6 and float(heavy.max()) <= 500**0.5 + 1e-3


# --- networks ---


@pytest.mark.parametrize("network, output", [("two-layers", 0.5), ("features", 0.0)])
def test_an_untrained_network_is_a_constant(network, output):
    """v = 0 and c = 0: the sigmoid says 1/2, whose squared error is 1/4."""
    run = BallIndicator(network=network)
    x, y = sample(run, 1000, seeded(0))
    out = ball_indicator.evaluate(Network(run, seeded(1)), x)
    assert (out == output).all()
    if network == "two-layers":
        assert (out - y).square().mean() == 0.25


@pytest.mark.parametrize("network", list(ball_indicator.NETWORKS))
def test_the_network_is_the_formula_point_by_point(network):
    run = BallIndicator(network=network, dimension=3, width=4, density=0.5)
    net = Network(run, seeded(2))
    with torch.no_grad():
        net.v.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
        net.c.fill_(-0.3)
    x, _ = sample(run, 5, seeded(3))

    def sigmoid(t):
        return 1 / (1 + math.exp(-t))

    def value(point):
        total = -0.3
        for v, row, b in zip(net.v.tolist(), net.weight.tolist(), net.bias.tolist()):
            total += v * sigmoid(sum(w * t for w, t in zip(row, point)) + b)
        return sigmoid(total) if network == "two-layers" else total

    wanted = [value(point) for point in x.tolist()]
    assert ball_indicator.evaluate(net, x).tolist() == pytest.approx(wanted, abs=1e-5)


def test_opposite_units_without_biases_are_a_constant():
    """sigmoid(z) + sigmoid(-z) = 1: without biases the best error is that of a constant."""
    run = BallIndicator(dimension=5, width=2)
    net = Network(run, seeded(0))
    with torch.no_grad():
        net.weight[1], net.v[:] = -net.weight[0], 1.7
        net.bias.zero_()
    out = ball_indicator.evaluate(net, sample(run, 500, seeded(1))[0])
    assert (out - 1 / (1 + math.exp(-1.7))).abs().max() < 1e-6


@pytest.mark.parametrize("network", ["two-layers", "one-layer"])
def test_a_rotation_of_data_and_weights_changes_nothing(network):
    run = BallIndicator(network=network, dimension=6, width=20)
    turn = torch.linalg.qr(torch.randn((6, 6), generator=seeded(4)))[0]
    plain, turned = Network(run, seeded(0)), Network(run, seeded(0))
    with torch.no_grad():
        turned.weight.copy_(turned.weight @ turn)
    for step in range(20):
        x, y = sample(run, 64, seeded(step))
        for net, points in ((plain, x), (turned, x @ turn)):
            gradients = torch.autograd.grad((net(points) - y).square().mean(), net.trained)
            with torch.no_grad():
                for part, gradient in zip(net.trained, gradients):
                    part -= 0.5 * gradient
    x, _ = sample(run, 200, seeded(99))
    out = ball_indicator.evaluate(plain, x)
    assert (ball_indicator.evaluate(turned, x @ turn) - out).abs().max() < 1e-4
    assert out.std() > 1e-3


def test_a_threshold_on_the_radius_has_the_error_of_the_integral():
    """sigmoid(t (1 - radius)), radii uniform in (0, 2): (2 ln 2 - 1) / (2 t) for large t."""
    x, y = sample(BallIndicator(dimension=4), 400_000, seeded(0))
    for t in (10, 30):
        out = torch.sigmoid(t * (1 - x.norm(dim=1) / 2))
        error = float((out - y).square().mean())
        assert error == pytest.approx((2 * math.log(2) - 1) / (2 * t), rel=0.02)


@pytest.mark.parametrize("density, kept", [(1.0, 3000), (0.3, 900), (0.1, 300)])
def test_a_sparse_layer_keeps_so_many_weights_and_their_variance(density, kept):
    net = Network(BallIndicator(density=density), seeded(0))
    assert int((net.weight != 0).sum()) == int(net.mask.sum()) == kept
    # of w . x at |x|^2 = d, averaged over units
    assert float(net.weight.square().sum(1).mean()) == pytest.approx(9, rel=0.2)
    dense = Network(BallIndicator(), seeded(0))
    assert torch.equal(net.bias, dense.bias)
    scaled = dense.weight[net.mask] / density**0.5
    torch.testing.assert_close(net.weight[net.mask], scaled)


def test_removed_weights_stay_zero_and_frozen_ones_as_they_were():
    for network, moves in (("one-layer", True), ("two-layers", False), ("features", False)):
        run = BallIndicator(network=network, density=0.3, dimension=4, width=30)
        net, first = Network(run, seeded(0)), Network(run, seeded(0)).weight
        optimiser = torch.optim.Adam(net.trained, lr=0.01)
        for step in range(3):
            x, y = sample(run, 64, seeded(step))
            (net(x) - y).square().mean().backward()
            optimiser.step()
        assert torch.equal(net.weight == 0, ~net.mask)
        assert torch.equal(net.weight, first) != moves and (net.v != 0).all()


# --- runs ---


def test_a_run_repeats_itself_and_holds_plain_numbers():
    short = {"steps": 20, "width": 40}
    state = torch.get_rng_state()
    found = execute(**short)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == execute(**short) != execute(seed=1, **short)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["trained"] == 41 and found["kept"] == 400
    assert execute(network="one-layer", density=0.1, **short)["trained"] == 41 + 40 + 40


def test_the_second_sigmoid_helps():
    """Below half the error of a linear top, with as many trained parameters."""
    short = {"steps": 400, "width": 200, "dimension": 3}
    two, features = execute(**short), execute(network="features", **short)
    assert two["trained"] == features["trained"] == 201
    assert two["squared_error"] < 0.5 * features["squared_error"] < 0.5 * 0.25
    assert two["misclassified"] < 0.05
    assert two["validation_error"] == pytest.approx(two["squared_error"], rel=0.2)


def test_the_kind_and_its_key():
    assert base.kind("ball-indicator") is BallIndicator
    assert BallIndicator().canonical() == {} and BallIndicator(seed=2).canonical() == {"seed": 2}
    again = BallIndicator(**json.loads(json.dumps(BallIndicator(radii="heavy").canonical())))
    assert again == BallIndicator(radii="heavy")
    assert [f.name for f in dataclasses.fields(BallIndicator)][0] == "seed"


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("seed", -1, "seed of a ball indicator is -1"),
        ("dimension", 0, "dimension of a ball indicator is 0; it must be a whole number from 1"),
        ("width", 2.5, "width of a ball indicator is 2.5"),
        ("steps", 0, "steps of a ball indicator is 0"),
        ("radii", "unifrom", "did you mean 'uniform'"),
        ("network", "deep", "unknown network of a ball indicator 'deep'"),
        ("optimiser", None, "unknown optimiser of a ball indicator None"),
        ("density", 1.5, "density is 1.5"),
        ("density", 0.0, "keeps none of the 3000 hidden weights"),
        ("rate", 0, "rate of a ball indicator is 0; it must be a number above 0"),
        ("rate", math.nan, "rate of a ball indicator is nan"),
    ],
)
def test_bad_fields_are_named(field, value, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        BallIndicator(**{field: value})
