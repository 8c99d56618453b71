"""Emergent convolution: the processes against their formulas, gradients against autograd of the
authors' two-output network, and what pruning is told."""

import json
import math

import pytest
import torch

from panning_core.analysis import locality
from panning_core.errors import UserError
from panning_core.runs import base
from panning_core.runs import emergent_convolution as emergent
from panning_core.runs.emergent_convolution import EmergentConvolution, Net, Process

SMALL = {"sites": 24, "units": 4, "steps": 300}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- inputs ---


def test_the_variance_is_the_published_gamma():
    for gain, wanted in ((1, 1 / 3), (3, 0.712867), (10, 0.910341)):
        assert emergent.variance(gain) == pytest.approx(wanted, abs=1e-6)


def test_covariances_on_a_ring_of_six():
    gaussian = emergent.covariance(6, 1.0)
    plain = [1, 0.367879, 0.018316, 0.000123, 0.018316, 0.367879]
    assert gaussian[0].tolist() == pytest.approx(plain, abs=1e-6)
    nonlinear = emergent.nlgp_covariance(gaussian, 3.0)
    wanted = [1, 0.301366, 0.014722, 0.000099, 0.014722, 0.301366]
    assert nonlinear[0].tolist() == pytest.approx(wanted, abs=1e-6)
    for matrix in (gaussian, nonlinear):
        for i in range(6):
            assert torch.equal(matrix[i], matrix[0].roll(i))
    sharp = emergent.nlgp_covariance(gaussian + 1e-3 * torch.eye(6), 100.0)
    assert sharp.isfinite().all()


@pytest.mark.parametrize("inputs", ["nlgp", "gp"])
@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_both_inputs_have_the_same_covariance(inputs, gain):
    """The authors' own test: a relative squared error below 0.01."""
    process = Process(EmergentConvolution(inputs=inputs, gain=gain, sites=40))
    x, y = process.sample(100_000, seeded(0))
    assert x.shape == (100_000, 40) and y[:4].tolist() == [1, -1, 1, -1]
    for label, length in ((1, 1.0), (-1, 5.0)):
        part = x[y == label].double()
        wanted = emergent.nlgp_covariance(emergent.covariance(40, length), gain)
        found = part.T @ part / len(part)
        assert ((found - wanted) ** 2).sum() < 0.01 * (wanted**2).sum()
        assert part.mean(0).abs().max() < 5 / len(part) ** 0.5
        # Excess kurtosis, 0 for a Gaussian; small samples of long correlations vary.
        kurtosis = float((part**4).mean() / (part**2).mean() ** 2) - 3
        assert kurtosis < -0.3 if inputs == "nlgp" else abs(kurtosis) < 0.06


# --- networks ---


def two_outputs(net, x):
    """The authors' network: two outputs with second-layer weights +1 and -1."""
    hidden = torch.erf((x @ net.weight.T / x.shape[1] ** 0.5 + net.bias) / 2**0.5)
    return torch.stack([hidden.mean(1), -hidden.mean(1)], 1)


def shifted(x):
    return torch.stack([x.roll(-shift, 1) for shift in range(x.shape[1])], 1)


@pytest.mark.parametrize("network", ["full", "convolution"])
def test_gradients_are_those_of_the_two_output_network(network):
    run = EmergentConvolution(network=network, **SMALL)
    x, y = Process(run).sample(10, seeded(0))
    nets = [emergent.initial(run, seeded(seed)) for seed in (1, 2)]
    weight = torch.cat([net.weight for net in nets])
    bias = torch.cat([net.bias for net in nets])
    by_weight, by_bias = emergent.gradients(weight, bias, emergent.views(run, x), y, run.units)
    for place, net in enumerate(nets):
        leaves = Net(net.weight.clone().requires_grad_(), net.bias.clone().requires_grad_())
        if network == "full":
            out = two_outputs(leaves, x)
        else:
            out = torch.stack([two_outputs(leaves, x.roll(-s, 1)) for s in range(24)]).mean(0)
        loss = torch.nn.functional.mse_loss(out, torch.stack([y, -y], 1))
        wanted = torch.autograd.grad(loss, leaves)
        rows = slice(place * run.units, (place + 1) * run.units)
        torch.testing.assert_close(by_weight[rows], wanted[0])
        torch.testing.assert_close(by_bias[rows], wanted[1])
        torch.testing.assert_close(emergent.output(run, net, x), out[:, 0].detach())


def test_views_of_a_convolution_are_all_shifts():
    x = torch.arange(8.0).view(2, 4)
    full = emergent.views(EmergentConvolution(sites=4), x)
    assert torch.equal(full, x[:, None])
    run = EmergentConvolution(sites=4, network="convolution")
    assert torch.equal(emergent.views(run, x), shifted(x))
    net = emergent.initial(run, seeded(0))
    torch.testing.assert_close(
        emergent.output(run, net, x), emergent.output(run, net, x.roll(2, 1))
    )


def test_training_is_plain_sgd_with_masks():
    run = EmergentConvolution(sites=24, units=4, steps=7, rate=0.3)
    process, first = Process(run), emergent.initial(run, seeded(0))
    masks = (torch.rand((2, 4, 24), generator=seeded(1)) < 0.5).float()
    trained = emergent.train(run, process, first, masks, seeded(2))
    x, y = process.sample(70, seeded(2))
    for net, mask in zip(trained, masks):
        weight, bias = (first.weight * mask).requires_grad_(), first.bias.clone().requires_grad_()
        for a, b in zip(x.split(10), y.split(10)):
            outputs = emergent.output(run, Net(weight * mask, bias), a)
            grads = torch.autograd.grad((outputs - b).square().mean(), (weight, bias))
            with torch.no_grad():
                weight -= 0.3 * 4 * grads[0]
                bias -= 0.3 * 4 / 24 * grads[1]
        torch.testing.assert_close(net.weight, (weight * mask).detach())
        torch.testing.assert_close(net.bias, bias.detach())
        assert (net.weight[mask == 0] == 0).all() and net.bias[0] > 0 > net.bias[3]


