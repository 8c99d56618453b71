"""Metrics: each formula against a slow one of its own, in float64."""

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

from panning_core import masks, metrics, models, pruning
from panning_core.errors import UserError
from panning_core.methods import dynamic
from panning_core.paths import visible
from tests.conftest import half, make_residual


def mlp(*widths, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())
        ]
        return nn.Sequential(*layers[:-1]).double()


# --- random and magnitude ---


def test_random_is_uniform_seeded_noise(lenet300, digits_batch):
    def draw(seed):
        return metrics.random(
            lenet300, masks.ones(lenet300), digits_batch, torch.Generator().manual_seed(seed)
        )["fc1.weight"]

    assert not torch.equal(draw(0), draw(1))
    n = draw(0).numel()
    assert 0 <= draw(0).min() and draw(0).max() < 1
    assert abs(draw(0).mean() - 0.5) < 5 / math.sqrt(12 * n) and abs(
        draw(0).var() - 1 / 12
    ) < 5 / math.sqrt(180 * n)


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
    return sum(
        (g**2).sum() for g in torch.autograd.grad(loss, list(models.prunable(model).values()))
    )


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
    snip, force = (
        metrics.snip(residual, mask, residual_batch),
        metrics.force(residual, mask, residual_batch),
    )
    largest = max(float(s.max()) for s in force.values())
    for name, entry in some_entries(residual):
        slope = abs(difference(loss_of, residual, mask, residual_batch, name, entry))
        assert float(force[name][entry]) == pytest.approx(
            slope, rel=1e-5, abs=1e-7 * largest
        )  # pruned weights too
        assert float(snip[name][entry]) == pytest.approx(
            slope * bool(mask[name][entry]), rel=1e-5, abs=1e-7 * largest
        )


def test_force_and_snip_agree_on_kept_weights_and_only_force_scores_pruned_ones(case):
    model, batch = case
    mask = half(model)
    snip, force = metrics.snip(model, mask, batch), metrics.force(model, mask, batch)
    for name, m in mask.items():
        assert torch.equal(snip[name][m], force[name][m])
        assert (snip[name][~m] == 0).all() and (force[name][~m] > 0).any()


def test_grasp_is_half_the_flows_derivative_by_the_mask_with_its_sign(residual, residual_batch):
    """So the weight whose removal lowers g.g most has the largest score."""
    scores, mask = (
        metrics.grasp(residual, masks.ones(residual), residual_batch),
        masks.ones(residual),
    )
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
    """On a sub-network: the Hessian at theta * M by all weights, times the kept weights' gradient,
    times the dense theta.
    """
    model = mlp(3, 5, 4, 3)
    mask = half(model, seed=3) if partial else masks.ones(model)
    batch = (
        torch.randn((7, 3), dtype=torch.double, generator=torch.Generator().manual_seed(2)),
        torch.arange(7) % 3,
    )
    weights = models.prunable(model)
    theta, m = (
        torch.cat([w.detach().flatten() for w in weights.values()]),
        torch.cat([m.flatten() for m in mask.values()]),
    )

    def loss(flat):
        parts = flat.split([w.numel() for w in weights.values()])
        return cross_entropy(
            functional_call(
                model, {n: p.view(w.shape) for (n, w), p in zip(weights.items(), parts)}, batch[0]
            )
            / 200,
            batch[1],
        )

    point = theta * m
    hessian, gradient = (
        torch.autograd.functional.hessian(loss, point),
        torch.autograd.functional.jacobian(loss, point),
    )
    expected = theta * (hessian @ (gradient * m))
    found = torch.cat([s.flatten() for s in metrics.grasp(model, mask, batch).values()])
    assert (
        torch.allclose(found, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))
        and expected.abs().max() > 0
    )
    products = metrics.products(model, mask, batch, 200.0)
    assert products.loss == pytest.approx(loss(point).item(), rel=1e-12)
    assert products.gtg == pytest.approx(float(((gradient * m) ** 2).sum()), rel=1e-10)
    assert torch.allclose(
        torch.cat([s.flatten() for s in products.snip.values()]),
        theta * gradient,
        rtol=1e-10,
        atol=0,
    )
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
    snip, grasp = (
        metrics.snip(residual, mask, residual_batch),
        metrics.grasp(residual, mask, residual_batch),
    )
    assert all(torch.equal(snip[name], s.abs()) for name, s in signed.snip.items())
    colder = copy.deepcopy(residual)
    with torch.no_grad():
        colder[-1].weight.div_(200), colder[-1].bias.div_(200)
    # Logits / 200 through the last layer instead: a product of weight and gradient does not see
    # where the 200 stands.
    same = metrics.products(colder, mask, residual_batch, 1.0)
    asked = metrics.products(residual, mask, residual_batch, 200.0)
    assert same.loss == pytest.approx(asked.loss, rel=1e-12)
    assert all(
        torch.allclose(same.snip[name], asked.snip[name], rtol=1e-9, atol=1e-15) for name in mask
    )
    assert not any(
        torch.allclose(grasp[name], signed.grasp[name], rtol=0.5, atol=0) for name in mask
    )


