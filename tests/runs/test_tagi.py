"""TAGI: its step by hand, its limits, its tree of classes, and what pruning leaves alone."""

import copy
import json
import math

import pytest
import torch

from panning_core import masks
from panning_core.errors import UserError
from panning_core.methods import tagi
from panning_core.methods.tagi import Layer, Moments
from panning_core.runs import base
from panning_core.runs import tagi as task
from panning_core.runs.tagi import Tagi


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def small():
    """The network 2-2-1 of the oracle."""
    rows = [[[0.5, -0.3], [0.2, 0.4]], [0.3, 0.0]], [[[0.7, -0.5]], [0.05]]
    variances = (0.04, 0.01), (0.09, 0.02)
    net = []
    for (weight, bias), (w, b) in zip(rows, variances):
        weight, bias = (torch.tensor(each, dtype=torch.double) for each in (weight, bias))
        net.append(Layer(weight, torch.full_like(weight, w), bias, torch.full_like(bias, b)))
    return net


def row(x=(1.0, 0.5), y=1.0):
    return torch.tensor([x], dtype=torch.double), torch.tensor([[y]], dtype=torch.double)


#: activation -> mean and variance of the prediction, then what each tensor is after one observation
#: 1 with the noise variance 0.25; computed with another program, to six decimals
ORACLE = {
    "relu": (
        (0.305, 0.127625),
        {
            (0, "weight"): [[0.551533, -0.274234], [0.163191, 0.381595]],
            (0, "weight_variance"): [[0.037924, 0.039481], [0.038941, 0.039735]],
            (0, "bias"): [0.312883, -0.009202],
            (1, "weight"): [[0.807666, -0.433744]],
            (1, "weight_variance"): [[0.080937, 0.086568]],
            (1, "bias"): [0.086809],
            (1, "bias_variance"): [0.018941],
        },
    ),
    "mixture-relu": (
        (0.302579, 0.126019),
        {
            (0, "weight"): [[0.551726, -0.274137], [0.164806, 0.382403]],
            (1, "weight"): [[0.808553, -0.432350]],
            (1, "bias"): [0.087095],
        },
    ),
}


@pytest.mark.parametrize("activation", ORACLE)
def test_a_step_is_that_of_the_table(activation):
    (mean, variance), after = ORACLE[activation]
    net, (x, y) = small(), row()
    z = tagi.predict(net, x, activation)
    assert float(z.mean) == pytest.approx(mean, abs=1e-6)
    assert float(z.variance) == pytest.approx(variance, abs=1e-6)
    tagi.learn(net, x, y, 0.5, activation)
    for (place, name), wanted in after.items():
        torch.testing.assert_close(
            getattr(net[place], name), torch.tensor(wanted).double(), atol=1e-6, rtol=0
        )


def test_one_layer_is_the_kalman_update_with_a_diagonal():
    """In full: the gain of y = w x + b + noise, of which the filter keeps variances alone."""
    generator = seeded(0)
    net = tagi.network([5, 1], generator)
    x, y, noise = torch.randn(1, 5, generator=generator), torch.tensor([[0.7]]), 0.4
    prior = copy.deepcopy(net)[0]
    tagi.learn(net, x, y, noise, "relu")
    h = torch.cat([x[0], torch.ones(1)]).double()
    state = torch.cat([prior.weight[0], prior.bias]).double()
    covariance = torch.diag(torch.cat([prior.weight_variance[0], prior.bias_variance]).double())
    gain = covariance @ h / (h @ covariance @ h + noise**2)
    state = state + gain * (float(y) - h @ state)
    covariance = covariance - torch.outer(gain, h) @ covariance
    got = torch.cat([net[0].weight[0], net[0].bias]).double()
    torch.testing.assert_close(got, state, atol=1e-6, rtol=1e-5)
    got = torch.cat([net[0].weight_variance[0], net[0].bias_variance]).double()
    torch.testing.assert_close(got, covariance.diag(), atol=1e-6, rtol=1e-5)


def test_moments_behind_a_relu_are_those_of_samples():
    z = Moments(torch.tensor([-1.0, 0.2, 2.0]).double(), torch.tensor([0.5, 1.0, 0.3]).double())
    normal = torch.randn(2_000_000, 3, generator=seeded(1)).double()
    samples = z.mean + normal * z.variance.sqrt()
    live = samples.clamp_min(0)
    got, share = tagi.mixture_relu(z)
    torch.testing.assert_close(got.mean, live.mean(0), atol=3e-3, rtol=0)
    torch.testing.assert_close(got.variance, live.var(0), atol=3e-3, rtol=0)
    covariance = ((samples - samples.mean(0)) * (live - live.mean(0))).mean(0)
    torch.testing.assert_close(share, covariance / samples.var(0), atol=3e-3, rtol=0)


