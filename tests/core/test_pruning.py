"""Pruning: rounds, scopes and options, and staged Panning against an implementation of its own."""

import itertools
from collections import Counter
from functools import lru_cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from benchmarks import straightforward
from panning_core import masks, metrics, models, pruning
from panning_core.errors import UserError
from panning_core.methods import panning
from panning_core.methods.registry import method as record
from panning_core.paths import visible
from tests.conftest import same
from tests.contract.test_every_method import REVIVING


def batches_of(residual_batch, n):
    x, y = residual_batch
    return [(x * (i + 1), y.roll(i)) for i in range(n)]


@pytest.mark.parametrize("method", sorted(REVIVING))
def test_weights_return_where_they_may_and_not_where_they_are_forbidden_to(
    method, residual, residual_batch
):
    batches = batches_of(residual_batch, 3)
    free = pruning.prune(residual, method, 0.05, batches, rounds=10)[1]
    bound = pruning.prune(residual, method, 0.05, batches, rounds=10, revive=False)[1]
    assert sum(row["revived"] for row in free) > 0 and sum(row["revived"] for row in bound) == 0


@pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow", "prospr", "ntk-sap"])
def test_one_round_is_keep_top_of_the_metric_and_inverted_keeps_the_lowest(
    method, residual, residual_batch
):
    scores = metrics.METRICS[method](residual, masks.ones(residual), residual_batch)
    for inverted, ranked in ((False, scores), (True, {name: -s for name, s in scores.items()})):
        mask, _ = pruning.prune(residual, method, 0.3, residual_batch, rounds=1, inverted=inverted)
        assert same(mask, masks.keep_top(ranked, 0.3))


@pytest.mark.parametrize("method", ["iterative-snip", "synflow"])
def test_where_the_lowest_are_kept_nothing_returns_either(method, residual, residual_batch):
    """Removed weights have the score 0, the lowest of all."""
    trace = pruning.prune(residual, method, 0.1, residual_batch, rounds=5, inverted=True)[1]
    assert [row["revived"] for row in trace] == [0] * 5


def test_rounds_score_the_sub_network_of_the_round_before(residual, residual_batch):
    """FORCE, SynFlow, Iterative SNIP, NTK-SAP and an iterative ProsPr as three lines of plain code.
    Noise goes on from round to round.
    """
    for method, metric, nested in (
        ("force", metrics.force, False),
        ("synflow", metrics.synflow, True),
        ("iterative-snip", metrics.snip, True),
        ("ntk-sap", partial(metrics.ntk_sap, generator=torch.Generator().manual_seed(0)), True),
        ("prospr", metrics.prospr, True),
    ):
        mask = masks.ones(residual)
        for t in range(1, 6):
            scores = metric(residual, mask, residual_batch)
            mask = masks.keep_top(
                {
                    n: torch.where(mask[n], s, -torch.inf) if nested else s
                    for n, s in scores.items()
                },
                0.05 ** (t / 5),
            )
        assert same(mask, pruning.prune(residual, method, 0.05, residual_batch, rounds=5)[0])


@pytest.mark.parametrize(
    "method, rounds",
    [
        ("random", 1),
        ("snip", 1),
        ("grasp", 1),
        ("synflow", 100),
        ("iterative-snip", 100),
        ("force", 100),
        ("panning", 100),
        ("prospr", 1),
        ("ntk-sap", 20),
        ("smart-ratio", 1),
        ("phew", 1),
    ],
)
def test_each_method_takes_its_published_number_of_rounds(method, rounds, residual, residual_batch):
    assert len(pruning.prune(residual, method, 0.2, residual_batch)[1]) == rounds


# --- batches ---


@pytest.mark.parametrize(
    "method", ["iterative-snip", "force", "panning", "panning-product", "panning-masked"]
)
def test_how_batches_are_handed_in(method, residual, residual_batch):
    def prune(batches):
        return pruning.prune(residual, method, 0.1, batches, rounds=4)[0]

    two = batches_of(residual_batch, 2)
    assert same(prune(residual_batch), prune([residual_batch]))
    assert same(prune(two), prune(iter(two * 2)))
    assert same(prune(two), prune((x.clone(), y.clone()) for x, y in two * 2))
    assert not same(prune(two), prune(two[0])) and not same(prune(two), prune(two[::-1]))
    used = []
    pruning.prune(
        residual,
        method,
        0.1,
        two,
        rounds=3,
        observe=lambda t, old, new, batch: used.append(batch),
    )
    assert [batch[0] is two[i][0] for batch, i in zip(used, (0, 1, 0))] == [True] * 3


