"""A mask of channels from a set of images: what the generator may and may not depend on."""

import pytest
import torch
from torch import nn

from panning_core.errors import UserError
from panning_core.methods import set_pruning
from panning_core.methods.set_pruning import CHANNELS, Generator, Network
from panning_core.runs import base
from panning_core.runs.stamp import ARMS, Adaptation, Stamp

TINY = {
    "reference": "digits", "target": "digits", "reference_images": 300, "images": 100,
    "meta_steps": 3, "steps": 20,
}  # fmt: skip


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return Network((1, 8, 8), 10), Generator(64)


def test_the_generator_sees_a_set_not_a_list(pair):
    network, generator = pair
    x = torch.randn(12, 1, 8, 8)
    logits = generator(network, x)
    for other in (x[torch.randperm(12)], torch.cat([x, x])):
        for name, again in generator(network, other).items():
            assert torch.allclose(logits[name], again, atol=1e-5)
    assert {name: len(logit) for name, logit in logits.items()} == CHANNELS


def test_without_the_set_every_task_gets_the_same_mask(pair):
    network, _ = pair
    blind = Generator(64, sees=False)
    # Of the picture nothing is left but what it is without one.
    one, other = (blind(network, torch.randn(5, 1, 8, 8)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_gated_channel_answers_nothing_and_learns_nothing(pair):
    network, _ = pair
    gates = {name: (torch.arange(width) % 3 == 0).float() for name, width in CHANNELS.items()}
    network(torch.randn(4, 1, 8, 8), gates).square().sum().backward()
    for name, gate in gates.items():
        weight = getattr(network, name).weight
        assert not weight.grad[gate == 0].any() and weight.grad[gate == 1].any()
    reads = network.conv2.weight.grad[:, gates["conv1"] == 0]
    assert not reads.any()
    full = network(torch.ones(2, 1, 8, 8), {n: torch.ones(w) for n, w in CHANNELS.items()})
    assert torch.equal(full, network(torch.ones(2, 1, 8, 8)))


def test_relaxed_gates_at_half_are_the_logits_and_sharpen(monkeypatch):
    logits = {"conv1": torch.tensor([-2.0, 0.0, 1.0])}
    monkeypatch.setattr(torch, "rand", lambda shape, generator=None: torch.full(shape, 0.5))
    gates = set_pruning.relaxed(logits, torch.Generator())
    assert torch.allclose(gates["conv1"], (logits["conv1"] / set_pruning.TEMPERATURE).sigmoid())
    monkeypatch.setattr(set_pruning, "TEMPERATURE", 1e-4)
    sharp = set_pruning.relaxed(logits, torch.Generator())["conv1"]
    assert sharp.round().tolist() == [0, 0, 1] or sharp.tolist() == [0, 0.5, 1]


def test_the_largest_of_each_layer_stay_and_the_earlier_of_equals():
    kept = set_pruning.hard({"a": torch.zeros(5), "b": torch.tensor([1.0, 3.0, 2.0])}, 0.4)
    assert kept["a"].tolist() == [1, 1, 0, 0, 0] and kept["b"].tolist() == [0, 1, 0]
    assert set_pruning.hard({"a": torch.zeros(5)}, 0.01)["a"].sum() == 1


def test_a_refitted_head_is_gradient_descent_from_zero():
    features, y = torch.randn(20, 6), torch.arange(20) % 3
    head = nn.Linear(6, 3, bias=False)
    nn.init.zeros_(head.weight)
    sgd = torch.optim.SGD(head.parameters(), set_pruning.REFIT_RATE)
    for _ in range(set_pruning.REFITS):
        sgd.zero_grad()
        nn.functional.cross_entropy(head(features), y).backward()
        sgd.step()
    assert torch.allclose(set_pruning.refitted(features, y, 3)(features), head(features), atol=1e-5)


def test_meta_learning_brings_each_layer_to_its_density(pair):
    network, _ = pair
    x, y = torch.randn(400, 1, 8, 8), torch.arange(400) % 10
    before = [p.clone() for p in network.parameters()]
    made = set_pruning.meta_learn(network, x, y, 0.2, 120, seed=0, size=20)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before))
    draw = torch.Generator().manual_seed(1)
    for gate in set_pruning.relaxed(made(network, x[:50]), draw).values():
        assert abs(float(gate.detach().mean()) - 0.2) < 0.15
    with pytest.raises(UserError, match="the reference set has 3 classes; a task needs 5"):
        set_pruning.meta_learn(network, x, y % 3, 0.2, 1, seed=0)


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_keeps_so_many_channels_and_is_repeated_bit_by_bit(arm):
    run = Stamp(arm=arm, **TINY)
    one, other = (run.execute(base.Context()) for _ in range(2))
    assert {**one, "choose_seconds": 0} == {**other, "choose_seconds": 0}
    wanted = CHANNELS if arm == "whole" else {"conv1": 5, "conv2": 10, "fc": 19}
    assert one["kept"] == wanted and (one["macs_share"] == 1) == (arm == "whole")
    assert len(one["accuracies"]) == 1 and one["looks"] == [20]


def test_every_arm_begins_with_the_same_network_and_head():
    first, second = (Adaptation(Stamp(arm=arm, **TINY)) for arm in ("stamp", "random"))
    for part in ("network", "head"):
        pairs = zip(getattr(first, part).parameters(), getattr(second, part).parameters())
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"arm": "stamps"}, "unknown arm 'stamps'; did you mean 'stamp'"),
        ({"density": 0}, "density is 0; every layer needs a channel"),
        ({"density": 1.5}, "density is 1.5; it is the fraction kept"),
        ({"meta_steps": 0}, "meta_steps is 0; it must be a whole number from 1"),
        ({"target": "digit"}, "unknown data set 'digit'"),
    ],
)
def test_bad_input_is_one_sentence(fields, says):
    with pytest.raises(UserError) as error:
        Stamp(**{**TINY, **fields})
    assert says in str(error.value) and "\n" not in str(error.value)
