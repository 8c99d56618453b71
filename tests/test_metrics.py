"""Metrics: one battery for all of them, then each formula against a slow one of its own, in float64."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from conftest import make_residual
from panning_core import masks, metrics, models, pruning
from panning_core.errors import UserError


def half(model, seed=0):
    """A mask that keeps about half of every layer."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=generator) < 0.5 for name, w in models.prunable(model).items()}


def mlp(*widths, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1]).double()


# --- the battery ---


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
        assert score.shape == mask[layer].shape and score.is_floating_point() and not score.requires_grad
        assert score.isfinite().all() and score.std() > 0
    with torch.no_grad():
        again = metrics.METRICS[name](model, mask, batch, torch.Generator().manual_seed(1))
    assert all(torch.equal(again[layer], score) for layer, score in scores.items())


@pytest.mark.parametrize("name", metrics.METRICS)
def test_no_metric_depends_on_the_mode_or_on_the_running_statistics(name, residual, residual_batch):
    scores = metrics.METRICS[name](residual, half(residual), residual_batch, torch.Generator().manual_seed(1))
    residual.eval()
    for module in residual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(30), module.running_var.fill_(70)
    again = metrics.METRICS[name](residual, half(residual), residual_batch, torch.Generator().manual_seed(1))
    assert all(torch.equal(again[layer], score) for layer, score in scores.items())


def test_a_metric_of_your_own_is_seen_everywhere(lenet300, digits_batch, monkeypatch):
    def last(model, mask, batch, generator=None):
        return {name: torch.arange(w.numel(), dtype=torch.double).view(w.shape) for name, w in models.prunable(model).items()}

    monkeypatch.setitem(metrics.METRICS, "last-ones", last)
    assert "last-ones" in pruning.methods()
    mask, trace = pruning.prune(lenet300, "last-ones", 0.1, digits_batch)
    assert masks.count(mask) == round(0.1 * masks.size(mask)) and list(trace[0]["kept_mass"]) == ["last-ones"]
    assert mask["fc2.weight"].flatten()[-masks.count(mask):].all()  # the highest numbers are all in fc2


# --- random and magnitude ---


def test_random_is_uniform_seeded_noise(lenet300, digits_batch):
    def draw(seed):
        return metrics.random(lenet300, masks.ones(lenet300), digits_batch, torch.Generator().manual_seed(seed))["fc1.weight"]

    assert not torch.equal(draw(0), draw(1))
    n = draw(0).numel()
    assert 0 <= draw(0).min() and draw(0).max() < 1
    assert abs(draw(0).mean() - 0.5) < 5 / math.sqrt(12 * n) and abs(draw(0).var() - 1 / 12) < 5 / math.sqrt(180 * n)


def test_magnitude(residual, residual_batch):
    scores = metrics.magnitude(residual, half(residual), residual_batch)
    assert all(torch.equal(scores[name], w.abs()) for name, w in models.prunable(residual).items())


# --- SNIP, FORCE, GraSP: derivatives of a loss with a real-valued mask ---


def loss_of(model, gate, batch, temperature=1.0):
    """Cross-entropy of theta * gate in train mode, on a copy of the network."""
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        for name, weight in models.prunable(model).items():
            weight.mul_(gate[name])
    return cross_entropy(model(batch[0]) / temperature, batch[1])


def flow_of(model, gate, batch):
    """g . g of the loss with logits / 200 at theta * gate."""
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        for name, weight in models.prunable(model).items():
            weight.mul_(gate[name])
    loss = cross_entropy(model(batch[0]) / 200, batch[1])
    return sum((g ** 2).sum() for g in torch.autograd.grad(loss, list(models.prunable(model).values())))


def difference(function, model, mask, batch, name, entry, step=1e-5):
    """Derivative of function(model, gate, batch) by one entry of the gate, at gate = mask."""
    values = []
    for sign in (1, -1):
        gate = {n: m.double() for n, m in mask.items()}
        gate[name][entry] += sign * step
        values.append(function(model, gate, batch).item())
    return (values[0] - values[1]) / (2 * step)


def some_entries(model, per_layer=8):
    generator = torch.Generator().manual_seed(4)
    for name, w in models.prunable(model).items():
        for flat in torch.randperm(w.numel(), generator=generator)[:per_layer]:
            yield name, tuple(int(i) for i in torch.unravel_index(flat, w.shape))