@pytest.mark.parametrize("method", ["iterative-snip", "panning"])
def test_batches_that_share_their_images_are_still_different_batches(
    method, residual, residual_batch
):
    x, y = residual_batch
    shared, copied = [(x, y), (x, 2 - y)], [(x, y), (x.clone(), 2 - y)]
    assert same(
        pruning.prune(residual, method, 0.1, shared, rounds=4)[0],
        pruning.prune(residual, method, 0.1, copied, rounds=4)[0],
    )


@pytest.mark.parametrize("method", ["iterative-snip", "panning"])
def test_a_stream_may_fill_the_same_tensor_again(method, residual, residual_batch):
    batches = batches_of(residual_batch, 4)

    def refilled():
        x = torch.empty_like(batches[0][0])
        for images, labels in batches:
            x.copy_(images)
            yield x, labels

    assert same(
        pruning.prune(residual, method, 0.1, refilled(), rounds=4)[0],
        pruning.prune(residual, method, 0.1, iter(batches), rounds=4)[0],
    )


def test_batches_that_end_are_an_error(residual, residual_batch):
    with pytest.raises(UserError, match="ended before round 3 of 5"):
        pruning.prune(residual, "force", 0.1, iter([residual_batch] * 2), rounds=5)
    with pytest.raises(UserError, match="ended before round 1"):
        pruning.prune(residual, "snip", 0.1, [])


# --- options of a metric ---


def test_prospr_at_one_per_cent(lenet300, digits_batch):
    mask, trace = pruning.prune(lenet300, "prospr", 0.01, digits_batch)
    assert masks.count(mask) == 502 and list(trace[0]["kept_mass"]) == ["prospr"]
    scores = metrics.prospr(lenet300, masks.ones(lenet300), digits_batch)
    assert (
        same(mask, masks.keep_top(scores, 0.01))
        and masks.count(masks.effective(lenet300, mask)) > 250
    )
    assert not same(mask, pruning.prune(lenet300, "snip", 0.01, digits_batch)[0])


def test_options_reach_the_metric(residual, residual_batch):
    def prune(method, **options):
        return pruning.prune(residual, method, 0.1, residual_batch, rounds=2, options=options)[0]

    plain = prune("prospr")
    assert same(prune("prospr", steps=0), prune("snip")) and not same(
        prune("prospr", steps=0), plain
    )
    assert same(plain, prune("prospr", steps=3, units=False)) and same(
        plain, pruning.prune(residual, "prospr", 0.1, residual_batch, rounds=2, options=None)[0]
    )
    for options in (
        {"lr": 2},
        {"first_order": True},
        {"units": True},
        {"lr": 0.5, "momentum": 0.9},
    ):
        assert not same(prune("prospr", **options), plain), options
    assert not same(prune("ntk-sap", deviation=0.5), prune("ntk-sap")) and same(
        prune("ntk-sap", repeats=5), prune("ntk-sap")
    )


def test_every_option_has_a_plain_default():
    assert record("prospr").options == {
        "steps": 3,
        "lr": 0.1,
        "momentum": 0.0,
        "parts": 1,
        "first_order": False,
        "units": False,
    }
    assert record("ntk-sap").options == {"repeats": 5, "deviation": 0.01}
    assert record("panning").options == record("panning-product").options == {"masked": False}
    assert record("panning-agent").options == {"guard": True}
    own = ("prospr", "ntk-sap", "panning", "panning-product", "panning-agent")
    assert all(record(method).options == {} for method in pruning.methods() if method not in own)


def test_a_metric_of_your_own_has_options_too(residual, residual_batch, monkeypatch):
    def power(model, mask, batch, generator=None, *, exponent: float = 1.0):
        return {name: w.detach().abs() ** exponent for name, w in models.prunable(model).items()}

    monkeypatch.setitem(metrics.METRICS, "power", power)
    assert record("power").options == {"exponent": 1.0}
    large, small = (
        pruning.prune(residual, "power", 0.5, residual_batch, options={"exponent": exponent})[0]
        for exponent in (2, -1)
    )
    assert same(large, pruning.prune(residual, "magnitude", 0.5, residual_batch)[0])
    assert same(small, pruning.prune(residual, "magnitude", 0.5, residual_batch, inverted=True)[0])


