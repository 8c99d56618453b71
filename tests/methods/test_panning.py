"""What an agent sees and earns, the smallest living network, and that pruning with an agent never
kills one.
"""

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panning_core import data, masks, metrics, models, pruning, sparse
from panning_core.agent import observations, policies
from panning_core.agent.observations import Extremes, Look, Sight
from panning_core.errors import UserError
from panning_core.methods import panning
from tests.conftest import make_residual


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def small_lenet():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(4, 6, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 20),
            nn.ReLU(),
            nn.Linear(20, 10),
        )
    model.input_shape = (1, 8, 8)
    return model


#: name -> (network, weights of its shortest path); a path passes the blocks of a residual network,
#: but not where they change the shape
SMALL = {
    "lenet300": (lambda: models.build("lenet300", (1, 8, 8), 10, seed=0), 3),
    "small lenet": (small_lenet, 4),
    "residual": (make_residual, 3),
    "resnet20": (lambda: models.build("resnet20", (1, 8, 8), 10, seed=0, init="panning"), 4),
}


@lru_cache
def network(name):
    """(network, a batch of it, weights of its shortest path); only read."""
    model, draw = SMALL[name][0](), torch.Generator().manual_seed(1)
    if name == "residual":
        return (
            model,
            (torch.randn((9, 2, 6, 6), generator=draw, dtype=torch.double), torch.arange(9) % 3),
            SMALL[name][1],
        )
    return model, data.balanced_batch(data.load("digits").train, 2, draw), SMALL[name][1]


# --- coefficients, observation, reward ---


@pytest.mark.parametrize(
    "action, expected",
    [
        ([0, 0, 0], (1, 1, 1)),
        ([0.5, -0.25, 1], (1.5, 0.75, 2)),
        ([-1, -1, 0.5], (0, 0, 1.5)),
        ([-1, 1, -1], (0, 2, 0)),
        ([3, -3, 0], (2, 0, 1)),  # beyond the range
        ([-1, -1, -1], (1, 1, 1)),
        ([-7, -1, -1.5], (1, 1, 1)),  # three zeros tie everything
        ([-1, -1, -1 + 2**-20], (0, 0, 2**-20)),
    ],
)
def test_coefficients_are_the_action_and_one(action, expected):
    for given_as in (action, np.array(action, np.float32), np.array(action), tuple(action)):
        found = observations.coefficients(given_as)
        assert found == expected and all(type(coefficient) is float for coefficient in found)


def test_what_is_seen_is_measured_in_the_spread_of_dense_batches():
    extremes = Extremes([Look(2.5, 40.0), Look(2.0, 30.0), Look(2.25, 50.0)])
    assert (extremes.low, extremes.high) == (Look(2.0, 30.0), Look(2.5, 50.0))
    seen = extremes.observe(Look(2.25, 35.0), Look(2.0, 55.0), 0.5, 0.375, 0.1)
    assert (
        seen.tolist() == [0.5, 0.25, 0.5, 0.2, 0.5, 0.375, 0.1]
        and seen.dtype == np.float64
        and len(observations.OBSERVED) == 7
    )
    assert extremes.observe(Look(3.0, 20.0), Look(4.0, 10.0), 0, 0, 0).tolist() == [
        2.0,
        -0.5,
        2.0,
        0.1,
        0,
        0,
        0,
    ]  # outside of that range
    assert (extremes.low, extremes.high) == (Look(2.0, 30.0), Look(2.5, 50.0))
    growing = Extremes([Look(2.5, 40.0), Look(2.0, 30.0)], fixed=False)
    assert growing.observe(Look(1.5, 45.0), Look(2.0, 130.0), 1, 1, 1).tolist() == pytest.approx(
        [0.0, 0.15, 0.5, 0.17, 1, 1, 1]
    )
    assert (growing.low, growing.high) == (Look(1.5, 30.0), Look(2.5, 130.0))