def test_a_full_network_does_not_know_where_a_site_is():
    """The same sites in another order give the same weights in that order: the locality is in the
    inputs, and only the measure of neighbours sees it."""
    run = EmergentConvolution(**SMALL)
    process, first = Process(run), emergent.initial(run, seeded(0))
    order = torch.randperm(24, generator=seeded(5))
    plain = emergent.train(run, process, first, torch.ones(1, 4, 24), seeded(1))[0]

    class Mixed:
        def sample(self, n, generator):
            x, y = process.sample(n, generator)
            return x[:, order], y

    start = first._replace(weight=first.weight[:, order])
    mixed = emergent.train(run, Mixed(), start, torch.ones(1, 4, 24), seeded(1))[0]
    torch.testing.assert_close(mixed.weight, plain.weight[:, order], atol=1e-3, rtol=1e-3)


# --- masks ---


def test_candidate_masks_keep_what_they_say():
    run = EmergentConvolution(**SMALL)
    process, first = Process(run), emergent.initial(run, seeded(0))
    dense = emergent.train(run, process, first, torch.ones(1, 4, 24), seeded(1))[0]
    scoring = process.sample(500, seeded(2))
    found = emergent.candidate_masks(run, first, dense, scoring, seeded(3))
    assert list(found) == ["trained", "shuffled", "snip", "random"]
    assert {int(mask.sum()) for mask in found.values()} == {round(0.2 * 96)}
    kept = dense.weight.abs()
    assert kept[found["trained"]].min() >= kept[~found["trained"]].max()
    assert torch.equal(found["shuffled"].sum(1), found["trained"].sum(1))
    assert not torch.equal(found["shuffled"], found["trained"])
    weight = first.weight.clone().requires_grad_()
    loss = (emergent.output(run, Net(weight, first.bias), scoring[0]) - scoring[1]).square().mean()
    score = (weight * torch.autograd.grad(loss, weight)[0]).abs()
    assert score[found["snip"]].min() >= score[~found["snip"]].max() - 1e-7
    left = emergent.pruned(dense, 0.2)
    assert torch.equal(left.weight != 0, found["trained"]) and torch.equal(left.bias, dense.bias)


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    run = EmergentConvolution(sites=4, units=2)
    net = Net(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]), torch.zeros(2))
    x, y = torch.randn((60, 4), generator=seeded(0)), torch.tensor([1.0, -1.0]).repeat(30)
    pairs = [float(a > b) for a in x[::2, 0] for b in x[1::2, 0]]
    assert emergent.area(run, net, (x, y)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


# --- runs ---


def test_a_run_repeats_itself_and_holds_plain_numbers():
    def execute(**fields):
        return EmergentConvolution(**SMALL, **fields).execute(base.Context())

    state = torch.get_rng_state()
    found = execute()
    assert torch.equal(torch.get_rng_state(), state)
    assert found == execute() != execute(seed=1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["weights"]) == 4 and len(found["weights"][0]) == 24
    assert found["auc"][0] > 0.6 and len(found["auc"]) == len(emergent.DENSITIES)
    assert {sum(each) for each in found["kept"].values()} == {round(0.2 * 96)}
    assert execute(network="convolution").keys() == found.keys() - {
        "auc",
        "kept",
        "excess",
        "retrained",
    }


def test_fields_become_local_on_non_gaussian_inputs_only():
    """The published effect, on a ring of 60: bumps of about a tenth of it in the units whose bias
    is positive, and none on Gaussian inputs."""
    spread = {}
    for inputs in emergent.INPUTS:
        run = EmergentConvolution(inputs=inputs, sites=60, units=4, steps=5000)
        first = emergent.initial(run, seeded(0))
        ones = torch.ones(1, 4, 60)
        net = emergent.train(run, Process(run), first, ones, seeded(1))[0]
        assert (net.bias[:2] > 0).all() and (net.bias[2:] < 0).all()
        spread[inputs] = locality.participation(net.weight[:2]) / 60
    assert spread["nlgp"].max() < 0.2 < spread["gp"].min()


def test_the_kind_and_its_key():
    assert base.kind("emergent-convolution") is EmergentConvolution
    assert EmergentConvolution().canonical() == {}
    assert EmergentConvolution(inputs="gp", gain=3).canonical() == {"inputs": "gp"}


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("seed", -1, "seed of an emergent convolution is -1"),
        ("sites", 2, "sites of an emergent convolution is 2; it must be a whole number from 3"),
        ("units", 7, "units of an emergent convolution is 7; it must be even"),
        ("steps", 0, "steps of an emergent convolution is 0"),
        ("inputs", "ngp", "unknown inputs of an emergent convolution 'ngp'"),
        ("network", "conv", "unknown network of an emergent convolution 'conv'"),
        ("gain", 0, "gain of an emergent convolution is 0; it must be a number above 0"),
        ("long", math.inf, "long of an emergent convolution is inf"),
        ("rate", "1", "rate of an emergent convolution is '1'"),
        ("density", 1.2, "density is 1.2"),
    ],
)
def test_bad_fields_are_named(field, value, says):
    with pytest.raises(UserError, match=says):
        EmergentConvolution(**{field: value})