# --- whole units ---


def units_of(rows, cost):
    """For each layer the rows [units] whose weights are all kept; fails if a row is kept in
    part.
    """
    kept = {name: m.flatten(1).any(1) for name, m in rows.items()}
    assert all((m.flatten(1).all(1) == kept[name]).all() for name, m in rows.items()) and sum(
        int(k.sum()) * cost[name] for name, k in kept.items()
    ) == masks.count(rows)
    return kept


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.integers(0, 10_000),
    st.floats(0.001, 1),
)
@settings(deadline=None, max_examples=100)
def test_the_scope_of_units_keeps_whole_rows_best_first(widths, seed, density):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    weights, batch = (
        models.prunable(model),
        (torch.zeros(1, widths[0]), torch.zeros(1, dtype=torch.long)),
    )
    names, total, cost = (
        list(weights),
        sum(w.numel() for w in weights.values()),
        {name: w.shape[1] for name, w in weights.items()},
    )
    sums = {name: w.detach().abs().sum(1) for name, w in weights.items()}
    least, room = (
        weights[names[-1]].numel() + sum(cost[name] for name in names[:-1]),
        round(density * total),
    )
    if room < least:
        says = (
            "keeps none of"
            if room == 0
            else (
                f"density {density} keeps {room:,} weights, and the outputs and one unit of every"
                f" other layer take {least:,}"
            )
        )
        with pytest.raises(UserError) as error:
            pruning.prune(model, "magnitude", density, batch, scope="units")
        assert says in str(error.value)
        return
    mask, trace = pruning.prune(model, "magnitude", density, batch, scope="units")
    kept = units_of(mask, cost)
    assert (
        masks.count(mask) <= room
        and kept[names[-1]].all()
        and trace[0]["sparsity"] == 1 - masks.count(mask) / total
    )
    assert all(kept[name][sums[name].argmax()] for name in names)
    ranked = sorted(
        (
            (float(s), name, i)
            for name in names[:-1]
            for i, s in enumerate(sums[name])
            if i != int(sums[name].argmax())
        ),
        reverse=True,
    )
    flags = [bool(kept[name][i]) for _, name, i in ranked]
    assert flags == sorted(flags, reverse=True)  # those kept come first
    if False in flags:
        _, name, _ = ranked[flags.index(False)]
        assert masks.count(mask) + cost[name] > room  # and the next is too much
    assert same(
        masks.effective(model, mask),
        {name: m & (kept[names[k - 1]] if k else True) for k, (name, m) in enumerate(mask.items())},
    )  # minus columns of units gone


@pytest.mark.parametrize(
    "method, how",
    [
        ("snip", {}),
        ("prospr", {"options": {"units": True, "steps": 1}}),
        ("iterative-snip", {"rounds": 5}),
        ("synflow", {"rounds": 5}),
        ("force", {"rounds": 5}),
        ("random", {"inverted": True}),
        ("panning", {"rounds": 5}),
        ("smart-ratio", {}),
    ],
)
def test_whole_channels_of_a_residual_network(method, how, residual, residual_batch):
    seen = []
    pruning.prune(
        residual,
        method,
        0.6,
        residual_batch,
        scope="units",
        observe=lambda t, old, new, batch: seen.append(new),
        **how,
    )
    cost = {name: w[0].numel() for name, w in models.prunable(residual).items()}
    for t, mask in enumerate(seen, start=1):
        kept = units_of(mask, cost)
        assert all(k.any() for k in kept.values()) and kept["6.weight"].all()
        assert (
            masks.count(mask)
            <= round(0.6 ** (t / len(seen)) * 557)
            < masks.count(mask) + 2 * max(cost.values())
        )
        if method not in REVIVING and t > 1:
            assert all((seen[t - 2][name] | ~m).all() for name, m in mask.items())


# --- a density of effective weights ---