def test_without_spread_the_unit_is_one():
    seen = Extremes([Look(2.0, 30.0)]).observe(Look(2.0, 30.0), Look(2.5, 40.0), 0.5, 0.5, 1.0)
    assert seen.tolist() == [0, 0, 0.5, 2.0, 0.5, 0.5, 1.0]


def test_the_reward_charges_for_what_is_cut_off_and_what_is_lost():
    assert observations.reward(np.array([0.3, 0.9, 0.5, 0.25, 0.75, 0.5, 0.1])) == -25.75
    assert observations.reward(np.array([0, 0, 0.5, 0.25, 0.5, 0.75, 0.1])) == -25.75
    assert (
        observations.reward(np.array([9.0, 9.0, 0, 0, 0.5, 0.5, 9.0])) == 0
        and type(observations.reward(np.zeros(7))) is float
    )


def test_rewards_of_any_pruner_are_those_of_the_environment():
    model, batch, _ = network("small lenet")
    batches = [(batch[0] * (1 + i / 10), batch[1]) for i in range(12)]
    found = observations.Rewards(model, iter(batches), 0.005, 10)
    seen = []
    pruning.prune(
        model,
        "iterative-snip",
        0.005,
        batch,
        rounds=10,
        observe=lambda t, old, new, batch: seen.append(new) or found(t, old, new, batch),
    )
    sight = Sight(model)
    looks = [sight.look(masks.ones(model), used) for used in batches[:10]]
    extremes, expected = Extremes(looks), []
    for t, mask in enumerate(seen, start=1):
        scheduled, effective = (
            1 - 0.005 ** (t / 10),
            1 - masks.density(masks.effective(model, mask)),
        )
        observation = extremes.observe(
            looks[t % 10], sight.look(mask, batches[t % 10]), effective, scheduled, t / 10
        )
        expected.append(
            -100 * abs(scheduled - effective)
            - observation[2]
            - observation[3]
            - (11 - t if effective == 1 else 0)
        )
        if effective == 1:
            break
    assert found == pytest.approx(expected) and 1 < len(found) < 10  # it dies


def test_one_batch_gives_extremes_by_drawing_from_it_again():
    model, batch, _ = network("lenet300")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, again, other = (
        observations.resampled(Sight(model), images)
        for images in (batch, batch, (batch[0], batch[1].flip(0)))
    )
    assert (one.low, one.high) == (again.low, again.high) and (one.low, one.high) != (
        other.low,
        other.high,
    )
    assert (
        one.low.loss < one.high.loss
        and one.low.gtg < one.high.gtg
        and torch.equal(before, torch.get_rng_state())
    )


# --- looking at a sub-network ---


