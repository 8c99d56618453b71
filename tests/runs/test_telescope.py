"""The telescoping model and its smoother: literal steps by hand, and a Jacobian by autograd."""

import dataclasses
import json

import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from panning_core import data, masks
from panning_core.errors import UserError
from panning_core.methods.telescope import (
    ACTIVATIONS,
    Network,
    Path,
    Points,
    Smoother,
    as_module,
    effective_parameters,
)
from panning_core.runs import base, telescope
from panning_core.runs.telescope import Telescope

SMALL = {"dataset": "digits", "points": 20, "width": 4, "steps": 30}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.double)


def network(units=5, pixels=3, activation="silu", seed=0, density=1.0):
    generator = seeded(seed)
    w = torch.randn((units, pixels), generator=generator).double()
    a = torch.randn(units, generator=generator).double()
    first = torch.rand((units, pixels), generator=generator) < density
    last = torch.rand(units, generator=generator) < density
    return Network(w * first, a * last, first, last, activation)


def points(n=8, tested=6, pixels=3, seed=1):
    generator = seeded(seed)
    x, x_test = (torch.randn((k, pixels), generator=generator).double() for k in (n, tested))
    y, y_test = (torch.sign(torch.randn(k, generator=generator)).double() for k in (n, tested))
    return Points(x, y, x_test, y_test)


# --- by hand ---


def test_two_steps_of_a_line_by_hand():
    """f = w x, training (1, 1) and (2, 3), test 3, w = 0 at first, rate 0.1."""
    x, y = matrix([1.0], [2.0], [3.0]), torch.tensor([1.0, 3.0]).double()
    smoother = Smoother(torch.zeros(3).double(), 2)
    smoother.step(x @ x[:2].T, 0.1)
    assert torch.allclose(smoother.s, matrix([0.05, 0.1], [0.1, 0.2], [0.15, 0.3]), atol=1e-15)
    smoother.step(x @ x[:2].T, 0.1)
    wanted = matrix([0.0875, 0.175], [0.175, 0.35], [0.2625, 0.525])
    assert torch.allclose(smoother.s, wanted, atol=1e-15)
    assert torch.allclose(smoother.outputs(y), matrix([0.6125, 1.225, 1.8375])[0], atol=1e-14)
    assert effective_parameters(smoother.s[:2]) == pytest.approx(0.191406, abs=1e-6)
    assert effective_parameters(smoother.s[2:]) == pytest.approx(0.689063, abs=1e-6)


def test_one_relu_by_hand():
    """f = a relu(w x), w = 1, a = 0.5, one point (1, 1), rate 0.1; at x = 2 the step changes f by
    0.1275, to first order by 0.125."""
    on = torch.ones((1, 1), dtype=torch.bool)
    one = Network(matrix([1.0]), torch.tensor([0.5]).double(), on, on[0], "relu")
    line = Points(matrix([1.0]), torch.ones(1).double(), matrix([2.0]), torch.ones(1).double())
    # The trace of K is 1 + 0.25.
    path = Path(one, line, 0.1 * 1.25)
    before = path.outputs[1]
    path.step()
    assert float(path.network.w) == pytest.approx(1.025)
    assert float(path.network.a) == pytest.approx(0.55)
    assert float(path.outputs[1] - before) == pytest.approx(0.1275)
    for model in (path.telescoped, path.lazy, path.smoother.outputs(line.y)):
        assert float(model[1] - before) == pytest.approx(0.125)


def test_effective_parameters_of_a_memory_and_of_a_mean():
    assert effective_parameters(torch.eye(7)) == pytest.approx(7)
    assert effective_parameters(torch.full((3, 7), 1 / 7)) == pytest.approx(1)


# --- against autograd ---