@pytest.mark.parametrize(
    "method, inverted", [("magnitude", False), ("snip", True), ("random", False)]
)
def test_effective_weights_are_all_that_fit(method, inverted, residual, residual_batch):
    """One more of the weights in their order would be too many; what is kept of them is the
    effective part, and nothing else.
    """
    scores = metrics.METRICS[method](
        residual, masks.ones(residual), residual_batch, torch.Generator().manual_seed(0)
    )
    ranked = {name: -s for name, s in scores.items()} if inverted else scores
    live = [masks.effective(residual, masks.keep_top(ranked, n / 557)) for n in range(558)]
    counts = [masks.count(m) for m in live]
    assert counts == sorted(counts) and counts[-1] == 557
    jumps = 0
    for density in (0.02, 0.05, 0.1, 0.3, 0.9):
        room = round(density * 557)
        most = max(n for n, found in enumerate(counts) if found <= room)
        if counts[most] == 0:
            with pytest.raises(
                UserError,
                match=f"density {density} leaves {room} of 557 weights, too few for a path",
            ):
                pruning.prune(
                    residual, method, density, residual_batch, effective=True, inverted=inverted
                )
            continue
        mask, _ = pruning.prune(
            residual, method, density, residual_batch, effective=True, inverted=inverted
        )
        assert same(mask, live[most]) and most >= room
        jumps += most > room
    assert jumps > 1


def test_only_the_last_round_counts_effective_weights(residual, residual_batch):
    seen = {True: [], False: []}
    for effective, masks_seen in seen.items():
        pruning.prune(
            residual,
            "iterative-snip",
            0.05,
            residual_batch,
            rounds=4,
            effective=effective,
            observe=lambda t, old, new, batch: masks_seen.append(new),
        )
    *before, last = map(same, seen[True], seen[False])
    assert all(before) and not last


def test_a_single_weight_can_be_kept():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    batch = torch.ones(2, 2), torch.tensor([0, 1])
    assert masks.count(pruning.prune(model, "magnitude", 0.25, batch)[0]) == 1


@pytest.mark.parametrize("method", ["iterative-snip", "synflow", "magnitude"])
def test_what_may_not_return_does_not_return_for_being_effective(method, residual, residual_batch):
    """Among the weights of the round before there may be too few that are effective: then fewer are
    kept, and none that were removed.
    """
    for density, rounds in ((0.05, 100), (0.1, 60), (0.03, 20)):
        seen = []
        mask, trace = pruning.prune(
            residual,
            method,
            density,
            residual_batch,
            rounds=rounds,
            effective=True,
            observe=lambda t, old, new, batch: seen.append(new),
        )
        assert [row["revived"] for row in trace] == [0] * rounds
        assert all((seen[-2][name] | ~m).all() for name, m in mask.items())


# --- bad input ---


@pytest.mark.parametrize(
    "change, says",
    [
        ({"method": "panningg"}, "unknown pruner 'panningg'; did you mean 'panning'"),
        ({"method": "synflo"}, "did you mean 'synflow'"),
        ({"density": 0.0}, "sparsity|density"),
        ({"density": 0}, "sparsity|density"),
        ({"density": 1.01}, "sparsity|density"),
        ({"density": -0.1}, "sparsity|density"),
        ({"density": float("nan")}, "sparsity|density"),
        ({"density": 0.5 / 557.5}, "keeps none of 557 weights"),
        ({"rounds": 0}, "rounds is 0"),
        ({"rounds": -3}, "rounds is -3"),
        ({"scope": "layer-wise"}, "unknown scope 'layer-wise'; did you mean 'layerwise'"),
        ({"schedule": "exp"}, "unknown schedule 'exp'"),
        ({"method": "snip", "mix": (1, 1, 1)}, "a mix belongs to panning.*not to snip"),
        ({"mix": (1, 1)}, "three coefficients"),
        ({"mix": (1, 1, 1, 1)}, "three coefficients"),
        ({"mix": (1, -0.1, 1)}, "at least 0"),
        ({"mix": (0, 0, 0)}, "not all 0"),
        ({"options": {"steps": 1}}, "unknown option of panning 'steps'; known: masked"),
        ({"method": "phew", "options": {"steps": 1}}, "phew has no options"),
        (
            {"method": "prospr", "options": {"step": 1}},
            "unknown option of prospr 'step'; did you mean 'steps'",
        ),
        (
            {"method": "ntk-sap", "options": {"steps": 1}},
            "unknown option of ntk-sap 'steps'; did you mean 'repeats'|known: deviation, repeats",
        ),
        (
            {"method": "prospr", "options": {"steps": 1.0}},
            "option steps of prospr is 1.0; it must be int, like 3",
        ),
        (
            {"method": "prospr", "options": {"steps": True}},
            "option steps of prospr is True; it must be int, like 3",
        ),
        (
            {"method": "prospr", "options": {"lr": "0.1"}},
            "option lr of prospr is '0.1'; it must be float, like 0.1",
        ),
        (
            {"method": "prospr", "options": {"units": 1}},
            "option units of prospr is 1; it must be bool, like False",
        ),
        ({"method": "prospr", "options": {"steps": -1}}, "steps of at least 0"),
        ({"method": "prospr", "options": {"parts": 10}}, "from 1 to 9 parts"),
        ({"method": "phew", "density": 2 / 557}, "whole paths, which in this network are from 3"),
        (
            {"method": "magnitude", "density": 0.1, "scope": "units"},
            "keeps 56 weights, and the outputs and one unit of every other layer take",
        ),
        (
            {"method": "magnitude", "density": 2 / 557, "effective": True},
            "leaves 2 of 557 weights, too few for a path",
        ),
    ],
)
def test_bad_input_is_named(change, says, residual, residual_batch):
    with pytest.raises(UserError, match=says):
        pruning.prune(
            residual,
            batches=residual_batch,
            **{"method": "panning", "density": 0.1, "rounds": 2, **change},
        )


