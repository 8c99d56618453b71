"""A core inside a network: trained in turns, split off, and the same as a network of its own."""

import json
from collections import OrderedDict

import pytest
import torch
from torch import nn

from panning_core import data, masks, models, training
from panning_core.errors import UserError
from panning_core.runs import base, partial_mask
from panning_core.runs.partial_mask import (
    PER_CLASS,
    Factored,
    PartialMask,
    answers,
    core_of,
    fit,
    network,
)

SHORT = {"images": 200, "epochs": 2, "size": 0.05}


@pytest.fixture(scope="module")
def splits():
    return data.load("digits").first(train=200)


def made(splits, **fields):
    run = PartialMask(**{**SHORT, **fields})
    model = network(run, splits)
    return run, model, core_of(run, model, splits)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def cut_off(model):
    """The narrow network by itself: 15 and 5 units of LeNet-300-100."""
    layers = OrderedDict(flatten=nn.Flatten())
    for name, outputs, inputs in (("fc1", 15, None), ("fc2", 5, 15), ("fc3", 10, 5)):
        whole = getattr(model, name)
        layers[name] = small = nn.Linear(inputs or whole.in_features, outputs)
        small.weight.data = whole.weight.data[:outputs, :inputs].clone()
        small.bias.data = whole.bias.data[:outputs].clone()
        layers[name + "-relu"] = nn.ReLU() if name != "fc3" else nn.Identity()
    return nn.Sequential(layers)


@pytest.mark.parametrize("scheme", ["alternate", "joint", "core"])
def test_the_core_is_a_network_of_its_own(splits, scheme):
    run, model, core = made(splits, scheme=scheme)
    fit(run, model, core, splits.train)
    x = splits.test.x
    assert torch.allclose(cut_off(model)(x), answers(model, x, core), atol=1e-5)
    assert not torch.allclose(model(x), answers(model, x, core), atol=0.1)


def test_a_core_trained_alone_is_the_narrow_network_trained_by_plain_sgd(splits):
    run, model, core = made(splits, scheme="core")
    small = cut_off(model)
    optimiser = torch.optim.SGD(small.parameters(), lr=run.lr, momentum=0.9)
    recipe = training.Recipe(run.epochs, run.batch_size, run.lr, weight_decay=0, seed=run.seed)
    for batches in training.epochs(splits.train, recipe):
        for x, y, lr in batches:
            optimiser.param_groups[0]["lr"] = lr
            optimiser.zero_grad()
            nn.functional.cross_entropy(small(x), y).backward()
            optimiser.step()
    fit(run, model, core, splits.train)
    assert torch.allclose(flat(small), flat(cut_off(model)), atol=1e-5)


@pytest.mark.parametrize("core_kind", ["width", "weights", "rank"])
def test_steps_of_the_core_leave_the_complement_bit_for_bit(splits, core_kind):
    run, model, core = made(splits, scheme="core", core=core_kind)
    before = {n: p.clone() for n, p in model.named_parameters()}
    fit(run, model, core, splits.train)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter[~core[name]], before[name][~core[name]])
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_steps_take_turns(splits, monkeypatch):
    """Even steps move the core alone, odd ones everything; the momentum of the rest waits."""
    run, model, core = made(splits, scheme="alternate")
    seen, was = [], partial_mask.objective

    def objective(model, core, parts, x, y):
        seen.append((parts, model.fc1.weight[20:].detach().clone()))
        return was(model, core, parts, x, y)

    monkeypatch.setattr(partial_mask, "objective", objective)
    fit(run, model, core, splits.train)
    assert [parts for parts, _ in seen] == [("core",), ("full",)] * 4
    for step in range(0, 8, 2):
        assert torch.equal(seen[step][1], seen[step + 1][1])
        if step:
            assert not torch.equal(seen[step - 1][1], seen[step][1])


def test_with_everything_in_the_core_turns_are_plain_training(splits):
    found = []
    for scheme in ("alternate", "full"):
        run, model, core = made(splits, scheme=scheme)
        every = {name: torch.ones_like(m) for name, m in core.items()}
        fit(run, model, every, splits.train)
        found.append(flat(model))
    assert torch.equal(*found)