def jacobian(net, x):
    """[inputs, weights] of every kept weight by torch.func, of the module that is pruned."""
    model = as_module(net.w, net.a, net.activation).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def output(weights, row):
        return functional_call(model, weights, row[None])[0, 1]

    parts = vmap(jacrev(output), (None, 0))(parameters, x)
    kept = torch.cat([net.first.flatten(), net.last])
    return torch.cat([part.flatten(1) for part in parts.values()], 1) * kept


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("density", [1.0, 0.6])
def test_kernel_gradient_and_change_are_those_of_the_jacobian(activation, density):
    net, x = network(activation=activation, density=density), points().x
    # The module is float32 at first.
    net = net._replace(w=net.w.float().double(), a=net.a.float().double())
    tangent, wanted = net.tangent(x), jacobian(net, x)
    assert torch.allclose(tangent.kernel(4), wanted @ wanted[:4].T, atol=1e-12)
    residual = torch.randn(4, generator=seeded(2)).double()
    flat = torch.cat([part.flatten() for part in tangent.gradient(residual)])
    assert torch.allclose(flat, residual @ wanted[:4], atol=1e-12)
    step = [torch.randn(p.shape, generator=seeded(3)).double() for p in (net.w, net.a)]
    moved = torch.cat([(step[0] * net.first).flatten(), step[1] * net.last])
    change = tangent.change(step[0] * net.first, step[1] * net.last)
    assert torch.allclose(change, wanted @ moved, atol=1e-12)


def test_a_path_is_gradient_descent_on_half_the_mean_squared_error():
    net, task = network(density=0.6), points()
    path, w, a = Path(net, task, 0.7), net.w.clone(), net.a.clone()
    for _ in range(5):
        trace = float(jacobian_of(net._replace(w=w, a=a), task.x).square().sum())
        w.requires_grad_(), a.requires_grad_()
        f = torch.nn.functional.silu(task.x @ w.T) @ a
        ((f - task.y) ** 2 / 2).mean().backward()
        with torch.no_grad():
            rate = 0.7 * len(task.y) / trace
            w, a = (w - rate * w.grad * net.first), (a - rate * a.grad * net.last)
        path.step()
    assert torch.allclose(path.network.w, w, atol=1e-12)
    assert torch.allclose(path.network.a, a, atol=1e-12)


def jacobian_of(net, x):
    """[inputs, weights] as loops over units and pixels."""
    z = x @ net.w.T
    slope = net.a * z.sigmoid() * (1 + z * (1 - z.sigmoid()))
    columns = [
        slope[:, j] * x[:, i]
        for j in range(len(net.a))
        for i in range(x.shape[1])
        if net.first[j, i]
    ]
    columns += [torch.nn.functional.silu(z[:, j]) for j in range(len(net.a)) if net.last[j]]
    return torch.stack(columns, 1)


# --- identities ---


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_the_smoother_is_the_closed_loop_recursion(density):
    """f~ += -g/n K (f~(X) - y), run beside it without S and c."""
    task = points()
    path = Path(network(density=density), task, 0.5)
    closed, n = path.outputs.clone(), len(task.y)
    for _ in range(20):
        kernel = path.network.tangent(path.x).kernel(n)
        rate = 0.5 * n / float(kernel[:n].trace())
        closed = closed - rate / n * kernel @ (closed[:n] - task.y)
        path.step()
    assert torch.allclose(path.smoother.outputs(task.y), closed, atol=1e-12)


def test_a_network_that_is_linear_in_what_is_trained_telescopes_exactly():
    """Only the last layer is kept for training."""
    net = network()
    net = net._replace(first=torch.zeros_like(net.first))
    path = Path(net, points(), 1.0)
    for _ in range(30):
        path.step()
    for model in (path.telescoped, path.lazy, path.smoother.outputs(path.points.y)):
        assert torch.allclose(model, path.outputs, atol=1e-12)


def test_smaller_steps_leave_a_smaller_error():
    errors = []
    for rate, steps in ((1.0, 20), (0.25, 80), (0.0625, 320)):
        path = Path(network(), points(), rate)
        for _ in range(steps):
            path.step()
        errors.append(path.look())
    for name in ("telescope_error", "smoother_error"):
        large, middle, small = (error[name] for error in errors)
        assert middle < large / 2 and small < middle / 2
    assert errors[-1]["lazy_error"] > 10 * errors[-1]["telescope_error"]


# --- the run ---