# --- staged Panning, written a second time from its description ---

SUM_TABLE = [
    (0.80, (0.2, 0.5, 0.3)),
    (0.90, (0.2, 0.4, 0.4)),
    (0.98, (0.2, 0.3, 0.5)),
    (0.99, (0.4, 0.2, 0.4)),
    (None, (0.5, 0.0, 0.5)),
]
PRODUCT_TABLE = [
    (0.80, (0.3, 1.0, 0.2)),
    (0.90, (0.3, 1.0, 0.4)),
    (0.98, (0.5, 0.5, 0.6)),
    (0.99, (0.8, 0.0, 1.0)),
    (None, (1.0, 0.0, 1.0)),
]


def coefficients(table, density, rounds):
    """One (a, b, c) a round; the stage follows the sparsity asked for, by one step a round at
    most.
    """
    result, stage = [], 0
    for t in range(1, rounds + 1):
        sparsity = 1 - density ** (t / rounds)
        if stage < 4 and sparsity > table[stage][0]:
            stage += 1
        result.append(table[stage][1])
    return result


def lenet5_forward(w, b, x):
    x = F.max_pool2d(torch.relu(F.conv2d(x, w[0], b[0])), 2)
    x = F.max_pool2d(torch.relu(F.conv2d(x, w[1], b[1])), 2)
    return F.linear(torch.relu(F.linear(x.flatten(1), w[2], b[2])), w[3], b[3])


def z_score(flat):
    spread = flat.std()
    return None if spread == 0 else (flat - flat.mean()).abs() / spread


def reference_panning(model, batches, density, form, stages, masked=False):
    """Masks of Panning, one a round: plain loops, one long vector for all weights, a full stable
    sort.
    """
    state = model.state_dict()
    w = [state[f"{layer}.weight"].clone() for layer in ("conv1", "conv2", "fc1", "fc2")]
    b = [state[f"{layer}.bias"].clone() for layer in ("conv1", "conv2", "fc1", "fc2")]
    theta = torch.cat([layer.flatten() for layer in w])

    def in_layers(flat):
        return [
            part.view_as(layer)
            for part, layer in zip(flat.split([layer.numel() for layer in w]), w)
        ]

    def normal(scores):
        return scores.abs() if form == "masked" else z_score(scores)

    def data_scores(x, y, kept):
        leaves, kept = (
            [layer.clone().requires_grad_() for layer in in_layers(theta * kept)],
            in_layers(kept),
        )
        loss = F.cross_entropy(lenet5_forward(leaves, b, x) / 200, y)
        g = torch.autograd.grad(loss, leaves, create_graph=True)
        flow = torch.autograd.grad(
            sum((part * part.detach() * m).sum() for part, m in zip(g, kept)), leaves
        )
        return [
            normal(theta * torch.cat([part.detach().flatten() for part in parts]))
            for parts in (g, flow)
        ]

    rounds, kept, history = len(stages), torch.ones_like(theta), []
    for t in range(1, rounds + 1):
        absolute = [part.clone().requires_grad_() for part in in_layers((theta * kept).abs())]
        flow = lenet5_forward(
            absolute, [torch.zeros_like(bias) for bias in b], torch.ones_like(batches[0][0][:1])
        ).sum()
        through = torch.cat([part.flatten() for part in torch.autograd.grad(flow, absolute)])
        of_data = data_scores(
            *batches[(t - 1) % len(batches)], kept if masked else torch.ones_like(kept)
        )
        score = torch.zeros_like(theta) if form == "sum" else torch.ones_like(theta)
        for part, weight in zip([normal(theta * through), *of_data], stages[t - 1]):
            if part is None:
                continue
            score = score + weight * part if form == "sum" else score * part**weight
        order = torch.sort(score, descending=True, stable=True).indices
        kept = torch.zeros_like(theta)
        kept[order[: round(density ** (t / rounds) * len(theta))]] = 1
        history.append(kept.bool())
    return history