@pytest.mark.parametrize("partial", [False, True])
def test_snip_and_force_are_the_losss_derivative_by_the_mask(residual, residual_batch, partial):
    mask = half(residual) if partial else masks.ones(residual)
    snip, force = metrics.snip(residual, mask, residual_batch), metrics.force(residual, mask, residual_batch)
    largest = max(float(s.max()) for s in force.values())
    for name, entry in some_entries(residual):
        slope = abs(difference(loss_of, residual, mask, residual_batch, name, entry))
        assert float(force[name][entry]) == pytest.approx(slope, rel=1e-5, abs=1e-7 * largest)  # pruned weights too
        assert float(snip[name][entry]) == pytest.approx(slope * bool(mask[name][entry]), rel=1e-5, abs=1e-7 * largest)


def test_force_and_snip_agree_on_kept_weights_and_only_force_scores_pruned_ones(case):
    model, batch = case
    mask = half(model)
    snip, force = metrics.snip(model, mask, batch), metrics.force(model, mask, batch)
    for name, m in mask.items():
        assert torch.equal(snip[name][m], force[name][m])
        assert (snip[name][~m] == 0).all() and (force[name][~m] > 0).any()


def test_grasp_is_half_the_flows_derivative_by_the_mask_with_its_sign(residual, residual_batch):
    """So the weight whose removal lowers g.g most has the largest score."""
    scores, mask = metrics.grasp(residual, masks.ones(residual), residual_batch), masks.ones(residual)
    largest = max(float(s.abs().max()) for s in scores.values())
    signs = set()
    for name, entry in some_entries(residual):
        slope = difference(flow_of, residual, mask, residual_batch, name, entry)
        assert float(scores[name][entry]) == pytest.approx(slope / 2, rel=1e-4, abs=1e-6 * largest)
        signs.add(slope > 0)
    assert signs == {True, False}
    absolute = metrics.grasp_abs(residual, mask, residual_batch)
    assert all(torch.equal(absolute[name], s.abs()) for name, s in scores.items())


@pytest.mark.parametrize("partial", [False, True])
def test_grasp_against_the_whole_hessian(partial):
    """On a sub-network: the Hessian at theta * M by all weights, times the kept weights' gradient, times the dense theta."""
    model = mlp(3, 5, 4, 3)
    mask = half(model, seed=3) if partial else masks.ones(model)
    batch = torch.randn((7, 3), dtype=torch.double, generator=torch.Generator().manual_seed(2)), torch.arange(7) % 3
    weights = models.prunable(model)
    theta, m = torch.cat([w.detach().flatten() for w in weights.values()]), torch.cat([m.flatten() for m in mask.values()])

    def loss(flat):
        parts = flat.split([w.numel() for w in weights.values()])
        return cross_entropy(functional_call(model, {n: p.view(w.shape) for (n, w), p in zip(weights.items(), parts)}, batch[0]) / 200, batch[1])

    point = theta * m
    hessian, gradient = torch.autograd.functional.hessian(loss, point), torch.autograd.functional.jacobian(loss, point)
    expected = theta * (hessian @ (gradient * m))
    found = torch.cat([s.flatten() for s in metrics.grasp(model, mask, batch).values()])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max())) and expected.abs().max() > 0
    products = metrics.products(model, mask, batch, 200.0)
    assert products.loss == pytest.approx(loss(point).item(), rel=1e-12)
    assert products.gtg == pytest.approx(float(((gradient * m) ** 2).sum()), rel=1e-10)
    assert torch.allclose(torch.cat([s.flatten() for s in products.snip.values()]), theta * gradient, rtol=1e-10, atol=0)
    assert products.grasp == {}


def test_the_loss_of_a_sub_network(residual, residual_batch, unchanged):
    for mask in (masks.ones(residual), half(residual)):
        with unchanged(residual):
            loss = metrics.loss(residual, mask, residual_batch)
        assert loss == pytest.approx(loss_of(residual, mask, residual_batch).item(), rel=1e-12)