def test_without_variance_it_is_a_plain_network_that_learns_nothing():
    net = tagi.network([6, 5, 3], seeded(0), gain=0.0)
    before, x = copy.deepcopy(net), torch.randn(7, 6, generator=seeded(1))
    z = tagi.predict(net, x, "relu")
    hidden = (x @ net[0].weight.T + net[0].bias).relu()
    torch.testing.assert_close(z.mean, hidden @ net[1].weight.T + net[1].bias)
    assert not z.variance.any()
    tagi.learn(net, x, torch.ones(7, 3), 1.0, "relu")
    for new, old in zip(net, before):
        assert torch.equal(new.weight, old.weight) and torch.equal(new.bias, old.bias)
        assert not new.weight_variance.any() and not new.bias_variance.any()


def test_two_equal_rows_move_twice_as_far_and_the_cap_ends_that():
    (x, y), changes = row(), {}
    for noise, count in ((5.0, 1), (5.0, 2), (0.01, 64), (0.01, 300)):
        net = small()
        tagi.learn(net, x.expand(count, 2), y.expand(count, 1), noise, "relu")
        changes[count] = net[1].weight - small()[1].weight
    torch.testing.assert_close(changes[2], 2 * changes[1])
    assert float(changes[64].abs().max()) == pytest.approx(0.3 / 2)
    assert float(changes[300].abs().max()) == pytest.approx(0.3 / 3)


def test_outputs_that_are_not_observed_teach_nothing():
    net = tagi.network([4, 3, 2], seeded(0))
    before, x = copy.deepcopy(net), torch.randn(5, 4, generator=seeded(1))
    observed = torch.tensor([True, False]).expand(5, 2)
    tagi.learn(net, x, torch.full((5, 2), 9.0), 1.0, "mixture-relu", observed)
    assert torch.equal(net[1].weight[1], before[1].weight[1])
    assert torch.equal(net[1].bias_variance[1], before[1].bias_variance[1])
    assert not torch.equal(net[1].weight[0], before[1].weight[0])


def test_the_tree_of_ten_classes_is_the_published_one():
    ten = tagi.tree(10)
    assert ten.outputs == 11
    for label, nodes, signs in (
        (0, [1, 2, 4, 7], [1, 1, 1, 1]),
        (7, [1, 2, 5, 10], [1, -1, -1, -1]),
        (9, [1, 3, 6, 11], [-1, 1, 1, -1]),
    ):
        assert (ten.nodes[label] + 1).tolist() == nodes and ten.signs[label].tolist() == signs
    with pytest.raises(UserError, match="at least 2 classes"):
        tagi.tree(1)


@pytest.mark.parametrize("classes", [2, 3, 8, 10])
def test_probabilities_are_those_of_the_paths(classes):
    of = tagi.tree(classes)
    paths = {tuple(zip(n.tolist(), s.tolist())) for n, s in zip(of.nodes, of.signs)}
    assert len(paths) == classes and of.nodes.unique().tolist() == list(range(of.outputs))
    generator = seeded(2)
    z = Moments(*(torch.rand(6, of.outputs, generator=generator) for _ in range(2)))
    got = tagi.probabilities(z, of)
    for i in range(6):
        each = []
        for nodes, signs in zip(of.nodes.tolist(), of.signs.tolist()):
            p = 1.0
            for node, sign in zip(nodes, signs):
                score = float(z.mean[i, node] / (1 / 9 + z.variance[i, node]) ** 0.5)
                up = 0.5 * (1 + math.erf(score / 2**0.5))
                p *= up if sign > 0 else 1 - up
            each.append(p)
        if classes in (2, 8):
            assert sum(each) == pytest.approx(1)
        wanted = torch.tensor(each).double() / sum(each)
        torch.testing.assert_close(got[i], wanted, atol=1e-6, rtol=1e-5)


def test_what_is_observed_is_the_path_of_the_label():
    of, labels = tagi.tree(10), torch.tensor([3, 9, 0])
    values, observed = tagi.observations(labels, of)
    assert observed.sum(1).tolist() == [4, 4, 4]
    sure = Moments(10 * values, torch.zeros_like(values))
    assert torch.equal(tagi.probabilities(sure, of).argmax(1), labels)