@lru_cache(maxsize=1)
def lenet5_case():
    model = models.build("lenet5", (1, 24, 24), 10, seed=0, init="panning").double()
    generator = torch.Generator().manual_seed(7)
    batches = [
        (
            torch.randn((20, 1, 24, 24), generator=generator, dtype=torch.double),
            torch.arange(10).repeat(2),
        )
        for _ in range(3)
    ]
    return model, batches


def flat(mask):
    return torch.cat([m.flatten() for m in mask.values()])


@pytest.mark.parametrize(
    "method, form, table, density",
    [("panning", "sum", SUM_TABLE, 0.0005), ("panning-product", "product", PRODUCT_TABLE, 0.01)],
)
def test_staged_panning_weight_for_weight(method, form, table, density):
    model, batches = lenet5_case()
    expected = reference_panning(model, batches, density, form, coefficients(table, density, 100))
    seen = []
    mask, trace = pruning.prune(
        model, method, density, batches, observe=lambda t, old, new, batch: seen.append(flat(new))
    )
    assert [
        t for t, (one, two) in enumerate(zip(seen, expected), start=1) if not torch.equal(one, two)
    ] == []
    assert len(seen) == len(expected) == 100 and int(flat(mask).sum()) == round(density * 255_500)
    assert sum(row["revived"] for row in trace) > 0
    assert trace[-1]["effective_sparsity"] < 1


@pytest.mark.parametrize(
    "method, form, mix, options",
    [
        ("panning-masked", "masked", None, {}),
        ("panning-masked", "masked", (1, 0.5, 1.5), {}),
        ("panning", "sum", (0.2, 0.5, 0.3), {"masked": True}),
        ("panning-product", "product", (1, 1, 0.5), {"masked": True}),
    ],
)
def test_metrics_of_the_subnetwork_weight_for_weight(method, form, mix, options):
    model, batches = lenet5_case()
    expected, seen = (
        reference_panning(
            model, batches, 0.002, form, [mix or panning.POWERS[0][1]] * 30, masked=True
        ),
        [],
    )
    pruning.prune(
        model,
        method,
        0.002,
        batches,
        rounds=30,
        mix=mix,
        options=options,
        observe=lambda t, old, new, batch: seen.append(flat(new)),
    )
    assert len(seen) == 30 and all(torch.equal(one, two) for one, two in zip(seen, expected))


@pytest.mark.parametrize(
    "density, rounds, stages",
    [
        (
            0.01,
            10,
            [0, 0, 0, 1, 1, 2, 2, 2, 3, 3],
        ),  # sparsity .37 .60 .75 .84 .90 .937 .96 .975 .984 .99: the last is not above .99
        (
            0.005,
            3,
            [1, 2, 3],
        ),  # .83 .971 .995: the last asks for stage 4 and gets the next one only
        (0.001, 1, [1]),
        (0.2, 2, [0, 0]),  # exactly .80 is still the first stage
        (0.0005, 4, [1, 2, 3, 4]),  # .85 .978 .9967 .9995
    ],
)
def test_the_stage_advances_by_one_a_round_at_most(density, rounds, stages):
    model, batches = lenet5_case()
    for method, form, table in (
        ("panning", "sum", SUM_TABLE),
        ("panning-product", "product", PRODUCT_TABLE),
    ):
        assert coefficients(table, density, rounds) == [table[stage][1] for stage in stages]

        def reference(indices):
            return reference_panning(
                model, batches[:1], density, form, [table[stage][1] for stage in indices]
            )

        mask, _ = pruning.prune(model, method, density, batches[0], rounds=rounds)
        assert torch.equal(flat(mask), reference(stages)[-1])
        if rounds == 3:  # and the masks do tell a stage from its neighbours
            assert not torch.equal(flat(mask), reference([1, 2, 4])[-1]) and not torch.equal(
                flat(mask), reference([1, 2, 2])[-1]
            )