def test_points_have_two_classes_wrong_labels_and_the_scale_of_training():
    splits = data.load("digits")
    clean = telescope.draw_points(splits, 50, 0.0, seeded(0))
    noisy = telescope.draw_points(splits, 50, 0.2, seeded(0))
    assert int((clean.y != noisy.y).sum()) == 10 and torch.equal(clean.x, noisy.x)
    assert torch.equal(clean.y_test, noisy.y_test) and set(clean.y.tolist()) == {-1.0, 1.0}
    assert clean.x.shape == (50, 64) and clean.x.dtype == torch.double
    assert float(clean.x.mean(0).abs().max()) < 1e-12
    assert float(clean.x.square().mean()) == pytest.approx(1)
    with pytest.raises(UserError, match="9999 are wanted"):
        telescope.draw_points(splits, 9999, 0.0, seeded(0))


@pytest.mark.parametrize("method", ["random", "snip", "synflow"])
def test_a_pruned_network_keeps_its_zeros_and_its_count(method):
    run = Telescope(**SMALL, method=method, density=0.3)
    task = telescope.draw_points(data.load("digits"), 20, 0.2, seeded(0))
    path = Path(telescope.build(task, run, seeded(0)), task, 1.0)
    for _ in range(5):
        path.step()
    kept = {"w": path.network.first, "a": path.network.last}
    assert masks.count(kept) == round(0.3 * (4 * 64 + 4))
    assert not path.network.w[~kept["w"]].any() and not path.network.a[~kept["a"]].any()


def test_a_shuffled_mask_has_as_many_weights_in_each_layer():
    task = telescope.draw_points(data.load("digits"), 20, 0.2, seeded(0))
    found, shuffled = (
        telescope.build(
            task, Telescope(**SMALL, method="snip", density=0.3, shuffled=control), seeded(0)
        )
        for control in (False, True)
    )
    for part in ("first", "last"):
        kept, moved = getattr(found, part), getattr(shuffled, part)
        assert int(kept.sum()) == int(moved.sum())
    assert not torch.equal(found.first, shuffled.first)
    both = found.first & shuffled.first
    assert torch.equal(found.w[both], shuffled.w[both])


def test_a_run_says_what_it_found():
    found = Telescope(**SMALL).execute(base.Context())
    assert Telescope(**SMALL).execute(base.Context()) == found
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["step"] == 30 and found["kept_weights"] == 4 * 65 and found["units"] == 4
    assert found["curve"]["step"][0] == 0 and found["curve"]["p_test"][0] == 0
    assert found["p_test"] == found["curve"]["p_test"][-1]
    for level, seen in found["at"].items():
        before = [e for e, s in zip(*map(found["curve"].get, ("train_mse", "step")))
                  if s < seen["step"]]  # fmt: skip
        assert seen["train_mse"] <= float(level) < min(before)


def test_a_run_ends_at_the_error_asked_for():
    found = Telescope(**SMALL, until=0.6).execute(base.Context())
    assert found["step"] < 30 and found["train_mse"] <= 0.6 < found["curve"]["train_mse"][-2]
    assert found["at"]["0.6"]["step"] == found["step"]


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"seed": -1}, "seed of a telescope is -1"),
        ({"points": 1}, "points of a telescope is 1; it must be a whole number from 2"),
        ({"width": 0}, "width of a telescope is 0"),
        ({"steps": 0}, "steps of a telescope is 0"),
        ({"noise": 1.0}, "noise of a telescope is 1.0"),
        ({"until": -0.1}, "until of a telescope is -0.1; it must be a number from 0"),
        ({"rate": 2}, "rate of a telescope is 2; it must be between 0 and 2"),
        ({"activation": "rely"}, "unknown activation 'rely'; did you mean 'relu'"),
        ({"method": "snap", "density": 0.1}, "unknown pruner 'snap'"),
        ({"method": "snip"}, "method snip with density 1.0"),
        ({"density": 0.1}, "method dense with density 0.1"),
        ({"shuffled": True}, "shuffled of a telescope is True; .* false without a mask"),
        ({"shuffled": 1, "method": "snip", "density": 0.1}, "shuffled of a telescope is 1"),
        ({"density": 1.1}, "density is 1.1"),
    ],
)
def test_bad_fields_are_named(fields, says):
    with pytest.raises(UserError, match=says):
        Telescope(**fields)


def test_data_without_the_classes_are_named():
    rows = data.Split(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), 2)
    splits = dataclasses.replace(data.load("digits"), train=rows)
    with pytest.raises(UserError, match="images of the classes 3 and 5"):
        telescope.draw_points(splits, 2, 0.0, seeded(0))
