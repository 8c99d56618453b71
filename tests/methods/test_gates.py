"""Gates: their odds and gradients against PyTorch's own Gumbel-softmax, exact numbers under a
budget, and the network that is left.
"""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from panning_core import compaction, data, masks, models, training
from panning_core.errors import UserError
from panning_core.methods import gumbel_softmax
from panning_core.methods.gumbel_softmax import Gates, falling, fit_budget, fit_penalty
from tests.conftest import make_residual

STRUCTURED = pytest.mark.parametrize("structure", gumbel_softmax.STRUCTURES)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def mlp(*widths, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())
        ]
        return nn.Sequential(*layers[:-1]).double()


def small_conv():
    """Two convolutions, pooling and two Linear layers, as in LeNet-5."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(3, 4, 2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4, 5),
            nn.ReLU(),
            nn.Linear(5, 3),
        ).double()
    model.input_shape = (1, 8, 8)
    return model


NETWORKS = pytest.mark.parametrize(
    "build", [lambda: mlp(4, 6, 5, 3), small_conv, make_residual], ids=["mlp", "conv", "residual"]
)


def logits_for(model, structure, values):
    """First logits for gates on ``model``: ``values`` of their shapes."""
    shapes = {
        "weights": lambda s: s,
        "outputs": lambda s: (s[0], *[1] * (len(s) - 1)),
        "inputs": lambda s: (1, s[1], *[1] * (len(s) - 2)),
    }
    return {
        name: values(tuple(shapes[structure](w.shape)))
        for name, w in models.prunable(model).items()
    }


def gated(model, structure="weights", seed=0):
    """Gates with logits that are all different."""
    generator = seeded(seed + 100)
    return Gates(
        model,
        structure,
        generator=seeded(seed),
        initial=logits_for(
            model, structure, lambda shape: 2 * torch.randn(shape, generator=generator)
        ),
    )


def budgeted(model, found, batches, loss, steps, budget, lr=0.005, gate_lr=0.03):
    """All gates are open at first and ``budget`` at last."""
    return fit_budget(
        model, found, batches, loss, falling(found.count, budget, steps), lr, gate_lr, 0.0
    )


def levels(found):
    return torch.cat([gate.level().detach().flatten() for gate in found.gates.values()])


def is_open(found):
    return {
        name: (gate.level() - gate.threshold > 0).expand(found.shapes[name])
        for name, gate in found.gates.items()
    }


def how_many(found):
    return sum(int((gate.level() - gate.threshold > 0).sum()) for gate in found.gates.values())


def images(model, n=6):
    return torch.randn((n, *models.input_shape(model)), generator=seeded(5), dtype=torch.double)


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# --- one gate ---


LOGITS = [-3.0, -1.0, 0.0, 0.5, 2.0]


def test_a_gate_is_open_as_often_as_a_gumbel_softmax_of_two_logits():
    n, draws, model = 2000, 10, nn.Sequential(nn.Linear(2000, 5), nn.Linear(5, 2))
    found = Gates(
        model,
        generator=seeded(3),
        initial={
            "0.weight": torch.tensor(LOGITS)[:, None].expand(5, n),
            "1.weight": torch.zeros(2, 5),
        },
    )
    share, seen = torch.zeros(5, dtype=torch.double), []
    for _ in range(draws):
        found.draw()
        seen.append(is_open(found)["0.weight"].clone())
        share += seen[-1].double().mean(1) / draws
    torch.manual_seed(0)
    two = torch.stack([torch.tensor(LOGITS), torch.zeros(5)], 1).expand(n * draws, 5, 2)
    theirs = F.gumbel_softmax(two, tau=0.7, hard=True)[..., 0].double().mean(0)
    odds = torch.tensor(LOGITS, dtype=torch.double).sigmoid()
    error = (odds * (1 - odds) / (n * draws)).sqrt()
    assert ((share - odds).abs() < 4 * error).all() and ((theirs - share).abs() < 6 * error).all()
    open_0, open_1 = (
        each[2].double() for each in seen[:2]
    )  # draws are independent, and so are neighbours
    assert abs(float((open_0 * open_1).mean()) - 0.25) < 5 * (0.25 * 0.75 / n) ** 0.5
    assert abs(float((open_0[1:] * open_0[:-1]).mean()) - 0.25) < 5 * (0.25 * 0.75 / n) ** 0.5


def test_the_temperature_does_not_change_how_often_a_gate_is_open():
    shares = []
    for temperature in (0.1, 5.0):
        found = Gates(
            nn.Sequential(nn.Linear(50, 40)),
            temperature=temperature,
            generator=seeded(1),
            initial={"0.weight": torch.full((40, 50), 1.5)},
        )
        found.draw()
        shares.append(is_open(found)["0.weight"])
    assert torch.equal(*shares)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_value_and_gradient_of_a_gate_are_those_of_a_straight_through_gumbel_softmax(temperature):
    logits = torch.randn((40, 2), generator=seeded(0), dtype=torch.double, requires_grad=True)
    torch.manual_seed(1)
    theirs = F.gumbel_softmax(logits, temperature, hard=True)[:, 0]
    torch.manual_seed(1)
    gumbel = -torch.empty_like(logits).exponential_().log()  # what F.gumbel_softmax has just drawn
    level = (logits + gumbel)[:, 0] - (logits + gumbel)[:, 1]
    ours = gumbel_softmax.straight_through(level, temperature)
    assert torch.equal(ours, theirs.round()) and 0 < ours.mean() < 1
    into = torch.randn(40, generator=seeded(2), dtype=torch.double)
    expected, found = (torch.autograd.grad((out * into).sum(), logits)[0] for out in (theirs, ours))
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14) and expected.any()


def test_a_gate_at_its_threshold_is_shut():
    assert gumbel_softmax.straight_through(torch.tensor([0.0, 1e-30, -1e-30]), 1.0).tolist() == [
        0,
        1,
        0,
    ]


# --- gates of a network ---


@STRUCTURED
@NETWORKS
def test_the_network_computes_with_its_weights_times_0_or_1(build, structure):
    model = build()
    plain, found = copy.deepcopy(model), gated(model, structure)
    for act in (
        found.draw,
        lambda: found.draw(0.3),
        lambda: found.draw(opened=found.count // 2),
        lambda: found.draw(0.0),
    ):
        act()
        state = dict(plain.state_dict())
        for name, kept in is_open(found).items():
            state[name] = state[name] * kept
            assert torch.equal(model.get_submodule(name.rpartition(".")[0]).weight, state[name])
        assert torch.equal(
            model.eval()(images(model)), functional_call(plain.eval(), state, images(model))
        )


@NETWORKS
def test_structures_share_a_gate_among_rows_or_columns(build):
    weights = models.prunable(build())
    for structure, shape_of, last in (
        ("weights", lambda w: w.shape, True),
        ("outputs", lambda w: (w.shape[0], *[1] * (w.dim() - 1)), False),
        ("inputs", lambda w: (1, w.shape[1], *[1] * (w.dim() - 2)), True),
    ):
        found = gated(build(), structure)
        assert {name: tuple(gate.logits.shape) for name, gate in found.gates.items()} == {
            name: tuple(shape_of(w)) for name, w in list(weights.items())[: None if last else -1]
        }
        assert (
            found.count
            == sum(
                torch.zeros(shape_of(w)).numel()
                for w in list(weights.values())[: None if last else -1]
            )
            == len(levels(found))
        )
        found.draw()
        mask = found.mask()
        assert list(mask) == list(weights) and all(
            m.shape == weights[name].shape and m.dtype == torch.bool for name, m in mask.items()
        )
        if structure == "outputs":
            rows = {name: m.flatten(1) for name, m in mask.items()}
            assert (
                all((m == m[:, :1]).all() for m in rows.values())
                and rows[list(rows)[-1]].all()
                and not all(m.all() for m in rows.values())
            )
        if structure == "inputs":
            columns = [m.transpose(0, 1).flatten(1) for m in mask.values()]
            assert all((m == m[:, :1]).all() for m in columns) and not all(m.all() for m in columns)


def test_a_gate_gets_the_gradient_of_all_weights_behind_it():
    model = mlp(3, 4, 2)
    by_weight, by_unit = copy.deepcopy(model), copy.deepcopy(model)
    one, many = Gates(by_unit, "outputs"), Gates(by_weight)
    for found, network in ((one, by_unit), (many, by_weight)):
        for gate in found.gates.values():
            gate.logits.data.fill_(0.5)
        network(images(network)).square().sum().backward()
    assert torch.allclose(
        one.gates["0.weight"].logits.grad,
        many.gates["0.weight"].logits.grad.sum(1, keepdim=True),
        rtol=1e-12,
    )
    assert one.gates["0.weight"].logits.grad.any()


@STRUCTURED
@NETWORKS
@pytest.mark.parametrize("used", [False, True])
def test_without_its_gates_the_network_is_an_ordinary_one(build, structure, used):
    model, plain = build(), build()
    x, kinds = images(model), [type(module) for module in model.modules()]
    found = gated(model, structure)
    own = {id(p) for p in found.weights()}
    assert (
        len(own) == len(list(plain.parameters()))
        and not own & {id(p) for p in found.logits()}
        and len(found.logits()) == len(found.gates)
    )
    assert {id(p) for p in model.parameters()} == own | {id(p) for p in found.logits()}
    if used:
        found.draw(opened=found.count // 2)
        assert not torch.equal(model.eval()(x), plain.eval()(x))
    found.remove()
    assert {id(p) for p in model.parameters()} == own and [
        type(module) for module in model.modules()
    ] == kinds
    assert equal(dict(model.state_dict()), dict(plain.state_dict()))
    assert {name for name, _ in model.named_parameters()} == {
        name for name, _ in plain.named_parameters()
    } and list(models.prunable(model)) == list(models.prunable(plain))
    assert torch.equal(model.eval()(x), plain.eval()(x)) and all(
        p.requires_grad and p.is_leaf for p in model.parameters()
    )
    copy.deepcopy(model).load_state_dict(plain.state_dict())
    again = Gates(model, structure)  # and may have gates once more
    assert again.count == found.count


def test_gates_open_half_of_the_time_unless_told_otherwise():
    found = Gates(nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 10)))
    assert not levels(found).any() and found.count == 11_000
    found.draw()
    assert abs(how_many(found) / 11_000 - 0.5) < 5 * 0.5 / 11_000**0.5
    state = torch.get_rng_state()
    found.draw()
    found.density()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_density_is_the_share_of_a_draw_of_its_own_at_temperature_1():
    found = Gates(
        nn.Sequential(nn.Linear(60, 100)),
        temperature=5.0,
        initial={"0.weight": torch.ones(100, 60)},
    )
    found.draw()
    before, weight = how_many(found) / 6000, found.model[0].weight.detach().clone()
    seen = [found.density() for _ in range(3)]
    odds = float(torch.tensor(1.0).sigmoid())
    assert len({float(d.detach()) for d in seen} | {before}) == 4 and all(
        abs(float(d.detach()) - odds) < 5 * (odds * (1 - odds) / 6000) ** 0.5 for d in seen
    )
    assert torch.equal(found.model[0].weight, weight)  # the draw of the weights stays
    (gradient,) = torch.autograd.grad(seen[0], found.logits())
    # on average over logistic noise u -> logit(u) the derivative of sigmoid(1 + noise)
    u = (torch.arange(100_000, dtype=torch.double) + 0.5) / 100_000
    slope = (1 + torch.logit(u)).sigmoid()
    assert float(gradient.sum()) == pytest.approx(float((slope * (1 - slope)).mean()), rel=0.05)


@pytest.mark.parametrize(
    "how, says",
    [
        ({"structure": "rows"}, "unknown structure 'rows'"),
        ({"structure": "output"}, "did you mean 'outputs'"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be a number above 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
    ],
)
def test_bad_gates_are_refused_and_leave_the_network_as_it_was(how, says):
    model = mlp(3, 4, 2)
    with pytest.raises(UserError, match=says):
        Gates(model, **how)
    assert equal(dict(model.state_dict()), dict(mlp(3, 4, 2).state_dict()))


@pytest.mark.parametrize("first", gumbel_softmax.STRUCTURES)
def test_gates_on_gates_are_refused(first):
    model = mlp(3, 4, 2)
    Gates(model, first)
    with pytest.raises(UserError, match="has gates already; remove them first"):
        Gates(model)


# --- exact numbers ---


@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=4),
    st.sampled_from(sorted(gumbel_softmax.STRUCTURES)),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.01, 0.5, 1.0, 20.0]),
    st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=100)
def test_exactly_so_many_gates_are_open(widths, structure, share, scale, seed):
    """In the whole network, and they are those with the largest levels."""
    if structure == "outputs" and len(widths) == 2:
        return  # its only layer's outputs always stay
    found = gated(mlp(*widths), structure, seed)
    opened = round(share * found.count)
    found.draw(scale, opened)
    everything = levels(found)
    assert how_many(found) == opened
    assert set(everything[everything.argsort(descending=True)[:opened]].tolist()) == {
        float(v)
        for name, gate in found.gates.items()
        for v in gate.level().detach()[gate.level() > gate.threshold]
    }
    found.draw(scale)  # without a number it is a draw for every gate again
    assert how_many(found) == int((levels(found) > 0).sum())
    found.draw(scale, opened)
    found.draw(0.0)
    rest = is_open(found)
    assert all(
        torch.equal(m, rest[name]) if name in rest else m.all() for name, m in found.mask().items()
    )


def test_gates_that_have_learned_nothing_stay_closed_together():
    """Logits that no gradient has reached are all 0, and at the end there is no noise."""
    model = mlp(6, 5, 3)
    found = Gates(model)
    with torch.no_grad():
        found.gates["0.weight"].logits[0] = torch.linspace(-1, 1, 6)
    for opened in range(found.count + 1):
        found.draw(0.0, opened)
        everything = levels(found).sort(descending=True).values
        above = (
            int((everything > everything[opened]).sum()) if opened < found.count else opened
        )  # equal ones stay closed together
        assert how_many(found) == above <= opened, opened


@given(
    st.lists(st.integers(1, 5), min_size=3, max_size=4),
    st.sampled_from(sorted(gumbel_softmax.STRUCTURES)),
    st.integers(1, 60),
    st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=40)
def test_a_budget_is_of_gates_that_do_something(widths, structure, budget, seed):
    """Brute force over every number of open gates, counting gates with a weight on a path by
    hand.
    """
    model, found = mlp(*widths), gated(mlp(*widths), structure, seed)
    order, best = levels(found).sort(descending=True).values.tolist() + [-float("inf")], None
    for n in range(found.count + 1):
        opened = {name: gate.logits.detach() > order[n] for name, gate in found.gates.items()}
        mask = {
            name: (
                opened[name].expand(shape)
                if name in opened
                else torch.ones(shape, dtype=torch.bool)
            )
            for name, shape in found.shapes.items()
        }
        live = masks.effective(model, {name: m.clone() for name, m in mask.items()})
        alive = 0
        for name, gate in found.gates.items():
            dims = {"weights": (), "outputs": (1,), "inputs": (0,)}[structure]
            alive += int((live[name].any(dims[0]) if dims else live[name]).sum())
        if alive <= budget:
            best = live
    if not masks.count(best):
        with pytest.raises(
            UserError, match=f"a budget of {budget} leaves no path through this network open"
        ):
            found.mask(budget)
        return
    mask = found.mask(budget)
    assert equal(mask, best) and equal(masks.effective(model, mask), mask)
    if structure == "weights":
        assert masks.count(mask) <= budget


@pytest.mark.parametrize("build", [small_conv, make_residual], ids=["conv", "residual"])
def test_a_budget_of_weights_of_convolutions(build):
    model, found = build(), gated(build())
    total = found.count
    scores = {name: gate.logits.detach() for name, gate in found.gates.items()}
    counts = [
        masks.count(masks.effective(model, masks.keep_top(scores, n / total)))
        for n in range(total + 1)
    ]
    for budget in (25, 60, 100, total):
        mask = found.mask(budget)
        assert equal(mask, masks.effective(model, mask)) and masks.count(mask) == max(
            n for n in counts if n <= budget
        )


# --- training, as the paper's code does it ---


def task(n=64):
    """Two outputs that look at two inputs of four."""
    x = torch.randn((n, 4), generator=seeded(9), dtype=torch.double)
    return x, torch.stack([x[:, 0] - x[:, 1], x[:, 2] * x[:, 3]], 1)


def test_a_step_of_adam_on_two_logits_is_a_step_of_twice_the_rate_on_their_difference():
    a, b, d = (torch.tensor(v, dtype=torch.double, requires_grad=True) for v in (0.7, -0.4, 1.1))
    pair, single = torch.optim.Adam([a, b], 0.05), torch.optim.Adam([d], 0.1)
    for t in range(50):
        for optimiser, level in ((pair, a - b), (single, d)):
            optimiser.zero_grad()
            ((level - 3).square() * (1 + t % 3) + level.sin()).backward()
            optimiser.step()
        assert (a - b).item() == pytest.approx(d.item(), rel=1e-9) and (
            a + b
        ).item() == pytest.approx(0.3)
    assert d.item() > 2


@pytest.mark.parametrize("temperature, penalty, target", [(1.0, 0.01, 0.0), (3.0, 5.0, 0.2)])
def test_the_papers_training_with_two_logits_for_every_gate(
    temperature, penalty, target, monkeypatch
):
    """Written a second time with two logits and a softmax, and with fixed numbers for noise."""
    x, y = task()
    model = mlp(4, 6, 2)
    noise = {
        (6, 4): torch.linspace(-1, 1, 24, dtype=torch.double).view(6, 4),
        (2, 6): torch.linspace(1.5, -1, 12, dtype=torch.double).view(2, 6),
    }
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    first = {
        "0.weight": torch.randn((6, 4), generator=seeded(1), dtype=torch.double),
        "2.weight": torch.randn((2, 6), generator=seeded(2), dtype=torch.double),
    }
    pairs = {
        name: torch.stack([1 + logit / 2, 1 - logit / 2], -1).requires_grad_()
        for name, logit in first.items()
    }
    optimiser, losses = torch.optim.Adam([*state.values(), *pairs.values()], 0.02), []

    def hard(pair, by, tau):
        soft = torch.softmax((pair + torch.stack([by, torch.zeros_like(by)], -1)) / tau, -1)[..., 0]
        return (soft > 0.5).double() - soft.detach() + soft

    for _ in range(25):
        network = {
            **state,
            **{
                name: state[name] * hard(pair, noise[tuple(state[name].shape)], temperature)
                for name, pair in pairs.items()
            },
        }
        loss = F.mse_loss(
            torch.relu(x @ network["0.weight"].T + network["0.bias"]) @ network["2.weight"].T
            + network["2.bias"],
            y,
        )
        share = (
            sum(hard(pair, noise[tuple(pair.shape[:-1])], 1.0).sum() for pair in pairs.values())
            / 36
        )
        optimiser.zero_grad()
        (loss + penalty * (share - target).abs()).backward()
        optimiser.step()
        losses.append(loss.item())

    found = Gates(model, temperature=temperature, initial=first)
    monkeypatch.setattr(Gates, "_noise", lambda self, gate: noise[tuple(gate.logits.shape)])
    told = fit_penalty(
        model, found, itertools.repeat((x, y), 25), F.mse_loss, 0.02, penalty, target
    )
    assert told == pytest.approx(losses, rel=1e-9)
    for name, pair in pairs.items():
        assert torch.allclose(
            found.gates[name].logits, pair[..., 0] - pair[..., 1], rtol=1e-9, atol=1e-11
        )
        assert found.gates[name].noise is None  # argmax of the two logits
        assert torch.equal(found.mask()[name], pair[..., 0] > pair[..., 1])
    found.remove()
    assert all(
        torch.allclose(p, state[name], rtol=1e-9, atol=1e-12)
        for name, p in model.named_parameters()
    )


@pytest.mark.parametrize("target, falls", [(0.0, True), (1.0, False)])
def test_a_penalty_moves_the_density_to_its_target(target, falls):
    model = mlp(4, 10, 10, 2)
    found = Gates(model, generator=seeded(1))
    found.draw()
    assert 0.3 < how_many(found) / found.count < 0.7
    fit_penalty(
        model,
        found,
        itertools.repeat(task(), 60),
        F.mse_loss,
        lr=0.03,
        penalty=100.0,
        target=target,
    )
    share = how_many(found) / found.count
    assert share < 0.1 if falls else share > 0.9


def test_without_a_penalty_training_lowers_the_loss_and_is_a_function_of_its_seed():
    def fit(seed):
        model = mlp(4, 10, 2)
        found = Gates(
            model, generator=seeded(seed), initial=logits_for(model, "weights", torch.ones)
        )
        losses = fit_penalty(model, found, itertools.repeat(task(), 100), F.mse_loss, penalty=0.0)
        return losses, found.mask()

    (losses, mask), (again, same_mask), (other, _) = fit(0), fit(0), fit(1)
    assert losses == again and equal(mask, same_mask) and losses != other
    assert len(losses) == 100 and sum(losses[-10:]) < 0.8 * sum(losses[:10])


# --- training under a budget, ours ---


@STRUCTURED
@pytest.mark.parametrize("steps, left", [(50, 6), (7, 1), (1, 4), (30, None)])
def test_the_number_of_open_gates_falls_from_all_to_the_budget(structure, steps, left):
    model = mlp(4, 10, 6, 2)
    found, seen = Gates(model, structure, generator=seeded(0)), []
    budget = found.count if left is None else left

    def loss(out, y):
        seen.append(how_many(found))
        return F.mse_loss(out, y)

    losses = budgeted(model, found, itertools.repeat(task(), steps), loss, steps, budget)
    assert len(losses) == len(seen) == steps and all(isinstance(each, float) for each in losses)
    assert seen[0] == found.count and seen == sorted(seen, reverse=True) and min(seen) >= budget
    if steps > 5:
        assert seen[-1] == budget and seen[len(seen) // 4] < found.count or budget == found.count
        assert how_many(found) == budget  # and so many are left without noise


def test_a_budget_learns_which_inputs_matter():
    """Of two outputs each looks at one of six inputs: twelve gates, two of them needed. Chance
    finds both in 1 of 66 seeds.
    """
    x = torch.randn((200, 6), generator=seeded(0), dtype=torch.double)
    y, recovered = torch.stack([2 * x[:, 1], -x[:, 4]], 1), 0
    for seed in range(8):
        model = mlp(6, 2, seed=seed)
        found = Gates(model, generator=seeded(seed))
        losses = budgeted(model, found, itertools.repeat((x, y), 300), F.mse_loss, 300, 2, lr=0.03)
        recovered += {(0, 1), (1, 4)} <= set(
            map(tuple, found.mask()["0.weight"].nonzero().tolist())
        ) and losses[-1] < 0.1 * losses[0]
    assert recovered >= 4


def test_the_plan_of_a_budget_falls_and_ends_where_it_should():
    for start, budget, steps, noise, within in (
        (1000, 10, 100, (1.0, 0.0), 0.8),
        (50, 50, 10, (0.5, 0.2), 1.0),
        (7, 1, 3, (1.0, 0.0), 0.5),
        (9, 2, 1, (1.0, 0.0), 0.8),
    ):
        plan = [falling(start, budget, steps, noise, within)(step) for step in range(steps)]
        opened, noises, rates = zip(*plan)
        assert (
            (opened[0], noises[0], rates[0]) == (start, noise[0], 1.0)
            and min(opened) >= budget
            and min(noises) >= noise[1]
        )
        for falls in (opened, noises, rates):
            assert list(falls) == sorted(falls, reverse=True)
        assert all(
            o == budget and n == noise[1] for t, (o, n, _) in enumerate(plan) if t >= within * steps
        ) and all(r == 1 for t, r in enumerate(rates) if t <= within * steps)
    opened = [falling(1000, 10, 100)(step)[0] for step in (0, 20, 40, 60, 80)]
    assert opened == [1000, 316, 100, 32, 10]  # by the same factor in the same time


@pytest.mark.parametrize("opened", [1, 5, 20, 39, 52])
def test_training_ends_with_the_number_of_its_last_step(opened):
    """Open are those with the largest logits, as they are after that step."""
    found = gated(mlp(4, 6, 4, 1))
    gumbel_softmax.fit_budget(
        found.model,
        found,
        itertools.repeat(
            (torch.randn(8, 4, dtype=torch.double), torch.zeros(8, 1, dtype=torch.double)), 3
        ),
        torch.nn.functional.mse_loss,
        lambda step: (opened, 1.0, 1.0),
        0.01,
        0.5,
        0.1,
    )
    kept = torch.cat([m.flatten() for m in is_open(found).values()])
    assert how_many(found) == opened and torch.equal(
        kept, levels(found) >= levels(found).sort(descending=True).values[opened - 1]
    )


# --- a data set ---


QUICK = {"epochs": 12, "batch_size": 128}


def fresh(digits):
    return models.build("lenet300", digits.input_shape, digits.classes, seed=0)


@pytest.fixture(scope="module", params=[0.05, 0.02])
def learned(digits, request):
    """The smaller budget is learned on the smaller network that is left after a while."""
    model = fresh(digits)
    before, state = (
        {name: p.detach().clone() for name, p in model.named_parameters()},
        torch.get_rng_state(),
    )
    mask, trace = gumbel_softmax.learn(model, digits, request.param, seed=1, **QUICK)
    return request.param, model, mask, trace, before, torch.equal(state, torch.get_rng_state())


def test_learning_digits_keeps_the_budget_and_the_network_can_be_trained_on(learned, digits):
    density, model, mask, trace, before, quiet = learned
    masks.check(model, mask)
    budget = round(density * 50_200)
    assert 0.99 * budget < masks.count(mask) <= budget and equal(masks.effective(model, mask), mask)
    assert (
        [row["events"] for row in trace] == [[]] * 12
        and trace[-1]["loss"] < trace[0]["loss"]
        and trace[0].keys() == trace[-1].keys()
    )
    assert quiet and {name for name, _ in model.named_parameters()} == set(before)
    assert not any(
        torch.equal(p, before[name]) for name, p in model.named_parameters()
    )  # weights and biases have learned
    kept = {name: w.detach() * mask[name] for name, w in models.prunable(model).items()}
    assert (
        sum(int((w != 0).sum()) for w in kept.values()) == masks.count(mask)
        and model.training
        and model.input_shape == digits.input_shape
    )
    alone = training.accuracy(functional_call(model, kept, (digits.test.x,)), digits.test.y)
    assert alone > 0.5  # 0.1 is chance, and no training has followed
    model = copy.deepcopy(model)
    log = training.train(model, mask, digits, training.Recipe(epochs=5, lr=0.02))
    assert log.test_accuracy.iloc[-1] > 0.8
    assert all((w[~mask[name]] == 0).all() for name, w in models.prunable(model).items())


def test_the_mean_loss_of_every_epoch_is_told(digits, monkeypatch):
    def fit(model, found, batches, *how):
        for logits in found.logits():
            logits.data.normal_(generator=seeded(0))
        return [float(len(x)) for x, _ in batches]

    monkeypatch.setattr(gumbel_softmax, "fit_budget", fit)
    mask, trace = gumbel_softmax.learn(fresh(digits), digits, 0.5, seed=0, epochs=3, batch_size=500)
    assert 25_000 < masks.count(mask) <= 25_100
    assert (
        len(digits.train) == 1294 and [row["loss"] for row in trace] == [(500 + 500 + 294) / 3] * 3
    )


def test_learning_is_a_function_of_its_seed(learned, digits):
    density, model, mask, trace, *_ = learned
    torch.manual_seed(77)
    again = fresh(digits)
    found, told = gumbel_softmax.learn(again, digits, density, seed=1, **QUICK)
    assert (
        equal(found, mask)
        and told == trace
        and equal(dict(again.state_dict()), dict(model.state_dict()))
    )
    assert not equal(
        gumbel_softmax.learn(fresh(digits), digits, density, seed=2, epochs=1)[0],
        gumbel_softmax.learn(fresh(digits), digits, density, seed=1, epochs=1)[0],
    )


def test_whole_units_are_learned(digits):
    model = fresh(digits)
    mask, _ = gumbel_softmax.learn(model, digits, 0.1, seed=0, structure="outputs", **QUICK)
    inside = None
    alive = 0
    for name, m in mask.items():
        rows, columns = m.any(1), m.any(0)
        assert torch.equal(
            m, rows[:, None] & columns
        )  # whole rows, but for columns of units that are gone
        assert columns.all() if inside is None else torch.equal(columns, inside)
        alive, inside = alive + int(rows.sum()), rows
    assert inside.all() and 0 < alive - 10 <= 40  # a tenth of 400 hidden units, and all outputs
    log = training.train(model, mask, digits, training.Recipe(epochs=5, lr=0.02))
    assert log.test_accuracy.iloc[-1] > 0.5


def test_learning_with_a_penalty_meets_the_budget_too(digits):
    model = fresh(digits)
    mask, trace = gumbel_softmax.learn(model, digits, 0.2, seed=0, penalty=0.1, epochs=3)
    assert (
        0.99 * 10_040 < masks.count(mask) <= 10_040
        and equal(masks.effective(model, mask), mask)
        and len(trace) == 3
    )


@pytest.mark.parametrize("density", [0.3, 0.02])
@pytest.mark.parametrize("epochs", [1, 2])
def test_few_steps_are_enough_to_learn_something(density, epochs, digits):
    """All images at once: one step or two."""
    mask, trace = gumbel_softmax.learn(
        fresh(digits), digits, density, seed=0, epochs=epochs, batch_size=2000
    )
    assert 0 < masks.count(mask) <= round(density * 50_200) and len(trace) == epochs


@pytest.mark.parametrize("density", [0.2, 0.03])
def test_a_residual_network_is_learned_too(density):
    """BatchNorm, shortcuts and pooling; at the smaller density on a smaller network."""
    rng = torch.Generator().manual_seed(0)
    images, labels = (
        torch.randn((60, 1, 8, 8), generator=rng).numpy(),
        (torch.arange(60) % 3).numpy(),
    )
    splits = data.from_arrays(images, labels, images[:12], labels[:12])
    model = models.build("resnet20", splits.input_shape, 3, seed=0)
    mask, _ = gumbel_softmax.learn(model, splits, density, seed=0, epochs=2, batch_size=8)
    total = masks.size(mask)
    assert 0.9 * density * total < masks.count(mask) <= round(density * total) and equal(
        masks.effective(model, mask), mask
    )
    weights = models.prunable(model)
    assert all((weights[name][m] != 0).all() for name, m in mask.items()) and all(
        t.isfinite().all() for t in model.state_dict().values()
    )
    assert {name for name, _ in model.named_parameters()} == {
        name
        for name, _ in models.build("resnet20", splits.input_shape, 3, seed=0).named_parameters()
    }


class Own(nn.Module):
    """A network that compaction cannot read."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 60), nn.Linear(60, 10)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.flatten(1))))


def test_a_network_that_compaction_cannot_read_is_learned_whole(digits):
    model, budget = Own(), round(0.01 * 4440)
    with pytest.raises(UserError, match="cannot read"):
        compaction.compact(model, masks.ones(model))
    mask, _ = gumbel_softmax.learn(model, digits, 0.01, seed=0, epochs=3)
    assert 0 < masks.count(mask) <= budget and equal(masks.effective(model, mask), mask)


def test_gates_are_put_on_weights_that_are_named_so_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2))
    model.also_prunable = (nn.LSTM,)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(UserError, match="named weight, and not 1.weight_ih_l0"):
        gumbel_softmax.Gates(model)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize(
    "how, says",
    [
        ({"density": 1e-9, "epochs": 1}, "a budget of 1 leaves no path"),
        ({"structure": "units"}, "unknown structure 'units'"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number from 1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_learning_is_refused_and_leaves_no_gates_behind(how, says, digits):
    model = fresh(digits)
    with pytest.raises(UserError, match=says):
        gumbel_softmax.learn(model, digits, **{"density": 0.1, "seed": 0, **how})
    assert {name for name, _ in model.named_parameters()} == {
        name for name, _ in fresh(digits).named_parameters()
    }