def test_the_stage_tables_are_the_published_ones():
    for ours, published in (
        (panning.SUM_STAGES, SUM_TABLE),
        (panning.PRODUCT_STAGES, PRODUCT_TABLE),
    ):
        assert [row[1] for row in ours] == [row[1] for row in published]
        assert [row[0] for row in ours[:-1]] == [row[0] for row in published[:-1]]


def test_a_mix_replaces_the_table():
    model, batches = lenet5_case()
    for method, form in (("panning", "sum"), ("panning-product", "product")):
        mask, _ = pruning.prune(model, method, 0.02, batches, rounds=5, mix=(1.5, 0.25, 0))
        assert torch.equal(
            flat(mask), reference_panning(model, batches, 0.02, form, [(1.5, 0.25, 0.0)] * 5)[-1]
        )


@pytest.mark.parametrize("method", ["panning", "panning-product"])
def test_synflow_without_spread_is_reported_and_leaves_the_other_metrics_to_decide(
    method, residual, residual_batch
):
    """No path is left when a whole layer's weights are 0: SynFlow is 0 everywhere, and 0/0 must not
    empty the mask.
    """
    with torch.no_grad():
        residual[-1].weight.zero_()
    mask, trace = pruning.prune(residual, method, 0.1, residual_batch, rounds=3)
    assert masks.count(mask) == round(0.1 * 557)
    assert all("synflow has no spread" in row["events"] for row in trace)
    assert all(row["kept_mass"]["synflow"] == 0 and row["kept_mass"]["grasp"] > 0 for row in trace)


def test_metrics_without_spread_contribute_zeros(lenet300, digits_batch):
    """Pixels that are all 0 and biases that are 0: no gradient, no curvature; SynFlow alone
    decides.
    """
    with torch.no_grad():
        for name, parameter in lenet300.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    black = torch.zeros_like(digits_batch[0]), digits_batch[1]
    mask, trace = pruning.prune(lenet300, "panning", 0.1, black, rounds=3)
    alone, _ = pruning.prune(lenet300, "panning", 0.1, black, rounds=3, mix=(1, 0, 0))
    assert (
        same(mask, alone)
        and [row["events"] for row in trace] == [["snip has no spread", "grasp has no spread"]] * 3
    )


def test_deviations_are_absolute_and_in_units_of_the_standard_deviation():
    distance, unit = panning.deviations(
        torch.tensor([1.0, 2.0, 6.0])
    )  # mean 3, unbiased variance 7
    assert (
        distance.tolist() == pytest.approx([2, 1, 3])
        and unit == pytest.approx(7**0.5)
        and distance.dtype == torch.double
    )
    for without in ([1.0] * 5, [1.0, float("nan")], [1.0, float("inf")], [4.0]):
        assert panning.deviations(torch.tensor(without))[1] == 0


# --- what is not computed twice ---