def test_the_temperature_divides_the_logits_of_grasp_but_not_of_snip(residual, residual_batch):
    mask = masks.ones(residual)
    assert metrics.TEMPERATURE == 200
    signed = metrics.products(residual, mask, residual_batch, 1.0, hessian=True)
    snip, grasp = metrics.snip(residual, mask, residual_batch), metrics.grasp(residual, mask, residual_batch)
    assert all(torch.equal(snip[name], s.abs()) for name, s in signed.snip.items())
    colder = copy.deepcopy(residual)
    with torch.no_grad():
        colder[-1].weight.div_(200), colder[-1].bias.div_(200)
    # Logits / 200 through the last layer instead: a product of weight and gradient does not see where the 200 stands.
    same = metrics.products(colder, mask, residual_batch, 1.0)
    asked = metrics.products(residual, mask, residual_batch, 200.0)
    assert same.loss == pytest.approx(asked.loss, rel=1e-12)
    assert all(torch.allclose(same.snip[name], asked.snip[name], rtol=1e-9, atol=1e-15) for name in mask)
    assert not any(torch.allclose(grasp[name], signed.grasp[name], rtol=0.5, atol=0) for name in mask)


# --- SynFlow ---


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(0, 10_000), st.booleans())
@settings(deadline=None, max_examples=40)
def test_synflow_against_every_path_one_by_one(widths, seed, partial):
    model = mlp(*widths, seed=seed)
    mask = half(model, seed) if partial else masks.ones(model)
    names = list(mask)
    weights = [(w.detach().abs() * mask[name]).tolist() for name, w in models.prunable(model).items()]
    expected = {name: torch.zeros_like(w) for name, w in models.prunable(model).items()}
    total = 0.0
    for path in itertools.product(*(range(width) for width in widths)):
        product = math.prod(weights[layer][o][i] for layer, (i, o) in enumerate(itertools.pairwise(path)))
        total += product
        for name, (i, o) in zip(names, itertools.pairwise(path)):
            expected[name][o, i] += product
    batch = torch.zeros(1, widths[0]), None
    scores = metrics.synflow(model, mask, batch)
    signed, flow = metrics.synflow_products(model, mask, batch)
    assert flow == pytest.approx(total, rel=1e-12)
    for name, m in mask.items():
        assert torch.allclose(scores[name], expected[name], rtol=1e-10, atol=0)
        assert torch.equal(signed[name].abs() * m, scores[name])
        assert (signed[name] * models.prunable(model)[name] >= 0).all()  # the sign is the weight's


def test_synflow_sums_to_the_same_in_every_layer():
    model = models.build("lenet5", (1, 16, 16), 10, seed=0)
    batch = torch.zeros(1, 1, 16, 16), None
    for mask in (masks.ones(model), half(model)):
        scores, (_, flow) = metrics.synflow(model, mask, batch), metrics.synflow_products(model, mask, batch)
        assert flow > 0
        assert [float(s.sum()) for s in scores.values()] == pytest.approx([flow] * 4, rel=1e-12)


def test_synflow_needs_no_data_and_no_biases(residual, residual_batch):
    mask = half(residual)
    scores = metrics.synflow(residual, mask, residual_batch)
    with torch.no_grad():
        for name, parameter in residual.named_parameters():
            if name not in mask:
                parameter.normal_()
    other = metrics.synflow(residual, mask, (torch.full_like(residual_batch[0], 7.0), residual_batch[1]))
    assert all(torch.equal(other[name], s) for name, s in scores.items())


def plain_synflow(model, dtype):
    """R in the given precision: absolute weights, no biases, BatchNorm the identity."""
    model = copy.deepcopy(model).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.abs_() if name in models.prunable(model) else parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1), module.running_var.fill_(1 - module.eps), module.running_mean.zero_()
        return float(model(torch.ones((1, *models.input_shape(model)), dtype=dtype)).sum())


def test_synflow_is_finite_where_float32_overflows():
    model = models.build("resnet32", (3, 32, 32), 10, seed=0, init="panning")
    assert plain_synflow(model, torch.float32) == math.inf
    scores, flow = metrics.synflow_products(model, masks.ones(model), (torch.zeros(1, 3, 32, 32), None))
    assert flow == pytest.approx(plain_synflow(model, torch.double), rel=1e-6)
    assert all(s.isfinite().all() and s.any() for s in scores.values())