@pytest.mark.parametrize("dense_engine", [True, False])
@pytest.mark.parametrize("density", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("name", SMALL)
def test_a_look_is_that_of_the_products(name, density, dense_engine, monkeypatch):
    model, batch, _ = network(name)
    mask = masks.keep_top(metrics.random(model, masks.ones(model), batch), density, "layerwise")
    monkeypatch.setattr(observations, "SPARSE_BELOW", 0 if dense_engine else 2)
    flows, flow = [], sparse.SparseNet.flow
    monkeypatch.setattr(
        sparse.SparseNet, "flow", lambda *arguments: flows.append(1) or flow(*arguments)
    )
    look, products = (
        Sight(model).look(mask, batch),
        metrics.products(model, mask, batch, metrics.TEMPERATURE),
    )
    assert (
        look.loss == pytest.approx(products.loss, abs=2e-9)
        and look.gtg == pytest.approx(products.gtg, rel=1e-6)
        and look.gtg > 0
    )
    assert len(flows) == (not dense_engine and name != "residual")  # which is in float64


@pytest.mark.parametrize(
    "removed, sparse_enough", [(0, False), (16, False), (17, True), (36, True)]
)
def test_the_sparse_engine_looks_where_few_multiply_adds_are_left(
    removed, sparse_enough, monkeypatch
):
    """An image takes 36 * 36 + 96 * 4 + 480 + 200 = 2360 of them, because a convolution uses a
    weight at every place; three quarters are 1770.
    """
    model, batch, _ = network("small lenet")
    flows = []
    monkeypatch.setattr(observations, "SPARSE_BELOW", 0.75)
    monkeypatch.setattr(
        sparse.SparseNet,
        "flow",
        lambda net, x, y, temperature: flows.append(1) or (torch.zeros(len(y), 10), 0.0),
    )
    mask = masks.ones(model)
    mask["0.weight"].view(-1)[:removed] = False
    Sight(model).look(mask, batch)
    assert len(flows) == sparse_enough


@pytest.mark.parametrize("name", SMALL)
def test_effective_sparsity_with_and_without_a_pass_of_synflow(name):
    model, batch, _ = network(name)
    sight = Sight(model)
    for density in (0.3, 0.02):
        mask = masks.keep_top(metrics.snip(model, masks.ones(model), batch), density)
        kept, expected = (
            masks.places(masks.flatten(mask)),
            1 - masks.density(masks.effective(model, mask)),
        )
        assert sight.effective_sparsity(
            mask, metrics.synflow_of(model)(mask, batch)[0], kept
        ) == pytest.approx(expected)
        assert sight.effective_sparsity(mask, None, kept) == pytest.approx(expected)
    nothing = {name: torch.zeros_like(m) for name, m in mask.items()}
    assert sight.effective_sparsity(nothing, None, masks.places(masks.flatten(nothing))) == 1


# --- the smallest living network ---


@pytest.mark.parametrize("name", SMALL)
def test_one_path_is_alive_and_no_weight_of_it_can_go(name, unchanged):
    model, _, least = SMALL[name][0](), *network(name)[1:]
    with unchanged(model):
        mask = panning.one_path(model)
    masks.check(model, mask)
    assert masks.count(mask) == least and same(masks.effective(model, mask), mask)
    for name, m in mask.items():
        for place in m.view(-1).nonzero().flatten():
            m.view(-1)[place] = False
            assert masks.count(masks.effective(model, mask)) == 0
            m.view(-1)[place] = True


def test_one_path_goes_where_most_flows():
    model, _, _ = network("lenet300")
    one, two, three = (w.detach().double().abs() for w in models.prunable(model).values())
    hidden, pixel = divmod(int((one * (three.sum(0) @ two)[:, None]).argmax()), one.shape[1])
    second = int((two[:, hidden] * three.sum(0)).argmax())
    expected = [(hidden, pixel), (second, hidden), (int(three[:, second].argmax()), second)]
    assert [tuple(m.nonzero()[0].tolist()) for m in panning.one_path(model).values()] == expected


def test_one_path_avoids_weights_of_0():
    model = SMALL["lenet300"][0]()
    with torch.no_grad():
        for weight in models.prunable(model).values():
            kept = weight[1, 2].item()
            weight.zero_()[1, 2] = kept
        model.fc2.weight[2, 1] = -1e-9
    assert [m.nonzero().tolist() for m in panning.one_path(model).values()] == [
        [[1, 2]],
        [[2, 1]],
        [[1, 2]],
    ]


@pytest.mark.parametrize(
    "name, layer",
    [
        ("lenet300", "fc2.weight"),
        ("small lenet", "0.weight"),
        ("residual", "6.weight"),
        ("resnet20", "conv.weight"),
    ],
)
def test_a_network_without_any_path_is_named(name, layer):
    model = SMALL[name][0]()
    with torch.no_grad():
        models.prunable(model)[layer].zero_()
    with pytest.raises(
        UserError, match="no path leads from the input to the output of this network"
    ):
        panning.one_path(model)


# --- pruning with an agent ---

ALONE, ONE = (
    "the mix would have left no path: SynFlow decided",
    "neither the mix nor SynFlow would have left a path: one was kept",
)
POLICIES = {
    "grasp": [-1, -1, 1],
    "snip": [-1, 1, -1],
    "synflow": [1, -1, -1],
    "three zeros": [-1, -1, -1],
    "random": None,
}


def prune(name, method, kept, rounds, **how):
    """(masks, rows of the trace) of every round, down to ``kept`` weights."""
    model, batch, _ = network(name)
    seen = []
    mask, trace = pruning.prune(
        model,
        method,
        kept / masks.size(masks.ones(model)),
        batch,
        rounds,
        observe=lambda t, old, new, batch: seen.append((old, new)),
        **how,
    )
    assert same(seen[-1][1], mask)
    return seen, trace


def policy_of(name):
    return (
        policies.Random(0)
        if POLICIES[name] is None
        else lambda seen: np.array(POLICIES[name], np.float32)
    )


def check_that_it_lives(name, kept, rounds, policy):
    """Every round has a path and its exact count; returns the guard's events."""
    model, batch, _ = network(name)
    seen, trace = prune(name, "panning-agent", kept, rounds, policy=policy_of(policy))
    total, events = masks.size(seen[0][0]), []
    for (old, new), row in zip(seen, trace):
        assert masks.count(new) == max(
            round((kept / total) ** (row["round"] / rounds) * total), kept
        )
        assert (
            1 - row["effective_sparsity"]
            == pytest.approx(masks.density(masks.effective(model, new)))
            and row["effective_sparsity"] < 1
        )
        events += row["events"]
        scores = metrics.synflow(model, old, batch)
        alone = masks.keep_top(scores, 1 - row["sparsity_asked"])
        if ALONE in row["events"]:  # what SynFlow has no score for comes last
            assert all(new[layer][m & (scores[layer] > 0)].all() for layer, m in alone.items())
        if ONE in row["events"]:
            assert masks.count(masks.effective(model, alone)) == 0 and all(
                new[layer][m].all() for layer, m in panning.one_path(model).items()
            )
    assert masks.count(seen[-1][1]) == kept and set(events) <= {ALONE, ONE}
    return events


@pytest.mark.parametrize(
    "name, policy",
    [
        (name, policy)
        for name in SMALL
        for policy in POLICIES
        if name != "resnet20" or policy in ("grasp", "synflow")
    ],
)
def test_an_agent_never_leaves_a_dead_network(name, policy):
    least, events = SMALL[name][1], []
    for kept, rounds in (
        ((least, 3),)
        if name == "resnet20"
        else ((least, 3), (least, 10), (least + 1, 6), (2 * least, 7), (20, 5))
    ):
        events += check_that_it_lives(name, kept, rounds, policy)
    assert events


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["lenet300", "small lenet", "residual"]),
    more=st.integers(0, 60),
    rounds=st.integers(3, 10),
    policy=st.sampled_from(sorted(POLICIES)),
)
def test_no_density_kills(name, more, rounds, policy):
    check_that_it_lives(name, SMALL[name][1] + more, rounds, policy)