@pytest.fixture
def calls(monkeypatch):
    """Counts the passes on data (and whether they were with curvature), over the mask alone, and
    for SynFlow.
    """
    made = []

    def counted(name, function):
        return lambda *arguments, **how: (
            made.append((name, how.get("hessian"))) or function(*arguments, **how)
        )

    for module, name in ((metrics, "products"), (masks, "effective")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    flow = metrics.synflow_of
    monkeypatch.setattr(metrics, "synflow_of", lambda model: counted("synflow", flow(model)))
    return made


@pytest.mark.parametrize(
    "how, expected",
    [
        (
            lambda batches: {"batches": batches[0]},
            {("products", True): 1, ("synflow", None): 6, ("effective", None): 1},
        ),
        (
            lambda batches: {"batches": batches},
            {("products", True): 2, ("synflow", None): 6, ("effective", None): 1},
        ),
        (
            lambda batches: {"batches": iter(batches * 3)},
            {("products", True): 6, ("synflow", None): 6, ("effective", None): 1},
        ),
        (
            lambda batches: {"batches": iter(batches * 3), "mix": (1, 0, 0)},
            {("synflow", None): 6, ("effective", None): 1},
        ),
        (
            lambda batches: {"batches": iter(batches * 3), "mix": (1, 1, 0)},
            {("products", False): 6, ("synflow", None): 6, ("effective", None): 1},
        ),
        (
            lambda batches: {"batches": iter(batches * 3), "mix": (0, 0, 1)},
            {("products", True): 6, ("effective", None): 6},
        ),
    ],
)
def test_passes_through_the_network(how, expected, lenet300, digits_batch, calls):
    x, y = digits_batch
    pruning.prune(lenet300, "panning", 0.02, rounds=6, **how([(x, y), (-x, y)]))
    assert Counter(calls) == expected


def bordered():
    """Padding makes the plane uneven and pooling picks one pixel of it: SynFlow sees 4 of the 9
    weights of a kernel, and all 9 are on a path.
    """
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, padding=1),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(3, 2),
    )
    model.input_shape = (1, 2, 2)
    return model, (torch.rand(4, 1, 2, 2), torch.arange(4) % 2)


@pytest.mark.parametrize(
    "method, seen_at_once",
    [
        ("panning", True),
        ("panning-product", True),
        ("synflow", True),
        ("force", True),
        ("synflow", False),
    ],
)
def test_the_trace_knows_the_effective_sparsity_of_every_round(
    method, seen_at_once, lenet300, digits_batch
):
    """Also where SynFlow's pass of the next round tells it."""
    (model, batch), density = (
        ((lenet300, digits_batch), 0.002) if seen_at_once else (bordered(), 0.8)
    )
    assert visible.sees_every_path(model) == seen_at_once
    seen = []
    mask, trace = pruning.prune(
        model,
        method,
        density,
        batch,
        rounds=8,
        observe=lambda t, old, new, batch: seen.append(new),
    )
    assert [1 - row["effective_sparsity"] for row in trace] == pytest.approx(
        [masks.density(masks.effective(model, new)) for new in seen]
    )
    assert (trace[-1]["effective_sparsity"] > trace[-1]["sparsity"]) == seen_at_once


def test_the_trace_splits_the_mass_of_the_scores_that_a_mask_was_made_from(
    residual, residual_batch
):
    mask, trace = pruning.prune(residual, "iterative-snip", 0.2, residual_batch, rounds=3)
    for row, (new, scores) in zip(trace, rounds_of_snip(residual, residual_batch, 0.2, 3)):
        assert row["kept_mass"] == {
            "snip": pytest.approx(sum(float(s[new[n]].sum()) for n, s in scores.items()))
        }
        assert row["removed_mass"] == {
            "snip": pytest.approx(sum(float(s[~new[n]].sum()) for n, s in scores.items()))
        }
        assert row["removed_mass"]["snip"] > 0
    assert same(new, mask)


def rounds_of_snip(model, batch, density, rounds):
    mask = masks.ones(model)
    for t in range(1, rounds + 1):
        scores = metrics.snip(model, mask, batch)
        mask = masks.keep_top(scores, density ** (t / rounds))
        yield mask, scores


# --- the benchmarks' straightforward version means the same ---


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.build("lenet5", (1, 16, 16), 10, seed=0, init="panning"),
        lambda: models.build("resnet20", (1, 8, 8), 10, seed=0, init="panning"),
    ],
)
@pytest.mark.parametrize("method", straightforward.METHODS)
def test_the_straightforward_version_finds_the_same_mask(method, build):
    model, shape = build(), models.input_shape(build())
    batch = (
        torch.randn((20, *shape), generator=torch.Generator().manual_seed(1)),
        torch.arange(10).repeat(2),
    )
    rounds = 12 if method in ("panning", "synflow") else 1
    ours, _ = pruning.prune(model, method, 0.02, batch, rounds)
    theirs = straightforward.METHODS[method](model, 0.02, batch, rounds)
    both = {name: m & theirs[name] for name, m in ours.items()}
    assert (
        masks.count(both) >= 0.99 * max(masks.count(ours), masks.count(theirs))
        and masks.count(ours) > 500
    )