def test_synflow_is_positive_where_float32_underflows():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    with torch.no_grad():
        for weight in models.prunable(model).values():
            weight.fill_(1e-10)
    assert all((s > 0).all() for s in metrics.synflow(model, masks.ones(model), (torch.zeros(1, 2), None)).values())


def test_synflow_of_a_residual_network_counts_both_ways():
    model = make_residual()
    mask = masks.ones(model)
    scores, flow = metrics.synflow_products(model, mask, (torch.zeros(1, 2, 6, 6), None))
    mass = {name: float(s.abs().sum()) for name, s in scores.items()}
    assert [mass["0.weight"], mass["6.weight"]] == pytest.approx([flow, flow], rel=1e-12)
    assert mass["4.conv1.weight"] == pytest.approx(mass["4.conv2.weight"], rel=1e-12)
    assert mass["4.conv2.weight"] + mass["4.shortcut.0.weight"] == pytest.approx(flow, rel=1e-12)


@pytest.mark.parametrize("value", [1e60, -1e60, float("nan"), float("inf")])
def test_synflow_that_leaves_float64_is_an_error_that_names_the_network(value):
    model = mlp(2, 2, 2, 2, 2, 2, 2)
    with torch.no_grad():
        for weight in models.prunable(model).values():
            weight.fill_(value)
    batch = torch.zeros(1, 2), None
    with pytest.raises(UserError, match=r"R is (inf|nan) in float64 for this Sequential of 6 prunable layers"):
        metrics.synflow(model, masks.ones(model), batch)
    with pytest.raises(UserError, match="R is (inf|nan)"):
        pruning.prune(model, "synflow", 0.5, batch, rounds=2)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_layers_of_a_mask_are_known_by_their_names(name, residual, residual_batch):
    mask = half(residual)
    scores = metrics.METRICS[name](residual, mask, residual_batch)
    again = metrics.METRICS[name](residual, dict(reversed(mask.items())), residual_batch)
    assert scores.keys() == again.keys() and all(torch.equal(again[layer], s) for layer, s in scores.items())


def test_one_mask_after_another(residual, residual_batch):
    """SynFlow prepared once gives what it gives fresh, whatever came before."""
    flow = metrics.synflow_of(residual)
    for mask in (half(residual, 1), masks.ones(residual), half(residual, 2), half(residual, 1)):
        products, total = flow(mask, residual_batch)
        fresh, expected = metrics.synflow_products(residual, mask, residual_batch)
        assert torch.equal(products, masks.flatten(fresh)) and total == expected


# --- whether SynFlow's pass shows the effective weights as well ---


def seen(model, mask):
    """The kept weights that SynFlow gives a score."""
    products, _ = metrics.synflow_products(model, mask, (torch.zeros(1, *models.input_shape(model)), None))
    return {name: m & (products[name] != 0) for name, m in mask.items()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in two)


def plain_conv(padding):
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=padding), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 if padding else 12, 2))
    model.input_shape = (1, 2, 2) if padding else (1, 6, 6)
    return model


@pytest.mark.parametrize("build", [lambda: mlp(6, 5, 4, 3), lambda: plain_conv(0), lambda: models.build("lenet5", (1, 16, 16), 4, seed=0),
                                   lambda: models.build("resnet20", (1, 8, 8), 3, seed=0, init="panning")])
def test_synflow_sees_every_path(build):
    model = build()
    assert metrics.sees_every_path(model)
    dead = 0
    for density in (0.02, 0.05, 0.1, 0.3, 1.0):
        generator = torch.Generator().manual_seed(1)
        mask = {name: torch.rand(w.shape, generator=generator) < density for name, w in models.prunable(model).items()}
        effective = masks.effective(model, mask)
        assert same(seen(model, mask), effective)
        dead += masks.count(mask) - masks.count(effective)
    assert dead > 0


def test_synflow_does_not_see_every_path():
    """Each time the pass would have told another effective mask."""
    uneven, zero, tiny = plain_conv(1), mlp(3, 3, 3), mlp(2, 2, 2, 2)
    with torch.no_grad():
        zero[0].weight[0] = 0
        for weight in models.prunable(tiny).values():
            weight.fill_(1e-120)
    for model in (uneven, zero, tiny):
        mask = masks.ones(model)
        assert not metrics.sees_every_path(model) and not same(seen(model, mask), masks.effective(model, mask))