def test_the_guard_acts_where_the_mix_would_kill_and_nowhere_else():
    """Panning with the same mix and no guard is the same network until it dies; then the trace of
    the agent's says so.
    """
    died = 0
    for name, kept in (
        ("lenet300", 3),
        ("lenet300", 60),
        ("small lenet", 6),
        ("residual", 4),
        ("residual", 40),
    ):
        for policy in ("grasp", "synflow", "three zeros"):
            guarded, trace = prune(name, "panning-agent", kept, 6, policy=policy_of(policy))
            bare, _ = prune(
                name, "panning", kept, 6, mix=observations.coefficients(POLICIES[policy])
            )
            for (_, ours), (_, theirs), row in zip(guarded, bare, trace):
                dead = masks.count(masks.effective(network(name)[0], theirs)) == 0
                assert bool(row["events"]) == dead and same(ours, theirs) != dead
                died += dead
                if dead:
                    break
    assert 4 <= died < 15


@pytest.mark.parametrize("name", SMALL)
def test_less_than_a_path_is_refused_with_the_least_number(name):
    model, batch, least = network(name)
    for kept in range(1, least):
        with pytest.raises(
            UserError,
            match=(
                f"keeps {kept} weights and a path through this network takes {least}: none could"
                " live"
            ),
        ):
            pruning.prune(
                model, "panning-agent", kept / masks.size(masks.ones(model)), batch, rounds=3
            )