def test_the_joint_gradient_is_the_sum_of_both(splits):
    _, model, core = made(splits)
    x, y, gradients = splits.train.x, splits.train.y, []
    for parts in (("core",), ("full",), ("core", "full")):
        model.zero_grad()
        partial_mask.objective(model, core, parts, x, y).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(gradients[0] + gradients[1], gradients[2], atol=1e-7)


def test_a_factored_layer_begins_as_it_was_and_its_core_has_the_rank(splits):
    layer = nn.Linear(20, 12)
    with torch.no_grad():
        split = Factored(layer, 3)
        low, left = split.up @ split.down, layer.weight - split.up @ split.down
    x = torch.randn(7, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(split(x), layer(x), atol=1e-5)
    assert torch.linalg.matrix_rank(low) == 3
    values = torch.linalg.svdvals(layer.weight.detach())
    assert float(left.norm()) == pytest.approx(float(values[3:].norm()), rel=1e-4)
    run, model, core = made(splits, core="rank")
    fit(run, model, core, splits.train)
    model.fc1.rest.data.zero_(), model.fc2.rest.data.zero_()
    assert torch.equal(model(splits.test.x), answers(model, splits.test.x, core))


def test_which_parameters_belong_to_a_core(splits):
    _, _, width = made(splits)
    # 15 units of 64 inputs, 5 of 15, 10 of 5
    weights = {n: int(m.sum()) for n, m in width.items() if n.endswith("weight")}
    assert weights == {"fc1.weight": 960, "fc2.weight": 75, "fc3.weight": 50}
    assert [int(m.sum()) for n, m in width.items() if n.endswith("bias")] == [15, 5, 10]
    _, model, single = made(splits, core="weights")
    assert sum(int(m.sum()) for n, m in single.items() if n.endswith("weight")) == 2510
    x, y = data.balanced_batch(splits.train, PER_CLASS, torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(x), y).backward()
    change = {n: (w * w.grad).abs().detach() for n, w in models.prunable(model).items()}
    least = masks.flatten(change).sort().values[-2510]
    assert all(torch.equal(single[name], each >= least) for name, each in change.items())
    _, _, low = made(splits, core="rank")
    assert {n for n, m in low.items() if not m.any()} == {"fc1.rest", "fc2.rest"}
    assert low["fc1.up"].shape == (300, 3) and low["fc2.down"].shape == (5, 300)


def test_rescaled_cores_begin_at_the_scale_of_their_own_size(splits):
    _, model, core = made(splits, scheme="core")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    partial_mask.rescale(model, core)
    pairs = [(n, p.detach()) for n, p in model.named_parameters() if p.dim() > 1]
    factors = {n: float((p / before[n])[0, 0]) for n, p in pairs}
    wanted = {"fc1.weight": 1, "fc2.weight": (300 / 15) ** 0.5, "fc3.weight": (100 / 5) ** 0.5}
    assert factors == pytest.approx(wanted)


@pytest.mark.parametrize("scheme", ["alternate", "core", "full"])
def test_a_run_is_plain_values_and_repeats(scheme):
    run = PartialMask(**SHORT, scheme=scheme)
    found = run.execute(base.Context())
    json.dumps(found, allow_nan=False)
    assert found == run.execute(base.Context())
    assert (found["core_accuracy"] is None) == (scheme == "full")
    assert (found["full_accuracy"] is None) == (scheme == "core")
    assert found["core_weights"] == 1085 and found["full_weights"] == 50200


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"core": "depth"}, "depth"),
        ({"scheme": "alone"}, "alone"),
        ({"size": 0}, "size"),
        ({"size": 1}, "size"),
        ({"rescaled": True}, "rescaled"),
        ({"rescaled": True, "scheme": "core", "core": "rank"}, "rescaled"),
        ({"epochs": 0}, "epochs"),
        ({"lr": float("nan")}, "lr"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input_gets_one_sentence(fields, word):
    with pytest.raises(UserError, match=word):
        PartialMask(**fields)