def test_a_pruned_weight_stays_zero_and_known():
    net = tagi.network([6, 5, 3], seeded(0))
    mask = masks.keep_top(tagi.magnitude(net, seeded(0)), 0.3)
    sparse = tagi.pruned(net, mask)
    for _ in range(5):
        x = torch.randn(8, 6, generator=seeded(1))
        tagi.learn(sparse, x, torch.ones(8, 3), 0.1, "mixture-relu")
    for layer, dense, kept in zip(sparse, net, mask.values()):
        assert not layer.weight[~kept].any() and not layer.weight_variance[~kept].any()
        assert (layer.weight_variance[kept] > 0).all() and dense.weight[~kept].all()


def test_scores_are_what_they_are_called():
    net = small()
    net[0].weight_variance[0, 1] = 0.01
    ratio = tagi.signal_to_noise(net, seeded(0))
    assert ratio["0.weight"].tolist() == [
        [pytest.approx(2.5), pytest.approx(3.0)],
        [pytest.approx(1.0), pytest.approx(2.0)],
    ]
    assert tagi.magnitude(net, seeded(0))["1.weight"].tolist() == [[0.7, 0.5]]
    assert tagi.certainty(net, seeded(0))["0.weight"][0].tolist() == [-0.04, -0.01]
    assert tagi.chance(net, seeded(0)).keys() == ratio.keys()


# --- The run ---


SHORT = {"dataset": "digits", "epochs": 2, "width": 20}


@pytest.mark.parametrize("learner", ["tagi", "adam", "sgd"])
def test_a_run_learns_the_digits_and_repeats_itself(learner):
    run = Tagi(**SHORT, learner=learner, lr=0.01, noise=0.2)
    state = torch.random.get_rng_state()
    found = run.execute(base.Context())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    again = run.execute(base.Context())
    assert {**found, "train_seconds": 0} == {**again, "train_seconds": 0}
    assert len(found["curve"]) == 2 and found["curve"][-1] == pytest.approx(found["test_accuracy"])
    assert found["test_accuracy"] > 0.7 and -1 < found["test_log_likelihood"] < 0
    assert 0 < found["validation_calibration_error"] < 0.3


def test_all_learners_start_from_the_same_network_and_images():
    runs = [Tagi(**SHORT, learner=learner, images=50) for learner in ("tagi", "adam")]
    tasks = [task.drawn(run, seeded(run.seed)) for run in runs]
    assert torch.equal(tasks[0].train.x, tasks[1].train.x) and len(tasks[0].train) == 50
    net = tagi.network([64, 20, 20, 11], seeded(0))
    model = task.Gradient(net, 10, runs[1]).model
    x = tasks[0].test.x
    got = tagi.predict(tagi.network([64, 20, 20, 11], seeded(0), gain=0.0), x, "relu").mean
    torch.testing.assert_close(model(x), got[:, :10])


def test_pruned_networks_have_the_weights_asked_for():
    found = Tagi(**SHORT, prune=True).execute(base.Context())["pruned"]
    assert len(found) == len(task.PRUNINGS) * len(task.SPARSITIES)
    sizes = torch.tensor([64 * 20, 20 * 20, 20 * 11]).double()
    for row_ in found:
        kept = (torch.tensor(row_["shares"]).double() * sizes).sum()
        assert float(kept) == pytest.approx((1 - row_["sparsity"]) * float(sizes.sum()), abs=1)
        if row_["scope"] == "uniform":
            assert row_["shares"] == pytest.approx([1 - row_["sparsity"]] * 3, abs=0.005)
        assert 0 <= row_["before"] <= 1 and 0 <= row_["after"] <= 1
    after = {(r["score"], r["scope"], r["sparsity"]): r["after"] for r in found}
    assert after["magnitude", "global", 0.9] > after["random", "global", 0.9]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"learner": "adams"}, "unknown learner 'adams'"),
        ({"activation": "tanh"}, "unknown activation"),
        ({"noise": 0}, "noise of tagi is 0; it must be a number above 0"),
        ({"lr": -1.0}, "lr of tagi is -1.0"),
        ({"images": 0}, "images of tagi is 0; it must be a whole number from 1"),
        ({"epochs": 1.5}, "epochs of tagi"),
        ({"learner": "adam", "prune": True}, "prune is for the learner tagi"),
    ],
)
def test_bad_input_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        Tagi(**wrong)


def test_more_images_than_there_are():
    with pytest.raises(UserError, match="images of tagi are 99,999; scikit-learn digits has"):
        Tagi(dataset="digits", images=99_999).execute(base.Context())