def test_a_scope_in_which_none_can_live_is_named():
    model, batch, _ = network("lenet300")
    with pytest.raises(
        UserError,
        match=(
            "no mask with a path keeps .* weights here; use scope 'global', allow weights to"
            " return, or a larger density"
        ),
    ):
        pruning.prune(model, "panning-agent", 1e-4, batch, rounds=3, scope="layerwise")


def test_a_policy_sees_what_the_environment_would_show():
    """Zeros first; then the mask of the round before, on the batch of this one. The units are those
    of draws from the first batch.
    """
    model, batch, _ = network("lenet300")
    for batches in (batch, [batch, (batch[0].flip(0), batch[1])]):
        shown, seen = [], []
        pruning.prune(
            model,
            "panning-agent",
            0.01,
            batches,
            rounds=4,
            policy=lambda observation: shown.append(observation) or [0, 0, 0],
            observe=lambda t, old, new, batch: seen.append((old, batch)),
        )
        sight = Sight(model, observations.DEFAULT)
        extremes = observations.resampled(sight, batch, fixed=False)
        assert len(shown) == 4 and shown[0][2:].tolist() == [0] * 5
        for t, (observation, (mask, used)) in enumerate(zip(shown, seen)):
            effective = 1 - masks.density(masks.effective(model, mask))
            expected = extremes.observe(
                sight.look(masks.ones(model), used),
                sight.look(mask, used),
                effective,
                1 - 0.01 ** (t / 4),
                t / 4,
            )
            assert observation.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    "how, says",
    [
        ({"policy": "genral-1"}, f"unknown policy 'genral-1'; did you mean '{policies.SHIPPED}'"),
        ({"policy": "no/such.npz"}, "no/such.npz is not a policy"),
        ({"mix": (1, 1, 1)}, "a mix belongs to panning or panning-product or panning-masked"),
        (
            {"method": "panning", "policy": policies.SHIPPED},
            "a policy belongs to panning-agent, not to panning",
        ),
    ],
)
def test_bad_policies_are_named(how, says):
    model, batch, _ = network("lenet300")
    with pytest.raises(UserError, match=says):
        pruning.prune(
            model,
            **{"method": "panning-agent", "density": 0.1, "batches": batch, "rounds": 2, **how},
        )


def test_the_ways_to_hand_in_a_policy(tmp_path):
    """By name, as a file, as a function; none is the one that comes with the package."""
    shipped = policies.load(policies.SHIPPED)
    shipped.save(tmp_path / "mine.npz")
    found = [
        prune("lenet300", "panning-agent", 100, 4, **how)[0][-1][1]
        for how in (
            {},
            {"policy": policies.SHIPPED},
            {"policy": shipped},
            {"policy": str(tmp_path / "mine.npz")},
            {"policy": tmp_path / "mine.npz"},
        )
    ]
    assert all(same(found[0], mask) for mask in found[1:])


def test_a_pruned_weight_stays_pruned_where_it_must():
    for kept in (3, 20):
        seen, trace = prune(
            "lenet300", "panning-agent", kept, 6, policy=policy_of("grasp"), revive=False
        )
        assert [row["revived"] for row in trace] == [0] * 6


def test_the_mass_that_is_told_is_that_of_the_metric_whatever_mixes_it(lenet300, digits_batch):
    """In the first round all see the same network."""
    masses = []
    for name in ("synflow", "panning-masked"):
        first = pruning.prune(lenet300, name, 0.1, digits_batch, rounds=2, seed=0)[1][0]
        masses.append(first["kept_mass"]["synflow"] + first["removed_mass"]["synflow"])
    assert masses[0] == pytest.approx(masses[1], rel=1e-6)