# --- ProsPr: a derivative through K steps of training ---


def dealt(batch, parts, k):
    """Part k of a batch that is ordered by class: every class deals its images out in turn."""
    x, y = batch
    mine = [
        int(i) for label in y.unique() for i in (y == label).nonzero().flatten()[k % parts :: parts]
    ]
    return x[mine], y[mine]


def trained(model, gate, batch, steps, lr=0.1, momentum=0.0, parts=1):
    """theta * gate after K steps of plain SGD on all parameters, and its loss on the next part;
    ``gate`` is used once, at the start.
    """
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        for name, weight in models.prunable(model).items():
            weight.mul_(gate[name])
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum)
    for k in range(steps):
        x, y = dealt(batch, parts, k)
        optimiser.zero_grad()
        cross_entropy(model(x), y).backward()
        optimiser.step()
    x, y = dealt(batch, parts, steps)
    return model, cross_entropy(model(x), y)


def ordered(shape, per_class=4, classes=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(
        (per_class * classes, *shape), generator=generator, dtype=torch.double
    ), torch.arange(classes).repeat_interleave(per_class)


PROSPR = [
    dict(steps=steps, lr=0.5, momentum=momentum, parts=parts)
    for steps in (1, 3)
    for momentum in (0.0, 0.9)
    for parts in (1, steps + 1)
]


@pytest.mark.parametrize("partial", [False, True])
def test_prospr_of_no_steps_is_snip_to_the_bit(case, partial):
    model, batch = case
    mask = half(model) if partial else masks.ones(model)
    expected = metrics.snip(model, mask, batch)
    for how in ({}, {"momentum": 0.9, "lr": 5.0}, {"first_order": True}):
        found = metrics.prospr(model, mask, batch, steps=0, **how)
        assert list(found) == list(expected) and all(
            torch.equal(found[name], s) for name, s in expected.items()
        )


@pytest.mark.parametrize("how", PROSPR, ids=str)
@pytest.mark.parametrize(
    "build, partial",
    [
        (lambda: mlp(3, 5, 4, 3), False),
        (lambda: mlp(3, 5, 4, 3, seed=1), True),
        (make_residual, True),
    ],
)
def test_prospr_is_the_derivative_of_the_loss_after_training_by_the_mask_before(
    build, partial, how
):
    model = build()
    mask, batch = (
        half(model, seed=3) if partial else masks.ones(model),
        ordered(models.input_shape(model)),
    )
    scores = metrics.prospr(model, mask, batch, **how)
    largest = max(float(s.max()) for s in scores.values())
    for name, entry in some_entries(model, per_layer=3):
        slope = abs(
            difference(lambda *point: trained(*point, **how)[1], model, mask, batch, name, entry)
        )
        assert float(scores[name][entry]) == pytest.approx(
            slope * bool(mask[name][entry]), rel=1e-5, abs=1e-7 * largest
        )
    assert all(
        (s[~mask[name]] == 0).all() and (s[mask[name]] > 0).any() for name, s in scores.items()
    )


def test_prospr_takes_three_steps_of_a_tenth_unless_told_otherwise(residual, residual_batch):
    mask = half(residual)
    scores = metrics.prospr(residual, mask, residual_batch)
    told = metrics.prospr(
        residual,
        mask,
        residual_batch,
        steps=3,
        lr=0.1,
        momentum=0.0,
        parts=1,
        first_order=False,
        units=False,
    )
    assert all(torch.equal(told[name], s) for name, s in scores.items())
    for how in (
        {"steps": 2},
        {"lr": 0.2},
        {"momentum": 0.9},
        {"parts": 4},
        {"first_order": True},
        {"units": True},
    ):
        other = metrics.prospr(residual, mask, residual_batch, **how)
        assert not any(
            torch.allclose(other[name], s, rtol=1e-3, atol=0) for name, s in scores.items()
        ), how


@pytest.mark.parametrize("how", PROSPR, ids=str)
@pytest.mark.parametrize("build", [lambda: mlp(3, 5, 4, 3), make_residual])
def test_prospr_of_first_order_is_the_gradient_after_training_times_the_weight_before(build, how):
    model = build()
    mask, batch = half(model, seed=3), ordered(models.input_shape(model))
    scores = metrics.prospr(model, mask, batch, **how, first_order=True)
    late, loss = trained(model, mask, batch, **how)
    gradient = torch.autograd.grad(loss, list(models.prunable(late).values()))
    for (name, w), g in zip(models.prunable(model).items(), gradient):
        expected = (w.detach() * mask[name] * g).abs()
        assert expected.any() and torch.allclose(
            scores[name], expected, rtol=1e-9, atol=1e-13 * float(expected.max())
        )


@pytest.mark.parametrize("build", [lambda: mlp(3, 5, 4, 3, seed=1), make_residual])
def test_prospr_of_units_is_the_derivative_by_one_mask_entry_for_a_unit_spread_over_its_weights(
    build,
):
    model = build()
    mask, batch, how = half(model, seed=3), ordered(models.input_shape(model)), PROSPR[-1]
    scores, single = (
        metrics.prospr(model, mask, batch, **how, units=units) for units in (True, False)
    )
    cancelled = 0
    for name, w in models.prunable(model).items():
        for unit, row in enumerate(scores[name]):
            values = []
            for change in (1e-5, -1e-5):
                gate = {n: m.double() for n, m in mask.items()}
                gate[name][unit] *= 1 + change
                values.append(trained(model, gate, batch, **how)[1].item())
            assert (row == row.flatten()[0]).all()
            assert float(row.sum()) == pytest.approx(
                abs(values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-9
            )
            cancelled += float(row.sum()) < 0.9 * float(single[name][unit].sum())
    assert cancelled >= 3  # a sum of signed products, not of absolute ones


@pytest.mark.parametrize(
    "order",
    [
        lambda y: y.argsort(),
        lambda y: torch.arange(len(y)),
        lambda y: torch.randperm(len(y), generator=torch.Generator().manual_seed(0)),
    ],
    ids=["by class", "in turn", "mixed"],
)
@pytest.mark.parametrize("per_class, parts", [(8, 4), (6, 4), (5, 2), (4, 3)])
def test_prospr_deals_every_class_evenly(order, per_class, parts):
    """Each part has its share of every class, whatever the order of the batch; the parts are
    disjoint and are all of it.
    """
    labels = torch.arange(10).repeat(per_class)
    labels, seen = labels[order(labels)], []
    images = torch.arange(len(labels), dtype=torch.double)[:, None] / 100
    model = mlp(1, 4, 10)
    model[0].register_forward_pre_hook(
        lambda module, inputs: seen.append((inputs[0].flatten() * 100).round().long().tolist())
    )
    metrics.prospr(model, masks.ones(model), (images, labels), steps=2 * parts - 1, parts=parts)
    assert len(seen) == 2 * parts and seen[:parts] == seen[parts:]  # in turn, and then again
    assert sorted(sum(seen[:parts], [])) == list(range(10 * per_class))
    for part in seen:
        assert set(labels[part].bincount(minlength=10).tolist()) <= {
            per_class // parts,
            -(-per_class // parts),
        }


@pytest.mark.parametrize(
    "how, says",
    [
        ({"steps": -1}, "steps of at least 0.*got -1 and 1"),
        ({"parts": 0}, "from 1 to 9 parts of a batch of 9 images, got 3 and 0"),
        ({"parts": 10}, "got 3 and 10"),
        ({"parts": -1}, "got 3 and -1"),
    ],
)
def test_prospr_refuses(how, says, residual, residual_batch):
    with pytest.raises(UserError, match=says):
        metrics.prospr(residual, masks.ones(residual), residual_batch, **how)


# --- NTK-SAP: a difference of outputs that noise in the weights makes ---


@pytest.mark.parametrize("repeats, deviation", [(200, 0.01), (100, 0.03)])
def test_ntk_sap_of_one_layer_is_what_can_be_worked_out(repeats, deviation):
    """f(Z; theta m) - f(Z; (theta + D) m) = -Z (D m)^T, so the derivative is 2 Z^2 D^2 m and noise:
    on average 2 n repeats deviation^2 for every weight that is kept, whatever theta and the bias
    are."""
    n, model = 400, nn.Sequential(nn.Linear(5, 6)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.logspace(-3, 3, 30).view(6, 5)), model[0].bias.fill_(100)
    mask = {"0.weight": torch.arange(30).view(6, 5) % 3 > 0}
    scores = metrics.ntk_sap(
        model,
        mask,
        (torch.zeros(n, 5, dtype=torch.double), None),
        torch.Generator().manual_seed(0),
        repeats=repeats,
        deviation=deviation,
    )["0.weight"]
    found = scores[mask["0.weight"]] / (2 * n * repeats * deviation**2)
    assert (
        float(found.mean()) == pytest.approx(1, abs=5 * (2 / repeats / 20) ** 0.5)
        and found.min() > 0.4
        and found.max() < 2
    )
    assert (scores[~mask["0.weight"]] == 0).all()


def noise_of(shape):
    """Noise that depends on the shape alone, so that nobody has to know in which order it is
    drawn.
    """
    return torch.zeros(shape, dtype=torch.double).normal_(
        generator=torch.Generator().manual_seed(sum(10**i * s for i, s in enumerate(shape)))
    )


@pytest.mark.parametrize("partial", [False, True])
def test_ntk_sap_is_the_derivative_of_the_change_of_the_outputs_by_the_mask(
    partial, residual, residual_batch, monkeypatch
):
    monkeypatch.setattr(torch, "randn", lambda shape, **how: noise_of(tuple(shape)))
    monkeypatch.setattr(torch, "randperm", lambda n, **how: torch.arange(n).flip(0))
    mask = half(residual) if partial else masks.ones(residual)
    scores = metrics.ntk_sap(residual, mask, residual_batch, repeats=3, deviation=0.02)
    assert len({w.shape for w in models.prunable(residual).values()}) == 5

    def moved(model, gate, batch):
        outputs = []
        for deviation in (0.0, 0.02):
            copied = copy.deepcopy(model).train()
            with torch.no_grad():
                for name, w in models.prunable(copied).items():
                    w.copy_(
                        (w.flatten().flip(0).view(w.shape) + deviation * noise_of(tuple(w.shape)))
                        * gate[name]
                    )
                outputs.append(copied(noise_of(tuple(batch[0].shape))))
        return 3 * ((outputs[0] - outputs[1]) ** 2).sum()

    largest = max(float(s.max()) for s in scores.values())
    for name, entry in some_entries(residual):
        slope = abs(difference(moved, residual, mask, residual_batch, name, entry))
        assert float(scores[name][entry]) == pytest.approx(
            slope * bool(mask[name][entry]), rel=1e-4, abs=1e-6 * largest
        )


def test_ntk_sap_needs_the_shape_of_a_batch_and_nothing_else_of_it(case):
    model, (x, y) = case
    mask = half(model)
    scores = metrics.ntk_sap(model, mask, (x, y))
    for other in ((torch.full_like(x, 7.0), y), (x, None), (x * float("nan"), y.flip(0))):
        assert all(
            torch.equal(s, scores[name]) for name, s in metrics.ntk_sap(model, mask, other).items()
        )
    fewer = metrics.ntk_sap(model, mask, (x[:-1], y))
    assert not any(torch.allclose(s, scores[name]) for name, s in fewer.items())
    assert all(
        (s[~mask[name]] == 0).all() and (s[mask[name]] > 0).any() for name, s in scores.items()
    )


def test_ntk_sap_is_of_the_architecture_and_not_of_one_draw_of_the_weights():
    """A weight a hundred times as large as others is elsewhere in every repeat. Where it stands now
    shows in the score of its own place only if it stays.
    """
    model = mlp(6, 8, 4)
    with torch.no_grad():
        for w in models.prunable(model).values():
            w.copy_(noise_of(tuple(w.shape)).sign() / 10)
        model[0].weight[2, 3] = 10
    batch = torch.zeros(20, 6, dtype=torch.double), None
    scores = metrics.ntk_sap(model, masks.ones(model), batch, repeats=400)["0.weight"]
    assert scores[2, 3] < 3 * scores.median() and scores.max() < 10 * scores.median()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.flatten().roll(7).view(8, 6))
    again = metrics.ntk_sap(model, masks.ones(model), batch, repeats=400)["0.weight"]
    assert not torch.equal(again, scores) and float(again.mean()) == pytest.approx(
        float(scores.mean()), rel=0.3
    )


def test_ntk_sap_draws_from_its_generator(residual, residual_batch):
    def draw(generator):
        return metrics.ntk_sap(residual, masks.ones(residual), residual_batch, generator)[
            "0.weight"
        ]

    one = draw(torch.Generator().manual_seed(0))
    assert torch.equal(one, draw(None)) and not torch.equal(
        one, draw(torch.Generator().manual_seed(1))
    )
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(draw(generator), one) and not torch.equal(
        draw(generator), one
    )  # the next round has noise of its own


# --- SynFlow ---


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(0, 10_000), st.booleans())
@settings(deadline=None, max_examples=40)
def test_synflow_against_every_path_one_by_one(widths, seed, partial):
    model = mlp(*widths, seed=seed)
    mask = half(model, seed) if partial else masks.ones(model)
    names = list(mask)
    weights = [
        (w.detach().abs() * mask[name]).tolist() for name, w in models.prunable(model).items()
    ]
    expected = {name: torch.zeros_like(w) for name, w in models.prunable(model).items()}
    total = 0.0
    for path in itertools.product(*(range(width) for width in widths)):
        product = math.prod(
            weights[layer][o][i] for layer, (i, o) in enumerate(itertools.pairwise(path))
        )
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
        scores, (_, flow) = (
            metrics.synflow(model, mask, batch),
            metrics.synflow_products(model, mask, batch),
        )
        assert flow > 0
        assert [float(s.sum()) for s in scores.values()] == pytest.approx([flow] * 4, rel=1e-12)


def test_synflow_needs_no_data_and_no_biases(residual, residual_batch):
    mask = half(residual)
    scores = metrics.synflow(residual, mask, residual_batch)
    with torch.no_grad():
        for name, parameter in residual.named_parameters():
            if name not in mask:
                parameter.normal_()
    other = metrics.synflow(
        residual, mask, (torch.full_like(residual_batch[0], 7.0), residual_batch[1])
    )
    assert all(torch.equal(other[name], s) for name, s in scores.items())


def plain_synflow(model, dtype):
    """R in the given precision: absolute weights, no biases, BatchNorm the identity."""
    model = copy.deepcopy(model).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.abs_() if name in models.prunable(model) else parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                (
                    module.weight.fill_(1),
                    module.running_var.fill_(1 - module.eps),
                    module.running_mean.zero_(),
                )
        return float(model(torch.ones((1, *models.input_shape(model)), dtype=dtype)).sum())


def test_synflow_is_finite_where_float32_overflows():
    model = models.build("resnet32", (3, 32, 32), 10, seed=0, init="panning")
    assert plain_synflow(model, torch.float32) == math.inf
    scores, flow = metrics.synflow_products(
        model, masks.ones(model), (torch.zeros(1, 3, 32, 32), None)
    )
    assert flow == pytest.approx(plain_synflow(model, torch.double), rel=1e-6)
    assert all(s.isfinite().all() and s.any() for s in scores.values())


def test_synflow_is_positive_where_float32_underflows():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    with torch.no_grad():
        for weight in models.prunable(model).values():
            weight.fill_(1e-10)
    assert all(
        (s > 0).all()
        for s in metrics.synflow(model, masks.ones(model), (torch.zeros(1, 2), None)).values()
    )


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
    batch = torch.zeros(1, 2, dtype=torch.double), torch.zeros(1, dtype=torch.long)
    with pytest.raises(
        UserError, match=r"R is (inf|nan) in float64 for this Sequential of 6 prunable layers"
    ):
        metrics.synflow(model, masks.ones(model), batch)
    with pytest.raises(UserError, match="R is (inf|nan)"):
        pruning.prune(model, "synflow", 0.5, batch, rounds=2)


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
    products, _ = metrics.synflow_products(
        model, mask, (torch.zeros(1, *models.input_shape(model)), None)
    )
    return {name: m & (products[name] != 0) for name, m in mask.items()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in two)


def plain_conv(padding):
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=padding),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3 if padding else 12, 2),
    )
    model.input_shape = (1, 2, 2) if padding else (1, 6, 6)
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda: mlp(6, 5, 4, 3),
        lambda: plain_conv(0),
        lambda: models.build("lenet5", (1, 16, 16), 4, seed=0),
        lambda: models.build("resnet20", (1, 8, 8), 3, seed=0, init="panning"),
    ],
)
def test_synflow_sees_every_path(build):
    model = build()
    assert visible.sees_every_path(model)
    dead = 0
    for density in (0.02, 0.05, 0.1, 0.3, 1.0):
        generator = torch.Generator().manual_seed(1)
        mask = {
            name: torch.rand(w.shape, generator=generator) < density
            for name, w in models.prunable(model).items()
        }
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
        assert not visible.sees_every_path(model) and not same(
            seen(model, mask), masks.effective(model, mask)
        )


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "vgg11"])
def test_random_scores_know_nothing_of_initial_weights_of_the_same_seed(name):
    """PyTorch makes initial weights of the uniform numbers that the seed gives."""
    model = models.build(name, (3, 32, 32), 10, seed=3)
    for scores in (
        metrics.random(model, masks.ones(model), None, torch.Generator().manual_seed(3)),
        {n: m.float() for n, m in dynamic.begin(model, 0.3, 3).items()},
    ):
        for layer, weight in models.prunable(model).items():
            if weight.numel() > 1000:
                both = torch.stack([scores[layer].flatten(), weight.detach().flatten()])
                size = torch.stack([both[0], both[1].abs()])
                for pair in (both, size):
                    found = float(torch.corrcoef(pair)[0, 1].nan_to_num())  # all are kept
                    assert abs(found) < 5 / weight.numel() ** 0.5
